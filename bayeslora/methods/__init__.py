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


def register(cls: type[Method]) -> type[Method]:
    """Add a method of your own to `METHODS` under its `name`; usable as a class decorator.

    Raises:
        TypeError: If the class is no concrete method with a `name`.
        ValueError: If the name is taken by another class.
    """
    if not (inspect.isclass(cls) and issubclass(cls, Method)) or inspect.isabstract(cls):
        raise TypeError(f"{cls!r} is no method: derive from Method or PerStackMethod and write its prior and guide.")
    if not isinstance(getattr(cls, "name", None), str):
        raise TypeError(f"{cls.__name__} needs a class attribute `name`, its key in METHODS.")
    taken = METHODS.get(cls.name)
    if taken is not None and taken is not cls:
        raise ValueError(f"The name {cls.name!r} belongs to {taken.__name__}: choose another.")
    METHODS[cls.name] = cls
    return cls


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
    "register",
    "unknown_fields",
]
