"""Saves that are killed, run out of disk, or have a reader beside them: the old posterior or the new one, whole."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayeslora
from bayeslora import filing, storage
from bayeslora.failing import NotSavedError
from bayeslora.posterior import Posterior
from tests.faults import processes
from tests.test_data import tiny_tokenizer

OLD, NEW = "old", "new"


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def made(seed: int, word: str | None) -> Posterior:
    """A posterior, with a tokenizer that knows the word."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    posterior = bayeslora.fit(network(), (x, (x[:, 0] > 0).long()), "lora", rank=1, epochs=1, seed=seed, progress=False)
    tokenizer = tiny_tokenizer() if word else None
    if tokenizer:
        tokenizer.add_tokens([word])
    return Posterior(posterior.program, tokenizer=tokenizer, temperature=1.0 + seed)


@pytest.fixture(scope="module")
def posteriors() -> dict[str, Posterior]:
    return {OLD: made(1, OLD), NEW: made(2, NEW)}


def loaded(folder: Path) -> str | None:
    """Which posterior a folder holds, all parts of which agree; None if it holds none."""
    try:
        posterior = bayeslora.load(folder, network())
    except FileNotFoundError as error:
        assert "holds no posterior" in str(error)  # noqa: PT017
        return None
    name = {2.0: OLD, 3.0: NEW}[posterior.temperature]
    expected = EXPECTED[name]
    if posterior.tokenizer is not None:
        assert name in posterior.tokenizer.get_vocab()
    assert (posterior.tokenizer is None) == (expected.tokenizer is None)
    ours, theirs = posterior.guide.state_dict(), expected.guide.state_dict()
    assert all(torch.equal(ours[part], theirs[part]) for part in theirs)
    return name


EXPECTED: dict[str, Posterior] = {}


@pytest.fixture(autouse=True)
def expected(posteriors: dict[str, Posterior]) -> None:
    EXPECTED.update(posteriors)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def assert_nothing_left_over(folder: Path, posterior: Posterior) -> None:
    """A folder holds what a save into an empty one writes, and nothing else."""
    posterior.save(folder)
    fresh = folder.with_name("fresh")
    posterior.save(fresh)
    # Earlier versions' folder has no hash in its name: whether it is left over or the user's own cannot be known.
    assert files(folder) - {"tokenizer"} == files(fresh)
    shutil.rmtree(fresh)


def as_before(folder: Path) -> None:
    """Turn a saved posterior into one of an earlier version, whose tokenizer is in a folder of a fixed name."""
    record = json.loads((folder / storage.MANIFEST).read_text())
    (folder / record.pop("tokenizer_folder")).rename(folder / "tokenizer")
    del record["digest"]
    (folder / storage.MANIFEST).write_text(json.dumps(record))


def start_empty(folder: Path, posteriors: dict[str, Posterior]) -> None:
    folder.mkdir()


def start_saved(folder: Path, posteriors: dict[str, Posterior]) -> None:
    posteriors[OLD].save(folder)


def start_saved_before(folder: Path, posteriors: dict[str, Posterior]) -> None:
    posteriors[OLD].save(folder)
    as_before(folder)


BEFORE = "a posterior of an earlier version"
STARTS: dict[str, Callable[[Path, dict[str, Posterior]], None]] = {
    "an empty folder": start_empty,
    "a posterior": start_saved,
    BEFORE: start_saved_before,
}


@contextlib.contextmanager
def copies(start: Path) -> Iterator[Callable[[], Path]]:
    """Makes copies of a folder, one after another."""

    def fresh() -> Path:
        copy = start.with_name("copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(start, copy)
        return copy

    yield fresh


@pytest.mark.parametrize("start", ["an empty folder", "a posterior", pytest.param(BEFORE, marks=pytest.mark.slow)])
def test_a_save_killed_at_any_operation_leaves_the_old_posterior_or_the_new(
    posteriors: dict[str, Posterior], tmp_path: Path, start: str
) -> None:
    STARTS[start](tmp_path / "start", posteriors)
    before = loaded(tmp_path / "start")
    found = []
    with copies(tmp_path / "start") as fresh:
        folder = fresh()
        count = processes.count_operations(lambda: posteriors[NEW].save(folder))
        assert count > 15
        for operation in range(count):
            folder = fresh()
            processes.kill_at(partial(posteriors[NEW].save, folder), operation)
            found.append(loaded(folder))
            assert found[-1] in (before, NEW)
            assert_nothing_left_over(folder, posteriors[OLD])
    # One rename decides: before it the old posterior is there, after it the new one.
    assert found == sorted(found, key=lambda name: name == NEW)
    assert {before, NEW} == set(found)


@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_a_mixture_whose_save_is_killed_is_there_whole_or_not_at_all(
    posteriors: dict[str, Posterior], tmp_path: Path, every: int
) -> None:
    mixture = bayeslora.mixture([posteriors[OLD], posteriors[NEW]], [3, 1])
    posteriors[OLD].save(tmp_path / "start")
    found = []
    with copies(tmp_path / "start") as fresh:
        folder = fresh()
        count = processes.count_operations(lambda: mixture.save(folder))
        assert count > 40
        for operation in {*range(0, count, every), *range(count - 8, count)}:
            folder = fresh()
            processes.kill_at(partial(mixture.save, folder), operation)
            read = bayeslora.load(folder, network())
            found.append(isinstance(read, bayeslora.Mixture))
            if isinstance(read, bayeslora.Mixture):
                assert [each.temperature for each in read.components] == [2.0, 3.0]
                assert read.weights.tolist() == [0.75, 0.25]
            else:
                assert loaded(folder) == OLD
            assert_nothing_left_over(folder, posteriors[OLD])
    assert {*found} == {False, True}


def test_a_save_killed_in_the_middle_of_any_file_leaves_the_old_posterior(
    posteriors: dict[str, Posterior], tmp_path: Path
) -> None:
    posteriors[OLD].save(tmp_path / "start")
    size = max(path.stat().st_size for path in (tmp_path / "start").rglob("*") if path.is_file())
    with copies(tmp_path / "start") as fresh:
        for limit in range(0, size - 64, size // 12):
            folder = fresh()
            assert processes.kill_at_size(partial(posteriors[NEW].save, folder), limit)
            assert loaded(folder) == OLD
            assert_nothing_left_over(folder, posteriors[OLD])


@pytest.mark.slow
def test_a_save_killed_at_any_time_leaves_the_old_posterior_or_the_new(
    posteriors: dict[str, Posterior], tmp_path: Path
) -> None:
    posteriors[OLD].save(tmp_path / "start")
    chance = random.Random(0)
    with copies(tmp_path / "start") as fresh:
        folder = fresh()
        start = time.perf_counter()
        processes.run(lambda: posteriors[NEW].save(folder))
        lasts = time.perf_counter() - start
        kills = 0
        while kills < 200:
            folder = fresh()
            kills += processes.kill_after(partial(posteriors[NEW].save, folder), chance.uniform(0, lasts))
            assert loaded(folder) in (OLD, NEW)
            assert_nothing_left_over(folder, posteriors[OLD])


@pytest.mark.parametrize("loads", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_reader_beside_a_writer_reads_one_or_the_other(
    posteriors: dict[str, Posterior], tmp_path: Path, loads: int
) -> None:
    posteriors[OLD].save(tmp_path)

    def write() -> None:
        while True:
            posteriors[NEW].save(tmp_path)
            posteriors[OLD].save(tmp_path)

    pid, pipe = processes.fork(write)
    try:
        found = [loaded(tmp_path) for _ in range(loads)]
    finally:
        os.kill(pid, signal.SIGKILL)
        assert processes.result_of(pid, pipe) is None
    assert set(found) == {OLD, NEW}


def test_two_writers_leave_one_posterior_whole(posteriors: dict[str, Posterior], tmp_path: Path) -> None:
    def write(name: str) -> None:
        for _ in range(25):
            posteriors[name].save(tmp_path)

    started = [processes.fork(lambda name=name: write(name)) for name in (OLD, NEW)]
    for pid, pipe in started:
        processes.result_of(pid, pipe)
    assert loaded(tmp_path) in (OLD, NEW)
    assert_nothing_left_over(tmp_path, posteriors[OLD])


def test_a_reader_of_a_damaged_posterior_does_not_wait_for_another(
    posteriors: dict[str, Posterior], tmp_path: Path
) -> None:
    posteriors[OLD].save(tmp_path)
    shutil.rmtree(next(tmp_path.glob("tokenizer-*")))
    with pytest.raises(ValueError, match=r"tokenizer-[0-9a-f]{16}: there is no such folder of its own\. Save it again"):
        bayeslora.load(tmp_path, network())


def test_a_record_names_files_of_its_own_folder(posteriors: dict[str, Posterior], tmp_path: Path) -> None:
    posteriors[OLD].save(tmp_path)
    manifest = tmp_path / storage.MANIFEST
    manifest.write_text(manifest.read_text().replace('"tokenizer-', '"../tokenizer-'))
    with pytest.raises(ValueError, match=r"tokenizer_folder is '\.\./tokenizer-\w+': give tokenizer-<16 digits>"):
        bayeslora.load(tmp_path, network())


# A full disk


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """What writes more gets an error, as on a full disk; Python ignores the signal that would kill it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_for_any_file_is_one_sentence(posteriors: dict[str, Posterior], tmp_path: Path) -> None:
    posteriors[OLD].save(tmp_path)
    before = files(tmp_path)
    size = max(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    named = set()
    for limit in range(0, size - 64, size // 12):

        def save(limit: int = limit) -> Any:
            with no_file_larger_than(limit), pytest.raises(NotSavedError) as error:
                posteriors[NEW].save(tmp_path)
            return str(error.value)

        message = processes.run(save)
        assert message.startswith(f"{tmp_path}/")
        assert "could not be written: " in message
        assert message.endswith(f"Nothing was saved; a posterior that was in {tmp_path} before is as it was.")
        named.add(Path(message.partition(" could not")[0]).name.partition("-")[0])
        assert files(tmp_path) == before
        assert loaded(tmp_path) == OLD
    assert {"posterior", "tokenizer"} <= {name.strip(".").partition(".")[0] for name in named}


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_save_that_fails_at_any_operation_leaves_one_posterior_and_says_which(
    posteriors: dict[str, Posterior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str, after: int
) -> None:
    posteriors[OLD]._save(tmp_path, {"README.md": b"old"})
    done, real = [], getattr(os, operation)

    def failing(*args: Any) -> Any:
        done.append(args)
        if len(done) > after:
            raise OSError(errno.EIO, "Input/output error")
        return real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(os, operation, failing)
        try:
            posteriors[NEW]._save(tmp_path, {"README.md": b"new"})
            message = "saved"
        except NotSavedError as error:
            message = str(error)
    found = loaded(tmp_path)
    assert found == (OLD if "Nothing was saved" in message else NEW), message
    assert not (tmp_path / "README.md").exists() or (tmp_path / "README.md").read_text() == found


def test_a_record_that_cannot_be_read_is_not_taken_for_none(
    posteriors: dict[str, Posterior], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posteriors[OLD].save(tmp_path)

    def stale(path: Path) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", stale)
        patched.setattr(os, "fsync", stale)
        with pytest.raises(NotSavedError, match="Stale file handle"):
            posteriors[NEW].save(tmp_path)
    assert loaded(tmp_path) == OLD
    for attribute in ("lstat", "read_bytes"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, attribute, stale)
            with pytest.raises(ValueError, match=r"cannot be read: .*Stale file handle\.$"):
                bayeslora.load(tmp_path, network())


def test_a_folder_that_cannot_be_made_is_one_sentence(posteriors: dict[str, Posterior], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotSavedError, match=r"/file/out could not be written: Not a directory\. Nothing"):
        posteriors[OLD].save(tmp_path / "file" / "out")


def test_the_tokenizers_of_earlier_versions_are_still_read_and_replaced(
    posteriors: dict[str, Posterior], tmp_path: Path
) -> None:
    start_saved_before(tmp_path / "out", posteriors)
    assert loaded(tmp_path / "out") == OLD
    (tmp_path / "out" / "tokenizer").rename(tmp_path / "kept")
    assert bayeslora.load(tmp_path / "out", network()).tokenizer is None  # as earlier versions did
    (tmp_path / "kept").rename(tmp_path / "out" / "tokenizer")
    posteriors[NEW].save(tmp_path / "out")
    assert loaded(tmp_path / "out") == NEW
    assert "tokenizer" not in files(tmp_path / "out")


def test_folders_of_the_users_own_are_left_alone(posteriors: dict[str, Posterior], tmp_path: Path) -> None:
    own = {"tokenizer", "tokenizer-v2", ".git", "posterior-notes"}
    for name in own:
        (tmp_path / name).mkdir()
    posteriors[OLD].save(tmp_path)
    posteriors[NEW].save(tmp_path)
    assert own < files(tmp_path)


def exported(folder: Path, draws: bool) -> list[float] | None:
    """The first number of each adapter that a reader finds in a folder; None if it is told that there is none."""
    from bayeslora.interop.peft_files import read_folder
    from bayeslora.serving import draws_in

    try:
        parts = draws_in(folder)[0] if draws else [folder]
        read = [read_folder(part) for part in parts]
    except FileNotFoundError:
        return None
    return [config["lora_alpha"] for config, state in read if state]


@pytest.mark.parametrize(
    ("draws", "every"),
    [(2, 19), pytest.param(None, 1, marks=pytest.mark.slow), pytest.param(2, 1, marks=pytest.mark.slow)],
)
def test_an_export_killed_at_any_operation_leaves_the_old_adapter_the_new_or_none(
    tmp_path: Path, every: int, draws: int | None
) -> None:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    settings: dict[str, Any] = {"rank": 1, "epochs": 0, "progress": False}
    old, new = (bayeslora.fit(network(), (x, (x[:, 0] > 0).long()), "blob", alpha=a, **settings) for a in (1, 3))
    old.export_peft(tmp_path / "start", draws)
    (tmp_path / "start" / "own.txt").write_text("the user's")
    expected = [[1] * (draws or 1), [3] * (draws or 1)]
    with copies(tmp_path / "start") as fresh:
        folder = fresh()
        count = processes.count_operations(lambda: new.export_peft(folder, draws))
        for operation in {*range(0, count, every), count - 1}:
            folder = fresh()
            processes.kill_at(partial(new.export_peft, folder, draws), operation)
            assert exported(folder, bool(draws)) in (None, *expected)
            new.export_peft(folder, draws)
            assert exported(folder, bool(draws)) == expected[1]
            assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
            assert (folder / "own.txt").read_text() == "the user's"


def test_a_file_killed_while_it_is_written_is_removed_by_the_next(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    filing.write_file(page, "old")
    count = processes.count_operations(lambda: filing.write_file(page, "new"))
    for operation in range(count):
        processes.kill_at(lambda: filing.write_file(page, "new"), operation)
        assert page.read_text() in ("old", "new")
        filing.write_file(page, "old")
        assert files(tmp_path) == {"page.html"}


def test_a_save_beside_a_pipe_of_the_records_name_ends(posteriors: dict[str, Posterior], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / storage.MANIFEST)
    posteriors[NEW].save(tmp_path)
    assert loaded(tmp_path) == NEW
