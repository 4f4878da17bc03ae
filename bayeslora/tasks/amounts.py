"""Amounts in texts: `20%`, `1,5`, `5 stars`, `★★★`, `3/5`; numbers, but for what stands beside them."""

import logging
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bayeslora.tasks.labels import RawLabels
from bayeslora.tasks.spelling import is_number

logger = logging.getLogger(__name__)

DIGITS = re.compile(r"\d")

HOW_WRITTEN = "Write numbers as in 1234.5: a point before decimals, nothing between thousands, and no units or signs."
"""What to do with a text that may be meant as a number."""

NUMBER = re.compile(r"(?:(?<!\w)[+\-\u2212])?\d+(?:[.,]\d+)*")
"""A number in a text, however its thousands and decimals are parted."""

SIGNS = re.compile(r"^[-\u2012-\u2015\u2212](?!\d)|[-\u2012-\u2015\u2212]$|^\(.*\)$|^[\u2012-\u2015]")
"""A sign apart from its number, as in `-$5`, `5-` and, in accounts, `(5)`."""

MARKS = re.compile(r"([^\w\s])\1*[☆✩]*")
"""One mark, again and again, such as a star; open ones may follow."""


def amounts(texts: Sequence[str]) -> list[float] | None:
    """Return the numbers in texts that each have one, with the same beside it; None if they are something else.

    What is beside may be nothing, a unit, a sign of money or of per cent, or the whole of a fraction; a unit may have
    an `s` where others have none. Repeated marks are counted. None is returned where three digits follow each point or
    comma, which may part thousands or decimals, and where a sign stands apart from its number, as in `-$5`.

    Args:
        texts: The texts.
    """
    if texts and all(MARKS.fullmatch(text.strip()) for text in texts) and len({text.strip()[0] for text in texts}) == 1:
        return [float(text.count(text.strip()[0])) for text in texts]
    found = [NUMBER.findall(text) for text in texts]
    whole = {each[1] for each in found if len(each) == 2}
    is_fraction = len(whole) == 1 and all(re.search(r"\d\s*(/|of|out of)\s*\d", text) for text in texts)
    if not texts or not (is_fraction or all(len(each) == 1 for each in found)):
        return None
    beside = {_unit(NUMBER.sub("", text, count=1).strip()) for text in texts}
    is_signed = any(SIGNS.search(text.strip()) for text in texts)
    return None if len(beside) > 1 or is_signed else _read([each[0].replace("\u2212", "-") for each in found])


def _unit(beside: str) -> str:
    """Return what stands beside a number as others write it; `MW` and `mW`, `m` and `ms` are two units."""
    is_word = len(beside) > 2 and beside in (beside.lower(), beside.upper(), beside.capitalize())
    return beside.casefold().removesuffix("s") if is_word else beside


def in_order(texts: Sequence[str]) -> list[str] | None:
    """Return texts in the order of their amounts, or of the lower ends of ranges, `1-2`; None if they have no order."""
    values = amounts(texts)
    if values is None:
        ends = [re.fullmatch(r"\s*(\d+)\s*(?:[-–—]|to|bis)\s*(\d+)(\s*\D*)", text) for text in texts]
        if not all(ends) or len({each[3].strip() for each in ends if each}) > 1:
            return None
        values = [float(each[1]) for each in ends if each]
    if len({*values}) < len(values):
        return None
    return [text for _, text in sorted(zip(values, texts, strict=True))]


def _may_be_thousands(numbers: Sequence[str]) -> bool:
    """Whether each point has three digits behind it, and up to three before, where there are any points."""
    unclear = all(re.fullmatch(r"[+-]?[1-9]\d{0,2}\.\d{3}|[+-]?\d+", each.strip()) for each in numbers)
    return unclear and any("." in each for each in numbers)


def _read(numbers: Sequence[str]) -> list[float] | None:
    if not any("," in each for each in numbers):
        if any(each.count(".") > 1 for each in numbers) or _may_be_thousands(numbers):
            return None
        return [float(each) for each in numbers]
    if any(each.count(",") > 1 or "." in each for each in numbers):
        return None
    if all(re.fullmatch(r"[+-]?\d{1,3},\d{3}|[+-]?\d+", each) for each in numbers):
        return None
    return [float(each.replace(",", ".")) for each in numbers]


def real(labels: RawLabels) -> Any:
    """Return labels that are real numbers, also in rows of one, or as texts with the same unit beside each.

    Raises:
        ValueError: If one is not a number; it names the label and its row.
    """
    values = labels.plain
    if isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if isinstance(values, np.ndarray) or labels.are_lists:
        return labels.values
    are_texts = all(isinstance(value, str) for value in values) and not all(map(is_number, values))
    if are_texts and (read := amounts(values)) is not None:
        logger.warning(
            "%s: the labels in %r are read as numbers without what stands beside them, such as %r as %.12g.",
            *(labels.data, labels.name, values[0], read[0]),
        )
        return np.asarray(read)
    if all(isinstance(value, str) for value in values) and _may_be_thousands(values):
        raise ValueError(
            f"{labels.data}: the labels in {labels.name!r} are texts such as {values[0]!r}, whose points may part the "
            f"thousands, or stand before decimals. {HOW_WRITTEN}"
        )
    for row, value in enumerate(values):
        if not isinstance(value, str | int | float) or not is_number(str(value)):
            raise ValueError(
                f"{labels.data}, row {row}: the label in {labels.name!r} is {value!r:.60}, which is not a number. "
                f"{HOW_WRITTEN if DIGITS.search(str(value)) else 'Correct or remove such rows.'}"
            )
    return np.asarray([float(value) for value in values])
