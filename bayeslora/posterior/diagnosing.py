"""Whether a posterior can be trusted."""

from typing import TYPE_CHECKING

from bayeslora import diagnostics
from bayeslora.isolation import public
from bayeslora.posterior.state import State
from bayeslora.prediction import labelled
from bayeslora.types import BatchSize, Data, NumDraws, Seed

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
        seed: Seed | None = 0,
        batch_size: BatchSize = 64,
        raw: bool = False,
        per_token: bool = False,
    ) -> "az.InferenceData":
        """Return draws as arviz groups: `posterior`, and, with data, predictions, log-likelihoods and labels.

        The posterior group holds small, meaningful numbers per layer: `delta_norm`, ‖ΔW‖_F; `noise_to_signal`, the norm
        of its difference from the centre over that of the centre; and the method's own (of MonteCLoRA `weights`, π, and
        `mean_variance`, tr Σ / r). Each stack has dimensions of its own, with module names as coordinates.

        Args:
            data: Labelled data, on which the network runs once a draw; None for the posterior group alone.
            num_draws: Draws of the weights.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            raw: Whether to add every site as drawn, which is large, and slow to summarise.
            per_token: Whether `log_likelihood` has a term per token, where labels are tokens, instead of one per
                example. `az.loo` then leaves out tokens, which are not independent of the rest of their example.
        """
        sites = self.draw(num_draws, seed=seed)
        if data is None:
            return diagnostics.to_arviz(self.program, sites, raw=raw)
        found, labels = labelled(self.program, self._source(data), sites, seed, batch_size, "draws")
        observed = diagnostics.Observed.of(self._prediction(found), labels, seed, per_token)
        return diagnostics.to_arviz(self.program, sites, observed, raw)
