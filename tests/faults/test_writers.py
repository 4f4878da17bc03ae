"""All that writes more than one file, or in place of another: killed, or out of disk, it leaves the old or the new."""

import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import bayeslora
from bayeslora import filing, interop, saving, shell
from bayeslora.failing import NotSavedError
from bayeslora.study.store import Store
from tests.faults import processes
from tests.faults.test_saving import copies, exported, made, network, no_file_larger_than
from tests.helpers import tiny_bert
from tests.test_data import tiny_tokenizer

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
ROWS = X, (X[:, 0] > 0).long()
OLD, NEW = 0, 1


@dataclass(frozen=True)
class Writer:
    """Something that writes.

    Args:
        make: Given `OLD` or `NEW`, what writes that to a folder; made once, before.
        read: Which of them is there, all of whose parts agree; None if a reader is told that there is nothing.
    """

    make: Callable[[int], Callable[[Path], Any]]
    read: Callable[[Path], int | None]


def posterior(which: int) -> Any:
    return made(which, None)


def of_temperature(folder: Path) -> int | None:
    """Which of two posteriors is there; `made` tells them apart by their temperature."""
    return round(bayeslora.load(folder, network()).temperature) - 1


def decided(which: int) -> Callable[[Path], Any]:
    own = posterior(which)
    own.decide(ROWS, 2 + which)
    return own.save


def read_decided(folder: Path) -> int:
    found = bayeslora.load(folder, network())
    assert found.held_out is not None
    return round(found.temperature) - 1


def with_card(which: int) -> Callable[[Path], Any]:
    own = posterior(which)
    text = own.card(intended_use=f"use {which}").encode()
    about = {"README.md": text} | ({"reliability.png": text * 9} if which == NEW else {})
    return lambda folder: own._save(folder, about)


def read_card(folder: Path) -> int | None:
    """A card never stands beside another posterior than its own."""
    which, card = of_temperature(folder), folder / "README.md"
    figure = folder / "reliability.png"
    assert not card.exists() or f"use {which}" in card.read_text()
    assert not figure.exists() or not card.exists() or figure.read_bytes() == card.read_bytes() * 9
    return which


def draws(which: int) -> Callable[[Path], Any]:
    settings: dict[str, Any] = {"rank": 1, "epochs": 0, "progress": False, "alpha": 1 + which}
    own = bayeslora.fit(network(), ROWS, "blob", **settings)
    return lambda folder: own.export_peft(folder, 3 - which)


def read_draws(folder: Path) -> int | None:
    alphas = exported(folder, True)
    assert alphas in (None, [1.0] * 3, [2.0] * 2)
    return None if alphas is None else int(alphas[0]) - 1


def merged(which: int) -> Callable[[Path], Any]:
    model: Any = tiny_bert(2 + which)
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"word{which}"])

    def save(folder: Path) -> None:
        save_pretrained = model.save_pretrained
        size = "20KB" if which == OLD else "1GB"  # the old one is in several files, the new one in one of another name
        model.save_pretrained = partial(save_pretrained, max_shard_size=size)
        try:
            interop.save_merged(model, tokenizer, folder)
        finally:
            model.save_pretrained = save_pretrained

    return save


def read_merged(folder: Path) -> int | None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if not (folder / "config.json").exists():
        return None
    found = AutoModelForSequenceClassification.from_pretrained(folder)
    which = found.config.num_labels - 2
    expected = tiny_bert(2 + which).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert f"word{which}" in AutoTokenizer.from_pretrained(folder).get_vocab()
    assert len(list(folder.glob("*.safetensors"))) == (1 if which == NEW else len(list(folder.glob("model-*"))))
    return which


def store(which: int) -> Callable[[Path], Any]:
    run = {"results": {}, "names": [], "failed": None, "seed": which, "much": [0.5] * 500}

    def put(folder: Path) -> None:
        Store(folder, {"seeds": 2}).put("a", run)

    return put


def read_store(folder: Path) -> int | None:
    found = Store(folder, {"seeds": 2}).get("a")
    return None if found is None else found["seed"]


def table(ending: str, which: int) -> Callable[[Path], Any]:
    rows = pd.DataFrame({"a": [which] * 500})
    return lambda folder: shell.write_table(rows, folder / f"table{ending}")


def read_table(ending: str, folder: Path) -> int | None:
    path = folder / f"table{ending}"
    rows = json.loads(path.read_text()) if ending == ".json" else pd.read_parquet(path).to_dict("records")
    assert len(rows) == 500
    return {row["a"] for row in rows}.pop()


WRITERS = {
    "decisions": Writer(decided, read_decided),
    "card": Writer(with_card, read_card),
    "draws": Writer(draws, read_draws),
    "merged": Writer(merged, read_merged),
    "store": Writer(store, read_store),
    ".json": Writer(partial(table, ".json"), partial(read_table, ".json")),
    ".parquet": Writer(partial(table, ".parquet"), partial(read_table, ".parquet")),
}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moments", [3, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_killed_while_it_writes_leaves_the_old_the_new_or_none(
    tmp_path: Path, name: str, moments: int | None
) -> None:
    writer = WRITERS[name]
    write = writer.make(NEW)
    writer.make(OLD)(tmp_path / "start")
    write(tmp_path / "whole")
    with copies(tmp_path / "start") as fresh:
        folder = fresh()
        count = processes.count_operations(lambda: write(folder))
        last = range(max(0, count - 2 * (moments or 0)), count, 2)
        found = []
        for operation in sorted({*range(0, count, max(1, count // (moments or count))), *last}):
            folder = fresh()
            processes.kill_at(partial(write, folder), operation)
            found.append(writer.read(folder))
            write(folder)
            assert writer.read(folder) == NEW
            # The next one leaves what it would have left without a kill, and no file of a killed one.
            left = {path for path in files(folder) if not path.startswith("tokenizer")}
            assert left - {*files(tmp_path / "start")} <= {*files(tmp_path / "whole")}
            assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert found == sorted(found, key=[OLD, None, NEW].index)


@pytest.mark.parametrize("steps", [4, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_one_sentence_with_the_files_name_and_changes_nothing(
    tmp_path: Path, name: str, steps: int
) -> None:
    writer = WRITERS[name]
    write, folder = writer.make(NEW), tmp_path / "out"
    write(tmp_path / "whole")
    writer.make(OLD)(folder)
    before = files(folder)
    largest = max(map(len, files(tmp_path / "whole").values()))
    for limit in range(0, largest - 64, largest // steps):

        def fail(limit: int = limit) -> str:
            with no_file_larger_than(limit), pytest.raises(NotSavedError) as error:
                write(folder)
            return str(error.value)

        message = processes.run(fail)
        assert message.count("could not be written: ") == 1, message
        assert "\n" not in message
        named = Path(message.partition(" could not be written")[0])
        assert folder in named.parents, message
        assert not any(part.startswith(".") for part in named.relative_to(folder).parts), message
        assert files(folder) == before
        assert writer.read(folder) == OLD


def test_a_merged_model_is_not_saved_beside_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="has a PEFT adapter, which would be put onto the merged model"):
        interop.save_merged(tiny_bert(), None, tmp_path)


def test_threads_write_one_file_each_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    contents = [bytes([65 + index]) * 100_000 for index in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda content: saving.write(path, content), contents * 4))
    assert path.read_bytes() in contents
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_stays_one_and_so_do_devices_pipes_and_who_may_read(tmp_path: Path) -> None:
    path, link, pipe = tmp_path / "file", tmp_path / "link", tmp_path / "pipe"
    path.touch(mode=0o600)
    link.symlink_to(path)
    (tmp_path / "new").symlink_to(tmp_path / "folder" / "file")
    os.mkfifo(pipe)
    for each in (link, tmp_path / "new"):
        filing.write_file(each, "x")
        assert each.is_symlink()
        assert each.read_text() == "x"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with ThreadPoolExecutor(1) as pool:
        content = pool.submit(pipe.read_text)
        filing.write_file(pipe, "x")
        assert content.result() == "x"
    assert pipe.is_fifo()
    filing.write_file(os.devnull, "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(NotSavedError, match="Too many levels of symbolic links"):
        filing.write_file(tmp_path / "circle", "x")
