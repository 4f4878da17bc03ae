"""All cases, the quick ones among them, and what is known to be wrong."""

import re

from tests.architectures.checks import Result
from tests.architectures.families import MODELS, Case
from tests.architectures.plain import PLAIN

CASES: list[Case] = [*PLAIN, *MODELS]

# One for each mechanism, and the cheap ones.
QUICK = (
    *(case.name for case in PLAIN),
    *("AlbertForSequenceClassification", "BertForMultipleChoice", "BertForTokenClassification"),
    *("DebertaV2ForSequenceClassification", "EsmForSequenceClassification", "IBertForSequenceClassification"),
    *(
        "LayoutLMv3ForSequenceClassification",
        "LongformerForSequenceClassification",
        "ReformerForSequenceClassification",
    ),
    *("SqueezeBertForSequenceClassification", "XLNetForSequenceClassification"),
    *("GPT2LMHeadModel", "LlamaForQuestionAnswering", "Qwen2MoeForCausalLM", "PhimoeForCausalLM"),
    *("DeepseekV3ForCausalLM", "MambaForCausalLM", "RwkvForCausalLM"),
    *("T5ForConditionalGeneration", "BlenderbotForConditionalGeneration", "WhisperForConditionalGeneration"),
    *("SwinForImageClassification", "SwiftFormerForImageClassification", "SiglipForImageClassification"),
    *("WavLMForSequenceClassification", "LlavaForConditionalGeneration", "GitForCausalLM", "PatchTSTForClassification"),
)

KNOWN_WRONG: dict[str, dict[str, str]] = {
    "A parent reads the layer's weight: the adapter does nothing, until it is merged.": {
        "weight read by the parent": "gradients merged",
        "LayoutLMv3ForSequenceClassification": "gradients merged",
        "MambaForCausalLM": "gradients merged",
        "FalconMambaForCausalLM": "gradients merged",
        "JambaForCausalLM": "gradients merged",
        "WavLMForSequenceClassification": "gradients merged",
    },
    "Nothing leads from the layer to the logits: its adapter is not trained, and nobody is told.": {
        "unused layer": "gradients",
        "EsmForSequenceClassification": "gradients",
        "LiltForSequenceClassification": "gradients",
        "LongformerForSequenceClassification": "gradients",
        "LukeForSequenceClassification": "gradients",
        "MarkupLMForSequenceClassification": "gradients",
        "LEDForConditionalGeneration": "gradients",
        "SiglipForImageClassification": "gradients",
        "PaliGemmaForConditionalGeneration": "gradients",
        "Gemma3ForConditionalGeneration": "gradients",
    },
    "Reversible layers record no graph where their input needs no gradient: no adapter is trained.": {
        "ReformerForSequenceClassification": "gradients",
    },
    "The layer's forward is not x Wᵀ + b: merging changes what it computes, or its arguments or output do not fit.": {
        "cosine layer": "merged peft",
        "scaled layer": "merged peft",
        "square weight [in, out]": "merged peft",
        "activation within": "merged",
        "IBertForSequenceClassification": "start task fit",
        "PhimoeForCausalLM": "fit",
    },
    "A copy of a parametrised layer loses its adapter; spectral norm moves in training.": {
        "weight_norm": "merged copied peft",
        "spectral_norm": "merged copied saved peft",
    },
    "A layer under several names is adapted under one of them.": {
        "one layer in a list, thrice": "merged",
        "one layer under two names": "merged",
    },
    "The default rank does not fit a narrow layer.": {
        "narrow MLP": "default",
        "weight_norm": "default",
        "spectral_norm": "default",
        "cosine layer": "default",
        "scaled layer": "default",
        "square weight [in, out]": "default",
        "activation within": "default",
        "output layer `out`": "default",
        "output layer `linear`": "default",
        "output layer `regressor`": "default",
        "output layer `fc2`": "default",
        "EsmForSequenceClassification": "default",
        "LayoutLMv3ForSequenceClassification": "default",
        "PerceiverForSequenceClassification": "default",
        "Qwen2MoeForSequenceClassification": "default",
        "JetMoeForSequenceClassification": "default",
        "Qwen2MoeForCausalLM": "default",
        "PhimoeForCausalLM": "default",
        "MambaForCausalLM": "default",
        "FalconMambaForCausalLM": "default",
        "JambaForCausalLM": "default",
        "Qwen3NextForCausalLM": "default",
        "SwitchTransformersForConditionalGeneration": "default",
        "Swinv2ForImageClassification": "default",
    },
    "The output layer is not recognised as the task head: it stays random and frozen.": {
        "narrow MLP": "head",
        "weight_norm": "head",
        "spectral_norm": "head",
        "cosine layer": "head",
        "scaled layer": "head",
        "square weight [in, out]": "head",
        "activation within": "head",
        "output layer `out`": "head",
        "output layer `linear`": "head",
        "output layer `regressor`": "head",
        "output layer `fc2`": "head",
        "PerceiverForSequenceClassification": "head",
    },
    "A language model whose class is in no list is taken for token classification: labels are not shifted.": {
        "LlavaForConditionalGeneration": "task",
        "PaliGemmaForConditionalGeneration": "task",
        "BlipForConditionalGeneration": "task",
    },
    "An encoder-decoder without `prepare_decoder_input_ids_from_labels` gets no inputs for its decoder.": {
        "BlenderbotForConditionalGeneration": "default fit",
        "BlenderbotSmallForConditionalGeneration": "default fit",
        "M2M100ForConditionalGeneration": "default fit",
        "NllbMoeForConditionalGeneration": "default fit",
        "WhisperForConditionalGeneration": "default fit",
        "Speech2TextForConditionalGeneration": "default fit",
        "MoonshineForConditionalGeneration": "default fit",
    },
    "Fused weights of experts, or of torch's attention, have no adapter, and nobody is told.": {
        "nn.TransformerEncoder": "named",
        "nn.TransformerEncoder, sequence first": "named",
        "MixtralForSequenceClassification": "named",
        "Qwen2MoeForSequenceClassification": "named",
        "JetMoeForSequenceClassification": "named",
        "MixtralForCausalLM": "named",
        "Qwen2MoeForCausalLM": "named",
        "Qwen3MoeForCausalLM": "named",
        "GptOssForCausalLM": "named",
        "GraniteMoeForCausalLM": "named",
        "OlmoeForCausalLM": "named",
        "DeepseekV3ForCausalLM": "named",
        "Ernie4_5_MoeForCausalLM": "named",
        "MiniMaxM2ForCausalLM": "named",
        "Glm4MoeForCausalLM": "named",
        "Lfm2MoeForCausalLM": "named",
        "GraniteMoeHybridForCausalLM": "named",
        "JambaForCausalLM": "named",
        "Qwen3NextForCausalLM": "named",
    },
    "PEFT reads `gate_proj`, `up_proj` and `down_proj` of a mixture as its fused experts, and drops other layers.": {
        "DeepseekV3ForCausalLM": "peft",
        "Ernie4_5_MoeForCausalLM": "peft",
        "Glm4MoeForCausalLM": "peft",
        "Qwen3NextForCausalLM": "peft",
    },
    "PEFT refuses, or does not reach, a layer of what was exported.": {
        "MambaForCausalLM": "peft",
        "Mamba2ForCausalLM": "peft",
        "FalconMambaForCausalLM": "peft",
        "FalconH1ForCausalLM": "peft",
        "SwiftFormerForImageClassification": "peft",  # its head is called `norm`, and so are parts of its body
        "nn.TransformerEncoder": "peft",  # torch's fused kernel passes PEFT's layers by
    },
}
"""Reason to cases and the checks that they fail, which ought to hold. A case that is mended is taken out."""


def known_wrong(name: str) -> set[str]:
    """Checks of a case that are known to fail."""
    return {check for cases in KNOWN_WRONG.values() for check in cases.get(name, "").split()}


def is_right(case: Case, check: str, result: Result) -> bool:
    """Whether a check came out as it should: it works, or is refused where the case, or PEFT's format, says so."""
    if check in case.refused:
        return result.outcome == "refused" and re.search(case.refused[check], result.detail) is not None
    return result.outcome == "works" or (check == "peft" and result.outcome == "refused")
