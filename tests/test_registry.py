"""Methods and kinds of labels of one's own: found by their names, and loaded as themselves or not at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora.methods import BLoB
from bayeslora.tasks import LIKELIHOODS, Likelihood, Regression
from bayeslora.testing import LikelihoodContract


class Counts(Likelihood):
    """A count per example."""

    name = "counts"
    has_temperature = False

    @classmethod
    def fitting(cls, logits: Tensor, labels: Any, tokenizer: Any = None) -> "Counts":
        return cls()

    def select(self, logits: Tensor, batch: Any) -> Tensor:
        return logits.squeeze(-1)

    def distribution(self, logits: Tensor) -> dist.Distribution:
        return dist.Poisson(logits.exp())

    def check_labels(self, labels: Any) -> None:
        """Whatever they are."""

    def config(self) -> dict[str, Any]:
        return {}


class Louder(Regression):
    """A regression of somebody's own, under the name of the library's."""

    def distribution(self, logits: Tensor) -> dist.Distribution:
        return dist.Normal(logits, 3 * self.log_scale.exp())


class Quieter(BLoB):
    """A method of somebody's own, under the name of the library's."""


class TestCounts(LikelihoodContract):
    likelihood = Counts()
    num_outputs = (1,)


X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


def line() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1))


def fit(labels: Tensor, method: Any = "lora", **settings: Any) -> bayeslora.Posterior:
    return bayeslora.fit(line(), (X, labels), method, rank=1, epochs=1, progress=False, **settings)


@pytest.fixture
def registered() -> Iterator[None]:
    bayeslora.register(Counts)
    yield
    LIKELIHOODS.pop("counts", None)


@pytest.mark.usefixtures("registered")
def test_a_registered_likelihood_is_found_by_its_name_and_loads_again(tmp_path: Path) -> None:
    posterior = fit(torch.arange(24) % 4, likelihood="counts")
    assert type(posterior.program.likelihood) is Counts
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, line())
    assert type(loaded.program.likelihood) is Counts
    np.testing.assert_array_equal(loaded.predict(X).draws, posterior.predict(X).draws)


def test_an_unregistered_likelihood_is_named_and_can_be_given(tmp_path: Path) -> None:
    posterior = fit(torch.arange(24) % 4, likelihood=Counts())
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match=r"has the likelihood 'counts' \(class Counts\), .*bayeslora\.register first"):
        bayeslora.load(tmp_path, line())
    loaded = bayeslora.load(tmp_path, line(), likelihood=Counts)
    np.testing.assert_array_equal(loaded.predict(X).draws, posterior.predict(X).draws)


def test_a_subclass_of_a_registered_likelihood_does_not_load_as_its_parent(tmp_path: Path) -> None:
    posterior = fit(X[:, 0], likelihood=Louder())
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match=r"'regression' \(class Louder\), which is the name of Regression here"):
        bayeslora.load(tmp_path, line())
    assert type(bayeslora.load(tmp_path, line(), likelihood=Louder).program.likelihood) is Louder


def test_a_subclass_of_a_registered_method_does_not_load_as_its_parent(tmp_path: Path) -> None:
    posterior = fit(X[:, 0], Quieter())
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match=r"of method 'blob' \(class Quieter\), which is the name of BLoB here"):
        bayeslora.load(tmp_path, line())
    assert type(bayeslora.load(tmp_path, line(), method=Quieter()).method) is Quieter
    with pytest.raises(ValueError, match=r"is of .*Quieter.*, not of .*BLoB"):
        bayeslora.load(tmp_path, line(), method=BLoB())


def test_what_cannot_be_registered() -> None:
    class Nameless(Counts):
        """Has its parent's name alone."""

    class Taken(Counts):
        """Has a name of the library's."""

        name = "regression"

    with pytest.raises(TypeError, match="needs a class attribute `name` of its own, its key in LIKELIHOODS"):
        bayeslora.register(Nameless)
    with pytest.raises(ValueError, match="'regression' belongs to Regression"):
        bayeslora.register(Taken)
    with pytest.raises(TypeError, match="is not a method or a likelihood"):
        bayeslora.register(Likelihood)  # abstract
    with pytest.raises(TypeError, match="is not a method or a likelihood"):
        bayeslora.register(dict)
