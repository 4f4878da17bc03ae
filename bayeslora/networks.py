"""What a network is, takes and returns: its kind, its inputs, its logits."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bayeslora.passes import unchanged
from bayeslora.surroundings import called
from bayeslora.types import IGNORED, Batch

WRITING = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
"""Lists of `transformers` with models that write text, beside that of causal language models."""


def is_a(model: nn.Module | None, task: str) -> bool:
    """Return whether `transformers` lists a model's class for a task, such as `"CAUSAL_LM"`."""
    if not hasattr(model, "config"):
        return False
    from transformers.models.auto import modeling_auto

    listed = {*getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").values()}
    # The user's own class counts as the class that it derives from.
    return any(cls.__name__ in listed for cls in type(model).__mro__)


def is_encoder_decoder(model: nn.Module | None) -> bool:
    """Whether a network has a decoder that reads its labels, shifted, beside the network's inputs."""
    config: Any = getattr(model, "config", None)
    return any(bool(getattr(part, "is_encoder_decoder", False)) for part in (config, getattr(config, "text_config", 0)))


def writes(model: nn.Module | None) -> bool:
    """Whether a network writes text, token after token: it is made to, or is listed among those that are.

    A class of the user's own is in no list. What makes it a language model is that it generates, and that it has a
    layer for the logits of tokens.
    """
    if is_a(model, "CAUSAL_LM"):
        return True
    generates: Any = getattr(model, "can_generate", None)
    if generates is None or not generates():
        return False
    output: Any = getattr(model, "get_output_embeddings", None)
    return (output is not None and output() is not None) or any(is_a(model, task) for task in WRITING)


def continues(model: nn.Module | None) -> bool:
    """Whether a network writes the text that it reads: the logits of a token are about the next one."""
    return is_a(model, "CAUSAL_LM") or (writes(model) and not is_encoder_decoder(model))


def answers(model: nn.Module | None) -> bool:
    """Whether a network writes a text beside the one that it reads, or fills in what is masked.

    The logits at a place are about the label there.
    """
    listed = is_a(model, "SEQ_TO_SEQ_CAUSAL_LM") and is_encoder_decoder(model)
    fills = is_a(model, "MASKED_LM") and not writes(model)
    return not is_a(model, "CAUSAL_LM") and (listed or fills or (writes(model) and is_encoder_decoder(model)))


def solves(model: nn.Module, problem: str) -> bool:
    """Whether a model's configuration says which problem it is for, `problem_type`, and that it is this one."""
    return getattr(getattr(model, "config", None), "problem_type", None) == problem


def vocabulary(model: nn.Module) -> int | None:
    """Return how many tokens a network knows; None if it has no embedding of tokens."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text, "vocab_size", None)
    if isinstance(size, int):
        return size
    if hasattr(model, "get_input_embeddings"):  # transformers; a model of images has no tokens
        return None
    return max((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), default=None)


def decoder_inputs(model: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the function that turns labels into decoder inputs, for an encoder-decoder that writes text, else None.

    Such a network also reads its labels, shifted by one token: each is predicted from those before it.
    """
    if not is_encoder_decoder(model) or not answers(model):
        return None
    own: Any = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return lambda labels: own(labels=labels)
    start, pad = (_token(model, name) for name in ("decoder_start_token_id", "pad_token_id"))
    if start is None:
        return None

    def shifted(labels: Tensor) -> Tensor:
        inputs = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        return inputs.masked_fill(inputs == IGNORED, start if pad is None else pad)

    return shifted


def _token(model: Any, name: str) -> int | None:
    """Return a special token of a network that writes: its own, its text part's, or its generation's."""
    config = model.config
    parts = (config, *(getattr(config, part, None) for part in ("text_config", "decoder")))
    for part in (*parts, getattr(model, "generation_config", None)):
        value = getattr(part, name, None)
        if value is not None:
            return int(value[0]) if isinstance(value, (list, tuple)) else int(value)
    return None


def check_decoder_inputs(model: nn.Module, batch: Batch) -> None:
    """Compare the logits at decoder inputs made of labels with those of the network that is given the labels itself.

    Raises:
        ValueError: If they differ by more than rounding.
    """
    shifted, labels = decoder_inputs(model), batch["labels"]
    given = batch.get("decoder_input_ids")
    if shifted is None or given is None or "labels" not in inspect.signature(model.forward).parameters:
        return
    if not torch.equal(given, shifted(labels)):  # the user's own
        return
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "decoder_input_ids")}
    try:
        own = _evaluated(model, {**inputs, "labels": labels})
    except ValueError:  # it has no way of its own, such as a token to begin with
        return
    ours = base_logits(model, batch)
    tolerance = torch.finfo(own.dtype).eps ** 0.5 * float(own.abs().max().clamp(min=1))
    if own.shape != ours.shape or not bool(((own - ours).abs() <= tolerance).all()):
        raise ValueError(
            f"{type(model).__name__} makes its decoder's inputs of the labels in a way that is not known here: give "
            "'decoder_input_ids' beside 'labels'."
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network in what `torch.compile`, `DataParallel` and the like have put around it.

    Around it, parts have other names: what is its task head could not be told.

    Raises:
        TypeError: If it is, or has, a program of TorchScript, whose layers nothing can stand for.
        ValueError: If it has no weights, or lazy layers, which have none before their first call; or if changing
            between training and evaluation mode writes to its weights.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"{name!r} in the {type(model).__name__}" if name else "model"
            raise TypeError(
                f"{what} is a program of TorchScript, in which no layer can be adapted: give the torch.nn.Module that "
                "it was made from."
            )
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    parameters = [*model.named_parameters()]
    if not parameters:
        raise ValueError(
            f"The {type(model).__name__} has no parameters: nothing could be adapted. If it was quantised, by "
            "torch.ao.quantization, say, give the network that was quantised."
        )
    if empty := [name for name, parameter in parameters if parameter.is_meta]:
        raise ValueError(
            f"{len(empty)} of the model's {len(parameters)} parameters have no weights, the first is {empty[0]!r}: the "
            "model was built on the device 'meta', or accelerate keeps them elsewhere. Load it whole, and fit it then."
        )
    for name, parameter in parameters:
        if is_lazy(parameter):
            raise ValueError(
                f"The model's {name!r} has no shape yet: its layer, torch.nn.LazyLinear or the like, has not seen an "
                "input. Run the model once on a batch, and fit it then."
            )
    while (inner := model.module if isinstance(model, parallel) else model._modules.get("_orig_mod")) is not None:
        model = inner
    _check_modes(model)
    return model


WITHOUT_WRITES = ("torch.nn.modules.module", "transformers.modeling_utils")
"""Where a `train()` is defined that writes to no weights: trying it costs 8 ms in a BERT of 6 layers."""


@torch.no_grad()
def _check_modes(model: nn.Module) -> None:
    """Refuse layers as loralib's, whose `train()` adds an adapter of their own to a weight, or takes it off again.

    A posterior has modules of its own for the same weights: what its modules write there, the user's do not know of.
    """
    modes = [(part, part.training) for part in model.modules()]
    for part, mode in modes:
        if getattr(type(part).train, "__module__", None) in WITHOUT_WRITES:
            continue
        plain = {n: p for n, p in part.named_parameters() if type(p) is nn.Parameter and _is_plain(p)}
        before = {name: _first(parameter) for name, parameter in plain.items()}
        try:
            part.train(not mode)
            changed = [name for name, parameter in plain.items() if not torch.equal(before[name], _first(parameter))]
        finally:
            part.train(mode)  # which also takes back what was written
            for each, its in modes:
                each.training = its
        if changed:
            raise ValueError(
                f"The {type(part).__name__}'s own train() writes to its weights, such as {changed[0]!r}, which a "
                "posterior shares with the model that it is given. If it merges an adapter there, turn that off (in "
                "loralib, merge_weights=False), or put the merged weights in a plain torch.nn.Linear, and fit it then."
            )


def _is_plain(parameter: Tensor) -> bool:
    return parameter.layout is torch.strided and parameter.is_floating_point() and parameter.element_size() > 1


def _first(parameter: Tensor) -> Tensor:
    """Return a copy of a parameter's first row, which is itself alone if it has no rows; NaN is told elsewhere."""
    return (parameter[None] if parameter.dim() == 0 else parameter[:1]).nan_to_num()


def leave_reentrant_checkpointing(model: nn.Module) -> None:
    """Let activation checkpointing that is re-entrant go on as the other kind, which gives the same gradients.

    The re-entrant kind drops the gradient where no input of a block needs one, as in a frozen network.
    """
    for module in model.modules():
        name = "_gradient_checkpointing_func"
        function: Any = vars(module).get(name)
        if isinstance(function, functools.partial) and function.keywords.get("use_reentrant", True):
            setattr(module, name, functools.partial(function, use_reentrant=False))


def forward_parameters(model: nn.Module) -> list[str]:
    """Return the names of the inputs that a network's `forward` takes, in its order, without `labels`."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in kinds and parameter.name != "labels"]


def takes_any_name(model: nn.Module) -> bool:
    """Whether a network's `forward` takes inputs of any name, `**inputs`."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def output_names(model: Any) -> tuple[str, ...] | None:
    """Return the names that a model, or its configuration, has for its outputs; None if they are only numbered.

    Args:
        model: A model; or its configuration, as an object or as its file has it.
    """
    config = getattr(model, "config", model)
    found = config if isinstance(config, Mapping) else vars(config) if hasattr(config, "__dict__") else {}
    id2label = found.get("id2label") or {}
    if isinstance(id2label, Sequence):
        id2label = dict(enumerate(id2label))
    names = tuple(str(id2label[index]) for index in sorted(id2label, key=int))
    if any(name != f"LABEL_{index}" for index, name in enumerate(names)):
        return names
    # What is only said the other way round.
    label2id = {str(name): int(index) for name, index in (found.get("label2id") or {}).items()}
    names = tuple(sorted(label2id, key=lambda name: label2id[name]))
    if sorted(label2id.values()) != [*range(len(id2label) or len(names))]:
        return None
    return None if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else names


def with_output_names(model: nn.Module, names: Sequence[str] | None) -> nn.Module:
    """Return a model whose configuration names its outputs, if it has as many; the given one is not changed."""
    config: Any = getattr(model, "config", None)
    if names is None or not hasattr(config, "id2label") or getattr(config, "num_labels", None) != len(names):
        return model
    if output_names(model) == tuple(names):
        return model
    return with_settings(
        model, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)}
    )


def with_settings(model: Any, **settings: Any) -> nn.Module:
    """Return another module around a model's parts, with other settings in its configuration."""
    other, config = copy.copy(model), copy.deepcopy(model.config)
    for name, value in settings.items():
        setattr(config, name, value)
    other.config = config
    return other


def input_embedding(model: Any) -> nn.Module | None:
    """Return the table in which a model looks up its tokens; None if it has none, or does not say which."""
    try:
        found = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):  # of models for images, for instance
        return None
    return found if isinstance(found, nn.Module) else None  # Perceiver's are a parameter


def memory_of(value: Any) -> int:
    """Return where a tensor's memory begins; 0 where that is not known."""
    try:
        return value.untyped_storage().data_ptr()
    except (AttributeError, RuntimeError, NotImplementedError):  # no tensor, or one without memory
        return 0


def logits_of(output: Any, training: bool = False) -> Tensor:
    """Return the logits of a network's output; start and end logits of a span are stacked along the last dimension.

    They are the tensor, the entry `logits` of a mapping, or the one tensor of a tuple that has rows: beside it there
    may be a loss, or nothing.

    Args:
        output: What the network returned.
        training: Whether it was in training mode, to be said.

    Raises:
        TypeError: If there are none, several tensors could be, or they are not real numbers.
    """
    who = "In training mode, unlike in evaluation mode, the network" if training else "The network"
    logits = _logits_in(output, who)
    if not logits.is_floating_point():
        raise TypeError(
            f"{who} returned {logits.dtype} numbers: real ones, the logits, are needed. If it chooses a "
            "class, such as by argmax, leave that out."
        )
    return logits


def _logits_in(output: Any, who: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and isinstance(output.get("logits"), Tensor):
        return output["logits"]
    kind = type(output).__name__
    if type(output) in (tuple, list):
        rows = [value for value in output if isinstance(value, Tensor) and value.dim() > 0]
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise TypeError(
                f"{who} returned a {kind} with {len(rows)} tensors, and which of them has the logits is not known: "
                "return them alone, or in a mapping, {'logits': …}."
            )
    if hasattr(output, "logits"):
        return output.logits
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    raise TypeError(
        f"{who} returned {kind}, in which there are no logits: a tensor, a tuple with one, or an output with `logits` "
        "or `start_logits` and `end_logits`, is needed. A bare encoder has none: load it with a task head."
    )


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return a batch without its labels."""
    return {name: value for name, value in batch.items() if name != "labels"}


def base_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Return the logits of the unchanged network in evaluation mode; every module keeps its own mode."""
    return _evaluated(model, inputs_of(batch))


def _evaluated(model: nn.Module, inputs: Batch) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad(), unchanged(model):
            return logits_of(called(model.eval(), inputs))
    finally:
        for module, mode in modes:
            module.training = mode


def made_up_inputs(model: nn.Module) -> Batch | None:
    """Return two rows of random tokens or pixels, from a generator of their own; None if a model does not take them.

    They stand for data where there are none: two networks that compute the same agree on them, too.
    """
    config: Any = getattr(model, "config", None)
    generator, name = torch.Generator().manual_seed(0), getattr(model, "main_input_name", "")
    vocabulary, size = getattr(config, "vocab_size", None), getattr(config, "image_size", None)
    inputs: Batch
    if name == "input_ids" and isinstance(vocabulary, int):
        ids = torch.randint(vocabulary, (2, 8), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    elif name == "pixel_values" and isinstance(size, int):
        inputs = {name: torch.randn(2, getattr(config, "num_channels", 3), size, size, generator=generator)}
    else:
        return None
    parameter = next(model.parameters())
    dtypes = {name: parameter.dtype if value.is_floating_point() else value.dtype for name, value in inputs.items()}
    inputs = {name: value.to(parameter.device, dtypes[name]) for name, value in inputs.items()}
    try:
        base_logits(model, inputs)
    except Exception:  # whatever keeps a network from running on them
        return None
    return inputs
