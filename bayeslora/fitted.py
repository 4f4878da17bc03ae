"""What methods and diagnostics may ask of a program, without knowing how it is built."""

import abc
from typing import Any

import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork, Linearised, Stacks
from bayeslora.tasks import Likelihood
from bayeslora.types import Batch, FactorsByStack, Sites


class FittedProgram(abc.ABC):
    """A network, the prior and guide of its factors, and the likelihood of its labels, in training or after it.

    `Program` is the one implementation. The hooks of a method, the curvature, and the searches for a noise ratio or a
    prior precision stand before it in the order of imports: they take it as an argument, and this is its type. It is a
    base class rather than a protocol because a check of a protocol reads every attribute, and `num_steps` raises until
    it is set.

    Attributes:
        network: The adapted network: factors in, logits out.
        method: The method.
        likelihood: Labels given logits.
        guide: The guide, which holds all learned adapter state.
        prior: The guide of an earlier fit that replaces the method's prior (`carried.Carried`); None without one.
    """

    network: AdaptedNetwork
    method: Any
    likelihood: Likelihood
    guide: nn.Module
    prior: Any

    @property
    @abc.abstractmethod
    def num_steps(self) -> int:
        """Optimiser steps of the whole training.

        Raises:
            ValueError: If it has not been set.
        """

    @property
    @abc.abstractmethod
    def stacks(self) -> Stacks:
        """The stacks of the network, by name."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """The device of the network."""

    @abc.abstractmethod
    def centre(self) -> dict[str, Tensor]:
        """Return every site at its guide's mean, `[layer, …]`."""

    @abc.abstractmethod
    def draw(self, num_draws: int) -> dict[str, Tensor]:
        """Draw every site from the guide, `[draw, layer, …]`, with torch's current random state."""

    @abc.abstractmethod
    def factors_at(self, sites: Sites) -> FactorsByStack:
        """Return the factors of every stack as the prior computes them from given sites."""

    @abc.abstractmethod
    def logits(self, sites: Sites, batch: Batch) -> Tensor:
        """Return the logits at given sites, `[*draw, batch, …]`."""

    @abc.abstractmethod
    def network_logits(self, factors: FactorsByStack, batch: Batch, rows_by_draw: bool = False) -> Tensor:
        """Return the logits at given factors, the part that the labels are about, `[*draw, batch, …]`."""

    @abc.abstractmethod
    def linearised(self, sites: Sites) -> Linearised:
        """Return the logits to first order in the factors, as a function of inputs, at draws of the sites."""
