"""AdaLoRA's form: a scaled sum of outer products added to the weight."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bayeslora.adapters.families.base import Product, Shapes, linear
from bayeslora.types import Scaling


class SVDFactors(NamedTuple):
    """`P` `[*draw, layer, d_out, rank]`, λ as `lam` `[*draw, layer, rank]`, and `Q` `[*draw, layer, rank, d_in]`."""

    P: Tensor
    lam: Tensor
    Q: Tensor


class SVD(Product):
    r"""AdaLoRA's form: $h = W_0 x + s P\, \mathrm{diag}(\lambda)\, Q x$.

    $P \in \mathbb{R}^{d_{out} \times r}$ and $Q \in \mathbb{R}^{r \times d_{in}}$ start from N(0, .02²), λ at 0.
    Nothing here keeps the columns of `P` and the rows of `Q` orthogonal: a method may ask for it.

    References:
        Zhang et al. (2023), [AdaLoRA](https://arxiv.org/abs/2303.10512).
    """

    factors = SVDFactors
    layer_dims = (2, 1, 2)
    columns = "Q"
    rows = "P"
    init_scale: ClassVar[float] = 0.02

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"P": (d_out, rank), "lam": (rank,), "Q": (rank, d_in)}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> SVDFactors:
        P, Q = (self.init_scale * torch.randn(num_layers, *shapes[name]) for name in ("P", "Q"))
        return SVDFactors(P, torch.zeros(num_layers, *shapes["lam"]), Q)

    def scale(self, factors: SVDFactors, scaling: Scaling) -> SVDFactors:
        return factors._replace(lam=factors.lam * scaling[:, None])

    def forward(self, base: nn.Module, x: Tensor, factors: SVDFactors) -> Tensor:
        h = base(x)
        right, left = self.product(factors)
        update = linear(linear(x.to(right.dtype), right), left)
        return h + update.to(h.dtype)

    def start_scale(self, d_in: int) -> float:
        return self.init_scale

    def product(self, factors: SVDFactors) -> tuple[Tensor, Tensor]:
        return factors.Q, factors.P * factors.lam[..., None, :]

    def peft(self, factors: SVDFactors) -> dict[str, Tensor]:
        right, left = self.product(factors)
        return {"lora_A.weight": right, "lora_B.weight": left}
