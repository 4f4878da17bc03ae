"""Draws that are made when they are needed: the same each time, in memory that does not grow with their number."""

import gc
from collections.abc import Iterator
from functools import partial
from typing import Any
from weakref import WeakSet, finalize

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import IterableDataset

import bayeslora
from bayeslora import metrics
from bayeslora.drawing import BLOCK, HELD, Drawn
from bayeslora.isolation import seeded
from bayeslora.prediction import Part, run_parts
from tests.helpers import tiny_bert, tokens

MANY = HELD + BLOCK + 3


class Live(TorchDispatchMode):
    """Bytes of storages that operators have made and that still live, at their most."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: WeakSet[torch.UntypedStorage] = WeakSet()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self.storages:
                self.storages.add(storage)
                self.count(storage.nbytes())
                finalize(storage, self.count, -storage.nbytes())
        return made

    def count(self, change: int) -> None:
        self.now += change
        self.most = max(self.most, self.now)


def made(method: str, **fields: Any) -> bayeslora.Posterior:
    base = tiny_bert().double()
    fitted = bayeslora.fit(base, tokens(12), method, progress=False, epochs=0, rank=8, **fields)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in fitted.guide.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    return fitted


@pytest.fixture(scope="module")
def posterior() -> bayeslora.Posterior:
    return made("blob")


def most_bytes(posterior: bayeslora.Posterior, num_draws: int, linear: bool) -> int:
    """The most bytes of all that a prediction of one example makes, and of the network and the guide."""
    program, inputs = posterior.program, {name: value[:1] for name, value in tokens(4)[0].items()}
    gc.collect()
    with Live() as live:
        part = Part(program, Drawn(program, num_draws, 0), num_draws, linear)
        run_parts([part], [(np.arange(1), inputs), (np.ones(1, int), inputs)], with_labels=False)
    return live.most + sum(parameter.numel() * parameter.element_size() for parameter in program.parameters())


@pytest.mark.parametrize("linear", [False, True])
def test_memory_does_not_grow_with_the_draws(posterior: bayeslora.Posterior, linear: bool) -> None:
    few, many = (most_bytes(posterior, num_draws, linear) for num_draws in (BLOCK, 16 * BLOCK))
    assert many <= 1.05 * few


def test_memory_does_not_grow_with_a_streams_examples(posterior: bayeslora.Posterior) -> None:
    inputs, _ = tokens(4)

    class Stream(IterableDataset[Any]):
        def __init__(self, count: int):
            self.count = count

        def __iter__(self) -> Iterator[Any]:
            return ({name: value[row % 4].tolist() for name, value in inputs.items()} for row in range(self.count))

    found = []
    for count in (16, 128):
        gc.collect()
        with Live() as live:
            drawn = posterior.predict(Stream(count), 2, batch_size=4).draws
        found.append(live.most - drawn.nbytes)  # what is asked for has to be somewhere
    assert found[1] <= 1.01 * found[0]


def test_draws_are_the_same_each_time(posterior: bayeslora.Posterior) -> None:
    drawn = Drawn(posterior.program, MANY, 1)
    sizes = [len(next(iter(block.values()))) for block in drawn]
    assert sizes == [BLOCK] * (MANY // BLOCK) + [MANY % BLOCK]
    together = posterior.draw(MANY, seed=1)
    for name, value in drawn.together().items():
        assert len(value) == MANY
        assert torch.equal(value, together[name])
    A = next(value for name, value in together.items() if name.endswith(".A"))
    assert len({float(draw.sum()) for draw in A}) == MANY  # no two blocks are alike


def test_a_prediction_runs_these_draws(posterior: bayeslora.Posterior) -> None:
    inputs, _ = tokens(5)
    for approximation in ("draws", "linear"):
        sites, kind = posterior.draw(MANY, seed=1), approximation
        found = run_parts([Part(posterior.program, sites, MANY, kind == "linear")], [(np.arange(5), inputs)], False)
        own = posterior.predict(inputs, MANY, seed=1, batch_size=2, approximation=kind)  # type: ignore[arg-type]
        np.testing.assert_allclose(own.draws, metrics.softmax(found.logits), rtol=1e-5)


def test_the_global_state_is_advanced_and_decides(posterior: bayeslora.Posterior) -> None:
    torch.manual_seed(3)
    first, second = (posterior.draw(MANY, seed=None) for _ in range(2))
    torch.manual_seed(3)
    again = posterior.draw(MANY, seed=None)
    for name in (name for name in first if name.endswith(".A")):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], second[name])


def test_a_layer_that_differs_only_later_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = made("blob", targets=["layer.1.output.dense", "layer.0.output.dense"])
    drawn = Drawn(posterior.program, MANY, 0)
    own = drawn._block

    def block(index: int, seed: int) -> Any:
        made = {name: value.clone() for name, value in own(index, seed).items()}
        if index == 0:
            for value in made.values():
                value[:, 0] = value[0, 0].clone()
        return made

    monkeypatch.setattr(drawn, "_block", block)
    inputs, _ = tokens(3)
    batches = [(np.arange(3), inputs)]
    found, expected = (
        run_parts([Part(posterior.program, sites, MANY)], batches, False) for sites in (drawn, drawn.together())
    )
    np.testing.assert_allclose(found.logits, expected.logits, rtol=1e-9)


def test_up_to_as_many_draws_as_are_held_they_are_drawn_at_once(posterior: bayeslora.Posterior) -> None:
    with seeded(4):
        at_once = posterior.program.draw(HELD)
    for name, value in posterior.draw(HELD, seed=4).items():
        assert torch.equal(value, at_once[name])


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("blob", {}),
        ("monteclora", {}),
        ("scalabl", {}),
        ("autoguide", {"autoguide": "AutoLowRankMultivariateNormal"}),
        ("tfb", {"sigma": 0.1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_antithetic_draws_are_mirror_images(method: str, fields: dict[str, Any]) -> None:
    posterior = made(method, **fields)
    drawn, centre = posterior.draw(7, antithetic=True, seed=1), posterior.program.centre()
    mirrored = set()
    for name, value in drawn.items():
        first, second = value[0:6:2], value[1::2]
        if not torch.equal(first, second):
            mirrored.add(name)
            mean = ((first + second) / 2 - centre[name]).detach().abs().max()
            assert float(mean) < 1e-12 * float(1 + first.abs().max())
        assert len(value) == 7
        assert not torch.equal(value[0], value[2]) or bool((value == value[0]).all())
    # Weights and covariances of the mixture are shared: on them, the Gaussians' covariance depends.
    assert {name.rpartition(".")[2] for name in mirrored} <= {"A", "B", "g", "noise", "weight", "bias"}
    assert mirrored


def test_the_average_of_a_pair_has_no_first_order_error(posterior: bayeslora.Posterior) -> None:
    inputs, labels = tokens(5)
    pair = posterior.predict(inputs, 2, antithetic=True, approximation="linear").draws
    centre = posterior.predict(inputs, center=True).draws[0]
    logits = np.log(pair) - np.log(pair[..., :1])
    np.testing.assert_allclose(logits.mean(0), np.log(centre) - np.log(centre[..., :1]), rtol=1e-6, atol=1e-9)
    assert np.abs(logits[0] - logits[1]).max() > 1e-5
    for call in (partial(posterior.predict, inputs), partial(posterior.decide, (inputs, labels))):
        with pytest.raises(ValueError, match="antithetic=True is about draws, and center=True predicts without any"):
            call(center=True, antithetic=True)
    many = posterior.predict(inputs, MANY, antithetic=True)  # in blocks, each of pairs
    assert len(many.draws) == MANY
    scores = posterior.evaluate((inputs, labels), MANY, antithetic=True)
    assert scores["nll"] == pytest.approx(many.scores(labels.numpy())["nll"], rel=1e-9)
    settled = posterior.predict(inputs, "auto", antithetic=True)
    assert np.allclose(settled.probs, posterior.predict(inputs, 32, antithetic=True).probs, atol=0.2)


@pytest.mark.parametrize("method", ["lora_dropout", "deep_ensemble"])
def test_what_has_no_gaussian_site_has_no_mirror_image(method: str) -> None:
    with pytest.raises(ValueError, match=f"antithetic=True mirrors Gaussian sites, and '{method}' draws from none"):
        made(method).predict(tokens(2)[0], 4, antithetic=True)
