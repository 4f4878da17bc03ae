"""What passes change of a network itself: its weights, and which it has."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.networks import memory_of


class Parts:
    """Keeps which modules and parameters a network has."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.names = {name for name, _ in model.named_parameters()}
        self.before = [(part, dict(part._modules), dict(part._parameters)) for part in model.modules()]

    def check(self) -> None:
        """Raise a ValueError if a pass has given the network parameters, and take them off again."""
        made = [name for name, _ in self.model.named_parameters() if name not in self.names]
        if made:
            for part, modules, parameters in self.before:
                part._modules, part._parameters = modules, parameters
            raise ValueError(
                f"The {type(self.model).__name__} makes {made[0]!r} in its first pass, of random numbers. Run it "
                "once on a batch, so that it has its weights, and fit it then."
            )


class Writes:
    """Keeps what a pass overwrites of a network's own weights."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.weights = {name: p.detach() for name, p in model.named_parameters() if type(p) is nn.Parameter}
        self.places = {memory_of(value): name for name, value in self.weights.items()}
        self.before: dict[str, Tensor] = {}

    def before_write(self, args: tuple[Any, ...]) -> None:
        """Copy weights that an operator may be about to write to."""
        for arg in args:
            name = self.places.get(memory_of(arg)) if isinstance(arg, Tensor) else None
            if name is not None and name not in self.before:
                self.before[name] = self.weights[name].clone()

    def changed(self) -> str | None:
        """Return the name of a weight that is not what it was."""
        now = dict(self.model.named_parameters())
        return next((name for name, value in self.before.items() if not torch.equal(value, now[name])), None)

    def check(self, run: Callable[["Writes"], object]) -> None:
        """Raise a ValueError if every pass changes weights; after some, as clamping, the next one finds what it wants.

        Args:
            run: Runs the network again.
        """
        if self.changed() is None:
            return
        run(again := Writes(self.model))
        if name := again.changed():
            with torch.no_grad():
                for key, value in self.before.items():
                    self.weights[key].copy_(value)
            raise ValueError(
                f"Every pass through the {type(self.model).__name__} changes its own weights, such as {name!r}, which "
                "a posterior shares with the model that it is given. Let it compute with changed copies (for RWKV, set "
                "config.rescale_every = 0), and fit it then."
            )
