"""Two processes on one machine: equal parameters, noise of their own, and a fit that resumes where one was killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent

SCRIPT = """
import json, os, sys
from transformers import TrainingArguments
import bayeslora
from tests.helpers import tiny_bert, tokens

arguments = TrainingArguments(
    output_dir=sys.argv[1], num_train_epochs=2, per_device_train_batch_size=8, learning_rate=1e-3, use_cpu=True,
    ddp_backend="gloo", report_to=[], save_strategy="no", disable_tqdm=True,
)
model = tiny_bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
# The same examples for both: what differs between the processes' losses is the noise.
inputs, labels = tokens(1)
rows = ({name: value.expand(32, -1) for name, value in inputs.items()}, labels.expand(32))
posterior = bayeslora.fit(model, rows, noise_ratio=50.0, args=arguments)
result = {
    "parameters": [value.double().sum().item() for value in posterior.guide.state_dict().values()],
    "losses": posterior.history["nll"].tolist(),
}
with open(f"{sys.argv[1]}/rank-{os.environ['RANK']}.json", "w") as file:
    json.dump(result, file)
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
        return process.communicate(timeout=300)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # and with it, the two
        raise


def test_two_processes_share_parameters_and_not_noise(tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    process = start(script, tmp_path)
    said = ended(process)
    assert process.returncode == 0, said
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
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
