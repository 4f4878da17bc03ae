"""Methods, one file each."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from bayeslora.contracts import ArgumentError, Fields, Kind, check_value, refuse_unknown, suggestions

# A method is one line here, in the order in which they are listed.
# isort: off
from bayeslora.methods.base import Method as Method
from bayeslora.methods.base import PerStackMethod as PerStackMethod
from bayeslora.methods.base import Tuning as Tuning
from bayeslora.methods.base import guarded as guarded
from bayeslora.methods.base import own_fields as own_fields
from bayeslora.methods.point import PointEstimate as PointEstimate
from bayeslora.methods.point import LoRA as LoRA
from bayeslora.methods.point import FullFineTuning as FullFineTuning
from bayeslora.methods.point import BitFit as BitFit
from bayeslora.methods.point import DoRA as DoRA
from bayeslora.methods.point import Houlsby as Houlsby
from bayeslora.methods.point import Pfeiffer as Pfeiffer
from bayeslora.methods.adalora import AdaLoRA as AdaLoRA
from bayeslora.methods.monteclora import MonteCLoRA as MonteCLoRA
from bayeslora.methods.lora_dropout import LoRADropout as LoRADropout
from bayeslora.methods.mc_dropout import MCDropout as MCDropout
from bayeslora.methods.ensemble import DeepEnsemble as DeepEnsemble
from bayeslora.methods.ensemble import CheckpointEnsemble as CheckpointEnsemble
from bayeslora.methods.swag import SWAG as SWAG
from bayeslora.methods.blob import BLoB as BLoB
from bayeslora.methods.ivon import IVON as IVON
from bayeslora.methods.tfb import TFB as TFB
from bayeslora.methods.scalabl import ScalaBL as ScalaBL
from bayeslora.methods.laplace import Laplace as Laplace
from bayeslora.methods.autoguide import AutoGuide as AutoGuide
from bayeslora.methods.distilled import Distilled as Distilled
# isort: on

MethodName: TypeAlias = Annotated[
    str, Kind("the name of one in bayeslora.METHODS", lambda value: True)
]  # `named` lists them

METHODS: dict[str, type[Method]] = {
    cls.name: guarded(cls)
    for cls in tuple(globals().values())
    if isinstance(cls, type) and issubclass(cls, Method) and "name" in vars(cls)
}
"""Name to method: what `fit(method=…)` takes."""


def make_method(method: Method | str, **fields: Any) -> Method:
    """Make a method from its name or an instance, with some of its fields set.

    Raises:
        ArgumentError: If no method has that name; the message lists those that exist. If the method has no such field,
            or a value does not fit it; the message lists its fields, or says what fits.
    """
    if isinstance(method, Method):
        return method.replace(**fields) if fields else method
    cls = named(method)
    refuse_unknown(fields, own_fields(cls))
    return cls(**fields)


def named(method: str) -> type[Method]:
    """Return the method of a name.

    Raises:
        ArgumentError: If there is none; the message lists those that exist.
    """
    method = check_value("method", method, Method | MethodName)
    if method in METHODS:
        return METHODS[method]
    meant = suggestions([method], list(METHODS))
    raise ArgumentError(f"method={method!r} is not known. Methods: {', '.join(METHODS)}; or an instance of one.{meant}")


def fields_for_fit(arguments: Mapping[str, Any]) -> Fields:
    """Return the fields of the method that a call names: its further keywords."""
    method = arguments.get("method")
    if method is None:
        method = "monteclora" if arguments.get("prior") is None else arguments["prior"].method
    return own_fields(type(method) if isinstance(method, Method) else named(method))
