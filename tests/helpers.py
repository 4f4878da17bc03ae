"""What the tests share: small networks, small data, and comparisons whose width is derived."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

FAILURE_RATE = 2e-5
"""Probability with which a correct statistical test may fail, per comparison."""


def assert_mean_close(draws: Tensor, expected: Tensor | float, failure_rate: float = FAILURE_RATE) -> None:
    """The mean over the first dimension equals `expected`, within the width that the draws' standard error allows."""
    draws = draws.detach().double()
    expected = torch.as_tensor(expected, dtype=torch.float64).expand(draws.shape[1:])
    error = draws.std(0) / len(draws) ** 0.5
    width = stats.norm.isf(failure_rate / 2 / max(expected.numel(), 1))
    z = (draws.mean(0) - expected).abs() / error.clamp(min=1e-12)
    assert bool((z <= width).all()), f"z-score {float(z.max()):.1f} exceeds {width:.1f}"


def assert_uniform(values: np.ndarray, failure_rate: float = FAILURE_RATE) -> None:
    """Probability-integral transforms are uniform on [0, 1] (Kolmogorov–Smirnov)."""
    assert stats.kstest(values, "uniform").pvalue > failure_rate


def tiny_bert(num_labels: int = 3, **settings: object) -> nn.Module:
    """A two-layer BERT classifier with random weights."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        **{
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "num_labels": num_labels,
            **settings,
        }
    )
    torch.manual_seed(0)
    return BertForSequenceClassification(config).eval()


def tiny_deberta(num_labels: int = 3) -> nn.Module:
    """A one-layer DeBERTa classifier with random weights, whose projections also see a table of relative positions."""
    from transformers import DebertaV2Config, DebertaV2ForSequenceClassification

    config = DebertaV2Config(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=num_labels,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        share_att_key=True,
        position_buckets=16,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    return DebertaV2ForSequenceClassification(config).eval()


def tiny_llama(num_labels: int = 3, **settings: object) -> nn.Module:
    """A two-layer Llama classifier with random weights."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        **{
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "num_labels": num_labels,
            "pad_token_id": 0,
            **settings,
        }
    )
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config).eval()


def tiny_gpt2(num_labels: int = 3, **settings: object) -> nn.Module:
    """A two-layer GPT-2 classifier with random weights, whose linear layers are `Conv1D`."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(
        **{
            "vocab_size": 60,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "num_labels": num_labels,
            "pad_token_id": 0,
            **settings,
        }
    )
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(config).eval()


def tokens(num_examples: int = 48, length: int = 6, num_labels: int = 3, seed: int = 0) -> tuple[dict, Tensor]:
    """Inputs and labels that can be learned: the label is the first token's number modulo the classes."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 60, (num_examples, length), generator=generator)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs, ids[:, 0] % num_labels


def batch(num_examples: int = 4, **settings: int) -> dict[str, Tensor]:
    """One batch of `tokens`, labels included."""
    inputs, labels = tokens(num_examples, **settings)
    return {**inputs, "labels": labels}


def assert_checkpointing_keeps_gradients(make: Callable[[], Any]) -> None:
    """A program's gradients are the same with activation checkpointing, from the same random state.

    Args:
        make: Builds the program, in training mode.
    """
    gradients = []
    for checkpointing in (False, True):
        program = make()
        if checkpointing:
            program.activation_checkpointing_enable()
        torch.manual_seed(2)
        program(**batch(6)).loss.backward()
        gradients.append([parameter.grad for _, parameter in program.trainable()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed, rtol=1e-5, atol=1e-7)
