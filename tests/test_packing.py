"""Several texts in one row, which do not see each other."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BloomConfig, BloomForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import bayeslora
from bayeslora import packing
from tests.tasks.cases import model
from tests.tasks.templates import byte_tokenizer

SIZES: Any = {"vocab_size": 260, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
ROWS = [{"instruction": "i" * (1 + 7 * (number % 3)), "output": "o" * (1 + number)} for number in range(6)]


def llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return kind(LlamaConfig(**SIZES, num_attention_heads=2, **settings)).double().eval()


def gpt2() -> nn.Module:
    return model("GPT2", "LMHeadModel", vocab_size=260, n_positions=80)().double()


def padded(lengths: list[int], side: str) -> dict[str, Tensor]:
    longest, generator = max(lengths), torch.Generator().manual_seed(0)
    mask = torch.stack([torch.arange(longest) < length for length in lengths])
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.randint(3, 260, mask.shape, generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("make", [llama, gpt2, lambda: llama(attn_implementation="eager")])
@pytest.mark.parametrize("side", ["left", "right"])
def test_each_token_has_the_logits_of_its_own_row(make: Callable[[], nn.Module], side: str) -> None:
    network, inputs = make(), padded([2, 7, 3, 1, 5, 2], side)
    packed = packing.pack(inputs, torch.float64)
    assert packed.inputs["input_ids"].shape == (2, 14)  # 7 + 5 + 2; 3 + 2 + 1
    with torch.no_grad():
        logits = packed.unpack(network(**packed.inputs).logits)
        for row, ids, mask in zip(logits, inputs["input_ids"], inputs["attention_mask"] == 1, strict=True):
            alone = network(input_ids=ids[mask][None]).logits[0]
            torch.testing.assert_close(row[mask], alone, rtol=0, atol=1e-6)  # eager attention has a softmax in float32
            assert not row[~mask].any()


@pytest.mark.parametrize(("method", "fields"), [("lora", {}), ("blob", {"num_particles": 2})])
def test_a_packed_fit_learns_the_same(method: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"tokenizer": byte_tokenizer("<s>", "</s>"), "rank": 2, "epochs": 2, "batch_size": 6}
    plain = bayeslora.fit(llama(), ROWS, method, progress=False, **fields, **settings)
    rows: list[int] = []
    pack = packing.pack
    monkeypatch.setattr(
        packing,
        "pack",
        lambda *given, **named: rows.append(len((found := pack(*given, **named))[0]["input_ids"])) or found,
    )
    packed = bayeslora.fit(llama(), ROWS, method, progress=False, packing=True, **fields, **settings)
    assert rows[0] == 1  # the trial
    assert max(rows[1:]) < len(ROWS)
    assert len(rows) == 3  # and two steps: predictions are not packed
    torch.testing.assert_close(dict(packed.guide.state_dict()), dict(plain.guide.state_dict()), rtol=0, atol=1e-9)
    torch.testing.assert_close(packed.history["loss"].tolist(), plain.history["loss"].tolist(), rtol=1e-9, atol=0)
    assert not packed.program.packs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_mixed_precision_takes_the_mask(dtype: torch.dtype, attention: str) -> None:
    network, inputs = llama(attn_implementation=attention).to(dtype), padded([2, 7, 3], "right")
    for enabled in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            holder: Any = SimpleNamespace(model=network, device=torch.device("cpu"))
            packed = packing.pack(inputs, packing.added(holder))
            found = packed.unpack(network(**packed.inputs).logits)[inputs["attention_mask"] == 1]
            plain = network(**inputs).logits[inputs["attention_mask"] == 1]
        torch.testing.assert_close(found.double(), plain.double(), rtol=0, atol=0.05 * float(plain.abs().max()))


class Blind(LlamaForCausalLM):
    """A network that does not look at its mask."""

    def forward(self, input_ids: Any, attention_mask: Any = None, position_ids: Any = None, **others: Any) -> Any:
        return super().forward(input_ids, position_ids=position_ids, **others)


@pytest.mark.parametrize(
    ("make", "method", "why"),
    [
        (lambda: llama(Blind), "lora", r"logits of packed rows differ by .* of the largest"),
        (
            lambda: BloomForCausalLM(BloomConfig(vocab_size=260, hidden_size=16, n_layer=1, n_head=2)),
            "lora",
            "not told the positions",
        ),
        (
            lambda: MistralForCausalLM(
                MistralConfig(**SIZES, num_attention_heads=2, num_key_value_heads=1, sliding_window=8)
            ),
            "lora",
            "reads through a sliding window",
        ),
        (llama, "deep_ensemble", "every member of 'deep_ensemble' has rows of its own"),
    ],
    ids=["blind", "bloom", "mistral", "ensemble"],
)
def test_what_cannot_be_packed_is_refused(make: Callable[[], nn.Module], method: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^packing=True: .*{why}.*Leave it out"):
        bayeslora.fit(
            make(),
            ROWS,
            method,
            tokenizer=byte_tokenizer("<s>", "</s>"),
            rank=2,
            epochs=1,
            progress=False,
            packing=True,
        )
