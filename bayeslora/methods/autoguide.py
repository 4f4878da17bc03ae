"""Any prior over a stack's factors, with any of Pyro's automatic guides."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyro
import pyro.infer.autoguide
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_mean, init_to_median, init_to_value
from torch import nn

from bayeslora import guides
from bayeslora.adapters import Stack
from bayeslora.dials import Dial
from bayeslora.methods import written
from bayeslora.methods.fields import NonNegative, Positive, PositiveOrAuto
from bayeslora.methods.spreads import LearnedSpreads
from bayeslora.natural import Gaussian
from bayeslora.types import FactorTuple, TraceSite


@dataclass(frozen=True)
class AutoGuide(LearnedSpreads):
    r"""A prior of your own over the factors, with one of Pyro's automatic guides.

    For each stack, with $z$ all its sites and $\theta = \theta(z)$ its factors,

    $$p(z) \text{ as written}, \qquad q(z) = T_\#\, N(m, C),$$

    with $T$ the map from the reals to the sites' supports, and $C$ as the guide has it: diagonal for `"AutoNormal"`
    and `"AutoDiagonalNormal"`, full for `"AutoMultivariateNormal"`, low rank plus diagonal for
    `"AutoLowRankMultivariateNormal"`. The last two correlate the numbers of a stack; stacks are independent. The
    loss per example is the NLL at a draw plus temperature / n times $\ln q(z) - \ln p(z)$ at it, in nats.

    Args:
        prior_program: A Pyro program of one stack. It samples sites named `<stack>.<name>`, within `stack.layers` if
            they belong to layers, and returns the stack's factors. None for independent $N(0, \sigma_p^2)$ entries.
        autoguide: The name of a class in `pyro.infer.autoguide`, such a class, or any function that takes the prior, a
            program without arguments, and `init_loc_fn`, and returns a guide of that kind.
        prior_scale: $\sigma_p$ of the default prior, in units of the weights; or `"learn"`, for each factor of each
            layer by empirical Bayes, the root of its numbers' mean square under the guide, after every step.
        init_scale: Starting standard deviation of every number, for guides that have one.
        temperature: Multiplies the divergence; or `"auto"`, that of several fits which predicts new rows best.
        spread_rate: ρ, peak rate of the natural steps of the scales of $C$ (`natural`): in a step, a precision goes
            this part of the way to what prior and batch ask for. None for 20 / steps of the fit, and no more than ½.
            Correlations are left to the Trainer's optimiser.
        guide_learning_rate: Learning rate of all parameters of $C$ with the Trainer's optimiser, instead of that.

    The guide starts at the base network: sites that are named after factors start where the adapters do, others at the
    mean of their prior. The centre is its median.

    Raises:
        ValueError: If no autoguide has that name, if it has no median, if a field is not positive, or if the prior
            program has sites of other stacks, discrete ones, or parameters.

    References:
        Kucukelbir et al. (2017), [Automatic Differentiation Variational Inference](https://arxiv.org/abs/1603.00788);
        Bingham et al. (2018), [Pyro](https://arxiv.org/abs/1810.09538).
    """

    name = "autoguide"
    dial = Dial("temperature", (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1))
    prior_program: Callable[[Stack], FactorTuple] | str | None = None
    autoguide: Callable[..., Any] | str = "AutoNormal"
    usual_scale = 0.2
    prior_scale: Positive | Literal["learn"] = 0.2
    init_scale: Positive = 0.01
    temperature: PositiveOrAuto = 0.003
    spread_rate: Positive | None = None
    guide_learning_rate: NonNegative | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.prior_program, str):
            raise ValueError(f"prior_program={self.prior_program!r} is the name of a function: {PASS_AGAIN}")
        if isinstance(self.autoguide, str) and not _is_pyros(self.autoguide):
            names = ", ".join(name for name in pyro.infer.autoguide.__all__ if name.endswith("Normal"))
            raise ValueError(f"autoguide={self.autoguide!r} is not one of Pyro's ({names}, …): {PASS_AGAIN}")

    def record(self) -> dict[str, Any]:
        return {name: _name(value) if callable(value) else value for name, value in super().record().items()}

    def stack_prior(self, stack: Stack) -> FactorTuple:
        with poutine.scale(scale=self.temperature / stack.num_examples):
            return self.sites(stack)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return StackAutoGuide(self, stack)

    def sites(self, stack: Stack) -> FactorTuple:
        """Run the unscaled prior of one stack, and return its factors."""
        if callable(self.prior_program):
            return self.prior_program(stack)
        with stack.layers:
            factors = self.sample_normals(stack, stack.shapes)
        return stack.family.factors(**factors)

    def make(self, stack: Stack, values: dict[str, torch.Tensor]) -> Any:
        """Make an automatic guide of one stack that starts at the given sites."""
        make = getattr(pyro.infer.autoguide, self.autoguide) if isinstance(self.autoguide, str) else self.autoguide
        written.check_guide(make)
        settings: dict[str, Any] = {"init_loc_fn": init_to_value(values=values, fallback=finite_mean)}
        if "init_scale" in inspect.signature(make).parameters:
            settings["init_scale"] = float(self.init_scale)
        learned = [stack.site(name) for name in self.scales_of_prior(stack, *stack.shapes)]
        guide = make(poutine.block(partial(self.sites, stack), hide=learned), **settings)
        # The name of its parameters and joint sample; by the class alone, those of two stacks would coincide.
        guide._pyro_name = f"{type(guide).__name__}.{stack.name}"
        return guide


def finite_mean(site: TraceSite) -> torch.Tensor:
    """Return the mean of a site's prior, or, as of a half-Cauchy distribution, its median."""
    mean: torch.Tensor = init_to_mean(site)
    return mean if bool(mean.isfinite().all()) else init_to_median(site)


PASS_AGAIN = "pass the function itself; for a saved posterior, bayeslora.load(folder, model, method=AutoGuide(…))."


class StackAutoGuide(nn.Module):
    """One of Pyro's automatic guides, over one stack."""

    def __init__(self, method: AutoGuide, stack: Stack):
        super().__init__()
        self.method = method
        self.stack = stack
        self.sites = nn.ModuleDict({} if method.prior_program else method.scales_of_prior(stack, *stack.shapes))
        if callable(method.prior_program):
            written.check(stack, partial(method.prior_program, stack))
        self.start(stack.initial())

    def forward(self) -> None:
        scale = self.method.temperature / self.stack.num_examples
        # Without this setting, its parameters would live in Pyro's global store.
        with pyro.settings.context(module_local_params=True), poutine.scale(scale=scale):
            if self.sites:
                # Pyro's guide has a plate of the same name, and a trace only one.
                with poutine.block(hide=[self.stack.site("layers")]), self.stack.layers:
                    for name, site in self.sites.items():
                        pyro.sample(self.stack.site(name), site())
            with written.OwnWeights():
                self.auto()

    def gaussians(self) -> Iterator[Gaussian]:
        """Yield the scales of Pyro's guide."""
        yield from guides.gaussians_of_pyros(self.auto, self.method.temperature / self.stack.num_examples)

    def squares(self) -> dict[str, torch.Tensor]:
        """Return the mean squares E[z²] of the factors, `[layer, …]`."""
        auto: Any = self.auto
        sites = {name: self.stack.site(name) for name in self.stack.shapes}
        with pyro.settings.context(module_local_params=True):
            if isinstance(auto, AutoContinuous):
                m, s = (
                    {site["name"]: value for site, value in auto._unpack_latent(each)} for each in auto._loc_scale()
                )
                return {name: m[site].square() + s[site].square() for name, site in sites.items()}
            pairs = {name: auto._get_loc_and_scale(site) for name, site in sites.items()}
        return {name: m.square() + s.square() for name, (m, s) in pairs.items()}

    def start(self, factors: FactorTuple) -> None:
        """Start from trained factors: they become the medians of the sites with their names."""
        like = next(self.parameters(), torch.zeros(()))
        values = {
            # On the meta device there is nothing to bring over.
            self.stack.site(name): value.detach() if value.is_meta else value.detach().cpu()
            for name, value in factors._asdict().items()
        }
        with pyro.settings.context(module_local_params=True):
            auto = self.method.make(self.stack, values)
            auto()  # creates its parameters on the first call
            try:
                auto.median()
            except NotImplementedError:  # Pyro's way to say that a guide has no median
                raise ValueError(f"{type(auto).__name__} has no median, which the centre needs: use another.") from None
        for parameter in auto.parameters():
            # A mean that a plate has expanded is one row of memory for all layers: an optimiser would write beyond it.
            parameter.data = parameter.data.contiguous()
        self.auto = auto.to(like.device, like.dtype)
        if self.sites and not hasattr(auto, "_loc_scale") and not hasattr(auto, "_get_loc_and_scale"):
            raise ValueError(f"prior_scale='learn': {type(auto).__name__} is not a Normal; give a number.")


def _is_pyros(name: str) -> bool:
    """Whether a name is that of one of Pyro's automatic guides, and of nothing else there."""
    cls = getattr(pyro.infer.autoguide, name, None)
    return isinstance(cls, type) and issubclass(cls, pyro.infer.autoguide.AutoGuide)


def _name(function: Callable[..., Any]) -> str:
    """Return the name of a function or class for a saved posterior; Pyro's own have no module in it."""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    is_pyros = getattr(pyro.infer.autoguide, name, None) is function
    return name if is_pyros else f"{getattr(function, '__module__', '')}.{name}"
