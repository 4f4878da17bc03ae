"""The checker behind jaxtyping's annotations: as the type checker does, it takes an int where a float is asked for.

Where an int is asked for, it takes NumPy's, too: users have them, and the library takes them.
"""

import numpy as np
from beartype import BeartypeConf, FrozenDict, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=FrozenDict({int: int | np.integer})))
