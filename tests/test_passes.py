"""Networks that keep something from one pass to the next: predictions do not depend on those before."""

import array
import contextvars
import copy
import ctypes
import dataclasses
import functools
import io
import itertools
import os
import queue
import random
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import bayeslora
from bayeslora.passes import Passes, unchanged
from bayeslora.places import places_of


class Body(nn.Module):
    """What it keeps is said by `keep`, from its features and what it has kept."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6)
        self.out = nn.Linear(6, 3)
        self.start()

    def start(self) -> None: ...

    def keep(self, h: Tensor) -> Any: ...

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.out(torch.tanh(self.second(h + self.keep(h))))


class Buffer(Body):
    def start(self) -> None:
        self.register_buffer("mean", torch.zeros(6))

    def keep(self, h: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(h.detach().mean())
        return self.mean


class NewBuffer(Buffer):
    def keep(self, h: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 1
        return self.mean


class Attribute(Body):
    def start(self) -> None:
        self.last: Any = None

    def keep(self, h: Tensor) -> Any:
        last, self.last = self.last, h.detach().mean()
        return 1 if last is None else last


class Written(Body):
    def start(self) -> None:
        self.sums = [torch.zeros(())]

    def keep(self, h: Tensor) -> Any:
        self.sums[0] += 1
        return self.sums[0].clone()


class Mapping(Body):
    def start(self) -> None:
        self.cache: dict[str, Any] = {}

    def keep(self, h: Tensor) -> Any:
        self.cache["calls"] = self.cache.get("calls", 0) + 1
        return self.cache["calls"]


class Iterators(Body):
    def start(self) -> None:
        self.counts = [itertools.count(), itertools.cycle((1.0, 2.5)), iter(range(100)), enumerate("abc" * 40)]

    def keep(self, h: Tensor) -> Any:
        *numbers, (index, _) = map(next, self.counts)
        return sum(numbers) + index


class Random(Body):
    def start(self) -> None:
        self.torch = torch.Generator().manual_seed(0)
        self.numpy, self.python = np.random.default_rng(0), random.Random(0)

    def keep(self, h: Tensor) -> Any:
        number = self.numpy.normal() + self.python.random()
        return torch.randn(1, generator=self.torch, dtype=torch.float64) + number


class Object(Body):
    def start(self) -> None:
        self.state = SimpleNamespace(calls=[])

    def keep(self, h: Tensor) -> Any:
        self.state.calls.append(1)
        return len(self.state.calls)


elsewhere: Any = ModuleType("elsewhere")
elsewhere.calls, elsewhere.means = 0, []

KINDS = [Buffer, NewBuffer, Attribute, Written, Mapping, Object, Iterators]
X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(8) % 3


SOME = [pytest.param(k, marks=[pytest.mark.slow] if k in (NewBuffer, Written, Mapping, Object) else []) for k in KINDS]


@pytest.fixture
def model(request: Any) -> nn.Module:
    torch.manual_seed(0)
    return request.param().double()


@pytest.fixture
def moved() -> Callable[[Any], bayeslora.Posterior]:
    def fit(model: Any, **settings: Any) -> bayeslora.Posterior:
        posterior = bayeslora.fit(model, (X, Y), "monteclora", rank=2, epochs=1, progress=False, **settings)
        with torch.no_grad():
            for parameter in posterior.guide.parameters():
                parameter += 0.1
        return posterior

    return fit


@pytest.mark.parametrize("model", SOME, indirect=True, ids=lambda kind: kind.__name__)
def test_predictions_do_not_depend_on_those_before(
    model: nn.Module, moved: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh, caplog.handler.level = copy.deepcopy(model), 0
    expected = model.eval()(X)
    model = copy.deepcopy(fresh)
    with caplog.at_level("INFO", "bayeslora"):
        posterior = moved(model)
    assert (
        f"{type(model).__name__} keeps something from one pass to the next, in '{type(model).__name__}'" in caplog.text
    )
    torch.testing.assert_close(model.eval()(X), expected, rtol=0, atol=0)  # it was left as it was

    def draws(posterior: bayeslora.Posterior) -> Any:
        return posterior.predict(X, num_draws=3, seed=0, batch_size=4).draws

    first = draws(posterior)
    np.testing.assert_array_equal(draws(posterior), first)
    np.testing.assert_array_equal(draws(copy.deepcopy(posterior)), first)
    posterior.save(tmp_path)
    np.testing.assert_array_equal(draws(bayeslora.load(tmp_path, fresh)), first)
    probs = posterior.merge()(X).softmax(-1).detach()
    np.testing.assert_allclose(posterior.predict(X, center=True).probs, probs, rtol=1e-12)


@pytest.mark.parametrize("model", KINDS, indirect=True, ids=lambda kind: kind.__name__)
def test_a_pass_that_stops_halfway_leaves_nothing(model: nn.Module) -> None:
    model.eval()
    passes, expected = Passes(), copy.deepcopy(model)(X)
    model.second.register_forward_pre_hook(lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), passes.alone(model):
            model(X)
    model.second._forward_pre_hooks.clear()
    with unchanged(model):
        torch.testing.assert_close(model(X), expected, rtol=0, atol=0)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)


class InAClass(Body):
    calls = 0

    def keep(self, h: Tensor) -> Any:
        InAClass.calls += 1
        return InAClass.calls


def in_a_closure() -> nn.Module:
    last: Any = None
    seen: set[int] = set()

    class InAClosure(Body):
        def keep(self, h: Tensor) -> Any:
            nonlocal last
            before, last = last, h.detach().mean()
            seen.add(len(seen))
            return len(seen) + (1 if before is None else before)

    return InAClosure()


def in_a_long_chain() -> nn.Module:
    """As functions that know of one another, such as those of a large program."""
    seen: list[int] = []

    def last() -> int:
        seen.append(1)
        return len(seen)

    def before(function: Any) -> Any:
        return lambda: function

    chain: Any = last
    for _ in range(2000):
        chain = before(chain)

    class InALongChain(Body):
        def keep(self, h: Tensor) -> Any:
            function = chain
            for _ in range(2000):
                function = function()
            return function()

    return InALongChain()


class Deprecating(type):
    def __getattribute__(cls, name: str) -> Any:
        assert name != "old", "nothing of a user's runs while it is looked at"
        return super().__getattribute__(name)


class Names(metaclass=Deprecating):
    old, calls = 1, 0


class InAnOddClass(Body):
    def keep(self, h: Tensor) -> Any:
        Names.calls += 1
        return Names.calls


MEANS: dict[Any, Tensor] = {}
SUM = torch.zeros(6, dtype=torch.float64)
CALLS = 0


def counted() -> int:
    global CALLS
    CALLS += 1
    return CALLS


class Global(Body):
    def keep(self, h: Tensor) -> Tensor:
        SUM.add_(1)
        return counted() + SUM.clone() + MEANS.setdefault(h.shape, h.detach().mean())


COUNT = itertools.count()


class Counted(Body):
    numbers = iter(range(100))

    def keep(self, h: Tensor) -> Any:
        return next(COUNT) + next(self.numbers)


class InSlots(Body):
    class State:
        __slots__ = ("last", "sums")

    def start(self) -> None:
        self.state, self.state.sums = self.State(), np.zeros(6)

    def keep(self, h: Tensor) -> Any:
        self.state.sums += 1
        before, self.state.last = getattr(self.state, "last", 0), h.detach().mean()
        return torch.from_numpy(self.state.sums.copy()) + before


class Known:
    __slots__ = ("value",)


class Computed(Known):
    """A number that is computed where the class above keeps it, as mpmath's π."""

    @property
    def value(self) -> Tensor:
        raise AssertionError("it is not to be asked for")


KEEPS_NOTHING = Computed()


def test_what_a_class_computes_in_the_place_of_a_slot_is_let_be() -> None:
    class Reads(Body):
        def keep(self, h: Tensor) -> Any:
            return float(KEEPS_NOTHING is None)

    model, passes = Reads().double().eval(), Passes()
    with passes.alone(model), torch.no_grad():
        model(X)
    assert not passes.names


def test_large_libraries_are_not_looked_into() -> None:
    class Charted(Body):  # as KAN's, whose methods show and fit what it has learned
        def table(self) -> Any:
            return pd.DataFrame()

    assert len(places_of(Charted(), ())) < 100


class Pair(NamedTuple):
    sums: Tensor
    calls: Any


class InATuple(Body):
    def start(self) -> None:
        self.kept = torch.zeros(6, dtype=torch.float64), Pair(torch.zeros(6, dtype=torch.float64), itertools.count())
        self.seen = {self.kept[0]}

    def keep(self, h: Tensor) -> Any:
        for each in (self.kept[0], self.kept[1].sums):
            each.add_(1)
        return self.kept[0] + self.kept[1].sums * next(self.kept[1].calls)


class InDefaults(Body):
    def keep(self, h: Tensor, seen: Any = [], sums: Any = np.zeros(6), *, last: Any = {}) -> Any:  # noqa: B006, B008
        seen.append(len(seen))
        sums += 1
        last[len(last)] = h.detach().mean()
        return len(seen) + torch.from_numpy(sums.copy()) + last[0] * len(last)


class InAModule(Body):
    def keep(self, h: Tensor) -> Any:
        elsewhere.calls += 1
        elsewhere.means.append(h.detach().mean())
        return elsewhere.calls * sum(elsewhere.means)


class Contents(Body):
    def start(self) -> None:
        self.bytes, self.numbers, self.text = bytearray(1), array.array("d", [0.0]), io.StringIO()
        self.view, self.of_c, self.masked = memoryview(self.bytes), ctypes.c_double(0.0), np.ma.array([0.0])
        self.objects = np.array([0, None], dtype=object)

    def keep(self, h: Tensor) -> Any:
        self.view[0] += 1
        self.numbers[0] += 1
        self.text.write("x")
        self.of_c.value += 1
        self.masked[0] += 1
        self.objects[0] += 1
        kept = self.bytes[0], self.numbers[0], len(self.text.getvalue()), self.of_c.value, self.masked[0]
        return sum(kept) + self.objects[0]


class Views(Body):
    """Two names of the same memory, one of them NumPy's."""

    def start(self) -> None:
        self.whole = torch.zeros(2, 6, dtype=torch.float64)
        self.part, self.array = self.whole[0], self.whole.numpy()

    def keep(self, h: Tensor) -> Any:
        self.part += 1
        self.array[0] += 1
        return self.whole[0].clone()


class Steps:
    total = 0

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> int:
        self.number += 1
        Steps.total += 1
        return self.number + Steps.total


class Stepping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = Steps()

    def forward(self) -> int:
        return self.step()


class Callables(Body):
    """Objects and modules that are called, and stand where no attribute of a module names them."""

    def start(self) -> None:
        self.bound, self.bent = Steps().__call__, functools.partial(Steps().__call__)
        self.hidden, self.keyed = [Stepping()], {Steps(): 1}

    def keep(self, h: Tensor) -> Any:
        (key,) = self.keyed
        return self.bound() + self.bent() + self.hidden[0]() + key()


class OfTensors(Body):
    """Attributes of tensors and of layers, and the order of a mapping."""

    def start(self) -> None:
        self.register_buffer("zero", torch.zeros(6))
        self.order = OrderedDict(a=1, b=2, c=4)

    def keep(self, h: Tensor) -> Any:
        for each in (self.zero, self.first.weight, self.first):
            each.calls = getattr(each, "calls", 0) + 1
        self.order.move_to_end(next(iter(self.order)))
        return self.zero.calls + self.first.weight.calls + self.first.calls + next(iter(self.order.values()))


LOCAL = threading.local()


class InAThread(Body):
    def keep(self, h: Tensor) -> Any:
        LOCAL.calls = getattr(LOCAL, "calls", 0) + 1
        return LOCAL.calls


KEPT = [InAClass, in_a_closure, Global, InSlots, Counted, Random, InATuple, InDefaults, InAModule]
KEPT += [Contents, Views, Callables, OfTensors, InAThread, in_a_long_chain, InAnOddClass]


@pytest.mark.parametrize("make", KEPT)
def test_what_is_kept_outside_of_modules_is_found(make: Callable[[], nn.Module]) -> None:
    model = make().double().eval()
    passes, found = Passes(), []
    for _ in range(3):
        with passes.alone(model), torch.no_grad():
            found.append(model(X))
    assert passes.names
    with torch.no_grad():
        alone, second = model(X), model(X)
    assert not torch.equal(second, alone), "it keeps nothing"
    assert all(torch.equal(each, alone) for each in found)


VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE")


class InAContext(Body):
    def keep(self, h: Tensor) -> Any:
        VARIABLE.set(VARIABLE.get(0) + 1)
        return VARIABLE.get()


def test_variables_of_a_context_stay_a_passes_own(moved: Any) -> None:
    posterior = moved(model := InAContext().double())
    with pytest.raises(LookupError):
        VARIABLE.get()
    first = posterior.predict(X, num_draws=3, seed=0).draws
    np.testing.assert_array_equal(posterior.predict(X, num_draws=3, seed=0).draws, first)
    assert model(X) is not None


LIST: contextvars.ContextVar[list[int]] = contextvars.ContextVar("LIST")


class InAListOfAContext(Body):
    def keep(self, h: Tensor) -> Any:
        LIST.get().append(1)
        return len(LIST.get())


def test_what_a_variable_of_a_context_holds_is_put_back() -> None:
    def work() -> None:
        LIST.set([])
        model, passes = InAListOfAContext().double().eval(), Passes()
        for _ in range(2):
            with passes.alone(model), torch.no_grad():
                model(X)
            assert LIST.get() == []

    contextvars.Context().run(work)


SERVICE: Any = None
REQUEST: contextvars.ContextVar[Any] = contextvars.ContextVar("REQUEST")


class OfAService(Body):
    def keep(self, h: Tensor) -> Any:
        return 0 * len(SERVICE.answers)


@pytest.mark.parametrize("place", ["context", "global", "attribute"])
def test_what_a_service_does_meanwhile_is_not_undone(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers and workers keep themselves in the context in which a prediction is made; their other threads go on."""
    library = ModuleType("library_of_services")
    library.__file__ = "/home/.local/lib/site-packages/library_of_services.py"
    monkeypatch.setitem(sys.modules, library.__name__, library)
    exec("class Service:\n    def __init__(self, lock): self.lock, self.answers = lock, []", vars(library))
    service = library.Service(threading.Lock())

    def work() -> None:
        if place == "context":
            REQUEST.set(service)
        monkeypatch.setitem(globals(), "SERVICE", service if place == "global" else SimpleNamespace(answers=[]))
        model, passes = OfAService().double().eval(), Passes()
        if place == "attribute":
            model.service = service
        for number in range(3):
            with passes.alone(model), torch.no_grad():
                model(X)
                service.answers.append(number)
        assert service.answers == [0, 1, 2]

    contextvars.Context().run(work)


class InTheEnvironment(Body):
    def keep(self, h: Tensor) -> Any:
        os.environ["CALLS"] = str(int(os.environ.get("CALLS", "0")) + 1)
        return int(os.environ["CALLS"])


class OfTheSystem(Body):
    def keep(self, h: Tensor) -> Any:
        return random.SystemRandom().random()


class Hidden(Body):
    def start(self) -> None:
        self.hidden = [nn.Parameter(torch.zeros(6, dtype=torch.float64), requires_grad=False)]

    def keep(self, h: Tensor) -> Any:
        return self.hidden[0].add_(1).clone()


@pytest.mark.parametrize("make", [InTheEnvironment, OfTheSystem, Hidden])
def test_passes_that_do_not_repeat_are_refused(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALLS", "0")
    with pytest.raises(ValueError, match=f"Two passes of the same rows through the {make.__name__}.*plain attribute"):
        bayeslora.fit(make().double(), (X, Y), "lora", rank=1, epochs=0, progress=False)


class WritesIntoItsInputs(Body):
    """What a network does that brings pixels to [0, 1] in place."""

    def keep(self, h: Tensor) -> Tensor:
        return h

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.mul_(0.5))


def test_a_network_that_writes_into_its_inputs_is_told_to_copy_them() -> None:
    with pytest.raises(ValueError, match=r"it writes into its inputs, .*: input = input\.clone\(\)\."):
        bayeslora.fit(WritesIntoItsInputs().double(), (X, Y), "lora", rank=1, epochs=0, progress=False)


def yielded() -> Iterator[int]:
    yield from range(100)


YIELDED = enumerate(yielded())


def generator_in_a_closure() -> nn.Module:
    steps = yielded()

    class InAClosure(Body):
        def keep(self, h: Tensor) -> Any:
            return next(steps)

    return InAClosure()


class GeneratorInAGlobal(Body):
    def keep(self, h: Tensor) -> Any:
        return next(YIELDED)[1]


class GeneratorInAClass(Body):
    steps = yielded()

    def keep(self, h: Tensor) -> Any:
        for step in self.steps:
            return step


class Pairs(Body):
    """It keeps an iterator that Python does not copy."""

    def start(self) -> None:
        self.pairs = itertools.pairwise(range(100))

    def keep(self, h: Tensor) -> Any:
        return sum(next(self.pairs))


@pytest.mark.parametrize("make", [generator_in_a_closure, GeneratorInAGlobal, GeneratorInAClass, Pairs])
def test_a_generator_that_cannot_be_put_back_is_refused_before_it_is_moved_on(make: Callable[[], nn.Module]) -> None:
    model = make()
    with pytest.raises(TypeError, match=rf"A pass through the {type(model).__name__} moves on a generator.*`forward`"):
        bayeslora.fit(model, (X.float(), Y), "lora", rank=1, epochs=0, progress=False)
    with torch.no_grad():
        first, second = model(X.float()), model(X.float())
    assert not torch.equal(first, second)
    if make is generator_in_a_closure:
        assert next(model.keep.__closure__[0].cell_contents) == 2  # type: ignore[union-attr]


def test_a_generator_that_no_pass_moves_on_is_left_alone() -> None:
    steps = yielded()

    class Rarely(Body):
        def keep(self, h: Tensor) -> Any:
            return next(steps) if len(h) > 100 else 0

    with Passes().alone(model := Rarely().double()):
        model(X)
    assert next(steps) == 0


@dataclasses.dataclass
class Recipe:
    """What einops, for instance, remembers of a pattern."""

    axes: list[int]
    sizes: dict[str, int]


@pytest.mark.parametrize("cache", [functools.cache, functools.lru_cache(8)])
def test_patterns_that_are_remembered_are_computed_once(cache: Callable[[Any], Any]) -> None:
    made: queue.Queue[str] = queue.Queue()

    @cache
    def recipe(pattern: str, shape: tuple[int, ...]) -> Recipe:
        made.put(pattern)
        return Recipe([*range(len(shape))], {"rows": shape[0]})

    class Arranging(Body):
        def keep(self, h: Tensor) -> Any:
            return h.permute(*recipe("rows features", h.shape).axes)

    model, passes = Arranging().double(), Passes()
    for _ in range(3):
        with passes.alone(model), torch.no_grad():
            model(X)
    assert made.qsize() == 1
    assert passes.moving == {False: []}
    assert passes.names == []


def test_what_belongs_to_more_than_a_network_is_left_alone() -> None:
    seen: queue.Queue[int] = queue.Queue()

    class Telling(Body):
        def keep(self, h: Tensor) -> Any:
            seen.put(len(h))
            return 0

    with Passes().alone(model := Telling().double()):
        model(X)
    assert seen.qsize() == 1


def test_results_that_are_remembered_are_each_draws_own() -> None:
    @functools.lru_cache
    def shifts(network: Any) -> Tensor:
        return network.second(torch.ones(6, dtype=torch.float64))

    class InAMethod(Body):
        @functools.cache  # noqa: B019
        def shifts(self) -> Tensor:
            return self.second(torch.ones(6, dtype=torch.float64))

        def keep(self, h: Tensor) -> Any:
            return self.shifts() + shifts(self)

    class Plain(Body):
        def keep(self, h: Tensor) -> Any:
            return 2 * self.second(torch.ones(6, dtype=torch.float64))

    draws = []
    for kind in (InAMethod, Plain):
        torch.manual_seed(0)
        model = kind().double()
        model(X)
        posterior = bayeslora.fit(model, (X, Y), "blob", rank=2, epochs=1, num_particles=2, progress=False)
        with torch.no_grad():
            for parameter in posterior.guide.parameters():
                parameter += 0.1
        draws.append(posterior.predict(X, num_draws=3).draws)
    np.testing.assert_allclose(*draws, rtol=1e-9)


def test_a_mapped_pass_leaves_no_tensor_of_the_map() -> None:
    class Turned(Global):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.transpose(0, 1)).transpose(0, 1).mean(1)

    data, before = (X.expand(5, 8, 4).transpose(0, 1), Y), {*MEANS}
    posterior = bayeslora.fit(Turned().double(), data, "blob", rank=2, epochs=0, progress=False)
    first = posterior.predict(data, num_draws=2).draws
    assert posterior.network.mapped
    assert {*MEANS} == before
    np.testing.assert_array_equal(posterior.predict(data, num_draws=2).draws, first)
    assert posterior.network.model(data[0].clone()).isfinite().all()


def test_numbers_that_a_network_draws_are_those_of_the_seed() -> None:
    class Noisy(Body):
        def keep(self, h: Tensor) -> Tensor:
            return torch.randn_like(h)

    posterior = bayeslora.fit(Noisy().double(), (X, Y), "blob", rank=2, epochs=0, progress=False)
    first = posterior.predict(X, num_draws=3, seed=1).draws  # which measures whether draws can run together
    np.testing.assert_array_equal(posterior.predict(X, num_draws=3, seed=1).draws, first)
    assert posterior.merge() is not None


def test_statistics_of_the_head_are_learned_with_it() -> None:
    network = nn.Sequential()
    network.add_module("body", nn.Linear(4, 6))
    network.add_module("head", nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)))
    posterior = bayeslora.fit(network, ({"input": X.float()}, Y), "lora", epochs=1, progress=False)
    assert posterior.network.model.head[0].running_mean.any()
    assert not network.head[0].running_mean.any()


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_are_computed_are_left_to_themselves(norm: Any) -> None:
    torch.manual_seed(0)
    model = Attribute().double()
    norm(model.out)
    norm(model.second)
    before = {name: value.clone() for name, value in model.train().state_dict().items()}
    posterior = bayeslora.fit(model, (X, Y), "lora", epochs=1, progress=False)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=name)
    probs = posterior.merge().eval()(X).softmax(-1).detach()
    np.testing.assert_allclose(posterior.predict(X, center=True).probs, probs, rtol=1e-12)


class LooksBack(torch.autograd.Function):
    """A product whose factor the backward pass finds in the module, as Reformer's finds its seeds."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, body: Any) -> Tensor:
        ctx.body, body.factor = body, 2.0
        return h * body.factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient * ctx.body.factor, None


class Kept(Body):
    def start(self) -> None:
        self.factor: Any = None

    def keep(self, h: Tensor) -> Tensor:
        return LooksBack.apply(h, self)


def test_a_backward_pass_finds_what_the_forward_pass_kept() -> None:
    body = Kept()
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    bayeslora.fit(body, (x, [0, 1, 2, 0] * 2), "lora", rank=1, epochs=1, progress=False)
    assert body.factor is None
