"""Two processes on one machine: equal parameters, noise of their own, and a fit that resumes where one was killed."""

import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from safetensors.torch import load_file
from transformers import TrainingArguments

import bayeslora
from tests.faults import processes
from tests.helpers import tiny_bert, tokens

ROOT = Path(__file__).parent.parent


def fitted(folder: Path, rank: int, port: int) -> dict[str, list[float]]:
    """Fit as one of two processes, and return what it learned."""
    for state in (AcceleratorState, PartialState):
        state._reset_state()  # the tests' process runs alone
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}})
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        use_cpu=True,
        ddp_backend="gloo",
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    assert arguments.world_size == 2
    model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    # The same examples for both: what differs between the processes' losses is the noise.
    inputs, labels = tokens(1)
    rows = ({name: value.expand(32, -1) for name, value in inputs.items()}, labels.expand(32))
    posterior = bayeslora.fit(model, rows, noise_ratio=50.0, args=arguments)
    return {
        "parameters": [value.double().sum().item() for value in posterior.guide.state_dict().values()],
        "losses": posterior.history["nll"].tolist(),
    }


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not available.")
def test_two_processes_share_parameters_and_not_noise(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    two = [processes.fork(partial(fitted, tmp_path, rank, port)) for rank in (0, 1)]
    first, second = (processes.result_of(*each) for each in two)
    assert first["parameters"] == second["parameters"]
    assert len(first["losses"]) == 4
    assert all(a != b for a, b in zip(first["losses"][1:], second["losses"][1:], strict=True))


KILLED = """
import os, signal, sys
from transformers import TrainerCallback, TrainingArguments
import bayeslora
from tests.helpers import tiny_bert, tokens

class Killed(TrainerCallback):
    def on_step_begin(self, args, state, control, **others):
        if os.environ["RANK"] == sys.argv[2] and state.global_step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

arguments = TrainingArguments(
    output_dir=sys.argv[1], num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
    ddp_backend="gloo", report_to=[], save_strategy="steps", save_steps=2, disable_tqdm=True,
)
posterior = bayeslora.fit(tiny_bert(), tokens(24), args=arguments, callbacks=[Killed()], resume=True)
if os.environ["RANK"] == "1":  # beside what rank 0 saves
    posterior.save(f"{sys.argv[1]}/other")
"""


def start(script: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start two processes, which find each other."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*run, *map(str, (script, *arguments))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for processes to end, and return what they printed."""
    try:
        return process.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # and with it, the two
        raise


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_fit_of_two_processes_resumes_to_the_same_bits_where_one_was_killed(rank: int, tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(KILLED)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    processes = [start(script, whole, "none"), start(script, killed, rank)]
    said = [ended(process) for process in processes]  # the other rank does not wait for ever
    assert processes[0].returncode == 0, said[0]
    assert processes[1].returncode != 0
    assert "SIGKILL" in said[1]
    assert [path.name for path in killed.glob("checkpoint-*")] == ["checkpoint-2"]

    # The rank that was left may have had the time to save the last good state.
    process = start(script, killed, "none")
    again = ended(process)
    assert process.returncode == 0, again
    one, other, of_rank_1 = (
        load_file(next(folder.glob("posterior-*.safetensors"))) for folder in (whole, killed, killed / "other")
    )
    assert one.keys() == other.keys()
    assert not [name for name, value in one.items() if not torch.equal(value, other[name])]
    learned = [name for name in one if not name.startswith("history/")]  # losses are of each process's own rows
    assert not [name for name in learned if not torch.equal(of_rank_1[name], other[name])]
    assert one["history/step"].tolist() == [1, 2, 3, 4, 5, 6]
