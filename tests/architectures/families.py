"""Networks of every kind that the library may meet, each with data as a user has it.

A case is a small `transformers` model, made from its configuration alone, or a plain network, and a function that makes
a batch. `QUICK` has one case for each mechanism; `make test` runs these, `make test-all` runs all.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.architectures.tiny import IMAGE, VOCABULARY, tiny_model

Batch = tuple[dict[str, Tensor], Tensor]
CLASSES, CHOICES, IMAGE_TOKEN = 3, 3, VOCABULARY - 1


@dataclass(frozen=True)
class Case:
    """A network, its data, and what the library should make of them.

    Args:
        name: The model's class, or what is particular about a plain network.
        kind: Heading on the page of architectures.
        make: Builds the network.
        batch: Size and length to inputs and labels.
        likelihood: Name of the likelihood that fits.
        settings: Further arguments of `fit`, where its defaults are not what a user of the network would choose.
        refused: Check to a regular expression of the message with which it should be refused.
        lengths: Whether `batch` makes use of the length.
    """

    name: str
    kind: str
    make: Callable[[], nn.Module]
    batch: Callable[[int, int], Batch]
    likelihood: str = "classification"
    settings: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    lengths: bool = True


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ids(*shape: int, last: int | None = None) -> Tensor:
    tokens = torch.randint(3, VOCABULARY - 4, shape, generator=generator())
    if last is not None:
        tokens[..., -1] = last
    return tokens


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(), dtype=torch.float64)


def classes(size: int) -> Tensor:
    return torch.arange(size) % CLASSES


# Batches: size and length to inputs and labels


def sequence(size: int, length: int) -> Batch:
    return {"input_ids": ids(size, length)}, classes(size)


def ended_sequence(size: int, length: int) -> Batch:
    return {"input_ids": ids(size, length, last=1)}, classes(size)


def tokens(size: int, length: int) -> Batch:
    tokens = ids(size, length)
    return {"input_ids": tokens}, tokens % CLASSES


def span(size: int, length: int) -> Batch:
    tokens = ids(size, length)
    return {"input_ids": tokens}, torch.stack([tokens[:, 0] % 3, tokens[:, 0] % 3 + 2], -1)


def choices(size: int, length: int) -> Batch:
    return {"input_ids": ids(size, CHOICES, length)}, classes(size) % CHOICES


def language(size: int, length: int) -> Batch:
    tokens = ids(size, length)
    return {"input_ids": tokens}, tokens.clone()


def translation(size: int, length: int) -> Batch:
    return {"input_ids": ids(size, length)}, ids(size, 5, last=1)


def arrays(name: str, *shape: int) -> Callable[[int, int], Batch]:
    """Real numbers of one shape, and classes."""
    return lambda size, length: ({name: noise(size, *shape)}, classes(size))


def speech(name: str, *shape: int) -> Callable[[int, int], Batch]:
    """Real numbers of one shape, and texts."""
    return lambda size, length: ({name: noise(size, *shape)}, ids(size, 5, last=1))


def also(batch: Callable[[int, int], Batch], **others: Callable[[int, int], Tensor]) -> Callable[[int, int], Batch]:
    """A batch with further inputs."""

    def extended(size: int, length: int) -> Batch:
        inputs, labels = batch(size, length)
        return inputs | {name: make(size, length) for name, make in others.items()}, labels

    return extended


def image(size: int, length: int) -> Tensor:
    return noise(size, 3, IMAGE, IMAGE)


def pictured(count: int, token: int) -> Callable[[int, int], Batch]:
    """Texts that begin with the places of an image's features, to be continued."""

    def batch(size: int, length: int) -> Batch:
        tokens = ids(size, count + length)
        tokens[:, 1 : 1 + count] = token
        labels = tokens.clone()
        labels[:, : 1 + count] = -100
        return {"input_ids": tokens, "pixel_values": image(size, length)}, labels

    return batch


def patches(size: int, length: int) -> Batch:
    """Texts with images whose patches stand in rows of their own, four to an image."""
    inputs, labels = pictured(1, IMAGE_TOKEN)(size, length)
    patches = {"pixel_values": noise(4 * size, 96), "image_grid_thw": torch.tensor([[1, 2, 2]] * size)}
    return {"input_ids": inputs["input_ids"], **patches}, labels


def model_case(
    cls: str,
    kind: str,
    batch: Callable[[int, int], Batch],
    overrides: Any = None,
    **others: Any,
) -> Case:
    """A case of a `transformers` class, which its use imports; it gets an attention mask where it takes one."""

    def masked(size: int, length: int) -> Batch:
        inputs, labels = batch(size, length)
        takes_mask = "attention_mask" in inspect.signature(getattr(hf, cls).forward).parameters
        if takes_mask and "input_ids" in inputs:
            inputs = inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}
        return inputs, labels

    return Case(cls, kind, lambda: tiny_model(cls, overrides), masked, **others)


MAMBA = {"mamba_d_state": 8, "mamba_chunk_size": 4}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4},
}
AXES = {
    **{"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [5, 8], "attn_layers": ["local", "lsh"]},
    **{"local_attn_chunk_length": 5, "lsh_attn_chunk_length": 5, "num_buckets": 2, "num_hashes": 1},
}
LATENTS = {
    **{"num_latents": 8, "d_latents": 16, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 1},
    **{"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
}
FEATURES = {
    **{"conv_dim": [16, 16], "conv_kernel": [4, 4], "conv_stride": [4, 2], "num_feat_extract_layers": 2},
    **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 16},
    "mask_time_prob": 0.0,
}
WINDOWS = {
    **{"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2, "patch_size": 2, "image_size": 16}
}
FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
PYRAMID = FOUR | {"num_attention_heads": [1, 1, 2, 2], "num_encoder_blocks": 4, "image_size": 32}
ONE_KEY_PER_HEAD = {"num_key_value_heads": 4}

OVERRIDES: dict[str, dict[str, Any]] = {
    "Bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "attn_layer_indices": [1], **MAMBA},
    "CodeGen": {"rotary_dim": 8},
    "CTRL": {"dff": 48},
    "Deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DebertaV2": {
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 16},
    },
    "DeepseekV3": {**ONE_KEY_PER_HEAD, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "Esm": {"vocab_size": VOCABULARY, "mask_token_id": 2, "pad_token_id": 0},
    "Esmc": ONE_KEY_PER_HEAD,
    "FalconH1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, **MAMBA},
    "GPTJ": {"rotary_dim": 8},
    "GPTNeo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "GraniteMoeHybrid": {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"], **MAMBA},
    "HunYuanDenseV1": {"head_dim": 8},
    "Jamba": {
        **{"attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2},
        **{"mamba_d_state": 8, "mamba_dt_rank": 4},
    },
    "LayoutLMv3": {"coordinate_size": 5, "shape_size": 6, "visual_embed": False},
    "Lfm2Moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "Lilt": {"hidden_size": 48},
    "Longformer": {"attention_window": [4, 4]},
    "Luke": {"entity_vocab_size": 20, "entity_emb_size": 16},
    "Mamba2": {"num_heads": 8, "n_groups": 2, "state_size": 8, "chunk_size": 4},
    "MarkupLM": {
        **{"max_xpath_tag_unit_embeddings": 10, "max_xpath_subs_unit_embeddings": 10, "max_depth": 4},
        **{"xpath_unit_hidden_size": 8, "tag_pad_id": 5, "subs_pad_id": 5},
    },
    "MiniCPM3": ONE_KEY_PER_HEAD,
    "Ministral": {"head_dim": 8},
    "Perceiver": LATENTS | {"vocab_size": 262},
    "PegasusX": {"block_size": 4, "num_global_tokens": 4},
    "Qwen3Next": LINEAR,
    "Qwen3_5Text": LINEAR,
    "RecurrentGemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8},
    "RoCBert": {
        **{"pronunciation_vocab_size": 20, "shape_vocab_size": 20},
        **{"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    },
    "Xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "LED": {"attention_window": [4, 4], "max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40},
    "SwitchTransformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "NllbMoe": {"encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "SEW": {"squeeze_factor": 2},
    "SEWD": {"squeeze_factor": 2, "position_buckets": 16},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ConvNextV2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "Swin": WINDOWS,
    "Swinv2": WINDOWS,
    "DonutSwin": WINDOWS,
    "Levit": {
        **{"image_size": 64, "hidden_sizes": [16, 16, 16], "depths": [1, 1, 1], "num_attention_heads": [2, 2, 2]},
        **{"key_dim": [8, 8, 8], "patch_size": 16},
    },
    "MobileViT": {
        **{"image_size": 64, "hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [4, 4, 8, 8, 8, 8, 16]},
        **{"num_attention_heads": 2, "patch_size": 1},
    },
    "MobileBert": {"initializer_range": 0.02},  # without normalisation, its outputs are otherwise in thousands
    "Pvt": PYRAMID | {"image_size": 64} | {"patch_sizes": [4, 2, 2, 2], "sequence_reduction_ratios": [4, 2, 1, 1]},
    "PvtV2": PYRAMID | {"image_size": 64} | {"sr_ratios": [4, 2, 1, 1]},
    "Segformer": PYRAMID | {"sr_ratios": [4, 2, 1, 1], "decoder_hidden_size": 16},
    "FocalNet": {
        **{"image_size": 32, "embed_dim": 16, "hidden_sizes": [16, 16], "depths": [1, 1]},
        **{"focal_levels": [2, 2], "focal_windows": [3, 3]},
    },
    "ResNet": {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "layer_type": "basic"},
    "SwiftFormer": {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "RegNet": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "embedding_size": 8, "groups_width": 8},
    "Bit": FOUR | {"embedding_size": 8, "num_groups": 4},
}
"""What a family's configuration needs beyond small sizes."""

NUMBERED, PADDED = {"num_labels": CLASSES}, {"pad_token_id": 0}


def of(heads: str, kind: str, batch: Any, likelihood: str, *names: str, **settings: Any) -> list[Case]:
    """Cases of one task: names of families, each with `heads` after it."""
    return [
        model_case(f"{name}{heads}", kind, batch, OVERRIDES.get(name, {}) | settings, likelihood=likelihood)
        for line in names
        for name in line.split()
    ]


ENCODERS = [
    *of(
        "ForSequenceClassification",
        "encoders",
        sequence,
        "classification",
        "Albert Bert BigBird Camembert ConvBert Data2VecText Deberta DebertaV2 DistilBert Electra Ernie Esm Esmc",
        "EuroBert Flaubert FNet Funnel Gte JinaEmbeddingsV3 LayoutLM LayoutLMv3 Lilt Longformer Luke MarkupLM",
        "MegatronBert MobileBert ModernBert MPNet NomicBert Nystromformer Perceiver RemBert Roberta",
        "RobertaPreLayerNorm RoCBert RoFormer Tapas Ultrabert XLM XLMRoberta XLMRobertaXL XLNet Xmod Yoso",
        **NUMBERED,
    ),
    model_case(
        "SqueezeBertForSequenceClassification",
        "encoders",
        sequence,
        NUMBERED,
        refused=dict.fromkeys(("default", "fit"), "match no linear layer"),  # all are convolutions
    ),
    model_case(
        "IBertForSequenceClassification",
        "encoders",
        sequence,
        NUMBERED,
        refused=dict.fromkeys(("default", "fit"), "match no layer that can be adapted"),  # each takes two arguments
    ),
    model_case(
        "ReformerForSequenceClassification",
        "encoders",
        lambda size, length: sequence(size, 40),
        AXES | NUMBERED | {"is_decoder": False, "hash_seed": 0},
        lengths=False,
    ),
    *of(
        "ForTokenClassification",
        "encoders",
        tokens,
        "token_classification",
        "Bert DistilBert Electra MobileBert XLNet",
        **NUMBERED,
    ),
    *of("ForQuestionAnswering", "encoders", span, "question_answering", "Bert DistilBert Electra"),
    *of("ForMultipleChoice", "encoders", choices, "multiple_choice", "Bert Albert Roberta MPNet"),
    *of("ForMaskedLM", "encoders", language, "seq2seq_lm", "Bert Roberta DistilBert DebertaV2 ModernBert"),
]

DECODERS = [
    *of(
        "ForSequenceClassification",
        "decoders",
        sequence,
        "classification",
        "Arcee Bloom CTRL DiffLlama Exaone4 Falcon Gemma2 GPT2 GPTBigCode GPTNeo GPTNeoX GPTJ HunYuanDenseV1 Llama",
        "MiniCPM3 Ministral Mistral Mpt OpenAIGPT OPT Persimmon Phi Phi3 Qwen2 Qwen3 StableLm Starcoder2",
        **NUMBERED,
        **PADDED,
    ),
    *of("ForTokenClassification", "decoders", tokens, "token_classification", "GPT2 Llama Bloom Qwen3", **NUMBERED),
    *of("ForQuestionAnswering", "decoders", span, "question_answering", "GPT2 Llama OPT"),
    *of(
        "ForCausalLM",
        "decoders",
        language,
        "causal_lm",
        "Apertus BioGpt BitNet CodeGen Cohere Cohere2 Gemma Gemma3 Glm Glm4 Granite Helium Llama Lfm2 Mistral NanoChat",
        "Olmo Olmo2 Olmo3 Phi Qwen2 SeedOss SmolLM3 ModernBertDecoder",
    ),
    *of("LMHeadModel", "decoders", language, "causal_lm", "GPT2 OpenAIGPT CTRL XLNet"),
]

EXPERTS = [
    *of(
        "ForSequenceClassification",
        "mixtures of experts",
        sequence,
        "classification",
        "Mixtral Qwen2Moe JetMoe",
        **NUMBERED,
        **PADDED,
    ),
    *of(
        "ForCausalLM",
        "mixtures of experts",
        language,
        "causal_lm",
        "Mixtral Qwen2Moe Qwen3Moe GptOss GraniteMoe Olmoe Phimoe DeepseekV3 Ernie4_5_Moe MiniMaxM2 Glm4Moe Lfm2Moe",
    ),
]

STATE_SPACE = of(
    "ForCausalLM",
    "state-space and recurrent",
    language,
    "causal_lm",
    "Mamba Mamba2 FalconMamba Bamba FalconH1 GraniteMoeHybrid Jamba Qwen3Next RecurrentGemma Rwkv",
)

ENCODER_DECODERS = [
    *of(
        "ForSequenceClassification",
        "encoder-decoders",
        ended_sequence,
        "classification",
        "Bart T5 MBart Mvp UMT5",
        **NUMBERED,
        decoder_start_token_id=0,
    ),
    *of(
        "ForConditionalGeneration",
        "encoder-decoders",
        translation,
        "seq2seq_lm",
        "Bart BigBirdPegasus Blenderbot BlenderbotSmall LED LongT5 M2M100 MBart MT5 Mvp NllbMoe Pegasus PegasusX",
        "PLBart SwitchTransformers T5 T5Gemma UMT5",
        decoder_start_token_id=0,
    ),
    model_case("MarianMTModel", "encoder-decoders", translation, likelihood="seq2seq_lm"),
    model_case("BartForQuestionAnswering", "encoder-decoders", span, likelihood="question_answering"),
]

NO_LINEAR = dict.fromkeys(("default", "fit"), "the model has no linear layers to adapt")
VISION = [
    *(
        model_case(
            f"{name}ForImageClassification",
            "vision",
            arrays("pixel_values", 3, size, size),
            OVERRIDES.get(name, {}) | NUMBERED,
            lengths=False,
            refused=NO_LINEAR if name in ("ResNet", "RegNet", "Bit") else {},
        )
        for size, names in {
            16: "ViT DeiT Beit Dinov2 Dinov2WithRegisters Siglip CLIP IJepa ViTMSN Data2VecVision MetaClip2 "
            "Swin Swinv2 DonutSwin",
            32: "ConvNext ConvNextV2 Segformer FocalNet ResNet RegNet Bit",
            64: "Levit MobileViT Pvt PvtV2 SwiftFormer",
        }.items()
        for name in names.split()
    ),
    model_case("ImageGPTForImageClassification", "vision", sequence, NUMBERED | {"vocab_size": VOCABULARY + 1}),
    model_case(
        "VideoMAEForVideoClassification",
        "vision",
        arrays("pixel_values", 2, 3, IMAGE, IMAGE),
        NUMBERED | {"num_frames": 2, "tubelet_size": 2},
        lengths=False,
    ),
    model_case(
        "VivitForVideoClassification",
        "vision",
        arrays("pixel_values", 2, 3, IMAGE, IMAGE),
        NUMBERED | {"num_frames": 2, "tubelet_size": [2, 4, 4]},
        lengths=False,
    ),
    model_case(
        "TimesformerForVideoClassification",
        "vision",
        arrays("pixel_values", 2, 3, IMAGE, IMAGE),
        NUMBERED | {"num_frames": 2},
        lengths=False,
    ),
]

AUDIO = [
    *(
        model_case(
            f"{name}ForSequenceClassification",
            "audio",
            arrays("input_values", 160),
            FEATURES | OVERRIDES.get(name, {}) | NUMBERED,
            lengths=False,
        )
        for names in ("Wav2Vec2 Hubert WavLM UniSpeech UniSpeechSat", "Data2VecAudio Wav2Vec2Conformer SEW SEWD")
        for name in names.split()
    ),
    model_case(
        "Wav2Vec2BertForSequenceClassification",
        "audio",
        arrays("input_features", 10, 16),
        NUMBERED
        | {"feature_projection_input_dim": 16, "classifier_proj_size": 16, "mask_time_prob": 0.0}
        | {"conv_depthwise_kernel_size": 3, "left_max_position_embeddings": 8},
        lengths=False,
    ),
    model_case(
        "ASTForAudioClassification",
        "audio",
        arrays("input_values", 24, 16),
        NUMBERED | {"max_length": 24, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8},
        lengths=False,
    ),
    model_case(
        "WhisperForAudioClassification",
        "audio",
        arrays("input_features", 16, 40),
        NUMBERED | {"num_mel_bins": 16, "max_source_positions": 20, "classifier_proj_size": 16},
        lengths=False,
    ),
    model_case(
        "WhisperForConditionalGeneration",
        "audio",
        speech("input_features", 16, 40),
        {"num_mel_bins": 16, "max_source_positions": 20},
        likelihood="seq2seq_lm",
        lengths=False,
    ),
    model_case(
        "Speech2TextForConditionalGeneration",
        "audio",
        speech("input_features", 24, 16),
        {"input_feat_per_channel": 16, "conv_channels": 16, "num_conv_layers": 2},
        likelihood="seq2seq_lm",
        lengths=False,
    ),
    model_case(
        "MoonshineForConditionalGeneration",
        "audio",
        speech("input_values", 1600),
        {"pad_token_id": 0},
        likelihood="seq2seq_lm",
        lengths=False,
    ),
]

SERIES = {"num_input_channels": 2, "num_targets": CLASSES, "context_length": 16, "patch_length": 4, "patch_stride": 4}
NO_LOGITS = dict.fromkeys(("default", "fit"), "in which there are no logits")
OTHERS = [
    model_case(
        "PatchTSTForClassification",
        "time series",
        arrays("past_values", 16, 2),
        SERIES | {"use_cls_token": True},
        lengths=False,
        refused=NO_LOGITS,
    ),
    model_case(
        "PatchTSMixerForTimeSeriesClassification",
        "time series",
        arrays("past_values", 16, 2),
        SERIES,
        lengths=False,
        refused=NO_LOGITS,
    ),
]

MULTIMODAL = [
    model_case("ViltForQuestionAnswering", "multimodal", also(sequence, pixel_values=image), NUMBERED),
    model_case(
        "ViltForImagesAndTextClassification",
        "multimodal",
        also(sequence, pixel_values=lambda size, length: image(size, length)[:, None]),
        NUMBERED | {"num_images": 1},
    ),
    model_case(
        "LxmertForQuestionAnswering",
        "multimodal",
        also(sequence, visual_feats=lambda size, _: noise(size, 3, 8), visual_pos=lambda size, _: noise(size, 3, 4)),
        {"num_qa_labels": CLASSES, "visual_feat_dim": 8, "l_layers": 1, "x_layers": 1, "r_layers": 1},
        refused=NO_LOGITS,
    ),
    model_case(
        "LlavaForConditionalGeneration",
        "multimodal",
        pictured(16, IMAGE_TOKEN),
        {"image_token_index": IMAGE_TOKEN, "vision_feature_layer": -1},
        likelihood="causal_lm",
    ),
    model_case(
        "PaliGemmaForConditionalGeneration",
        "multimodal",
        pictured(16, IMAGE_TOKEN),
        {"image_token_index": IMAGE_TOKEN, "image_token_id": IMAGE_TOKEN, "num_image_tokens": 16},
        likelihood="causal_lm",
    ),
    model_case(
        "Gemma3ForConditionalGeneration",
        "multimodal",
        pictured(4, IMAGE_TOKEN),
        {"image_token_id": IMAGE_TOKEN, "image_token_index": IMAGE_TOKEN, "mm_tokens_per_image": 4},
        likelihood="causal_lm",
    ),
    model_case(
        "GitForCausalLM",
        "multimodal",
        also(language, pixel_values=image),
        likelihood="causal_lm",
        refused=dict.fromkeys(
            ("default", "fit"), "No likelihood is known for outputs"
        ),  # the image's logits come first
    ),
    model_case(
        "Qwen2VLForConditionalGeneration",
        "multimodal",
        patches,
        {
            "image_token_id": IMAGE_TOKEN,
            "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}},
        },
        likelihood="causal_lm",
        refused=dict.fromkeys(("default", "fit"), "arrays differ in length"),
    ),
    model_case(
        "BlipForConditionalGeneration", "multimodal", also(language, pixel_values=image), likelihood="causal_lm"
    ),
]

MODELS: list[Case] = [
    *ENCODERS,
    *DECODERS,
    *EXPERTS,
    *STATE_SPACE,
    *ENCODER_DECODERS,
    *VISION,
    *AUDIO,
    *OTHERS,
    *MULTIMODAL,
]
