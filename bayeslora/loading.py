"""Models, tokenizers and saved posteriors, by name."""

import copy
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, nn

from bayeslora import bases, interop, saving, storage
from bayeslora.adapters import AdaptedNetwork
from bayeslora.isolation import isolated, seeded
from bayeslora.methods import METHODS, Method, make_method
from bayeslora.networks import unwrapped
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import LIKELIHOODS, Likelihood
from bayeslora.types import LabelColumn, Tokenizer

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    Init: TypeAlias = Posterior | nn.Module | str | os.PathLike[str] | None
else:
    Init: TypeAlias = Any  # `fit` refuses what does not fit, in words
"""Trained adapters to start from: a posterior, a PEFT model, or a folder of either."""


def with_padding(model: nn.Module, tokenizer: Tokenizer | None) -> tuple[nn.Module, Tokenizer | None]:
    """Return a model and a tokenizer that can pad; without a padding token, the one that ends a text is used.

    What was given is not changed. `transformers` models that classify by the last token of a text need to know the
    padding token, too.
    """
    if tokenizer is None:
        return model, tokenizer
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer has no padding token: padding with %r.", tokenizer.eos_token)
    config: Any = getattr(model, "config", None)
    if tokenizer.pad_token is not None and getattr(config, "pad_token_id", 0) is None:
        model = copy.copy(model)  # another module around the same parts
        config = copy.deepcopy(config)
        config.pad_token_id = tokenizer.pad_token_id
        model.config = config
    return model, tokenizer


def load_model(
    name: str | os.PathLike[str],
    tokenizer: Tokenizer | None,
    kind: type[Likelihood],
    columns: Sequence[str],
    class_names: Sequence[str] | None,
    labels: LabelColumn | None,
) -> tuple[nn.Module, Tokenizer | None, set[str]]:
    """Load a model with the outputs that a kind of label needs, and its tokenizer, from a folder or the hub.

    Args:
        name: Its path or hub name.
        tokenizer: The tokenizer to use instead of the model's own.
        kind: The kind of label.
        columns: Columns of the data, if it has any.
        class_names: Names of the classes, if the data has them.
        labels: All labels, if they are available.

    Returns:
        The model, its tokenizer, and the names of the parameters that its checkpoint lacks.
    """
    import transformers

    model_class = getattr(transformers, kind.model_class(columns))
    settings = kind.model_settings(str(name), class_names, labels)
    model, info = model_class.from_pretrained(name, output_loading_info=True, **settings)
    lacked = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    if tokenizer is None and "pixel_values" not in columns:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    return model, tokenizer, lacked


@isolated()
def load(
    folder: str | os.PathLike[str],
    model: nn.Module | str | None = None,
    *,
    likelihood: Callable[[Tensor, Tensor | None], Any] | type[Likelihood] | None = None,
    method: Method | None = None,
) -> Posterior:
    """Read a posterior that `Posterior.save` wrote.

    Args:
        folder: Where it was saved.
        model: The base model, an instance or a path or hub name; None for the one named at the fit. A PEFT model stands
            for its base.
        likelihood: The callable that the posterior was fitted with, if its likelihood was one, or the class of its
            likelihood, if that is not registered, because code is not saved.
        method: The method that it was fitted with, if that holds a function of your own, which is not saved; None for
            the saved method.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        ValueError: If it is damaged, belongs to another base model, has a method that is not registered or is not the
            one given, or was fitted with a likelihood or function of your own that is not given.
    """
    tensors, record, tokenizer = saving.read_unchanged(Path(folder) / storage.MANIFEST, lambda: _read(folder))
    method = _method(folder, record["method"], method)
    labels = _likelihood(folder, record["likelihood"], likelihood)
    model = unwrapped(model) if isinstance(model, nn.Module) else model
    if isinstance(model, nn.Module) and interop.is_peft_model(model):
        model = interop.base_of_peft(model)  # whose layers go by the same names, and have adapters of their own
    if not isinstance(model, nn.Module):
        model = _load_base(folder, model or record["base"]["name"], record, labels.num_labels)
    else:
        bases.check_settings(model, record["base"].get("config", {}))
    model, tokenizer = with_padding(model, tokenizer)
    try:
        network = AdaptedNetwork(model, method.family, head_family=method.head_family, **record["network"])
    except ValueError as error:
        raise ValueError(f"The posterior in {folder} belongs to another base model: {error}") from None
    bases.put_new(network, tensors)
    storage.check_base(network, tensors.pop("fingerprint"))
    bases.check(network, tensors.pop("base_fingerprint", None))
    with seeded(0):  # a guide starts from random values, which the saved state replaces
        program = Program(network, method, labels, record["num_particles"])
    storage.load_state(program, tensors)
    history = storage.history(tensors, record)
    names = record["class_names"]
    posterior = Posterior(program.eval(), history, record["temperature"], tokenizer, tuple(names) if names else None)
    posterior.state = record.get("state")
    if posterior.state is not None:
        logger.warning("The posterior in %s is of a fit that was not finished: %s.", folder, posterior.state)
    return posterior


def _method(folder: object, record: Mapping[str, Any], given: Method | None) -> Method:
    """Make the method of a saved posterior, or return the given one if it is the same."""
    if given is not None:
        own = storage.method_record(given)
        if own | {**record} != own:
            raise ValueError(f"The posterior in {folder} is of {record}, not of {own}.")
        return given
    kind = METHODS.get(record["name"])
    if kind is None or record.get("class", kind.__name__) != kind.__name__:
        fault = f"which is the name of {kind.__name__} here" if kind else "which is not known here"
        raise ValueError(
            f"The posterior in {folder} is of method {record['name']!r}{_class_of(record)}, {fault}: register its "
            f"class with bayeslora.register first. Known: {', '.join(METHODS)}. Or pass it, load(…, method=…)."
        )
    return make_method(record["name"], **record["fields"])


def _class_of(record: Mapping[str, Any]) -> str:
    return f" (class {record['class']})" if "class" in record else ""


def _likelihood(
    folder: object, record: Mapping[str, Any], given: Callable[..., Any] | type[Likelihood] | None
) -> Likelihood:
    """Make the likelihood of a saved posterior, with the function or class that was given."""
    name = record["name"]
    kind = given if isinstance(given, type) and issubclass(given, Likelihood) else LIKELIHOODS.get(name)
    if kind is None or record.get("class", kind.__name__) != kind.__name__:
        fault = f"which is the name of {kind.__name__} here" if kind else "which is not known here"
        raise ValueError(
            f"The posterior in {folder} has the likelihood {name!r}{_class_of(record)}, {fault}: register its class "
            f"with bayeslora.register first. Known: {', '.join(LIKELIHOODS)}. Or pass it, load(…, likelihood=TheClass)."
        )
    if kind.needs_code and given is None:
        raise ValueError(f"The posterior in {folder} has a callable as likelihood: pass it, load(…, likelihood=…).")
    return kind.restored(record["config"], copy.deepcopy(given) if kind.needs_code else None)


def _load_base(
    folder: str | os.PathLike[str], name: str | None, record: Mapping[str, Any], num_labels: int | None
) -> nn.Module:
    import transformers

    cls = getattr(transformers, record["base"]["class"], None)
    if name is None or cls is None:
        raise ValueError(
            f"The posterior in {folder} does not name a base model that can be loaded: pass model=… (it was a "
            f"{record['base']['class']})."
        )
    settings = bases.recorded_settings(record["base"].get("config", {}))
    if num_labels is not None:
        settings["num_labels"] = num_labels
    # Weights of other shapes than the checkpoint's are saved with the posterior.
    return cls.from_pretrained(name, ignore_mismatched_sizes=True, **settings)


def _read(folder: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any], Tokenizer | None]:
    """Tensors, record and tokenizer of a saved posterior."""
    tensors, record = storage.load_files(folder)
    # Without one, a tokenizer's files can be those of an earlier posterior in this folder.
    if not record["tokenizer"]:
        return tensors, record, None
    name = record.get("tokenizer_folder", saving.TOKENIZER)
    path = Path(folder) / name
    if path.name != name or ("tokenizer_folder" in record and not path.is_dir()):
        raise ValueError(f"{folder} holds a damaged posterior: its tokenizer, {name}, is missing. Save it again.")
    if not path.is_dir():  # of an earlier version, and taken away
        return tensors, record, None
    with saving.reading_folder(path):
        return tensors, record, _load_tokenizer(path)


def _load_tokenizer(path: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)
