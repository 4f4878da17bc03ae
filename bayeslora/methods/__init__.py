"""Methods, one file each."""

import inspect
from typing import Any

# A method is one line here, in the order in which they are listed.
# isort: off
from bayeslora.methods.base import Method as Method
from bayeslora.methods.base import PerStackMethod as PerStackMethod
from bayeslora.methods.base import Tuning as Tuning
from bayeslora.methods.base import unknown_fields as unknown_fields
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
from bayeslora.methods.tfb import TFB as TFB
from bayeslora.methods.scalabl import ScalaBL as ScalaBL
from bayeslora.methods.laplace import Laplace as Laplace
from bayeslora.methods.autoguide import AutoGuide as AutoGuide
# isort: on

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in tuple(globals().values())
    if isinstance(cls, type) and issubclass(cls, Method) and "name" in vars(cls)
}
"""Name to method: what `fit(method=…)` takes."""


def make_method(method: str | Method, **fields: Any) -> Method:
    """Make a method from its name or an instance, with some of its fields set.

    Raises:
        ValueError: If no method has that name; the message lists those that exist.
        TypeError: If the method has no such field; the message lists its fields.
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
