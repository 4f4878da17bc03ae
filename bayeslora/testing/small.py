"""What the contracts are tried on: a small network and a batch for it."""

from typing import Any

import torch
from torch import Tensor, nn

FAILURE_RATE = 2e-5
"""Probability that a statistical check of correct code fails."""


def small_network(num_labels: int = 3, **settings: Any) -> nn.Module:
    """Make a two-layer BERT classifier with random weights and without dropout; it takes token ids below 60."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        **{
            "vocab_size": 60,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "num_labels": num_labels,
            **settings,
        }
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return BertForSequenceClassification(config).eval()


def small_batch(num_examples: int = 5, num_labels: int = 3) -> dict[str, Tensor]:
    """Make a batch for it that can be learned: the label is the first token's number modulo the classes."""
    ids = torch.randint(3, 60, (num_examples, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % num_labels}
