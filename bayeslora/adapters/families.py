"""Adapter families: which factors a layer has, and the layer's forward pass given them."""

import abc
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from bayeslora.adapters.weights import frozen_weight, precise
from bayeslora.types import PerLayer, Scaling

Shapes = Mapping[str, tuple[int, ...]]
"""Factor name to the shape of one layer's factor."""


def kaiming(*shape: int) -> Float[Tensor, "layer rank d_in"]:
    """LoRA's starting value of `A`: U(±1/√d_in), standard deviation 1/√(3 d_in).

    Args:
        shape: `(layer, rank, d_in)`.
    """
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound)


class Factors(NamedTuple):
    """The low-rank factors of a stack, `A` `[*draw, layer, rank, d_in]` and `B` `[*draw, layer, d_out, rank]`."""

    A: Tensor
    B: Tensor


class SeededFactors(NamedTuple):
    """`A` and `B` as of low rank, and `seed` `[*draw, layer]`, a number that names a draw of the noise; 0 for none."""

    A: Tensor
    B: Tensor
    seed: Tensor


class SVDFactors(NamedTuple):
    """`P` `[*draw, layer, d_out, rank]`, λ as `lam` `[*draw, layer, rank]`, and `Q` `[*draw, layer, rank, d_in]`."""

    P: Tensor
    lam: Tensor
    Q: Tensor


class DoRAFactors(NamedTuple):
    """`A` and `B` as of low rank, and the norm `m` of every row of the weight, `[*draw, layer, d_out]`."""

    A: Tensor
    B: Tensor
    m: Tensor


class FullFactors(NamedTuple):
    """The change Δ of a layer's `weight`, `[*draw, layer, d_out, d_in]`."""

    weight: Tensor


class BiasFactors(NamedTuple):
    """The change δ of a layer's `bias`, `[*draw, layer, d_out]`."""

    bias: Tensor


class AffineFactors(NamedTuple):
    """Changes of a layer's `weight`, Δ `[*draw, layer, d_out, d_in]`, and of its `bias`, δ `[*draw, layer, d_out]`."""

    weight: Tensor
    bias: Tensor


class BottleneckFactors(NamedTuple):
    """Two layers on a layer's output: `W_down` `[…, rank, d_out]`, `W_up` `[…, d_out, rank]`, and their biases."""

    W_down: Tensor
    b_down: Tensor
    W_up: Tensor
    b_up: Tensor


class Family(abc.ABC):
    """Which factors a layer has, their shapes, and the layer's forward pass given them.

    Attributes:
        factors: The `NamedTuple` of this family's factors, `[*draw, layer, …]` each.
        layer_dims: Dimensions of one layer's factor, per factor; what stands before them is `[*draw, layer]`.
        has_rank: Whether shapes depend on a rank r, and the change is scaled by s = alpha / r.
    """

    factors: ClassVar[Any]
    layer_dims: ClassVar[tuple[int, ...]]
    has_rank: ClassVar[bool] = True

    @abc.abstractmethod
    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        """Factor name to the shape of one layer's factor."""

    @abc.abstractmethod
    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> Any:
        """Factors to start from, `[layer, …]` each, with which every layer computes what its base does.

        Args:
            num_layers: Layers of the stack.
            shapes: Factor name to the shape of one layer's factor.
            measured: What `measure` returned for these layers.
        """

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        """What the starting factors need to know of the layers' frozen weights, name to `[layer, …]`."""
        return {}

    def scale(self, factors: Any, scaling: Scaling) -> Any:
        """Fold the per-layer scaling s, `[layer]`, into stacked factors: once per stack, not once per layer."""
        return factors

    @abc.abstractmethod
    def forward(self, base: nn.Module, x: Tensor, factors: Any) -> Tensor:
        """One layer's output, given its scaled factors, `[*draw, …]`; with draws, the rows of `x` belong to them."""

    @abc.abstractmethod
    def delta(self, factors: Any, bases: Sequence[nn.Module] = ()) -> Tensor | None:
        """The change of the weight, `[*draw, layer, d_out, d_in]`, or None where it stays as it is.

        Args:
            factors: Scaled factors, `[*draw, layer, …]`.
            bases: The layers, for families whose change depends on the frozen weights.
        """

    def bias_delta(self, factors: Any) -> Tensor | None:
        """The change of the bias, `[*draw, layer, d_out]`, given scaled factors, or None where it stays as it is."""
        return None

    @abc.abstractmethod
    def difference_norm(self, factors: Any, reference: Any | None = None, bases: Sequence[nn.Module] = ()) -> PerLayer:
        """Frobenius norm of the difference of two changes of weight and bias, `[*draw, layer]`.

        Args:
            factors: Scaled factors, `[*draw, layer, …]`.
            reference: Others, or None for no change.
            bases: The layers, for families whose change depends on the frozen weights.
        """

    def places(self, names: Sequence[str]) -> list[str]:
        """The layers that `targets="all-linear"` means, given the names of all linear layers of the body."""
        return list(names)

    def peft(self, factors: Any) -> dict[str, Tensor]:
        """The parameters of the PEFT LoRA layer that computes the same, by their names there.

        Args:
            factors: One layer's factors, without s, which PEFT applies itself.

        Raises:
            ValueError: If there is no such layer.
        """
        raise ValueError(
            f"{type(self).__name__} adapters have no form in PEFT's LoRA, and cannot be exported: low-rank, SVD and "
            "DoRA adapters can."
        )

    def without_noise(self) -> "Family":
        """The family that computes the same where there is no noise; its factors are these without the noise's."""
        return self

    def unstack(self, factors: Any) -> list[Any]:
        """Stacked factors as one tuple of factors per layer."""
        # One `unbind` per factor: its backward pass is a single `stack`, where indexing would add L scatters.
        columns = (value.unbind(-1 - dims) for value, dims in zip(factors, self.layer_dims, strict=True))
        return [self.factors(*layer) for layer in zip(*columns, strict=True)]


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


class InputDropout(LowRank):
    r"""LoRA with dropout on the adapter's input: $h = W_0 x + s B A\, (x \odot m)$, $m_i \in \{0, 1/(1-p)\}$.

    In training mode it is torch's dropout, with torch's random state. In evaluation mode, the seed of a draw says what
    its mask is, for a batch of a given shape: the same for every batch of that shape, and however draws are grouped.

    Args:
        p: Probability that an entry of the input is dropped.
    """

    factors = SeededFactors
    layer_dims = (2, 2, 0)

    def __init__(self, p: float):
        self.p = p

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {**super().shapes(d_in, d_out, rank), "seed": ()}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> SeededFactors:
        A, B = super().initial(num_layers, shapes, measured)
        return SeededFactors(A, B, torch.zeros(num_layers))

    def forward(self, base: nn.Module, x: Tensor, factors: SeededFactors) -> Tensor:
        seeds = [] if base.training else factors.seed.reshape(-1).tolist()
        if self.p == 0 or not (base.training or any(seeds)):
            return super().forward(base, x, Factors(factors.A, factors.B))
        h = base(x)
        x = x.to(factors.A.dtype)
        x = F.dropout(x, self.p) if base.training else self._dropped(x, seeds)
        return h + self.update(x, factors).to(h.dtype)

    def _dropped(self, x: Tensor, seeds: Sequence[float]) -> Tensor:
        """The input under the mask of each draw, whose rows are together."""
        masks = torch.ones(len(seeds), x.numel() // len(seeds), dtype=x.dtype, device=x.device)
        generator = torch.Generator(x.device)
        for mask, number in zip(masks, seeds, strict=True):
            if number:
                # A whole number, of which a generator on the CPU looks at no more than 32 bits.
                generator.manual_seed(int(number * 2**23))
                mask.bernoulli_(1 - self.p, generator=generator).div_(1 - self.p)
        return x * masks.view(x.shape)

    def without_noise(self) -> LowRank:
        return LowRank()


class SVD(Family):
    r"""AdaLoRA's form: $h = W_0 x + s P\, \mathrm{diag}(\lambda)\, Q x$.

    $P \in \mathbb{R}^{d_{out} \times r}$ and $Q \in \mathbb{R}^{r \times d_{in}}$ start from N(0, .02²), λ at 0.
    Nothing here keeps the columns of `P` and the rows of `Q` orthogonal: a method may ask for it.

    References:
        Zhang et al. (2023), [AdaLoRA](https://arxiv.org/abs/2303.10512).
    """

    factors = SVDFactors
    layer_dims = (2, 1, 2)
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
        update = linear(linear(x.to(factors.Q.dtype), factors.Q), _left(factors))
        return h + update.to(h.dtype)

    def peft(self, factors: SVDFactors) -> dict[str, Tensor]:
        return {"lora_A.weight": factors.Q, "lora_B.weight": _left(factors)}

    def delta(self, factors: SVDFactors, bases: Sequence[nn.Module] = ()) -> Tensor:
        return _left(factors) @ factors.Q

    def difference_norm(
        self, factors: SVDFactors, reference: SVDFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        other = [] if reference is None else [(-_left(reference), reference.Q)]
        return norm_of_products([(_left(factors), factors.Q), *other])


def _left(factors: SVDFactors) -> Tensor:
    return factors.P * factors.lam[..., None, :]


class DoRA(Family):
    r"""Low rank in direction, free in length: $h = m \odot (W_0 + s B A)\, x \,/\, \lVert W_0 + s B A \rVert_{row}$.

    The norm of each row is a constant to the gradient, as in the paper's §4.3; a bias stays as it is. `m` starts at
    $\lVert W_0 \rVert_{row}$, `A` and `B` as LoRA's. The norms are computed from products with `A`, without forming the
    changed weight. Quantised weights have no norms here, and are refused.

    References:
        Liu et al. (2024), [DoRA](https://arxiv.org/abs/2402.09353).
    """

    factors = DoRAFactors
    layer_dims = (2, 2, 1)

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"A": (rank, d_in), "B": (d_out, rank), "m": (d_out,)}

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        return {"m": torch.stack([precise(frozen_weight(base)).square().sum(-1).sqrt() for base in bases])}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> DoRAFactors:
        A, B = kaiming(num_layers, *shapes["A"]), torch.zeros(num_layers, *shapes["B"])
        return DoRAFactors(A, B, measured["m"].clone())

    def scale(self, factors: DoRAFactors, scaling: Scaling) -> DoRAFactors:
        return factors._replace(B=factors.B * scaling[:, None, None])

    def forward(self, base: nn.Module, x: Tensor, factors: DoRAFactors) -> Tensor:
        A, B, _ = factors
        h, bias = base(x), getattr(base, "bias", None)
        gain = spread(self.gain(base, factors), h)
        update = (gain - 1) * (h if bias is None else h - bias) + gain * linear(linear(x.to(A.dtype), A), B)
        return h + update.to(h.dtype)

    def gain(self, base: nn.Module, factors: DoRAFactors) -> Float[Tensor, "*draw d_out"]:
        """What each row of W0 + sBA is multiplied by: m over its norm."""
        with torch.no_grad():
            weight, A, B = frozen_weight(base).to(factors.A.dtype), factors.A, factors.B
            cross = ((weight @ A.mT) * B).sum(-1)
            square = weight.square().sum(-1) + 2 * cross + ((B @ (A @ A.mT)) * B).sum(-1)
            norm = square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
        return factors.m / norm

    def peft(self, factors: DoRAFactors) -> dict[str, Tensor]:
        return {"lora_A.weight": factors.A, "lora_B.weight": factors.B, "lora_magnitude_vector": factors.m}

    def delta(self, factors: DoRAFactors, bases: Sequence[nn.Module] = ()) -> Tensor:
        deltas = []
        for base, layer in zip(bases, self.unstack(factors), strict=True):
            gain, weight = self.gain(base, layer)[..., None], frozen_weight(base).to(layer.A.dtype)
            deltas.append((gain - 1) * weight + gain * (layer.B @ layer.A))
        return torch.stack(deltas, dim=-3)

    def difference_norm(
        self, factors: DoRAFactors, reference: DoRAFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        # With g the gain: g (W0 + BA) - g'(W0 + B'A') = (g - g') W0 + (gBA - g'B'A'), squared by its parts.
        references = [None] * len(bases) if reference is None else self.unstack(reference)
        norms = []
        for base, layer, other in zip(bases, self.unstack(factors), references, strict=True):
            weight = frozen_weight(base).double()
            gain, product = self._parts(base, layer)
            other_gain, other_product = self._parts(base, other)
            change, products = gain - other_gain, [*product, *((-B, A) for B, A in other_product)]
            cross: Tensor = sum(((B * (weight @ A.mT)).sum(-1) for B, A in products), torch.zeros(()))
            square = (change.square() * weight.square().sum(-1) + 2 * change * cross).sum(-1)
            norms.append((square + norm_of_products(products).square()).clamp(min=0).sqrt())
        return torch.stack(norms, dim=-1).to(factors.A.dtype)

    def _parts(self, base: nn.Module, factors: DoRAFactors | None) -> tuple[Any, list[tuple[Tensor, Tensor]]]:
        """The gain g of one layer, and gB with A; 1 and nothing where there are no factors."""
        if factors is None:
            return 1.0, []
        gain = self.gain(base, factors).double()
        return gain, [(gain[..., None] * factors.B, factors.A.double())]


class Additive(Family):
    """Changes of a layer's weight and bias themselves, 0 at the start: the factors are those that may change."""

    has_rank = False

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        every = {"weight": (d_out, d_in), "bias": (d_out,)}
        return {name: every[name] for name in self.factors._fields}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> Any:
        return self.factors(*(torch.zeros(num_layers, *shape) for shape in shapes.values()))

    def forward(self, base: nn.Module, x: Tensor, factors: Any) -> Tensor:
        h = base(x)
        weight, bias = self.delta(factors), self.bias_delta(factors)
        if weight is not None:
            h = h + linear(x.to(weight.dtype), weight).to(h.dtype)
        return h if bias is None else h + spread(bias, h).to(h.dtype)

    def delta(self, factors: Any, bases: Sequence[nn.Module] = ()) -> Tensor | None:
        return getattr(factors, "weight", None)

    def bias_delta(self, factors: Any) -> Tensor | None:
        return getattr(factors, "bias", None)

    def difference_norm(self, factors: Any, reference: Any | None = None, bases: Sequence[nn.Module] = ()) -> PerLayer:
        changes = factors if reference is None else [a - b for a, b in zip(factors, reference, strict=True)]
        squares = [
            change.square().flatten(-dims).sum(-1) for change, dims in zip(changes, self.layer_dims, strict=True)
        ]
        return torch.stack(squares).sum(0).sqrt()


class Full(Additive):
    r"""Any change of a layer's weight: $h = (W_0 + \Delta) x + b_0$."""

    factors = FullFactors
    layer_dims = (2,)


class Bias(Additive):
    r"""A change of a layer's bias: $h = W_0 x + b_0 + \delta$. A layer without a bias gets one.

    References:
        Ben Zaken et al. (2021), [BitFit](https://arxiv.org/abs/2106.10199).
    """

    factors = BiasFactors
    layer_dims = (1,)


class Affine(Additive):
    r"""Any change of a layer's weight and bias: $h = (W_0 + \Delta) x + b_0 + \delta$.

    A layer without a bias gets one. The norm of a change is that of Δ and δ together.
    """

    factors = AffineFactors
    layer_dims = (2, 1)

    def measure(self, bases: Sequence[nn.Module]) -> Mapping[str, Tensor]:
        return {"W0": torch.stack([precise(frozen_weight(base)) for base in bases])}


@dataclass(frozen=True)
class Bottleneck(Family):
    r"""Two layers after a layer: $h + W_{up}\, \sigma(W_{down} h + b_{down}) + b_{up}$, with h the layer's own output.

    $W_{down} \in \mathbb{R}^{r \times d_{out}}$ starts from $U(\pm 1/\sqrt{d_{out}})$, everything else at 0. This is no
    change of the weights, and cannot be folded into them. Its norm is that of $W_{up} W_{down}$, the map that would be
    added if σ were the identity. There is no scaling s.

    `targets="all-linear"` means the layers after which the papers put adapters: where attention ends, and where the
    MLP ends, by the names that the common architectures give their output projections.

    Args:
        activation: σ, a function of `torch.nn.functional`.
        after_attention: Whether "all-linear" has the output projections of attention too, or those of the MLP alone.

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
            "Bottleneck adapters are layers of their own and no change of the weights: they cannot be folded into "
            "them. Keep the posterior, and predict with center=True."
        )

    def difference_norm(
        self, factors: BottleneckFactors, reference: BottleneckFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> PerLayer:
        other = [] if reference is None else [(-reference.W_up, reference.W_down)]
        return norm_of_products([(factors.W_up, factors.W_down), *other])

    def places(self, names: Sequence[str]) -> list[str]:
        ends = (*MLP_OUTPUTS, *ATTENTION_OUTPUTS)
        # `attention.output.dense` also ends as the MLP's `output.dense` does.
        attention = {name for name in names if _ends_with_any(name, ATTENTION_OUTPUTS)}
        places = [n for n in names if _ends_with_any(n, ends) and (self.after_attention or n not in attention)]
        if not places:
            known = ", ".join(ends if self.after_attention else MLP_OUTPUTS)
            raise ValueError(
                f"No layer has a name that is known to end attention or an MLP ({known}): name those layers in "
                f"`targets`. Suffixes that exist: {', '.join(sorted({name.rpartition('.')[2] for name in names}))}."
            )
        return places


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


def _ends_with_any(name: str, suffixes: Sequence[str]) -> bool:
    return f".{name}".endswith(tuple(f".{suffix}" for suffix in suffixes))


def spread(value: Tensor, rows: Tensor) -> Tensor:
    """Features `[*draw, d]`, shaped to go with rows `[row, …, d]`, a block of which belongs to each draw."""
    if value.dim() == 1:
        return value
    by_row = value.repeat_interleave(len(rows) // len(value), dim=0)
    return by_row.view(len(rows), *[1] * (rows.dim() - 2), -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b`; where `W` has a draw dimension, the rows of `x` belong to the draws, a block of them each."""
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    h = x.reshape(len(weight), -1, x.shape[-1]) @ weight.mT
    return (h if bias is None else h + bias[:, None]).view(*x.shape[:-1], -1)


def norm_of_products(products: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "..."]:
    r"""$\lVert \sum_i B_i A_i \rVert_F$ of pairs `B` `[…, d_out, rank]`, `A` `[…, rank, d_in]`; no sum is formed."""
    # B A + B'A' = [B, B'] [A; A'], and |BA|^2 = tr(B'B AA'): Gram matrices of size 2r, not weights.
    shape = torch.broadcast_shapes(*(A.shape[:-2] for _, A in products))
    B = torch.cat([B.expand(*shape, -1, -1) for B, _ in products], dim=-1).double()
    A = torch.cat([A.expand(*shape, -1, -1) for _, A in products], dim=-2).double()
    square = ((B.mT @ B) * (A @ A.mT)).sum((-2, -1))
    return square.clamp(min=0).sqrt().to(products[0][0].dtype)
