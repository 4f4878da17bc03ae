"""Settings of a model's own `generate`: which there are, and what they may be."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from bayeslora.contracts import ArgumentError, Count, Fields, Finite, Scale, Within
from bayeslora.networks import forward_parameters

Whole = Annotated[int, Within(at_least=0)]
Probability = Annotated[float, Within(at_least=0, at_most=1, noun="probability")]

DECLARED: dict[str, Any] = {
    "max_new_tokens": Count | None,
    "max_length": Count | None,
    "min_new_tokens": Whole | None,
    "min_length": Whole | None,
    "max_time": Scale | None,
    "do_sample": bool | None,
    "temperature": Scale | None,
    "top_k": Whole | None,
    "top_p": Annotated[float, Within(above=0, at_most=1, noun="probability")] | None,
    "min_p": Probability | None,
    "typical_p": Annotated[float, Within(above=0, at_most=1, noun="probability")] | None,
    "epsilon_cutoff": Probability | None,
    "eta_cutoff": Probability | None,
    "num_beams": Count | None,
    "num_return_sequences": Count | None,
    "repetition_penalty": Scale | None,
    "no_repeat_ngram_size": Whole | None,
    "length_penalty": Finite | None,
    "use_cache": bool | None,
    "stop_strings": str | list[str] | None,
    "eos_token_id": Whole | list[Whole] | None,
    "pad_token_id": Whole | None,
    "bos_token_id": Whole | None,
    "decoder_start_token_id": Whole | None,
}
"""What the usual settings may be; what the others may be, `transformers` says."""

SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}
"""What samples tokens from a network's own probabilities."""


def sampling(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with which tokens are sampled from a network's own probabilities, unless they say otherwise.

    The model's own configuration, which recommends a temperature or a penalty for many models, does not count.
    """
    given = settings.get("generation_config")
    return {name: value for name, value in SAMPLING.items() if getattr(given, name, None) is None} | dict(settings)


def of_posterior(arguments: Mapping[str, Any]) -> Fields:
    """Return the settings that the model of a posterior takes, given the arguments of `Posterior.generate`."""
    from transformers import GenerationConfig

    model = arguments["self"].network.model
    names = [name for name in vars(GenerationConfig()) if name[0] != "_" and name != "transformers_version"]
    own = inspect.signature(model.generate).parameters if hasattr(model, "generate") else {}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    others = [name for name, parameter in own.items() if parameter.kind not in kinds and name != "inputs"]
    return Fields(
        dict.fromkeys([*names, *others, *forward_parameters(model)], Any) | DECLARED,
        f"generate of {type(model).__name__}",
        "setting",
    )


@contextlib.contextmanager
def refusing(settings: Mapping[str, Any]) -> Iterator[None]:
    """Name the settings where the model's own `generate` refuses them, or fails with them."""
    try:
        yield
    # `generate` has no error of its own: a setting it does not know, or that does not fit, ends in any of these.
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        if not settings or isinstance(error, ArgumentError):
            raise
        said = ", ".join(f"{name}={value!r:.60}" for name, value in settings.items())
        raise ArgumentError(
            f"{said}: generate of the model does not take these settings: {' '.join(str(error).split()):.400}"
        ) from error
