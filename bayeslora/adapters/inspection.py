"""What one pass over a few examples shows of a network: which of its layers an adapter can stand at, and its head."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayeslora.adapters import repeats
from bayeslora.adapters.ends import Ends
from bayeslora.adapters.folding import still
from bayeslora.adapters.reads import Reads
from bayeslora.adapters.rows import is_readable
from bayeslora.adapters.targets import head_names, linear_layers, output_embedding
from bayeslora.adapters.weights import features, is_within, oriented
from bayeslora.adapters.writes import Parts, Writes
from bayeslora.isolation import seeded
from bayeslora.limits import naming_inputs
from bayeslora.networks import inputs_of, logits_of, memory_of
from bayeslora.passes import unchanged
from bayeslora.surroundings import called
from bayeslora.types import Batch

POSITIONS = 8
"""Positions of a layer's input, or up to twice as many, at which its output is compared with the product."""

TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-3}
"""Largest difference of a product, relative to its size, that comes from rounding, on accelerators too."""

COARSE = 5e-2
"""The same in half precision."""

FEW = 4096
"""Numbers of an output among which the logits are looked for whatever its shape."""

LAST = 8
"""Calls at the end of a pass among which the logits are looked for."""

READ = "its weight is read without a call of the layer"
BESIDE = "its weight is also read beside the layer's own call"
ARGUMENTS = "it is called with other arguments than one input"
PACKED = "its weights are packed, as torch.ao's quantised layers have them"
HOOKED = "a hook of its own changes its input"
CALL = "its class has a __call__ of its own"
COMPLEX = "its numbers are complex, and an adapter's are real"


@dataclass(frozen=True)
class Inspection:
    """What a pass over a few examples has shown.

    Args:
        logits: What the network returned.
        unfit: Layers that an adapter cannot stand for, and why.
        uncalled: Layers that these examples did not reach, and whose weight nobody read either.
        outputs: Modules that made the logits, in the order of their calls; empty if none was found.
        end: The operator that made the logits, by its name in `ends`, such as a sigmoid; None if it is another.
    """

    logits: Tensor
    unfit: Mapping[str, str] = field(default_factory=dict)
    uncalled: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    end: str | None = None


def inspect(model: nn.Module, batch: Batch) -> Inspection:
    """Run a network as it is on a batch, in evaluation mode, and look at its layers.

    A layer whose weight is read by its parent, or whose forward pass is not x Wᵀ + b, cannot be adapted: the adapter
    would do nothing, or something else once it is merged. Quantised weights are not compared.

    Args:
        model: The network; it is left as it was.
        batch: Its keyword arguments; labels are left out.
    """
    inputs = inputs_of(batch)
    layers = linear_layers(model)
    look, writes, parts = _Look(model, layers), Writes(model), Parts(model)
    try:
        with Reads(look.weights(), look.inside, writes) as reads:
            output = look.run(inputs, reads)
        read, ends = reads.found, reads.ends
    except Exception:  # some operators cannot be watched; what the network itself raises, it raises again
        look, read, ends = _Look(model, layers), set(), Ends()
        with naming_inputs(inputs):
            output = look.run(inputs)
    parts.check()
    writes.check(lambda again: _watched(model, layers, inputs, again))
    logits = logits_of(output)
    repeats.check(model, lambda: _Look(model, {}).run(inputs), logits, inputs)
    uncalled = [name for name in layers if name not in look.called]
    unfit = look.odd | {name: READ if name in uncalled else BESIDE for name in read if name not in look.odd}
    return Inspection(
        logits,
        {name: unfit[name] for name in layers if name in unfit},
        tuple(name for name in uncalled if name not in unfit),
        _outputs(layers, list(look.last), logits),
        ends.of(logits),
    )


def _watched(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Batch, writes: Writes) -> None:
    """Run a network once more."""
    with Reads({}, [], writes):
        _Look(model, layers).run(inputs)


def heads(model: nn.Module, seen: Inspection) -> tuple[str, ...]:
    """Names of the modules that form the task head: by their place or name, and by what was seen to make the logits.

    An output embedding is pre-trained, and not part of a task head.
    """
    by_name = head_names(model)
    found = tuple(name for name in seen.outputs if not _is_output_embedding(model, name, seen.logits))
    if not found or all(is_within(name, by_name) for name in found):
        return by_name
    if getattr(model, "base_model_prefix", "") in dict(model.named_children()):  # whose other parts are the head
        return by_name + tuple(name for name in found if not is_within(name, by_name))
    return tuple(dict.fromkeys(next((head for head in by_name if is_within(name, (head,))), name) for name in found))


def uncovered(model: nn.Module, adapted: Sequence[str], head: Sequence[str]) -> dict[str, int]:
    """Matrices of the body that no adapter changes, embeddings aside, and how many numbers they have.

    Fused weights of experts, projections of torch's attention and recurrent layers, and convolutions are among them.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    output: Any = output_embedding(model)
    if output is not None:
        embeddings |= {id(parameter) for parameter in output.parameters()}
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if sum(size > 1 for size in parameter.shape) > 1
        and id(parameter) not in embeddings
        and not is_within(name, (*adapted, *head))
    }


class _Look:
    """One pass of a network, with a look at every call of its layers."""

    def __init__(self, model: nn.Module, layers: Mapping[str, nn.Module]):
        self.model = model
        self.layers = layers
        self.called: set[str] = set()
        self.compared: set[str] = set()
        self.odd = {name: CALL for name, layer in layers.items() if type(layer).__call__ is not nn.Module.__call__}
        self.inside: list[str] = []
        self.given: dict[str, list[tuple[Any, ...]]] = {}
        self.last: deque[tuple[str, Any]] = deque(maxlen=LAST)

    def weights(self) -> dict[int, str]:
        """Return which layer a weight is of, by its `id`, for weights that no other module has as well.

        A parametrised weight is computed from others, which are read in its place.
        """
        owners: dict[int, set[str]] = {}
        for name, module in self.model.named_modules():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(memory_of(parameter), set()).add(name)
        found = {}
        for name, layer in self.layers.items():
            from_others = parametrize.is_parametrized(layer, "weight")
            sources: Any = layer.get_submodule("parametrizations.weight").parameters() if from_others else ()
            for weight in (layer._parameters.get("weight"), *sources):
                if weight is not None and all(is_within(owner, (name,)) for owner in owners[memory_of(weight)]):
                    found[id(weight)] = name
        return found

    def run(self, inputs: Batch, reads: "Reads | None" = None) -> Any:
        """What the network returns."""
        hooks = []
        for name, module in self.model.named_modules():
            if name in self.layers:
                hooks.append(module.register_forward_pre_hook(self._enter(name), prepend=True, with_kwargs=True))
                hooks.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
            elif name and next(module.parameters(recurse=False), None) is not None:
                hooks.append(module.register_forward_hook(self._note(name)))
        try:
            with torch.no_grad(), seeded(0), still(self.model), _layer_by_layer(self.model), unchanged(self.model):
                return called(self.model, inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
            self.inside.append(name)
            self.given.setdefault(name, []).append((*args, *kwargs.values()))  # before other hooks have seen them

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        note = self._note(name)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            given, args, kwargs = self.given[name].pop(), (*args, *kwargs.values()), {}
            if name not in self.odd and (reason := oddity(module, args, kwargs, output, name in self.compared)):
                self.odd[name] = reason
            elif name not in self.odd and not _same_input(given, args):
                self.odd[name] = HOOKED
            elif name not in self.compared and is_readable(args[0]) and bool(args[0].any()):
                self.compared.add(name)  # of zeros, any product is the same
            self.called.add(name)
            self.inside.remove(name)
            note(module, args, output)

        return hook

    def _note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and is_readable(output):
                self.last.append((name, output))

        return hook


def oddity(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, is_known: bool = False
) -> str | None:
    """Return why a call of a layer was not x Wᵀ + b, or None if it was.

    Args:
        module: The layer.
        args: What it was called with.
        kwargs: What it was called with, by name.
        output: What it returned.
        is_known: Whether an earlier call's product has been looked at.
    """
    args = (*args, *kwargs.values())  # a parent may name the input, as `input` of torch's own layers
    if len(args) != 1 or not isinstance(args[0], Tensor):
        return ARGUMENTS
    if not isinstance(output, Tensor):
        return f"it returns a {type(output).__name__}, not a tensor"
    if output.is_complex():
        return COMPLEX
    if is_known:
        return None
    x, weight, bias = args[0], getattr(module, "weight", None), getattr(module, "bias", None)
    if callable(weight) and not isinstance(weight, Tensor):
        return PACKED
    if x.numel() == 0 or not (is_readable(x) and is_readable(output)):
        return None
    sizes = features(module)
    assert sizes is not None
    if x.shape[-1] != sizes[0] or output.shape != (*x.shape[:-1], sizes[1]):
        shapes = f"{list(output.shape)} for an input {list(x.shape)}"
        return f"its output is {shapes}, and it says {sizes[0]} to {sizes[1]} features"
    if not isinstance(weight, Tensor) or _is_quantised(weight):
        return None
    weight = oriented(module, weight)
    if tuple(weight.shape) != sizes[::-1]:
        return f"its weight is {list(weight.shape)}, not [{sizes[1]}, {sizes[0]}]"
    if isinstance(bias, Tensor) and tuple(bias.shape) != sizes[1:]:
        return f"its bias is {list(bias.shape)}, not [{sizes[1]}]"
    rows, results = x.reshape(-1, x.shape[-1]), output.reshape(-1, sizes[1])
    chosen = slice(None, None, max(1, (len(rows) - 1) // (POSITIONS - 1)))
    bias = bias.to(weight.dtype) if isinstance(bias, Tensor) else None
    expected = F.linear(rows[chosen].to(weight.dtype), weight, bias).to(torch.promote_types(weight.dtype, torch.float))
    given = results[chosen].to(expected.dtype)
    size = expected.abs().max()
    tolerance = max(TOLERANCE.get(dtype, COARSE) for dtype in (x.dtype, weight.dtype, output.dtype))
    if not bool(size.isfinite()) or bool((given - expected).abs().max() <= tolerance * size):
        return None
    return "its output is not the product of its input and its weight, plus its bias"


def _same_input(given: tuple[Any, ...], args: tuple[Any, ...]) -> bool:
    """Whether a layer's input is still what it was before hooks saw it."""
    if len(given) != 1 or given[0] is args[0] or not isinstance(given[0], Tensor):
        return len(given) == 1 and given[0] is args[0]
    kinds = [(x.shape, x.dtype, x.device) for x in (given[0], args[0])]
    return kinds[0] == kinds[1] and (not is_readable(given[0]) or torch.equal(given[0], args[0]))


def _is_quantised(weight: Tensor) -> bool:
    is_plain = type(weight) in (Tensor, nn.Parameter) and weight.device.type != "meta"
    return not is_plain or not weight.is_floating_point() or weight.element_size() < 2


@contextmanager
def _layer_by_layer(model: nn.Module) -> Iterator[None]:
    """Torch's encoder layers without the fused kernel, which calls no layer: adapted networks do not use it either."""
    fused = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    before = [module.activation_relu_or_gelu for module in fused]
    try:
        for module in fused:
            module.activation_relu_or_gelu = 0
        yield
    finally:
        for module, value in zip(fused, before, strict=True):
            module.activation_relu_or_gelu = value


def _outputs(layers: Mapping[str, nn.Module], last: Sequence[tuple[str, Any]], logits: Tensor) -> tuple[str, ...]:
    """Names of the modules among the last calls whose outputs are the logits, or parts of them.

    Where something without parameters came after, such as a softmax, it is the last one, if it has the logits' size.
    """
    calls = [(name, output) for name, output in last if isinstance(output, Tensor) and output.dim() > 0]
    made = [name for name, output in calls if _makes(output, logits)]
    width = logits.shape[-1] if logits.dim() > 1 else 1
    if not made and calls and calls[-1][1].shape[-1] == width:
        made = [calls[-1][0]]
        for name, output in reversed(calls):  # of several, such as those of a mean over heads
            sizes = features(layers[name]) if name in layers else None
            if sizes is None or sizes[0] == width or output.shape != logits.shape:
                break
            made = list(dict.fromkeys([name, *made]))
        alike = {n: out for n, out in calls if n in layers and out.shape == logits.shape}
        if len(alike) > len(made) and _is_sum(list(alike.values()), logits):  # with norms and the like between them
            made = list(alike)
    made = [name for name in made if not any(other != name and is_within(other, (name,)) for other in made)]
    if made and not any(name in layers for name in made):  # a scale or a normalisation of what a layer made
        before = [name for name, output in calls if name in layers and output.shape[-1] == width]
        made = [*before[-1:], *made]
    return tuple(dict.fromkeys(made))


def _makes(output: Tensor, logits: Tensor) -> bool:
    if output.dtype != logits.dtype or not output.is_floating_point() or not bool(output.any()):
        return False
    if memory_of(output) == memory_of(logits):
        return True
    if output.numel() == logits.numel():
        return torch.equal(output.flatten(), logits.flatten())
    if output.shape[-1] not in (logits.shape[-1], 1) and output.numel() > FEW:
        return False
    larger, smaller = (output, logits) if output.numel() > logits.numel() else (logits, output)
    return bool(torch.isin(smaller, larger).all())


def _is_sum(outputs: Sequence[Tensor], logits: Tensor) -> bool:
    """Whether logits are a sum of all of some outputs, each times a number."""
    columns = torch.stack([output.flatten() for output in outputs], 1).cpu().double()
    goal = logits.flatten().cpu().double()
    if len(goal) <= len(outputs) or not bool(columns.isfinite().all() and goal.isfinite().all()):
        return False
    factors = torch.linalg.lstsq(columns, goal[:, None], driver="gelsd").solution[:, 0]
    rest = columns @ factors - goal
    return bool(rest.abs().max() <= 1e-4 * goal.abs().max()) and bool(factors.abs().min() > 1e-3)


def _is_output_embedding(model: nn.Module, name: str, logits: Tensor) -> bool:
    """Return whether a module makes logits of tokens: the model says so, or it goes with the largest embedding."""
    module = model.get_submodule(name)
    # Reading a weight that is computed from others may change these, as a spectral norm's vectors in training.
    weight, sizes = module._parameters.get("weight"), features(module)
    weights = [part.weight for part in model.modules() if isinstance(part, nn.Embedding)]
    if module is output_embedding(model) or any(weight is own for own in weights):
        return True
    # Other embeddings may have as many rows as there are classes: a head has the shape of those of two token types.
    largest = max(weights, key=len, default=None)
    return largest is not None and logits.dim() > 2 and sizes is not None and sizes[::-1] == (*largest.shape,)
