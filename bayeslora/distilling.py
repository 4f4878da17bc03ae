"""A student of one pass: a LoRA and a Gaussian output layer that predict what the draws of a posterior do."""

import copy
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayeslora import interop, recipe
from bayeslora.adapters import AdaptedNetwork, LowRank
from bayeslora.adapters.weights import share_weights, without_adapters
from bayeslora.data import Source, to_device
from bayeslora.methods import Distilled
from bayeslora.methods.distilled import Output
from bayeslora.networks import inputs_of
from bayeslora.program import Program, evaluating
from bayeslora.runaway import DivergedError, is_good, read, stays
from bayeslora.tasks import Likelihood
from bayeslora.tasks.prediction import BasePrediction
from bayeslora.types import Batch, History

logger = logging.getLogger(__name__)

FEWEST_STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 1000, 3, 30
"""Soft labels are not learned by heart as labels are: a student is given more steps than a fit."""

SPREAD_STEPS, SPREAD_RATE, SPREAD_START = 500, 1e-2, 1e-2
HELD_OUT = 5
"""One in so many inputs says when to stop fitting the spread."""

BATCH = 64
"""Examples per batch where nothing is learned."""

CALM = 1e-3
"""The least standard deviation of the logits, in their unit."""


class Settings(NamedTuple):
    """How a student learns; see `Posterior.distil`."""

    spread: bool
    epochs: float | None
    learning_rate: float | None
    batch_size: int


def distil(
    start: Program, source: Source, prediction: BasePrediction, method: Distilled, settings: Settings
) -> tuple[Program, History]:
    """Fit a student to a prediction, with torch's current random state.

    Args:
        start: The fitted program at whose centre the student starts.
        source: The inputs that were predicted.
        prediction: What the student learns.
        method: Its method.
        settings: How it learns.

    Returns:
        The student, and its history.

    Raises:
        DivergedError: If the loss becomes NaN or infinite, or runs away; its `posterior` is None.
    """
    draws, mixture = (torch.as_tensor(logits) for logits in start.likelihood.latent(prediction))
    given = prediction.weights
    weights = torch.full((len(draws),), 1 / len(draws)) if given is None else torch.as_tensor(given)
    program = student(start, len(source), method)
    if settings.spread and not any(isinstance(part, Output) for part in program.guide.modules()):
        raise ValueError("The network has no linear output layer to give a spread to: distil with spread=False.")
    mean = torch.tensordot(weights.double(), draws.double(), 1)
    history = train(program, source, mean if settings.spread else mixture, settings)
    if settings.spread:
        phi, _ = features(program, source, BATCH)
        with torch.enable_grad():
            spread(program, phi, draws, weights)
    return program, history


def check(likelihood: Likelihood) -> None:
    """Raise a ValueError if a kind of label has no logits that can be told from its predictions."""
    if type(likelihood).latent is Likelihood.latent:
        likelihood.latent(None)  # which refuses, before anything is predicted


def student(program: Program, num_examples: int, method: Distilled) -> Program:
    """Make a program for the student, which starts at the centre of a fitted one where that is of low rank.

    Args:
        program: The fitted program.
        num_examples: Inputs to learn from.
        method: The student's method.
    """
    network = program.network
    adapters = interop.from_program(program)
    with without_adapters():
        base = share_weights(network.model, network.head_names)
    low_rank = adapters.family.factors is LowRank().factors
    layers: Any = adapters.network_settings() if low_rank else {"targets": list(adapters.factors)}
    own = AdaptedNetwork(
        base,
        method.family,
        num_examples=num_examples,
        head_family=method.head_family,
        head=network.head_names,
        **layers,
    )
    own.new = list(network.new)
    made = Program(own, method, copy.deepcopy(program.likelihood).requires_grad_(False))
    if low_rank:
        adapters.start(made)
    elif adapters.head:
        own.load_head(adapters.head)
    return made


def train(program: Program, source: Source, targets: Tensor, settings: Settings) -> History:
    """Fit the student's points to a prediction: the divergence of its distribution of the labels from the teacher's."""
    batch_size = settings.batch_size
    steps_an_epoch = -(-len(source) // batch_size)
    epochs = usual_epochs(len(source), batch_size) if settings.epochs is None else settings.epochs
    steps = math.ceil(epochs * steps_an_epoch)
    rate = settings.learning_rate or recipe.learning_rate(program.network, program.method)
    logger.info("Distilling: %d inputs, %d steps at a peak rate of %g.", len(source), steps, rate)
    parameters = [parameter for _, parameter in program.trainable()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / max(steps, 1))
    history: History = {"step": [], "epoch": [], "loss": [], "nll": []}
    program.train()
    for step, (where, batch) in zip(range(steps), _shuffled(source, batch_size), strict=False):
        wanted = targets[torch.as_tensor(where)].to(program.device, program.network.dtype)
        logits = program.logits(program.centre(), to_device(batch, program.device))
        with pyro.validation_enabled(False):  # NaN is noticed below
            loss = divergence(program.likelihood, wanted, logits).mean()
        loss.backward()
        found, *largest = read(loss, [each.grad for each in parameters if each.grad is not None])
        if not is_good((found, *largest), next(iter(history["loss"]), found)):
            raise _diverged(f"stopped at step {step + 1} of {steps}: the loss is {found:.6g}", rate)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        for name, value in (
            ("step", step + 1),
            ("epoch", (step + 1) / steps_an_epoch),
            ("loss", found),
            ("nll", found),
        ):
            history[name].append(float(value))
    if not stays(parameters, [torch.ones(())]):
        raise _diverged("made learned parameters NaN, infinite or absurdly large in its last step", rate)
    program.network.unbind()
    program.eval()
    return history


def _diverged(what: str, rate: float) -> DivergedError:
    return DivergedError(f"Distilling {what}. Lower the learning rate (now {rate:.2g}).", None)


def usual_epochs(num_inputs: int, batch_size: int) -> float:
    """Return how many epochs a student is trained for by default."""
    return min(max(FEWEST_STEPS / -(-num_inputs // batch_size), FEWEST_EPOCHS), MOST_EPOCHS)


def divergence(likelihood: Likelihood, wanted: Tensor, logits: Tensor) -> Tensor:
    """Return the KL divergence of the labels' distributions at two logits in nats, `[example]`.

    Where it has no closed form, it is the negative log-likelihood of the first one's mean.
    """
    teacher, student = likelihood.distribution(wanted), likelihood.distribution(logits)
    try:
        return kl_divergence(teacher, student)
    except NotImplementedError:  # torch's way to say that this pair has no closed form
        return -student.log_prob(teacher.mean)


def _shuffled(source: Source, batch_size: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield batches for ever, each epoch in an order of its own, drawn from torch's global state."""
    if source.dataset is None or source.is_stream:
        batches = list(source.batches_by_length(batch_size))
        while True:
            for index in torch.randperm(len(batches)).tolist():
                yield batches[index]
    while True:
        for part in torch.randperm(len(source)).split(batch_size):
            yield part.numpy(), source.collate([source.dataset[index] for index in part.tolist()])


def features(program: Program, source: Source, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the features φ of each example and its logits, `[example, feature]` and `[example, logit]`.

    Raises:
        ValueError: If the logits are not those of an output layer at one of its inputs.
    """
    network, seen, found = program.network, [], []
    assert network.output_name is not None
    layer = network.model.get_submodule(network.output_name)
    hook = layer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(((*args, *kwargs.values())[0], output)), with_kwargs=True
    )
    try:
        with evaluating(program), torch.no_grad():
            factors = program.factors_at(program.centre())
            for where, batch in source.batches_by_length(batch_size):
                seen.clear()
                inputs = inputs_of(to_device(batch, program.device))
                logits = network(factors, inputs)
                x, output = (value.reshape(len(where), -1, value.shape[-1]) for value in seen[-1])
                apart = (output - logits[:, None]).abs().amax(-1)  # of several tokens, one has made the logits
                chosen = apart.argmin(1)
                if len(seen) != 1 or apart.min(1).values.max() > 1e-3 * logits.abs().max().clamp(min=1):
                    raise ValueError(
                        "The logits of an example are not those of the output layer at one of its inputs, so that no "
                        "spread can be given to them: distil with spread=False."
                    )
                rows = torch.arange(len(where), device=x.device)
                found.append((torch.as_tensor(where), x[rows, chosen].double().cpu(), logits.double().cpu()))
    finally:
        hook.remove()
        network.unbind()
    order = torch.cat([where for where, _, _ in found]).argsort()
    x, logits = (torch.cat(parts)[order] for parts in list(zip(*found, strict=True))[1:])
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=-1), logits


def spread(program: Program, phi: Tensor, draws: Tensor, weights: Tensor) -> None:
    r"""Fit the spread of the output layer: the logits' variance at each input to that of the draws.

    It minimises the mean over inputs and logits of $\tfrac12 (v / \hat v + \ln \hat v)$, which is the KL divergence of
    Normal distributions with variances v, the draws', and $\hat v$, up to a constant. Where logits count up to a
    constant, they are those less their mean.

    Args:
        program: The student's program; its points are trained.
        phi: Features, the last of them 1, `[example, feature]`.
        draws: The draws' logits, `[draw, example, …]`.
        weights: Those of the draws, `[draw]`, which sum to 1.
    """
    site = next(part for part in program.guide.modules() if isinstance(part, Output))
    draws = draws.reshape(*draws.shape[:2], -1).double()
    centred = program.likelihood.up_to_constant
    if centred:
        draws = draws - draws.mean(-1, keepdim=True)
    weights = weights.double()
    apart = draws - torch.tensordot(weights, draws, 1)
    # The sum of squares about the mean of the draws is too small by the share of the mean itself.
    share = (1 - weights.square().sum()).clamp(min=1e-12)
    variance = torch.tensordot(weights, apart.square(), 1) / share + CALM**2
    count, rank = draws.shape[-1], site.factor.shape[-1]
    generator = torch.Generator().manual_seed(0)
    held_out = torch.arange(len(phi)) % HELD_OUT == HELD_OUT - 1
    judging = held_out if held_out.any() else ~held_out  # the few that there are
    size = float(variance.mean().sqrt()) / float(phi.square().sum(-1).mean().sqrt())
    U = size / rank**0.5 * torch.randn(count, phi.shape[-1], rank, generator=generator, dtype=torch.float64)
    log_d = torch.full((count, phi.shape[-1]), SPREAD_START * size, dtype=torch.float64).log()
    parameters = [U.requires_grad_(), log_d.requires_grad_()]
    optimizer = torch.optim.Adam(
        [{"params": [U], "lr": size * SPREAD_RATE * 10}, {"params": [log_d], "lr": SPREAD_RATE * 10}]
    )

    def loss(rows: Tensor) -> Tensor:
        common = torch.einsum("nf,cfr->ncr", phi[rows], U)
        own = phi[rows].square() @ (2 * log_d).exp().T
        if centred:
            common = common - common.mean(1, keepdim=True)
            own = own * (1 - 2 / count) + own.mean(1, keepdim=True) / count
        found = common.square().sum(-1) + own + CALM**2
        return (variance[rows] / found + found.log()).mean() / 2

    best, kept = float("inf"), [parameter.detach().clone() for parameter in parameters]
    for step in range(SPREAD_STEPS):
        optimizer.zero_grad()
        value = loss(~held_out)
        value.backward()
        optimizer.step()
        if step % 10 == 9:
            with torch.no_grad():
                unseen = float(loss(judging))
            if unseen < best:
                best, kept = unseen, [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        site.factor[-1].copy_(kept[0].flatten(0, 1))
        site.deviation[-1].copy_(kept[1].exp().flatten())
