"""A matrix of factors of Laplace's guide: a point until its curvature is known, and then a Gaussian around it."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora import curvature, guides
from bayeslora.distributions import KroneckerNormal

LARGEST_ENTRY = 1.01
"""Of an eigenvector of length 1, with rounding."""


class Matrix(guides.Site):
    """A point, which becomes a Normal around it once its curvature and τ are known.

    Args:
        loc: Starting point, `[layer, row, column]`.
        row_rank: Eigenvectors that are kept, of the rows.
        column_rank: Eigenvectors that are kept, of the columns.

    Attributes:
        precision: τ, 0 until it is known.
    """

    precision: Tensor
    row_basis: Tensor
    row_values: Tensor
    column_basis: Tensor
    column_values: Tensor
    nonnegative = ("precision", "row_values", "column_values")

    def __init__(self, loc: Tensor, row_rank: int, column_rank: int):
        super().__init__()
        layers, rows, columns = loc.shape
        self.ranks = row_rank, column_rank
        self.loc = nn.Parameter(loc)
        self.register_buffer("precision", torch.zeros(()))
        self.register_buffer("row_basis", torch.zeros(layers, rows, row_rank))
        self.register_buffer("row_values", torch.zeros(layers, row_rank))
        self.register_buffer("column_basis", torch.zeros(layers, columns, column_rank))
        self.register_buffer("column_values", torch.zeros(layers, column_rank))

    def check_loaded(self) -> None:
        for name in ("row_basis", "column_basis"):
            if float(getattr(self, name).abs().max()) > LARGEST_ENTRY:
                raise ValueError(f"a curvature's {name} has entries above 1: give eigenvectors of length 1")

    def forward(self) -> dist.Distribution:
        if not self.precision > 0:
            return dist.Delta(self.loc, event_dim=2)
        factored = {name: getattr(self, name) for name in curvature.Kronecker._fields}
        return KroneckerNormal(self.loc, **factored, precision=self.precision)

    def put(self, layers: list[curvature.Kronecker]) -> None:
        """Take the curvature of each layer."""
        for name in curvature.Kronecker._fields:
            getattr(self, name).copy_(torch.stack([getattr(layer, name) for layer in layers]))

    def add(self, prior: KroneckerNormal) -> None:
        """Add a prior's precision: the two products become the one nearest to their sum, and τ is the prior's."""
        own, other = (
            curvature.Kronecker(*(getattr(part, name) for name in curvature.Kronecker._fields))
            for part in (self, prior)
        )
        layers = [
            curvature.nearest_sum(*(curvature.Kronecker(*(value[layer] for value in part)) for part in (own, other)))
            for layer in range(len(self.loc))
        ]
        self.put(layers)
        self.precision.copy_(prior.precision)

    def eigenvalues(self) -> Tensor:
        """Return the eigenvalues of the curvature, `[layer, a, b]`."""
        return self.row_values[..., :, None] * self.column_values[..., None, :]
