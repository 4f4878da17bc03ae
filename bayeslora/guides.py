"""Guides: modules that hold all learned adapter state and sample the sites of their prior.

The name of a parameter in another space says which. Parameters for the spread of a distribution, as opposed to its
location, take no weight decay, and a method may give them their own learning rate: `spreads` finds them.
"""

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from torch import Tensor, nn

from bayeslora.adapters import Stack
from bayeslora.adapters.families import kaiming as kaiming
from bayeslora.distributions import Enumerated
from bayeslora.natural import Form, Gaussian
from bayeslora.types import FactorsByStack, FactorTuple

SPREADS = ("log_", "sqrt_", "scale", "cov_")
"""Prefixes of the names of spreads, in modules that do not say which of their parameters are spreads."""

PYROS_SPREADS = ("scale", "cov_")
"""Prefixes of the names of spreads, or of the modules that hold them, in Pyro's automatic guides."""


def spreads(guide: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a guide that describe the spread of a distribution, not its location.

    A module with a method `spreads` says which of its parameters they are. For Pyro's automatic guides they are known.
    In any other module they are its own parameters whose names begin with one of `SPREADS`; the names of sites and
    stacks do not count.
    """
    if callable(declared := getattr(guide, "spreads", None)):
        yield from declared()
    elif isinstance(guide, AutoGuide) and not isinstance(guide, AutoGuideList):
        yield from (parameter for name, parameter in guide.named_parameters() if name.startswith(PYROS_SPREADS))
    else:
        own = guide.named_parameters(recurse=False)
        yield from (parameter for name, parameter in own if name.startswith(SPREADS))
        for child in guide.children():
            yield from spreads(child)


def gaussians(guide: nn.Module) -> Iterator[Gaussian]:
    """Yield the independent Normals of a guide, for natural steps: a module with a method `gaussians` says which."""
    if callable(declared := getattr(guide, "gaussians", None)):
        yield from declared()
    else:
        for child in guide.children():
            yield from gaussians(child)


def gaussians_of_pyros(guide: nn.Module, weight: float) -> Iterator[Gaussian]:
    """Yield the scales of one of Pyro's automatic guides.

    Those of a guide with correlations scale the rows of its covariance: along them, steps are only nearly natural.

    Args:
        guide: The guide, or a list of several.
        weight: Weight of its entropy in the loss.
    """
    for part in guide.modules():
        if getattr(part, "scale_constraint", None) is constraints.softplus_positive:
            for name, parameter in part.named_parameters():
                if name.startswith(("scales.", "scale_unconstrained")):
                    yield Gaussian(parameter, "softplus", weight)


class Site(nn.Module, abc.ABC):
    """The guide's distribution of one site of a stack, its parameters `[layer, …]`.

    Attributes:
        form: For independent Normals with means `loc`, how their standard deviations follow from the one spread.
    """

    form: ClassVar[Form | None] = None

    @abc.abstractmethod
    def forward(self) -> dist.Distribution:
        """Return the distribution, batch shape `[layer]`."""

    def spreads(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that describe its spread: by default, those whose names begin with one of `SPREADS`."""
        return (parameter for name, parameter in self.named_parameters() if name.startswith(SPREADS))

    def snapshots_taken(self) -> tuple[float, int] | None:
        """Return how many snapshots it says it has taken, and the most it may have; None if it takes none."""
        return None

    def check_loaded(self) -> None:
        """Raise a ValueError if its state, which was loaded, is one that no fit leaves; by default, any may be."""


class Point(Site):
    """A learned point.

    Args:
        value: Its starting value, `[layer, …]`.
    """

    def __init__(self, value: Tensor):
        super().__init__()
        self.loc = nn.Parameter(value)

    def forward(self) -> dist.Distribution:
        return dist.Delta(self.loc, event_dim=self.loc.dim() - 1)


class Normal(Site):
    """Independent Normal entries with learned mean and standard deviation.

    Args:
        loc: Starting mean, `[layer, …]`.
        scale: Starting standard deviation, a number or `[layer, …]`.
    """

    form = "log"

    def __init__(self, loc: Tensor, scale: float | Tensor):
        super().__init__()
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.as_tensor(scale).log().expand_as(loc).clone())

    def forward(self) -> dist.Distribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(self.loc.dim() - 1)

    def spreads(self) -> Iterator[nn.Parameter]:
        yield self.log_scale


class Members(Site):
    """The points of an ensemble's members.

    Args:
        values: Their starting values, `[member, layer, …]`.
    """

    def __init__(self, values: Tensor):
        super().__init__()
        self.loc = nn.Parameter(values)

    def forward(self) -> dist.Distribution:
        return Enumerated(self.loc)


class Snapshots(Site):
    """A learned point and its earlier values, which the guide draws in evaluation mode.

    Args:
        value: Its starting value, `[layer, …]`.
        room: Largest number of snapshots.
    """

    snapshots: Tensor
    taken: Tensor

    def __init__(self, value: Tensor, room: int):
        super().__init__()
        self.loc = nn.Parameter(value)
        self.register_buffer("snapshots", torch.zeros(room, *value.shape))
        # A float, because a guide has a single dtype.
        self.register_buffer("taken", torch.zeros(()))

    @property
    def size(self) -> int:
        """Number of snapshots."""
        return int(self.taken)

    def snapshots_taken(self) -> tuple[float, int]:
        return float(self.taken), len(self.snapshots)

    def take(self) -> None:
        """Keep the present value of the point."""
        self.snapshots[self.size].copy_(self.loc.detach())
        self.taken += 1

    def forward(self) -> dist.Distribution:
        if self.training or not self.size:
            return dist.Delta(self.loc, event_dim=self.loc.dim() - 1)
        return Enumerated(self.snapshots[: self.size])


def check_loaded(guide: nn.Module) -> None:
    """Raise a ValueError if the state that was loaded into a guide is one that no fit leaves.

    A module names in `nonnegative` those of its buffers that are scales, or averages of squares.
    """
    sites = [site for site in guide.modules() if isinstance(site, Site)]
    counts = [counted for site in sites if (counted := site.snapshots_taken()) is not None]
    for taken, room in counts:
        if taken != counts[0][0] or taken not in range(room + 1):
            raise ValueError(f"a site has taken {taken:g} snapshots: give 0 to {room}, and as many at every site")
    for site in sites:
        site.check_loaded()
    for where, module in guide.named_modules():
        for name in getattr(module, "nonnegative", ()):
            value = getattr(module, name)
            if value is not None and value.numel() and (least := float(value.min())) < 0:
                what = "guide/" + ".".join(filter(None, (where, name)))
                raise ValueError(f"the tensor '{what}' holds {least:.3g}: give 0 or more")


def last_steps(num_steps: int, count: int, last_part: float) -> set[int]:
    """Return steps of a run, spread evenly over its last part, including the last step.

    Args:
        num_steps: Steps of the run.
        count: How many steps to return; there are fewer in a shorter run.
        last_part: The last part, as a fraction of the run.
    """
    moments = (1 - last_part * (1 - index / count) for index in range(1, count + 1))
    return {max(1, round(num_steps * moment)) for moment in moments}


class Sites(nn.Module):
    """A stack's guide in which the sites are independent.

    Args:
        stack: The stack.
        scale: Multiplies every KL, because the mean-field ELBO reads the scales of sites from the guide.
        sites: Site name to its distribution.
    """

    def __init__(self, stack: Stack, *, scale: float = 1.0, **sites: Site):
        super().__init__()
        self.stack = stack
        self.scale = scale
        self.sites = nn.ModuleDict(sites)

    def forward(self) -> None:
        with self.stack.layers:
            self.sample()

    def sample(self) -> dict[str, Tensor]:
        """Sample the sites, within the plate over the layers."""
        with poutine.scale(scale=self.scale):
            return {name: pyro.sample(self.stack.site(name), site()) for name, site in self.sites.items()}

    def gaussians(self) -> Iterator[Gaussian]:
        """Yield the sites that are independent Normals."""
        site: Any
        for site in self.sites.values():
            if site.form is not None:
                yield from (Gaussian(spread, site.form, self.scale, site.loc) for spread in site.spreads())

    def squares(self) -> dict[str, Tensor]:
        """Return the mean squares E[z²] of the sites that have a mean and a variance, `[layer, …]`, by name."""
        means: Any = {name: site() for name, site in self.sites.items() if hasattr(site, "loc")}
        return {name: q.mean.square() + q.variance for name, q in means.items()}

    def start(self, factors: FactorTuple) -> None:
        """Start from trained factors: each becomes the location of the site with its name."""
        with torch.no_grad():
            for name, value in factors._asdict().items():
                site: Any = self.sites[name]
                site.loc.copy_(value)


class PerStack(nn.ModuleDict):
    """The guides of independent stacks, run one after the other."""

    def __init__(self, guides: Mapping[str, nn.Module]):
        super().__init__(dict(guides))

    def forward(self) -> None:
        for guide in self.values():
            guide()

    def start(self, factors: FactorsByStack) -> None:
        """Start from trained factors, by stack."""
        guide: Any
        for name, guide in self.items():
            guide.start(factors[name])
