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

KNOWN_WRONG: dict[str, dict[str, str]] = {}
"""Reason to cases and the checks that they fail, which ought to hold. A case that is mended is taken out."""


def known_wrong(name: str) -> set[str]:
    """Checks of a case that are known to fail."""
    return {check for cases in KNOWN_WRONG.values() for check in cases.get(name, "").split()}


def is_right(case: Case, check: str, result: Result) -> bool:
    """Whether a check came out as it should: it works, or is refused where the case, or PEFT's format, says so."""
    if check in case.refused:
        return result.outcome == "refused" and re.search(case.refused[check], result.detail) is not None
    return result.outcome == "works" or (check == "peft" and result.outcome == "refused")
