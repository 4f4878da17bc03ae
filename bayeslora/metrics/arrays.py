"""The type of arrays that metrics return."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
