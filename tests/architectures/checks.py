"""What has to hold for every network: a check raises an AssertionError where it does not.

Checks look at the library from outside: at `fit`, at what a posterior does, and at its logits at given sites.
"""

import contextlib
import copy
import logging
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters import Shared
from bayeslora.prediction import chunks
from tests.architectures.families import Case

SIZE, LENGTH, NUM_DRAWS = 4, 7, 3
EXACT = 1e-6
"""Largest difference of logits in double precision, relative to their size; parts of some models are in single."""

PEFT = 1e-5


@dataclass(frozen=True)
class Result:
    """What became of a check: it works, is refused by the library with a message, is wrong, or breaks down."""

    outcome: str
    detail: str = ""


class Subject:
    """A case's network and what the library made of it.

    Attributes:
        said: What the library said while it worked, in its log and in warnings.
        one_by_one: Whether draws ran one by one where they were to be predicted together.
        shares: Whether draws that differ in one layer ran the rest once; None if that was not tried.
    """

    def __init__(self, case: Case):
        self.case = case
        self.base = case.make()
        self.inputs, self.labels = case.batch(SIZE, LENGTH)
        self.said: list[str] = []
        self.one_by_one = False
        self.shares: bool | None = None

    @property
    def data(self) -> tuple[Any, Tensor]:
        return dict(self.inputs), self.labels.clone()

    def fit(self, **settings: Any) -> bayeslora.Posterior:
        """The library's fit, with what it says noted down."""
        with self.listening():
            return bayeslora.fit(self.base, self.data, "lora", progress=False, batch_size=SIZE, **settings)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        handler = logging.Handler()
        handler.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("bayeslora")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        self.said += [str(w.message) for w in caught if "bayeslora" in w.filename or "bayeslora" in str(w.message)]

    @cached_property
    def started(self) -> bayeslora.Posterior:
        """A posterior that has not been trained, by the defaults."""
        return self.fit(epochs=0, **self.case.settings)

    @cached_property
    def fitted(self) -> bayeslora.Posterior:
        """A posterior after two steps, its adapters then moved so far that they matter."""
        torch.manual_seed(0)
        # Of a layer with one feature the rank is 1; with defaults, `default` has looked at those.
        ranks = {name: min(2, features) for name, features in self.narrowest().items()}
        posterior = self.fit(epochs=2, **{"rank": ranks, "alpha": 2} | dict(self.case.settings))
        with torch.no_grad():
            for parameter in posterior.guide.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return posterior

    def narrowest(self) -> dict[str, int]:
        """Features of a linear layer's narrower side, by its name."""
        sides = (("in_features", "out_features"), ("nx", "nf"))
        return {
            name: min(getattr(module, first), getattr(module, second))
            for name, module in self.base.named_modules()
            for first, second in sides
            if hasattr(module, first) and hasattr(module, second)
        }

    def says(self, name: str) -> bool:
        """Whether the library has named a layer: in whole, by the last part of a longer name, or in quotes."""
        last = name.rpartition(".")[2]
        pattern = rf"(?<!\w){re.escape(last)}(?!\w)" if "." in name else rf"[\"'`]{re.escape(last)}[\"'`]"
        return any(re.search(pattern, text) for text in self.said)

    def batch(self, size: int = SIZE, length: int = LENGTH) -> dict[str, Tensor]:
        """Inputs and labels of a batch, with what a decoder reads."""
        inputs, labels = self.case.batch(size, length)
        if self.case.likelihood == "seq2seq_lm" and self.base.config.is_encoder_decoder:
            start = torch.full_like(labels[:, :1], 1)
            inputs = inputs | {"decoder_input_ids": torch.cat([start, labels[:, :-1]], 1)}
        return {**inputs, "labels": labels}

    def draws(self) -> dict[str, Tensor]:
        """Draws around the centre, `[draw, layer, …]`, far enough apart."""
        generator = torch.Generator().manual_seed(1)
        centre = self.fitted.program.centre()
        return {
            name: value.detach() + 0.3 * torch.randn(NUM_DRAWS, *value.shape, generator=generator, dtype=value.dtype)
            for name, value in centre.items()
        }


def logits_of(output: Any) -> Tensor:
    """Logits in what a network returned."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1)
    return output.logits


@torch.no_grad()
def run(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """A network's logits for a batch; labels are left out."""
    return logits_of(model(**{name: value for name, value in batch.items() if name != "labels"}))


@torch.no_grad()
def at(posterior: bayeslora.Posterior, sites: Any, batch: dict[str, Tensor]) -> Tensor:
    """A posterior's logits at given sites."""
    return posterior.program.eval().logits(sites, batch)


def distance(given: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value where that is above 1."""
    if given.shape != expected.shape:
        raise AssertionError(f"shapes {tuple(given.shape)} and {tuple(expected.shape)}")
    return float((given - expected).abs().max() / expected.abs().max().clamp(min=1))


def assert_same(given: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    apart = distance(given, expected)
    assert apart <= tolerance, f"{what}: off by {apart:.2g}"


def nll(likelihood: str, logits: Tensor, labels: Tensor) -> float:
    """Negative log-likelihood in nats per example, as the task has it."""
    if likelihood in ("classification", "multiple_choice"):
        return float(F.cross_entropy(logits, labels))
    if likelihood == "question_answering":
        return float(sum(F.cross_entropy(logits[..., i], labels[:, i]) for i in range(2)))
    if likelihood == "causal_lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    return float(F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / len(labels))


# The checks


def default(subject: Subject) -> None:
    """A fit with the defaults takes the network."""
    assert subject.started.network.stacks


def start(subject: Subject) -> None:
    """The centre of a new fit gives the base model's logits."""
    posterior, batch = subject.started, subject.batch()
    assert_same(at(posterior, posterior.program.centre(), batch), run(subject.base, batch), 1e-9, "centre and base")


def task(subject: Subject) -> None:
    """The likelihood is the one that fits, and the base model's labels are as probable as the model itself says."""
    inferred = subject.started.program.likelihood.name
    assert inferred == subject.case.likelihood, f"taken for {inferred}"
    batch = subject.batch()
    if subject.case.likelihood == "seq2seq_lm":
        with torch.no_grad():
            logits = subject.base(**subject.inputs, labels=subject.labels).logits
    else:
        logits = run(subject.base, batch)
    expected = nll(subject.case.likelihood, logits, subject.labels)
    with subject.listening():
        given = subject.started.evaluate(subject.data, num_draws=1)["center_nll"]
    assert abs(given - expected) < 1e-5 * max(1, expected), f"NLL {given:.4g}, and the model's own is {expected:.4g}"


def fit(subject: Subject) -> None:
    """Two steps of training run, and the loss is a number."""
    history = subject.fitted.history
    assert len(history) == 2, f"{len(history)} steps"
    assert bool(history["loss"].notna().all()), "the loss is no number"


def head(subject: Subject) -> None:
    """The layer that makes the logits, and all that a pre-trained body comes without, is trained."""
    if subject.case.likelihood in ("causal_lm", "seq2seq_lm"):
        return
    network = subject.fitted.network
    trained = {n.replace(".base.", ".") for n, p in network.model.named_parameters() if p.requires_grad}
    trained |= {n for stack in network.stacks.values() if stack.in_head for n in stack.layer_names}
    parameters = [n for n, _ in subject.base.named_parameters()]
    body = getattr(subject.base, "base_model", subject.base)
    prefix = f"{getattr(subject.base, 'base_model_prefix', '')}."
    outside = [] if body is subject.base else [n for n in parameters if not n.startswith(prefix)]
    last = output_layer(subject)
    needed = outside + [n for n in parameters if last and n.startswith(f"{last}.")]
    left = [n for n in needed if n not in trained and n.rpartition(".")[0] not in trained]
    unsaid = sorted({n for n in left if not subject.says(n.rpartition(".")[0])})
    assert not unsaid, f"not trained, and not said: {short(unsaid)}"


def output_layer(subject: Subject) -> str | None:
    """Name of the last module with parameters of its own whose output has the logits' size."""
    seen: list[str] = []
    size = run(subject.base, subject.batch()).shape[-1]
    hooks = [
        module.register_forward_hook(
            lambda module, given, output, name=name: (
                seen.append(name) if isinstance(output, Tensor) and output.shape[-1] in (size, 1) else None
            )
        )
        for name, module in subject.base.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    ]
    try:
        run(subject.base, subject.batch())
    finally:
        for hook in hooks:
            hook.remove()
    return seen[-1] if seen else None


def gradients(subject: Subject) -> None:
    """The logits' gradient reaches the factors of every adapted layer, in training mode."""
    program, batch = subject.fitted.program.train(), subject.batch()
    sites = {name: value.detach().clone().requires_grad_() for name, value in program.centre().items()}
    logits = program.logits(sites, batch)
    logits = logits.masked_fill(~logits.isfinite(), 0)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    (logits * weights).sum().backward()  # not `autograd.grad`, which reversible layers get around
    reached: dict[str, Any] = {}
    for name, value in sites.items():
        size = torch.zeros(len(value)) if value.grad is None else value.grad.flatten(1).norm(dim=1)
        stack = name.rpartition(".")[0]
        reached[stack] = reached.get(stack, 0) + size
    silent = [
        layer
        for stack, sizes in reached.items()
        for layer, size in zip(program.stacks[stack].layer_names, sizes, strict=True)
        if not size > 0
    ]
    total = sum(len(stack) for stack in program.stacks.values())
    unsaid = [name for name in silent if not subject.says(name)]
    assert not unsaid, f"no gradient in {len(unsaid)} of {total} layers: {short(unsaid)}"


def folded(subject: Subject) -> None:
    """Draws predicted together are those predicted one by one; also where tokens are as many as rows."""
    draws, program = subject.draws(), subject.fitted
    for size, length in [(SIZE, LENGTH), (2, 2 * NUM_DRAWS)][: 2 if subject.case.lengths else 1]:
        batch = subject.batch(size, length)
        passes: list[int] = []
        at(program, draws, batch)  # the first call tries whether draws can run together
        hook = program.network.model.register_forward_hook(lambda *_: passes.append(1))  # noqa: B023
        with subject.listening():
            together = at(program, draws, batch)
        hook.remove()
        # Where tokens are as many as rows, any network may run one by one.
        subject.one_by_one |= (len(passes) > 1 or bool(program.network.mapped)) and length == LENGTH
        apart = torch.stack(
            [at(program, {name: value[i] for name, value in draws.items()}, batch) for i in range(NUM_DRAWS)]
        )
        assert distance(apart[0], apart[1]) > 1e-4, "the draws do not differ: nothing was tested"
        assert_same(together, apart, EXACT, f"draws together and apart, {size} × {length}")


def shared(subject: Subject) -> None:
    """Draws that differ in the layer called last run the rest once, and are those predicted one by one."""
    posterior, batch = subject.fitted, subject.batch()
    program = posterior.program.eval()
    draws, called = subject.draws(), []
    layers = {
        layer: (name, index) for name in program.stacks for index, layer in enumerate(program.network.layers(name))
    }
    hooks = [layer.register_forward_hook(lambda layer, *_: called.append(layer)) for layer in layers]
    at(posterior, program.centre(), batch)
    for hook in hooks:
        hook.remove()
    stack, index = layers[called[-1]]
    for name, value in draws.items():
        same = torch.ones(value.shape[1], dtype=torch.bool)
        if name.rpartition(".")[0] == stack:
            same[index] = False
        value[:, same] = value[:1, same]
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        factors = program.factors_at(draws)
        with Shared(program.network, factors).over(inputs, 2048) as most:
            given = torch.cat(list(chunks(program.network_logits, factors, batch, NUM_DRAWS, most)))
    program.network.unbind()
    apart = torch.stack(
        [at(posterior, {name: value[i] for name, value in draws.items()}, batch) for i in range(NUM_DRAWS)]
    )
    subject.shares = most is not None
    assert_same(given, apart, EXACT, "draws with a common part and without")


def merged(subject: Subject) -> None:
    """The centre is the merged model."""
    posterior, batch = subject.fitted, subject.batch()
    centre = at(posterior, posterior.program.centre(), batch)
    with subject.listening():
        plain = posterior.merge().eval()
    assert not any(type(module).__module__.startswith("bayeslora") for module in plain.modules()), "not plain"
    assert_same(run(plain, batch), centre, EXACT, "merged model and centre")


def copied(subject: Subject) -> None:
    """A copy of the program predicts the same."""
    posterior, batch = subject.fitted, subject.batch()
    centre = posterior.program.centre()
    expected = at(posterior, centre, batch)
    with torch.no_grad():
        given = copy.deepcopy(posterior.program).eval().logits(centre, batch)
    assert_same(given, expected, 1e-12, "copy and original")


def saved(subject: Subject) -> None:
    """What was saved and read predicts the same."""
    posterior, batch = subject.fitted, subject.batch()
    with tempfile.TemporaryDirectory() as folder, subject.listening():
        posterior.save(folder)
        again = bayeslora.load(folder, model=subject.base)
    given, expected = (at(p, p.program.centre(), batch) for p in (again, posterior))
    assert_same(given, expected, 1e-9, "read and saved")


def peft(subject: Subject) -> None:
    """PEFT reads what was exported, and gives the centre's logits."""
    from peft import PeftModel

    posterior, batch = subject.fitted, subject.batch()
    expected = at(posterior, posterior.program.centre(), batch)
    with tempfile.TemporaryDirectory() as folder, subject.listening():
        posterior.export_peft(Path(folder))
        with contextlib.redirect_stderr(None):
            model = PeftModel.from_pretrained(copy.deepcopy(subject.base), folder).eval()
    assert_same(run(model, batch), expected, PEFT, "PEFT's model and centre")


def named(subject: Subject) -> None:
    """Matrices of the body that no adapter changes, fused experts above all, are named."""
    network = subject.fitted.network
    adapted = {name for stack in network.stacks.values() for name in stack.layer_names}
    fused = {
        name: parameter
        for name, parameter in subject.base.named_parameters()
        if parameter.dim() >= 2 and re.search(r"experts?\b|in_proj_weight", name)
        if name.rpartition(".")[0] not in adapted
    }
    batch = subject.batch()
    logits = logits_of(subject.base(**{name: value for name, value in batch.items() if name != "labels"}))
    used = torch.autograd.grad(logits.square().sum(), list(fused.values()), allow_unused=True) if fused else ()
    left = [name for name, gradient in zip(fused, used, strict=True) if gradient is not None and bool(gradient.any())]
    unsaid = [name for name in left if not subject.says(name.rpartition(".")[0])]
    assert not unsaid, f"not adapted, and not said: {short(unsaid)}"


def short(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (default, start, task, fit, head, gradients, folded, shared, merged, copied, saved, peft, named)
}
NEEDED_BY = {
    "default": {"start", "task"},
    "fit": {"head", "gradients", "folded", "shared", "merged", "copied", "saved", "peft", "named"},
}
"""Checks that cannot be made where one has failed."""


def survey(case: Case) -> tuple[dict[str, Result], Subject]:
    """Every check of a case, by name, and the subject of them."""
    torch.manual_seed(0)
    results: dict[str, Result] = {}
    skipped: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the models
        subject = Subject(case)
        for name, check in CHECKS.items():
            if name in skipped:
                continue
            results[name] = outcome(check, subject)
            if results[name].outcome != "works":
                skipped |= NEEDED_BY.get(name, set())
    return results, subject


def outcome(check: Callable[[Subject], None], subject: Subject) -> Result:
    """What became of one check; a message that the library raises itself is a refusal."""
    try:
        check(subject)
    except AssertionError as error:
        return Result("wrong", str(error))
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if re.search(r"[/\\]bayeslora[/\\]\w", frame.filename) and isinstance(error, (ValueError, TypeError)):
            return Result("refused", text)
        return Result("breaks", f"{text} ({Path(frame.filename).name}:{frame.name})")
    return Result("works")
