"""Labels from the posterior's own prediction pass; labels of another kind fail, and the verdict says in what."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bayeslora import Posterior, diagnostics, tasks
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from tests.tasks.cases import CASES, Case


def posterior_of(likelihood: tasks.Likelihood, d_out: int, method: str = "blob") -> Posterior:
    torch.manual_seed(0)
    network = AdaptedNetwork(nn.Sequential(nn.Linear(3, d_out).double()), rank=1, num_examples=200, head=[])
    return Posterior(Program(network, make_method(method), likelihood.double()).eval())


ONE_EACH = list({type(case.likelihood): case for case in reversed(CASES)}.values())
"""A case of each likelihood."""

KINDS: dict[str, tuple[tasks.Likelihood, int, Any]] = {
    "classes": (tasks.Classification(3), 3, lambda labels: np.zeros_like(labels)),
    "several labels": (tasks.MultiLabel(3), 3, lambda labels: np.ones_like(labels)),
    "numbers": (tasks.Regression(), 1, lambda labels: 3 * labels),
}


@pytest.mark.parametrize(("kind", "method"), [*((kind, "blob") for kind in KINDS), ("classes", "lora")])
def test_labels_of_the_prediction_pass_and_others_do_not(kind: str, method: str) -> None:
    likelihood, d_out, changed = KINDS[kind]
    posterior = posterior_of(likelihood, d_out, method)
    x = torch.randn(200, 3, dtype=torch.float64)
    labels = posterior.predict(x, num_draws=1).sample(5)[0]
    own = diagnostics.predictive_check(posterior, (x, labels), 20)
    assert own.good, own.verdict
    assert own.verdict.startswith("The labels look like")
    other = diagnostics.predictive_check(posterior, (x, changed(labels)), 20)
    assert not other.good
    assert other.unusual[0].name in other.verdict
    assert set(other.to_pandas().columns) == {"observed", "low", "high", "p"}


def test_the_statistics_are_what_their_names_say() -> None:
    x = torch.randn(50, 3, dtype=torch.float64)
    y = x[:, 0].numpy()
    found = diagnostics.predictive_check(posterior_of(tasks.Regression(), 1), (x, y), 20)
    observed = {each.name: each.observed for each in found.statistics}
    assert observed == pytest.approx({
        "mean": y.mean(), "sd": y.std(),
        **{f"{q} quantile": np.quantile(y, float(q[:-1]) / 100) for q in ("5%", "50%", "95%")},
    })  # fmt: skip


@pytest.mark.parametrize("case", ONE_EACH, ids=lambda case: case.name)
def test_every_kind_of_label_has_statistics(case: Case) -> None:
    likelihood = case.likelihood
    network = AdaptedNetwork(case.make(), rank=1, num_examples=len(case.data[1]))
    posterior = Posterior(Program(network, make_method("lora"), likelihood).eval())
    found = diagnostics.predictive_check(posterior, case.data, 2)
    assert found.statistics
    for each in found.statistics:
        assert 0 < each.p <= 1
        assert np.isfinite([each.observed, each.low, each.high]).all()
