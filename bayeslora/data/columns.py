"""Which columns of a table are texts, which is the label, and which are neither."""

import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from bayeslora.contracts import ArgumentError
from bayeslora.data.prose import is_prose
from bayeslora.tasks import LIKELIHOODS, conversations
from bayeslora.tasks.checking import is_missing
from bayeslora.tasks.choices import plain_name
from bayeslora.tasks.classes import Classes
from bayeslora.tasks.conversations import Answers
from bayeslora.tasks.words import TAGS, WORDS

logger = logging.getLogger(__name__)

LABELS = ("labels", "label", "label_ids")
"""Columns that hold the labels of any table."""

USUAL = (
    *("target", "targets", "class", "classes", "y", "gold", "gold_label", "category", "sentiment", "emotion"),
    *("emotions", "topic", "intent", "stars", "star_rating", "rating", "score"),
)
"""Columns that hold the labels of a table of texts, where there is none of `LABELS`: the first of these."""

USUAL_OF_NUMBERS = ("target", "class", "y")
"""Columns that hold the labels of a table of numbers, where there is none of `LABELS`."""

PLAIN = r"bool|u?int|float|double|timestamp|date|time|decimal"
"""Types of columns whose values are written out where they are read as texts."""

INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")
"""Columns by which a table is seen to hold a network's inputs already."""

NOT_INPUTS = re.compile(
    r"|[a-z]?id\d*|idx|index|uuid|guid|key|row|fold|split|level_\d+|unnamed: ?[\d.]+|__index_level_\d+__"
    r"|.+[_ ](id|idx|index)|(?-i:.*[a-z](Id|ID|Idx|Index))|hash|sha\d*|md5|ur[li]s?|link|date|time|datetime|timestamp"
    r"|(created|updated)([_ ](at|on))?|author|user|user[_ ]?name|(.+[_ ])?labels?([_ .].+)?",
    re.IGNORECASE,
)
"""Names of rows, where rows come from, and columns that say the label again: never inputs unless they are asked for."""

SAYS_LABEL = re.compile(r"(.+[_ ])?labels?([_ .].+)?", re.IGNORECASE)
"""Columns with `label` as a word of their name: the label, if nothing else is."""


@dataclass(frozen=True)
class Columns:
    """Columns of a table by what they are.

    Args:
        text: The one or two columns of texts, in the order in which the network reads them.
        label: The column of labels.
        id: The column that names the rows.
        features: The columns of numbers, if the whole table is the network's input, in their order.
        by_index: Whether whole numbers are classes by their place in the order of the fit's; otherwise by their names.
        answers: Which answers of a conversation are learned; None where there are none, or nothing is said.
        shots: Questions with their answers that precede every question, as texts.
        labels: The columns of labels, one for each class, if there are several.
    """

    text: tuple[str, ...] = ()
    label: str | None = None
    id: str | None = None
    features: tuple[str, ...] = ()
    by_index: bool = True
    answers: Answers | None = None
    shots: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @classmethod
    def asked(
        cls,
        text: str | Sequence[str] | None,
        label: str | Sequence[str] | None,
        id: str | None,
        answers: Answers | None = None,
        shots: tuple[str, ...] | None = None,
    ) -> "Columns":
        """Return the columns that a user names; a single text, or label, may be named by itself."""
        texts = () if text is None else (text,) if isinstance(text, str) else tuple(text)
        if len(texts) > 2:
            raise ValueError(f"text={text!r}: name one column, or two for pairs of texts.")
        if label is None or isinstance(label, str):
            return cls(texts, label, id, answers=answers, shots=shots or ())
        labels = tuple(label)
        if not labels or len({*labels}) < len(labels):
            raise ArgumentError(f"label={label!r}: name a column, or several different ones.")
        if len(labels) == 1:
            return cls(texts, labels[0], id, answers=answers, shots=shots or ())
        for name in labels:
            if name in (*texts, id):
                raise ArgumentError(f"label={label!r}: {name!r} is also {'a text' if name in texts else 'the id'}.")
        return cls(texts, None, id, answers=answers, shots=shots or (), labels=labels)


NOTHING = Columns()
"""No columns: none that are asked for, or known."""


@dataclass(frozen=True)
class Reading:
    """How data are to be read.

    Args:
        asked: The columns that the user names.
        known: The columns of the fit.
        with_labels: Whether labels are read.
        classes: The classes of the labels; a likelihood has to be given with them.
        collator: Makes a batch of rows, in place of padding and stacking.
    """

    asked: Columns = NOTHING
    known: Columns = NOTHING
    with_labels: bool = True
    classes: Classes | None = None
    collator: Callable[[list[Any]], Any] | None = None


@dataclass(frozen=True)
class Found(Columns):
    """Columns of a table, and those that are none of these.

    Args:
        ignored: The columns that are not read.
        told: What the log says of columns that a kind of label reads by itself.
    """

    ignored: tuple[str, ...] = field(default=())
    told: str = ""

    @property
    def plain(self) -> Columns:
        """The columns, without those that are ignored."""
        return Columns(**{each.name: getattr(self, each.name) for each in fields(Columns)})


def check_asked(names: Sequence[str], asked: Columns, data: str, needs_label: bool) -> None:
    """Raise a ValueError if a column that was asked for is not there."""
    if asked.label is not None and asked.label in asked.text:
        raise ValueError(f"text and label are both {asked.label!r}: a label is not read as a text. Name two columns.")
    for keyword, column in (*(("text", name) for name in asked.text), ("label", asked.label), ("id", asked.id)):
        if column is not None and column not in names and (needs_label or keyword != "label"):
            raise ValueError(f"{keyword}={column!r}: {data} has no such column, only {', '.join(map(str, names))}.")


def label_of(names: Sequence[str], asked: Columns, known: Columns, usual: Sequence[str]) -> str | None:
    """Return the column of labels: the one asked for, that of the fit, or the first with a usual name."""
    for column in (asked.label, known.label):
        if column is not None and column in names:
            return column
    if asked.label is not None:
        return None
    by_name = {plain_name(name): name for name in reversed(names)}
    return next((by_name[name] for name in (*LABELS, *usual) if name in by_name), None)


def few_values(values: Any) -> bool:
    """Whether a column has at least two values, and each of them twice on average, as labels have."""
    try:
        distinct = len({value for value in values if value is not None})
    except TypeError:  # lists, which cannot be counted
        return False
    return distinct > 1 and 2 * distinct <= len(values)


def _left(table: Any, texts: Sequence[str], others: Sequence[str], free: Collection[str]) -> str | None:
    """Return the column of labels of a table of texts in which none is called so; None if it cannot be told.

    Args:
        table: The table.
        texts: Its columns of texts that may be inputs.
        others: Its columns of other things, but names of rows.
        free: Columns that may be found by their few values.
    """
    features = table.features or {}
    says = [name for name in table.column_names if SAYS_LABEL.fullmatch(name)]
    named = [name for name in others if has_classes(features.get(name))]
    for sure in (named, says, others if len(texts) == 1 else []):
        if len(sure) == 1:
            return sure[0]
    rows = table.with_format(None)
    few = [name for name in (*texts, *others) if name in free and few_values(rows[name])]
    return few[0] if len(few) == 1 and {*texts} - {*few} else None


def choose(
    table: Any,
    asked: Columns,
    known: Columns,
    data: str,
    needs_label: bool = True,
    labels: Sequence[Any] | None = None,
) -> Found:
    """Find the columns of a `datasets.Dataset`, by a rule that depends on nothing but the table and what is asked for.

    The label is the column asked for; else that of the fit; else the first called as in `LABELS`; else, in a table of
    texts, as in `USUAL` (of words, as in `TAGS`); else the only one with named classes; else the only one with `label`
    as a word of its name; else the only other column beside one of texts; else the only one with few values beside
    texts that differ from row to row. The texts are those asked for; else those of the fit; else all columns of texts
    but the label, `NOT_INPUTS`, others of `USUAL` if the label is one, a column that says each label in one word of its
    own, and, beside others, one of nothing but dates, numbers or addresses.

    Args:
        table: The table.
        asked: The columns that the user names.
        known: The columns of the fit.
        data: What to call the data in messages.
        needs_label: Whether a label that was asked for has to be there.
        labels: Labels that are given beside the table.

    Raises:
        ValueError: If a column that was asked for, or a text of the fit, is not there.
    """
    names, features = list(table.column_names), table.features or {}
    check_asked(names, asked, data, needs_label and labels is None)
    talk = conversations.columns_in(names)
    if conversations.are_lists(talk) and not asked.text and labels is None:
        return Found(id=asked.id, ignored=tuple(name for name in names if name not in (*talk, asked.id)))
    own_answers = any(kind.suggested_by(names, None) for kind in LIKELIHOODS.values()) and not {*WORDS} & {*names}
    is_input = bool({*INPUTS} & {*names})
    texts = [name for name in names if is_text(features.get(name)) and not NOT_INPUTS.fullmatch(name)]
    plain = own_answers or is_input or not (texts or {*WORDS} & {*names})
    usual = () if plain else (*TAGS, *USUAL) if {*WORDS} & {*names} else USUAL
    label = None if labels is not None else label_of(names, asked, known, usual)
    others = [name for name in names if name not in texts and not NOT_INPUTS.fullmatch(name) and name != asked.id]
    texts = [name for name in texts if name not in (asked.id, known.id)]
    if label is None and labels is None and asked.label is None and not plain:
        inputs = [name for name in texts if name in (asked.text or known.text)] or texts
        if needs_label or inputs is texts:
            # One prompt for many rows has few values, and is still what is asked.
            free = {*names} - ({*conversations.columns_in(names)} & {*texts})
            label = _left(table, inputs, [*(name for name in texts if name not in inputs), *others], free)
    texts = [name for name in texts if name != label]
    if label is not None and label in known.text and not asked.text:
        raise ValueError(f"label={label!r}: the fit read this column as a text. Name the texts, too, text=….")
    if label not in (None, asked.label, known.label) and plain_name(label) in USUAL:
        rivals = [name for name in texts if plain_name(name) in USUAL and name not in (*asked.text, *known.text)]
        texts = [name for name in texts if name not in rivals]
        if rivals:
            logger.warning(
                "%s: %s is read as the label, and %s may be one, too, and is not read: name the label, label=%r.",
                *(data, label, ", ".join(rivals), rivals[0]),
            )
    if asked.text:
        texts = list(asked.text)
    elif known.text and {*known.text} <= {*names}:
        texts = list(known.text)
    elif own_answers:
        texts = []
    elif {*known.text} & {*names}:
        missing = ", ".join(repr(name) for name in known.text if name not in names)
        raise ValueError(
            f"{data} has no column {missing}, which the fit read; its columns are {', '.join(names)}. Name the texts, "
            "text=…."
        )
    elif len(texts) > 1 and (labels is not None or label is not None):
        values = labels if labels is not None else table.with_format(None)[label]
        rows = table.with_format(None)
        texts = [name for name in texts if not _says(rows[name], values)] or texts
        texts = [name for name in texts if is_prose(rows[name])] or texts
        texts = _present(rows, texts, data)
    if known.text and not asked.text and [*known.text] != texts and not is_input:
        instead, said = ", ".join(texts), f"{data} has no column {', '.join(known.text)}, which the fit read"
        if texts and len(texts) != len(known.text):
            raise ValueError(f"{said}, and {len(texts)} of texts, {instead}: name as many as the fit had, text=….")
        logger.warning("%s: %s is read in its place. Name another, text=….", said, instead or "nothing")
    used = {*texts, label, asked.id}
    return Found(tuple(texts), label, asked.id, ignored=tuple(name for name in names if name not in used))


def _present(rows: Any, texts: Sequence[str], data: str) -> list[str]:
    """Return the columns of texts without those that are missing in most rows, where another is there in all of them.

    Where there are more than two, those that say the same in all rows are left out, too.
    """
    columns = {name: rows[name][:] for name in texts}
    share = {name: sum(map(is_missing, column)) / len(rows) for name, column in columns.items()}
    sparse = [name for name in texts if share[name] > 0.5 and min(share.values()) == 0]
    if sparse:
        logger.warning(
            "%s: %s is missing in most rows, and is not read: name the texts, text=…, if it should be.",
            *(data, ", ".join(sparse)),
        )
    left = [name for name in texts if name not in sparse]
    differing = [name for name in left if len({*map(str, columns[name])}) > 1] if len(left) > 2 else left
    return differing or left


def _says(column: Sequence[Any], labels: Sequence[Any]) -> bool:
    """Whether a column has one value of its own for every class: it is the label again, in words."""
    pairs = {(str(value), str(label)) for value, label in zip(column, labels, strict=True)}
    values, classes = {value for value, _ in pairs}, {label for _, label in pairs}
    return 2 <= len(values) == len(classes) == len(pairs) and len(labels) >= 2 * len(pairs)


def features_of(names: Sequence[Any], label: Any, known: Columns, asked: Columns, data: str) -> list[Any]:
    """Return the columns of a table of numbers that are the network's input, in the order of the fit.

    Raises:
        ValueError: If a column of the fit is missing.
    """
    if known.features:
        by_name = {str(name): name for name in names}
        missing = [name for name in known.features if name not in by_name]
        if missing:
            raise ValueError(f"{data} has no column {', '.join(map(repr, missing))}, which the fit read.")
        return [by_name[name] for name in known.features]
    skipped = (label, asked.id)
    return [name for name in names if name not in skipped and not NOT_INPUTS.fullmatch(str(name))]


def is_text(feature: Any) -> bool:
    """Whether a column of a `datasets.Dataset` holds texts."""
    return getattr(feature, "dtype", "") in ("string", "large_string")


def check_no_lists(table: Any, data: str) -> None:
    """Raise a ValueError if a table without a column of texts has one of lists or records, which may be meant."""
    rows = table.with_format(None)
    for name in (name for name in table.column_names if name != "labels"):
        first = next((value for value in rows[name] if value is not None), None)
        if isinstance(first, list | Mapping):
            advice = "take the text out of it"
            if isinstance(first, list):
                advice = f"join the words, ' '.join(…); or call them {WORDS[0]!r}, if each has a tag"
            raise ValueError(f"{data}: {name!r} is not a text in row 0, but {str(first)[:60]}: {advice}.")


def written_out(table: Any, texts: Sequence[str]) -> Any:
    """Return a table whose numbers, truth values and dates in columns that are read as texts are written out."""
    features = table.features or {}
    for name in texts:
        if (
            (dtype := getattr(features.get(name), "dtype", ""))
            and re.match(PLAIN, dtype)
            and not is_text(features[name])
        ):
            values = table.with_format(None)[name][:]
            written = [
                None if is_missing(each) else f"{each:.12g}" if type(each) is float else str(each) for each in values
            ]
            table = table.remove_columns(name).add_column(name, written)
    return table


def has_classes(feature: Any) -> bool:
    """Whether a column of a `datasets.Dataset` holds classes, or lists of classes, that have names."""
    return class_names(feature) is not None


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a column of a `datasets.Dataset`, or of its lists; None if they have none."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    if isinstance(feature, list) and feature:
        feature = feature[0]
    names = getattr(feature, "names", None)
    return None if names is None else tuple(map(str, names))


def also_read(found: Found, columns: Mapping[str, Sequence[str]]) -> Found:
    """Return columns of which a kind of label reads some by itself: `question: stem; choices: A, B; answer: key`."""
    read = [name for names in columns.values() for name in names]
    told = "; ".join(f"{what}: {', '.join(names)}" for what, names in columns.items() if names)
    return replace(found, told=told, ignored=tuple(name for name in found.ignored if name not in read))


def said(found: Found, describe: Callable[[], str] | Mapping[str, str] | str = "") -> str:
    """Return a line that says what was read: `text: review; label: stars (5 classes); ignored: id`."""
    parts = [found.told] if found.told else []
    if found.text:
        parts.append(f"text: {', '.join(found.text)}")
    if found.features:
        shown = (
            found.features if len(found.features) <= 6 else (*found.features[:5], f"… ({len(found.features)} columns)")
        )
        parts.append(f"inputs: {', '.join(shown)}")
    if label := ", ".join(found.labels) or found.label:
        parts.append(f"label: {label}{f' ({describe})' if describe else ''}")
    elif parts and not found.told:
        parts.append("no label")
    parts += [f"id: {found.id}"] if found.id else []
    parts += [f"ignored: {', '.join(found.ignored)}"] if found.ignored else []
    return "; ".join(parts)
