"""A small network and data for studies, in double precision."""

from typing import Any

import numpy as np
import torch
from torch import nn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 4))
Y = (X[:, 0] + RNG.normal(size=90) > 0).astype(np.int64) + (X[:, 1] > 0.5)
DATA, TEST = (X[:50], Y[:50]), (X[50:62], Y[50:62])
FEW: dict[str, Any] = {"rank": 2, "epochs": 1, "batch_size": 16, "learning_rate": 3e-2}


def network(outputs: int = 3) -> nn.Module:
    """Two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).double()
