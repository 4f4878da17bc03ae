"""LoRA: a product of two matrices added to the weight."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.adapters.families.base import Family, Shapes, kaiming, norm_of_products
from bayeslora.types import PerLayer, Scaling


class Factors(NamedTuple):
    """The low-rank factors of a stack, `A` `[*draw, layer, rank, d_in]` and `B` `[*draw, layer, d_out, rank]`."""

    A: Tensor
    B: Tensor


class LowRank(Family):
    r"""LoRA: $h = W_0 x + s B A x$, with $A \in \mathbb{R}^{r \times d_{in}}$, $B \in \mathbb{R}^{d_{out} \times r}$.

    References:
        Hu et al. (2021), [LoRA](https://arxiv.org/abs/2106.09685).
    """

    factors: ClassVar[Any] = Factors
    layer_dims: ClassVar[tuple[int, ...]] = (2, 2)

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"A": (rank, d_in), "B": (d_out, rank)}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> Any:
        return Factors(kaiming(num_layers, *shapes["A"]), torch.zeros(num_layers, *shapes["B"]))

    def scale(self, factors: Any, scaling: Scaling) -> Any:
        return factors._replace(B=factors.B * scaling[:, None, None])

    def forward(self, base: nn.Module, x: Tensor, factors: Any) -> Tensor:
        if type(base) is nn.Linear and self.is_cheaper_merged(base, x, factors):
            A, B = (factor.view(factor.shape[-2:]) for factor in factors)
            return F.linear(x, torch.addmm(base.weight, B, A), base.bias)
        h = base(x)
        return h + self.update(x.to(factors.A.dtype), factors).to(h.dtype)

    def is_cheaper_merged(self, base: nn.Linear, x: Tensor, factors: Any) -> bool:
        """Whether it takes less work to add s B A to the weights than to apply both: of one draw, at many positions.

        Not with gradients, which would be those of a whole matrix, nor in half precision, where a small update of large
        weights is rounded away.
        """
        A = factors.A
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type) or (A.dim() == 3 and len(A) > 1):
            return False
        positions = x.numel() // base.in_features
        merging, applying = base.in_features * base.out_features, positions * (base.in_features + base.out_features)
        return base.weight.dtype == x.dtype == A.dtype and merging < applying

    def update(self, x: Tensor, factors: Any) -> Tensor:
        """What one layer's output gains, s B A x."""
        A, B = factors.A, factors.B
        if A.dim() == 2:
            return F.linear(F.linear(x, A), B)
        rows = x.reshape(len(A), -1, x.shape[-1])
        return (rows @ A.mT @ B.mT).view(*x.shape[:-1], B.shape[-2])

    def peft(self, factors: Any) -> dict[str, Tensor]:
        return {"lora_A.weight": factors.A, "lora_B.weight": factors.B}

    def delta(self, factors: Any, bases: Sequence[nn.Module] = ()) -> Tensor:
        return factors.B @ factors.A

    def difference_norm(self, factors: Any, reference: Any | None = None, bases: Sequence[nn.Module] = ()) -> PerLayer:
        parts = [factors] if reference is None else [factors, factors._replace(A=reference.A, B=-reference.B)]
        return norm_of_products([(part.B, part.A) for part in parts])
