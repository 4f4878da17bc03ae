"""Matrices whose precision is a Kronecker product plus a multiple of the identity."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class KroneckerNormal(TorchDistribution):
    r"""A matrix $F$ whose entries are Normal with precision $R \otimes C + \tau I$, R over rows and C over columns.

    With $R = U_R\, \mathrm{diag}(\lambda)\, U_R^\top$ and $C = U_C\, \mathrm{diag}(\mu)\, U_C^\top$, the entries of
    $U_R^\top (F - m)\, U_C$ are independent with precision $\lambda_i \mu_j + \tau$. Bases may have fewer columns than
    rows: the directions they leave out have precision τ. No matrix over all entries is formed.

    Args:
        loc: Mean m, `[*batch, row, column]`.
        row_basis: $U_R$, `[*batch, row, a]`, orthonormal columns (or zero).
        row_values: $\lambda \ge 0$, `[*batch, a]`.
        column_basis: $U_C$, `[*batch, column, b]`, orthonormal columns (or zero).
        column_values: $\mu \ge 0$, `[*batch, b]`.
        precision: $\tau > 0$, `[]`.
    """

    arg_constraints = {"precision": constraints.positive}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*batch row column"],
        row_basis: Float[Tensor, "*batch row a"],
        row_values: Float[Tensor, "*batch a"],
        column_basis: Float[Tensor, "*batch column b"],
        column_values: Float[Tensor, "*batch b"],
        precision: Float[Tensor, ""],
        validate_args: bool | None = None,
    ):
        self.loc = loc
        self.row_basis, self.row_values = row_basis, row_values
        self.column_basis, self.column_values = column_basis, column_values
        self.precision = precision
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    @property
    def eigenvalues(self) -> Tensor:
        r"""$\lambda_i \mu_j$, `[*batch, a, b]`."""
        return self.row_values[..., :, None] * self.column_values[..., None, :]

    @property
    def mean(self) -> Tensor:
        return self.loc

    def expand(self, batch_shape: Sequence[int], _instance: object = None) -> "KroneckerNormal":
        batch_shape = torch.Size(batch_shape)
        matrices = (self.loc, self.row_basis, self.column_basis)
        loc, row_basis, column_basis = (value.expand(batch_shape + value.shape[-2:]) for value in matrices)
        row_values, column_values = (
            value.expand(batch_shape + value.shape[-1:]) for value in (self.row_values, self.column_values)
        )
        return KroneckerNormal(
            loc, row_basis, row_values, column_basis, column_values, self.precision, validate_args=False
        )

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        Z = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        shrink = (1 + self.eigenvalues / self.precision).rsqrt() - 1
        rotated = self.row_basis.mT @ Z @ self.column_basis
        return self.loc + (Z + self.row_basis @ (shrink * rotated) @ self.column_basis.mT) / self.precision.sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        centred = value - self.loc
        rotated = self.row_basis.mT @ centred @ self.column_basis
        square = self.precision * centred.square().sum((-2, -1)) + (self.eigenvalues * rotated.square()).sum((-2, -1))
        numbers = self.event_shape.numel()
        logdet = numbers * self.precision.log() + (self.eigenvalues / self.precision).log1p().sum((-2, -1))
        return (logdet - square - numbers * math.log(2 * math.pi)) / 2
