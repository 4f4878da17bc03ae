"""A frozen network as a function of its adapters' factors."""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import folding, mapping, running
from bayeslora.adapters.encoders import leave_fused_encoders
from bayeslora.adapters.families import Family, LowRank
from bayeslora.adapters.frozen import FrozenWeights, check_frozen, writes_of
from bayeslora.adapters.layer import AdaptedLayer, NotFoldedError
from bayeslora.adapters.rows import blocks, copied, num_rows, sequences_in
from bayeslora.adapters.stack import Stacks, draws_at, grouped
from bayeslora.adapters.targets import check_names, choose_targets, head_names, linear_layers
from bayeslora.adapters.weights import hold, is_within, names_of, share_weights, state_of, without_copies
from bayeslora.isolation import check_free, working
from bayeslora.networks import leave_reentrant_checkpointing, logits_of
from bayeslora.passes import Left, Passes, recomputes
from bayeslora.types import Batch, FactorsByStack, FactorTuple, Targets

logger = logging.getLogger(__name__)


class AdaptedNetwork(nn.Module):
    """A frozen network, as a function of the factors of its adapters.

    The given model is not changed: its modules are copied, its frozen weights are shared, and its task head is copied
    and made trainable. Layers of equal shape and rank form a `Stack`.

    The task head is trained as a point, unless `head_family` says which factors its linear layers have. These layers
    then form stacks after those of the body. Their factors change the head's present weights, which are frozen and
    saved with them; other parts of a head (a LayerNorm) stay points. `targets`, `rank` and L, the number of adapted
    layers, ignore the head.

    Args:
        model: A `transformers` model or any `torch.nn.Module`.
        family: Which factors a layer of the body has.
        targets: `"all-linear"`, `"attention"`, `"last:k"`, a suffix, a list of suffixes or a regular expression.
        rank: r, or a mapping from module-name suffix to r. By default, and for layers that it does not name, r is 8,
            or less where a layer has fewer features.
        alpha: LoRA's alpha, s = alpha / r; or a mapping from module-name suffix to alpha (other layers get 16).
        num_examples: n, training examples, for the methods that scale by it.
        head_family: Which factors a linear layer of the task head has; None for a head that is trained as a point.
        start_rank: The rank at which a layer starts, given r, for methods that prune; by default r. Stacks and s know
            only the rank at the start.
        exclude: Layers to leave out of `targets`: a suffix, a list of suffixes or a regular expression.
        head: Names of the modules that form the task head; None for what stands outside a model's body, or has one of
            the usual names.

    Raises:
        ValueError: If no layer matches `targets`, a rank does not fit its layer, or a mapping names no layer.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family | None = None,
        targets: Targets = "all-linear",
        rank: int | Mapping[str, int] | None = None,
        alpha: float | Mapping[str, float] = 16,
        num_examples: int = 1,
        head_family: Family | None = None,
        start_rank: Callable[[int], int] = int,
        exclude: Targets | None = None,
        head: Sequence[str] | None = None,
    ):
        super().__init__()
        self.head_names = head_names(model) if head is None else tuple(head)
        family = family or LowRank()
        check_names(model, rank, "rank")
        check_names(model, alpha, "alpha")
        names = choose_targets(model, targets, family, exclude, self.head_names)
        in_head = [name for name in linear_layers(model) if is_within(name, self.head_names)]
        self.output_name = in_head[-1] if in_head else None
        families = dict.fromkeys(names, family) | (dict.fromkeys(in_head, head_family) if head_family else {})
        adapted = {name: AdaptedLayer(model.get_submodule(name), own) for name, own in families.items()}
        self.model = share_weights(model, self.head_names, adapted)
        hold(self.model, self.head_names)
        leave_reentrant_checkpointing(self.model)
        bases = {name: layer.base.requires_grad_(False) for name, layer in adapted.items()}
        how = (rank, start_rank, alpha, num_examples)
        stacks = grouped(model, {name: bases[name] for name in names}, family, *how)
        if head_family is not None:
            own = {name: bases[name] for name in in_head}
            stacks += grouped(model, own, head_family, *how, num_layers=len(names), prefix="head_")
        self.stacks = Stacks(stacks)
        self.verdict: folding.Verdict | None = None
        self.confirmed = 2 * folding.EXAMPLES  # rows of all draws up to which it is trusted
        self.mapped: bool | None = None  # whether draws can be mapped, once it has been measured
        self.differentiates = not running.functions_differentiate_in_inference_mode()  # or a pass took gradients itself
        self.prefixes: dict[Any, Any] = {}  # what `Shared` knows, by the layers that differ
        self.passes = Passes()
        self.frozen: FrozenWeights | None = None  # once it has been fitted
        self.new: list[str] = []  # frozen parameters that the model's checkpoint lacked, which are saved as they are
        # A plain dictionary of lists: the layers are registered in the model already.
        self._layers = {stack.name: [adapted[name] for name in stack.layer_names] for stack in stacks}
        leave_fused_encoders(self.model)
        dtype = self.dtype
        self.writes = writes_of(self)
        for stack in self.stacks.values():
            scaling = torch.tensor(stack.scaling, dtype=dtype, device=self.device)
            self.register_buffer(f"scaling_{stack.name}", scaling, persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdaptedNetwork":
        memo |= without_copies(self.model) | memo
        other = memo[id(self)] = object.__new__(type(self))
        vars(other).update(copy.deepcopy(vars(self), memo))
        return other

    def train(self, mode: bool = True) -> "AdaptedNetwork":
        """Set training or evaluation mode; modules of the body with running state stay in evaluation mode.

        The statistics of a batch norm and the vectors of a spectral norm belong to the base model, like its weights.
        Training would change them, by the rows of all particles together, and they are not saved with the adapters.
        """
        super().train(mode)
        hold(self.model, self.head_names)
        return self

    @property
    def dtype(self) -> torch.dtype:
        """The factors' dtype: single precision, or double on a double-precision network."""
        return torch.float64 if any(p.dtype == torch.float64 for p in self.model.parameters()) else torch.float32

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def layers(self, stack: str) -> list[AdaptedLayer]:
        """Return the adapted layers of a stack, in the order of its `layer` dimension."""
        return self._layers[stack]

    def scaling(self, stack: str) -> Tensor:
        """Return s of each layer of a stack, `[layer]`."""
        return getattr(self, f"scaling_{stack}")

    def bases(self, stack: str) -> list[nn.Module]:
        """Return the original layers of a stack."""
        return [layer.base for layer in self._layers[stack]]

    def head_state(self) -> dict[str, Tensor]:
        """Return the task head's parameters and buffers by their names in the model, without factors of its layers."""
        state: dict[str, Tensor] = {}
        seen: set[tuple[Any, ...]] = set()
        for head in self.head_names:
            for name, value in state_of(self.model.get_submodule(head)):
                # A layer may have two names, and two layers one weight: files keep it once.
                place = (value.data_ptr(), value.shape, value.stride()) if value.numel() else (name,)
                if place not in seen:
                    state[f"{head}.{name}"] = value
                    seen.add(place)
        names = names_of(self.model)
        in_head = [layer for stack in self.stacks.values() if stack.in_head for layer in self._layers[stack.name]]
        adapted = [alias for layer in in_head for alias in names[layer]]
        for layer in adapted:
            wrapped = [name for name in state if name.startswith(f"{layer}.base.")]
            state |= {layer + name.removeprefix(f"{layer}.base"): state.pop(name) for name in wrapped}
        return state

    def load_head(self, state: Mapping[str, Tensor]) -> None:
        """Load a task head's parameters and buffers by their names in the model.

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
        """Return the last linear layer of the task head, without its factors; None if there is none."""
        if self.output_name is None:
            return None
        layer = self.model.get_submodule(self.output_name)
        return layer.base if isinstance(layer, AdaptedLayer) else layer

    def is_of_output(self, name: str) -> bool:
        """Return whether a program's parameter belongs to the output layer or to its factors."""
        stacks = [s.name for s in self.stacks.values() if s.in_head and self.output_name in s.layer_names]
        own = self.output_name is not None and name.startswith(f"network.model.{self.output_name}.")
        return own or any(stack in name.split(".") for stack in stacks)

    def freeze_head(self) -> None:
        """Exclude the task head from training."""
        for head in self.head_names:
            self.model.get_submodule(head).requires_grad_(False)

    def scaled(self, factors: FactorsByStack) -> dict[str, FactorTuple]:
        """Return the factors by stack with the per-layer scaling s folded in."""
        return {name: self.stacks[name].family.scale(value, self.scaling(name)) for name, value in factors.items()}

    def bind(self, factors: FactorsByStack, rows: int | None = None, sequences: int = 1, apart: bool = False) -> None:
        """Give every adapted layer its factors, which stay until the next call.

        Activation checkpointing runs the layers again in the backward pass: if factors were reset after the forward
        pass, gradients would be silently wrong.

        Args:
            factors: Stack name to factors, `[*draw, layer, …]`.
            rows: Rows of the batch over all draws, if there are several.
            sequences: Sequences of tokens in a row, see `sequences_in`.
            apart: See `Slot`.

        Raises:
            AtWorkError: If an outer call is in the middle of using the network.
            BaseChangedError: If frozen weights have changed since the fit.
        """
        check_frozen(self)
        for name, value in self.scaled(factors).items():
            for layer, its_factors in zip(self._layers[name], self.stacks[name].family.unstack(value), strict=True):
                layer.slot.hold(its_factors, rows, sequences, apart)

    def unbind(self) -> None:
        """Return to the base network (with its task head)."""
        check_free(self)
        self.passes.settle()
        if self.frozen is not None:
            self.frozen.note()
        for layer in [layer for layers in self._layers.values() for layer in layers]:
            layer.slot.hold()

    def run(self, inputs: Batch) -> Any:
        """Return what the network returns with the factors that are bound."""
        return running.run(self, inputs)

    @contextlib.contextmanager
    def alone(self, later: bool = False) -> Iterator[Left]:
        """Let passes begin with what the network kept at the start, such as the last state of a recurrent layer.

        In training, its head may change that, as its statistics of batches do.

        Args:
            later: Whether that is restored before the next pass or by `unbind`, for a backward pass to look at.

        Yields:
            What the passes leave, once the context has ended.
        """
        passes, is_new = self.passes, self.training not in self.passes.moving
        heads = [self.model.get_submodule(head) for head in self.head_names] if is_new and self.training else []
        besides = {part for head in heads for part in head.modules()}
        with passes.alone(self.model, self.training, besides, later) as left:
            yield left
        if is_new and passes.moving[self.training]:
            logger.info(
                "%s keeps something from one pass to the next, in %s: every pass begins with what was there at first.",
                *(type(self.model).__name__, ", ".join(map(repr, passes.names[:3]))),
            )

    def logits(self, inputs: Batch) -> Tensor:
        """Return the logits with the factors that are bound."""
        logits = logits_of(self.run(inputs), self.training)
        return logits.detach() if logits.requires_grad and not torch.is_grad_enabled() else logits

    def folds(self, factors: FactorsByStack, inputs: Batch) -> bool:
        """Return whether draws that run as rows of one batch give what they give one by one: measured once.

        A layer that the examples did not reach is not trusted to keep its rows.

        Args:
            factors: Stack name to factors, `[*draw, layer, …]`, around which the draws are made.
            inputs: Keyword arguments of the model, of which two examples are tried.
        """
        if self.verdict is None:
            self.verdict = folding.measure(self, factors, inputs)
            for name, stack in self.stacks.items():
                for layer_name, layer in zip(stack.layer_names, self._layers[name], strict=True):
                    layer.keeps_rows = layer_name in self.verdict.seen
            if not self.verdict.holds:
                logger.info("%s: draws run one by one: %s.", type(self.model).__name__, self.verdict.reason)
        return self.verdict.holds

    def _confirms(self, found: Tensor, factors: FactorsByStack, inputs: Batch, rows_by_draw: bool) -> bool:
        """Compare the last of the draws that ran together with a pass of its own: more rows than two may be mixed.

        That costs a pass where there are more rows than ever before, and then where they are twice as many.

        Args:
            found: Logits of the draws, `[draw, batch, …]`, in evaluation mode.
            factors: Stack name to factors, `[draw, layer, …]`.
            inputs: Keyword arguments of the model.
            rows_by_draw: See `forward`.
        """
        num_draws, size = found.shape[:2]
        its_own = blocks(inputs, num_draws * size, num_draws)[-1] if rows_by_draw else inputs
        worst = folding.confirm(self, found, factors, its_own)
        self.confirmed = 2 * num_draws * size - 1
        if worst > folding.tolerance(self.model):
            assert self.verdict is not None
            self.verdict = self.verdict._replace(holds=False)
            logger.info(
                "%s: draws run one by one: together, in %d rows, they differ by %.2g.",
                *(type(self.model).__name__, num_draws * size, worst),
            )
        return worst <= folding.tolerance(self.model)

    def maps(self, factors: FactorsByStack, inputs: Batch) -> bool:
        """Return whether to map draws into one pass: where it is faster, and gives what they give one by one.

        That is measured once, as in `folds`.
        """
        if mapping.num_together(self, inputs) is None:
            return False
        if self.mapped is None:
            reason = mapping.measure(self, factors, inputs)
            self.mapped = reason is None
            how = f"cannot be mapped: {reason}" if reason else "are mapped where that is faster"
            logger.info("%s: draws %s.", type(self.model).__name__, how)
        return self.mapped

    def num_draws(self, factors: FactorsByStack) -> int | None:
        """Return the size of the leading `draw` dimension, None if there is none."""
        name, stack = next(iter(self.stacks.items()))
        factor = factors[name][0]
        return len(factor) if factor.dim() > stack.family.layer_dims[0] + 1 else None

    @working
    def forward(self, factors: FactorsByStack, inputs: Batch, rows_by_draw: bool = False) -> Tensor:
        """Return the logits, `[*draw, batch, …]`.

        Args:
            factors: Stack name to factors, `[*draw, layer, …]`.
            inputs: Keyword arguments of the model.
            rows_by_draw: Whether each draw has its own rows, a block of the batch; the logits are then `[batch, …]`.

        Raises:
            ValueError: If draws of a network that does not keep the batch first are to be trained under activation
                checkpointing.
        """
        num_draws = self.num_draws(factors)
        if num_draws is None:
            self.bind(factors)
            return self.logits(inputs)
        size = num_rows(inputs)
        repeats = 1 if rows_by_draw else num_draws
        rows = folding.repeated(inputs, size, repeats)
        all_rows, sequences = repeats * size if num_draws > 1 else None, sequences_in(inputs)
        holds = num_draws == 1 or self.folds(factors, inputs)
        is_new = holds and num_draws > 1 and repeats * size > self.confirmed
        if is_new and (self.training or torch.is_grad_enabled()):
            with torch.no_grad(), folding.still(self):
                self(factors, inputs, rows_by_draw)
            holds, is_new = self.folds(factors, inputs), False
        if holds:
            self.bind(factors, all_rows, sequences)
            try:
                logits = self.logits(rows)
                by_draw = logits.unflatten(0, (num_draws, repeats * size // num_draws))
                if not is_new or self._confirms(by_draw, factors, inputs, rows_by_draw):
                    return logits if rows_by_draw else by_draw
            except NotFoldedError:
                pass  # a layer that was not reached before, or other shapes
        # If draws ran one after another, activation checkpointing would use the last one's factors for all of them.
        if torch.is_grad_enabled() and recomputes(self.model):
            raise ValueError(
                f"{type(self.model).__name__} does not keep the batch first in every adapted layer: its draws run one "
                "by one, which activation checkpointing cannot repeat. Leave it off, train one particle, or leave "
                "those layers out of `targets`."
            )
        if not rows_by_draw and self.maps(factors, inputs):
            try:
                return mapping.logits(self, factors, inputs, mapping.num_together(self, inputs))
            except Exception as error:  # a branch that two examples did not reach: one by one it holds, or says more
                self.mapped = False
                logger.info("%s: draws cannot be mapped any more: %s.", type(self.model).__name__, error)
        parts = blocks(inputs, size, num_draws) if rows_by_draw else [inputs] * num_draws
        logits = self._one_by_one(factors, parts)
        # If the network itself repeats a pass for the backward one, it must not find the factors of a single draw.
        self.bind(factors, all_rows, sequences, apart=True)
        return logits.flatten(0, 1) if rows_by_draw else logits

    def _one_by_one(self, factors: FactorsByStack, parts: Sequence[Batch]) -> Tensor:
        """Return the logits of each draw at its part of the rows, for networks that do not keep rows apart.

        Some layers work on transposed sequences (XLNet), some on inputs that all examples share (relative positions in
        DeBERTa), some on the tokens that were sent to them (experts).
        """
        logits = []
        for index, part in enumerate(parts):
            self.bind(draws_at(factors, index))
            logits.append(self.logits(copied(part)))
        return torch.stack(logits)
