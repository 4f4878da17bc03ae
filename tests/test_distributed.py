"""Two processes on one machine: they end with equal parameters, and draw noise of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


def test_two_processes_share_parameters_and_not_noise(tmp_path: Path) -> None:
    script = tmp_path / "fit.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first["parameters"] == second["parameters"]
    assert len(first["losses"]) == 4
    assert all(a != b for a, b in zip(first["losses"][1:], second["losses"][1:], strict=True))
