"""What scikit-learn's checks say of an argument, in a sentence that names it and says what fits."""

import contextlib
import re
from collections.abc import Iterator

from sklearn.exceptions import NotFittedError

from bayeslora.contracts import ArgumentError

MOST = 400
"""Characters of another library's words that are passed on."""


@contextlib.contextmanager
def naming(argument: str, fitting: str) -> Iterator[None]:
    """Let whatever is raised about an argument name it, and say what fits.

    The library's own errors pass, and so does that of an estimator that is not fitted.

    Args:
        argument: Its name.
        fitting: What fits, after "give".

    Raises:
        ArgumentError: With the other library's error as its cause.
    """
    try:
        yield
    except (ArgumentError, NotFittedError):
        raise
    except Exception as error:
        said = re.sub(r"\n(array=)?\[.*\]\.?(?=\n|$)", "", str(error), flags=re.DOTALL)  # arrays are not repeated
        said = said.partition("For supervised learning")[0].strip()[:MOST].rstrip(".!") or type(error).__name__
        raise ArgumentError(f"{argument}: {said}. Give {fitting}.") from error
