"""Adapters in and out: starting points, PEFT's LoRA format, and merging into the base weights."""

from bayeslora.interop.merging import merge, save_merged
from bayeslora.interop.peft_fields import LORA_FIELDS
from bayeslora.interop.peft_in import base_of_peft, from_peft, from_peft_folder, is_peft_model, put_by_peft
from bayeslora.interop.peft_out import About, export_draws, export_peft
from bayeslora.interop.starting import Adapters, from_factors, from_program

__all__ = [
    "LORA_FIELDS",
    "About",
    "Adapters",
    "base_of_peft",
    "export_draws",
    "export_peft",
    "from_factors",
    "from_peft",
    "from_peft_folder",
    "from_program",
    "is_peft_model",
    "merge",
    "put_by_peft",
    "save_merged",
]
