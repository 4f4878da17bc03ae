"""Everything in the folder of a saved posterior, read and checked, before anything is built from it."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from bayeslora import saving, storage
from bayeslora.hashing import hashed_bytes
from bayeslora.record import MANIFEST, MixtureRecord, Record, check, parse, plain_file, reading
from bayeslora.types import Tokenizer

OF_FILES = ("_file", "_files", "_path", "_dir", "_option")
"""How the names of a tokenizer's settings end that are about files."""

READ_OTHER_FILES = ("AutoTokenizer", "MyT5Tokenizer")
"""Tokenizers whose files may name others, which they then open."""

MOST_ADDED = 20_000
"""Tokens that are added to a tokenizer's vocabulary, one by one: twice as many take four times as long."""

MOST_BYTES_OF_ADDED = 2**21
"""Of a file that lists such tokens."""


@dataclass(frozen=True)
class Unpacked:
    """What a folder holds.

    Args:
        folder: The folder.
        tensors: By name.
        record: The record; that of a mixture has `components`.
        tokenizer: The tokenizer, if there is one.
        components: Of a mixture, the posteriors that it is one of.
    """

    folder: str | os.PathLike[str]
    tensors: dict[str, Tensor]
    record: Record
    tokenizer: Tokenizer | None = None
    components: tuple["Unpacked", ...] = ()


def unpack(folder: str | os.PathLike[str], hashing: contextlib.ExitStack) -> Unpacked:
    """Read a posterior's folder, or that of a mixture, which holds folders of posteriors.

    Args:
        folder: The folder.
        hashing: Left when all is built, which raises an error if a file is not the one that it is named after.

    Raises:
        FileNotFoundError: If there is no posterior in the folder.
        ValueError: If it is damaged, or has a format that this version does not know.
    """
    return saving.read_unchanged(Path(folder) / MANIFEST, lambda: _unpack(folder, hashing))


def _unpack(folder: str | os.PathLike[str], hashing: contextlib.ExitStack) -> Unpacked:
    tensors, record = storage.load_files(folder, hashing)
    if "components" not in record:
        return Unpacked(folder, tensors, record, _tokenizer(folder, record))
    found: dict[str, Unpacked] = {}
    names = [component["folder"] for component in cast(MixtureRecord, record)["components"]]
    for name in names:
        if name not in found:
            found[name] = _component(folder, name, hashing)
    return Unpacked(folder, tensors, record, None, tuple(found[name] for name in names))


def _component(folder: str | os.PathLike[str], name: str, hashing: contextlib.ExitStack) -> Unpacked:
    path = Path(folder) / name
    with reading(folder, name):
        if path.is_symlink() or not path.is_dir():
            raise ValueError("there is no such folder of its own")
        plain_file(path / MANIFEST)
        if name != f"component-{hashed_bytes((path / MANIFEST).read_bytes())}":
            raise ValueError("its record is not the one it is named after: it was changed or cut short")
        tensors, record = storage.load_files(path, hashing)
        if "components" in record:
            raise ValueError("it is a mixture itself")
        return Unpacked(path, tensors, record, _tokenizer(path, record))


def _tokenizer(folder: str | os.PathLike[str], record: Record) -> Tokenizer | None:
    # Without one, a tokenizer's files can be those of an earlier posterior in this folder.
    if not record["tokenizer"]:
        return None
    name = record.get("tokenizer_folder", saving.TOKENIZER)
    if not os.path.lexists(Path(folder) / name) and "tokenizer_folder" not in record:
        return None  # of an earlier version, and taken away
    path = Path(folder) / name
    with reading(folder, name):
        _check_tokenizer(path)
        with saving.reading_folder(path):
            if name not in (saving.TOKENIZER, saving.tokenizer_name(path)):
                raise ValueError("its files are not those it is named after: they were changed or cut short")
            return _load_tokenizer(path)


def _load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer saved with a posterior; a ValueError if it is damaged."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except BaseException as error:
        # A panic of the Rust library is not an Exception, so that nothing catches it by chance.
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"tokenizer.json: {error}") from None
    inputs = tokenizer.model_input_names
    if not isinstance(inputs, list | tuple) or "input_ids" not in inputs[:1]:
        raise ValueError(f"its model_input_names are {inputs!r:.100}, and have to begin with 'input_ids'")
    return tokenizer


def _check_tokenizer(path: Path) -> None:
    """Raise a ValueError unless a tokenizer's folder holds plain files, which name no code and no other file."""
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if path.is_symlink() or not path.is_dir():
        raise ValueError("there is no such folder of its own")
    for entry in path.iterdir():
        if entry.name == "additional_chat_templates" and entry.is_dir() and not entry.is_symlink():
            inner = [*entry.iterdir()]
        else:
            inner = [entry]
        for file in inner:
            with _naming(file.name):
                plain_file(file)
    if os.path.lexists(path / "config.json"):  # it would choose another class, or code
        raise ValueError("config.json belongs to a model: leave it out")
    with _naming("tokenizer_config.json"):
        plain_file(path / "tokenizer_config.json")
        config = parse((path / "tokenizer_config.json").read_bytes())
        check(config, dict[str, Any])
        name = config.get("tokenizer_class")
        check(name, str, "tokenizer_class")
        cls = tokenizer_class_from_name(name) if name.isidentifier() else None
        if not (isinstance(cls, type) and issubclass(cls, PreTrainedTokenizerBase)) or name in READ_OTHER_FILES:
            raise ValueError(f"tokenizer_class is {name!r:.100}, which cannot be loaded from a posterior")
        _refuse_paths(config)
        _check_few(config)
    for name in ("added_tokens.json", "special_tokens_map.json"):
        if os.path.lexists(path / name) and plain_file(path / name) > MOST_BYTES_OF_ADDED:
            raise ValueError(f"{name}: it is larger than {MOST_BYTES_OF_ADDED >> 20} MiB")
    if os.path.lexists(path / "tokenizer.json"):
        with _naming("tokenizer.json"):
            if (count := (path / "tokenizer.json").read_bytes().count(b'"single_word"')) > MOST_ADDED:
                raise ValueError(f"it adds {count:,} tokens to its vocabulary, more than {MOST_ADDED:,}")


def _check_few(config: dict[str, Any]) -> None:
    """Raise a ValueError if a tokenizer's settings name so many tokens that adding them takes long."""
    for name, value in config.items():
        if isinstance(value, list | dict) and len(value) > MOST_ADDED:
            raise ValueError(f"{name!r:.100} has {len(value):,} entries, more than {MOST_ADDED:,}")


@contextlib.contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(f"{file}: {error}") from error


def _refuse_paths(settings: Any) -> None:
    """Raise a ValueError if a tokenizer's settings, at any depth, name code or another file."""
    parts = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, list) else ()
    for part in parts:
        _refuse_paths(part)
    for name, value in settings.items() if isinstance(settings, dict) else ():
        if value and (name in ("auto_map", "init_inputs") or name.endswith(OF_FILES)):
            raise ValueError(f"{name!r:.100} names code or a file outside: leave it out")
