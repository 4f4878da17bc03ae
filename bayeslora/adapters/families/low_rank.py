"""LoRA: a product of two matrices added to the weight."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.adapters.families.base import Product, Shapes, kaiming, kaiming_scale
from bayeslora.types import FactorTuple, Scaling


class Factors(NamedTuple):
    """The low-rank factors of a stack, `A` `[*draw, layer, rank, d_in]` and `B` `[*draw, layer, d_out, rank]`."""

    A: Tensor
    B: Tensor


class LowRank(Product):
    r"""LoRA: $h = W_0 x + s B A x$, with $A \in \mathbb{R}^{r \times d_{in}}$, $B \in \mathbb{R}^{d_{out} \times r}$.

    References:
        Hu et al. (2021), [LoRA](https://arxiv.org/abs/2106.09685).
    """

    factors: ClassVar[Any] = Factors
    layer_dims: ClassVar[tuple[int, ...]] = (2, 2)
    peft_names: ClassVar[Mapping[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}
    columns = "A"
    rows = "B"

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"A": (rank, d_in), "B": (d_out, rank)}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> FactorTuple:
        return Factors(kaiming(num_layers, *shapes["A"]), torch.zeros(num_layers, *shapes["B"]))

    def scale(self, factors: FactorTuple, scaling: Scaling) -> FactorTuple:
        return factors._replace(B=factors.B * scaling[:, None, None])

    def forward(self, base: nn.Module, x: Tensor, factors: FactorTuple) -> Tensor:
        if _is_its_product(base) and self.is_cheaper_merged(base, x, factors):
            A, B = (factor.view(factor.shape[-2:]) for factor in factors)
            return F.linear(x, torch.addmm(base.weight, B, A), base.bias)
        h = base(x)
        return h + self.update(x.to(factors.A.dtype), factors).to(h.dtype)

    def is_cheaper_merged(self, base: nn.Linear, x: Tensor, factors: FactorTuple) -> bool:
        """Return whether adding s B A to the weights is less work than applying both: for one draw, at many positions.

        Never with gradients, which would be those of a whole matrix, nor in half precision, in which a small update of
        large weights is lost to rounding.
        """
        A = factors.A
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or (A.dim() == 3 and len(A) > 1):
            return False
        positions = x.numel() // base.in_features
        merging, applying = base.in_features * base.out_features, positions * (base.in_features + base.out_features)
        return base.weight.dtype == x.dtype == A.dtype and merging < applying

    def update(self, x: Tensor, factors: FactorTuple) -> Tensor:
        """Return what is added to one layer's output, s B A x."""
        A, B = factors.A, factors.B
        if A.dim() == 2:
            return F.linear(F.linear(x, A), B)
        rows = x.reshape(len(A), -1, x.shape[-1])
        return (rows @ A.mT @ B.mT).view(*x.shape[:-1], B.shape[-2])

    def start_scale(self, d_in: int) -> float:
        return kaiming_scale(d_in)

    def product(self, factors: FactorTuple) -> tuple[Tensor, Tensor]:
        return factors.A, factors.B

    def curvature(
        self, factors: FactorTuple, scaling: Tensor, x: Tensor, g: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        A, B = factors.A, factors.B
        return {"A": (x, scaling * (g @ B)), "B": (scaling * (x @ A.T), g)}


def _is_its_product(base: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a call of a layer is its product and nothing else: no hook, and no `forward` put in the class's place."""
    others = base._forward_pre_hooks or base._forward_hooks or "forward" in vars(base)
    return type(base) is nn.Linear and not others
