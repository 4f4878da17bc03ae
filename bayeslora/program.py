"""p(y, A, B given x), its guide, and their ELBO as one `nn.Module`."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from bayeslora import packing
from bayeslora.adapters import AdaptedNetwork, Linearised, Stacks
from bayeslora.antithetic import Antithetic
from bayeslora.carried import Carried
from bayeslora.elbo import MeanFieldELBO, is_plate, sites
from bayeslora.fitted import FittedProgram
from bayeslora.isolation import check_free, exclusive, seeded
from bayeslora.methods import Method
from bayeslora.tasks import Likelihood
from bayeslora.types import WEIGHTS, Batch, FactorsByStack, FactorTuple, Sites, TraceSite


class Output(NamedTuple):
    """The output of a program for a batch: the loss in nats per example, and logits, `[*draw, batch, label]`."""

    loss: Tensor
    logits: Tensor


class Program(nn.Module, FittedProgram):
    """The generative model of labels given inputs, its guide, and the negative ELBO.

    Called with a batch, `program(**batch)`, it returns `(loss, logits)`. In training mode, the loss is the negative
    ELBO per example at `num_particles` draws from the guide. In evaluation mode the logits are those of the centre,
    every site at its guide's mean, and the loss is their negative log-likelihood. Any PyTorch optimiser, loop or
    trainer can drive it; Pyro's global parameter store stays empty.

    Args:
        network: The adapted network.
        method: Prior and guide of its factors.
        likelihood: Labels given logits; moved to the network's device and precision.
        num_particles: Draws per training step, run as one batch.

    Attributes:
        prior: The guide of an earlier fit that replaces the method's prior; None without one.
        packs: Whether training puts several short texts into one row, `packing`.
        num_steps: Optimiser steps of the whole training, for methods with a schedule. The Trainer sets it; your own
            loop has to.
    """

    # Otherwise the Trainer would pass `num_items_in_batch`, but the loss is a mean already.
    accepts_loss_kwargs = False

    def __init__(self, network: AdaptedNetwork, method: Method, likelihood: Likelihood, num_particles: int = 1):
        super().__init__()
        if num_particles < 1:
            raise ValueError(f"num_particles={num_particles}: give a whole number of at least 1.")
        if method.own_batches and num_particles != method.num_particles:
            raise ValueError(
                f"num_particles={num_particles}: {method.name!r} has one particle per member, {method.num_particles}; "
                "leave num_particles out."
            )
        self.network = network
        self.method = method
        self.likelihood = likelihood.to(network.device, network.dtype)
        self.elbo = MeanFieldELBO(num_particles)
        self.guide = method.guide(network.stacks).to(network.device, network.dtype)
        self.prior: Carried | None = None
        self.start: str | None = None  # a short hash of the trained adapters that it starts from
        self.packs = False
        self.watch: Callable[[FactorsByStack], FactorsByStack] | None = None  # sees the factors on their way
        self._num_steps: int | None = None
        self._dims: dict[str, tuple[int, int]] | None = None  # of each site of the prior: in an event, and in all
        self.last_terms: tuple[list[str], Tensor] = ([], torch.zeros(0))  # what `terms` has, in one tensor

    @property
    def num_steps(self) -> int:
        if self._num_steps is None:
            raise ValueError(f"The schedule of {self.method.name!r} needs the number of steps: set program.num_steps.")
        return self._num_steps

    @num_steps.setter
    def num_steps(self, value: int) -> None:
        self._num_steps = value

    @property
    def stacks(self) -> Stacks:
        return self.network.stacks

    @property
    def device(self) -> torch.device:
        return self.network.device

    def model(self, batch: Batch, rows_by_draw: bool = False) -> Tensor:
        """Run the generative model: factors from the prior, logits from the network, labels from the likelihood.

        Where the batch has weights of its rows, each row's log-likelihood is multiplied by its weight.
        """
        logits = self.network_logits(self.factors(), batch, rows_by_draw)
        # If particles have their own rows, the ELBO still sums over all particles, and divides by their number.
        with poutine.scale(scale=batch[WEIGHTS]) if WEIGHTS in batch else contextlib.nullcontext():
            self.likelihood.observe(logits, batch["labels"])
        return logits.unflatten(0, (self.elbo.num_particles, -1)) if rows_by_draw else logits

    def factors(self) -> FactorsByStack:
        """Run the prior on this network's stacks and device, and return the factors."""
        return self._own_factors() if self.prior is None else self.prior.factors(self._own_factors)

    def _own_factors(self) -> FactorsByStack:
        """Run the method's own prior."""
        # Priors make their constants without naming a device.
        on_device = contextlib.nullcontext() if self.device.type == "cpu" else self.device
        with on_device:
            return self.method.prior(self.stacks)

    @exclusive()
    def forward(self, *, rows_by_draw: bool = False, **batch: Any) -> Output:
        """Return the loss per example and the logits of a batch.

        Args:
            rows_by_draw: Whether the rows are blocks of equal size, one for each particle, instead of every particle's.
                This applies to training; in evaluation mode, all rows are the centre's.
            batch: The network's inputs, the labels, and weights of the rows, `weights_of_rows`, if they have any.

        Raises:
            ValueError: If there are no labels.
        """
        if "labels" not in batch:
            raise ValueError(f"The batch has no 'labels', only {', '.join(batch)}.")
        with pyro.validation_enabled(False):
            if not self.training:
                logits = self.logits(self.centre(), batch)
                return Output(-self.likelihood.log_prob(logits, batch["labels"]).mean(), logits)
            terms, logits = self.elbo.terms(self.model, lambda *_: self.guide(), batch, rows_by_draw)
        values = torch.stack(list(terms.values()))
        self.last_terms = (list(terms), values.detach())
        return Output(values.sum(), logits)

    @property
    def terms(self) -> dict[str, Tensor]:
        """The last training loss by site, detached, in nats: the NLL per example as `labels`, and weighted KLs."""
        names, values = self.last_terms
        return dict(zip(names, values, strict=True))

    def logits(self, sites: Sites, batch: Batch) -> Tensor:
        """Return the logits at given sites, `[*draw, batch, …]`; labels in the batch are ignored."""
        return self.network_logits(self.factors_at(sites), batch)

    def network_logits(self, factors: FactorsByStack, batch: Batch, rows_by_draw: bool = False) -> Tensor:
        """Return the network's logits at given factors, the part that the labels are about, `[*draw, batch, …]`.

        If each draw has its own rows, they are `[batch, …]`, block by block.
        """
        inputs = {name: value for name, value in batch.items() if name not in ("labels", WEIGHTS)}
        factors = factors if self.watch is None else self.watch(factors)
        if self.packs and self.training:
            packed = packing.pack(inputs, packing.added(self.network))
            return self.likelihood.select(packed.unpack(self.network(factors, packed.inputs)), batch)
        return self.likelihood.select(self.network(factors, inputs, rows_by_draw), batch)

    def factors_at(self, sites: Sites) -> FactorsByStack:
        """Return the factors of every stack as the prior computes them from given sites."""
        # How factors follow from sites is the method's, whatever the prior of the sites.
        with pyro.validation_enabled(False):
            factors = poutine.condition(self._own_factors, data=self._in_plates(sites))()
        return {name: _out_of_plates(value, self.stacks[name].family.layer_dims) for name, value in factors.items()}

    def _in_plates(self, given: Sites) -> dict[str, Tensor]:
        """Give draws of sites that are not in all plates a dimension of size 1 for each other one, as Pyro does."""
        if self._dims is None:
            with seeded(0), torch.no_grad():
                plain = sites(poutine.trace(self._own_factors).get_trace())
            self._dims = {name: (site["fn"].event_dim, site["value"].dim()) for name, site in plain}
        depth = max((dim - event for event, dim in self._dims.values()), default=0)
        found = dict(given)
        for name, value in given.items():
            event, dim = self._dims.get(name, (0, depth))
            lacking = 1 + depth + event - value.dim()
            if value.dim() > dim and lacking > 0:
                found[name] = value.reshape(len(value), *(1,) * lacking, *value.shape[1:])
        return found

    def linearised(self, sites: Sites | Callable[[], Iterable[FactorsByStack]]) -> Linearised:
        """Return the logits to first order in the factors, as a function of inputs, at draws `[draw, layer, …]`.

        The draws may be given as what iterates over the factors at them, some at a time.
        """
        centre = self.factors_at(self.centre())
        held = [] if callable(sites) else [self.factors_at(sites)]
        draws = sites if callable(sites) else lambda: held
        return Linearised(self.network, centre, draws, self.likelihood.select, self.likelihood.up_to_constant)

    def centre(self, auxiliary: bool = False) -> dict[str, Tensor]:
        """Return every site at its guide's mean, `[layer, …]`, with the guide in evaluation mode."""
        with pyro.validation_enabled(False), evaluating(self.guide), AtMean(), torch.enable_grad():
            found = _latent(poutine.trace(self.guide).get_trace(), auxiliary)
        return _as_wanted(found)

    def draw(self, num_draws: int, auxiliary: bool = False, antithetic: bool = False) -> dict[str, Tensor]:
        """Draw every site from the guide, `[draw, layer, …]`, with torch's current random state.

        Draws are for prediction: the guide is in evaluation mode, even during training.

        Args:
            num_draws: Number of draws.
            auxiliary: Whether to return, beside the sites, what the guide computes them from, if it says so.
            antithetic: Whether to draw in pairs, one the other's mirror image at Gaussian sites.

        Raises:
            ValueError: If there is no Gaussian site to mirror.
        """
        centre, pairs = self.centre(auxiliary), Antithetic()
        draws = self._drawn(num_draws, list(centre), pairs if antithetic else contextlib.nullcontext())
        if antithetic and not pairs.mirrored:
            raise ValueError(
                f"antithetic=True mirrors Gaussian sites, and {self.method.name!r} draws from none: leave it out."
            )
        # In a program with nested plates, Pyro gives each site a dimension for every plate.
        return {
            name: draws[name].reshape(len(draws[name]), *draws[name].shape[draws[name].dim() - value.dim() :])
            for name, value in centre.items()
        }

    def has_mirrors(self) -> bool:
        """Whether there are Gaussian sites, at which draws have mirror images."""
        pairs = Antithetic()
        with seeded(0):
            self._drawn(2, list(self.centre()), pairs)
        return pairs.mirrored

    def _drawn(
        self, num_draws: int, names: list[str], handler: contextlib.AbstractContextManager[Any]
    ) -> dict[str, Tensor]:
        """Draw named sites from the guide, in evaluation mode, under a handler."""
        with pyro.validation_enabled(False), evaluating(self.guide), handler, torch.enable_grad():
            found = Predictive(self.guide, num_samples=num_draws, return_sites=names, parallel=True)()
        return _as_wanted(found)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Iterate over the names and parameters that are learned: of the guide, the task head and the likelihood."""
        return ((name, p) for name, p in self.named_parameters() if p.requires_grad)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """Trade computation for memory in the network; called by the Trainer, arguments as in `transformers`."""
        # The re-entrant kind drops the gradient if no input of a block needs one, as in a frozen network.
        kwargs = {**(activation_checkpointing_kwargs or {}), "use_reentrant": False}
        model: Any = self.network.model
        older = getattr(model, "gradient_checkpointing_enable", None)
        enable = getattr(model, "activation_checkpointing_enable", older)
        if enable is None:
            raise ValueError(
                f"gradient_checkpointing=True: {type(model).__name__} does not know how to compute parts "
                "of itself again, as models of transformers do. Set it to False."
            )
        enable(kwargs, **settings)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        """Do as `activation_checkpointing_enable`, under the name by which older versions of `transformers` call it."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **settings)


def _out_of_plates(factors: FactorTuple, layer_dims: Sequence[int]) -> FactorTuple:
    """Take from factors at draws the dimensions, all of size 1, of plates that they are in none of."""
    between = [value.shape[1 : -1 - dims] for value, dims in zip(factors, layer_dims, strict=True)]
    if not any(between):
        return factors
    parts = zip(factors, between, strict=True)
    reduced = (value.flatten(0, len(sizes)) if math.prod(sizes) == 1 else value for value, sizes in parts)
    return type(factors)(*reduced)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode; restore its mode afterwards.

    Raises:
        AtWorkError: If it is a program or a network that an outer call is in the middle of using.
    """
    check_free(getattr(module, "network", module))
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


class AtMean(Messenger):
    """A handler that sets every latent site to the mean of its distribution."""

    def _pyro_sample(self, msg: TraceSite) -> None:
        if not (msg["is_observed"] or is_plate(msg)):
            msg["value"] = msg["fn"].mean
            msg["done"] = True


def _as_wanted(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return sites, which were computed with gradients on, without a graph where the caller has them off.

    With gradients off, views of a parameter say that they need one, and have no graph for it: hooks on all modules,
    such as those of `FlopCounterMode`, fail at modules that take or return them.
    """
    return found if torch.is_grad_enabled() else {name: value.detach() for name, value in found.items()}


def _latent(trace: poutine.Trace, auxiliary: bool = False) -> dict[str, Tensor]:
    return {
        name: site["value"]
        for name, site in sites(trace)
        if not (site["is_observed"] or (site["infer"].get("is_auxiliary") and not auxiliary))
    }
