"""What a stranger's posterior gets: an error that says what is wrong, or predictions, and nothing else."""

import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import bayeslora
from bayeslora import distilling, unpacking
from bayeslora.dials import CURVE, OUT_OF_FOLD, TuningResult
from tests.fixtures.make import CASES, FOLDER
from tests.strangers import further
from tests.strangers.mutants import MIXTURES, MUTATIONS, WHOLE, Mutation, in_component, sign, sign_record, tensors_file
from tests.test_data import tiny_tokenizer

SECONDS = 60
"""Within which loading ends, on the slowest of machines; what hangs never does."""

BASE_MEMORY = 64 * 2**20
"""Bytes that loading takes whatever the size of the posterior: the network's copy, modules imported on the way."""

OTHER = ("other", "not finite")
MAY_DIFFER = {
    **dict.fromkeys(("value", "values", "number", "missing_entry", "record_bytes"), OTHER),
    **dict.fromkeys(("signed_bytes", "tensors", "header"), OTHER),
    **dict.fromkeys(("names", "greedy"), (*OTHER, "cannot predict")),
    "tokenizers_settings": ("cannot predict",),
    "tokenizers_files": ("cannot predict",),
    **dict.fromkeys(("weights", "components"), ("other",)),
}
"""Mutations that may leave a posterior which is sound, and another one: of another kind of label, with other numbers,
or with a tokenizer that does not pad. Nobody can tell that it was changed, if its record has no digest or a new one."""


class Worker:
    """The process that loads, started again where it hangs or dies."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def load(self, folder: Path, case: str, pristine: Path, seconds: float = SECONDS) -> dict[str, Any]:
        """What loading a posterior came to, of which there is one that nobody has changed, too."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.strangers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=Path(__file__).parents[2],
                env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            )
            assert self.load(pristine, case, pristine, 600)["outcome"] == "same"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        task = {"folder": str(folder), "case": case, "pristine": str(pristine)}
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            self.end()
            return {"outcome": "hangs" if not ready else "ends the process"}
        return json.loads(line)

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.end()


def faults(result: dict[str, Any], folder: Path, size: int, may_be: Sequence[str]) -> list[str]:
    """What is wrong with what loading came to, in words; it may predict the same, or else what `may_be` says."""
    found = []
    if result["outcome"] == "error":
        message = result["message"]
        if result["type"] not in ("ValueError", "FileNotFoundError"):
            found.append("an error of another kind")
        if str(folder) not in message or "\n" in message or not message.endswith(".") or len(message) > 1500:
            found.append("a message that is not ours")
    elif result["outcome"] not in ("same", *may_be):
        found.append(result["outcome"])
    inside = os.path.realpath(folder)
    found += [f"opened {path}" for path in result.get("opened", []) if not path.startswith(inside)]
    found += result.get("done", [])
    if [*folder.parent.rglob("*-canary")]:
        found.append("ran code")
    if result.get("memory", 0) > 4 * size + BASE_MEMORY:
        found.append(f"took {result['memory'] >> 20} MiB for {size >> 10} KiB")
    return found


def mutation_of(name: str, signs: bool) -> Mutation:
    """The mutation of a name; `component/value` is that of a component. Records get new digests if it signs."""
    outer, _, inner = name.rpartition("/")
    own = (MUTATIONS | MIXTURES)[inner]
    own = signing(own) if signs else own
    whole = partial(in_component, mutate=own) if outer else own
    return signing(whole) if signs and outer else whole


def signing(mutate: Mutation) -> Mutation:
    """A mutation, and a digest of what it leaves."""

    def both(random: Random, folder: Path) -> None:
        mutate(random, folder)
        sign_record(folder)

    return both


def check(worker: Worker, pristine: Path, case: str, mutation: str, random: Random, signs: bool = True) -> str:
    """Load a mutant, and return what came of it."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "posterior"
        shutil.copytree(pristine, folder)
        mutation_of(mutation, signs)(random, folder)
        size = sum(path.lstat().st_size for path in folder.rglob("*"))
        result = worker.load(folder, case, pristine)
        found = faults(result, folder, size, MAY_DIFFER.get(mutation.rpartition("/")[2], ()) if signs else ())
    assert not found, f"{found}: {result}"
    return result["outcome"]


FUZZ = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "phases": (Phase.generate,),
    "suppress_health_check": [*HealthCheck],
}
MUTANTS = given(
    case=st.sampled_from(sorted(CASES)),
    mutation=st.sampled_from(sorted(MUTATIONS)),
    seed=st.integers(0, 2**32),
)


@settings(max_examples=80, **FUZZ)
@MUTANTS
def test_a_mutant_is_refused_or_predicts(worker: Worker, case: str, mutation: str, seed: int) -> None:
    check(worker, FOLDER / case, case, mutation, Random(seed))


@pytest.mark.slow
@settings(max_examples=2400, **FUZZ)
@MUTANTS
def test_many_mutants_are_refused_or_predict(worker: Worker, case: str, mutation: str, seed: int) -> None:
    check(worker, FOLDER / case, case, mutation, Random(seed))


FURTHER = [(case, mutation) for case in ("refit", "student") for mutation in MUTATIONS]
FURTHER += [(case, mutation) for case in ("mixture", "members") for mutation in [*MIXTURES] * 3 + [*WHOLE]]
FURTHER += [(case, f"component/{mutation}") for case in ("mixture", "members") for mutation in MUTATIONS]
FURTHER_MUTANTS = given(kind=st.sampled_from(FURTHER), seed=st.integers(0, 2**32), signs=st.booleans())


@pytest.fixture(scope="module")
def further_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("further")
    further.make(folder)
    return folder


@settings(max_examples=40, **FUZZ)
@FURTHER_MUTANTS
def test_a_mutant_of_a_mixture_or_student_is_refused_or_predicts(
    worker: Worker, further_kinds: Path, kind: tuple[str, str], seed: int, signs: bool
) -> None:
    case, mutation = kind
    check(worker, further_kinds / case, case, mutation, Random(seed), signs)


@pytest.mark.slow
@settings(max_examples=1200, **FUZZ)
@FURTHER_MUTANTS
def test_many_mutants_of_mixtures_and_students_are_refused_or_predict(
    worker: Worker, further_kinds: Path, kind: tuple[str, str], seed: int, signs: bool
) -> None:
    case, mutation = kind
    check(worker, further_kinds / case, case, mutation, Random(seed), signs)


def test_the_worker_sees_what_it_should(tmp_path: Path) -> None:
    script = """
import pickle, subprocess, sys
from pathlib import Path
from tests.strangers.worker import Watch
watch = Watch()
open(sys.argv[1]).close()
watch.on = True
open(sys.argv[1]).close()
pickle.loads(pickle.dumps(Path("a")))
subprocess.run(["true"])
exec(compile("a = 1", sys.argv[1], "exec"))
try:
    input()
except EOFError:
    pass
watch.on = False
print(watch.opened.count(sys.argv[1]), *sorted({done.split()[0] for done in watch.done}))
"""
    file = tmp_path / "file"
    file.touch()
    out = subprocess.run(
        [sys.executable, "-c", script, str(file.resolve())],
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        stdin=subprocess.DEVNULL,
    ).stdout
    assert {*out.split()} >= {"1", "builtins.input", "exec", "pickle.find_class", "subprocess.Popen"}


TUNED: dict[str, Any] = {"dial": "sigma", "rows": "out-of-fold", "chosen": 1.0, "temperature": 1.0, "digest": ""}
TUNED |= {"curve": [], "out_of_fold": []}


@pytest.mark.parametrize("fold", [-1.0, 0.5, 1000.0])
def test_folds_are_numbered(fold: float) -> None:
    columns = {f"curve/{name}": torch.zeros(1) for name in CURVE}
    columns |= {"out_of_fold/log_density": torch.zeros(2), "out_of_fold/fold": torch.tensor([0.0, 1.0])}
    record = TUNED | {"curve": list(CURVE), "out_of_fold": list(OUT_OF_FOLD)}
    assert TuningResult.restored(record, columns) is not None
    with pytest.raises(ValueError, match="holds other numbers than those of folds, 0 to 999"):
        TuningResult.restored(record, columns | {"out_of_fold/fold": torch.tensor([0.0, fold])})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": float("nan")}, "bayeslora.json: it holds NaN, which is not a number"),
        ({"temperature": float("inf")}, "bayeslora.json: temperature is inf: give a finite number, at most 1e+30"),
        ({"temperature": 0.0}, "bayeslora.json: temperature is 0.0: give a positive number"),
        (
            {"num_particles": 10**9},
            "bayeslora.json: num_particles is 1000000000: give a whole number of at least 1",
        ),
        ({"class_names": ["a", "b"]}, "bayeslora.json: class_names has 2 names, and there are not as many classes"),
        ({"history": ["step", "step"]}, "bayeslora.json: history: a column stands twice"),
        ({"history": ["step"]}, "is not in the record's history"),
        ({"tensors": "../posterior-0123456789abcdef.safetensors"}, "give posterior-<16 digits>.safetensors"),
        ({"network": None}, "bayeslora.json: network is None: give an object"),
        ({"tokenizer": True, "tokenizer_folder": "../tokenizer"}, "give tokenizer-<16 digits>"),
        ({"tokenizer": True, "tokenizer_folder": "tokenizer-0123456789abcdef"}, "there is no such folder of its own"),
        ({"tuning": TUNED | {"dial": "a b"}}, "bayeslora.json: tuning.dial is 'a b': give the name of a field"),
        ({"tuning": TUNED | {"digest": "x" * 16}}, "tuning.digest is 'xxxxxxxxxxxxxxxx': give 16 hexadecimal digits"),
    ],
)
def test_messages_name_the_file_the_entry_and_what_fits(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "posterior"
    shutil.copytree(FOLDER / "lora", folder)
    record = json.loads((folder / "bayeslora.json").read_text())
    (folder / "bayeslora.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=rf"{re.escape(message)}.*Save it again") as error:
        bayeslora.load(folder, CASES["lora"].network())
    assert str(error.value).startswith(f"{folder} holds a damaged posterior: ")


@pytest.mark.parametrize("alpha", [0, -4.0])
def test_no_layer_has_an_alpha_that_no_fit_takes(alpha: float, tmp_path: Path) -> None:
    folder = tmp_path / "posterior"
    shutil.copytree(FOLDER / "lora", folder)
    record = json.loads((folder / "bayeslora.json").read_text())
    name = next(iter(record["network"]["alpha"]))
    record["network"]["alpha"][name] = alpha
    (folder / "bayeslora.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"network\.alpha\['.*'\] is {alpha}: give a positive"):
        bayeslora.load(folder, CASES["lora"].network())


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("tokenizer_config.json", '"extra_special_tokens": ["a", "b", "c", "d", "e", "f"], ', "tokens' has 6 entries"),
        ("tokenizer.json", '"single_word": true, ' * 6, r"tokenizer\.json: it adds [\d,]+ tokens to its vocabulary"),
        ("added_tokens.json", '"a": 1, ', r"added_tokens\.json: it is larger than 0 MiB"),
    ],
)
def test_a_tokenizer_adds_no_more_tokens_than_can_be_added_soon(
    file: str, text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    unpacking._check_tokenizer(tmp_path)
    old = (tmp_path / file).read_text() if (tmp_path / file).exists() else "{}"
    (tmp_path / file).write_text(old.replace("{", "{" + text, 1))
    monkeypatch.setattr(unpacking, "MOST_ADDED", 5)
    monkeypatch.setattr(unpacking, "MOST_BYTES_OF_ADDED", 1)
    with pytest.raises(ValueError, match=message):
        unpacking._check_tokenizer(tmp_path)


def test_a_field_of_a_method_may_be_infinite(tmp_path: Path) -> None:
    x = torch.randn(16, 6, dtype=torch.float64)
    network = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    posterior = bayeslora.fit(network, (x, (x[:, 0] > 0).long()), df=float("inf"), rank=2, epochs=1, progress=False)
    posterior.save(tmp_path)
    assert "Infinity" in (tmp_path / "bayeslora.json").read_text()
    assert np.array_equal(bayeslora.load(tmp_path, network).predict(x, 3).draws, posterior.predict(x, 3).draws)


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "posterior"
    shutil.copytree(FOLDER / "blob", folder)
    state = load(tensors_file(folder).read_bytes())
    name = next(name for name, value in state.items() if name.startswith("guide/") and value.dim() == 3)
    state[name][0, 0, 0] = torch.nan
    sign(folder, save(state))
    with pytest.raises(ValueError, match=rf"'{re.escape(name)}' holds numbers that are not finite, or beyond belief"):
        bayeslora.load(folder, CASES["blob"].network())


@pytest.mark.parametrize("taken", [-1.0, 0.5, 1e6, 1.0])
def test_snapshots_are_as_many_as_there_is_room_for_at_every_site(taken: float, tmp_path: Path) -> None:
    folder = tmp_path / "posterior"
    shutil.copytree(FOLDER / "checkpoint_ensemble", folder)
    state = load(tensors_file(folder).read_bytes())
    name = next(name for name in state if name.endswith(".taken"))
    assert state[name] == 2
    state[name].fill_(taken)
    sign(folder, save(state))
    with pytest.raises(ValueError, match=r"snapshots: give 0 to 2, and as many at every site\."):
        bayeslora.load(folder, CASES["checkpoint_ensemble"].network())


@pytest.mark.parametrize(
    ("case", "tensor", "value", "message"),
    [
        ("swag", ".collected", -1.0, "a site has taken -1 snapshots: give 0 to 10000, and as many at every site"),
        ("swag", ".collected", 1.0, "a site has taken"),
        ("swag", ".square", -1.0, r"the tensor 'guide/\S+\.square' holds -1: give 0 or more"),
        ("tfb", ".sigma", -1.0, r"the tensor 'guide/\d+x\d+\.sigma' holds -1: give 0 or more"),
        ("laplace", ".precision", -1.0, r"the tensor 'guide/\S+\.precision' holds -1: give 0 or more"),
        ("laplace", ".row_values", -1.0, r"the tensor 'guide/\S+\.row_values' holds -1: give 0 or more"),
        ("laplace", "A.loc", 1e20, r"A\.loc' holds numbers that are not finite, or beyond belief: from 1e\+20"),
        ("laplace", ".column_basis", 1e10, "a curvature's column_basis has entries above 1: give eigenvectors"),
    ],
)
def test_state_that_no_fit_leaves_is_refused(
    case: str, tensor: str, value: float, message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "posterior"
    shutil.copytree(FOLDER / case, folder)
    state = load(tensors_file(folder).read_bytes())
    state[next(name for name in state if name.endswith(tensor))].fill_(value)
    sign(folder, save(state))
    with pytest.raises(ValueError, match=message):
        bayeslora.load(folder, CASES[case].network())


@pytest.mark.parametrize(
    ("method", "fields", "tensor"),
    [
        ("monteclora", {"noise_ratio": "auto"}, ".noise_ratio"),
        ("blob", {"prior_scale": "learn"}, ".prior_scale_A.value"),
        ("lora", {}, ".weight.deviation"),
    ],
)
def test_no_scale_is_negative(
    method: str, fields: dict[str, Any], tensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilling, "SPREAD_STEPS", 10)
    case = CASES["lora"]
    posterior = further.made(case, method, **fields)
    if method == "lora":
        posterior = posterior.distil(case.train, 2, epochs=1)
    posterior.save(tmp_path)
    state = load(tensors_file(tmp_path).read_bytes())
    name = next(name for name in state if name.endswith(tensor))
    state[name].fill_(-1.0)
    sign(tmp_path, save(state))
    with pytest.raises(ValueError, match=rf"the tensor '{re.escape(name)}' holds -1: give 0 or more"):
        bayeslora.load(tmp_path, case.network())


@pytest.mark.parametrize("aim", ["blobs", "secret", "blobs that are a link"])
def test_links_of_the_hubs_cache_lead_to_its_blobs_alone(aim: str, tmp_path: Path) -> None:
    folder, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    outside = tmp_path / "outside"
    shutil.copytree(FOLDER / "lora", folder)
    outside.mkdir()
    if aim == "blobs that are a link":
        blobs.symlink_to(outside)
    else:
        blobs.mkdir()
    for file in list(folder.iterdir()):
        target = (outside if aim == "secret" else blobs) / f"hash-{file.name}"
        file.rename(target)
        file.symlink_to(target)
    network = CASES["lora"].network()
    if aim == "blobs":
        assert bayeslora.load(folder, network).draw(1)
    else:
        with pytest.raises(ValueError, match=r"bayeslora\.json: it is a link, and not a file of its own"):
            bayeslora.load(folder, network)
