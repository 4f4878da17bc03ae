"""PEFT's adapters as a starting point, from memory and from disk, and ours as PEFT's."""

import copy
import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import CordaConfig
from safetensors.torch import load_file, save_file
from torch import nn

import bayeslora
from bayeslora import interop
from bayeslora.adapters import SVD, AdaptedNetwork
from bayeslora.interop import merging, peft_in, peft_out, starting
from bayeslora.methods import PointEstimate
from tests.helpers import tiny_bert, tiny_gpt2, tiny_llama, tokens
from tests.tasks.cases import named as case

SETTINGS = {"epochs": 1, "learning_rate": 5e-3, "progress": False}
EXACT = {"rtol": 1e-5, "atol": 1e-5}
ATTENTION = {tiny_bert: ["query", "value"], tiny_gpt2: ["c_attn"], tiny_llama: ["q_proj", "v_proj"]}
MAKERS = list(ATTENTION)


def lora_config(make: Any = tiny_bert, **settings: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        **{
            "r": 4,
            "lora_alpha": 12,
            "target_modules": ATTENTION[make],
            "task_type": "SEQ_CLS",
            "fan_in_fan_out": make is tiny_gpt2,
            **settings,
        }
    )


def moved(model: Any) -> Any:
    """A PEFT model in double precision whose trained parameters are off their start."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def peft_model(make: Any = tiny_bert, **settings: Any) -> Any:
    """A PEFT model whose factors and head are off their start."""
    return moved(peft.get_peft_model(make(), lora_config(make, **settings)))


def started(model: Any, method: str = "lora", **settings: Any) -> bayeslora.Posterior:
    """A fit without training, whose centre must be what it started from."""
    return bayeslora.fit(model, tokens(), method, **{**SETTINGS, "epochs": 0, **settings})


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokens(7)[0]).logits


def centre_logits(posterior: bayeslora.Posterior) -> torch.Tensor:
    inputs, labels = tokens(7)
    with torch.no_grad():
        return posterior.program.eval()(**inputs, labels=labels).logits


# Read


@pytest.mark.parametrize("make", MAKERS)
def test_a_peft_model_is_base_and_starting_point_in_one(make: Any) -> None:
    model = peft_model(make)
    before = logits(model)
    posterior = bayeslora.fit(model, tokens(), "monteclora", post_hoc=True, **SETTINGS)
    torch.testing.assert_close(centre_logits(posterior), before, **EXACT)
    assert torch.equal(logits(model), before), "the PEFT model has changed"


READ: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "dora rslora": {"use_dora": True, "use_rslora": True},
    "dropout": {"lora_dropout": 0.3},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "mica": {"init_lora_weights": "mica"},
    "random": {"init_lora_weights": False},
    "one layer": {"layers_to_transform": [1]},
    "all linear": {"target_modules": "all-linear"},
    "expression": {"target_modules": r".*(query|c_attn|q_proj)"},
    "excluded": {"exclude_modules": r".*\.0\..*"},
    "nowhere else": {"qalora_group_size": 8, "inference_mode": False, "revision": "main"},
}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("saved", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize("settings", READ.values(), ids=READ)
def test_what_is_read_is_what_peft_computes(make: Any, saved: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    dtype = torch.float32 if settings.get("init_lora_weights") == "mica" else torch.float64  # PEFT reads no other
    model = peft_model(make, **settings).to(dtype)
    model.save_pretrained(tmp_path)
    base, init = (make().to(dtype), tmp_path) if saved else (model, None)
    posterior = started(base, "dora" if "use_dora" in settings else "lora", init=init)
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)
    assert posterior.network.dtype == dtype


@pytest.mark.parametrize("saved", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize(
    "settings",
    [
        {"rank_pattern": {"query": 2}, "alpha_pattern": {"layer.1.attention.self.value": 3}},
        {"rank_pattern": {"^bert.encoder.layer.0.*": 2}, "alpha_pattern": {r".*layer\.1.*": 3}, "use_rslora": True},
    ],
)
def test_patterns_are_pefts(saved: bool, settings: dict[str, Any], tmp_path: Path) -> None:
    model = peft_model(**settings)
    model.save_pretrained(tmp_path)
    posterior = started(tiny_bert().double(), init=tmp_path if saved else model)
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)
    assert {stack.rank for stack in posterior.network.stacks.values()} == {2, 4}


def test_a_scaling_set_by_hand_is_read() -> None:
    model = peft_model()
    for layer in model.modules():
        if hasattr(layer, "scale_layer"):
            layer.scale_layer(0.4)
    torch.testing.assert_close(centre_logits(started(model)), logits(model), **EXACT)


def test_an_adapter_that_counts_for_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"multiplied by 0 in every layer \(lora_alpha=0"):
        started(peft_model(lora_alpha=0))


def test_the_active_adapter_is_read_whatever_its_name_and_rank() -> None:
    model = peft.get_peft_model(tiny_bert(), lora_config(), adapter_name="first")
    model.add_adapter("second", lora_config(r=2, lora_alpha=7, target_modules=["key"]))
    for name in ("first", "second"):
        model.set_adapter(name)
        moved(model)
    for name, rank, suffix in (("first", 4, "query"), ("second", 2, "key")):
        model.set_adapter(name)
        posterior = started(model)
        torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)
        stack = posterior.network.stacks["32x32"]
        assert stack.rank == rank
        assert any(layer.endswith(suffix) for layer in stack.layer_names)


def test_a_combination_of_adapters_is_read() -> None:
    model = peft.get_peft_model(tiny_bert(), lora_config(task_type=None))
    model.add_adapter("second", lora_config(r=2, task_type=None))
    for name in ("default", "second"):
        model.set_adapter(name)
        moved(model)
    model.add_weighted_adapter(["default", "second"], [0.5, 0.7], "both", combination_type="cat")
    model.set_adapter("both")
    posterior = started(model)
    assert posterior.network.stacks["32x32"].rank == 6
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)


def test_half_precision_adapters_are_read_in_single() -> None:
    model = peft.get_peft_model(tiny_bert().bfloat16(), lora_config(), autocast_adapter_dtype=False)
    posterior = started(moved(model).bfloat16())
    factors = interop.from_program(posterior.program).factors
    assert {A.dtype for A, _ in factors.values()} == {torch.float32}
    torch.testing.assert_close(centre_logits(posterior).float(), logits(model).float(), rtol=0.05, atol=0.05)


def test_dropout_that_is_not_taken_over_is_said(caplog: pytest.LogCaptureFixture) -> None:
    model = peft_model(lora_dropout=0.25)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        started(model)
        assert "lora_dropout=0.25" in caplog.text
        assert "method='mc_dropout', p=0.25" in caplog.text
        caplog.clear()
        started(model, "mc_dropout", p=0.25)
        started(peft_model())
        assert not caplog.text


# Starts that change the base


def with_corda(make: Any) -> Any:
    model, config = make(), lora_config(make, init_lora_weights="corda", corda_config=CordaConfig())
    for name, layer in model.named_modules():
        if name.endswith(tuple(ATTENTION[make])):  # what PEFT's preprocessing leaves there, without data
            weight = layer.weight.detach().T if make is tiny_gpt2 else layer.weight.detach()
            U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
            layer.eigens = SimpleNamespace(U_WC=U[:, :4], S_WC=S[:4], V_WC=Vh[:4].T)
    return peft.get_peft_model(model, config)


def with_lora_ga(make: Any) -> Any:
    model = make()
    config = lora_config(make, init_lora_weights="lora_ga", lora_ga_config=peft.LoraGAConfig())
    inputs, labels = tokens()
    peft.tuners.lora.preprocess_loraga(model, config, lambda: model(**inputs, labels=labels).loss.backward())
    return peft.get_peft_model(model, config)


def with_start(init: str) -> Callable[[Any], Any]:
    return lambda make: peft.get_peft_model(make(), lora_config(make, init_lora_weights=init))


CHANGING: dict[str, Callable[[Any], Any]] = {
    "pissa": with_start("pissa"),
    "pissa_niter_4": with_start("pissa_niter_4"),
    "olora": with_start("olora"),
    "corda": with_corda,
    "lora_ga": with_lora_ga,
}


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize(
    ("make", "init"),
    # OLoRA's factors have the shapes of a transposed Conv1D, which PEFT cannot run.
    [(make, init) for make in MAKERS for init in CHANGING if (make, init) != (tiny_gpt2, "olora")],
)
def test_a_start_that_changes_the_base_is_read_with_that_base_or_refused(
    make: Any, init: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = moved(CHANGING[init](make))
    model.base_model.model.name_or_path = "hub/base"
    with caplog.at_level(logging.WARNING, "bayeslora"):
        posterior = started(model)
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)
    assert f"init_lora_weights={init!r}" in caplog.text, "what is saved belongs to a base that has no name"
    assert posterior.record()["base"]["name"] is None
    assert model.base_model.model.name_or_path == "hub/base"
    message = rf"init_lora_weights={init!r}, which changes the base's own weights.*fit\(peft_model, …\)"
    with pytest.raises(ValueError, match=message):
        started(make().double(), init=model)
    model.save_pretrained(tmp_path / "peft")
    with pytest.raises(ValueError, match=message):
        started(make().double(), init=tmp_path / "peft")
    posterior.save(tmp_path / "ours")
    if init != "lora_ga":  # whose steps of the base are as small as rounding in half precision
        with pytest.raises(ValueError, match="belongs to another base model"):
            bayeslora.load(tmp_path / "ours", model=make().double())
    torch.testing.assert_close(centre_logits(bayeslora.load(tmp_path / "ours", model=model)), logits(model), **EXACT)


@pytest.mark.filterwarnings("ignore:.*changes the base weights")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_peft_converts_is_read_on_the_first_base(init: str, tmp_path: Path) -> None:
    # Without a task head, which PEFT's conversion would lose.
    model = peft.get_peft_model(tiny_bert(), lora_config(init_lora_weights=init, task_type=None))
    config = model.peft_config["default"]
    config.init_lora_weights = True  # as PEFT's guide has it, for the adapter at its start
    model.save_pretrained(tmp_path / "start")
    config.init_lora_weights = init
    moved(model)
    model.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    posterior = started(tiny_bert().double(), init=tmp_path / "out")
    assert posterior.network.stacks["32x32"].rank == 8
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)


@pytest.mark.filterwarnings("ignore:lora with eva initialization")
def test_eva_is_read_as_it_was_started() -> None:
    config = lora_config(init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0, use_label_mask=False))
    model = peft.get_peft_model(tiny_bert(), config)
    inputs = tokens(32)[0]
    batches = [{name: value[i : i + 8] for name, value in inputs.items()} for i in range(0, 32, 8)]
    peft.initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    moved(model)
    posterior = started(model)
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)


def test_another_base_is_noticed() -> None:
    model = peft_model()
    other = tiny_bert().double()
    with torch.no_grad():
        other.bert.embeddings.word_embeddings.weight.mul_(1.5)
    with pytest.raises(ValueError, match=r"differ by .* on a batch.*was trained on another base"):
        started(other, init=model)


# Refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.merge_adapter(), r"merged into the base.*unmerge_adapter\(\)"),
        (lambda model: model.base_model.disable_adapter_layers(), r"disabled.*enable_adapter_layers\(\)"),
        (lambda model: model.base_model.set_adapter(["default", "second"]), r"active: default, second.*set_adapter"),
    ],
    ids=["merged", "disabled", "several"],
)
def test_states_of_a_peft_model_that_are_refused(change: Any, message: str) -> None:
    model = peft_model(task_type=None)
    model.add_adapter("second", lora_config(task_type=None))
    change(model)
    before = logits(model)
    for attempt in ({"model": model}, {"model": tiny_bert().double(), "init": model}):
        with pytest.raises(ValueError, match=message):
            started(**attempt)
    assert torch.equal(logits(model), before)


def test_the_base_of_a_merged_peft_model_is_refused_whatever_the_start(tmp_path: Path) -> None:
    model = peft_model()
    posterior = started(model)
    posterior.save(tmp_path)
    model.merge_adapter()
    with pytest.raises(ValueError, match="merged into the base"):
        started(model, init=posterior)
    with pytest.raises(ValueError, match="merged into the base"):
        bayeslora.load(tmp_path, model=model)


def test_a_posterior_on_a_peft_model_does_not_count_its_adapters_twice(tmp_path: Path) -> None:
    model = peft_model()
    posterior = started(model)
    posterior.save(tmp_path)
    torch.testing.assert_close(centre_logits(bayeslora.load(tmp_path, model=model)), logits(model), **EXACT)


REFUSED: dict[str, dict[str, Any]] = {
    "bias='all'": {"bias": "all"},
    "bias='lora_only'": {"bias": "lora_only"},
    "lora_bias=True": {"lora_bias": True},
    "trainable_token_indices": {"trainable_token_indices": [1, 2]},
    "modules_to_save": {"modules_to_save": ["classifier", "pooler"]},
    "layer_replication": {"layer_replication": [(0, 2), (1, 2)]},
    "use_qalora": {"use_qalora": True},
    "monteclora_config": {"monteclora_config": peft.MontecloraConfig()},
    "velora_config": {"velora_config": peft.VeloraConfig()},
    "kasa_config": {"kasa_config": peft.KasaConfig()},
    "use_bdlora": {"use_bdlora": peft.BdLoraConfig(target_modules_bd_a=["query"], match_strict=False)},
    "ensure_weight_tying": {"ensure_weight_tying": True},
    "word_embeddings": {"target_modules": ["query", "word_embeddings"]},
    "task head": {"target_modules": ["query", "classifier"], "task_type": None},
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's, on tied weights and embeddings
@pytest.mark.parametrize("saved", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_of_peft_adapters_are_refused_by_name(name: str, saved: bool, tmp_path: Path) -> None:
    model = peft_model(**REFUSED[name])
    if saved:
        model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=name):
        started(tiny_bert().double() if saved else model, init=tmp_path if saved else None)


def test_target_parameters_are_refused_by_name() -> None:
    class Experts(nn.Module):
        """Weights without a layer of their own."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 4, 4))
            self.score = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.score(x @ self.weight[0] @ self.weight[1])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Experts()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.experts(x)

    config = peft.LoraConfig(target_modules=[], target_parameters=["experts.weight"])
    with pytest.raises(ValueError, match="target_parameters"):
        bayeslora.fit(
            peft.get_peft_model(Network(), config), (torch.randn(20, 4), torch.arange(20) % 3), "lora", **SETTINGS
        )


@pytest.mark.parametrize("saved", [False, True], ids=["memory", "folder"])
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]},
        {"target_modules": ["gate", "q_proj"]},  # of whose first PEFT itself makes target_parameters
    ],
)
def test_fused_experts_are_refused_by_name(settings: dict[str, Any], saved: bool, tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    base = MixtralForSequenceClassification(
        MixtralConfig(vocab_size=60, **sizes, **heads, num_labels=3, pad_token_id=0)
    )
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(r=2, task_type="SEQ_CLS", **settings))
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has target_parameters=.*, which adapts parameters that are not a linear"):
        started(base if saved else model, init=tmp_path if saved else None)


def test_alora_is_refused_by_name() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(
        LlamaConfig(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", alora_invocation_tokens=[3, 4])
    with pytest.raises(ValueError, match=r"alora_invocation_tokens=\[3, 4\]"):
        bayeslora.fit(peft.get_peft_model(base, config), {"input_ids": tokens()[0]["input_ids"]}, "lora", **SETTINGS)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["query"], feedforward_modules=[], task_type="SEQ_CLS"),
        peft.LoHaConfig(target_modules=["query"], task_type="SEQ_CLS"),
        peft.AdaLoraConfig(target_modules=["query"], task_type="SEQ_CLS", total_step=10),
        peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        peft.VeraConfig(target_modules=["query"], task_type="SEQ_CLS"),
    ],
    ids=lambda config: str(config.peft_type.value),
)
@pytest.mark.parametrize("saved", [False, True], ids=["memory", "folder"])
def test_other_types_are_refused_by_name(config: Any, saved: bool, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny_bert(), config)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"of type {config.peft_type.value}; only LORA can be a starting point"):
        started(tiny_bert() if saved else model, init=tmp_path if saved else None)


def test_peft_layers_outside_a_peft_model_are_refused() -> None:
    injected = peft.inject_adapter_in_model(lora_config(), tiny_bert())
    mixed = peft.get_peft_model(tiny_bert(), lora_config(), mixed=True)
    added = tiny_bert()
    added.add_adapter(lora_config())
    inside = tiny_bert()
    peft.get_peft_model(inside, lora_config())
    for model in (injected, mixed, added, inside):
        for attempt in ({"model": model}, {"model": tiny_bert(), "init": model}):
            with pytest.raises(
                (ValueError, TypeError), match=r"PEFT layers.*PeftModel\.from_pretrained\(base, folder\)"
            ):
                started(**attempt)


def test_every_field_of_pefts_configuration_is_decided() -> None:
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields <= set(interop.LORA_FIELDS)


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    peft_model().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_novelty": True}, r"use_novelty=True, which is not known here"),
        ({"novelty_config": {"depth": 2}}, r"novelty_config=\{'depth': 2\}, which is not known here"),
        ({"monteclora_config": {}}, "monteclora_config"),
        ({"arrow_config": {"top_k": 2}}, "arrow_config"),
        ({"init_lora_weights": "novel"}, "init_lora_weights='novel', which is not known here"),
        ({"r": 3}, r"r=3.*weights .* have rank 4"),
        ({"lora_alpha": "much"}, "lora_alpha='much'"),
        ({"alpha_pattern": {"(": 2}}, r"'\(' in its alpha_pattern"),
        ({"alpha_pattern": {"query": "3"}}, r"alpha_pattern=\{'query': '3'\}"),
        ({"rank_pattern": ["query"]}, r"rank_pattern=\['query'\]"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"peft_type": "NOVEL"}, "of type NOVEL; only LORA"),
    ],
)
def test_a_configuration_that_is_not_understood_is_refused(folder: Path, settings: Any, message: str) -> None:
    edit(folder, **settings)
    with pytest.raises(ValueError, match=message):
        started(tiny_bert().double(), init=folder)


def test_a_new_field_at_rest_is_no_reason_to_refuse(folder: Path) -> None:
    edit(folder, use_novelty=False, novelty_config=None, novel_modules=[])
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    assert peft_in._from_peft(config, load_file(folder / "adapter_model.safetensors")).ranks


def test_missing_fields_are_at_pefts_defaults(tmp_path: Path) -> None:
    model = peft_model(r=8, lora_alpha=8)
    model.save_pretrained(tmp_path)
    kept = ("peft_type", "task_type", "target_modules")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({field: config[field] for field in kept}))
    torch.testing.assert_close(centre_logits(started(tiny_bert().double(), init=tmp_path)), logits(model), **EXACT)


def test_random_states_are_left_alone(folder: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    posterior = started(tiny_bert().double(), init=folder)
    torch.set_rng_state(before)
    posterior.export_peft(tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_broken_configuration_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"adapter_config\.json in .* is not a configuration of PEFT's"):
        started(tiny_bert(), init=folder)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config\.json in .* is not a configuration of PEFT's"):
        started(tiny_bert(), init=folder)


def test_broken_weights_are_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors in .* is damaged"):
        started(tiny_bert(), init=folder)


def test_a_pickle_is_never_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickle was read"))
    with pytest.raises(ValueError, match=r"adapter_model\.bin, a pickle.*convert it"):
        started(tiny_bert(), init=folder)


def test_a_folder_of_adapters_by_name_lists_them(tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny_bert(), lora_config(), adapter_name="mine")
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no PEFT adapter.*in its folders: mine"):
        started(tiny_bert(), init=tmp_path)


def test_nothing_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    edit(folder, base_model_name_or_path="hub/another-base")
    for name in ("hf_hub_download", "file_exists", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, lambda *_, **__: pytest.fail("a file was asked for"))
    monkeypatch.setattr(peft.utils.save_and_load, "hf_hub_download", lambda *_, **__: pytest.fail("asked for"))
    monkeypatch.setattr(peft.utils.save_and_load, "file_exists", lambda *_, **__: pytest.fail("asked for"))
    started(tiny_bert().double(), init=folder)
    with pytest.raises(FileNotFoundError):
        started(tiny_bert().double(), init="hub/another-adapter")


def test_another_name_of_the_base_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit(folder, base_model_name_or_path="hub/another-base")
    model = tiny_bert().double()
    model.name_or_path = "hub/base"
    with caplog.at_level(logging.WARNING, "bayeslora"):
        started(model, init=folder)
    assert "'hub/another-base'" in caplog.text
    assert "'hub/base'" in caplog.text


def test_weights_beside_adapters_and_head_are_refused(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    state = load_file(path)
    embedding = "base_model.model.bert.embeddings.word_embeddings.weight"
    save_file(state | {embedding: torch.zeros(60, 32)}, path)
    with pytest.raises(ValueError, match=r"bert\.embeddings\.word_embeddings\.weight.*merge_and_unload"):
        started(tiny_bert().double(), init=folder)


def test_weights_that_peft_would_pass_over_are_noticed(folder: Path) -> None:
    edit(folder, exclude_modules=["value"])
    with pytest.raises(ValueError, match=r"differ by .* on a batch"):
        started(tiny_bert().double(), init=folder)


def test_an_adapter_without_a_head_leaves_the_models_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = peft_model(task_type=None)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        posterior = started(tiny_bert().double(), init=tmp_path)
    assert "without a task head" in caplog.text
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)


def test_a_part_of_the_head_is_read(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=48, num_labels=3)
    torch.manual_seed(0)
    base = DistilBertForSequenceClassification(config).double()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = moved(peft.get_peft_model(base, lora_config(target_modules=["q_lin"])))  # saves `classifier` alone
    model.save_pretrained(tmp_path)
    again = DistilBertForSequenceClassification(config).double()
    again.load_state_dict(before)
    posterior = started(again, init=tmp_path)
    torch.testing.assert_close(centre_logits(posterior), logits(model), **EXACT)


def test_a_folder_is_read_without_peft(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    expected = logits(peft.PeftModel.from_pretrained(tiny_bert().double(), folder).eval())
    monkeypatch.setitem(sys.modules, "peft", None)
    with caplog.at_level(logging.WARNING, "bayeslora"):
        posterior = started(tiny_bert().double(), init=folder)
    assert "peft is not installed" in caplog.text
    torch.testing.assert_close(centre_logits(posterior), expected, **EXACT)


# Other starting points


@pytest.mark.parametrize("method", ["full", "bitfit", "dora", "houlsby"])
def test_any_family_is_a_starting_point_of_itself(method: str) -> None:
    first = bayeslora.fit(tiny_bert(), tokens(), method, **SETTINGS)
    again = bayeslora.fit(tiny_bert(), tokens(), method, init=first, **SETTINGS | {"learning_rate": 1e-12})
    torch.testing.assert_close(centre_logits(again), centre_logits(first), **EXACT)


def test_another_family_is_no_starting_point() -> None:
    with pytest.raises(TypeError, match=r"'dora' has DoRA \(A, B, m\) adapters and cannot start from LowRank \(A, B\)"):
        bayeslora.fit(peft_model(), tokens(), "dora", **SETTINGS)
    first = bayeslora.fit(tiny_bert(), tokens(), "dora", **SETTINGS | {"epochs": 0})
    with pytest.raises(TypeError, match=r"cannot start from DoRA \(A, B, m\) adapters: .*, or with method 'dora'\."):
        bayeslora.fit(tiny_bert(), tokens(), "lora", init=first, **SETTINGS)


@pytest.mark.parametrize("saved", [False, True])
def test_a_posterior_is_a_starting_point(tmp_path: Path, saved: bool) -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", targets="attention", rank=3, alpha=5, **SETTINGS)
    lora.save(tmp_path)
    init = tmp_path if saved else lora
    posterior = bayeslora.fit(tiny_bert(), tokens(), "monteclora", init=init, post_hoc=True, **SETTINGS)
    assert torch.equal(centre_logits(posterior), centre_logits(lora))
    assert posterior.network.stacks["32x32"].rank == 3


def test_training_goes_on_from_the_starting_point() -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    further = bayeslora.fit(tiny_bert(), tokens(), "lora", init=lora, **SETTINGS | {"learning_rate": 1e-9})
    torch.testing.assert_close(centre_logits(further), centre_logits(lora), rtol=1e-4, atol=1e-5)
    changed = bayeslora.fit(tiny_bert(), tokens(), "lora", init=lora, **SETTINGS)
    assert not torch.allclose(centre_logits(changed), centre_logits(lora), atol=1e-3)


def test_what_is_no_starting_point_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no PEFT adapter: there is no adapter_config\.json"):
        bayeslora.fit(tiny_bert(), tokens(), init=tmp_path, **SETTINGS)
    with pytest.raises(TypeError, match=r"init=3: give a Posterior, a torch\.nn\.Module, the folder of either"):
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
    model = make()
    rank = {"c_proj" if model.base_model_prefix == "transformer" else "output.dense": 3}
    posterior = bayeslora.fit(model, tokens(), method, rank=rank, alpha=5, **SETTINGS)
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


def test_members_whose_heads_are_wider_than_a_half_precision_base_are_exported(tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert().bfloat16(), tokens(), "deep_ensemble", members=2, **SETTINGS)
    folders = posterior.export_peft(tmp_path, num_draws=2)
    draws, name = posterior.draw(2), "classifier.weight"
    for index, folder in enumerate(folders):
        factors = posterior.program.factors_at({site: value[index] for site, value in draws.items()})
        read = peft.PeftModel.from_pretrained(tiny_bert().bfloat16(), folder).get_base_model().classifier
        expected = starting.trained_head(posterior.network, factors)[name]
        assert expected.dtype == torch.float32
        assert torch.equal(read.modules_to_save["default"].weight, expected.bfloat16())


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


def random_factors(network: AdaptedNetwork) -> dict[str, Any]:
    """Factors that change every layer, by stack."""
    return {
        name: stack.family.factors(
            *(
                value + 0.3 * torch.randn(value.shape, dtype=network.dtype)
                for value in (factor.to(network.dtype) for factor in stack.initial())
            )
        )
        for name, stack in network.stacks.items()
    }


def export(network: AdaptedNetwork, folder: Path, **settings: Any) -> dict[str, Any]:
    """Export random factors, which PEFT reads back; the configuration that was written."""
    interop.export_peft(network, random_factors(network), folder, **settings)
    return json.loads((folder / "adapter_config.json").read_text())


def tiny(name: str) -> nn.Module:
    """A one-layer network with random weights, of any class of `transformers`."""
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    if name.startswith("T5"):
        sizes = {"vocab_size": 60, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    elif name.startswith("ViT"):
        sizes |= {"image_size": 8, "patch_size": 4}
    config = getattr(transformers, f"{name.partition('For')[0]}Config")(**sizes)
    torch.manual_seed(0)
    return getattr(transformers, name)(config).double()


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertForSequenceClassification", "SEQ_CLS"),
        ("BertForTokenClassification", "TOKEN_CLS"),
        ("BertForQuestionAnswering", "QUESTION_ANS"),
        ("LlamaForCausalLM", "CAUSAL_LM"),
        ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM"),
        ("ViTForImageClassification", None),
        ("BertForMultipleChoice", None),
    ],
)
def test_the_task_is_written(name: str, task: str | None, tmp_path: Path) -> None:
    network = AdaptedNetwork(tiny(name), rank=2)
    config = export(network, tmp_path)
    assert config["task_type"] == task
    mapping = config["auto_mapping"]
    assert (mapping is None) == (task is not None)
    assert mapping is None or mapping["base_model_class"] == name
    assert config["modules_to_save"] == (list(network.head_names) or None)


@pytest.mark.parametrize("task", ["SequenceClassification", "TokenClassification", "CausalLM"])
def test_the_card_says_how_to_load_what_is_exported(task: str, tmp_path: Path) -> None:
    import transformers

    body = tiny_llama() if task == "CausalLM" else tiny_bert()
    body.base_model.save_pretrained(tmp_path / "base")
    settings = {} if task == "CausalLM" else {"num_labels": 5}  # not the default of transformers
    auto = getattr(transformers, f"AutoModelFor{task}")
    model = auto.from_pretrained(tmp_path / "base", **settings).double().eval()
    if task == "CausalLM":  # a body has no output embedding, which is not an adapter's to bring
        model.save_pretrained(tmp_path / "base")
        model = auto.from_pretrained(tmp_path / "base").double().eval()
    network = AdaptedNetwork(model, rank=2)
    factors = random_factors(network)
    about = interop.About("monteclora", "draw 0 of 2", temperature=1.5)
    interop.export_peft(network, factors, tmp_path / "out", about=about)
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"base_model: {tmp_path / 'base'}" in card
    assert "`monteclora`: draw 0 of 2" in card
    assert "divides every logit by 1.5" in card
    code = card.partition("```python\n")[2].partition("```")[0].replace("path/to/this/folder", str(tmp_path / "out"))
    names: dict[str, Any] = {}
    exec(code, names)
    inputs = tokens(7)[0]
    with torch.no_grad():
        torch.testing.assert_close(
            names["model"].double().eval()(**inputs).logits, network.eval()(factors, inputs), **EXACT
        )


def test_a_base_without_a_name_has_none_on_its_card(tmp_path: Path) -> None:
    config = export(AdaptedNetwork(tiny_bert().double(), rank=2), tmp_path)
    assert config["base_model_name_or_path"] is None
    card = (tmp_path / "README.md").read_text()
    assert "base_model" not in card
    assert "PeftModel.from_pretrained(base," in card


def test_what_is_exported_from_a_changed_base_does_not_name_the_first(tmp_path: Path) -> None:
    model = moved(CHANGING["pissa"](tiny_bert))
    model.base_model.model.name_or_path = "hub/base"
    posterior = started(model)
    posterior.export_peft(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] is None
    plain = interop.base_of_peft(model)
    exported = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(logits(exported), logits(model), **EXACT)


def test_the_tokenizer_is_exported(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    posterior = started(tiny_bert().double())
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]"))
    posterior.tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    posterior.export_peft(tmp_path, num_draws=2)
    assert AutoTokenizer.from_pretrained(tmp_path / "draw-0")("b")["input_ids"] == [2]


def test_alphas_and_ranks_are_written_as_they_were_given(tmp_path: Path) -> None:
    config = export(AdaptedNetwork(tiny_bert().double(), rank={"query": 3, "key": 7}, alpha=5), tmp_path)
    assert (config["r"], config["lora_alpha"], config["alpha_pattern"]) == (8, 5, {})
    assert set(config["rank_pattern"].values()) == {3, 7}
    config = export(AdaptedNetwork(tiny_bert().double(), rank=6, alpha={"query": 2.5}), tmp_path)
    assert (config["lora_alpha"], set(config["alpha_pattern"].values())) == (16, {2.5})


class Nested(nn.Module):
    """A network whose modules end in the names of others."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 4)
        self.block = nn.ModuleDict({"fc1": nn.Linear(4, 4), "subhead": nn.Linear(4, 4)})
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.fc1(x)) + torch.tanh(self.block["fc1"](x))
        return self.head(x + torch.tanh(self.block["subhead"](x)))


def peft_layers(model: nn.Module) -> dict[str, Any]:
    return {name: layer for name, layer in model.base_model.model.named_modules() if hasattr(layer, "lora_A")}


def test_a_card_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Mine\n")
    network = AdaptedNetwork(tiny_bert().double(), rank=2)
    export(network, tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    (tmp_path / "README.md").unlink()
    for part in ("first", "second"):
        export(network, tmp_path, about=interop.About("lora", part))
        assert part in (tmp_path / "README.md").read_text()


class Small(nn.Module):
    """A network of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(x)))


def test_a_peft_model_around_a_network_of_ones_own_is_read() -> None:
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["body"], modules_to_save=["head"])
    model = moved(peft.get_peft_model(Small(), config))
    x, labels = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    posterior = bayeslora.fit(model, (x, labels), "lora", **SETTINGS | {"epochs": 0})
    with torch.no_grad():
        torch.testing.assert_close(posterior.program.eval()(x=x, labels=labels).logits, model(x), **EXACT)


@pytest.mark.parametrize(
    "settings",
    [
        {"targets": r"fc1", "rank": 2},
        {"targets": [r"fc1"], "rank": {"block.fc1": 1, "fc1": 3}, "alpha": {"block.fc1": 5, "fc1": 7}},
    ],
)
def test_names_that_end_in_others_are_told_apart(settings: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Nested().double()
    network = AdaptedNetwork(model, **settings)
    factors = random_factors(network)
    interop.export_peft(network, factors, tmp_path)
    exported = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    assert set(peft_layers(exported)) == {name for stack in network.stacks.values() for name in stack.layer_names}
    x = torch.randn(5, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(exported(x), network.eval()(factors, {"x": x}), **EXACT)


def test_a_layer_that_ends_as_the_head_does_cannot_be_exported(tmp_path: Path) -> None:
    network = AdaptedNetwork(Nested().double(), targets=["block.subhead", "fc1"], rank=2)
    with pytest.raises(ValueError, match=r"PEFT cannot read the adapter .*modules_to_save cannot be applied"):
        export(network, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")  # of DoRA's magnitudes
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lora_alpha", 3, r"PEFT reads the exported adapter of 'bert.* differs by"),
        ("use_dora", True, "PEFT"),
        ("target_modules", ["query"], r"onto other layers than it is for.* bert\.encoder"),
        ("r", 3, "PEFT cannot read the adapter"),
    ],
)
def test_what_peft_reads_otherwise_is_not_exported(
    field: str, value: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = peft_out._lora_config
    monkeypatch.setattr(peft_out, "_lora_config", lambda **fields: write(**fields | {field: value, "task_type": None}))
    posterior = bayeslora.fit(tiny_bert().double(), tokens(), "monteclora", **SETTINGS)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine").touch()
    for folder in (tmp_path / "new", tmp_path / "here"):
        with pytest.raises(ValueError, match=message):
            posterior.export_peft(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "mine"]


def test_a_head_that_peft_cannot_hold_is_not_exported(tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_llama().double(), tokens(), "swag", **SETTINGS)  # whose head gains a bias
    with pytest.raises(ValueError, match=r"PEFT does not read 'score\.bias'.* no such parameter"):
        posterior.export_peft(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    bayeslora.fit(tiny_bert().double(), tokens(), "swag", **SETTINGS).export_peft(tmp_path)


def test_without_peft_an_export_says_that_it_is_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "bayeslora"):
        patch.setitem(sys.modules, "peft", None)
        posterior.export_peft(tmp_path)
    assert "peft is not installed" in caplog.text
    torch.testing.assert_close(logits(from_peft_folder(tmp_path)), centre_logits(posterior), **EXACT)


@pytest.mark.filterwarnings("error:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_an_export_is_silent_about_what_is_outdated_in_peft(tmp_path: Path) -> None:
    bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS).export_peft(tmp_path)


def test_a_temperature_that_is_not_exported_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "lora", **SETTINGS).calibrate(tokens())
    posterior.temperature = 1.25
    with caplog.at_level(logging.WARNING, "bayeslora"):
        posterior.export_peft(tmp_path)
    assert "divide them by 1.25" in caplog.text


class Encoder(nn.Module):
    """A network around PyTorch's own encoder layer, which in evaluation reads weights and calls no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean(1))


def test_a_network_that_does_not_call_its_layers_in_peft_is_not_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = (torch.randn(20, 5, 16), torch.arange(20) % 3)
    posterior = bayeslora.fit(Encoder().eval(), data, "lora", **SETTINGS | {"learning_rate": 0.1})
    with pytest.raises(ValueError, match=r"differ by .* on a batch, though its layers are right"):
        posterior.export_peft(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_layers_that_peft_takes_for_fused_experts_are_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As PEFT reads DeepSeek-V3, whose first layers have no experts, but projections with the names of theirs.
    read = nn.ModuleDict({"experts": nn.Identity()})
    monkeypatch.setattr(peft_out, "read_by_peft", lambda *_: read)
    monkeypatch.setattr(peft_out, "_is_a", lambda module, kind: module is read["experts"])
    posterior = bayeslora.fit(tiny_bert(), tokens(4), "lora", targets=["query", "key"], epochs=0, progress=False)
    with pytest.raises(ValueError, match=r"onto other layers.*fused expert.*fit with exclude=\['key', 'query'\]"):
        posterior.export_peft(tmp_path / "out")


def test_a_draw_of_masks_on_inputs_is_not_exported(tmp_path: Path) -> None:
    posterior = bayeslora.fit(tiny_bert(), tokens(), "mc_dropout", p=0.5, **SETTINGS)
    with pytest.raises(ValueError, match=r"A draw of InputDropout adapters is more than their factors"):
        posterior.export_peft(tmp_path, num_draws=2)
    posterior.export_peft(tmp_path / "centre")


# Merge


@pytest.mark.parametrize("make", [tiny_bert, tiny_gpt2, case("ViT").make])
@pytest.mark.parametrize("loaded", [False, True])
def test_a_merge_that_is_not_the_centre_is_refused(
    make: Any, loaded: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = case("ViT").data if make is case("ViT").make else tokens()
    posterior = bayeslora.fit(make(), data, "lora", rank=2, **SETTINGS | {"learning_rate": 0.1})
    if loaded:  # without the fit's data
        posterior.save(tmp_path)
        posterior = bayeslora.load(tmp_path, make())
        assert posterior.example is None
        posterior.merge()
    monkeypatch.setattr(merging, "_add_to_weight", lambda *_: None)
    with pytest.raises(ValueError, match=r"merged model's logits differ by .* on a batch"):
        posterior.merge()


@pytest.mark.parametrize("make", MAKERS)
def test_a_calibrated_posterior_merges_and_is_compared_too(make: Any) -> None:
    posterior = bayeslora.fit(make().double(), tokens(), "dora", **SETTINGS).calibrate(tokens())
    assert posterior.example is not None
    assert set(posterior.example) == {"input_ids", "attention_mask"}
    torch.testing.assert_close(logits(posterior.merge()), centre_logits(posterior), **EXACT)


def test_a_bias_that_a_merged_models_class_does_not_have_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "bayeslora"):
        bayeslora.fit(tiny_bert(), tokens(), "bitfit", **SETTINGS).merge()
        assert not caplog.text
        bayeslora.fit(tiny_llama(), tokens(), "bitfit", **SETTINGS).merge()
    assert "have a bias that their class does not give them" in caplog.text
