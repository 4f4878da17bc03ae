"""The record of a saved posterior, and how the files of a posterior are read when they come from a stranger.

Everything in a posterior's folder is data: nothing in it is run, nothing outside it is opened, and nothing is built
before it is known to be no larger than the folder.
"""

import collections.abc
import contextlib
import functools
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from bayeslora.contracts import LARGEST_INTEGER, Count, Kind, Scale, Within, fits, in_words
from bayeslora.paths import is_there

MANIFEST = "bayeslora.json"
FORMAT = 1

LARGEST = 1e30
"""No number of a record or a tensor is larger: its square would overflow in single precision long before."""

MOST_BYTES = 2**25
"""Of a record. One of 50,000 adapted layers takes a quarter of that."""

MOST_COMPONENTS = 1000
"""Of a mixture."""

FREE_VALUES, BYTES_PER_VALUE = 100_000, 40
"""A JSON text may hold so many values, and one more for so many bytes: each takes up to 130 bytes of memory."""

Code = TypedDict("Code", {"name": str, "class": NotRequired[str]})
"""The name of a registered class, and what the class is called; the first version did not say."""


class MethodRecord(Code):
    """A method: its name and its hyperparameters."""

    fields: dict[str, Any]


class LikelihoodRecord(Code):
    """A likelihood: its name and what its constructor needs."""

    config: dict[str, Any]


class NetworkRecord(TypedDict):
    """The adapted layers: their names, and r and alpha of each."""

    targets: list[str]
    rank: dict[str, Count]
    alpha: dict[str, Scale]
    num_examples: Count
    head: NotRequired[list[str]]


BaseRecord = TypedDict("BaseRecord", {"class": str, "name": str | None, "config": NotRequired[dict[str, Any]]})
"""The base model: its class, the path or hub name that it was loaded by, and what was set in its configuration."""


class ColumnsRecord(TypedDict):
    """The columns that a fit read, and whether whole numbers are classes by their place (see `data.Columns`)."""

    text: list[str]
    label: str | None
    id: str | None
    features: list[str]
    by_index: bool
    answers: NotRequired[Literal["all", "last"] | None]
    shots: NotRequired[list[str]]
    labels: NotRequired[list[str]]


class HeldOutRecord(TypedDict):
    """Held-out rows to decide by: the columns of their tensors, and how they were predicted."""

    columns: list[str]
    num_draws: Count | Literal["auto"]
    center: bool
    approximation: Literal["draws", "linear", "own"]
    seed: Annotated[int, Within(at_least=0, at_most=2**32 - 1)]
    temperature: Annotated[float, Within(above=0)]
    antithetic: NotRequired[bool]


class TuningRecord(TypedDict):
    """How a dial was set (see `dials.TuningResult`)."""

    dial: Annotated[str, Kind("the name of a field", lambda name: name.isidentifier() and len(name) <= 100)]
    rows: Literal["held-out", "out-of-fold"]
    chosen: float
    temperature: Annotated[float, Within(above=0)]
    digest: Annotated[str, Kind("16 hexadecimal digits, or ''", re.compile("([0-9a-f]{16})?").fullmatch)]
    curve: list[str]
    out_of_fold: list[str]


class ComponentRecord(TypedDict):
    """A component of a mixture: the folder of its own posterior, named after its record, and its weight."""

    folder: str
    weight: Annotated[float, Within(at_least=0, at_most=1)]


class MixtureRecord(TypedDict):
    """What a saved mixture of posteriors holds beside their folders and its own tensors."""

    format: Literal[1]
    tensors: str
    components: list[ComponentRecord]
    temperature: Annotated[float, Within(above=0)]
    densities: list[str]
    tuning: NotRequired[TuningRecord]
    held_out: NotRequired[HeldOutRecord]
    digest: NotRequired[str]


class Record(TypedDict):
    """What a saved posterior holds beside its tensors. A field that is not listed here is not read."""

    format: Literal[1]
    tensors: str
    method: MethodRecord
    likelihood: LikelihoodRecord
    network: NetworkRecord
    base: BaseRecord
    num_particles: Annotated[int, Within(at_least=1, at_most=10_000)]
    temperature: Annotated[float, Within(above=0)]
    class_names: list[str] | None
    columns: NotRequired[ColumnsRecord]
    tokenizer: bool
    tokenizer_folder: NotRequired[str]
    history: list[str]
    state: NotRequired[str | None]
    weighted: NotRequired[bool]
    labels_seen: NotRequired[str]
    prior: NotRequired[MethodRecord]
    held_out: NotRequired[HeldOutRecord]
    tuning: NotRequired[TuningRecord]
    digest: NotRequired[str]


@contextlib.contextmanager
def reading(folder: str | os.PathLike[str], file: str) -> Iterator[None]:
    """Turn whatever goes wrong in reading a posterior's file into a ValueError that says where, and what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno and not isinstance(error, FileNotFoundError):
            raise ValueError(f"{folder} holds a posterior that cannot be read: {file}: {error.strerror}.") from error
        what = (
            str(error)
            if isinstance(error, ValueError) or type(error) is Exception
            else f"{type(error).__name__}: {error}"
        )
        raise damaged(folder, file, what) from error


def damaged(folder: str | os.PathLike[str], file: str, what: str) -> ValueError:
    """The error about a file of a posterior that cannot be read."""
    line = " ".join(what.split())
    line = line if len(line) <= 400 else f"{line[:400]} …"
    advice = "Save it again, or get it again from its author."
    return ValueError(f"{folder} holds a damaged posterior: {file}: {line.rstrip('.')}. {advice}")


def plain_file(path: Path) -> int:
    """Return the size of a file, in bytes.

    Raises:
        ValueError: If it is missing, or not a plain file: a link leads outside the folder, and a pipe never ends. Links
            of the hub's cache, where every file is one, may lead to the contents beside the snapshots.
    """
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            content = path.resolve()
            cache = next((part for part in path.parent.resolve().parents if part.name == "snapshots"), None)
            if cache is not None and content.parent == cache.parent / "blobs":
                status = content.lstat()
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except RuntimeError:  # Python 3.11 and 3.12 raise it for links in a circle
        raise ValueError("it is a link that leads to itself") from None
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is {kinds.get(stat.S_IFMT(status.st_mode), 'a device')}, and not a file of its own")
    return status.st_size


def read_json(path: Path, most: int) -> Any:
    """Read a JSON file of a stranger's.

    Args:
        path: The file.
        most: The most bytes that it may have.

    Raises:
        ValueError: If it is not a plain file, is larger, or is not strict JSON; see `parse`.
    """
    if plain_file(path) > most:
        raise ValueError(f"it is larger than {most >> 20} MiB")
    return parse(path.read_bytes())


def parse(content: bytes) -> Any:
    """Read a JSON text.

    Raises:
        ValueError: If it is not strict JSON in UTF-8, names an entry twice, is nested too deeply, or holds far more
            values than its size lets expect. Infinity is taken, which a method's field may be.
    """
    if sum(map(content.count, (b",", b"[", b"{"))) > FREE_VALUES + len(content) // BYTES_PER_VALUE:
        raise ValueError("it holds too many values")
    try:
        return json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:
        raise ValueError("a number has too many digits" if "digits" in str(error) else str(error)) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("an entry stands twice")
    return entries


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN, which is not a number")
    return float(name)


def read_record(folder: str | os.PathLike[str]) -> Record:
    """Read and check the record in a folder; what its method, likelihood and tensors say has to be checked by them.

    That of a mixture is a `MixtureRecord`, and has `components`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or of a format that this version does not know.
    """
    path = Path(folder) / MANIFEST
    if not is_there(path):
        raise FileNotFoundError(f"{folder} holds no posterior: there is no {MANIFEST} in it.")
    with reading(folder, MANIFEST):
        record = read_json(path, MOST_BYTES)
        known = record.get("format") if isinstance(record, dict) else None
        readable = known == FORMAT or not fits(known, int)
        if readable:
            check_record(record)
    if not readable:
        raise ValueError(
            f"{folder} has format {reprlib.repr(known)}; this version of bayeslora reads format {FORMAT}. Upgrade it."
        )
    return record


def check_record(record: Any) -> None:
    """Raise a ValueError unless a record, as JSON holds it, is one that `read_record` returns."""
    if "components" in record:
        check(record, MixtureRecord)
        _check_components(record["components"])
    else:
        check(record, Record)
        _check_network(record["network"])
        _check_numbers(record["method"]["fields"], "method", "fields")
        _check_numbers(record["prior"]["fields"] if "prior" in record else {}, "prior", "fields")
    named = record.get("tokenizer_folder")
    if named is not None and not re.fullmatch(r"tokenizer-[0-9a-f]{16}", named):
        raise ValueError(f"tokenizer_folder is {named!r:.100}: give tokenizer-<16 digits>")
    for name, columns in listed(record).items():
        if len({*columns}) < len(columns):
            raise ValueError(f"{name}: a column stands twice")


def listed(record: Record) -> dict[str, list[str]]:
    """Return the columns of the tables that stand among the tensors, by the first part of the tensors' names."""
    held_out, tuning = record.get("held_out"), record.get("tuning")
    tables: dict[str, Any] = {**record}
    return {
        "history": tables.get("history", []),
        "held_out": [] if held_out is None else held_out["columns"],
        "curve": [] if tuning is None else tuning["curve"],
        "out_of_fold": [] if tuning is None else tuning["out_of_fold"],
        "densities": tables.get("densities", []),
    }


def _check_components(components: Sequence[ComponentRecord]) -> None:
    """Raise a ValueError unless there are some components, not too many, and their weights sum to 1."""
    if not 1 <= len(components) <= MOST_COMPONENTS:
        raise ValueError(f"components: there are {len(components)}, and there may be 1 to {MOST_COMPONENTS}")
    for component in components:
        if not re.fullmatch(r"component-[0-9a-f]{16}", component["folder"]):
            raise ValueError(f"components: a folder is {component['folder']!r:.100}: give component-<16 digits>")
    if abs(sum(component["weight"] for component in components) - 1) > 1e-6:
        raise ValueError("components: the weights do not sum to 1")


def _check_network(network: NetworkRecord) -> None:
    """Raise a ValueError unless every layer is named once, with its rank and alpha."""
    targets = {*network["targets"]}
    if not targets or len(targets) < len(network["targets"]):
        raise ValueError("network.targets: name every adapted layer once")
    for field in ("rank", "alpha"):
        if network[field].keys() != targets:
            raise ValueError(f"network.{field}: give one for each layer in network.targets, and for no other")


def _check_numbers(value: Any, *where: Any) -> None:
    """Raise a ValueError if a whole number is too large for a machine; what else a field may hold, its class knows."""
    for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        _check_numbers(part, *where, name)
    if isinstance(value, int):
        _expect(abs(value) <= LARGEST_INTEGER, value, f"a number of at most {LARGEST_INTEGER}", where)


def check(value: Any, declaration: Any, *where: Any) -> None:
    """Raise a ValueError that says where, unless a value read from JSON is what an annotation declares.

    Numbers have to be finite, and no larger than `LARGEST`.

    Args:
        value: The value.
        declaration: A `TypedDict`, lists and mappings, what a method's field may be declared as (`methods.fields`), or
            None as the alternative to one of those.
        where: The names and indices that lead to the value.
    """
    kind, parts = get_origin(declaration), get_args(declaration)
    if declaration is str and isinstance(value, str):  # the most of a long record: names
        return
    if kind is NotRequired:
        check(value, parts[0], *where)
    elif is_typeddict(declaration):
        _expect(isinstance(value, dict), value, "an object", where)
        for name, its_declaration in _entries(declaration).items():
            if name in value:
                check(value[name], its_declaration, *where, name)
            elif get_origin(its_declaration) is not NotRequired:
                raise ValueError(f"{_path((*where, name))} is missing")
    elif kind is dict:
        _expect(isinstance(value, dict), value, "an object", where)
        for name, entry in value.items():
            check(entry, parts[1], *where, name)
    elif kind in (list, collections.abc.Sequence):
        _expect(isinstance(value, list), value, "a list", where)
        for index, entry in enumerate(value):
            check(entry, parts[0], *where, index)
    elif kind in (Union, UnionType) and NoneType in parts and len(parts) == 2:
        if value is not None:
            check(value, next(part for part in parts if part is not NoneType), *where)
    elif declaration is not Any:
        if isinstance(value, int | float):
            most = LARGEST_INTEGER if isinstance(value, int) else LARGEST
            _expect(abs(value) <= most, value, f"a finite number, at most {most:.3g}", where)  # which no NaN is
        _expect(fits(value, declaration), value, declaration, where)


@functools.cache
def _entries(declaration: Any) -> dict[str, Any]:
    return get_type_hints(declaration, include_extras=True)


def _expect(holds: bool, value: Any, what: Any, where: Sequence[Any]) -> None:
    if not holds:
        what = what if isinstance(what, str) else in_words(what)
        raise ValueError(f"{_path(where) or 'the whole'} is {reprlib.repr(value)}: give {what}")


def _path(where: Sequence[Any]) -> str:
    """How a message names an entry: `network.rank['layer.0']`, `network.targets[3]`."""
    names = (
        f".{part}" if isinstance(part, str) and part.isidentifier() else f"[{reprlib.repr(part)}]" for part in where
    )
    return "".join(names).removeprefix(".")
