"""The contract of a kind of label."""

import copy
import json
import math
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from torch import Tensor

from bayeslora import metrics
from bayeslora.elbo import sites
from bayeslora.tasks import Likelihood
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.testing.small import FAILURE_RATE


class LikelihoodContract:
    """What every kind of label promises, tested with random logits in double precision.

    Attributes:
        likelihood: The likelihood to be tested.
        num_outputs: Shape of the network's outputs for one example, `(class,)`, or `(token, class)`.
        code: The function that `restored` needs with the record, if the likelihood `needs_code`.
    """

    likelihood: Likelihood
    num_outputs: tuple[int, ...] = (3,)
    code: Any = None
    size = 40

    def batch(self) -> dict[str, Tensor]:
        """Return the network's inputs, without labels."""
        return {}

    def logits(self, num_draws: int = 3, seed: int = 0) -> Tensor:
        """Return random logits, the part that the labels are about, `[draw, batch, …]`."""
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(num_draws, self.size, *self.num_outputs, generator=generator, dtype=torch.float64)
        return torch.stack([self.own.select(each, self.batch()) for each in logits])

    @property
    def own(self) -> Likelihood:
        """The likelihood in double precision."""
        return copy.deepcopy(self.likelihood).double()

    def labels(self) -> Tensor:
        """Return the labels of every example, as they would be given to `fit`."""
        torch.manual_seed(1)
        return self.own.distribution(self.logits(1)[0]).sample()

    def prediction(self, logits: Tensor, temperature: float = 1.0) -> tuple[BasePrediction, np.ndarray]:
        """Return the prediction of logits `[draw, batch, …]`, and its labels."""
        collector = self.own.collector(with_labels=True)
        batch = {**self.batch(), "labels": self.labels()}
        collector.add(np.arange(self.size), batch, iter([logits]))
        outputs = collector.result()
        return self.own.predict(outputs, temperature), outputs.labels

    def test_it_has_a_name_and_says_what_it_is(self) -> None:
        assert any(isinstance(vars(cls).get("name"), str) for cls in type(self.likelihood).__mro__)
        assert type(self.likelihood).__doc__

    def test_the_record_makes_it_again(self) -> None:
        config = json.loads(json.dumps(self.likelihood.config()))
        again = type(self.likelihood).restored(config, self.code).double()
        again.load_state_dict(self.own.state_dict())
        logits, labels = self.logits(), self.labels()
        torch.testing.assert_close(again.log_prob(logits, labels), self.own.log_prob(logits, labels), rtol=0, atol=0)

    def test_there_is_one_log_likelihood_per_example_and_draw(self) -> None:
        with pyro.validation_enabled(False):
            log_prob = self.own.log_prob(self.logits(), self.labels())
        assert log_prob.shape == (3, self.size)
        assert bool(log_prob.isfinite().all())

    def test_the_observation_is_their_average(self) -> None:
        logits, labels, own = self.logits(1)[0], self.labels(), self.own
        with pyro.validation_enabled(False):
            trace = poutine.trace(own.observe).get_trace(logits, labels)
            assert [name for name, site in sites(trace) if site["is_observed"]] == ["labels"]
            torch.testing.assert_close(trace.log_prob_sum(), own.log_prob(logits, labels).mean(), rtol=1e-12, atol=0)

    def test_gradients_are_finite(self) -> None:
        logits, own = self.logits().requires_grad_(), self.own
        with pyro.validation_enabled(False):
            own.log_prob(logits, self.labels()).sum().backward()
        assert logits.grad is not None
        assert bool(logits.grad.isfinite().all())
        for name, parameter in own.named_parameters():
            assert not parameter.requires_grad or (parameter.grad is not None and bool(parameter.grad.any())), name

    def test_it_accepts_its_own_labels(self) -> None:
        self.own.check_labels(self.labels().numpy())

    def test_densities_sum_to_one(self) -> None:
        # E[q(y) / p(y)] = 1 over y from p, for any q that is nowhere positive where p is 0.
        p, q = self.own.distribution(self.logits(1)[0]), self.own.distribution(self.logits(1)[0] * 0.9)
        torch.manual_seed(2)
        labels = p.sample(torch.Size([4000]))
        ratio = (q.log_prob(labels) - p.log_prob(labels)).exp()
        error = ratio.std(0) / len(ratio) ** 0.5
        z = (ratio.mean(0) - 1).abs() / error.clamp(min=1e-12)
        width = float(torch.distributions.Normal(0, 1).icdf(torch.tensor(1 - FAILURE_RATE / 2 / self.size).double()))
        assert float(z.detach().max()) < width

    def test_a_prediction_is_no_distance_from_itself(self) -> None:
        torch.manual_seed(3)
        assert self.own.divergence(self.logits(), self.logits()) == 0
        assert self.own.divergence(self.logits(), self.logits(seed=7)) > 0

    def test_uncertainties_add_up(self) -> None:
        for num_draws in (1, 3):
            prediction, _ = self.prediction(self.logits(num_draws))
            count = len(prediction)
            assert len(prediction.draws) == num_draws
            assert len(prediction.predicted) == len(prediction.to_pandas()) == count
            for values in (prediction.entropy, prediction.aleatoric, prediction.epistemic):
                assert values.shape == (count,)
                assert np.isfinite(values).all()
            assert (prediction.epistemic >= 0).all()
            np.testing.assert_allclose(prediction.entropy, prediction.aleatoric + prediction.epistemic, atol=1e-9)
            if num_draws == 1:
                np.testing.assert_allclose(prediction.epistemic, 0, atol=1e-9)
            assert prediction.sample(seed=0).shape[:2] == (num_draws, count)

    def test_the_predictions_log_likelihood_is_the_losses(self) -> None:
        prediction, labels = self.prediction(self.logits())
        with torch.no_grad(), pyro.validation_enabled(False):
            expected = self.own.log_prob(self.logits(), self.labels())
        np.testing.assert_allclose(prediction.log_likelihood(labels), expected.numpy(), rtol=1e-6, atol=1e-9)

    def test_scores_have_the_nll_of_the_mixture(self) -> None:
        prediction, labels = self.prediction(self.logits())
        scores = prediction.scores(labels)
        assert all(isinstance(value, float) for value in scores.values())
        nll = metrics.mixture_nll(prediction.log_likelihood(labels))
        assert math.isclose(scores["nll"], nll, rel_tol=1e-9)

    def test_a_temperature_divides_the_logits(self) -> None:
        if not self.likelihood.has_temperature:
            return
        plain, labels = self.prediction(self.logits())
        same, _ = self.prediction(self.logits(), temperature=1.0)
        flat, _ = self.prediction(self.logits(), temperature=50.0)
        np.testing.assert_allclose(same.log_likelihood(labels), plain.log_likelihood(labels), rtol=1e-12)
        assert (flat.aleatoric >= plain.aleatoric - 1e-9).all()
