"""Cross-fitting: rows are predicted by members that have not seen them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainerCallback

import bayeslora
from bayeslora import ArgumentError, Mixture, Posterior, storage
from bayeslora.folds import folds_of
from bayeslora.grouping import same_inputs
from bayeslora.posterior.gathering import Together
from tests.tasks.cases import named


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


X = torch.randn(31, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()


def fit(x: Tensor = X, method: str = "lora", folds: int = 3, **settings: Any) -> Posterior:
    settings = {"rank": 2, "epochs": 2, "batch_size": 8, "learning_rate": 3e-2, "progress": False} | settings
    return bayeslora.fit(network(), (x, Y), method, folds=folds, **settings)


@pytest.fixture(scope="module")
def members() -> Mixture:
    posterior = fit()
    assert isinstance(posterior, Mixture)
    return posterior


def learned(posterior: Posterior) -> list[dict[str, Tensor]]:
    parts = posterior.components if isinstance(posterior, Mixture) else (posterior,)
    return [storage.state(part.program) for part in parts]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("folds", [2, 3, 5, 10])
def test_folds_and_the_classes_in_them_differ_by_one_row_at_most(folds: int) -> None:
    labels = np.repeat([0, 1, 2], [40, 13, 7])
    fold = folds_of(labels, np.arange(60), folds, 0)
    for part in (fold, *(fold[labels == label] for label in range(3))):
        counts = np.bincount(part, minlength=folds)
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(fold, folds_of(labels, np.arange(60), folds, 1))
    counts = np.bincount(folds_of(np.linspace(0, 1, 60), np.arange(60), folds, 0))
    assert counts.max() - counts.min() <= 1


def test_equal_inputs_stay_together() -> None:
    twice: Any = [{"x": row, "ids": [int(number) % 5, 1], "labels": 0} for number, row in enumerate([*X[:7], *X[:7]])]
    assert same_inputs(twice).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
    for number, row in enumerate(twice):
        row["ids"] = [number % 7, 1]
    same = same_inputs(twice)
    assert same.tolist() == [*range(7)] * 2
    fold = folds_of(np.arange(14) % 2, same, 3, 0)
    assert (fold[:7] == fold[7:]).all()
    assert set(fold) == {0, 1, 2}
    with pytest.raises(ArgumentError, match="folds=3: equal inputs stay in one fold, and data has 2 different ones"):
        bayeslora.fit(network(), (X[:2].repeat(6, 1), Y[:12]), "lora", folds=3, rank=2, progress=False)


def test_each_row_is_predicted_by_the_member_of_its_fold(members: Mixture) -> None:
    tuning = members.tuning
    assert tuning is not None
    assert tuning.fold is not None
    assert tuning.log_density is not None
    for row in (0, 7, 30):
        part = members.components[int(tuning.fold[row])]._at_temperature(tuning.chosen)
        expected = part.predict(X[row : row + 1]).probs[0, Y[row]]
        assert tuning.log_density[row] == pytest.approx(np.log(expected), rel=1e-9)
    assert tuning.elpd == pytest.approx(tuning.log_density.mean())
    assert tuning.elpd_se == pytest.approx(tuning.log_density.std(ddof=1) / 31**0.5)


def test_a_member_does_not_see_its_fold(members: Mixture) -> None:
    assert members.tuning is not None
    assert members.tuning.fold is not None
    fold = members.tuning.fold
    changed = X.clone()
    changed[int(np.flatnonzero(fold == 1)[0])] += 1
    found = [same(*pair) for pair in zip(learned(members), learned(fit(x=changed)), strict=True)]
    assert found == [False, True, False]


def test_the_temperature_is_the_best_out_of_fold(members: Mixture) -> None:
    assert members.tuning is not None
    curve = members.tuning.to_pandas()
    assert curve["nll"].idxmin() == curve["value"].sub(members.tuning.chosen).abs().idxmin()
    assert -members.tuning.elpd == pytest.approx(curve["nll"].min())  # type: ignore[operator]
    assert curve["difference"].min() == 0
    assert members.tuning.temperature == members.temperature <= members.tuning.chosen


def test_a_mixture_is_as_sharp_as_its_members(members: Mixture) -> None:
    from bayeslora.folds import OutOfFold, mixture_temperature

    source = members._source((X, Y))
    fold = np.arange(31) % 3
    parts = [OutOfFold(each, None, Y.numpy(), fold) for each in members.components]
    found = mixture_temperature(parts, source, fold, 0.7, 0)
    assert found < 0.7
    mixed, own = [], []
    for number in range(3):
        others = bayeslora.mixture([each for k, each in enumerate(members.components) if k != number])
        rows = X[fold == number]
        mixed.append(others._at_temperature(found).predict(rows).entropy)
        own.append([each._at_temperature(0.7).predict(rows).entropy for each in others.components])
    assert np.concatenate(mixed).mean() == pytest.approx(np.concatenate(own, axis=1).mean(), rel=1e-6)
    assert mixture_temperature(parts[:2], source, fold, 0.7, 0) == 0.7
    same_member = [parts[0]] * 3
    assert mixture_temperature(same_member, source, fold, 0.7, 0) == pytest.approx(0.7)


def test_a_refit_sees_all_rows_at_the_temperature_found() -> None:
    posterior = fit(refit=True)
    assert not isinstance(posterior, Mixture)
    assert posterior.network.stacks.num_examples == 31
    assert posterior.tuning is not None
    assert posterior.temperature == posterior.tuning.chosen == posterior.tuning.temperature
    assert not isinstance(fit(method="monteclora", folds=2, epochs=0), Mixture)


@pytest.mark.parametrize("name", ["Bert-regression", "Bert-multilabel", "Bert-ordinal", "Bert-token", "GPT2-causal"])
def test_every_kind_of_label_can_be_cross_fitted(name: str) -> None:
    case = named(name) if name != "GPT2-causal" else None
    if case is None:
        from tests.tasks.cases import CASES

        case = next(each for each in CASES if type(each.likelihood).__name__ == "CausalLM")
    settings: dict[str, Any] = {"folds": 2, "refit": False, "epochs": 0, "progress": False}
    settings["likelihood"] = copy.deepcopy(case.likelihood)
    posterior = bayeslora.fit(case.make(), case.data, **settings)
    assert posterior.tuning is not None
    assert posterior.tuning.log_density is not None
    assert len(posterior.tuning.log_density) == len(case.data[1])
    assert "nll" in posterior.evaluate(case.data, 2)


# Interrupted


class Stop(Exception):
    """What a test stops a fit with."""


class StopAt(TrainerCallback):
    """Raises an exception before a step of the second member."""

    def __init__(self, step: int):
        self.step, self.fits = step, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.fits += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if self.fits == 2 and state.global_step == self.step:
            raise Stop


def test_a_cross_fit_that_was_stopped_goes_on_to_the_same_bits(members: Mixture, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        fit(output_dir=tmp_path, callbacks=[StopAt(4)])
    assert not (tmp_path / "bayeslora.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fold-0", "fold-1", "several.json"]
    posterior = fit(output_dir=tmp_path, resume=True)
    assert all(map(same, learned(posterior), learned(members)))
    loaded = bayeslora.load(tmp_path, network())
    assert isinstance(loaded, Mixture)
    assert all(map(same, learned(loaded), learned(members)))
    assert repr(loaded.tuning) == repr(members.tuning)
    assert loaded.temperature == members.temperature
    again = fit(output_dir=tmp_path, resume=True)
    assert all(map(same, learned(again), learned(members)))


# Refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folds": 16}, "folds=16: data has 31 examples, enough for 15 folds"),
        ({"folds": None, "refit": True}, "refit=True is for folds=…"),
        ({"method": "tfb", "init": "trained", "post_hoc": True}, "folds=3: with post_hoc=True the adapters"),
        ({"data": "loader"}, "folds=3 divides rows by number, and data is a DataLoader"),
        ({"data": "stream", "num_examples": 31}, "folds=3 divides rows by number, and data is a stream"),
    ],
)
def test_what_cannot_be_divided_is_refused(settings: dict[str, Any], message: str) -> None:
    settings = {"folds": 3, "epochs": 1, "progress": False, "rank": 2, "method": "lora"} | settings
    model, rows = network(), TensorDataset(X, Y)
    if settings.get("init"):
        settings["init"] = bayeslora.fit(model, (X, Y), "lora", epochs=0, rank=2, progress=False)
    data: Any = (X, Y)
    if settings.pop("data", None) == "loader":
        data = DataLoader(rows, 4)
    elif "num_examples" in settings:

        class Rows(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
            def __iter__(self) -> Any:
                return iter(rows)

        data = Rows()
    with pytest.raises(ArgumentError, match=message.replace("(", r"\(")):
        bayeslora.fit(model, data, **settings)


def test_the_result_shows_and_draws_itself(members: Mixture) -> None:
    from bayeslora import plots

    assert members.tuning is not None
    text = repr(members.tuning)
    assert "dial  temperature = " in text
    assert "elpd" in text
    assert "3 × lora" in repr(members)
    figure = plots.dial(members.tuning)
    assert figure.axes[0].get_xlabel() == "temperature"
    assert isinstance(members._run(members._source((X, Y)), 3, 0, 64, False, None), Together)
