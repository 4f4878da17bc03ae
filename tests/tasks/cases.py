"""A small model of each kind, made from its configuration, with data that it can learn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from bayeslora import tasks as likelihoods

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
ENCODER = {"vocab_size": 60, "max_position_embeddings": 40, "hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "Bert": (hf.BertConfig, SMALL | ENCODER),
    "Roberta": (hf.RobertaConfig, SMALL | ENCODER | {"pad_token_id": 0}),
    "GPT2": (
        hf.GPT2Config,
        {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
        | {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0},
    ),
    "Llama": (hf.LlamaConfig, SMALL | {"vocab_size": 60, "num_key_value_heads": 2, "max_position_embeddings": 40}),
    "T5": (
        hf.T5Config,
        {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0}
        | {"decoder_start_token_id": 0},
    ),
    "ViT": (hf.ViTConfig, SMALL | {"image_size": 8, "patch_size": 4, "num_labels": 3}),
}


def softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of classes."""
    return logits.softmax(-1)


@dataclass(frozen=True)
class Case:
    """A model and its data.

    Args:
        name: What the case is called.
        make: Makes the model.
        data: Inputs and labels.
        likelihood: The likelihood to be inferred, or to be asked for.
        shape: Shape of one draw of its prediction.
        plain: What the model's logits and the labels say, worked out by hand: one draw of the prediction.
        asked: Whether the likelihood cannot be inferred.
    """

    name: str
    make: Callable[[], nn.Module]
    data: tuple[Any, Tensor]
    likelihood: likelihoods.Likelihood
    shape: tuple[int, ...]
    plain: Callable[[Tensor, Tensor], Tensor] = softmax
    asked: bool = False


def model(family: str, head: str, **settings: Any) -> Callable[[], nn.Module]:
    config, fields = CONFIGS[family]

    def make() -> nn.Module:
        torch.manual_seed(0)
        return getattr(hf, f"{family}{head}")(config(**{**fields, **settings})).eval()

    return make


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


def tokens(*shape: int) -> Tensor:
    return torch.randint(3, 60, shape, generator=torch.Generator().manual_seed(0))


def inputs(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def masked(labels: Tensor) -> Tensor:
    labels = labels.clone()
    labels[..., 0] = -100
    return labels


def of_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of the tokens that are there."""
    seen = labels != -100
    return logits.softmax(-1)[seen, labels[seen]]


def of_next_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Probabilities of the tokens that are there, each from the logits of the one before."""
    return of_tokens(logits[:, :-1], labels[:, 1:])


IDS = tokens(32, 6)
REPEATED = IDS[:, :1].expand(-1, 6).contiguous()
SPANS = torch.stack([IDS[:, 0] % 3, IDS[:, 0] % 3 + 2], dim=-1)
NOISE = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))

CASES = [
    case
    for family in ("Bert", "Roberta")
    for case in (
        Case(
            f"{family}-sequence",
            model(family, "ForSequenceClassification", num_labels=3),
            (inputs(IDS), IDS[:, 0] % 3),
            likelihoods.Classification(3),
            (32, 3),
        ),
        Case(
            f"{family}-multilabel",
            model(family, "ForSequenceClassification", num_labels=3),
            (inputs(IDS), torch.stack([IDS[:, 0] % 2, IDS[:, 1] % 2, IDS[:, 2] % 2], -1).float()),
            likelihoods.MultiLabel(3),
            (32, 3),
            lambda logits, labels: logits.sigmoid(),
        ),
        Case(
            f"{family}-regression",
            model(family, "ForSequenceClassification", num_labels=1),
            (inputs(IDS), (IDS[:, 0] - 30) / 10),
            likelihoods.Regression(1.5),
            (32,),
            lambda logits, labels: logits[:, 0],
        ),
        Case(
            f"{family}-ordinal",
            model(family, "ForSequenceClassification", num_labels=1),
            (inputs(IDS), IDS[:, 0] // 15),
            likelihoods.Ordinal(4),
            (32, 4),
            lambda logits, labels: (
                (torch.tensor([1 / 4, 2 / 4, 3 / 4, 1]).logit() - logits)
                .sigmoid()
                .diff(dim=-1, prepend=torch.zeros(32, 1))
            ),
            asked=True,
        ),
        Case(
            f"{family}-token",
            model(family, "ForTokenClassification", num_labels=4),
            (inputs(IDS), masked(IDS % 4)),
            likelihoods.TokenClassification(4),
            (192, 4),
            lambda logits, labels: logits.flatten(0, 1).softmax(-1),
        ),
        Case(
            f"{family}-span",
            model(family, "ForQuestionAnswering"),
            (inputs(IDS), SPANS),
            likelihoods.QuestionAnswering(),
            (32, 6, 2),
            lambda logits, labels: logits.softmax(1),
        ),
        Case(
            f"{family}-choice",
            model(family, "ForMultipleChoice"),
            (inputs(tokens(32, 3, 5)), tokens(32, 3, 5)[:, :, 0].argmax(-1)),
            likelihoods.MultipleChoice(3),
            (32, 3),
        ),
    )
] + [
    case
    for family, head in (("GPT2", "LMHeadModel"), ("Llama", "ForCausalLM"))
    for case in (
        Case(
            f"{family}-causal",
            model(family, head),
            (inputs(REPEATED), masked(REPEATED)),
            likelihoods.CausalLM(60),
            (160,),
            of_next_tokens,
        ),
        Case(
            f"{family}-letters",
            model(family, head),
            (inputs(IDS), IDS[:, -1] % 3),
            likelihoods.AnswerLetters([10, 11, 12]),
            (32, 3),
            lambda logits, labels: logits[:, -1, [10, 11, 12]].softmax(-1),
            asked=True,  # which tokens are the answers
        ),
    )
]
CASES += [
    Case(
        "T5",
        model("T5", "ForConditionalGeneration"),
        (inputs(IDS), REPEATED[:, :4]),
        likelihoods.Seq2SeqLM(60),
        (128,),
        of_tokens,
    ),
    Case(
        "ViT",
        model("ViT", "ForImageClassification"),
        ({"pixel_values": IMAGES}, (IMAGES.mean((1, 2, 3)) > 0).long()),
        likelihoods.Classification(3),
        (32, 3),
    ),
    Case("MLP", mlp, (NOISE, NOISE[:, :3].argmax(-1)), likelihoods.Classification(3), (32, 3)),
]


def named(name: str) -> Case:
    """The case of that name."""
    return next(case for case in CASES if case.name == name)
