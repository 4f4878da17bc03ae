"""Bottleneck adapters: two small layers after a layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bayeslora.adapters.families.base import Family, Shapes, kaiming, linear, norm_of_products
from bayeslora.types import PerLayer

ATTENTION_OUTPUTS = (
    *("attention.output.dense", "attention.dense", "self_attention.dense", "self_attn.dense"),  # BERT, NeoX, BLOOM, Phi
    *("attn.c_proj", "o_proj", "out_proj", "out_lin", "attn.Wo", "attn.proj"),  # GPT-2, Llama, BART, DistilBERT, …
    *("SelfAttention.o", "EncDecAttention.o"),  # T5
)
"""How common architectures name the layer that ends attention."""

MLP_OUTPUTS = (
    *("output.dense", "ffn_output", "dense_4h_to_h", "down_proj"),  # BERT, ALBERT, NeoX and BLOOM, Llama
    *("mlp.c_proj", "fc2", "ffn.lin2", "mlp.Wo", "DenseReluDense.wo"),  # GPT-2, BART and ViT, DistilBERT, …, T5
    "linear2",  # PyTorch's own
)
"""How common architectures name the layer that ends the MLP."""


class BottleneckFactors(NamedTuple):
    """Two layers on a layer's output: `W_down` `[…, rank, d_out]`, `W_up` `[…, d_out, rank]`, and their biases."""

    W_down: Tensor
    b_down: Tensor
    W_up: Tensor
    b_up: Tensor


@dataclass(frozen=True)
class Bottleneck(Family):
    r"""Two layers after a layer: $h + W_{up}\, \sigma(W_{down} h + b_{down}) + b_{up}$, with h the layer's own output.

    $W_{down} \in \mathbb{R}^{r \times d_{out}}$ starts from $U(\pm 1/\sqrt{d_{out}})$, everything else at 0. It does
    not change the weights, and cannot be folded into them. Its norm is that of $W_{up} W_{down}$, the map that would be
    added if σ were the identity. There is no scaling s.

    With `targets="all-linear"`, adapters follow the layers of the papers: the output projections of attention and of
    the MLP, found by the names that common architectures give them.

    Args:
        activation: σ, a function of `torch.nn.functional`.
        after_attention: Whether "all-linear" includes the output projections of attention, or only those of the MLP.

    References:
        Houlsby et al. (2019), [Parameter-Efficient Transfer Learning](https://arxiv.org/abs/1902.00751).
        Pfeiffer et al. (2020), [AdapterFusion](https://arxiv.org/abs/2005.00247).
    """

    factors = BottleneckFactors
    layer_dims = (2, 1, 2, 1)
    activation: str = "gelu"
    after_attention: bool = True

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"W_down": (rank, d_out), "b_down": (rank,), "W_up": (d_out, rank), "b_up": (d_out,)}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> BottleneckFactors:
        zeros = {name: torch.zeros(num_layers, *shape) for name, shape in shapes.items()}
        return BottleneckFactors(**zeros | {"W_down": kaiming(num_layers, *shapes["W_down"])})

    def forward(self, base: nn.Module, x: Tensor, factors: BottleneckFactors) -> Tensor:
        h = base(x)
        W_down, b_down, W_up, b_up = factors
        inner = getattr(F, self.activation)(linear(h.to(W_down.dtype), W_down, b_down))
        return h + linear(inner, W_up, b_up).to(h.dtype)

    def delta(self, factors: BottleneckFactors, bases: Sequence[nn.Module] = ()) -> Tensor:
        raise ValueError(
            "Bottleneck adapters are layers of their own and do not change the weights: they cannot be folded into "
            "them. Keep the posterior, and predict with center=True."
        )

    def difference_norm(
        self, factors: BottleneckFactors, reference: BottleneckFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        other = [] if reference is None else [(-reference.W_up, reference.W_down)]
        return norm_of_products([(factors.W_up, factors.W_down), *other])

    def places(self, names: Sequence[str]) -> list[str]:
        ends = (*MLP_OUTPUTS, *ATTENTION_OUTPUTS)
        # The name `attention.output.dense` also ends in the MLP's `output.dense`.
        attention = {name for name in names if _ends_with_any(name, ATTENTION_OUTPUTS)}
        places = [n for n in names if _ends_with_any(n, ends) and (self.after_attention or n not in attention)]
        if not places:
            known = ", ".join(ends if self.after_attention else MLP_OUTPUTS)
            raise ValueError(
                f"No layer has a name that is known to end attention or an MLP ({known}): name those layers in "
                f"`targets`. Suffixes that exist: {', '.join(sorted({name.rpartition('.')[2] for name in names}))}."
            )
        return places


def _ends_with_any(name: str, suffixes: Sequence[str]) -> bool:
    return f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes))
