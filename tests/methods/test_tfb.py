"""TFB (arXiv 2412.05723): the rotated factors, the noise on the product, and the search for σ."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bayeslora
from bayeslora.methods import TFB, tfb
from bayeslora.program import Program
from tests.helpers import assert_mean_close, batch, tiny_bert, tokens
from tests.methods.conftest import randomise

Make = Callable[..., Program]


def deltas(program: Program, sites: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: B @ A for name, (A, B) in program.factors_at(sites).items()}


def refined(make_program: Make, **fields: float) -> Program:
    program = randomise(make_program("tfb", double=True, **fields)).eval()
    program.guide = program.method.refine(program, program.guide, [batch(24)], [])
    return program


def test_without_noise_it_is_lora(make_program: Make) -> None:
    lora, program = (randomise(make_program(name, double=True)) for name in ("lora", "tfb"))
    outputs = lora(**batch(6)), program(**batch(6))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert program.method.num_draws(program.guide) == 1


def test_rotation_keeps_the_product_and_makes_the_columns_of_B_orthogonal(make_program: Make) -> None:
    program = randomise(make_program("tfb", double=True))
    before = deltas(program, program.centre())
    for guide in program.guide.values():
        guide.rotate()
        gram = guide.B.mT @ guide.B
        torch.testing.assert_close(gram, torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)))
    for name, after in deltas(program, program.centre()).items():
        torch.testing.assert_close(after, before[name])


def test_noise_on_the_product_is_as_loud_in_every_direction(make_program: Make) -> None:
    program = refined(make_program)
    with torch.no_grad():
        centre, draws = deltas(program, program.centre()), deltas(program, program.draw(2_000))
        for name, guide in program.guide.items():
            U = guide.B / guide.B.norm(dim=-2, keepdim=True)
            noise = (draws[name] - centre[name])[:, 0]
            Z = (U[0].mT @ noise) / guide.sigma
            assert_mean_close(Z.square(), 1.0)
            assert_mean_close(Z[:, 0] * Z[:, 1], 0.0)
            torch.testing.assert_close(U[0] @ Z * guide.sigma, noise)  # nothing beside U


def test_directions_that_are_numerically_zero_have_no_noise(make_program: Make) -> None:
    program = randomise(make_program("tfb"))
    with torch.no_grad():
        for guide in program.guide.values():
            guide.B[..., 1] = guide.B[..., 0]  # one of four singular values is rounding
            guide.rotate()
            guide.sigma.fill_(0.1)
        for name, value in program.draw(3).items():
            if name.endswith(".A"):
                stack = name.removesuffix(".A")
                moved = (value - program.guide[stack].A).abs().amax((0, 1, 3))
                assert (moved > 0).tolist() == [True, True, True, False]


def test_an_untrained_adapter_stays_a_point(make_program: Make) -> None:
    program = make_program("tfb").eval()  # B = 0
    program.guide = program.method.refine(program, program.guide, [batch(8)], [])
    draws = program.draw(2)
    assert all(bool(value.isfinite().all()) for value in draws.values())
    assert all(torch.equal(value[0], value[1]) for value in draws.values())


def test_sigma_keeps_to_its_tolerance_and_the_next_one_does_not(
    make_program: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[float, int, float]] = []
    original = tfb._nll

    def counted(program: Program, batches: object, seed: int) -> float:
        value = original(program, batches, seed)
        passes.append((float(next(iter(program.guide.values())).sigma), seed, value))
        return value

    monkeypatch.setattr(tfb, "_nll", counted)
    anchors = [batch(24), batch(7, seed=3)]
    program = randomise(make_program("tfb", double=True, tolerance=0.01)).eval()
    program.guide = program.method.refine(program, program.guide, [], anchors)
    assert len(passes) <= 16
    assert passes[0][0] == 0
    _, seed, without_noise = passes[0]
    (sigma,) = {float(guide.sigma) for guide in program.guide.values()}
    assert sigma > 0

    def rise(sigma: float) -> float:
        for guide in program.guide.values():
            guide.sigma.fill_(sigma)
        return original(program, anchors, seed) / without_noise - 1

    assert rise(sigma) <= 0.01
    assert sigma == pytest.approx(10.24) or rise(sigma * 2 ** (1 / 16)) > 0.01  # unless it is the grid's largest


@pytest.mark.parametrize("exponent", [-10.5, -9.99, -3.3, -0.01, 0.0, 0.01, 5.7, 9.99, 12])
def test_the_search_finds_a_threshold_in_fifteen_questions(exponent: float) -> None:
    threshold, asked = 0.01 * 2**exponent, []
    found = tfb._largest(lambda sigma: asked.append(sigma) or sigma <= threshold)
    assert len(asked) <= 15
    if exponent < -10:
        assert found == 0
    elif exponent > 10:
        assert found == pytest.approx(10.24)
    else:
        assert found <= threshold < found * 2 ** (1 / 16)


def test_a_trained_lora_becomes_a_posterior_without_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", epochs=4, learning_rate=5e-3, progress=False)
    with caplog.at_level(logging.INFO):
        posterior = bayeslora.fit(
            tiny_bert(), tokens(), "tfb", init=lora, post_hoc=True, tolerance=0.1, output_dir=tmp_path, progress=False
        )
    assert "with training (there is no validation data) examples as anchors" in caplog.text
    assert posterior.history.empty
    test = tokens(20, seed=4)
    centre, trained = (p.predict(test, center=True).probs for p in (posterior, lora))
    torch.testing.assert_close(torch.as_tensor(centre), torch.as_tensor(trained), rtol=0, atol=1e-5)
    assert posterior.predict(test, 4).epistemic.max() > 0
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert (loaded.predict(test, 4).draws == posterior.predict(test, 4).draws).all()
    same = bayeslora.fit(tiny_bert(), tokens(), "tfb", init=lora, epochs=0, tolerance=0.1, progress=False)
    assert (same.predict(test, 4).draws == posterior.predict(test, 4).draws).all()


def test_it_trains_a_lora_first(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"epochs": 2, "learning_rate": 5e-3, "progress": False}
    with caplog.at_level(logging.INFO):
        posterior = bayeslora.fit(tiny_bert(), tokens(), "tfb", validation=tokens(30, seed=8), **settings)
    assert "with validation examples as anchors" in caplog.text
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", validation=tokens(30, seed=8), **settings)
    assert posterior.history["nll"].tolist() == pytest.approx(lora.history["nll"].tolist())


def test_a_tolerance_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"tolerance=0.0: give a positive finite number"):
        TFB(tolerance=0.0)
