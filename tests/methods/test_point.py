"""Point baselines: how many numbers they learn, which layers they follow, and their fits end to end."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bayeslora
from bayeslora.adapters import AdaptedNetwork
from bayeslora.methods import make_method
from bayeslora.program import Program
from tests.helpers import batch, tiny_bert, tokens
from tests.methods.conftest import randomise

Make = Callable[..., Program]
BASELINES = ("full", "bitfit", "dora", "houlsby", "pfeiffer")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Two layers of query, key, value, output (32 → 32), 32 → 48 and 48 → 32, at rank 4.
        ("lora", 2 * (4 * (4 * 32 + 4 * 32) + 2 * 4 * (32 + 48))),
        ("full", 2 * (4 * 32 * 32 + 2 * 32 * 48)),
        ("bitfit", 2 * (4 * 32 + 48 + 32)),
        ("dora", 2 * (4 * (4 * 32 + 4 * 32) + 2 * 4 * (32 + 48) + 4 * 32 + 48 + 32)),
        ("houlsby", 2 * 2 * (2 * 4 * 32 + 4 + 32)),
        ("pfeiffer", 2 * (2 * 4 * 32 + 4 + 32)),
    ],
)
def test_numbers_learned(name: str, expected: int, make_program: Make) -> None:
    assert sum(parameter.numel() for parameter in make_program(name).guide.parameters()) == expected


@pytest.mark.parametrize(("name", "ends"), [("houlsby", 2), ("pfeiffer", 1)])
def test_bottlenecks_follow_what_ends_attention_and_mlp(name: str, ends: int) -> None:
    network = AdaptedNetwork(tiny_bert(), make_method(name).family)
    names = {layer for stack in network.stacks.values() for layer in stack.layer_names}
    expected = ["output.dense", "attention.output.dense"][:ends]
    assert names == {f"bert.encoder.layer.{index}.{end}" for index in range(2) for end in expected}


def test_a_prior_is_on_every_factor_but_the_norms(make_program: Make) -> None:
    plain = randomise(make_program("dora", double=True))
    tied = randomise(make_program("dora", double=True, prior_scale=0.5))
    tied.load_state_dict(plain.state_dict())
    difference = (tied(**batch(6)).loss - plain(**batch(6)).loss).item()
    normal = torch.distributions.Normal(0.0, 0.5)
    density = sum(
        normal.log_prob(site.loc).sum() for name, site in plain.guide.named_modules() if name.endswith((".A", ".B"))
    )
    assert difference == pytest.approx(-density.item() / 48, rel=1e-9)


@pytest.mark.parametrize("name", BASELINES)
def test_fits_predict_save_and_merge(name: str, tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), name, epochs=2, learning_rate=5e-3, progress=False)
    test = tokens(10, seed=3)
    prediction = posterior.predict(test)
    assert len(prediction.draws) == 1
    posterior.save(tmp_path)
    assert (bayeslora.load(tmp_path, tiny_bert()).predict(test).draws == prediction.draws).all()
    norms = [value for key, value in posterior.to_arviz(num_draws=1).posterior.items() if key.startswith("delta_norm")]
    assert all(bool((value > 0).all()) for value in norms)
    if name in ("houlsby", "pfeiffer"):
        with pytest.raises(ValueError, match="Bottleneck adapters are layers of their own"):
            posterior.merge()
    else:
        with torch.no_grad():
            merged = torch.softmax(posterior.merge()(**test[0]).logits.double(), -1)
        torch.testing.assert_close(merged, torch.tensor(prediction.probs), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_a_prior_scale_is_positive(name: str) -> None:
    with pytest.raises(ValueError, match=r"prior_scale=-1: give a positive finite standard deviation"):
        make_method(name, prior_scale=-1)
