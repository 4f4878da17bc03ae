"""Tables of questions as they are published: answers to find in a text, and choices."""

import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import bayeslora
from bayeslora.data import Source
from bayeslora.methods import Method
from bayeslora.tasks import choices as choice_tables
from bayeslora.tasks import questions as question_tables
from bayeslora.tasks.answer_letters import prompt_with_letters
from bayeslora.tasks.matching import answer_scores
from bayeslora.tasks.question_answering import AnswerPrediction
from bayeslora.types import Tokenizer
from tests.tasks.cases import model
from tests.tasks.templates import byte_tokenizer
from tests.test_data import tiny_tokenizer

SIZES: Any = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
CONTEXT = "very good film bad good bad very film"


def squad(**columns: Any) -> datasets.Dataset:
    answers = [{"text": ["film bad"], "answer_start": [10]}, {"text": ["good"], "answer_start": [5]}]
    rows = {"id": ["a", "b"], "question": ["  film", "good very"], "context": [CONTEXT, "bad good"], "answers": answers}
    rows["answers"][1] = {"text": ["good", "bad good"], "answer_start": [4, 0]}
    return datasets.Dataset.from_dict(rows | columns)


def arc(**columns: Any) -> datasets.Dataset:
    rows = {
        "id": ["1", "2", "3"],
        "question": ["good film", "bad", "very"],
        "choices": [
            {"text": ["good", "bad"], "label": ["A", "B"]},
            {"text": ["bad", "very bad", "film"], "label": ["1", "2", "3"]},
            {"text": ["film", "good"], "label": ["A", "B"]},
        ],
        "answerKey": ["B", "3", "A"],
    }
    return datasets.Dataset.from_dict(rows | columns)


def fit(network: Any, data: Any, method: str | Method = "lora", **settings: Any) -> bayeslora.Posterior:
    settings = {"epochs": 1, "rank": 2, "batch_size": 4, "learning_rate": 1e-2, "progress": False} | settings
    return bayeslora.fit(network, data, method, **settings)


# Answers to find in a text


def test_a_long_context_is_cut_into_windows_that_overlap() -> None:
    rows, questions = question_tables.read(squad(), tiny_tokenizer())  # windows of 8 tokens, overlapping by 2
    assert questions.question.tolist() == [0, 0, 1]
    assert [len(row["input_ids"]) for row in rows] == [8, 4, 4]
    # One token of question, seven of context; the last two of these again, and the last one.
    assert [questions.text(0, 1, 7), questions.text(1, 1, 3)] == ["very good film bad good bad very", "bad very film"]
    assert questions.offsets[0][0].tolist() == [-1, -1]
    assert questions.answers == [["film bad"], ["good", "bad good"]]


def test_a_window_is_labelled_with_the_answer_it_holds_or_its_first_token() -> None:
    rows, questions = question_tables.read(squad(), tiny_tokenizer())
    assert [row["labels"] for row in rows] == [[3, 4], [0, 0], [3, 3]]
    assert questions.text(0, 3, 4) == "film bad"
    assert questions.text(2, 3, 3) == "good"


def test_questions_may_have_no_answers_and_answers_may_be_unknown() -> None:
    none = [{"text": [], "answer_start": []}] * 2
    rows, questions = question_tables.read(squad(answers=none), tiny_tokenizer())
    assert [row["labels"] for row in rows] == [[0, 0]] * 3
    assert questions.answers == [[], []]
    rows, questions = question_tables.read(squad().remove_columns("answers"), tiny_tokenizer())
    assert "labels" not in rows[0]
    assert questions.answers is None


def test_tables_of_questions_that_do_not_fit_say_so() -> None:
    wrong = [{"text": ["film"], "answer_start": [0]}] * 2
    with pytest.raises(ValueError, match=r"data, row 0: the context has 'very' where 'film' should be"):
        question_tables.read(squad(answers=wrong), tiny_tokenizer())
    with pytest.raises(ValueError, match="question in row 1 has 5 tokens, more than half a window of 8"):
        question_tables.read(squad(question=["good", "good " * 5]), tiny_tokenizer())
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        question_tables.read(squad(), Mock(spec=Tokenizer))  # has no `is_fast`


def questions_of(offsets: list[Any], question: list[int], answers: list[list[str]]) -> question_tables.Questions:
    return question_tables.Questions(
        [CONTEXT] * len(answers), answers, np.asarray(question), [np.asarray(o) for o in offsets]
    )


def test_the_answer_is_the_most_probable_span_of_the_context_over_all_windows() -> None:
    # Two windows of one question: three tokens each, the first of them the question's; and one window of another.
    words = [[-1, -1], [0, 4], [5, 9]]
    later = [[-1, -1], [10, 14], [15, 18]]
    draws = np.zeros((2, 3, 3, 2))
    draws[:, 0] = [[0.6, 0.6], [0.4, 0.0], [0.0, 0.4]]  # the question's own token is most probable
    draws[0, 1] = [[0.1, 0.1], [0.9, 0.0], [0.0, 0.9]]
    draws[1, 1] = [[0.1, 0.1], [0.0, 0.0], [0.9, 0.9]]
    draws[:, 2] = [[0.9, 0.9], [0.1, 0.1], [0.0, 0.0]]
    prediction = AnswerPrediction(draws, questions=questions_of([words, later, words], [0, 0, 1], [["Film bad."], []]))
    # ½ · .81 for each draw's own span; not "bad" with half of "film": the draws' spans do not mix.
    assert prediction.answers == ["film bad", ""]
    np.testing.assert_allclose(prediction.answer_probs, [0.405, 0.81])
    np.testing.assert_allclose(prediction.no_answer, [0.01, 0.81])
    scores = prediction.scores(np.zeros((3, 2), int))
    assert scores["exact_match"] == scores["f1"] == 1
    assert math.isnan(scores["auroc_errors"])
    assert prediction.to_pandas()["answer"].tolist() == ["film bad", ""]
    wrong = AnswerPrediction(draws, questions=questions_of([words, later, words], [0, 0, 1], [["bad"], []]))
    scores = wrong.scores(np.zeros((3, 2), int))
    assert scores["exact_match"] == 0.5
    assert scores["f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert scores["auroc_errors"] == 1


def test_answers_are_compared_as_squad_compares_them() -> None:
    exact, f1 = answer_scores(
        ["the Cat!", "a big cat", "", "", "dog"], [["cat"], ["dog", "The cat, big"], [], ["cat"], []]
    )
    assert exact.tolist() == [True, False, True, False, False]
    np.testing.assert_allclose(f1, [1, 1, 1, 0, 0])


def from_token_3_to_4() -> nn.Module:
    """A network that sees positions alone, and whose answers begin at token 3 and end at token 4, counted from 0."""
    network: Any = model("Bert", "ForQuestionAnswering")()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "LayerNorm" not in name:
                weight.zero_()
        network.bert.embeddings.position_embeddings.weight[:32] = torch.eye(32)
        network.qa_outputs.weight[0, 3] = network.qa_outputs.weight[1, 4] = 3
    return network


@pytest.mark.parametrize("method", ["lora", "monteclora"])
def test_a_published_table_of_questions_is_all_that_is_needed(method: str, tmp_path: Path) -> None:
    network: Any = from_token_3_to_4()
    network.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "data").mkdir()
    squad().to_parquet(tmp_path / "data" / "train.parquet")
    posterior = fit(str(tmp_path), tmp_path / "data", method, learning_rate=1e-4)
    assert posterior.program.likelihood.name == "question_answering"
    assert type(posterior.network.model).__name__ == "BertForQuestionAnswering"
    # The first step's loss, before anything is learned, is that of the three windows with their labels.
    rows, _ = question_tables.read(squad(), tiny_tokenizer())
    nll = 0.0
    for row, label in zip(rows, [[3, 4], [0, 0], [3, 3]], strict=True):
        with torch.no_grad():
            output = network(torch.tensor([row["input_ids"]]))
        ends = torch.cat([output.start_logits, output.end_logits])
        nll += float(nn.functional.cross_entropy(ends, torch.tensor(label), reduction="sum"))
    assert posterior.history["nll"].tolist() == [pytest.approx(nll / 3, rel=1e-4)]
    # The first question's second window has no token 4 to end at, which makes its answer less probable.
    prediction = posterior.predict(squad().remove_columns("answers"), num_draws=3, batch_size=1)
    assert prediction.answers == ["film bad", "good"]
    assert prediction.to_pandas()["answer"].tolist() == ["film bad", "good"]
    scores = posterior.evaluate(squad(), num_draws=3)
    assert [scores[name] for name in ("exact_match", "f1", "center_exact_match", "center_f1")] == [1, 1, 1, 1]
    posterior.save(tmp_path / "out")
    loaded = bayeslora.load(tmp_path / "out")
    assert loaded.predict({"question": ["film"], "context": [CONTEXT]}).answers == ["film bad"]
    assert loaded.calibrate(squad()).evaluate(squad())["nll"] < loaded.evaluate(squad())["nll"]


# Choices


def test_choices_come_as_tables_have_them() -> None:
    prompts, choices, labels = choice_tables.read(arc())
    assert prompts == ["good film", "bad", "very"]
    assert choices[1] == ["bad", "very bad", "film"]
    assert labels == [1, 2, 0]
    swag = {"sent1": ["good", "bad"], "sent2": ["film", "very"], "ending0": ["a", "b"], "ending1": ["c", "d"]}
    swag_table = datasets.Dataset.from_dict(swag | {"labels": [1, 0]})
    assert choice_tables.read(swag_table) == (["good film", "bad very"], [["a", "c"], ["b", "d"]], [1, 0])
    race = {"article": ["good"], "question": ["film"], "options": [["x", "y"]], "answer": ["B"]}
    assert choice_tables.read(datasets.Dataset.from_dict(race)) == (["good film"], [["x", "y"]], [1])
    assert choice_tables.read(arc().remove_columns("answerKey"))[2] is None
    repeated = arc(question_stem=["good film", "bad", "very"])
    assert choice_tables.read(repeated)[0] == prompts


def test_tables_of_choices_that_do_not_fit_say_so() -> None:
    with pytest.raises(ValueError, match=r"data, row 0: the right choice is 'C', and the choices are \['A', 'B'\]"):
        choice_tables.read(arc(answerKey=["C", "3", "A"]))
    with pytest.raises(ValueError, match="no question: name its column 'question'"):
        choice_tables.read(arc().rename_column("question", "stem"))
    with pytest.raises(ValueError, match="BertForSequenceClassification scores none"):
        Source(arc(), model("Bert", "ForSequenceClassification", num_labels=3)(), tiny_tokenizer())


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_a_missing_choice_is_impossible_and_changes_nothing(family: str) -> None:
    network = model(family, "ForMultipleChoice")()
    posterior = fit(network, arc(), "monteclora", tokenizer=tiny_tokenizer(), epochs=3)
    assert posterior.program.likelihood.name == "multiple_choice"
    assert np.isfinite(posterior.history["loss"]).all()
    probs = posterior.predict(arc(), num_draws=3).draws
    assert (probs[:, [0, 2], 2] == 0).all()
    assert (probs[:, 1] > 0).all()
    two = posterior.predict(arc().select([0, 2]), num_draws=3).draws
    np.testing.assert_allclose(probs[:, [0, 2], :2], two, atol=1e-6)
    prediction = posterior.predict(arc(), num_draws=3)
    assert np.isfinite(prediction.entropy).all()
    assert np.isfinite(prediction.epistemic).all()
    assert np.isfinite(posterior.calibrate(arc()).evaluate(arc())["nll"])


def test_a_table_of_choices_is_loaded_as_such_by_name(tmp_path: Path) -> None:
    model("Bert", "Model")().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    posterior = fit(str(tmp_path), arc())
    assert type(posterior.network.model).__name__ == "BertForMultipleChoice"
    assert posterior.predict(arc().remove_columns("answerKey")).probs.shape == (3, 3)


def test_a_causal_model_reads_choices_with_their_letters(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["A", "B", "C", "Answer"])
    tokenizer.model_max_length = 30
    posterior = fit(model("GPT2", "LMHeadModel")(), arc(), tokenizer=tokenizer)
    assert posterior.program.likelihood.token_ids == tokenizer.convert_tokens_to_ids(["A", "B", "C"])
    assert prompt_with_letters("bad", ["good", "film"]) == "bad\nA. good\nB. film\nAnswer:"
    rows = Source(arc(), model("GPT2", "LMHeadModel")(), tokenizer)
    assert rows.labels is not None
    assert rows.labels.tolist() == [1, 2, 0]


QUESTIONS = {"question": ["1+1?", "2+2?"], "choices": [["1", "2"], ["4", "5"]]}


@pytest.mark.parametrize(
    "answer",
    [["B", "A"], [1, 0], [" 2", "4"], datasets.ClassLabel(names=["A", "B"])],
    ids=["name", "int", "text", "named"],
)
def test_the_right_choice_is_a_name_a_number_or_a_text(answer: Any) -> None:
    values = answer if isinstance(answer, list) else [1, 0]
    table = datasets.Dataset.from_dict(QUESTIONS | {"answer": values})
    table = table if isinstance(answer, list) else table.cast_column("answer", answer)
    assert choice_tables.read(table)[2] == [1, 0]
    for wrong in (3, -1, "C", "3", True, None):
        with pytest.raises(ValueError, match=r"data, row 0: the right choice is"):
            choice_tables.read(datasets.Dataset.from_dict(QUESTIONS | {"answer": [wrong] * 2}))


def test_shots_precede_every_question_in_the_fit_and_in_predictions(tmp_path: Path) -> None:
    network, tokenizer = (
        LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4)),
        byte_tokenizer(begin="<s>", end="</s>"),
    )
    table = datasets.Dataset.from_dict(QUESTIONS | {"answer": ["B", "A"]})
    settings = {"likelihood": "answer_letters", "tokenizer": tokenizer, "epochs": 0}
    shots = pd.DataFrame({"question": ["Sky?"], "choices": [["blue", "red"]], "answer": ["A"]})
    posterior = fit(network, table, shots=shots, **settings)
    shot = "Sky?\nA. blue\nB. red\nAnswer: A\n\n"
    by_hand = [f"<s>{shot}1+1?\nA. 1\nB. 2\nAnswer:", f"<s>{shot}2+2?\nA. 4\nB. 5\nAnswer:"]
    assert [tokenizer.decode(row["input_ids"]) for row in posterior._source(table).dataset] == by_hand
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, network)
    np.testing.assert_array_equal(loaded.predict(table).draws, posterior.predict(table).draws)

    ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in by_hand]
    letters = [tokenizer(f" {letter}")["input_ids"][-1] for letter in "AB"]
    with torch.no_grad():
        expected = [posterior.merge().eval()(each).logits[0, -1, letters].softmax(-1).numpy() for each in ids]
    np.testing.assert_allclose(posterior.predict(table, center=True).probs, expected, atol=1e-5)

    with pytest.raises(bayeslora.contracts.ArgumentError, match=r"^shots precede questions with choices"):
        fit(network, [{"instruction": "a", "output": "b"}], shots=shots, tokenizer=tokenizer, epochs=0)
    with pytest.raises(ValueError, match=r"^shots need their right choices, in a column 'answerKey' or 'answer'"):
        fit(network, table, shots=shots.drop(columns="answer"), **settings)


def test_every_choice_has_a_letter_though_it_is_right_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer(begin="<s>", end="</s>")
    network = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4))
    settings: dict[str, Any] = {"likelihood": "answer_letters", "tokenizer": tokenizer, "epochs": 0}
    three = {"question": ["1+1?", "2+2?"], "choices": [["1", "2", "3"], ["4", "5", "6"]]}
    table = datasets.Dataset.from_dict(three | {"answer": ["B", "A"]})
    posterior = fit(network, table, **settings)
    assert posterior.predict(table).probs.shape == (2, 3)
    more = datasets.Dataset.from_dict({"question": ["1+1?"], "choices": [["1", "2", "3", "4"]], "answer": ["D"]})
    for call in (posterior.predict, posterior.evaluate):
        with pytest.raises(ValueError, match=r"^data: a question has 4 choices, and the likelihood knows 3 letters"):
            call(more)
    assert "fewer choices" not in caplog.text
    fewer = datasets.Dataset.from_dict({"question": ["1+1?"] * 2, "choices": [["1", "2"], ["1", "2", "3"]]})
    assert posterior.predict(fewer).probs.shape == (2, 3)
    assert "data: 1 of 2 questions have fewer choices than the 3 letters of the fit" in caplog.text


@pytest.mark.parametrize(("longest", "kept"), [(80, "Answer: A\n\n1+1?"), (30, "?\nA. 1\nB. 2\nAnswer:")])
def test_what_is_cut_of_a_question_is_never_its_end(longest: int, kept: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = byte_tokenizer(begin="<s>", end="</s>", model_max_length=longest)
    network = LlamaForCausalLM(LlamaConfig(**SIZES, num_attention_heads=4))
    questions = QUESTIONS["question"] if longest == 80 else ["What is 1+1?", "2+2?"]
    table = datasets.Dataset.from_dict(QUESTIONS | {"question": questions, "answer": ["B", "A"]})
    shots = {"question": ["Sky?"] * 4, "choices": [["blue", "red"]] * 4, "answer": ["A"] * 4}
    settings: dict[str, Any] = {"likelihood": "answer_letters", "tokenizer": tokenizer, "epochs": 0}
    posterior = fit(network, table, shots=datasets.Dataset.from_dict(shots), **settings)
    rows = [tokenizer.decode(row["input_ids"]) for row in posterior._source(table).dataset]
    assert all(text.startswith("<s>") and text.endswith("\nAnswer:") and len(text) <= longest + 2 for text in rows)
    assert kept in rows[0]
    assert "of 2 questions, 2 are too long for all shots" in caplog.text
    tokenizer.model_max_length = 10
    with pytest.raises(ValueError, match=r"data, row 0: the choices have 19 tokens, and 10 can be read"):
        fit(network, table, **settings)


# Tables of pandas


def test_a_pandas_table_is_read_as_a_dataset_or_as_numbers() -> None:
    texts = pd.DataFrame({"text": ["good", "bad film"], "label": [1, 0]})
    posterior = fit(model("Bert", "ForSequenceClassification", num_labels=2)(), texts, tokenizer=tiny_tokenizer())
    apart = posterior.predict(["good", "bad film"]).draws
    np.testing.assert_allclose(posterior.predict(texts).draws, apart, atol=1e-6)
    pair = {"sentence1": ["good"], "sentence2": ["bad film"]}
    assert posterior.predict(pair, text=["sentence1", "sentence2"]).probs.shape == (1, 2)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    numbers = pd.DataFrame({"age": [1, 2, 3, 4], "height": [0.5, 1.5, 0.2, 0.1], "label": [0, 1, 0, 1]})
    posterior = fit(network, numbers)
    assert posterior.predict(numbers.drop(columns="label")).probs.shape == (4, 2)
    assert posterior.evaluate(numbers).keys() >= {"accuracy"}
    turned = numbers[["height", "label", "age"]]
    expected = posterior.evaluate(numbers, num_draws=1)["nll"]
    for form in (turned, turned.to_dict("records"), turned.to_dict("list"), datasets.Dataset.from_pandas(turned)):
        assert posterior.evaluate(form, num_draws=1)["nll"] == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match="data: arrays differ in length"):
        posterior.predict({"age": [1, 2], "height": [0.5]})


CHOICES: dict[str, tuple[dict[str, Any], list[int]]] = {
    "letters over columns": ({"question": "??", "A": "xy", "B": "yz", "C": "zx", "answer": ["B", "C"]}, [1, 2]),
    "of Kaggle": ({"prompt": "??", "A": "xy", "B": "yz", "answer": ["b", "(A)"]}, [1, 0]),
    "names of columns": ({"Question": "??", "option_a": "xy", "option_b": "yz", "correct": ["option_b", "A"]}, [1, 0]),
    "texts": ({"question": "??", "Option 1": "xy", "Option 2": "yz", "Correct Answer": ["y", "y"]}, [1, 0]),
    "numbers from 1": ({"question": "??", "choices": [["x", "y"]] * 2, "answer": [2, 1]}, [1, 0]),
    "numbers of columns": ({"question": "??", "option1": "xy", "option2": "yz", "answer": ["1", "1"]}, [0, 0]),
    "labels from 0": ({"premise": "??", "choice1": "xy", "choice2": "yz", "labels": [1, 1]}, [1, 1]),
    "labels as texts": ({"ctx": "??", "endings": [["x", "y"]] * 2, "labels": ["1", "0"]}, [1, 0]),
    "labels as letters": ({"question": "??", "A": "xy", "B": "yz", "labels": ["B", "A"]}, [1, 0]),
    "whole numbers as real ones": ({"question": "??", "A": "xy", "B": "yz", "answer": [1.0, 0.0]}, [1, 0]),
    "more than ten": (
        {"question": "??", **{f"choice{number}": [f"a{number}", f"b{number}"] for number in (0, 1, 10, *range(2, 10))}}
        | {"answer": ["a10", "b2"]},
        [10, 2],
    ),
    "fewer in a row": ({"question": "??", "A": "xy", "B": "yz", "C": ["z", None], "answer": ["C", "B"]}, [2, 1]),
    "numbers that are choices": ({"question": "??", "A": [10, 20], "B": [30, 40], "answer": [30, 20]}, [1, 0]),
}


@pytest.mark.parametrize("form", CHOICES)
def test_choices_as_people_write_them(form: str) -> None:
    columns, right = CHOICES[form]
    table = datasets.Dataset.from_dict({name: list(values) for name, values in columns.items()})
    assert choice_tables.are_in(table.column_names)
    prompts, texts, found = choice_tables.read(table)
    assert found == right
    assert prompts == ["?", "?"]
    assert all(isinstance(text, str) for row in texts for text in row)
    if form == "more than ten":
        assert texts[0] == [f"a{number}" for number in range(11)]


@pytest.mark.parametrize("columns", [("A", "B", "y"), ("question", "answer"), ("question", "A"), ("text", "option_1")])
def test_what_is_no_choice(columns: tuple[str, ...]) -> None:
    assert not choice_tables.are_in(columns)
