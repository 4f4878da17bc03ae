"""A PEFT folder, read as a stranger's: its two files are data, and are checked before anything is built from them.

Its patterns of names are matched here, within a time that no pattern can extend; PEFT is given plain names.
"""

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bayeslora.paths import is_there
from bayeslora.record import read_json
from bayeslora.storage import DTYPES, check_header, check_numbers

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

MOST_CONFIG = 2**20
"""Bytes of a configuration: one that names every layer of a large model takes a tenth of that."""

LONGEST = 1000
"""Characters of a tensor's name."""

SECONDS = 2.0
"""For all matches of a pattern with names."""

MOST_PATTERNS = 1000
"""That are regular expressions; of names, there may be as many as there are layers."""

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

PLAIN = re.compile(r"\^?[\w.-]+")
"""A pattern that is the end of a name, or all of it."""


def read_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the configuration and the tensors in a folder that PEFT wrote; nothing else in there is opened.

    Raises:
        FileNotFoundError: If the folder holds none.
        ValueError: If a file is not a plain one, damaged, or holds numbers that are not finite.
    """
    config_path, weights_path = Path(folder) / CONFIG, Path(folder) / WEIGHTS
    for path in (config_path, weights_path):
        if not is_there(path):
            if os.path.lexists(Path(folder) / "adapter_model.bin"):
                raise ValueError(
                    f"{folder} holds its adapter as adapter_model.bin, a pickle, which can run code when it is read: "
                    "if you trust it, convert it, PeftModel.from_pretrained(base, folder).save_pretrained(folder)."
                )
            inside = sorted(found.parent.name for found in Path(folder).glob(f"*/{path.name}"))
            hint = f" There are some in its folders: {', '.join(inside)}." if inside else ""
            raise FileNotFoundError(f"{folder} holds no PEFT adapter: there is no {path.name} in it.{hint}")
    try:
        config = read_json(config_path, MOST_CONFIG)
        if not isinstance(config, dict):
            raise ValueError(f"it is {config!r:.50}")
    except OSError as error:
        raise ValueError(f"{CONFIG} in {folder} cannot be read: {error.strerror or error}.") from error
    except ValueError as error:
        raise ValueError(f"{CONFIG} in {folder} is not a configuration of PEFT's: {error}.") from None
    try:
        check_header(weights_path, "PEFT's")
        state = load_file(weights_path)
        _check_tensors(state)
    except OSError as error:
        raise ValueError(f"{WEIGHTS} in {folder} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{WEIGHTS} in {folder} is damaged: {error}.") from None
    return config, state


def _check_tensors(state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless tensors have believable names, types and numbers."""
    for name, value in state.items():
        if len(name) > LONGEST:
            raise ValueError(f"a tensor's name, {name!r:.50}…, has {len(name)} characters")
        if value.dtype not in (FLOATS if ".lora_" in name else DTYPES["head"]):
            raise ValueError(f"{name!r} is of type {value.dtype}")
        if value.numel() and value.dtype != torch.bool:
            check_numbers(f"{name!r}", value)


class Patterns:
    """What a mapping from patterns of names has for a name: the first that matches its end, as PEFT reads them.

    Args:
        field: The configuration's field, for messages.
        patterns: The mapping.
        whole: Whether patterns are of whole names.

    Raises:
        ValueError: If a pattern is not a regular expression.
    """

    def __init__(self, field: str, patterns: Mapping[str, Any], whole: bool = False):
        self.field = field
        self.ends: dict[str, tuple[int, Any]] = {}
        self.others: list[tuple[int, str, Any, Any]] = []
        self.left = SECONDS
        if len(patterns) > MOST_PATTERNS and sum(map(self._is_pattern, patterns)) > MOST_PATTERNS:
            raise ValueError(f"The PEFT adapter has more than {MOST_PATTERNS} patterns in its {field}: give names.")
        for place, (pattern, value) in enumerate(patterns.items()):
            plain = _unescaped(pattern)
            if not whole and not self._is_pattern(pattern):
                self.ends.setdefault(plain, (place, value))
            else:
                self.others.append((place, pattern, self._compiled(pattern, whole), value))

    def of(self, name: str, default: Any = None) -> Any:
        """Return what the first pattern that matches has, or the default."""
        parts = name.split(".")
        ends = [f"^{name}", *(".".join(parts[start:]) for start in range(len(parts)))]
        found = [self.ends[end] for end in ends if end in self.ends]
        found += [(place, value) for place, text, own, value in self.others if self._matches(own, text, name)][:1]
        return min(found, key=lambda each: each[0], default=(0, default))[1]

    def _is_pattern(self, pattern: str) -> bool:
        return PLAIN.fullmatch(_unescaped(pattern)) is None

    def _compiled(self, pattern: str, whole: bool) -> Any:
        import regex  # type: ignore[import-untyped]

        try:
            return regex.compile(pattern if whole else rf"(.*\.)?({pattern})$")
        except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"The PEFT adapter has {pattern!r:.100} in its {self.field}, which is not a regular expression: {error}"
            ) from None

    def _matches(self, compiled: Any, pattern: str, name: str) -> bool:
        begin = time.perf_counter()
        try:
            if self.left <= 0:
                raise TimeoutError
            return bool(compiled.fullmatch(name, timeout=self.left))
        except TimeoutError:
            raise ValueError(
                f"The PEFT adapter has {pattern!r:.100} in its {self.field}, which takes too long to match: give names "
                "of layers."
            ) from None
        finally:
            self.left -= time.perf_counter() - begin


def _unescaped(pattern: str) -> str:
    return re.sub(r"\\([.-])", r"\1", pattern)


def plain_names(config: Mapping[str, Any], modules: Iterable[str]) -> dict[str, Any]:
    """Return which layers a configuration means, without regular expressions, by PEFT's names of fields.

    Args:
        config: The configuration.
        modules: Names of all modules of the base.

    Raises:
        ValueError: If a pattern is none, takes too long, or stands where names are needed.
    """
    found = {}
    for field in ("target_modules", "exclude_modules"):
        value = config.get(field)
        if isinstance(value, str) and value != "all-linear":
            patterns = Patterns(field, {value: True}, whole=True)
            value = [name for name in modules if patterns.of(name)]
        found[field] = value or None
    for field in ("modules_to_save", "layers_pattern"):
        value = config.get(field)
        for name in [value] if isinstance(value, str) else value or ():
            if not re.fullmatch(r"[\w.]*", name):
                raise ValueError(f"The PEFT adapter has {name!r:.100} in its {field}: give names of modules.")
        found[field] = value
    return found | {"layers_to_transform": config.get("layers_to_transform")}


def or_default(config: Mapping[str, Any], field: str) -> Any:
    """Return r or alpha of a configuration, which are 8 by PEFT's own default."""
    return 8 if config.get(field) is None else config[field]


def lora_config(
    config: Mapping[str, Any], ranks: Mapping[str, int], alphas: Mapping[str, float], modules: Sequence[str]
) -> Any:
    """Return PEFT's configuration of an adapter that was read, with names in place of patterns.

    Args:
        config: The configuration that was read.
        ranks: Name of an adapted layer to r.
        alphas: Name of an adapted layer to alpha.
        modules: Names of all modules of the base.

    Raises:
        ValueError: If PEFT does not take it.
    """
    from peft import LoraConfig

    # A name may end in another's: PEFT takes the first pattern that matches.
    names = sorted(ranks, key=len, reverse=True)
    usual = partial(or_default, config)
    same = ("r", "lora_alpha", "use_rslora", "use_dora", "lora_dropout", "fan_in_fan_out", "task_type")
    return LoraConfig(
        **{field: config[field] for field in same if config.get(field) is not None},
        **plain_names(config, modules),
        rank_pattern={re.escape(name): ranks[name] for name in names if ranks[name] != usual("r")},
        alpha_pattern={re.escape(name): alphas[name] for name in names if alphas[name] != usual("lora_alpha")},
    )
