"""Names of files and folders that users give: what is wrong with one that is not there is said in their terms."""

import difflib
import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

HUB_NAME = re.compile(r"(?!.*(--|\.\.))\w[\w.-]{0,95}(/\w[\w.-]{0,95})?", re.ASCII)
"""What the hub's names look like: a name, or an owner's name and a name."""

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How addresses on the web, or of a store, begin."""

ON_THE_HUB = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+(?:/[\w.-]+)?)/?$")
"""The address of a model or a dataset on the hub, and its name."""

FILES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".safetensors", ".bin", ".pt", ".zip")
"""Endings of names that are files' and not the hub's."""


def is_there(path: Path) -> bool:
    """Return whether there is a file, a folder or a link of that name.

    Raises:
        ValueError: If that cannot be seen, as in a folder of somebody else's.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    return True


def check_place(name: str | os.PathLike[str], what: str, among: str = "") -> None:
    """Raise a ValueError if a name is not one of the hub's, and there is no file or folder of that name either.

    Args:
        name: The name.
        what: What to call it in messages, such as `model`.
        among: What else could be given, for the message.
    """
    text = os.fspath(name)
    if not text.strip():
        raise ValueError(f"{what}={text!r} is empty: give the path of a file or folder{among}.")
    if ADDRESS.match(text):
        advice = "give its path" if text.startswith("file:") else "download it, and give the path"
        if on_the_hub := ON_THE_HUB.match(text):
            advice = f"give its name there, {on_the_hub[1]!r}"
        raise ValueError(f"{what}={text!r:.200} is an address, from which nothing is read: {advice}.")
    path = Path(text)
    try:
        if path.is_file() or path.is_dir():
            return
        if path.exists():
            raise ValueError(f"{what}={text!r} is neither a file nor a folder: give the path of one{among}.")
    except OSError as error:  # too long a name, for instance, or no permission
        raise ValueError(f"{what}={text!r:.200} cannot be read: {error.strerror}.") from error
    if HUB_NAME.fullmatch(text) and path.suffix not in FILES and not (path.parent != Path() and path.parent.is_dir()):
        return
    raise ValueError(f"{what}={text!r}: there is no such file or folder{_instead(path)}.")


def _instead(path: Path) -> str:
    """Return what is there in place of a path that is not."""
    if path.is_symlink():
        return ", only a link to one that is not there"
    if str(path).startswith("~") and path.expanduser().exists():
        return f"; give it in full, {str(path.expanduser())!r}"
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    if missing != path:
        return f", because there is no folder {str(missing)!r}"
    names = sorted(os.listdir(missing.parent))[:1000] if os.access(missing.parent, os.R_OK) else []
    close = difflib.get_close_matches(path.name, names, 3)
    return f"; there is {', '.join(repr(str(path.parent / name)) for name in close)}" if close else ""


def of_a_model(read: Callable[P, T]) -> Callable[P, T]:
    """Let a function whose first argument names a model say what is wrong with the name, in one sentence."""

    @functools.wraps(read)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        name: Any = args[0]
        check_place(name, "model", ", a name on the hub, or a model")
        folder = Path(name)
        if folder.is_file():
            raise ValueError(f"model={str(name)!r} is a file: give the folder that the model was saved in.")
        try:
            return read(*args, **kwargs)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            known = any((folder / each).is_file() for each in ("config.json", "adapter_config.json"))
            if isinstance(error, ValueError) and (known or "Unrecognized model" not in reason):
                raise  # it is about something else
            if folder.is_dir() and not known:
                there = ", ".join(sorted(os.listdir(folder))[:5]) or "nothing"
                raise ValueError(
                    f"model={str(name)!r} has no config.json, only {there}: give a folder that save_pretrained wrote."
                ) from error
            if folder.is_dir():
                raise ValueError(f"model={str(name)!r} cannot be loaded: {reason:.300}") from error
            raise ValueError(
                f"model={str(name)!r} is not a folder here, and cannot be fetched from the hub ({reason:.200}): give "
                "the path of a folder, a name on the hub, or a model."
            ) from error

    return checked
