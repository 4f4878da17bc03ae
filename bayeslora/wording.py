"""What the command line says in the library's place: flags for keywords, and every error in one line."""

import ast
import os
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import typer

from bayeslora.showing import narrating
from bayeslora.stopping import Terminated

ARGUMENT = re.compile(r"(?:(?<![\w.'\"(-])|(?<=\s\())(\w+)=(\[[^\[\]…]*\]|\(\)|True\b|False\b|(?=\S))")
"""An argument in a message, `label='stars'`, that is not in the parentheses of a call."""

CALL = re.compile(r"\b\w+\(…, (\w+)=([^()]*)\)")
"""The call of a function with one argument, `fit(…, init=…)`."""


def with_flags(text: str) -> str:
    """Return a message about arguments as one about the flags of the running command that they come from.

    `label='stars'` becomes `--label 'stars'`, `text=['a', 'b']` becomes `--text 'a' --text 'b'`, `refit=False` becomes
    `--no-refit`, and `fit(…, init=…)` becomes `--init …`. Arguments that the command does not take stay as they are.
    """
    context = _current_context()
    if context is None:
        return text
    known = {option for each in context.command.params for option in each.opts}
    known |= {word.partition("=")[0] for word in context.args}  # fields of the method

    def flagged(found: re.Match[str]) -> str:
        name, value = found[1].replace("_", "-"), found[2]
        if f"--{name}" not in known:
            return found[0]
        if value in ("True", "False"):
            return f"--{'no-' * (value == 'False')}{name}"
        try:
            values = ast.literal_eval(value) if value.startswith("[") else []
        except (ValueError, SyntaxError):  # a text of the user's that only looks like an argument
            return found[0]
        return " ".join(f"--{name} {each!r}" for each in values) or f"--{name} {value.replace('()', repr(''))}"

    return ARGUMENT.sub(flagged, CALL.sub(flagged, text))


def flags_of_command() -> list[str]:
    """Return the names of the arguments that the running command takes; none outside of one."""
    context = _current_context()
    return [] if context is None else [each.name for each in context.command.params]


def _current_context() -> Any:
    """Return the context of the running command; None outside of one."""
    try:  # recent versions of typer have a click of their own
        from typer._click.globals import get_current_context
    except ImportError:
        from click import get_current_context  # type: ignore[no-redef,unused-ignore]
    return get_current_context(silent=True)


def described(error: BaseException) -> str:
    """Return an error as one line, with the notes that say where the last good state of a fit is."""
    known = (ValueError, TypeError, OSError, ImportError, KeyboardInterrupt)
    text = str(error) or ("Interrupted." if isinstance(error, KeyboardInterrupt) else type(error).__name__)
    if not isinstance(error, known) and not type(error).__module__.startswith("bayeslora."):
        text = f"{type(error).__name__}: {text}"
    return " ".join(" ".join([text, *getattr(error, "__notes__", ())]).split())


def wants_traceback() -> bool:
    """Return whether the environment asks for the traceback of an error that nobody expected."""
    return bool(os.environ.get("BAYESLORA_TRACEBACK"))


class errors:
    """A context that turns errors into one line and an exit status: 2 for the user's input, 1 for what else failed.

    What the library says meanwhile is shown, and is about flags, too.

    Args:
        shows: Whether it is.
        once: Whether what has been said is not said again: the fits of a study say much the same.
    """

    def __init__(self, shows: bool = True, once: bool = False) -> None:
        self.narration = narrating(shows, once, with_flags)

    def __enter__(self) -> None:
        self.narration.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from bayeslora.divergence import DivergedError

        self.narration.__exit__(None, None, None)
        if isinstance(error, (ValueError, TypeError, FileNotFoundError, ImportError)):
            status = 2
        elif isinstance(error, (DivergedError, OSError)):
            status = 1
        elif isinstance(error, KeyboardInterrupt):
            status = 128 + signal.SIGINT
        elif isinstance(error, Terminated):
            status = error.status
        elif isinstance(error, Exception) and not isinstance(error, typer.Exit | typer.Abort) and not wants_traceback():
            status = 1
        else:
            return
        typer.secho(f"bayeslora: {with_flags(described(error))}", fg="red", err=True)
        raise typer.Exit(status) from None


def quiet() -> None:
    """Turn off the reports of libraries: loading a model for fine-tuning always reports that its head is new."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bar()


@contextmanager
def warnings_said() -> Iterator[None]:
    """Say warnings in a line each, without the place in the code where they arose."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    for warning in found:
        typer.secho(f"bayeslora: {with_flags(str(warning.message))}", fg="yellow", err=True)
