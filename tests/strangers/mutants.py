"""Posteriors as somebody may have damaged them, by chance or by intent.

A mutation changes a saved posterior in its folder, at random; what it leaves is a posterior of the same name, and
need not be one at all. Those that write other tensors give their file the name that its new content asks for.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save

from bayeslora import saving

MANIFEST = "bayeslora.json"
Mutation = Callable[[Random, Path], None]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    """Add a mutation to the table, by the name of its function."""
    MUTATIONS[function.__name__] = function
    return function


def record_of(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text())


def write(folder: Path, record: Any) -> None:
    (folder / MANIFEST).write_text(record if isinstance(record, str) else json.dumps(record, indent=2))


def tensors_file(folder: Path) -> Path:
    return folder / record_of(folder)["tensors"]


def sign(folder: Path, content: bytes) -> None:
    """Replace the tensors' file, under the name that its content asks for, in the record too."""
    tensors_file(folder).unlink()
    name = f"posterior-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    (folder / name).write_bytes(content)
    write(folder, record_of(folder) | {"tensors": name})


def sign_record(folder: Path) -> None:
    """Give a record the digest that its entries ask for, as whoever means harm would."""
    if (record := saving.read(folder / MANIFEST)) is not None:
        write(folder, saving.signed(record))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a JSON value."""
    parts = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    here = [(value, key) for key, _ in parts]
    return here + [place for _, part in parts if isinstance(part, dict | list) for place in places(part)]


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, 10**400, 0.0, -1.5, 0.5, 1e30, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "a", "(a+)+$", ".*", "x" * 5000, "\ud800", "\0", "../..", "/etc"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": {"c": []}}}, ["a", "a"], [1, 2, 3], [0.5] * 100),
)


# The record


def change(random: Random, folder: Path, count: int) -> None:
    """Put odd values into some places of the record."""
    record = record_of(folder)
    for _ in range(count):
        container, key = random.choice(places(record))
        container[key] = random.choice(VALUES)
    write(folder, record)


@mutation
def value(random: Random, folder: Path) -> None:
    change(random, folder, 1)


@mutation
def values(random: Random, folder: Path) -> None:
    change(random, folder, random.randint(2, 5))


@mutation
def number(random: Random, folder: Path) -> None:
    """A number becomes another, which may well be allowed."""
    record = record_of(folder)
    numbers = [(c, k) for c, k in places(record) if isinstance(c[k], int | float) and not isinstance(c[k], bool)]
    container, key = random.choice(numbers)
    old = container[key]
    container[key] = random.choice((old + 1, old - 1, old * 2, -old, old * 10**6, old * 10**12, float(old), old + 0.5))
    write(folder, record)


@mutation
def missing_entry(random: Random, folder: Path) -> None:
    record = record_of(folder)
    container, key = random.choice(places(record))
    del container[key]
    write(folder, record)


@mutation
def further_entry(random: Random, folder: Path) -> None:
    record = record_of(folder)
    containers = [record, *(c[k] for c, k in places(record) if isinstance(c[k], dict | list))]
    container, added = random.choice(containers), random.choice(VALUES)
    if isinstance(container, dict):
        container[random.choice(("", "a", "class", "name", "fields", "members"))] = added
    else:
        container.insert(random.randint(0, len(container)), added)
    write(folder, record)


@mutation
def entry_twice(random: Random, folder: Path) -> None:
    record = record_of(folder)
    name = random.choice(list(record))
    inner = f'"{name}": {json.dumps(random.choice(VALUES))}'
    write(folder, f"{{{inner}, {json.dumps(record)[1:]}")


@mutation
def moved_entry(random: Random, folder: Path) -> None:
    record = record_of(folder)
    container, key = random.choice(places(record))
    container[key] = random.choice((record, {"a": container[key]}, [container[key]], json.dumps(container[key])))
    write(folder, json.dumps(json.loads(json.dumps(record)) if container[key] is not record else {key: "itself"}))


@mutation
def names(random: Random, folder: Path) -> None:
    """Another method, likelihood or class than the one that was saved."""
    import bayeslora

    record = record_of(folder)
    table = random.choice(("method", "likelihood", "base"))
    if table == "base":
        classes = ("BertModel", "pipeline", "AutoModel", "Trainer", "os", "__class__", "utils", "a" * 200)
        record["base"] = {"class": random.choice(classes), "name": random.choice(("/etc", "a/b", "..", None))}
    else:
        known = bayeslora.METHODS if table == "method" else bayeslora.LIKELIHOODS
        record[table]["name"] = random.choice([*known, "__class__", "exec"])
    write(folder, record)


PYROS = ("AutoMultivariateNormal", "AutoIAFNormal", "AutoGuideList", "utils")


@mutation
def greedy(random: Random, folder: Path) -> None:
    """A record that asks for far more than there is."""
    record = record_of(folder)
    much = random.choice((10**4, 10**6, 10**9, 10**15))
    fields: dict[str, dict[str, Any]] = {
        "deep_ensemble": {"members": much, "fresh_heads": True},
        "checkpoint_ensemble": {"members": much, "last_part": 1.0},
        "swag": {"deviations": much, "snapshots": much},
        "monteclora": {"components": much},
        "laplace": {"kept": much, "max_width": 1},
        "autoguide": {"autoguide": random.choice(PYROS)},
    }
    what = random.choice(("method", "particles", "rank", "classes", "history"))
    if what == "method":
        name = random.choice(list(fields))
        record["method"] = {"name": name, "fields": fields[name]}
        record["num_particles"] = much if name == "deep_ensemble" else 1
    elif what == "particles":
        record["num_particles"] = much
    elif what == "rank":
        record["network"]["rank"] = dict.fromkeys(record["network"]["rank"], much)
    elif what == "classes":
        record["likelihood"]["config"] = {"num_classes": much}
        record["likelihood"]["name"] = random.choice(("classification", "ordinal", "multilabel"))
    else:
        record["history"] = [f"a{index}" for index in range(10**5)]
    write(folder, record)


@mutation
def patterns(random: Random, folder: Path) -> None:
    """Names of layers that are none: patterns, suffixes, far too many."""
    record = record_of(folder)
    network = record["network"]
    chosen: Any = random.choice(
        (
            ["(.*)*$"],
            ["(a|a)*b"],
            "(.+)+$",
            "all-linear",
            "query",
            ["query"],
            ["dense"],
            [f"a{i}" for i in range(10**5)],
        )
    )
    network["targets"] = chosen
    if isinstance(chosen, list):
        network["rank"], network["alpha"] = dict.fromkeys(chosen, 2), dict.fromkeys(chosen, 4.0)
    write(folder, record)


@mutation
def bomb(random: Random, folder: Path) -> None:
    """A text that takes far more memory, or far deeper calls, than its size."""
    text = json.dumps(record_of(folder))
    huge = random.choice(
        (
            "[" * 10**5,
            '{"a":' * 10**5,
            "[" * 900 + "]" * 900,
            "[" + "[]," * 10**6 + "0]",
            "[" + "{}," * 10**6 + "0]",
            "{" + ",".join(f'"{i}":{i}' for i in range(3 * 10**5)) + "}",
            "9" * 10**6,
            "1e" + "9" * 10**5,
            '"' + "a" * 10**7 + '"',
        )
    )
    where = random.choice(("instead", "fields", "targets", "class_names", "further"))
    if where == "instead":
        write(folder, huge)
    elif where == "further":
        write(folder, f'{{"a": {huge}, {text[1:]}')
    else:
        record = record_of(folder)
        part = {"fields": record["method"], "targets": record["network"], "class_names": record}[where]
        part[where] = "HERE"
        write(folder, json.dumps(record).replace('"HERE"', huge))


@mutation
def record_bytes(random: Random, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(damaged(random, (folder / MANIFEST).read_bytes()))


# The tensors


@mutation
def tensor_bytes(random: Random, folder: Path) -> None:
    path = tensors_file(folder)
    path.write_bytes(damaged(random, path.read_bytes()))


@mutation
def signed_bytes(random: Random, folder: Path) -> None:
    sign(folder, damaged(random, tensors_file(folder).read_bytes()))


@mutation
def tensors(random: Random, folder: Path) -> None:
    """Tensors of another shape, type, name or value."""
    state = load(tensors_file(folder).read_bytes())
    for _ in range(random.randint(1, 2)):
        name = random.choice(list(state))
        old = state[name]
        kinds: dict[str, Callable[[], Any]] = {
            "gone": lambda: None,
            "longer": lambda old=old: torch.cat([old, old]) if old.dim() else old[None],
            "flat": lambda old=old: old.flatten(),
            "transposed": lambda old=old: old.mT.contiguous() if old.dim() > 1 else old[..., None],
            "empty": lambda old=old: old[:0] if old.dim() else old.new_zeros(0),
            "half": lambda old=old: old.half(),
            "whole": lambda old=old: old.nan_to_num().clamp(-9, 9).long(),
            "complex": lambda old=old: old.to(torch.complex64),
            "eight bits": lambda old=old: old.to(torch.float8_e4m3fn),
            "boolean": lambda old=old: old.bool(),
            "not finite": lambda old=old: filled(random, old, (float("nan"), float("inf"), float("-inf"))),
            "huge": lambda old=old: filled(random, old, (1e37, -1e37, 1e300, 1e31)),
            "negative": lambda old=old: -old,
            "other": lambda old=old: old + 1,
        }
        changed = kinds[random.choice(list(kinds))]()
        if changed is None:
            del state[name]
        elif random.random() < 0.2:
            state[random.choice(("guide/", "a", "history/a", "head/x", f"{name}.x", "likelihood/y"))] = changed
        else:
            state[name] = changed
    sign(folder, save({name: value.clone() for name, value in state.items()}))


def filled(random: Random, old: torch.Tensor, values: tuple[float, ...]) -> torch.Tensor:
    """A copy with one number replaced."""
    new = old.clone()
    if new.numel() and new.is_floating_point():
        at, value = random.randrange(new.numel()), torch.tensor(random.choice(values), dtype=torch.float64)
        new.view(-1)[at] = value.to(new.dtype)  # infinite, if it is too large for it
    return new


@mutation
def header(random: Random, folder: Path) -> None:
    """A file whose header says what is not so."""
    content = tensors_file(folder).read_bytes()
    size = int.from_bytes(content[:8], "little")
    entries, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    name = random.choice([name for name in entries if name != "__metadata__"])
    length = None
    what = random.choice(("shape", "offsets", "type", "length", "text", "many", "further"))
    if what == "shape":
        shape = entries[name]["shape"]
        entries[name]["shape"] = random.choice(
            ([2**40, *shape], [2**63], [2**62, 4], [-1], [], [0], [*shape, 1], 3, None)
        )
    elif what == "offsets":
        entries[name]["data_offsets"] = random.choice(
            ([0, 2**62], [0, 0], [-1, 4], [len(body), 2 * len(body)], [4, 0], [])
        )
    elif what == "type":
        entries[name]["dtype"] = random.choice(("F64", "I8", "F4", "U64", "BOOL", "a", "", None, 7))
    elif what == "length":
        length = random.choice((0, 1, 2**20, 2**40, 2**63, 2**64 - 1, len(content)))
    elif what == "many":
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}
        entries |= {f"guide/{index}": empty for index in range(random.choice((10**3, 10**5)))}
    elif what == "further":
        entries["__metadata__"] = random.choice(({"a": "b" * 10**6}, {"a": 1}, [], None))
    text = json.dumps(entries)
    if what == "text":
        text = random.choice(("", "[]", "{", "[" * 10**5, '{"a":' * 10**5, "{}", text[:-1], f"{text[:-1]},{text[1:]}"))
    new = text.encode()
    sign(folder, (len(new) if length is None else length).to_bytes(8, "little") + new + body)


def damaged(random: Random, content: bytes) -> bytes:
    """Bytes with a few of them flipped, removed, added or repeated, or cut short."""
    data = bytearray(content)
    for _ in range(random.randint(1, 4)):
        at, length = random.randrange(len(data) + 1), random.choice((1, 2, 8, 100))
        kind = random.choice(("flip", "remove", "add", "repeat", "cut"))
        if kind == "flip" and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == "remove":
            del data[at : at + length]
        elif kind == "add":
            data[at:at] = random.choice((b"\0", b"\xff", b" ", b"{", b'"', b"9", b"e", b"-", b"\xf0\x9f")) * length
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        elif kind == "cut" and random.random() < 0.3:
            del data[at:]
    return bytes(data)


# The file system


def secret(folder: Path) -> Path:
    """A file beside the posterior's folder, of which nothing may be read."""
    path = folder.parent / f"{folder.name}-secret"
    path.write_text("a secret")
    return path


@mutation
def links(random: Random, folder: Path) -> None:
    file = random.choice((folder / MANIFEST, tensors_file(folder)))
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    target = random.choice(("copy", "secret", "device", "nowhere", "itself", "inside"))
    shutil.copy(file, elsewhere)
    aims = {"secret": secret(folder), "device": "/dev/zero", "nowhere": "/nowhere", "itself": file, "copy": elsewhere}
    if target == "inside":
        shutil.copy(file, folder / "inside")
    file.unlink()
    file.symlink_to(aims.get(target, folder / "inside"))


@mutation
def odd_files(random: Random, folder: Path) -> None:
    file = random.choice((folder / MANIFEST, tensors_file(folder)))
    file.unlink()
    kind = random.choice(("pipe", "folder", "empty", "gone"))
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "empty":
        file.touch()


@mutation
def unreadable(random: Random, folder: Path) -> None:
    random.choice((folder / MANIFEST, tensors_file(folder))).chmod(0)


@mutation
def elsewhere(random: Random, folder: Path) -> None:
    """A record whose tensors are in another place."""
    file = tensors_file(folder)
    outside = folder.parent / file.name
    shutil.copy(file, outside)
    (folder / "sub").mkdir()
    shutil.copy(file, folder / "sub" / file.name)
    paths = (f"../{file.name}", str(outside), f"sub/{file.name}", f"./{file.name}", f"sub/../{file.name}", "/dev/zero")
    write(folder, record_of(folder) | {"tensors": random.choice((*paths, "/dev/stdin", "..", "", "\0", MANIFEST))})


# The tokenizer


CODE = "from pathlib import Path\n\nPath({!r}).touch()\n\n\nclass Mine:\n    pass\n"


class Attack:
    """What a pickle can do."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def with_tokenizer(folder: Path) -> Path:
    """Give the posterior a tokenizer, if it has none; returns its folder."""
    from tests.test_data import tiny_tokenizer

    if not (folder / "tokenizer").exists():
        tiny_tokenizer().save_pretrained(folder / "tokenizer")
        write(folder, record_of(folder) | {"tokenizer": True})
    return folder / "tokenizer"


def canary(folder: Path) -> Path:
    """The file that appears where a stranger's code was run."""
    return folder.parent / f"{folder.name}-canary"


@mutation
def tokenizers_code(random: Random, folder: Path) -> None:
    path = with_tokenizer(folder)
    code = CODE.format(str(canary(folder)))
    for name in ("mine.py", "tokenizer.py", "__init__.py", "tokenization_mine.py"):
        (path / name).write_text(code)
    for name in ("tokenizer.pkl", "vocab.bin", "pytorch_model.bin", "vocab.pt", "spiece.model"):
        (path / name).write_bytes(pickle.dumps(Attack(str(canary(folder)))))
    reference = random.choice(("mine.Mine", "a/b--mine.Mine", "../mine.Mine"))
    maps: tuple[Any, ...] = (
        [reference, reference],
        {"AutoTokenizer": [reference] * 2},
        reference,
        {"AutoTokenizer": 1},
    )
    config = json.loads((path / "tokenizer_config.json").read_text())
    where = random.choice(("tokenizer_config.json", "config.json", "processor_config.json", "class"))
    if where == "class":
        config["tokenizer_class"] = random.choice(TOKENIZERS)
        (path / "processor_config.json").write_text(json.dumps({"auto_map": {"AutoProcessor": reference}}))
        (path / "tokenizer_config.json").write_text(json.dumps(config))
    else:
        own = config if where == "tokenizer_config.json" else {"model_type": "mine", "tokenizer_class": "Mine"}
        (path / where).write_text(json.dumps(own | {"auto_map": random.choice(maps)}))


TOKENIZERS = (
    *(
        "AutoTokenizer",
        "AutoProcessor",
        "AutoModel",
        "BertModel",
        "pipeline",
        "os",
        "TransfoXLTokenizer",
        "T5Tokenizer",
    ),
    *("MyT5Tokenizer", "BertJapaneseTokenizer", "XLMTokenizer", "MistralCommonBackend", "PreTrainedTokenizerBase"),
    *(
        "PythonBackend",
        "CpmTokenizer",
        "Wav2Vec2CTCTokenizer",
        "BertTokenizer",
        "GPT2Tokenizer",
        "EsmTokenizer",
        "",
        "a",
    ),
)


@mutation
def tokenizers_settings(random: Random, folder: Path) -> None:
    path = with_tokenizer(folder) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    outside = str(secret(folder))
    added = {
        **{
            "vocab_file": outside,
            "tokenizer_file": outside,
            "merges_file": outside,
            "special_tokens_map_file": outside,
        },
        **{"fast_tokenizer_files": ["tokenizer./../../a.json", "tokenizer.0.json"], "init_inputs": [outside, outside]},
        **{"sp_model_kwargs": {"model_file": outside}, "mecab_kwargs": {"mecab_option": f"-r {outside}"}},
        **{
            "chat_template": "{{ a" * 100,
            "added_tokens_decoder": {"9" * 30: {"content": "a"}},
            "model_max_length": 1e400,
        },
        **{
            "extra_special_tokens": random.choice(VALUES),
            "added_tokens_decoder ": {},
            "pad_token": random.choice(VALUES),
        },
        **{"tokenizer_class": random.choice(TOKENIZERS), "name_or_path": outside, "backend": random.choice(VALUES)},
        **{"model_input_names": random.choice(VALUES), "__class__": "a", "from_slow": True, "gguf_file": outside},
    }
    name = random.choice([*added, *config])
    config[name] = added.get(name, random.choice(VALUES))
    path.write_text(json.dumps(config))


@mutation
def tokenizers_files(random: Random, folder: Path) -> None:
    path = with_tokenizer(folder)
    file = random.choice(sorted(path.iterdir()))
    kind = random.choice(("bytes", "bytes", "gone", "pipe", "link", "folder", "further link", "all gone", "is link"))
    if kind == "bytes":
        file.write_bytes(damaged(random, file.read_bytes()))
    elif kind == "further link":
        (path / random.choice(("added_tokens.json", "vocab.txt", "chat_template.jinja"))).symlink_to(secret(folder))
    elif kind == "all gone":
        shutil.rmtree(path)
    elif kind == "is link":
        path.rename(folder.parent / f"{folder.name}-tokenizer")
        path.symlink_to(folder.parent / f"{folder.name}-tokenizer")
    else:
        file.unlink()
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "link":
            file.symlink_to(secret(folder))
        elif kind == "folder":
            file.mkdir()


# Mixtures


WHOLE = (
    *("value", "values", "number", "missing_entry", "further_entry", "entry_twice", "moved_entry", "record_bytes"),
    *("tensor_bytes", "signed_bytes", "tensors", "header", "links", "odd_files", "unreadable", "elsewhere"),
)
"""Mutations of any folder, whatever its record is of; the others are of one posterior's."""

MIXTURES: dict[str, Mutation] = {}
"""Mutations of mixtures alone."""


def of_mixtures(function: Mutation) -> Mutation:
    """Add a mutation of mixtures to their table."""
    MIXTURES[function.__name__] = function
    return function


def in_component(random: Random, folder: Path, mutate: Mutation) -> None:
    """Mutate one component, and let the mixture's record name it by what its own record is afterwards."""
    record = record_of(folder)
    name = random.choice(record["components"])["folder"]
    workshop = folder.parent / "workshop" / "component"
    workshop.parent.mkdir()
    shutil.move(folder / name, workshop)
    mutate(random, workshop)
    put_component(folder, name, workshop)


def put_component(folder: Path, name: str, component: Path) -> None:
    """Move a folder into a mixture's, in the place of one of its components."""
    path, digest = component / MANIFEST, name.removeprefix("component-")
    if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):  # a device or a pipe never ends
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    new = f"component-{digest}"
    if not (folder / new).exists():
        shutil.move(component, folder / new)
    text = json.dumps(record_of(folder)).replace(f'"{name}"', f'"{new}"')
    write(folder, text)


def first(folder: Path) -> str:
    return record_of(folder)["components"][0]["folder"]


@of_mixtures
def weights(random: Random, folder: Path) -> None:
    """Weights that are none, or others."""
    record = record_of(folder)
    components = record["components"]
    chosen = random.choice(
        (
            [1.0] * len(components),
            [1.0] + [0.0] * (len(components) - 1),
            [0.0] * len(components),
            [2.0, -1.0, *[0.0] * (len(components) - 2)],
            [float("nan")] * len(components),
            [1e-320] * len(components),
            [1 / len(components)] * len(components),
            [True] + [False] * (len(components) - 1),
            ["1"] * len(components),
        )
    )
    for component, weight in zip(components, chosen, strict=True):
        component["weight"] = weight
    write(folder, record)


@of_mixtures
def components(random: Random, folder: Path) -> None:
    """Components that are fewer, more, far too many, in another order, or each other."""
    record = record_of(folder)
    own = record["components"]
    share = {"folder": own[0]["folder"], "weight": 0.0}
    record["components"] = random.choice(
        (
            own[::-1],
            own[:1],
            own[1:],
            [],
            [*own, share],
            [*own, *[share] * 900],
            [*own, *[share] * 10**5],
            [own[0] | {"weight": 1 / len(own)}] * len(own),
            [each["folder"] for each in own],
            {each["folder"]: each["weight"] for each in own},
            [each | {"folder": each["folder"].upper()} for each in own],
            None,
            3,
        )
    )
    write(folder, record)


@of_mixtures
def paths(random: Random, folder: Path) -> None:
    """Folders that are elsewhere, or nowhere."""
    record = record_of(folder)
    name = record["components"][0]["folder"]
    outside = folder.parent / name
    shutil.copytree(folder / name, outside)
    odd = (f"../{name}", str(outside), f"./{name}", f"{name}/", f"{name}/../{name}", ".", "", "..", "/dev", "\0", "~")
    record["components"][0]["folder"] = random.choice((*odd, f"{name}\n", f"{name}\0", "component-*", name * 1000))
    write(folder, record)


@of_mixtures
def odd_folders(random: Random, folder: Path) -> None:
    """Folders that are links, files, pipes, or not there."""
    name = first(folder)
    path, outside = folder / name, folder.parent / "outside"
    shutil.move(path, outside)
    kind = random.choice(("link", "link to another", "to itself", "file", "pipe", "gone", "empty", "links in it"))
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "link to another":
        shutil.move(outside, folder / "other")
        path.symlink_to("other")
    elif kind == "to itself":
        path.symlink_to(path)
    elif kind == "file":
        path.write_text("a")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "empty":
        path.mkdir()
    elif kind == "links in it":
        path.mkdir()
        for file in outside.iterdir():
            (path / file.name).symlink_to(file)


@of_mixtures
def nested(random: Random, folder: Path) -> None:
    """A mixture in a mixture, many times over."""
    for _ in range(random.choice((1, 2, 40))):
        inner = folder.parent / "inner"
        shutil.rmtree(inner, ignore_errors=True)
        shutil.copytree(folder, inner)
        for name in {each["folder"] for each in record_of(folder)["components"]}:
            shutil.rmtree(folder / name)
        record = record_of(folder)
        names = [each["folder"] for each in record["components"]]
        (folder / names[0]).mkdir()
        record["components"] = [{"folder": names[0], "weight": 1.0}]
        write(folder, record)
        shutil.rmtree(folder / names[0])
        put_component(folder, names[0], inner)


@of_mixtures
def of_others(random: Random, folder: Path) -> None:
    """Components over another base, or of other labels."""
    from tests.fixtures.make import FOLDER

    name = first(folder)
    workshop = folder.parent / "workshop"
    shutil.copytree(FOLDER / random.choice(("regression", "causal_lm", "multilabel", "observation")), workshop)
    put_component(folder, name, workshop)
