"""Calls of a posterior by what runs in the middle of another call: hooks, signal handlers, errors that are kept."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora import isolation
from bayeslora.isolation import AtWorkError

PATIENCE = 60


class Calling(nn.Module):
    """A network that calls a function between two of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if CALL:
            CALL[0]()
        return self.head(torch.tanh(self.second(x)))


CALL: list[Any] = []
"""What networks call; a global, so that copies of a network call it too."""


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    return Calling().double()


DATA = torch.randn(6, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(6) % 3


def posterior_of(base: nn.Module, seed: int = 0, **settings: Any) -> bayeslora.Posterior:
    torch.manual_seed(seed)
    posterior = bayeslora.fit(base, DATA, "blob", epochs=0, progress=False, seed=seed, **settings)
    with torch.no_grad():
        for parameter in posterior.guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return posterior


CALLS: dict[str, Any] = {
    "predict": lambda posterior: posterior.predict(DATA, num_draws=4).probs,
    "centre": lambda posterior: posterior.predict(DATA, center=True).probs,
    "linear": lambda posterior: posterior.predict(DATA, num_draws=4, approximation="linear").probs,
    "evaluate": lambda posterior: np.array([*posterior.evaluate(DATA, num_draws=4).values()]),
}


@pytest.mark.parametrize("outer", CALLS)
@pytest.mark.parametrize("inner", CALLS)
def test_a_posterior_that_is_called_in_the_middle_of_its_own_pass_refuses(
    inner: str, outer: str, base: nn.Module
) -> None:
    posterior, other = posterior_of(base), posterior_of(base, seed=1)
    expected, others = CALLS[outer](posterior), CALLS[inner](other)
    errors, found = [], []

    def call() -> None:
        CALL.clear()
        try:
            CALLS[inner](posterior)
        except AtWorkError as error:
            errors.append(str(error))
        found.append(CALLS[inner](other))
        CALL.append(call)

    CALL.append(call)
    try:
        given = CALLS[outer](posterior)
    finally:
        CALL.clear()
    np.testing.assert_array_equal(given, expected)
    assert len(errors) == len(found) > 0
    for each in found:
        np.testing.assert_array_equal(each, others)
    assert "in the middle of a pass" in errors[0]
    np.testing.assert_array_equal(CALLS[outer](posterior), expected)


def test_a_fit_is_what_it_is_whatever_its_passes_call(base: nn.Module) -> None:
    def fit() -> np.ndarray:
        return np.asarray(bayeslora.fit(base, DATA, "blob", epochs=2, progress=False).predict(DATA).probs)

    other, expected = posterior_of(base, seed=1), fit()
    others, found = CALLS["predict"](other), []

    def call() -> None:
        CALL.clear()
        found.append(CALLS["predict"](other))
        CALL.append(call)

    CALL.append(call)
    try:
        given = fit()
    finally:
        CALL.clear()
    assert np.array_equal(given, expected)
    assert all(np.array_equal(each, others) for each in found)


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals cannot be sent to threads.")
def test_a_signal_handler_may_call_while_its_thread_waits_for_its_turn(base: nn.Module) -> None:
    posterior, found = posterior_of(base), []
    expected = CALLS["predict"](posterior)

    def until(number: int) -> None:
        end = time.monotonic() + PATIENCE
        while isolation._waiting < number and time.monotonic() < end:
            time.sleep(0.001)

    entered, main = threading.Event(), threading.get_ident()

    def hold() -> None:
        with isolation.exclusive():
            entered.set()
            until(1)
            signal.pthread_kill(main, signal.SIGUSR1)
            until(2)

    before = signal.signal(signal.SIGUSR1, lambda *_: found.append(CALLS["predict"](posterior)))
    try:
        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(hold)
            assert entered.wait(PATIENCE)
            found.append(CALLS["predict"](posterior))
            holding.result(PATIENCE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(found) == 2
    assert all(np.array_equal(each, expected) for each in found)


def test_an_interruption_that_is_kept_leaves_nothing_of_its_pass(
    base: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior = posterior_of(base, targets="second")
    expected = CALLS["predict"](posterior)
    collector = type(posterior.program.likelihood.collector(False, None))

    def interrupted(self: Any, where: Any, batch: Any, logits: Any) -> None:
        next(iter(logits))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(collector, "add", interrupted)
        # As a notebook does, this keeps the error, and with it every frame that it has passed.
        with pytest.raises(KeyboardInterrupt) as kept:
            posterior.predict(DATA[0] + 5, num_draws=4)
    assert np.array_equal(CALLS["predict"](posterior), expected)
    assert kept.tb is not None
