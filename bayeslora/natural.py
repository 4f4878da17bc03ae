r"""Natural-gradient steps for the spreads, and the means, of Gaussian guides.

Adam moves a spread whose gradient keeps its sign by the learning rate a step, however far its optimum is. For a
Gaussian $q = N(m, \sigma^2)$ whose entropy has the weight w in a loss L, one number says how far that is:

$$\frac{1}{w} \frac{\partial L}{\partial \ln \sigma} = \frac{P}{\sigma^{-2}} - 1,$$

with P the precision that prior and data ask for at present: that of the optimum, if they ask for the same there. The
natural gradient takes the precision the part ρ of the way; here with the second-order term that keeps it positive,

$$\sigma^{-2} \leftarrow \sigma^{-2} \big(1 + x + \tfrac12 x^2\big),
  \qquad x = \frac{\rho}{w} \frac{\partial L}{\partial \ln \sigma}.$$

It does not matter which function of σ is learned. A mean's natural gradient is a Newton step with that precision. Both
together are variational online Newton ([Lin et al. 2020](https://arxiv.org/abs/2002.10060), [Shen et al.
2024](https://arxiv.org/abs/2402.17641)).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

Group: TypeAlias = dict[str, Any]
"""A group of parameters, as torch's optimisers take it."""

Form: TypeAlias = Literal["log", "root", "softplus"]
"""Which function of a standard deviation σ is learned: ln σ, √σ, or its inverse under softplus."""

REMEMBERED = 50
"""Steps over which the distance of spreads from their optimum is averaged, in a run of four times as many or more."""


class Gaussian(NamedTuple):
    """Independent Normals of a guide.

    Args:
        spread: The parameter that their standard deviations follow from.
        form: How.
        weight: Weight w of their entropy in the loss.
        loc: Their means, if those are a parameter of the same shape.
    """

    spread: nn.Parameter
    form: Form
    weight: float
    loc: nn.Parameter | None = None


def of_spreads(gaussians: Iterable[Gaussian], rate: float) -> list[Group]:
    """Return the groups in which spreads take natural steps.

    Args:
        gaussians: The Normals.
        rate: ρ at its peak; a learning-rate schedule acts on it.
    """
    kinds: dict[tuple[Form, float], list[nn.Parameter]] = {}
    for each in gaussians:
        kinds.setdefault((each.form, each.weight), []).append(each.spread)
    return [
        {"params": spreads, "steps": "spread", "lr": rate, "form": form, "weight": weight, "weight_decay": 0.0}
        for (form, weight), spreads in kinds.items()
    ]


def of_both(
    gaussians: Iterable[Gaussian],
    rate: float,
    mean_rate: float,
    momentum: float,
    prior_precision: float,
    clip: float = float("inf"),
    reach: float = float("inf"),
) -> list[Group]:
    """Return the groups in which spreads and means take natural steps, under a prior N(0, 1 / `prior_precision`).

    Args:
        gaussians: The Normals, with their means.
        rate: ρ of the spreads.
        mean_rate: The part of a Newton step that a mean makes; a learning-rate schedule acts on both.
        momentum: β₁, of the gradient without the prior's part.
        prior_precision: Of the means, in inverse squared units of the weights.
        clip: The largest Newton step of an entry, in units of the weights.
        reach: The largest root mean square of a parameter's steps at the peak, to which longer ones are shortened; it
            decays with the schedule.
    """
    groups: list[Group] = []
    for each in gaussians:
        # The means' group comes right after that of their spreads, whose new values it uses.
        groups += of_spreads([each], rate)
        groups.append(
            {
                "params": [each.loc],
                "steps": "mean",
                "lr": mean_rate,
                "momentum": momentum,
                "prior_precision": prior_precision,
                "clip": clip,
                "reach": reach / mean_rate,
                "weight_decay": 0.0,
            }
        )
    return groups


@functools.cache
def with_natural_steps(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return an optimiser class whose groups may name one of `STEPS`; all other groups are stepped by `cls`.

    What the steps keep lies in the optimiser's state, so that a checkpoint restores it.
    """

    class Natural(cls):  # type: ignore[valid-type,misc]
        def __init__(self, groups: Sequence[Group], **settings: Any):
            super().__init__(groups, **settings)
            # A gradient scaler takes this to mean that the optimiser unscales gradients itself, as fused ones do.
            self._step_supports_amp_scaling = False

        @torch.no_grad()
        def step(self, closure: Callable[[], Any] | None = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            gradients: list[tuple[nn.Parameter, Tensor]] = []
            before: Group = {}
            for group in self.param_groups:
                if "steps" in group:
                    for index, parameter in enumerate(group["params"]):
                        if parameter.grad is not None:
                            STEPS[group["steps"]](self, group, before, index)
                            gradients.append((parameter, parameter.grad))
                before = group
            # `cls` leaves parameters without a gradient as they are; what follows a step may look at gradients.
            for parameter, _ in gradients:
                parameter.grad = None
            super().step()
            for parameter, gradient in gradients:
                parameter.grad = gradient
            return loss

    Natural.__name__ = Natural.__qualname__ = f"Natural{cls.__name__}"
    return Natural


def step_spread(optimizer: torch.optim.Optimizer, group: Group, before: Group, index: int) -> None:
    """Make a step of one parameter that standard deviations follow from."""
    value: nn.Parameter = group["params"][index]
    assert value.grad is not None
    form, rate = group["form"], group["lr"]
    gradient = value.grad / group["weight"]
    if form == "root":  # ∂ ln σ = 2 ∂G / G
        gradient = gradient * value / 2
    elif form == "softplus":
        gradient = gradient * softplus(value) / value.sigmoid()
    x = rate * gradient
    change = torch.log1p(x + x.square() / 2)  # of the logarithm of the precision
    if form == "log":
        value.sub_(change / 2)
    elif form == "root":
        value.mul_(torch.exp(-change / 4))
    else:
        scale = softplus(value) * torch.exp(-change / 2)
        value.copy_(scale + torch.log(-torch.expm1(-scale)))
    if rate > 0:
        state = _state(optimizer, value, distance=torch.zeros((), dtype=value.dtype, device=value.device))
        # By the change, not by x, whose mean over entries a few large gradients would decide.
        remembered = min(max(float(state["step"]) / 4, 1), REMEMBERED)
        state["distance"] += (change.mean() / rate - state["distance"]) / remembered


def step_mean(optimizer: torch.optim.Optimizer, group: Group, before: Group, index: int) -> None:
    """Make a step of one parameter of means, whose spreads are in the group before and have made theirs."""
    value: nn.Parameter = group["params"][index]
    assert value.grad is not None
    variance = standard_deviation(before["params"][index], before["form"]).square() / before["weight"]
    decay, momentum = before["weight"] * group["prior_precision"], group["momentum"]
    state = _state(optimizer, value, moment=torch.zeros_like(value))
    state["moment"].mul_(momentum).add_(value.grad - decay * value, alpha=1 - momentum)
    gradient = state["moment"] / (1 - momentum ** float(state["step"])) + decay * value
    newton = (gradient * variance).clamp(-group["clip"], group["clip"])
    size = newton.square().mean().sqrt()
    value.sub_(newton * (group["lr"] * torch.clamp(group["reach"] / size, max=1.0)))


Step: TypeAlias = Callable[[torch.optim.Optimizer, Group, Group, int], None]

STEPS: dict[str, Step] = {"spread": step_spread, "mean": step_mean}
"""Name to the step of a group's parameter: of the optimiser, the group, the group before it, and its number there."""


def standard_deviation(value: Tensor, form: Form) -> Tensor:
    """Return σ, given what is learned."""
    return value.exp() if form == "log" else value.square() if form == "root" else softplus(value)


def parameters(optimizer: Any) -> set[int]:
    """Return the `id` of each parameter with a step of its own."""
    return {id(each) for group in optimizer.param_groups if "steps" in group for each in group["params"]}


def distance(optimizer: Any) -> float | None:
    r"""Return how far spreads are from their optimum: the mean of $P \sigma^2 - 1$, over entries and recent steps.

    It is negative where spreads are still too small, and None where none took natural steps.
    """
    found = [
        (optimizer.state[each]["distance"], each.numel())
        for group in optimizer.param_groups
        if group.get("steps") == "spread"
        for each in group["params"]
        if "distance" in optimizer.state.get(each, ())
    ]
    count = sum(size for _, size in found)
    return sum(float(value) * size for value, size in found) / count if count else None


def _state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, **start: Tensor) -> dict[str, Any]:
    """Return the state of a parameter, with one more step counted."""
    state = optimizer.state[parameter]
    if not state:
        state.update(step=torch.zeros(()), **start)  # torch's own optimisers look for a `step` when they are loaded
    state["step"] += 1
    return state
