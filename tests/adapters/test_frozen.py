"""A base model that is changed after a fit: its posterior says so, unless the change does not reach it."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import bayeslora
from bayeslora.adapters.frozen import BaseChangedError, FrozenWeights

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(8) % 3


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def fitted(model: nn.Module) -> bayeslora.Posterior:
    return bayeslora.fit(model, (X, Y), "blob", rank=2, epochs=0, progress=False)


def probs(posterior: bayeslora.Posterior) -> np.ndarray:
    return posterior.predict(X, num_draws=2).probs


def trained(model: nn.Module) -> None:
    nn.functional.cross_entropy(model(X), Y).backward()
    torch.optim.AdamW(model.parameters(), lr=1e-6).step()


def through_data(model: Any) -> None:
    model[2].weight.data += 1e-6


def loaded(model: nn.Module) -> None:
    model.load_state_dict({name: value * 1.001 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [trained, through_data, loaded])
def test_a_base_that_has_changed_is_an_error_until_it_is_put_back(
    change: Callable[[nn.Module], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    posterior, before = fitted(model), copy.deepcopy(model.state_dict())
    expected = probs(posterior)
    change(model)
    uses: list[Callable[[], Any]] = [
        lambda: posterior.predict(X, num_draws=2),
        lambda: posterior.evaluate((X, Y), num_draws=2),
        lambda: posterior.save(tmp_path / "posterior"),
        posterior.merge,
        lambda: probs(copy.deepcopy(posterior)),
    ]
    for use in uses:
        with pytest.raises(BaseChangedError, match=r"of 4 parameters have changed since, the first is '[02]\.weight'"):
            use()
    assert not (tmp_path / "posterior").exists()
    model.load_state_dict(before)
    np.testing.assert_array_equal(probs(posterior), expected)


def test_what_was_written_to_elsewhere_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = network()
    posterior = fitted(model)
    with torch.no_grad():
        model[2].weight[5, 4] += 1  # none of those that are looked at
    for _ in range(2):
        probs(posterior)
    (record,) = [record for record in caplog.records if "written to" in record.message]
    assert record.levelno == logging.WARNING
    assert "1 of 4 parameters have been written to since, the first is '2.weight'" in record.message


def test_a_change_that_is_taken_back_to_rounding_is_none(caplog: pytest.LogCaptureFixture) -> None:
    model: Any = network()
    posterior = fitted(model)
    weight = model[2].weight.data
    added = torch.full_like(weight, 0.3)
    weight += added
    weight -= added
    assert bool((weight != network()[2].weight).any())
    probs(posterior)
    assert "written to" not in caplog.text


HARMLESS: dict[str, Callable[[Any], object]] = {
    "half precision": lambda model: model.half(),
    "another device": lambda model: model.to("meta"),
    "gradients": lambda model: model.requires_grad_(False),
    "training mode": lambda model: model.train(),
    "new layers": lambda model: model.__setitem__(2, nn.Linear(6, 6)),
    "the head": lambda model: model[4].weight.data.add_(1),
}


@pytest.mark.parametrize("change", HARMLESS)
def test_what_does_not_reach_the_posterior_is_nothing(change: str, caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    posterior = fitted(model)
    expected = probs(posterior)
    HARMLESS[change](model)
    np.testing.assert_array_equal(probs(posterior), expected)
    assert "written to" not in caplog.text


def test_a_posterior_may_be_moved_itself(caplog: pytest.LogCaptureFixture) -> None:
    posterior = fitted(network().float())
    data = X.float()
    expected = posterior.predict(data, num_draws=2).probs
    for dtype in (torch.float64, torch.float32):
        posterior.program.to(dtype)
        found = posterior.predict(data.to(dtype), num_draws=2).probs
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert "written to" not in caplog.text


class Writing(TrainerCallback):
    def __init__(self, write: Callable[[], object]):
        self.write = write

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.write()


def in_a_callback(write: Callable[[], object]) -> dict[str, Any]:
    return {"callbacks": [Writing(write)]}


def in_the_metrics(write: Callable[[], object]) -> dict[str, Any]:
    return {"validation": (X, Y), "compute_metrics": lambda _: write() or {"score": 1.0}}


@pytest.mark.parametrize("where", [in_a_callback, in_the_metrics])
@pytest.mark.parametrize("change", [trained, through_data])
def test_a_base_that_is_changed_during_a_fit_is_an_error(where: Any, change: Callable[[Any], object]) -> None:
    model = network()
    with pytest.raises(BaseChangedError, match=r"of 4 parameters have changed since.*during the fit.*a callback"):
        bayeslora.fit(model, (X, Y), "lora", rank=1, epochs=1, progress=False, **where(lambda: change(model)))


class Renormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(40, 6, max_norm=1.0), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(self.table(ids))).mean(1))


class Clamped(Renormed):
    def __init__(self) -> None:
        super().__init__()
        self.table.max_norm = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.table.weight.clamp_(-0.5, 0.5)
        return super().forward(ids)


@pytest.mark.parametrize("kind", [Renormed, Clamped])
def test_what_a_network_writes_itself_is_left_out(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model, ids = kind(), torch.arange(40).view(8, 5)
    others = [bayeslora.fit(model, (ids[:2], Y[:2]), "blob", rank=2, epochs=0, progress=False) for _ in range(2)]
    others[0].predict(ids[:2], num_draws=2)
    posterior = bayeslora.fit(model, (ids[:4], Y[:4]), "blob", rank=2, epochs=1, progress=False)
    for each in (posterior, copy.deepcopy(posterior), *others):
        for rows in (ids[:4], ids, ids[2:]):
            each.predict(rows, num_draws=2)
    if kind is Renormed:  # also in passes that are not a posterior's
        last = bayeslora.fit(model, (ids[:2], Y[:2]), "blob", rank=2, epochs=0, progress=False)
        with torch.no_grad():
            model.table.weight[5:] *= 9
        model(ids)
        last.predict(ids, num_draws=2)
    assert "written to" not in caplog.text
    model.body.weight.data += 1
    with pytest.raises(BaseChangedError, match=r"1 of 2 parameters have changed since, the first is 'body.weight'"):
        posterior.predict(ids, num_draws=2)


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += 1
        return operation(*args, **(kwargs or {}))


def test_looking_takes_one_operation_for_each_parameter() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(100)))
    network = bayeslora.adapters.AdaptedNetwork(model, head=())
    weights = FrozenWeights(network)
    with Operations() as looked:
        weights.check(network)  # its time, a millisecond, is measured by benchmarks/checks_cost.py
    assert len(weights.parameters) == 200
    assert 200 <= looked.count <= 205
