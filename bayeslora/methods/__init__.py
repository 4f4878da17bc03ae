"""Methods: one file each."""

import inspect
from typing import Any

from bayeslora.methods.adalora import AdaLoRA
from bayeslora.methods.autoguide import AutoGuide
from bayeslora.methods.base import Method, PerStackMethod, Tuning, unknown_fields
from bayeslora.methods.blob import BLoB
from bayeslora.methods.ensemble import CheckpointEnsemble, DeepEnsemble
from bayeslora.methods.laplace import Laplace
from bayeslora.methods.lora_dropout import LoRADropout
from bayeslora.methods.mc_dropout import MCDropout
from bayeslora.methods.monteclora import MonteCLoRA
from bayeslora.methods.point import BitFit, DoRA, FullFineTuning, Houlsby, LoRA, Pfeiffer, PointEstimate
from bayeslora.methods.scalabl import ScalaBL
from bayeslora.methods.swag import SWAG
from bayeslora.methods.tfb import TFB

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (
        LoRA,
        FullFineTuning,
        BitFit,
        DoRA,
        Houlsby,
        Pfeiffer,
        AdaLoRA,
        MonteCLoRA,
        LoRADropout,
        MCDropout,
        DeepEnsemble,
        CheckpointEnsemble,
        SWAG,
        BLoB,
        TFB,
        ScalaBL,
        Laplace,
        AutoGuide,
    )
}
"""Name to method: what `fit(method=…)` takes."""


def make_method(method: str | Method, **fields: Any) -> Method:
    """A method from its name or an instance, with some of its fields set.

    Raises:
        ValueError: If no method has that name; lists those there are.
        TypeError: If the method has no such field; lists those it has.
    """
    if isinstance(method, Method):
        return method.replace(**fields) if fields else method
    if not isinstance(method, str) or method not in METHODS:
        raise ValueError(f"method={method!r} is not known. Methods: {', '.join(METHODS)}; or an instance of one.")
    cls = METHODS[method]
    unknown = [name for name in fields if name not in inspect.signature(cls).parameters]
    if unknown:
        raise TypeError(unknown_fields(cls, unknown))
    return cls(**fields)


__all__ = [
    "METHODS",
    "SWAG",
    "TFB",
    "AdaLoRA",
    "AutoGuide",
    "BLoB",
    "BitFit",
    "CheckpointEnsemble",
    "DeepEnsemble",
    "DoRA",
    "FullFineTuning",
    "Houlsby",
    "Laplace",
    "LoRA",
    "LoRADropout",
    "MCDropout",
    "Method",
    "MonteCLoRA",
    "PerStackMethod",
    "Pfeiffer",
    "PointEstimate",
    "ScalaBL",
    "Tuning",
    "make_method",
    "unknown_fields",
]
