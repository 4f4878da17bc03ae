"""Values and names that calls are given by mistake."""

import copy
import datetime
import decimal
import fractions
import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from torch import nn
from transformers import TrainingArguments

import bayeslora
from bayeslora.contracts.names import ALIASES


class Unprintable:
    """Cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


THINGS: tuple[Callable[[], Any], ...] = (
    *(lambda value=value: value for value in (None, True, False, 0, -1, 2, 1.5, -0.5, 0.0, 2**31, 2**70, -(2**70))),
    *(lambda value=value: value for value in (math.nan, math.inf, -math.inf, 10**400, 1e308, 1j)),
    *(lambda value=value: value for value in ("", "3", "lora", "a\0b", "\ud800", "x" * 5000, b"bytes", "(", "all")),
    *(lambda value=value: copy.copy(value) for value in ([], [1], [None], ["a"], [[1], [1, 2]], [[None]], (), (1, 2))),
    *(lambda value=value: copy.copy(value) for value in ({}, {"a": 1}, {1: 2}, {"a": {"b": 1}}, {"0": 1}, {1, 2})),
    *(lambda value=value: value for value in (object(), int, print, nn.Linear, Exception, ..., Unprintable())),
    *(lambda value=value: value for value in (np.int64(2), np.float32(0.5), np.float64("nan"), np.bool_(True))),
    *(lambda value=value: value for value in (np.array(2), np.array([1, 2]), np.array("a"), np.str_("3"), np.int8(-1))),
    *(lambda value=value: value for value in (np.datetime64("2020-01-01"), np.array([None]), np.longdouble(2))),
    *(lambda value=value: value for value in (torch.tensor(2), torch.tensor([1.5]), torch.tensor(math.nan))),
    *(lambda value=value: value for value in (torch.zeros(2, 2), torch.empty(0), torch.tensor(2, device="meta"))),
    *(lambda value=value: value for value in (fractions.Fraction(1, 3), decimal.Decimal(2), pd.NA, pd.NaT)),
    *(lambda value=value: value for value in (datetime.date(2020, 1, 1), range(3), Path("nowhere"), slice(3))),
    lambda: nn.Linear(2, 2),
    lambda: pd.DataFrame({"a": [1]}),
    lambda: pd.Series([1, 2]),
    lambda: (number for number in range(3)),
    lambda: io.StringIO("text"),
    lambda: TrainingArguments("out", report_to=[]),
    lambda: bayeslora.MonteCLoRA(),
    lambda: bayeslora.MonteCLoRA,
    lambda: bayeslora.tasks.Classification(2),
    lambda: bayeslora.tasks.Classification,
)

VALUES = st.one_of(
    st.sampled_from(THINGS),
    st.builds(
        lambda value: lambda: value,
        st.one_of(
            st.integers(-5, 5),
            st.floats(),
            st.text(max_size=8),
            st.lists(st.one_of(st.integers(-3, 70), st.text(max_size=3), st.none()), max_size=3),
            st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.floats()), max_size=2),
        ),
    ),
)

NAMES = st.one_of(
    st.sampled_from(sorted({theirs for names in ALIASES.values() for theirs in names})),
    st.sampled_from(["num_draw", "epoch", "fp16", "weight_decay", "Data", "_", "component", "self", "fields"]),
    st.from_regex(r"[a-z_]{1,8}", fullmatch=True),
)
