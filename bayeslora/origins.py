"""Whose code something is: Python's own, an installed package's, or the user's."""

import functools
import sys
from pathlib import Path

FOLDERS = frozenset(("site-packages", "dist-packages"))
"""Folders of installed packages: a system's, an environment's, a user's."""


def package(module: str | None) -> str:
    """Return the package of a module, by the module's name."""
    return (module or "").partition(".")[0]


@functools.cache
def is_installed(module: str | None) -> bool:
    """Return whether a module is Python's own, or of an installed package."""
    if package(module) in sys.stdlib_module_names or package(module) == "bayeslora":
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return file is not None and not FOLDERS.isdisjoint(Path(file).parts)
