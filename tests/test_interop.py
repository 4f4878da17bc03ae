"""PEFT's LoRA as a starting point, from memory and from disk."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import bayeslora
from bayeslora import interop
from bayeslora.adapters import SVD, AdaptedNetwork
from bayeslora.methods import PointEstimate
from tests.helpers import tiny_bert, tiny_gpt2, tokens

SETTINGS = {"epochs": 1, "learning_rate": 5e-3, "progress": False}


def peft_model(make: Any = tiny_bert, **settings: Any) -> Any:
    """A PEFT model whose factors and head are off their start."""
    targets = ["c_attn"] if make is tiny_gpt2 else ["query", "value"]
    config = peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 12,
            "target_modules": targets,
            "task_type": "SEQ_CLS",
            "fan_in_fan_out": make is tiny_gpt2,
            **settings,
        }
    )
    model = peft.get_peft_model(make(), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def frozen_fit(model: Any, **settings: Any) -> bayeslora.Posterior:
    """A post-hoc fit, whose centre must be what it started from."""
    return bayeslora.fit(model, tokens(), "monteclora", post_hoc=True, **SETTINGS, **settings)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokens(7)[0]).logits


def centre_logits(posterior: bayeslora.Posterior) -> torch.Tensor:
    inputs, labels = tokens(7)
    with torch.no_grad():
        return posterior.program.eval()(**inputs, labels=labels).logits


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
def test_a_peft_model_is_base_and_starting_point_in_one(make: Any) -> None:
    model = peft_model(make)
    before = logits(model)
    posterior = frozen_fit(model)
    torch.testing.assert_close(centre_logits(posterior), before, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), before), "the PEFT model has changed"


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize("saved", [False, True])
def test_pefts_dora_is_a_starting_point_of_ours(make: Any, saved: bool, tmp_path: Path) -> None:
    model = peft_model(make, use_dora=True)
    model.save_pretrained(tmp_path)
    base, init = (make(), tmp_path) if saved else (model, None)
    posterior = bayeslora.fit(base, tokens(), "dora", init=init, **SETTINGS | {"learning_rate": 1e-12})
    torch.testing.assert_close(centre_logits(posterior), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "bitfit", "dora", "houlsby"])
def test_any_family_is_a_starting_point_of_itself(method: str) -> None:
    first = bayeslora.fit(tiny_bert(), tokens(), method, **SETTINGS)
    again = bayeslora.fit(tiny_bert(), tokens(), method, init=first, **SETTINGS | {"learning_rate": 1e-12})
    torch.testing.assert_close(centre_logits(again), centre_logits(first), rtol=1e-5, atol=1e-5)


def test_another_family_is_no_starting_point() -> None:
    with pytest.raises(TypeError, match=r"'dora' has DoRA \(A, B, m\) adapters and cannot start from LowRank \(A, B\)"):
        bayeslora.fit(peft_model(), tokens(), "dora", **SETTINGS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.attention.self.value": 3}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_a_saved_peft_adapter_is_read(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = peft_model(**settings)
    model.save_pretrained(tmp_path)
    posterior = frozen_fit(tiny_bert(), init=tmp_path)
    torch.testing.assert_close(centre_logits(posterior), logits(model), rtol=1e-5, atol=1e-5)


def test_another_peft_model_can_be_the_starting_point() -> None:
    model = peft_model()
    posterior = frozen_fit(tiny_bert(), init=model)
    torch.testing.assert_close(centre_logits(posterior), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("saved", [False, True])
def test_a_posterior_is_a_starting_point(tmp_path: Path, saved: bool) -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", targets="attention", rank=3, alpha=5, **SETTINGS)
    lora.save(tmp_path)
    posterior = frozen_fit(tiny_bert(), init=tmp_path if saved else lora)
    assert torch.equal(centre_logits(posterior), centre_logits(lora))
    assert posterior.network.stacks["32x32"].rank == 3


def test_training_goes_on_from_the_starting_point() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    further = bayeslora.fit(tiny_bert(), tokens(), "lora", init=lora, **SETTINGS | {"learning_rate": 1e-9})
    torch.testing.assert_close(centre_logits(further), centre_logits(lora), rtol=1e-4, atol=1e-5)
    changed = bayeslora.fit(tiny_bert(), tokens(), "lora", init=lora, **SETTINGS)
    assert not torch.allclose(centre_logits(changed), centre_logits(lora), atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bias": "all"}, "bias='all': its update is not B A alone")],
)
def test_other_kinds_of_peft_adapters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        interop.from_peft(peft_model(**settings))
    ia3 = peft.get_peft_model(
        tiny_bert(), peft.IA3Config(target_modules=["query"], feedforward_modules=[], task_type="SEQ_CLS")
    )
    with pytest.raises(ValueError, match=r"of type PeftType\.IA3; only LORA"):
        interop.from_peft(ia3)


def test_what_is_no_starting_point_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no PEFT adapter: there is no adapter_config\.json"):
        bayeslora.fit(tiny_bert(), tokens(), init=tmp_path, **SETTINGS)
    with pytest.raises(TypeError, match="init is a int; give a Posterior, a PEFT model, or a folder"):
        bayeslora.fit(tiny_bert(), tokens(), init=3, **SETTINGS)
    with pytest.raises(ValueError, match="post_hoc=True keeps trained adapters as they are: pass them"):
        bayeslora.fit(tiny_bert(), tokens(), post_hoc=True, **SETTINGS)
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    with pytest.raises(ValueError, match=r"task head .* the model's is"):
        interop.from_program(lora.program).start(
            bayeslora.fit(tiny_bert(num_labels=4), tokens(num_labels=4), "lora", **SETTINGS).program
        )


def test_adapters_of_a_program_give_the_same_network() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", targets="attention", **SETTINGS)
    adapters = interop.from_program(lora.program)
    network = AdaptedNetwork(tiny_bert(), **adapters.network_settings())
    assert list(network.stacks) == list(lora.network.stacks)
    factors = adapters.stacked(network.stacks)
    assert all(torch.equal(factors[name].A, lora.guide[name].sites["A"].loc) for name in factors)


# Export


class SVDPoint(PointEstimate):
    """A point estimate of the SVD family's factors."""

    name = "svd"
    family = SVD()


def from_peft_folder(folder: Path, make: Any = tiny_bert) -> Any:
    base = make()
    torch.nn.init.normal_(base.get_submodule("score" if make is tiny_gpt2 else "classifier").weight)  # a new head
    return peft.PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2])
@pytest.mark.parametrize("method", ["lora", "monteclora", "dora", SVDPoint()], ids=str)
def test_peft_loads_what_is_exported(make: Any, method: Any, tmp_path: Path) -> None:
    posterior = bayeslora.fit(make(), tokens(), method, rank={"c_proj": 3, "output.dense": 3}, alpha=5, **SETTINGS)
    assert posterior.export_peft(tmp_path) == [tmp_path]
    exported = from_peft_folder(tmp_path, make)
    torch.testing.assert_close(logits(exported), centre_logits(posterior), rtol=1e-5, atol=1e-5)


def test_draws_are_exported_one_by_one(tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "monteclora", noise_ratio=20.0, **SETTINGS)
    folders = posterior.export_peft(tmp_path / "adapters", num_draws=2, seed=4)
    assert folders == [tmp_path / "adapters" / f"draw-{index}" for index in range(2)]
    draws = posterior.draw(2, seed=4)
    inputs, labels = tokens(7)
    for index, folder in enumerate(folders):
        sites = {name: value[index] for name, value in draws.items()}
        with torch.no_grad():
            expected = posterior.program.eval().logits(sites, {**inputs, "labels": labels})
        torch.testing.assert_close(logits(from_peft_folder(folder)), expected, rtol=1e-5, atol=1e-5)
    point = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    assert len(point.export_peft(tmp_path / "point", num_draws=5)) == 1


def test_what_is_exported_can_be_read_again(tmp_path: Path) -> None:
    first = bayeslora.fit(tiny_bert(), tokens(), "dora", **SETTINGS)
    first.export_peft(tmp_path)
    again = bayeslora.fit(tiny_bert(), tokens(), "dora", init=tmp_path, **SETTINGS | {"learning_rate": 1e-12})
    torch.testing.assert_close(centre_logits(again), centre_logits(first), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["full", "bitfit", "houlsby"])
def test_what_is_no_lora_cannot_be_exported(method: str, tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), method, **SETTINGS)
    with pytest.raises(ValueError, match="adapters have no form in PEFT's LoRA, and cannot be exported"):
        posterior.export_peft(tmp_path)
    assert not list(tmp_path.iterdir())
