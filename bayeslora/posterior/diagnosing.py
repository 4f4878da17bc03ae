"""Whether a posterior can be trusted."""

from typing import TYPE_CHECKING, Any

from bayeslora import diagnostics
from bayeslora.data import Weight
from bayeslora.isolation import public
from bayeslora.posterior.state import State
from bayeslora.types import Approximation, BatchSize, Data, NumDraws, Seed
from bayeslora.weights import ClassWeights

if TYPE_CHECKING:
    import arviz as az


class Diagnosing(State):
    """Shows draws to arviz."""

    @public()
    def to_arviz(
        self,
        data: Data | None = None,
        num_draws: NumDraws = 100,
        *,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        raw: bool = False,
        per_token: bool = False,
        prior: bool = True,
    ) -> "az.InferenceData":
        """Return draws as arviz groups, as one chain: predictions are those of `predict` with the same arguments.

        - `posterior`: small, meaningful numbers per layer, `<name>_<stack>`: `delta_norm`, ‖ΔW‖_F; `noise_to_signal`,
          the norm of its difference from the centre over that of the centre; and the method's own (of MonteCLoRA
          `weights`, π, and `mean_variance`, tr Σ / r). Each stack has dimensions of its own, with module names as
          coordinates.
        - `prior`: the same at draws from the prior, where random sites have a proper one; points without one are where
          the posterior has them.
        - `sample_stats`: ln p and ln q of the random sites, where the guide has densities; with data also the
          log-likelihood of all of it, `lp`, the tempered log-density of sites and labels, and `elbo` of each draw; all
          rows count once.
        - with data, `log_likelihood` of each example, `posterior_predictive` and `prior_predictive`, labels drawn from
          the predictions, and `observed_data`.

        Where it comes from is in the attributes. `az.loo` means something only where `khat` says that the draws are
        those of a posterior; `loo` corrects for what is missing.

        Args:
            data: Labelled data, on which the network runs once a draw, and once a draw from the prior; None for what
                needs no data.
            num_draws: Draws of the weights; a finite posterior has its members, each once. A single draw stands twice
                beside data, with a warning.
            approximation: As in `predict`.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            raw: Whether to add every site as drawn, which is large, and slow to summarise.
            per_token: Whether `log_likelihood` has a term per token, where labels are tokens, instead of one per
                example. `az.loo` then leaves out tokens, which are not independent of the rest of their example.
            prior: Whether to draw from the prior, too.
        """
        settings: dict[str, Any] = {"raw": raw, "per_token": per_token, "prior": prior}
        return diagnostics.single(self, data, num_draws, approximation, seed, batch_size, **settings)

    @public()
    def khat(
        self,
        data: Data,
        num_draws: NumDraws = 1000,
        *,
        weight: Weight | None = None,
        class_weights: ClassWeights | None = None,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
    ) -> "diagnostics.KHat":
        r"""Compare the guide with the posterior that it claims to approximate, and say in words how near it is.

        With $z$ the random sites and T the method's temperature, draws of q have the weights
        $w = p(z)\, p(y \mid z)^{1/T} / q(z)$, given all points. If q is the posterior they are equal; the heavier their
        tail, the more of the posterior q misses. k-hat is the shape of that tail; `width` says how many times too wide
        q is, which no tail shows. A thousand numbers that are each a little off have a large k-hat together. Where the
        largest weights have no tail, as those of masks, there is none; the verdict goes by the draws' worth then.

        Args:
            data: The training data, on which the network runs once a draw, and once more for each of several stacks.
            num_draws: Draws of the guide.
            weight: How much rows counted in the fit, as it took it: each row's ln p(y | z) has its weight, over the
                mean of all.
            class_weights: How much classes counted in the fit, in the same way.
            approximation: How logits are computed: as in `predict`, which for Laplace is linearised.
            seed: Seed of the draws.
            batch_size: Examples per batch.

        Raises:
            ValueError: If the method claims no posterior (`claims`), or has no densities; or if rows had weights in the
                fit, and none are given.

        References:
            Yao et al. (2018), [Yes, but Did It Work?](https://arxiv.org/abs/1802.02538).
        """
        given = (data, (weight, class_weights), num_draws, approximation, seed, batch_size)
        return diagnostics.khat(diagnostics.Weighed(self, *given))

    @public()
    def loo(
        self,
        data: Data,
        num_draws: NumDraws = 1000,
        *,
        weight: Weight | None = None,
        class_weights: ClassWeights | None = None,
        approximation: Approximation | None = None,
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
    ) -> "diagnostics.LeaveOneOut":
        r"""Estimate how well each training example is predicted by the posterior of the others.

        The draws are weighted from the guide to the posterior without example i,
        $w_i = p(z) \prod_{j \ne i} p(y_j \mid z)^{1/T} / q(z)$, with smoothed tails. What is scored is the prediction,
        with the temperature of `calibrate`. It warns where weights cannot reach. Weights of rows are part of what is
        left out with them; every row counts once in what is returned.

        Arguments are those of `khat`.

        Raises:
            ValueError: If the method claims no posterior; the message says what to use instead.

        References:
            Magnusson et al. (2019), [Bayesian leave-one-out cross-validation for large
            data](https://arxiv.org/abs/1904.10679).
        """
        given = (data, (weight, class_weights), num_draws, approximation, seed, batch_size)
        return diagnostics.leave_one_out(diagnostics.Weighed(self, *given))
