"""What a fit shows: the messages of this library, and not the bars and reports of others."""

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def hushed(hushes: bool = True) -> Iterator[None]:
    """Turn off, if so asked, the bars of `datasets` and `transformers`, and the latter's report of each model it loads.

    That report says of every model that is to be fine-tuned that its head is new. Afterwards, all is as it was.
    """
    if not hushes:
        yield
        return
    from datasets.utils import logging as datasets
    from transformers.utils import logging as transformers

    reports = logging.getLogger("transformers.modeling_utils")
    with contextlib.ExitStack() as after:
        reports.addFilter(_is_not_of_loading)
        after.callback(reports.removeFilter, _is_not_of_loading)
        for library in (datasets, transformers):
            if library.is_progress_bar_enabled():
                library.disable_progress_bar()
                after.callback(library.enable_progress_bar)
        yield


def _is_not_of_loading(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


_narrating = threading.Lock()
_narrators = 0


@contextlib.contextmanager
def narrating(shows: bool, once: bool = False, wording: Callable[[str], str] = str) -> Iterator[None]:
    """Let the library's logger print what it says at INFO, unless logging is set up or nothing is to be shown.

    Where the root logger, or the library's, has a handler, who set it up decides what is seen.

    Args:
        shows: Whether anything is to be shown.
        once: Whether what has been said is not said again: the fits of a study say much the same.
        wording: What a message becomes before it is shown.
    """
    global _narrators
    root = logging.getLogger("bayeslora")
    with _narrating:
        first = shows and not _narrators and not root.hasHandlers()
        if not (first or (shows and _narrators)):
            shows = False
        if first:
            handler = _Narrator()
            handler.wording = wording
            if once:
                handler.addFilter(_Once())
            root.addHandler(handler)
            handler.changed_level = root.level == logging.NOTSET
            if handler.changed_level:
                root.setLevel(logging.INFO)
        _narrators += shows
    try:
        yield
    finally:
        with _narrating:
            _narrators -= shows
            if shows and not _narrators:
                for handler in [handler for handler in root.handlers if isinstance(handler, _Narrator)]:
                    root.removeHandler(handler)
                    if handler.changed_level:
                        root.setLevel(logging.NOTSET)


def has_stderr() -> bool:
    """Whether there is an open stream for errors: a program without a console may have none, or have closed it."""
    return sys.stderr is not None and not sys.stderr.closed


class _Once:
    """Lets each message pass the first time."""

    def __init__(self) -> None:
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        is_new = record.getMessage() not in self.said
        self.said.add(record.getMessage())
        return is_new


class _Narrator(logging.StreamHandler):
    """Prints the library's messages where no logging is set up."""

    changed_level = False
    wording: Callable[[str], str] = str

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message, if there is anything to print it to."""
        if has_stderr():
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the message alone."""
        return self.wording(super().format(record))
