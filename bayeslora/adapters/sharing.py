"""What a network computes before the first layer whose factors differ between draws: once for all of them."""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from bayeslora.adapters import folding
from bayeslora.adapters.calls import replaceable, replaced
from bayeslora.adapters.layer import AdaptedLayer
from bayeslora.adapters.network import AdaptedNetwork
from bayeslora.adapters.rows import copied, num_rows
from bayeslora.adapters.stack import draws_at
from bayeslora.isolation import at_work
from bayeslora.limits import clause
from bayeslora.passes import Left
from bayeslora.surroundings import called
from bayeslora.types import Batch, FactorsByStack

logger = logging.getLogger(__name__)

LEAST_SHARE = 0.02
"""Share of the network's weights, without tables that are only looked up, below which nothing is worth keeping."""

KEPT_BYTES = 2**25
"""Bytes that the kept outputs may take when they are repeated for several draws: 32 MiB."""


class ReachedError(BaseException):
    """The first layer whose factors differ was called; a network that catches every `Exception` does not catch it."""

    def __init__(self, x: Tensor):
        super().__init__()
        self.positions = max(1, x.numel() // max(1, x.shape[-1])) if x.dim() else 1


class Call(NamedTuple):
    """A module that was called, and the leaves of what it returned."""

    module: nn.Module
    leaves: list[Any]
    structure: Any


class Plan(NamedTuple):
    """How the outputs of one sequence of calls are handed out again.

    Args:
        rows: For each call and leaf, whether it has the rows of the batch, so that several draws repeat it.
        fresh: Whether the network writes into what a module has returned, so that each draw needs a copy.
    """

    rows: tuple[tuple[bool, ...], ...]
    fresh: bool


class Shared:
    """The part of a network that all draws have in common, which runs once for each batch.

    A call of a module that has ended before the first layer whose factors differ is called depends on the inputs alone.
    The largest such calls are found by running the network up to that layer; their outputs are kept, and handed out in
    the passes of the draws instead of running the modules again. Everything else of the network runs as ever, so that
    the architecture does not matter. What the outputs look like, and that the logits are those of the plain way, is
    measured on two examples, once for each sequence of calls; where they are not, draws run the whole network.

    Args:
        network: The adapted network, in evaluation mode.
        factors: Stack name to factors of several draws, `[draw, layer, …]`; of one of them, with `differ`.
        differ: Which layers' factors differ between draws, if it is known.
    """

    def __init__(self, network: AdaptedNetwork, factors: FactorsByStack, differ: Mapping[str, Tensor] | None = None):
        self.network = network
        self.factors = factors
        self.differ = differing(network, factors) if differ is None else differ
        layers = {
            called: layer
            for name, stack in network.stacks.items()
            for called, layer, differs in zip(
                stack.layer_names, network.layers(name), self.differ[name].tolist(), strict=True
            )
            if differs
        }
        self.layers = list(layers.values())
        self.known: Known = network.prefixes.setdefault(frozenset(layers), Known())

    @contextlib.contextmanager
    def over(self, inputs: Batch, most: int) -> Iterator[int | None]:
        """Run the common part on a batch, and let every pass in this context begin where it ends.

        Args:
            inputs: Keyword arguments of the model.
            most: Most positions, rows × tokens, that draws run together may have where they begin to differ.

        Yields:
            How many draws to run together; None if nothing is shared.
        """
        with at_work(self.network):
            yield from self._over(inputs, most)

    def _over(self, inputs: Batch, most: int) -> Iterator[int | None]:
        size, replay = num_rows(inputs), None
        if self.layers and self.known.worth:
            device = self.network.device
            # Numbers that a network draws in evaluation are those of the draws' own passes.
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                replay = self._replay(inputs, size)
        if replay is None:
            yield None
            return
        with replay.installed():
            yield max(1, min(most // replay.positions, KEPT_BYTES // max(1, replay.num_bytes)))

    def _replay(self, inputs: Batch, size: int) -> "Replay | None":
        network, known = self.network, self.known
        try:
            found = self._run(inputs, self.factors, known.fresh)
            if found is None:
                return None
            calls, positions, left = found
            if known.watched is None:
                known.watched = list({id(call.module): call.module for call in calls}.values())
                known.worth = share(network.model, known.watched) >= LEAST_SHARE
                if not known.worth:
                    return None
            signature = _signature(calls)
            if signature not in known.plans:
                known.plans[signature] = self._measure(inputs, signature)
                # Once more: a plan may ask for copies.
                calls, positions, left = self._run(inputs, self.factors, known.fresh) or found
            plan = known.plans[signature]
            if plan is None or _signature(calls) != signature or not _have_rows(calls, plan, size):
                return None
            if not network.folds(self.factors, inputs):
                network.maps(self.factors, inputs)  # measured on two examples: not with the outputs of all
            return Replay(network, self.layers[0], calls, plan, size, positions, left)
        finally:
            network.unbind()

    def _run(self, inputs: Batch, factors: FactorsByStack, fresh: bool = False) -> tuple[list[Call], int, Left] | None:
        """Run the network up to the first layer whose factors differ; None if none is called.

        Returns the largest calls that have ended by then, the positions of that layer's input, and what modules kept.
        """
        calls: list[Call] = []

        def noting(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                begun = len(calls)
                output = own(*args, **kwargs)
                del calls[begun:]  # the calls within this one
                leaves, structure = _pytree.tree_flatten(output)
                calls.append(Call(module, [_copy(leaf) for leaf in leaves] if fresh else leaves, structure))
                return output

            return forward

        def stopping(module: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
            def forward(x: Tensor) -> Any:
                raise ReachedError(x)

            return forward

        watched = replaceable(self.network.model) if self.known.watched is None else self.known.watched
        made = dict.fromkeys(watched, noting) | dict.fromkeys(self.layers, stopping)
        self.network.bind(draws_at(factors, 0))
        try:
            with self.network.alone() as left, replaced(made):
                called(self.network.model, copied(inputs))
        except ReachedError as reached:
            return calls, reached.positions, left
        except RuntimeError:  # the plain way says why, or does without
            return None
        return None

    def _measure(self, inputs: Batch, signature: Any) -> Plan | None:
        """Compare what is shared with the plain way, on two examples; None if it is something else."""
        network, name, known = self.network, type(self.network.model).__name__, self.known.watched or []
        try:
            folds = network.folds(self.factors, inputs)
            few, draws = folding.few_examples(inputs), self._moved()
            plain = torch.stack([folding.logits(network, draws_at(draws, index), few) for index in (0, 1, 0)])
            reason = "its calls depend on the number of examples"
            for fresh in (False, True):
                plan = self._plan(few, draws, signature, fresh, folds)
                if plan is None:
                    break
                distance = self._distance(few, draws, plan, plain, folds)
                if distance <= folding.tolerance(network.model):
                    part = 100 * share(network.model, known)
                    logger.info("%s: %.0f %% of its weights run once for all draws.", name, part)
                    return plan
                reason = f"with it, logits differ by {distance:.2g}"
        except Exception as error:  # whatever a network may raise on two examples
            reason = clause(error)
        logger.info("%s: every draw runs the whole network, and shares no part of it: %s.", name, reason)
        return None

    def _plan(self, few: Batch, draws: FactorsByStack, signature: Any, fresh: bool, folds: bool) -> Plan | None:
        """Find which outputs have rows, by running twice as many; None if they are neither that nor the same."""
        if not folds:  # draws run one by one, and nothing is repeated
            return Plan(tuple((False,) * len(dims) for _, dims in signature), fresh)
        size = num_rows(few)
        once, twice = self._run(few, draws, fresh), self._run(folding.repeated(few, size, 2), draws, fresh)
        if once is None or twice is None or not _signature(once[0]) == _signature(twice[0]) == signature:
            return None
        tolerance = folding.tolerance(self.network.model)
        rows = []
        for one, two in zip(once[0], twice[0], strict=True):
            kinds = [folding.doubles(a, b, tolerance) for a, b in zip(one.leaves, two.leaves, strict=True)]
            if None in kinds:
                return None
            rows.append(tuple(bool(kind) for kind in kinds))
        return Plan(tuple(rows), fresh)

    def _distance(self, few: Batch, draws: FactorsByStack, plan: Plan, plain: Tensor, folds: bool) -> float:
        size = num_rows(few)
        found = self._run(few, draws, plan.fresh)
        assert found is not None
        with Replay(self.network, self.layers[0], found[0], plan, size, *found[1:]).installed():
            alone = [folding.logits(self.network, draws_at(draws, index), few) for index in (0, 1, 0)]
            parts = [torch.stack(alone)]
            if folds:
                parts += [folding.together(self.network, draws, few, size) for _ in range(2)]
        return max(folding.distance(part, plain[: len(part)]) for part in parts)

    def _moved(self) -> dict[str, Any]:
        """Two draws that differ where those of the factors do, and are far enough apart to be seen."""
        apart, draws = folding.moved(self.network, self.factors, 2), {}
        for name, value in apart.items():
            given = self.factors[name]
            draws[name] = type(value)(
                *(
                    torch.where(self.differ[name].view(1, -1, *[1] * (new.dim() - 2)), new, old[:1])
                    for new, old in zip(value, given, strict=True)
                )
            )
        return draws


class Known:
    """What is known of a network with one choice of layers whose factors differ.

    Attributes:
        watched: Modules that all draws have in common; None before the first batch.
        worth: Whether they are enough of the network.
        plans: How to hand out outputs, for each sequence of calls; None where the plain way has to be gone.
    """

    def __init__(self) -> None:
        self.watched: list[nn.Module] | None = None
        self.worth = True
        self.plans: dict[Any, Plan | None] = {}

    @property
    def fresh(self) -> bool:
        """Whether outputs have to be copied as soon as they are returned."""
        return any(plan.fresh for plan in self.plans.values() if plan)

    def __reduce__(self) -> tuple[type["Known"], tuple[()]]:
        return Known, ()  # a copy is of other modules


class Replay:
    """Outputs of calls, handed out in every pass instead of running the modules.

    Args:
        network: The adapted network.
        layer: One of the layers whose factors differ, which knows how many rows a pass has.
        calls: The calls, in order.
        plan: How they are handed out.
        size: Examples of the batch.
        positions: Positions of the first layer's input.
        left: What modules have kept of the calls, with which every pass begins.
    """

    def __init__(
        self,
        network: AdaptedNetwork,
        layer: AdaptedLayer,
        calls: Sequence[Call],
        plan: Plan,
        size: int,
        positions: int,
        left: Left,
    ):
        self.network, self.layer, self.plan, self.size, self.positions = network, layer, plan, size, positions
        self.left = left
        self.outputs: dict[nn.Module, list[tuple[Call, tuple[bool, ...]]]] = {}
        for call, rows in zip(calls, plan.rows, strict=True):
            self.outputs.setdefault(call.module, []).append((call, rows))
        self.num_bytes = sum(
            leaf.numel() * leaf.element_size()
            for call, rows in zip(calls, plan.rows, strict=True)
            for leaf, has in zip(call.leaves, rows, strict=True)
            if has
        )
        self.called: Counter[nn.Module] = Counter()
        self.repeated: dict[tuple[nn.Module, int], Any] = {}
        self.num_draws = 1

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Replace the modules' own forward functions."""
        handle = self.network.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        try:
            with self.left.again(), replaced(dict.fromkeys(self.outputs, self._forward)):
                yield
        finally:
            handle.remove()

    def _begin(self, *_: Any) -> None:
        """Begin a pass."""
        rows = self.layer.slot.rows
        num_draws = 1 if rows is None or self.layer.slot.apart else rows // self.size
        if num_draws != self.num_draws:
            self.repeated.clear()
        self.num_draws = num_draws
        self.called.clear()

    def _forward(self, module: nn.Module, own: Any) -> Any:
        def forward(*args: Any, **kwargs: Any) -> Any:
            index = self.called[module]
            if index >= len(self.outputs[module]):
                return own(*args, **kwargs)
            self.called[module] += 1
            return self._output(module, index)

        return forward

    def _output(self, module: nn.Module, index: int) -> Any:
        key = module, index
        if key in self.repeated:
            return self.repeated[key]
        call, rows = self.outputs[module][index]
        leaves = [
            torch.cat([leaf] * self.num_draws)
            if has and self.num_draws > 1
            else (_copy(leaf) if self.plan.fresh else leaf)
            for leaf, has in zip(call.leaves, rows, strict=True)
        ]
        output = _pytree.tree_unflatten(leaves, call.structure)
        if not self.plan.fresh:
            self.repeated[key] = output
        return output


def differing(network: AdaptedNetwork, factors: FactorsByStack) -> Mapping[str, Tensor]:
    """Return which layers of each stack have factors that are not the same in all draws, `[layer]`."""
    found = {}
    for name, stack in network.stacks.items():
        differs = torch.zeros(len(stack), dtype=torch.bool, device=network.device)
        for factor in factors[name]:
            for others in (factor[1:2], factor[2:]):  # most often the first two tell
                if not bool(differs.all()):
                    differs |= (others != factor[:1]).unsqueeze(-1).flatten(2).any(-1).any(0)
        found[name] = differs
    return found


def share(model: nn.Module, modules: Sequence[nn.Module]) -> float:
    """Return the share of a model's weights, tables left out, that modules have."""

    def weights(parts: Sequence[nn.Module]) -> int:
        inner = {id(module): module for part in parts for module in part.modules()}.values()
        own = {
            id(parameter): parameter.numel()
            for module in inner
            if not isinstance(module, nn.Embedding)
            for parameter in module.parameters(recurse=False)
            if parameter.dim() > 1
        }
        return sum(own.values())

    return weights(modules) / max(1, weights([model]))


def _signature(calls: Sequence[Call]) -> Any:
    return tuple(
        (id(call.module), tuple(leaf.dim() if isinstance(leaf, Tensor) else None for leaf in call.leaves))
        for call in calls
    )


def _copy(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _have_rows(calls: Sequence[Call], plan: Plan, size: int) -> bool:
    return all(
        len(leaf) % size == 0
        for call, rows in zip(calls, plan.rows, strict=True)
        for leaf, has in zip(call.leaves, rows, strict=True)
        if has
    )
