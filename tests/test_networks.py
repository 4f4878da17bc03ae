"""What networks are asked about themselves."""

import logging

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutput

import bayeslora
from bayeslora.networks import answers, check_decoder_inputs, continues, decoder_inputs, vocabulary
from tests.architectures.cases import CASES
from tests.architectures.checks import run
from tests.helpers import tiny_bert

WRITING = [case for case in CASES if case.likelihood in ("causal_lm", "seq2seq_lm")]
DECODERS = [
    case
    for case in WRITING
    if case.name.startswith(("Bart", "T5", "MBart", "Blenderbot", "M2M100", "Whisper", "Speech2Text", "Moonshine"))
]


@pytest.mark.parametrize("case", DECODERS, ids=lambda case: case.name)
def test_decoders_read_the_labels_as_the_model_itself_shifts_them(case: object) -> None:
    model = case.make()
    inputs, labels = case.batch(3, 7)
    labels = labels.clone()
    labels[0, -2:] = -100
    shifted = decoder_inputs(model)
    with torch.no_grad():
        own = model(**inputs, labels=labels).logits
    torch.testing.assert_close(run(model, {**inputs, "decoder_input_ids": shifted(labels)}), own)


def test_there_is_a_case_for_every_way_to_shift() -> None:
    assert len(DECODERS) >= 9
    assert any(not hasattr(case.make(), "prepare_decoder_input_ids_from_labels") for case in DECODERS)


@pytest.mark.parametrize(
    "name", ["BartForQuestionAnswering", "BartForSequenceClassification", "T5ForTokenClassification", "T5EncoderModel"]
)
def test_labels_of_other_tasks_are_never_decoder_inputs(name: str) -> None:
    cls = getattr(hf, name)
    with torch.device("meta"):
        model = cls(cls.config_class(encoder_layers=1, decoder_layers=1, d_model=32, num_layers=1))
    assert decoder_inputs(model) is None
    assert not continues(model)
    assert not answers(model)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen2VLForConditionalGeneration", continues),
        ("Idefics3ForConditionalGeneration", continues),
        ("VoxtralForConditionalGeneration", continues),  # listed beside encoder-decoders
        ("Kosmos2ForConditionalGeneration", continues),
        ("Florence2ForConditionalGeneration", answers),
        ("Pix2StructForConditionalGeneration", answers),
        ("BertForMaskedLM", answers),
        ("BertLMHeadModel", continues),
        ("SpeechT5ForTextToSpeech", None),
        ("GPT2ForTokenClassification", None),
    ],
)
def test_models_are_asked_whether_they_write(name: str, expected: object) -> None:
    cls = getattr(hf, name)
    with torch.device("meta"):
        model = cls(cls.config_class())
    assert [kind for kind in (continues, answers) if kind(model)] == ([expected] if expected else [])


class Own(hf.PreTrainedModel, GenerationMixin):
    """A language model of one's own, which no list has."""

    config_class = hf.GPT2Config
    _tied_weights_keys = {}

    def __init__(self, config: hf.GPT2Config) -> None:
        super().__init__(config)
        self.embed, self.body = nn.Embedding(20, 16), nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 20)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def forward(self, input_ids: Tensor, **others: object) -> CausalLMOutput:
        return CausalLMOutput(logits=self.lm_head(self.body(self.embed(input_ids)).tanh()))


class Tagger(nn.Module):
    """Logits for tokens, of a network that says nothing of itself."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, outputs)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.body(self.embed(input_ids)).tanh())


@pytest.fixture
def texts() -> tuple[dict[str, Tensor], Tensor]:
    ids = torch.randint(0, 5, (4, 6))
    return {"input_ids": ids}, ids.clone()


def test_a_class_of_ones_own_that_generates_is_a_language_model(
    texts: tuple[dict[str, Tensor], Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "bayeslora"):
        posterior = bayeslora.fit(Own(hf.GPT2Config(vocab_size=20)), texts, "lora", epochs=0, progress=False)
    assert posterior.program.likelihood.name == "causal_lm"
    assert "causal_lm" in caplog.text


def test_logits_of_a_vocabulary_are_not_taken_for_classes(texts: tuple[dict[str, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"a logit for each of 20 tokens.*likelihood='causal_lm'"):
        bayeslora.fit(Tagger(20), texts, "lora", epochs=0, progress=False)
    posterior = bayeslora.fit(Tagger(20), texts, "lora", likelihood="causal_lm", epochs=0, progress=False)
    assert posterior.program.likelihood.name == "causal_lm"
    posterior = bayeslora.fit(Tagger(5), texts, "lora", epochs=0, progress=False)
    assert posterior.program.likelihood.name == "token_classification"


def test_a_vocabulary_is_that_of_the_text() -> None:
    assert vocabulary(tiny_bert()) == 60
    assert vocabulary(nn.Linear(2, 2)) is None


def with_the_last_label_first(model: nn.Module) -> nn.Module:
    """Let an encoder-decoder make its decoder's inputs of the labels in another way."""
    plain = model.forward

    def forward(labels: Tensor | None = None, decoder_input_ids: Tensor | None = None, **inputs: Tensor) -> object:
        return plain(**inputs, decoder_input_ids=decoder_input_ids if labels is None else labels.roll(1, 1))

    model.forward = forward
    return model


def test_a_decoder_that_shifts_labels_otherwise_is_refused() -> None:
    case = next(case for case in DECODERS if case.name == "BlenderbotSmallForConditionalGeneration")
    inputs, labels = case.batch(3, 7)
    model = case.make()
    batch = {**inputs, "labels": labels, "decoder_input_ids": decoder_inputs(model)(labels)}
    check_decoder_inputs(model, batch)
    with pytest.raises(ValueError, match="makes its decoder's inputs of the labels in a way"):
        check_decoder_inputs(with_the_last_label_first(model), batch)
    check_decoder_inputs(model, batch | {"decoder_input_ids": labels})  # given by the user
