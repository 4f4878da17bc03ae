"""A frozen network as a function of its adapters' factors."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters.families import Family, LowRank
from bayeslora.adapters.stack import Stack, Stacks
from bayeslora.adapters.weights import features, share_weights
from bayeslora.types import Batch

# Query, key and value projections as the common architectures spell them, the fused ones included.
ATTENTION = (
    *("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "q", "k", "v"),
    *("query_proj", "key_proj", "value_proj", "to_q", "to_k", "to_v"),
    *("c_attn", "query_key_value", "qkv", "qkv_proj", "Wqkv", "in_proj"),
)  # fmt: skip

# Heads of networks that do not say which of their parts is the body.
HEADS = ("classifier", "score", "head", "heads", "fc", "qa_outputs", "classification_head")


class Slot:
    """Holds the factors bound to one layer; a copy of it is empty.

    Bound factors are part of an autograd graph, which can be neither deep-copied nor pickled.

    Attributes:
        factors: Scaled factors, None where none are bound.
        rows: Rows of the batch over all draws, None where there are no several draws.
        sequences: Sequences of tokens in a row, which the network may make rows of their own.
        trusting: Whether rows are taken for the batch's where they might be tokens as well, being as many.
    """

    def __init__(self) -> None:
        self.factors: Any = None
        self.rows: int | None = None
        self.sequences = 1
        self.trusting = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Slot":
        return Slot()

    def __reduce__(self) -> tuple[type["Slot"], tuple[()]]:
        return Slot, ()


class NotFoldedError(Exception):
    """A layer's input does not have the rows of the batch, grouped by draw, in its first dimension."""


class AdaptedLayer(nn.Module):
    """A linear layer with whatever factors are bound to it; without any, the layer itself."""

    def __init__(self, base: nn.Module, family: Family):
        super().__init__()
        self.base = base
        self.family = family
        self.slot = Slot()

    def forward(self, x: Tensor) -> Tensor:
        slot = self.slot
        if slot.rows is not None and not _has_rows_first(x, slot.rows, slot.sequences, slot.trusting):
            raise NotFoldedError(
                f"The input of a layer, {tuple(x.shape)}, does not begin with the {slot.rows} rows of several draws. "
                "Draws of such a network run one by one, which activation checkpointing cannot repeat: leave it off."
            )
        return self.base(x) if slot.factors is None else self.family.forward(self.base, x, slot.factors)

    def __getattr__(self, name: str) -> Any:
        # Networks read `weight.dtype`, `in_features` and the like off their linear layers.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)


class AdaptedNetwork(nn.Module):
    """A frozen network, as a function of the factors of its adapters.

    The given model is left as it was: its modules are copied, its frozen weights shared, its task head copied and
    set to be trained. Layers of equal shape and rank form a `Stack`.

    The task head is trained as a point, unless `head_family` says which factors its linear layers have: these then form
    stacks of their own, after those of the body, and change the head's weights as they are now, which are frozen and
    saved with them. What else a head has (a LayerNorm) stays a point. Neither `targets`, nor `rank`, nor L, the number
    of adapted layers, looks at the head.

    Args:
        model: A `transformers` model or any `torch.nn.Module`.
        family: Which factors a layer of the body has.
        targets: `"all-linear"`, `"attention"`, a suffix, a list of suffixes or a regular expression.
        rank: r, or a mapping from module-name suffix to r (layers it does not name get 8).
        alpha: LoRA's alpha, s = alpha / r; or a mapping, likewise (16).
        num_examples: n, training examples, for the methods that scale by it.
        head_family: Which factors a linear layer of the task head has; None for a head that is trained as a point.
        start_rank: The rank that a layer asked to have r is given, for methods that prune; by default r. Stacks, and s,
            know the given one alone.

    Raises:
        ValueError: If no layer matches `targets`, or a rank does not fit its layer.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family | None = None,
        targets: str | Sequence[str] = "all-linear",
        rank: int | Mapping[str, int] = 8,
        alpha: float | Mapping[str, float] = 16,
        num_examples: int = 1,
        head_family: Family | None = None,
        start_rank: Callable[[int], int] = int,
    ):
        super().__init__()
        self.head_names = head_names(model)
        family = family or LowRank()
        names = choose_targets(model, targets, family)
        self.model = share_weights(model, self.head_names)
        stacks = _group(self.model, names, family, rank, start_rank, alpha, num_examples)
        in_head = [name for name in _linear_layers(self.model) if name.split(".")[0] in self.head_names]
        self.output_name = in_head[-1] if in_head else None
        if head_family is not None:
            stacks += _group(
                self.model,
                in_head,
                head_family,
                rank,
                start_rank,
                alpha,
                num_examples,
                num_layers=len(names),
                prefix="head_",
            )
        self.stacks = Stacks(stacks)
        # A plain dictionary of lists: the layers are registered in the model already.
        self._layers = {
            stack.name: [self._adapt(name, stack) for name in stack.layer_names] for stack in self.stacks.values()
        }
        for module in self.model.modules():
            if isinstance(module, nn.TransformerEncoderLayer):
                # Its fused kernel for inference reads the layers' weights and never calls them.
                module.activation_relu_or_gelu = 0
        for stack in self.stacks.values():
            scaling = torch.tensor(stack.scaling, dtype=self.dtype)
            self.register_buffer(f"scaling_{stack.name}", scaling, persistent=False)

    def train(self, mode: bool = True) -> "AdaptedNetwork":
        """Training or evaluation mode; in the body, layers with running statistics stay in evaluation mode.

        The statistics are the base's, as its weights are. Training would move them, on the rows of all particles
        together, and they are not saved with the adapters.
        """
        super().train(mode)
        for name, module in self.model.named_modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and name.split(".")[0] not in self.head_names:
                module.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors: single precision, or double on a double-precision network."""
        dtypes = {parameter.dtype for parameter in self.model.parameters()}
        return torch.float64 if torch.float64 in dtypes else torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _adapt(self, name: str, stack: Stack) -> AdaptedLayer:
        parent, _, child = name.rpartition(".")
        layer = AdaptedLayer(self.model.get_submodule(name).requires_grad_(False), stack.family)
        setattr(self.model.get_submodule(parent), child, layer)
        return layer

    def layers(self, stack: str) -> list[AdaptedLayer]:
        """The adapted layers of a stack, in the order of its `layer` dimension."""
        return self._layers[stack]

    def scaling(self, stack: str) -> Tensor:
        """S of each layer of a stack, `[layer]`."""
        return getattr(self, f"scaling_{stack}")

    def bases(self, stack: str) -> list[nn.Module]:
        """The layers of a stack as they were."""
        return [layer.base for layer in self._layers[stack]]

    def head_state(self) -> dict[str, Tensor]:
        """The task head's parameters and buffers, by their names in the model; not the factors of its layers."""
        state = {
            f"{head}.{name}": value
            for head in self.head_names
            for name, value in self.model.get_submodule(head).state_dict().items()
        }
        adapted = [name for stack in self.stacks.values() if stack.in_head for name in stack.layer_names]
        for layer in adapted:
            wrapped = [name for name in state if name.startswith(f"{layer}.base.")]
            state |= {layer + name.removeprefix(f"{layer}.base"): state.pop(name) for name in wrapped}
        return state

    def load_head(self, state: Mapping[str, Tensor]) -> None:
        """Put a task head's parameters and buffers in, by their names in the model.

        Raises:
            ValueError: If they are not those of this network's head.
        """
        own = self.head_state()
        given, has = ({name: tuple(value.shape) for name, value in part.items()} for part in (state, own))
        if given != has:
            raise ValueError(
                f"The trained task head is {given}; the model's is {has}: load the model with the same class and "
                "num_labels as for the fit."
            )
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state[name])

    def output_layer(self) -> Any:
        """The last linear layer of the task head as it is, whatever its factors; None if there is none."""
        if self.output_name is None:
            return None
        layer = self.model.get_submodule(self.output_name)
        return layer.base if isinstance(layer, AdaptedLayer) else layer

    def is_of_output(self, name: str) -> bool:
        """Whether a program's parameter is the output layer's, or of its factors."""
        stacks = [
            stack.name for stack in self.stacks.values() if stack.in_head and self.output_name in stack.layer_names
        ]
        own = self.output_name is not None and name.startswith(f"network.model.{self.output_name}.")
        return own or any(stack in name.split(".") for stack in stacks)

    def freeze_head(self) -> None:
        """Leave the task head as it is."""
        for head in self.head_names:
            self.model.get_submodule(head).requires_grad_(False)

    def scaled(self, factors: Mapping[str, Any]) -> dict[str, Any]:
        """Factors by stack with the per-layer scaling s folded in."""
        return {name: self.stacks[name].family.scale(value, self.scaling(name)) for name, value in factors.items()}

    def bind(
        self, factors: Mapping[str, Any], rows: int | None = None, sequences: int = 1, trusting: bool = False
    ) -> None:
        """Give every adapted layer its factors; they stay until the next call.

        Activation checkpointing runs the layers again in the backward pass: factors reset after the forward pass
        would give silently wrong gradients.

        Args:
            factors: Stack name to factors, `[*draw, layer, …]`.
            rows: Rows of the batch over all draws, where there are several.
            sequences: Sequences of tokens in a row, see `sequences_in`.
            trusting: See `Slot`.
        """
        for name, value in self.scaled(factors).items():
            for layer, its_factors in zip(self._layers[name], self.stacks[name].family.unstack(value), strict=True):
                slot = layer.slot
                slot.factors, slot.rows, slot.sequences, slot.trusting = its_factors, rows, sequences, trusting

    def unbind(self) -> None:
        """Back to the base network (with its task head)."""
        for layers in self._layers.values():
            for layer in layers:
                layer.slot.factors = layer.slot.rows = None

    def num_draws(self, factors: Mapping[str, Any]) -> int | None:
        """Size of the leading `draw` dimension, or None where there is none."""
        name, stack = next(iter(self.stacks.items()))
        factor = factors[name][0]
        return len(factor) if factor.dim() > stack.family.layer_dims[0] + 1 else None

    def forward(self, factors: Mapping[str, Any], inputs: Batch, rows_by_draw: bool = False) -> Tensor:
        """Logits, `[*draw, batch, …]`.

        Args:
            factors: Stack name to factors, `[*draw, layer, …]`.
            inputs: Keyword arguments of the model.
            rows_by_draw: Whether each draw has rows of its own, a block of the batch; the logits are then `[batch, …]`.

        Raises:
            ValueError: If draws of a network that does not keep the batch first are to be trained under activation
                checkpointing.
        """
        num_draws = self.num_draws(factors)
        if num_draws is None:
            self.bind(factors)
            return logits_of(self.model(**inputs))
        size = next(len(value) for value in inputs.values() if has_rows(value))
        repeats = 1 if rows_by_draw else num_draws
        rows = {
            name: torch.cat([value] * repeats) if has_rows(value) and len(value) == size else value
            for name, value in inputs.items()
        }
        # One draw after another, activation checkpointing would see the last one's factors.
        checkpointed = torch.is_grad_enabled() and any(
            getattr(module, "gradient_checkpointing", False) for module in self.model.modules()
        )
        num_rows, sequences = repeats * size if num_draws > 1 else None, sequences_in(inputs)
        self.bind(factors, num_rows, sequences, trusting=checkpointed)
        try:
            logits = logits_of(self.model(**rows))
        except NotFoldedError:
            if checkpointed:
                raise ValueError(
                    f"{type(self.model).__name__} does not keep the batch first in every adapted layer: its draws run "
                    "one by one, which activation checkpointing cannot repeat. Leave it off, train one particle, or "
                    "leave those layers out of `targets`."
                ) from None
            blocks = _blocks(inputs, size, num_draws) if rows_by_draw else [inputs] * num_draws
            logits = self._one_by_one(factors, blocks)
            # Should a network of its own repeat a pass for the backward one, it will find no single draw's factors.
            self.bind(factors, num_rows, sequences)
            return logits.flatten(0, 1) if rows_by_draw else logits
        return logits if rows_by_draw else logits.view(num_draws, size, *logits.shape[1:])

    def _one_by_one(self, factors: Mapping[str, Any], blocks: Sequence[Batch]) -> Tensor:
        """Logits at each draw of its block of rows, of a network with layers whose inputs are not batch first.

        Some work on transposed sequences (XLNet), some on inputs that all examples share (relative positions in
        DeBERTa).
        """
        logits = []
        for index, block in enumerate(blocks):
            self.bind({name: type(value)(*(factor[index] for factor in value)) for name, value in factors.items()})
            logits.append(logits_of(self.model(**block)))
        return torch.stack(logits)


def choose_targets(model: nn.Module, targets: str | Sequence[str], family: Family | None = None) -> list[str]:
    """Names of the layers to adapt, in the model's order.

    Args:
        model: The network.
        targets: `"all-linear"`, every linear layer of the body (not the pooler, the task head or the output
            embedding); `"attention"`, query, key and value projections; a suffix; a list of suffixes; or a regular
            expression, matched against whole module names.
        family: The adapter family, which may mean fewer layers by `"all-linear"`: bottlenecks follow the layers that
            end attention and the MLP.

    Raises:
        ValueError: If nothing matches; lists the names that exist.
    """
    # A task head is trained as it is: an adapter on it would be a second name for the same change.
    heads = head_names(model)
    linear = {name: layer for name, layer in _linear_layers(model).items() if name.split(".")[0] not in heads}
    body = [name for name in linear if _in_body(model, name)]
    if targets == "all-linear":
        chosen = (family or LowRank()).places(body) if body else []
    elif targets == "attention":
        chosen = [name for name in body if name.rpartition(".")[2] in ATTENTION]
    elif isinstance(targets, str):
        chosen = [name for name in linear if _ends_with(name, targets)]
        if not chosen:
            try:
                pattern = re.compile(targets)
            except re.error as error:
                raise ValueError(
                    f"targets={targets!r} is no suffix of a layer's name and no regular expression: {error}"
                ) from None
            chosen = [name for name in linear if pattern.fullmatch(name)]
    else:
        matches = {t: [t] if t in linear else [n for n in linear if _ends_with(n, t)] for t in targets}
        unmatched = [t for t, names in matches.items() if not names]
        if unmatched or not targets:
            raise ValueError(_no_match(unmatched, linear))
        chosen = [name for name in linear if any(name in names for names in matches.values())]
    if not chosen:
        raise ValueError(_no_match(targets, linear))
    return chosen


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Top-level parts of a model that form its task head: trained with the adapters, and not adapted.

    For a `transformers` model, what stands outside its body, unless that is a pre-trained language-model head; for
    any other, the parts that carry one of the usual names (`classifier`, `head`, `fc`, …).
    """
    prefix = getattr(model, "base_model_prefix", "")
    children = {name: child for name, child in model.named_children() if any(True for _ in child.parameters())}
    if prefix and prefix in children:
        return () if _output_embedding(model) is not None else tuple(n for n in children if n != prefix)
    return tuple(name for name in children if name in HEADS) if len(children) > 1 else ()


def _output_embedding(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    return get() if get is not None else None


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    # nn.MultiheadAttention reads its projection's weight and never calls it: an adapter there would do nothing.
    bypassed = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    return {
        name: module
        for name, module in model.named_modules()
        if name and not name.startswith(bypassed) and features(module) is not None
    }


def _in_body(model: nn.Module, name: str) -> bool:
    return not ("pooler" in name.split(".") or model.get_submodule(name) is _output_embedding(model))


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _lookup(value: Any, name: str, default: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if name in value:
        return value[name]
    return next((entry for suffix, entry in value.items() if _ends_with(name, suffix)), default)


def _no_match(targets: object, names: Mapping[str, nn.Module]) -> str:
    suffixes = sorted({name.rpartition(".")[2] for name in names})
    if not names:
        return f"targets={targets!r} match no layer: the model has no linear layers to adapt."
    return (
        f"targets={targets!r} match no linear layer. Suffixes that exist: {', '.join(suffixes)}. "
        f"Full names look like {next(iter(names))!r}. Or use 'all-linear' or 'attention'."
    )


def _group(
    model: nn.Module,
    names: Sequence[str],
    family: Family,
    rank: int | Mapping[str, int],
    start_rank: Callable[[int], int],
    alpha: float | Mapping[str, float],
    num_examples: int,
    num_layers: int | None = None,
    prefix: str = "",
) -> list[Stack]:
    groups: dict[tuple[int, int, int], list[str]] = {}
    for name in names:
        sizes = features(model.get_submodule(name))
        assert sizes is not None
        layer_rank = min(sizes)
        if family.has_rank:
            given = _lookup(rank, name, 8)
            layer_rank = start_rank(given) if isinstance(given, int) else 0
            if not 1 <= layer_rank <= min(sizes):
                starts = f", which starts at {layer_rank}," if layer_rank not in (0, given) else ""
                largest = sum(start_rank(r) <= min(sizes) for r in range(1, min(sizes) + 1))
                raise ValueError(
                    f"rank={given!r}{starts} does not fit layer {name!r}, which is {sizes[0]} to {sizes[1]} "
                    f"features: give a whole number from 1 to {largest}, or leave the layer out of `targets`."
                )
        groups.setdefault((*sizes, layer_rank), []).append(name)
    several = family.has_rank and len({layer_rank for _, _, layer_rank in groups}) > 1
    return [
        Stack(
            name=f"{prefix}{d_in}x{d_out}" + (f"r{layer_rank}" if several else ""),
            layer_names=tuple(layers),
            d_in=d_in,
            d_out=d_out,
            rank=layer_rank,
            scaling=tuple(_lookup(alpha, name, 16) / layer_rank for name in layers),
            num_layers=num_layers or len(names),
            num_examples=num_examples,
            family=family,
            in_head=bool(prefix),
            measured=family.measure([model.get_submodule(name) for name in layers]),
        )
        for (d_in, d_out, layer_rank), layers in groups.items()
    ]


def _has_rows_first(x: Tensor, rows: int, sequences: int, trusting: bool) -> bool:
    """Whether the rows of a layer's input are those of the batch, or the sequences in them, in the batch's order."""
    if x.dim() < 3:  # rows, or the tokens of all rows
        return len(x) % rows == 0
    first, second = x.shape[:2]
    sizes = (rows, rows * sequences)
    # A transposed batch has its rows, or sequences, second. Where both dimensions have such a size, the first need not
    # be the batch. Draws can mostly run one by one; where they cannot, batches of another size will tell.
    if trusting:
        return first in sizes and (second != sizes[1] or first == second)
    return first in sizes and second not in sizes


def _blocks(inputs: Batch, size: int, num_blocks: int) -> list[Batch]:
    """Inputs of `size` rows in blocks of equal size."""
    parts = {
        name: value.chunk(num_blocks) if has_rows(value) and len(value) == size else [value] * num_blocks
        for name, value in inputs.items()
    }
    return [{name: values[index] for name, values in parts.items()} for index in range(num_blocks)]


def sequences_in(inputs: Batch) -> int:
    """Sequences of tokens in a row of the network's inputs: the choices where `input_ids` is `[batch, choice, token]`.

    Models of multiple choice flatten the first two dimensions, which keeps each draw's rows together.
    """
    ids = inputs.get("input_ids")
    return ids.shape[1] if isinstance(ids, Tensor) and ids.dim() == 3 else 1


def has_rows(value: object) -> bool:
    """Whether an input of the network is a tensor with a first dimension."""
    return isinstance(value, Tensor) and value.dim() > 0


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returned; start and end logits of a span are stacked last.

    Raises:
        TypeError: If there are none.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "logits"):
        return output.logits
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    raise TypeError(
        f"The network returned {type(output).__name__}, in which there are no logits: a tensor, or an output with "
        "`logits` or `start_logits` and `end_logits`, is needed. A bare encoder has none: load it with a task head."
    )
