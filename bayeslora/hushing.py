"""Keep the progress bars and reports of libraries from the screen."""

import contextlib
import logging
from collections.abc import Iterator


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
