"""Models, tokenizers and saved posteriors, by name."""

import contextlib
import copy
import inspect
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias, cast, get_type_hints

from torch import Tensor, nn

from bayeslora import bases, devices, hub, interop, sizing, storage, tables
from bayeslora.adapters import AdaptedNetwork
from bayeslora.adapters.weights import uncompiled
from bayeslora.carried import carried
from bayeslora.contracts import Kind, is_path
from bayeslora.data import LABELS, Columns
from bayeslora.devices import Device
from bayeslora.dials import TuningResult
from bayeslora.isolation import public, seeded
from bayeslora.methods import METHODS, Method, make_method
from bayeslora.networks import is_a, output_names, unwrapped, with_output_names, with_settings
from bayeslora.paths import of_a_model
from bayeslora.posterior import Posterior
from bayeslora.posterior.mixture import Mixture
from bayeslora.program import Program
from bayeslora.record import (
    MANIFEST,
    Code,
    ColumnsRecord,
    LikelihoodRecord,
    MethodRecord,
    MixtureRecord,
    NetworkRecord,
    check,
    damaged,
    reading,
)
from bayeslora.tasks import LIKELIHOODS, Likelihood
from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.spelling import shown
from bayeslora.types import Folder, ModelName, Tokenizer
from bayeslora.unpacking import Unpacked, unpack

logger = logging.getLogger(__name__)

_PathOfAdapters: TypeAlias = Annotated[str | os.PathLike[str], Kind("the folder of either", is_path)]

Init: TypeAlias = Posterior | nn.Module | _PathOfAdapters | None
"""Trained adapters to start from: a posterior, a PEFT model, or a folder of either."""

MOST_CLASSES = 2**20
"""A likelihood's record may count so many classes, or as many as there are numbers in the tensors."""


def with_padding(model: nn.Module, tokenizer: Tokenizer | None) -> tuple[nn.Module, Tokenizer | None]:
    """Return a model and a tokenizer that can pad; without a padding token, the one that ends a text is used.

    Without that either, an unknown word's is used, or the one that begins a text. What was given is not changed.
    `transformers` models that classify by the last token of a text need to know the padding token, too.
    """
    if tokenizer is None:
        return model, tokenizer
    others = (getattr(tokenizer, name, None) for name in ("eos_token", "unk_token", "bos_token"))
    if tokenizer.pad_token is None and (other := next(filter(None, others), None)) is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = other
        logger.info("The tokenizer has no padding token: padding with %r.", other)
    config: Any = getattr(model, "config", None)
    if tokenizer.pad_token is not None and getattr(config, "pad_token_id", 0) is None:
        model = with_settings(model, pad_token_id=tokenizer.pad_token_id)
    return model, tokenizer


@of_a_model
def load_model(
    name: str | os.PathLike[str],
    tokenizer: Tokenizer | None,
    kind: type[Likelihood],
    columns: Sequence[str],
    class_names: Sequence[str] | None,
    labels: RawLabels | None,
) -> tuple[nn.Module, Tokenizer | None, set[str]]:
    """Load a model with the outputs that a kind of label needs, and its tokenizer, from a folder or the hub.

    Args:
        name: Its path or hub name.
        tokenizer: The tokenizer to use instead of the model's own.
        kind: The kind of label.
        columns: Columns of the data, if it has any.
        class_names: Names of the classes, if they are known without labels.
        labels: The labels of the training data, if they are available.

    Returns:
        The model, its tokenizer, and the names of the parameters that its checkpoint lacks.
    """
    import transformers

    model_class = getattr(transformers, kind.model_class(columns))
    if labels is not None and len(labels) == 0 and labels.names is None:
        raise ValueError(f"{labels.data} has no examples.")
    own = _output_names(name)
    classes = None if labels is None else kind.classes(labels, own, None)
    names = classes.names if classes else class_names or (own if labels is None else None)
    values = None if labels is None or len(labels) == 0 else kind.encode(labels, classes)
    try:
        settings = kind.model_settings(str(name), names, values)
    except ValueError as error:
        others = [column for column in dict.fromkeys(columns) if column != "text"]
        if labels is not None or not others:
            raise
        if there := next((column for column in others if column in LABELS), None):
            raise ValueError(
                f"The classes of {there!r} are not known before the rows are read: say how many rows to read, "
                f"num_examples=…, or name them, data.cast_column({there!r}, datasets.ClassLabel(names=[…]))."
            ) from error
        raise ValueError(
            f"The data has no labels: by their names and values, none of its columns ({', '.join(others)}) is sure to "
            f"be the label. Name it, label={others[-1]!r}."
        ) from error
    settings["trust_remote_code"] = False
    # A checkpoint with a head for other classes gets a new one.
    try:
        model, info = model_class.from_pretrained(
            name, output_loading_info=True, ignore_mismatched_sizes=True, **settings
        )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        own_class = next(iter(config.architectures or ()), "its own class")
        raise ValueError(
            f"model={str(name)!r} is none that {model_class.__name__} loads, which {kind.name!r} asks for: pass the "
            f"model itself, {own_class}.from_pretrained({str(name)!r}), or another likelihood."
        ) from error
    other = [key for key, *_ in info["mismatched_keys"]]
    if other:
        logger.warning(
            "%s has other shapes in the checkpoint of %s (%s): it starts anew, because the data ask for it.",
            *(", ".join(map(repr, other)), name, "its outputs are " + shown(own) if own else "it has other outputs"),
        )
    lacked = {*info["missing_keys"], *other}
    if tokenizer is None and "pixel_values" not in columns:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    return model, tokenizer, lacked


def _output_names(name: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Return the names that a checkpoint has for its outputs, if it has any."""
    from transformers import AutoConfig, PretrainedConfig

    try:
        found = output_names(AutoConfig.from_pretrained(name, trust_remote_code=False))
        # Without `id2label`, a configuration forgets what its file says in `label2id`.
        return found or output_names(PretrainedConfig.get_config_dict(name)[0])
    except (OSError, ValueError):  # the model's own class says what is wrong
        return None


@public()
def load(
    folder: Folder,
    model: nn.Module | ModelName | None = None,
    *,
    device: Device | None = None,
    likelihood: Callable[[Tensor, Tensor | None], Any] | type[Likelihood] | None = None,
    method: Method | None = None,
    download: bool = False,
    revision: str | None = None,
) -> Posterior:
    """Read a posterior that `Posterior.save` wrote, here or elsewhere; a mixture comes back as one.

    A stranger's posterior is safe to load: its files are data, and are checked before anything is built from them. No
    code of theirs is run, no file outside the folder is opened but the base model's, and nothing is fetched.

    Args:
        folder: Where it was saved; or its name on the hub, `user/name`, of which there has to be a copy in the hub's
            cache, unless `download=True`.
        model: The base model, an instance or a path or hub name; a PEFT model stands for its base. None for the one
            named at the fit, if it is on this machine: a folder with `config.json` and safetensors, or a model in the
            hub's cache.
        device: Where it goes, such as `"cpu"` or `"cuda:1"`; None for where `model` is, or, if that is not an instance,
            where `fit` trains: on the accelerator, if there is one.
        likelihood: The callable that the posterior was fitted with, if its likelihood was one, or the class of its
            likelihood, if that is not registered, because code is not saved.
        method: The method that it was fitted with, if that holds a function of your own, which is not saved; None for
            the saved method.
        download: Whether the posterior, and the model named at the fit, may be fetched from the hub.
        revision: Branch, tag or commit of a posterior on the hub; None for the newest.

    Raises:
        ArgumentError: If an argument does not fit.
        FileNotFoundError: If there is no posterior in the folder.
        ValueError: If it is damaged, belongs to another base model, has a method that is not registered or is not the
            one given, or was fitted with a likelihood or function of your own that is not given; or if its base model
            is neither given nor here.
    """
    place = None if device is None else devices.found(device)
    if place is None and not isinstance(model, nn.Module):
        place = devices.usual()
    folder = hub.located(folder, download, revision)
    with contextlib.ExitStack() as hashing:
        loaded = _loaded(folder, unpack(folder, hashing), model, _Given(likelihood, method, download))
    return loaded if place is None or place == loaded._programs()[0].device else loaded.to(place)


class _Given(NamedTuple):
    """Arguments of `load` that serve every posterior it builds."""

    likelihood: Callable[..., Any] | type[Likelihood] | None
    method: Method | None
    download: bool


def _loaded(
    folder: str | os.PathLike[str], found: Unpacked, model: nn.Module | str | os.PathLike[str] | None, given: _Given
) -> Posterior:
    """Build a posterior or a mixture from what was read of it."""
    if not found.components:
        return _built(found, model, given)
    base = None if model is None or isinstance(model, nn.Module) else os.fspath(model)
    model = model if isinstance(model, nn.Module) else _base(found.components[0], base, given)
    built: dict[str, Posterior] = {}  # a component that is named twice is one posterior
    for part in found.components:
        is_its = given.method is not None and part.record["method"]["name"] == given.method.name
        if str(part.folder) not in built:
            built[str(part.folder)] = _built(part, model, given if is_its else given._replace(method=None))
    components = [built[str(part.folder)] for part in found.components]
    return Mixture.restored(components, found.tensors, cast(MixtureRecord, found.record), folder)


def _base(found: Unpacked, name: str | None, given: _Given) -> nn.Module:
    """Load the base model that the components of a mixture share."""
    size = sum(value.numel() for value in found.tensors.values())
    labels = _likelihood(found.folder, found.record["likelihood"], given.likelihood, size)
    return bases.load_base(found.folder, name, found.record, labels, found.tensors, given.download)


def _built(found: Unpacked, model: nn.Module | str | os.PathLike[str] | None, given: _Given) -> Posterior:
    """Build one posterior from what was read of it."""
    likelihood, method, download = given
    folder, record, tokenizer, tensors = found.folder, found.record, found.tokenizer, dict(found.tensors)
    size = sum(value.numel() for value in tensors.values())
    kind = _method(folder, record["method"], method)
    labels = _likelihood(folder, record["likelihood"], likelihood, size)
    names = record["class_names"]
    if names is not None and labels.num_labels is not None and len(names) != getattr(labels, "num_classes", len(names)):
        raise damaged(folder, MANIFEST, f"class_names has {len(names)} names, and there are not as many classes")
    model = uncompiled(unwrapped(model)) if isinstance(model, nn.Module) else model
    if isinstance(model, nn.Module) and interop.is_peft_model(model):
        model = interop.base_of_peft(model)  # whose layers go by the same names, and have adapters of their own
    if not isinstance(model, nn.Module):
        name = None if model is None else os.fspath(model)
        model = bases.load_base(folder, name, record, labels, tensors, download)
    else:
        bases.check_settings(model, record["base"].get("config", {}))
    model, tokenizer = with_padding(model, tokenizer)
    model = with_output_names(model, names)
    try:
        storage.check_targets(model, record["network"])
        layers: Any = {
            name: value for name, value in record["network"].items() if name in NetworkRecord.__annotations__
        }
        network = AdaptedNetwork(model, kind.family, head_family=kind.head_family, **layers)
        _check_outputs(network, labels)
        bases.put_new(network, tensors)
        storage.check_base(network, tensors.pop("fingerprint"))
        bases.check(network, tensors.pop("base_fingerprint", None))
    except ValueError as error:
        raise ValueError(f"The posterior in {folder} belongs to another base model: {error}") from None
    with reading(folder, record["tensors"]):
        trusted = method is not None or not type(kind).__module__.startswith("bayeslora.")
        sizing.check_guide(network, kind, tensors, size, trusted)
    with reading(folder, MANIFEST), seeded(0):  # a guide starts from random values, which the saved state replaces
        program = Program(network, kind, labels, record["num_particles"])
    with reading(folder, record["tensors"]):
        storage.load_state(program, tensors)
    if "prior" in record:
        _put_prior(folder, program, record["prior"], method, tensors, size)
    history = storage.history(tensors, record)
    columns = _columns(record.get("columns"))
    class_names = tuple(names) if names else None
    posterior = Posterior(program.eval(), history, record["temperature"], tokenizer, class_names, columns)
    posterior.state, posterior.weighted = record.get("state"), record.get("weighted", False)
    posterior.labels_seen = record.get("labels_seen")
    with reading(folder, record["tensors"]):
        posterior.held_out = tables.held_out(tensors, record)
        posterior.tuning = TuningResult.restored(record.get("tuning"), tensors)
    if posterior.state is not None:
        logger.warning("The posterior in %s is of a fit that was not finished: %s.", folder, posterior.state)
    return posterior


def _put_prior(
    folder: str | os.PathLike[str],
    program: Program,
    record: MethodRecord,
    given: Method | None,
    tensors: Mapping[str, Tensor],
    size: int,
) -> None:
    """Give a program the guide of the earlier fit that was its prior."""
    earlier = given if given is not None and storage.method_record(given) == record else _method(folder, record, None)
    with reading(folder, MANIFEST):
        if type(earlier) is not type(program.method):
            raise ValueError(f"prior is of method {earlier.name!r}, and the posterior is of {program.method.name!r}")
        trusted = given is not None or not type(earlier).__module__.startswith("bayeslora.")
        sizing.check_guide(program.network, earlier, tensors, size, trusted, "prior/")
        with seeded(0):
            program.prior = carried(earlier, program, storage.part(tensors, "prior/"))


def _columns(record: ColumnsRecord | None) -> Columns | None:
    """Return the columns that a posterior's fit read; None from versions that did not save them."""
    if record is None:
        return None
    lists: dict[str, Any] = {name: tuple(record[name]) for name in ("text", "features")}
    others: dict[str, Any] = {name: record.get(name) for name in ("label", "id", "answers")}
    lists |= {"shots": tuple(record.get("shots", ())), "labels": tuple(record.get("labels", ()))}
    return Columns(**lists, **others, by_index=record["by_index"])


def _method(folder: str | os.PathLike[str], record: MethodRecord, given: Method | None) -> Method:
    """Make the method of a saved posterior, or return the given one if it is the same."""
    if given is not None:
        own = storage.method_record(given)
        # A field that was added since has its default.
        defaults = storage.method_record(type(given)())["fields"]
        if own | {**record, "fields": defaults | record["fields"]} != own:
            raise ValueError(f"The posterior in {folder} is of {record!s:.400}, not of {own}.")
        return given
    kind = METHODS.get(record["name"])
    if kind is None or record.get("class", kind.__name__) != kind.__name__:
        fault = f"which is the name of {kind.__name__} here" if kind else "which is not known here"
        raise ValueError(
            f"The posterior in {folder} is of method {_named(record)}, {fault}: register its "
            f"class with bayeslora.register first. Known: {', '.join(METHODS)}. Or pass it, load(…, method=…)."
        )
    with reading(folder, MANIFEST):
        return make_method(record["name"], **record["fields"])


def _named(record: Code) -> str:
    its_class = f" (class {record['class']:.100})" if "class" in record else ""
    return f"{record['name']!r:.100}{its_class}"


def _likelihood(
    folder: str | os.PathLike[str],
    record: LikelihoodRecord,
    given: Callable[..., Any] | type[Likelihood] | None,
    size: int,
) -> Likelihood:
    """Make the likelihood of a saved posterior, with the function or class that was given."""
    name = record["name"]
    kind = given if isinstance(given, type) and issubclass(given, Likelihood) else LIKELIHOODS.get(name)
    if kind is None or record.get("class", kind.__name__) != kind.__name__:
        fault = f"which is the name of {kind.__name__} here" if kind else "which is not known here"
        raise ValueError(
            f"The posterior in {folder} has the likelihood {_named(record)}, {fault}: register its "
            f"class with bayeslora.register first. Known: {', '.join(LIKELIHOODS)}. Or pass it, load(…, "
            "likelihood=TheClass)."
        )
    if kind.needs_code and given is None:
        raise ValueError(f"The posterior in {folder} has a callable as likelihood: pass it, load(…, likelihood=…).")
    with reading(folder, MANIFEST):
        _check_config(kind, record["config"], size)
        return kind.restored(record["config"], copy.deepcopy(given) if kind.needs_code else None)


def _check_config(kind: type[Likelihood], config: Mapping[str, Any], size: int) -> None:
    """Raise a ValueError unless a likelihood's constructor takes what a record says, and no number is out of bounds.

    Counts are of what is in the tensors, of so many numbers in all, or else small.
    """
    declared: dict[str, Any] = {}
    if vars(kind).get("restored") is None and kind.restored.__func__ is Likelihood.restored.__func__:  # type: ignore[attr-defined]
        inspect.signature(kind).bind(**config)
        declared = get_type_hints(kind.__init__)
    most = max(size, MOST_CLASSES)
    for name, value in config.items():
        check(value, declared.get(name, Any), "likelihood", "config", name)
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int) and not 0 <= number <= most:
                raise ValueError(f"likelihood.config.{name} is {number}: give a number from 0 to {most}")


def _check_outputs(network: AdaptedNetwork, likelihood: Likelihood) -> None:
    """Raise a ValueError if a classifier of `transformers` has more or fewer outputs than the likelihood takes."""
    is_classifier = any(is_a(network.model, task) for task in ("SEQUENCE_CLASSIFICATION", "TOKEN_CLASSIFICATION"))
    needed, has = likelihood.num_labels, getattr(network.output_layer(), "out_features", None)
    if is_classifier and needed is not None and has is not None and needed != has:
        raise ValueError(
            f"it has {has} outputs, and the likelihood {likelihood.name!r} takes {needed}: {storage.HEADS_DIFFER}."
        )
