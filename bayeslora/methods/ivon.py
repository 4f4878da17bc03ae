"""IVON: a mean-field Gaussian over both factors, learned by variational online Newton."""

from dataclasses import dataclass
from typing import Literal

from pyro import poutine
from torch import nn

from bayeslora import guides, natural
from bayeslora.adapters import Stack
from bayeslora.dials import Dial
from bayeslora.fitted import FittedProgram
from bayeslora.methods.fields import Positive, PositiveOrAuto, Share, Unbounded
from bayeslora.methods.spreads import LearnedSpreads
from bayeslora.types import FactorTuple


@dataclass(frozen=True)
class IVON(LearnedSpreads):
    r"""A Gaussian over every entry of `A` and `B`, whose means and spreads take variational online Newton steps.

    With $\theta$ the numbers of both factors of all layers, the NLL per example $\ell$, n examples, and $\lambda = n /
    \mathrm{temperature}$,

    $$p(\theta) = N(0, \sigma_p^2), \qquad q(\theta) = N(m, \sigma^2), \quad
      \sigma^2 = \frac{1}{\lambda (h + \delta)}, \quad \delta = \frac{1}{\lambda \sigma_p^2}.$$

    The loss per example is $\ell$ at a draw plus $KL(q \,\Vert\, p) / \lambda$, in nats. From the gradient $\hat g$ of
    $\ell$ at a draw θ, a step makes, entry by entry,

    $$\begin{aligned}
    \hat h &= \hat g\, (\theta - m) / \sigma^2, \\
    h &\leftarrow h + \rho (\hat h - h) + \tfrac12 \rho^2 (\hat h - h)^2 / (h + \delta), \\
    g &\leftarrow \beta g + (1 - \beta) \hat g, \\
    m &\leftarrow m - \eta \big( g / (1 - \beta^t) + \delta m \big) / (h + \delta).
    \end{aligned}$$

    h averages the curvature of the NLL, so that a number that the data say much about has a small spread. What is
    stored is ln σ. Curvature that a few batches tell is rough, and a Newton step by it is often far too long: where the
    root mean square of the steps of a factor, in the layers of one shape, exceeds the learning rate of `fit`, they are
    shortened to it. Means then move as far as Adam would move them. The task head is a point, stepped by the Trainer's
    optimiser.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights; or `"learn"`, for each factor of each layer
            by empirical Bayes, $\sigma_p^2 = \overline{m^2 + \sigma^2}$ after every step.
        init_scale: Starting value of σ, in units of the weights.
        temperature: Multiplies the KL; or `"auto"`, that of several fits which predicts rows not trained on best.
        mean_rate: η at its peak: the part of a Newton step that a mean makes, before steps are shortened.
        spread_rate: ρ at its peak, $1 - \beta_2$ in the paper; None for 20 / steps of the fit, and no more than ½. Both
            decay with the learning rate.
        momentum: β, of the gradient.
        clip: The largest Newton step of an entry, before η, in units of the weights; `inf` for any.

    Raises:
        ValueError: If a field is out of its range.

    Differs from the paper: steps of means are no longer than the learning rate; ρ and η follow its schedule, ρ by the
    length of the fit; η is a part of a Newton step, not multiplied by the $h + \delta$ of the start.

    References:
        Shen et al. (2024), [IVON](https://arxiv.org/abs/2402.17641);
        Cong et al. (2024), [IVON-LoRA](https://arxiv.org/abs/2411.04421).
    """

    name = "ivon"
    usual_scale = 0.2
    dial = Dial("temperature", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1))
    prior_scale: Positive | Literal["learn"] = 0.2
    init_scale: Positive = 0.01
    temperature: PositiveOrAuto = 0.003
    mean_rate: Positive = 0.1
    spread_rate: Positive | None = None
    momentum: Share = 0.9
    clip: Positive | Unbounded = 1.0

    def stack_prior(self, stack: Stack) -> FactorTuple:
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            factors = self.sample_normals(stack, stack.shapes)
        return stack.family.factors(**factors)

    def stack_guide(self, stack: Stack) -> nn.Module:
        starts = stack.initial()._asdict()
        return guides.Sites(
            stack,
            scale=self.temperature / stack.num_examples,
            **self.scales_of_prior(stack, *stack.shapes),
            **{name: guides.Normal(value, self.init_scale) for name, value in starts.items()},
        )

    def optimizer_groups(self, program: FittedProgram, learning_rate: float) -> list[natural.Group]:
        # Where the prior is an earlier guide, or its scale changes, its pull is part of the gradient with the momentum.
        fixed = self.prior_scale if program.prior is None else "learn"
        precision = 0.0 if fixed == "learn" else fixed**-2
        normals, rate = guides.gaussians(program.guide), self.rate_of_spreads(program)
        return natural.of_both(normals, rate, self.mean_rate, self.momentum, precision, self.clip, learning_rate)
