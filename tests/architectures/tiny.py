"""Any `transformers` model, small: its configuration with every size that is known set to a few."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers as hf
from torch import nn

VOCABULARY, LONGEST, IMAGE = 60, 40, 16


def _values() -> dict[str, int]:
    """Field of a configuration to its small value; models spell the same size in many ways."""
    by_value = {
        "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim dim_model projection_dim "
        "decoder_hidden_size hidden_dim encoder_hidden_size attention_hidden_size": 32,
        "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers depth "
        "num_encoder_layers num_blocks num_encoder_blocks": 2,
        "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads "
        "num_decoder_attention_heads num_encoder_attention_heads": 4,
        "num_key_value_heads num_kv_heads num_experts_per_tok moe_topk moe_k": 2,
        "head_dim d_kv attention_head_size qk_nope_head_dim qk_rope_head_dim v_head_dim d_head kv_channels": 8,
        "intermediate_size d_ff d_inner ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size hidden_size_ff "
        "moe_intermediate_size shared_expert_intermediate_size n_inner feed_forward_size intermediate_dim dim_ff "
        "moe_shared_expert_intermediate_size": 48,
        "vocab_size src_vocab_size tgt_vocab_size": VOCABULARY,
        "max_position_embeddings n_positions max_source_positions max_target_positions n_ctx max_seq_len": LONGEST,
        "num_experts num_local_experts n_routed_experts moe_num_experts patch_size": 4,
        "q_lora_rank kv_lora_rank image_size": 16,
        "pad_token_id decoder_start_token_id": 0,
        "bos_token_id eos_token_id sep_token_id cls_token_id": 1,
    }  # fmt: skip
    return {name: value for names, value in by_value.items() for name in names.split()}


SIZES = _values()
FLOATS = {"initializer_range": 0.2, "layer_scale_init_value": 1.0}
"""Random weights of such a size that every layer matters to the logits."""


def tiny_config(cls: type, overrides: Mapping[str, Any] | None = None) -> Any:
    """Return a configuration whose known sizes are small, those of its parts too, with some fields as given.

    A mapping given for a part overrides the part's own fields.
    """
    overrides = dict(overrides or {})
    default, fields = cls(), {}
    for name, value in default.to_dict().items():
        part = getattr(default, name, None)
        if isinstance(part, hf.PretrainedConfig):
            fields[name] = tiny_config(type(part), overrides.pop(name, None)).to_dict()
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            fields[name] = SIZES[name]
        elif isinstance(value, float) and name in FLOATS:
            fields[name] = FLOATS[name]
        elif "drop" in name and isinstance(value, float):  # so that outputs can be compared in any mode
            fields[name] = 0.0
    return cls(**fields | overrides)


def tiny_model(name: str, overrides: Mapping[str, Any] | None = None) -> nn.Module:
    """Return a small model of a class of `transformers`: random weights, double precision, evaluation mode."""
    cls = getattr(hf, name)
    torch.manual_seed(0)
    # Its fused kernel for experts knows no double precision.
    model = cls(tiny_config(cls.config_class, {"experts_implementation": "eager"} | dict(overrides or {})))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2 and not parameter.any():  # parts that start without an effect
                parameter.normal_(0, FLOATS["initializer_range"])
    return model.double().eval()
