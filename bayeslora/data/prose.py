"""Texts that people read, and others that stand in a table: dates, numbers, addresses."""

import re
from collections.abc import Sequence
from typing import Any

ADDRESS = re.compile(
    r"https?://\S+|www\.\S+|[^\s@]+@[^\s@]+\.\w+|[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", re.IGNORECASE
)
"""An address on the web, one of mail, or a number that machines give a row."""

OF_DATES = re.compile(
    r"(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)[a-z]*|[ap]m|utc|gmt|[tz]|st|[nr]d|th"
)
"""A word of a date, or of a time."""

MOST_LOOKED_AT = 200
"""Rows by which a column is judged."""


def is_prose(column: Sequence[Any]) -> bool:
    """Whether a column of texts holds any that is not a date, a number or an address."""
    values = [value.strip() for value in column[:MOST_LOOKED_AT] if isinstance(value, str) and value.strip()]
    return not values or not all(map(_is_of_machines, values))


def _is_of_machines(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.casefold())
    is_date = any(map(str.isdecimal, text)) and all(map(OF_DATES.fullmatch, words))
    return is_date or ADDRESS.fullmatch(text) is not None
