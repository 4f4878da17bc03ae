"""Labels and columns as people have them: every form gives what numbers from 0 give, whatever the order of classes."""

import collections
import dataclasses
import datetime
import decimal
import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import bayeslora
from bayeslora.data import Columns, plain
from bayeslora.data.foreign import familiar
from bayeslora.data.plain import raw
from bayeslora.networks import output_names
from bayeslora.tasks import LIKELIHOODS, choosing
from bayeslora.tasks.classes import Classes, numbers_of_one, of_one, of_several, rows_of_several
from bayeslora.tasks.labels import RawLabels
from tests.helpers import tiny_bert
from tests.tasks.cases import model as case_model
from tests.test_data import Bag, tiny_tokenizer

TEXTS = ["good film", "bad", "very good good film", "bad bad film", "good", "film", "very very bad", "very good"]
NUMBERS = [2, 0, 2, 0, 1, 1, 0, 2]
NAMES = ("bad", "fair", "great")
WORDS = [NAMES[number] for number in NUMBERS]


def classes(names: Any, values: Any = None) -> datasets.Dataset:
    """A table whose labels are numbers of classes with names in the order given."""
    values = WORDS if values is None else values
    table = datasets.Dataset.from_dict({"text": TEXTS[: len(values)], "label": [list(names).index(v) for v in values]})
    return table.cast_column("label", datasets.ClassLabel(names=list(names)))


def bag(num_labels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return Bag(num_labels).double()


def fit(data: Any, network: Any = None, **settings: Any) -> bayeslora.Posterior:
    """A posterior at its start: nothing here depends on what is learned."""
    settings = {"tokenizer": tiny_tokenizer(), "rank": 2, "epochs": 0, "progress": False} | settings
    return bayeslora.fit(bag() if network is None else network, data, "lora", **settings)


def nll(posterior: bayeslora.Posterior, data: Any, **settings: Any) -> float:
    return posterior.evaluate(data, 2, **settings)["nll"]


@pytest.fixture(scope="module")
def expected() -> float:
    """The NLL of numbers from 0."""
    return nll(fit((TEXTS, NUMBERS)), (TEXTS, NUMBERS))


class Foreign:
    """A table of another library, which hands out its columns by one interface."""

    columns = ("text", "label")

    def __init__(self, interface: str) -> None:
        setattr(self, interface, getattr(pa.table({"text": TEXTS, "label": WORDS}), interface))


@dataclasses.dataclass
class Review:
    """A row whose fields have names."""

    text: str
    label: str


FORMS: dict[str, Any] = {
    "strings": (TEXTS, WORDS),
    "numpy": (np.asarray(TEXTS), np.asarray(WORDS)),
    "objects": (np.asarray(TEXTS, dtype=object), np.asarray(WORDS, dtype=object)),
    "tuple": (tuple(TEXTS), tuple(WORDS)),
    "series": (pd.Series(TEXTS, index=range(8, 0, -1)), pd.Series(WORDS, index=range(8, 0, -1))),
    "categories": (TEXTS, pd.Categorical(WORDS, categories=["great", "bad", "fair"])),
    "frame": pd.DataFrame({"text": TEXTS, "label": WORDS}),
    "frame of categories": pd.DataFrame({"text": TEXTS, "label": pd.Categorical(WORDS)}),
    "frame and series": (pd.DataFrame({"text": TEXTS}), pd.Series(WORDS)),
    "table": datasets.Dataset.from_dict({"text": TEXTS, "label": WORDS}),
    "classes": classes(NAMES),
    "classes in another order": classes(("great", "bad", "fair")),
    "columns": (classes(NAMES)["text"], classes(NAMES)["label"]),
    "columns of another order": (classes(("great", "bad", "fair"))["text"], classes(("great", "bad", "fair"))["label"]),
    "pairs": list(zip(TEXTS, WORDS, strict=True)),
    "records": [{"text": text, "label": label} for text, label in zip(TEXTS, WORDS, strict=True)],
    "mapping": {"text": TEXTS, "label": WORDS},
    "mapping of arrays": {"text": np.asarray(TEXTS), "label": np.asarray(WORDS)},
    "Arrow table": pa.table({"text": TEXTS, "label": WORDS}),
    "Arrow batch": pa.RecordBatch.from_pydict({"text": TEXTS, "label": WORDS}),
    "Arrow columns": (pa.array(TEXTS), pa.chunked_array([WORDS])),
    "by Arrow's interface": Foreign("__arrow_c_stream__"),
    "by __dataframe__": Foreign("__dataframe__"),
    "named tuples": [*pd.DataFrame({"text": TEXTS, "label": WORDS}).itertuples()],
    "data classes": [Review(*each) for each in zip(TEXTS, WORDS, strict=True)],
    "queue": collections.deque(zip(TEXTS, WORDS, strict=True)),
    "views": (dict(enumerate(TEXTS)).values(), dict(enumerate(WORDS)).values()),
    "NumPy's table": pd.DataFrame({"text": TEXTS, "label": WORDS}).to_records(),
    "rows of one": ([[text] for text in TEXTS], WORDS),
    "bytes": ([text.encode() for text in TEXTS], np.asarray(WORDS, dtype="S")),
    "index": pd.DataFrame({"text": TEXTS}, index=pd.Index(WORDS, name="label")),
    "format": datasets.Dataset.from_dict({"text": TEXTS, "label": WORDS}).with_format("pandas"),
    "one-hot": (TEXTS, pd.get_dummies(pd.Series(WORDS))),
    "one-hot in another order": (TEXTS, pd.get_dummies(pd.Series(WORDS))[["great", "bad", "fair"]]),
}


@pytest.fixture(scope="module")
def of_strings() -> bayeslora.Posterior:
    """A fit to names of classes in a list."""
    return fit(FORMS["strings"])


@pytest.mark.parametrize("form", FORMS)
def test_names_of_classes_in_every_form(form: str, expected: float, of_strings: bayeslora.Posterior) -> None:
    # The network's outputs have no names, so that strings are numbered in the order of the alphabet.
    assert of_strings.class_names == NAMES
    assert nll(of_strings, FORMS[form]) == pytest.approx(expected, abs=1e-12)
    declared = {"categories", "classes in another order", "columns of another order", "one-hot in another order"}
    own = fit(FORMS[form])
    assert own.class_names == (("great", "bad", "fair") if form in declared else NAMES)
    its_own = nll(own, FORMS[form])
    if form not in declared:
        assert its_own == pytest.approx(expected, abs=1e-12)
    assert nll(own, FORMS["strings"]) == pytest.approx(its_own, abs=1e-12)


def test_a_stream_of_arrows_rows_is_a_table_of_numbers() -> None:
    frame = pd.DataFrame({"width": [0.5, 1.5], "label": [0, 1]})
    pd.testing.assert_frame_equal(familiar(pa.table(frame).to_reader()), frame)


NUMBER_FORMS: dict[str, tuple[Any, Any, tuple[str, ...] | None]] = {
    "from 1": ([n + 1 for n in NUMBERS], None, ("1", "2", "3")),
    "years": ([n + 1999 for n in NUMBERS], None, ("1999", "2000", "2001")),
    "signs": ([n - 1 for n in NUMBERS], None, ("-1", "0", "1")),
    "texts of numbers": ([str(n + 9) for n in NUMBERS], None, ("9", "10", "11")),
    "floats, asked for": (np.asarray(NUMBERS, float), "classification", None),
    "stars, asked for": (np.asarray(NUMBERS) + 1.0, "classification", ("1", "2", "3")),
    "one-hot": (np.eye(3)[NUMBERS], None, None),
    "one-hot lists": (np.eye(3, dtype=int)[NUMBERS].tolist(), None, None),
    "tensor": (torch.as_tensor(NUMBERS), None, None),
    "nullable": (pd.Series(NUMBERS, dtype="Int64"), None, None),
    "Arrow": (pa.array(NUMBERS), None, None),
    "read-only": (np.frombuffer(np.asarray(NUMBERS).tobytes(), np.int64), None, None),
}


@pytest.mark.parametrize("form", NUMBER_FORMS)
def test_numbers_in_every_form(form: str, expected: float) -> None:
    labels, likelihood, names = NUMBER_FORMS[form]
    posterior = fit((TEXTS, labels), likelihood=likelihood)
    assert posterior.program.likelihood.name == "classification"
    assert posterior.class_names == names
    assert nll(posterior, (TEXTS, labels)) == pytest.approx(expected, abs=1e-12)
    if not isinstance(labels, np.ndarray) or labels.ndim == 1:
        # Some of the classes are absent.
        part = [i for i, number in enumerate(NUMBERS) if number != 0]
        some = ([TEXTS[i] for i in part], [list(labels)[i] for i in part])
        plain = fit((TEXTS, NUMBERS))
        assert nll(posterior, some) == pytest.approx(nll(plain, (some[0], [NUMBERS[i] for i in part])), abs=1e-12)


@pytest.mark.parametrize("likelihood", ["regression", None])
@pytest.mark.parametrize("form", ["array", "lists", "tensor"])
def test_columns_of_real_numbers_are_numbers(form: str, likelihood: str | None) -> None:
    values = np.linspace(0.25, 2, 8)
    column: Any = {
        "array": values[:, None],
        "lists": [[each] for each in values],
        "tensor": torch.tensor(values)[:, None],
    }
    posterior = fit((TEXTS, column[form]), bag(1), likelihood=likelihood)
    assert posterior.program.likelihood.name == "regression"
    assert posterior.evaluate((TEXTS, column[form]), 2) == posterior.evaluate((TEXTS, values), 2)


@pytest.mark.parametrize("form", ["list", "array", "table"])
def test_labels_of_a_network_in_double_precision_keep_theirs(form: str, caplog: pytest.LogCaptureFixture) -> None:
    values = 1e9 + np.linspace(0.25, 2, 8)
    labels = values if form == "array" else values.tolist()
    data: Any = {"text": TEXTS, "label": labels} if form == "table" else (TEXTS, labels)
    posterior = fit(data, bag(1), likelihood="regression")
    predicted = posterior.predict(TEXTS, 2).predicted
    expected = np.sqrt(np.mean((predicted - values) ** 2))
    assert posterior.evaluate(data, 2)["rmse"] == pytest.approx(expected, abs=1e-6)
    assert "apart" not in caplog.text
    fit(data, Bag(1), likelihood="regression")
    assert "their spread is 0.573, but the network's numbers there are 1.2e+02 apart" in caplog.text


def test_truth_values() -> None:
    truths = [number > 0 for number in NUMBERS]
    plain = fit((TEXTS, [int(truth) for truth in truths]), bag(2))
    expected = nll(plain, (TEXTS, [int(truth) for truth in truths]))
    for labels in (
        truths,
        np.asarray(truths),
        pd.Series(truths),
        pd.Series(truths, dtype="boolean"),
        list(map(str, truths)),
    ):
        posterior = fit((TEXTS, labels), bag(2))
        assert posterior.class_names == ("False", "True")
        for other in (truths, list(map(str, truths)), ["yes" if truth else "No " for truth in truths]):
            assert nll(posterior, (TEXTS, other)) == pytest.approx(expected, abs=1e-12)
    for words in (("no", "yes"), ("false", "true"), ("f", "t"), ("0", "1")):
        posterior = fit((TEXTS, [words[truth] for truth in truths]), bag(2))
        assert posterior.class_names == words
        for other in (truths, list(map(str, truths)), [int(truth) for truth in truths]):
            assert nll(posterior, (TEXTS, other)) == pytest.approx(expected, abs=1e-12)
    assert nll(plain, (TEXTS, list(map(str, truths)))) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="row 0: the label 'True' in 'labels' is not among the 2 classes of the fit"):
        nll(fit((TEXTS, ["a" if truth else "b" for truth in truths]), bag(2)), (TEXTS, truths))


def named(*names: str, label2id: bool = False) -> nn.Module:
    """A network whose outputs have names, in one of the two ways."""
    network: Any = bag(len(names))
    network.config = SimpleNamespace(
        **{"label2id": {n: i for i, n in enumerate(names)}} if label2id else {"id2label": dict(enumerate(names))}
    )
    return network


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("great", "bad", "fair"), WORDS),
        (("2", "0", "1"), NUMBERS),
        (("2", "0", "1"), list(map(str, NUMBERS))),
        (("2", "0", "1"), np.asarray(NUMBERS)),
        (("3", "1", "2"), [number + 1 for number in NUMBERS]),
    ],
)
@pytest.mark.parametrize("label2id", [False, True])
def test_outputs_go_by_their_names_in_whichever_order(names: Any, labels: Any, label2id: bool) -> None:
    places = [(1, 2, 0)[number] for number in NUMBERS]
    posterior = fit((TEXTS, labels), named(*names, label2id=label2id))
    assert posterior.class_names == names
    assert nll(posterior, (TEXTS, labels)) == pytest.approx(nll(fit((TEXTS, places)), (TEXTS, places)), abs=1e-12)


@pytest.mark.parametrize("names", [("True", "False"), ("yes", "no"), ("1", "0"), ("POS", "NEG")])
def test_truth_values_go_by_the_names_of_outputs(names: tuple[str, str]) -> None:
    truths = [number > 0 for number in NUMBERS]
    places = [int(truth) if names[0] == "POS" else int(not truth) for truth in truths]  # of other names, by place
    posterior = fit((TEXTS, truths), named(*names))
    expected = nll(fit((TEXTS, places), bag(2)), (TEXTS, places))
    assert posterior.class_names == names
    assert nll(posterior, (TEXTS, truths)) == pytest.approx(expected, abs=1e-12)


def test_names_of_a_configuration() -> None:
    assert output_names({"id2label": {"10": "k", "9": "j"}}) == ("j", "k")
    assert output_names({"id2label": ["a", "b"]}) == ("a", "b")
    assert output_names({"label2id": {"b": "1", "a": 0}}) == ("a", "b")
    assert output_names({"id2label": {0: "LABEL_0", 1: "LABEL_1"}, "label2id": {"b": 1, "a": 0}}) == ("a", "b")
    for nothing in ({}, {"id2label": {0: "LABEL_0"}}, {"label2id": {"a": 0, "b": 2}}, {"label2id": {"LABEL_0": 0}}):
        assert output_names(nothing) is None


def test_a_class_that_is_absent_from_a_split_or_stands_elsewhere(expected: float) -> None:
    posterior = fit(classes(NAMES))
    assert posterior.class_names == NAMES
    for names in (("great", "fair", "bad"), ("fair", "bad", "great", "unused")):
        assert nll(posterior, classes(names)) == pytest.approx(expected, abs=1e-12)
    rows = [i for i, word in enumerate(WORDS) if word != "bad"]
    lacking = datasets.Dataset.from_dict({"text": [TEXTS[i] for i in rows], "label": [WORDS[i] for i in rows]})
    numbers = ([TEXTS[i] for i in rows], [NUMBERS[i] for i in rows])
    assert nll(posterior, lacking.class_encode_column("label")) == pytest.approx(nll(posterior, numbers), abs=1e-12)
    # Numbers are places where they were places in the fit.
    assert nll(posterior, (TEXTS, NUMBERS)) == pytest.approx(expected, abs=1e-12)


def test_a_label_that_the_fit_did_not_know_is_refused_with_its_row() -> None:
    posterior = fit(FORMS["strings"])
    with pytest.raises(
        ValueError, match=r"data, row 2: the label 'awful' in 'labels' is not among the 3 classes.*'bad'"
    ):
        posterior.evaluate((TEXTS[:3], ["bad", "fair", "awful"]))
    with pytest.raises(ValueError, match=r"data, row 0: the label '2' in 'labels' is not among the 3 classes"):
        posterior.evaluate((TEXTS, NUMBERS))
    with pytest.raises(ValueError, match=r"the label in 'labels' is missing in 1 row\(s\), the first is row 1"):
        posterior.evaluate((TEXTS[:3], ["bad", None, "fair"]))
    with pytest.raises(ValueError, match=r"the label in 'labels' is missing in 1 row\(s\), the first is row 1"):
        fit((TEXTS, ["bad", None, *WORDS[2:]]))
    assert nll(posterior, (TEXTS, [f" {word.upper()}" for word in WORDS])) == nll(posterior, FORMS["strings"])


def test_whole_numbers_written_as_real_ones_are_asked_about() -> None:
    stars = [float(number + 1) for number in NUMBERS]
    message = r"whole numbers written as real ones \(3.0, 1.0, 2.0\): say what they are, likelihood='classification'"
    for data in ((TEXTS, stars), pd.DataFrame({"text": TEXTS, "stars": stars})):
        with pytest.raises(ValueError, match=message):
            fit(data)
    ordinal = fit((TEXTS, stars), bag(1), likelihood="ordinal")
    assert ordinal.class_names == ("1", "2", "3")
    assert nll(ordinal, (TEXTS, [number + 1 for number in NUMBERS])) == nll(ordinal, (TEXTS, stars))
    halves = fit((TEXTS, [star / 2 for star in stars]), bag(1), likelihood="ordinal")
    assert halves.class_names == ("0.5", "1", "1.5")
    assert fit((TEXTS, stars), bag(1), likelihood="regression").program.likelihood.name == "regression"
    with pytest.raises(ValueError, match=r"the label in 'labels' is missing in 1 row\(s\), the first is row 1"):
        fit((TEXTS, [1.0, np.nan, *stars[2:]]), likelihood="classification")


def test_real_numbers_written_as_texts_are_asked_about() -> None:
    message = r"the labels in 'score' are real numbers written as texts \('0.5', '1', '0.25'\): say what they are, "
    with pytest.raises(ValueError, match=message):
        choosing.expected(None, None, ("text",), RawLabels(["0.5", "1", "0.25"], "score"))
    with pytest.raises(ValueError, match=r"\(1\.0, 2\.0, 3\.0, 4\.0, 5\.0, 6\.0, 7\.0, 1000000\.0, …\): say what"):
        choosing.expected(None, None, ("text",), RawLabels([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 1e6, 9.0]))
    declared = RawLabels(["0.5", "1"], names=("0.5", "1"))
    for labels in (RawLabels(["1.0", "2"]), RawLabels(["0.5", "low"]), declared):
        found = choosing.expected(None, None, ("text",), labels)
        assert found is LIKELIHOODS["classification"]


def test_what_is_too_little_or_too_strange_is_said(tmp_path: Path) -> None:
    case_model("Bert", "Model")().save_pretrained(tmp_path)
    stream = datasets.Dataset.from_dict({"text": TEXTS, "label": WORDS}).to_iterable_dataset()
    said: list[tuple[Any, str]] = [
        ((TEXTS, ["a"] * 8), "data: all labels in 'labels' are 'a', and there have to be two classes: add rows"),
        (pd.DataFrame({"text": TEXTS, "label": WORDS})[:0], "data has no examples"),
        (stream, r"The classes of 'label' are not known before the rows are read: say how many rows"),
        (
            {"text": [text.split() for text in TEXTS], "label": WORDS},
            r"'text' is not a text in row 0, but \['good', 'f",
        ),
        ({"text": "good film"}, "data: 'text' is one text, 'good film': give a list of texts"),
        ((["a \ud83d", *TEXTS[1:]], WORDS), r"data: the text has half a character, .* the first is row 0"),
    ]
    for data, message in said:
        with pytest.raises(ValueError, match=message):
            fit(data, str(tmp_path))
    assert fit((TEXTS, torch.as_tensor(NUMBERS)), str(tmp_path)).program.likelihood.num_classes == 3
    posterior = fit(FORMS["strings"])
    for unread, message in (("good film", "to pass a single text, put it in a list"), ([None], "all 1 rows")):
        with pytest.raises(ValueError, match=f"(?i){message}"):
            posterior.predict(unread)


def test_texts_have_no_order_unless_it_is_declared() -> None:
    with pytest.raises(ValueError, match="ordered classes need an order"):
        fit((TEXTS, WORDS), bag(1), likelihood="ordinal")
    order = pd.Categorical(WORDS, categories=["great", "fair", "bad"], ordered=True)
    assert fit((TEXTS, order), bag(1), likelihood="ordinal").class_names == ("great", "fair", "bad")


def test_a_model_whose_outputs_have_names_keeps_their_order(tmp_path: Path) -> None:
    names = {0: "GREAT", 1: "FAIR", 2: "BAD"}
    network = tiny_bert(num_labels=3, id2label=names, label2id={v: k for k, v in names.items()}).double()
    reversed_numbers = (TEXTS, [2 - number for number in NUMBERS])
    expected = nll(fit(reversed_numbers, network), reversed_numbers)
    posterior = fit(FORMS["strings"], network)
    assert posterior.class_names == ("great", "fair", "bad")
    assert posterior.network.model.config.id2label == {0: "great", 1: "fair", 2: "bad"}
    assert posterior.network.model.config.label2id == {"great": 0, "fair": 1, "bad": 2}
    assert network.config.id2label == names  # the model that was given is as it was
    for form in ("strings", "classes", "classes in another order"):
        assert nll(posterior, FORMS[form]) == pytest.approx(expected, abs=1e-12)
    # Two of its classes are all that the training data have.
    some = [i for i, word in enumerate(WORDS) if word != "fair"]
    posterior = fit(([TEXTS[i] for i in some], [WORDS[i] for i in some]), network)
    assert posterior.class_names == ("great", "FAIR", "bad")
    network.float().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["id2label"]  # what only `label2id` says is read, too
    (tmp_path / "config.json").write_text(json.dumps(config))
    by_name = fit(FORMS["strings"], str(tmp_path))
    assert by_name.class_names == ("great", "fair", "bad")
    assert torch.equal(by_name.network.model.classifier.weight, network.classifier.weight)


def test_names_that_differ_from_the_models_are_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    network = tiny_bert(num_labels=3, id2label={0: "x", 1: "y", 2: "z"}, label2id={"x": 0, "y": 1, "z": 2})
    posterior = fit(FORMS["strings"], network)
    assert posterior.class_names == NAMES
    assert "calls its outputs 'x', 'y', 'z', and the data have the classes 'bad', 'fair', 'great'" in caplog.text
    network.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    two = fit((TEXTS, ["no", "yes"] * 4), str(tmp_path))
    assert two.network.model.config.id2label == {0: "no", 1: "yes"}
    assert "starts anew" in caplog.text


def test_names_are_kept_wherever_the_model_goes(tmp_path: Path) -> None:
    network = tiny_bert(num_labels=3).double()
    data = pd.DataFrame({"review": TEXTS, "stars": [n + 1 for n in NUMBERS], "id": range(8)})
    posterior = fit(data, network)
    posterior.save(tmp_path)
    loaded = bayeslora.load(tmp_path, network)
    assert loaded.class_names == ("1", "2", "3")
    assert loaded.columns == posterior.columns
    assert (loaded.columns.text, loaded.columns.label, loaded.columns.by_index) == (("review",), "stars", False)
    assert loaded.network.model.config.id2label == {0: "1", 1: "2", 2: "3"}
    assert posterior.merge().config.id2label == {0: "1", 1: "2", 2: "3"}
    assert nll(loaded, data) == nll(posterior, data)
    assert loaded.calibrate(data).columns == posterior.columns
    assert list(loaded.predict(data, 2).to_pandas().columns)[1:4] == ["p(1)", "p(2)", "p(3)"]


class Computed(Dataset[Any]):
    """A dataset whose rows are computed one by one, with texts as labels."""

    def __init__(self, labels: list[str]) -> None:
        self.rows = [{**tiny_tokenizer()("good bad"), "label": label} for label in labels]
        for row, text in zip(self.rows, TEXTS, strict=False):
            ids = (tiny_tokenizer()(text)["input_ids"] + [0] * 4)[:4]
            row |= {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor([int(i > 0) for i in ids])}
            row.pop("token_type_ids", None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


def test_rows_that_are_computed_one_by_one_and_streams(expected: float) -> None:
    rows: Any
    for rows in (Computed(WORDS), DataLoader(Computed(WORDS), batch_size=3)):
        posterior = fit(rows)
        assert posterior.class_names == NAMES
        assert nll(posterior, rows) == pytest.approx(expected, abs=1e-12)
        assert nll(posterior, FORMS["strings"]) == pytest.approx(expected, abs=1e-12)
    stream = classes(("great", "bad", "fair")).to_iterable_dataset()
    assert nll(fit(FORMS["strings"]), stream) == pytest.approx(expected, abs=1e-12)
    assert fit(stream, num_examples=8).class_names == ("great", "bad", "fair")


def test_predict_does_not_look_at_labels() -> None:
    posterior = fit(pd.DataFrame({"text": TEXTS, "label": WORDS}))
    expected = posterior.predict(TEXTS, 2).draws
    for data in (
        {"text": TEXTS, "label": ["rubbish"] * 8},
        {"text": TEXTS, "label": [None] * 8},
        {"text": TEXTS, "label": [0.5] * 8},
        {"text": TEXTS},
        {"text": TEXTS, "id": TEXTS, "label_text": WORDS},
        {"label": [[1, 2]] * 8, "text": TEXTS},
    ):
        for table in (pd.DataFrame(data), datasets.Dataset.from_dict(data), data):
            np.testing.assert_array_equal(posterior.predict(table, 2).draws, expected)
    for given in ((TEXTS, ["rubbish"] * 8), (TEXTS, [None] * 8), (TEXTS, np.zeros((8, 5)))):
        np.testing.assert_array_equal(posterior.predict(given, 2).draws, expected)


# Columns


@pytest.fixture
def pairs() -> dict[str, Any]:
    return {"premise": TEXTS, "hypothesis": TEXTS[::-1], "label": NUMBERS}


def test_columns_in_another_order(pairs: dict[str, Any]) -> None:
    network = tiny_bert(num_labels=3).double()
    posterior = fit(datasets.Dataset.from_dict(pairs), network)
    turned = {name: pairs[name] for name in ("label", "hypothesis", "premise")}
    expected = nll(posterior, datasets.Dataset.from_dict(pairs))
    for data in (turned, pd.DataFrame(turned), datasets.Dataset.from_dict(turned)):
        assert nll(posterior, data) == expected
    assert nll(posterior, turned, text=("hypothesis", "premise")) != expected
    with pytest.raises(ValueError, match=r"no column 'premise', which the fit read; its columns are hypothesis, label"):
        posterior.predict({"hypothesis": TEXTS, "label": NUMBERS})


def test_a_table_of_numbers_in_another_order() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    frame = pd.DataFrame({"id": range(8), "age": range(8), "height": np.arange(8) ** 0.5, "species": WORDS})
    posterior = fit(frame, network, tokenizer=None)
    assert posterior.columns.features == ("age", "height")
    assert posterior.class_names == NAMES
    assert nll(posterior, frame[["height", "species", "age"]]) == nll(posterior, frame)
    np.testing.assert_array_equal(
        posterior.predict(frame[["height", "age"]], 2).draws, posterior.predict(frame.drop(columns="id"), 2).draws
    )
    with pytest.raises(ValueError, match="no column 'age', which the fit read"):
        posterior.predict(frame[["height", "id"]])
    both = pd.DataFrame({"x": range(8), "y2": range(8), "label": NUMBERS, "labels": NUMBERS})
    assert fit(both, network, tokenizer=None).columns.features == ("x", "y2")


SAYING_IT_AGAIN = {
    "label_text": WORDS,
    "labels": NUMBERS,
    "gold label": WORDS,
    "verdict": WORDS,
    "id": [f"row-{i}" for i in range(8)],
    "idx": list(range(8)),
    "Unnamed: 0": list(range(8)),
    "__index_level_0__": [f"row-{i}" for i in range(8)],
    "sentence_id": [f"row-{i}" for i in range(8)],
}


@pytest.mark.parametrize("column", SAYING_IT_AGAIN)
def test_columns_that_are_never_inputs(column: str, expected: float) -> None:
    table = {column: SAYING_IT_AGAIN[column], "label": NUMBERS, "review": TEXTS}
    for data in (pd.DataFrame(table), datasets.Dataset.from_dict(table)):
        posterior = fit(data)
        assert posterior.columns.text == ("review",)
        assert nll(posterior, data) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "values",
    [
        [f"2024-01-0{day}" for day in range(1, 9)],
        [f"{day}th March 2024, 10:30 AM" for day in range(1, 9)],
        [f"https://example.org/{number}?q=good" for number in range(8)],
        [f"reader{number}@example.org" for number in range(8)],
        [f"{number} / 10" for number in range(8)],
    ],
    ids=["date", "date in words", "link", "mail", "numbers"],
)
def test_columns_of_what_nobody_reads_are_not_inputs(values: list[str], expected: float) -> None:
    frame = pd.DataFrame({"seen": values, "text": TEXTS, "label": WORDS})
    posterior = fit(frame)
    assert posterior.columns.text == ("text",)
    assert nll(posterior, frame) == pytest.approx(expected, abs=1e-12)
    assert fit(frame, text=("text", "seen")).columns.text == ("text", "seen")
    assert fit(frame[["seen", "label"]]).columns.text == ("seen",)  # the only one
    values[3] = "seen in March"
    assert fit(pd.DataFrame({"seen": values, "text": TEXTS, "label": WORDS})).columns.text == ("seen", "text")


@pytest.mark.parametrize(("word", "is_said"), [("NA", True), ("?", True), ("none", False)])
def test_a_class_that_may_say_that_a_label_is_missing_is_said(
    word: str, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    posterior = fit((TEXTS, [word, *WORDS[1:]]), bag(4))
    assert word in (posterior.class_names or ())
    assert ("if it says that the label is missing" in caplog.text) == is_said


FRAME = pd.DataFrame({"text": TEXTS, "label": WORDS})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((FRAME, FRAME), "data is two tables with the same columns, text, label, and a pair is"),
        ((classes(NAMES), classes(NAMES)), "data is two tables with the same columns, text, label"),
        (
            (FRAME[["text"]], FRAME.reset_index()[["index", "label"]]),
            "the labels are a table with columns index, label",
        ),
        ((TEXTS, TEXTS, WORDS, WORDS), "data is 4 lists of texts, the first of 8: give \\(texts, labels\\)"),
        ([TEXTS, WORDS], "data is 2 lists of texts, the first of 8: give \\(texts, labels\\)"),
        ({"text": TEXTS, "label": WORDS, "n": [1]}, "columns differ in length, 'text' 8, 'label' 8, 'n' 1"),
        ([{"text": {"raw": text}, "label": "a"} for text in TEXTS], "'text' is a mapping in row 0: take what"),
        (FRAME.assign(label=[None, *WORDS[1:]]), "the label in 'label' is missing in 1 row"),
    ],
)
def test_what_is_easily_mistaken_is_said(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(data)


def test_columns_that_are_asked_for(expected: float, caplog: pytest.LogCaptureFixture) -> None:
    table = {"a": TEXTS[::-1], "b": TEXTS, "c": TEXTS, "mark": WORDS, "label": NUMBERS[::-1], "number": range(8)}
    data = pd.DataFrame(table)
    with pytest.raises(ValueError, match="text columns, a, b, c"):
        fit(data)
    caplog.set_level("INFO", "bayeslora")
    posterior = fit(data, text="b", label="mark", id="number")
    assert "text: b; label: mark (3 classes); id: number; ignored: a, c, label" in caplog.text
    assert nll(posterior, data) == pytest.approx(expected, abs=1e-12)
    assert nll(posterior, data, text="c", label="mark") == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="label='marks': data has no such column, only a, b, c, mark"):
        fit(data, text="b", label="marks")
    with pytest.raises(ValueError, match="text='d': data has no such column"):
        posterior.predict(data, text="d")
    named = fit({"sentence": TEXTS, "sentiment": WORDS})
    assert (named.columns.text, named.columns.label) == (("sentence",), "sentiment")


# Words with tags, and several labels


def test_published_tables_of_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    words = [text.split() for text in TEXTS]
    tags = [[{"good": "B-A", "bad": "B-B"}.get(word, "O") for word in each] for each in words]
    names = ["O", "B-B", "B-A"]
    numbers = [[names.index(tag) for tag in each] for each in tags]
    network = case_model("Bert", "ForTokenClassification", num_labels=3)().double()
    rows = {"id": list("abcdefgh"), "tokens": words, "ner_tags": tags, "pos_tags": numbers}
    posterior = fit(datasets.Dataset.from_dict(rows), network)
    assert "words: tokens; label: ner_tags (3 classes); ignored: id, pos_tags" in caplog.text
    assert posterior.program.likelihood.name == "token_classification"
    assert posterior.class_names == ("B-A", "B-B", "O")
    feature = datasets.Sequence(datasets.ClassLabel(names=names))
    classed = datasets.Dataset.from_dict(rows | {"ner_tags": numbers}).cast_column("ner_tags", feature)
    assert nll(posterior, classed) == pytest.approx(nll(posterior, rows), abs=1e-12)
    # By hand: tokens of the tokenizer are words here.
    network = posterior.network.model
    total = 0.0
    for each, labels in zip(words, tags, strict=True):
        ids = torch.tensor([tiny_tokenizer().convert_tokens_to_ids(each)])
        prediction = posterior.predict([" ".join(each)], 1).probs
        assert len(prediction) == ids.shape[1]
        total -= sum(np.log(row[posterior.class_names.index(tag)]) for row, tag in zip(prediction, labels, strict=True))
    assert nll(posterior, rows) == pytest.approx(total / 8, abs=1e-9)
    with pytest.raises(ValueError, match="row 0: there are 2 words and 1 tags"):
        posterior.evaluate(datasets.Dataset.from_dict({"tokens": words, "ner_tags": [["O"], *tags[1:]]}))
    np.testing.assert_array_equal(posterior.predict({"tokens": words}, 2).draws, posterior.predict(rows, 2).draws)
    stream = classed.to_iterable_dataset()
    with pytest.raises(ValueError, match=r"words and tags as a table, Dataset.from_list\(list\(stream\), stream.feat"):
        posterior.evaluate(stream, 2)
    stored = datasets.Dataset.from_list(list(stream), stream.features)
    assert nll(posterior, stored) == pytest.approx(nll(posterior, rows), abs=1e-12)


def test_lists_of_one_label_each(expected: float) -> None:
    one = [[word] for word in WORDS]
    for data in ((TEXTS, one), [{"text": text, "label": each} for text, each in zip(TEXTS, one, strict=True)]):
        posterior = fit(data)
        assert (posterior.program.likelihood.name, posterior.class_names) == ("classification", NAMES)
        assert nll(posterior, data) == nll(posterior, (TEXTS, WORDS)) == pytest.approx(expected, abs=1e-12)
    assert fit((TEXTS, one), likelihood="multilabel").program.likelihood.name == "multilabel"
    with pytest.raises(ValueError, match=r"row 1: the labels in 'labels' are \['bad', 'fair'\], and a row of the fit"):
        posterior.evaluate((TEXTS[:2], [["bad"], ["bad", "fair"]]))


def test_lists_of_several_labels() -> None:
    several = [["joy"], [], ["joy", "anger"], ["anger"], ["fear"], ["fear", "joy"], [], ["anger"]]
    names = ("anger", "fear", "joy")
    rows = np.asarray([[float(name in each) for name in names] for each in several])
    expected = nll(fit((TEXTS, rows)), (TEXTS, rows))
    posterior = fit((TEXTS, several))
    assert posterior.program.likelihood.name == "multilabel"
    assert posterior.class_names == names
    feature = datasets.Sequence(datasets.ClassLabel(names=["joy", "anger", "fear"]))
    numbers = [[["joy", "anger", "fear"].index(name) for name in each] for each in several]
    classed = datasets.Dataset.from_dict({"text": TEXTS, "labels": numbers, "id": TEXTS}).cast_column("labels", feature)
    frame = (TEXTS, pd.DataFrame(rows, columns=list(names))[["joy", "anger", "fear"]])
    for data in ((TEXTS, several), {"text": TEXTS, "labels": several}, classed, frame):
        assert nll(posterior, data) == pytest.approx(expected, abs=1e-12)
    assert fit(classed).class_names == ("joy", "anger", "fear")
    assert nll(fit(classed), (TEXTS, several)) == pytest.approx(nll(fit(classed), classed), abs=1e-12)
    with pytest.raises(ValueError, match=r"row 1: the label 'envy' in 'labels' is not among the 3 classes"):
        posterior.evaluate((TEXTS[:2], [["joy"], ["envy"]]))
    by_number = fit((TEXTS, [[names.index(name) for name in each] for each in several]))
    assert nll(by_number, (TEXTS, rows)) == pytest.approx(expected, abs=1e-12)


def test_a_pair_whose_index_has_two_orders_is_refused() -> None:
    table = pd.DataFrame({"text": TEXTS, "label": WORDS}, index=list("abcdefgh"))
    mixed = table.iloc[[1, 0, *range(2, 8)]]
    posterior = fit(table)
    with pytest.raises(ValueError, match=r"two orders, 'a' and 'b' in row 0: give labels.loc"):
        posterior.evaluate((table["text"], mixed["label"]))
    with pytest.raises(ValueError, match="two orders"):
        fit((table[["text"]], mixed["label"]))
    expected = nll(posterior, table)
    assert nll(posterior, (mixed["text"], mixed["label"])) == pytest.approx(expected, abs=1e-12)
    other = table["label"].set_axis(range(8))  # an index of its own says nothing about the rows
    assert nll(posterior, (table["text"], other)) == expected


def test_outputs_of_scikit_learns_split(expected: float) -> None:
    from sklearn.model_selection import train_test_split

    frame = pd.DataFrame({"text": TEXTS, "label": WORDS})
    texts, others, labels, other_labels = train_test_split(frame["text"], frame["label"], test_size=0.4, random_state=1)
    posterior = fit((texts, labels), validation=(others, other_labels))
    both = (pd.concat([texts, others]), pd.concat([labels, other_labels]))
    assert nll(posterior, both) == pytest.approx(expected, abs=1e-12)
    inputs, _, targets, _ = train_test_split(frame[["text"]], frame[["label"]], test_size=0.2, random_state=1)
    assert fit((inputs, targets)).columns.text == ("text",)


def test_pairs_as_lists() -> None:
    network = tiny_bert(num_labels=3).double()
    pairs = list(zip(TEXTS, TEXTS[::-1], strict=True))
    table = {"a": TEXTS, "b": TEXTS[::-1], "label": WORDS}
    posterior = fit(table, network)
    expected = nll(posterior, table)
    triples = [(a, b, label) for (a, b), label in zip(pairs, WORDS, strict=True)]
    for data in ((pairs, WORDS), triples, (np.asarray(pairs), np.asarray(WORDS)), [*zip(pairs, WORDS, strict=True)]):
        assert nll(posterior, data) == pytest.approx(expected, abs=1e-12)
    np.testing.assert_array_equal(posterior.predict(pairs, 2).draws, posterior.predict(table, 2).draws)


def test_numbers_of_a_network_with_more_outputs_stay_places() -> None:
    assert fit((TEXTS, [4, 0] * 4), bag(5)).class_names is None
    assert fit((TEXTS, [1, 2] * 4), bag(3)).class_names is None
    assert fit((TEXTS, [4, 0] * 4), bag(2)).class_names == ("0", "4")


# Columns that nobody named

FIRST, SECOND = [f"good film {i}" for i in range(12)], [f"bad film {i}" for i in range(12)]
TWO, ROWS, REAL = ["yes", "no"] * 6, list(range(12)), [i / 7 for i in range(12)]

UNNAMED: dict[str, tuple[pd.DataFrame, tuple[str, ...], str | None]] = {
    "a few words": (pd.DataFrame({"Review Text": FIRST, "verdict": TWO}), ("Review Text",), "verdict"),
    "a few numbers": (pd.DataFrame({"n": REAL, "tweet": FIRST, "is_spam": [0, 1] * 6}), ("tweet",), "is_spam"),
    "no names": (pd.DataFrame(list(zip(FIRST, TWO, strict=True))), ("0",), "1"),
    "label in the name": (
        pd.DataFrame({"text": FIRST, "Sentiment Label": TWO, "n": REAL}),
        ("text",),
        "Sentiment Label",
    ),
    "label_text alone": (pd.DataFrame({"text": FIRST, "label_text": TWO}), ("text",), "label_text"),
    "spaces": (pd.DataFrame({"text": FIRST, " Star Rating ": TWO, "n": REAL}), ("text",), " Star Rating "),
    "two levels": (pd.DataFrame({("a", "text"): FIRST, ("a", "label"): TWO}), ("a text",), "a label"),
    "where rows come from": (
        pd.DataFrame({"tweetId": FIRST, "url": FIRST, "date": FIRST, "hash": FIRST, "tweet": SECOND, "label": TWO}),
        ("tweet",),
        "label",
    ),
    "questions": (
        pd.DataFrame({"qid1": ROWS, "qid2": ROWS, "question1": FIRST, "question2": SECOND, "same": [0, 1] * 6}),
        ("question1", "question2"),
        "same",
    ),
    "a truth value for an answer": (
        pd.DataFrame({"question": FIRST, "passage": FIRST[::-1], "answer": [True, False] * 6}),
        ("question", "passage"),
        "answer",
    ),
    "two that may be": (pd.DataFrame({"text": FIRST, "toxic": [0, 1] * 6, "insult": [0, 1] * 6}), ("text",), None),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_columns_that_nobody_named(name: str) -> None:
    frame, text, label = UNNAMED[name]
    found = plain(familiar(frame)).columns
    assert (found.text, found.label) == (text, label)


def test_columns_that_cannot_be_told(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    found = plain(pd.DataFrame({"text": FIRST, "category": TWO, "sentiment": TWO[::-1]})).columns
    assert (found.text, found.label) == (("text",), "category")
    assert "category is read as the label, and sentiment may be one, too" in caplog.text
    with pytest.raises(ValueError, match="has several columns 'text'"):
        plain(pd.DataFrame([["a", "b"]], columns=["text", "text"]))
    with pytest.raises(ValueError, match="text and label are both 'text'"):
        plain(pd.DataFrame({"text": FIRST}), Columns.asked("text", "text", None))
    case_model("Bert", "Model")().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"none of its columns \(toxic, insult\) is sure.* label='insult'"):
        fit(UNNAMED["two that may be"][0], str(tmp_path))


# Labels that say the same in other ways

COLOURS = enum.Enum("COLOURS", ["blue", "red"])
SAID: dict[str, tuple[Any, Any, list[int]]] = {
    "spelling": (["Pos", "pos ", " pos", "NEG", "neg", "neg"], ("neg", "pos"), [1, 1, 1, 0, 0, 0]),
    "letters": (["a", "A", "a "], ("A", "a"), [1, 0, 1]),
    "forms of Unicode": (["caf\u00e9", "cafe\u0301", "b"], ("b", "cafe\u0301"), [1, 1, 0]),
    "spaces within": (["not good", "not\u00a0good", "not  good", "b"], ("b", "not  good"), [1, 1, 1, 0]),
    "marks that are not seen": (["\ufeffgood", "good", "good", "b"], ("b", "good"), [1, 1, 1, 0]),
    "beyond 64 bits": ([10**20, 10**20 + 1], (str(10**20), str(10**20 + 1)), [0, 1]),
    "arrow": (pa.chunked_array([["b"], ["a"]]).to_pandas(), ("a", "b"), [1, 0]),
    "numbers": (["1", "1.0", 0.0, "0"], ("0", "1"), [1, 1, 0, 0]),
    "members": ([COLOURS.red, COLOURS.blue], ("blue", "red"), [1, 0]),
    "bytes": (np.asarray(["b", "a"], dtype="S"), ("a", "b"), [1, 0]),
    "decimals": ([decimal.Decimal(1), decimal.Decimal(0)], None, [1, 0]),
    "intervals": (pd.cut(pd.Series([3, 0, 1]), [-1, 0.5, 9]), ("(-1.0, 0.5]", "(0.5, 9.0]"), [1, 0, 1]),
    "declared": (pd.Categorical(["b", "B"], categories=["b", "B"]), ("b", "B"), [0, 1]),
    "large": ([10**12 + 1, 10**12], ("1000000000000", "1000000000001"), [1, 0]),
    "column": (np.asarray([[1], [0], [1]]), None, [1, 0, 1]),
    "column of texts": (np.asarray([["b"], ["a"]]), ("a", "b"), [1, 0]),
}


@pytest.mark.parametrize("name", SAID)
def test_labels_that_are_said_in_other_ways(name: str) -> None:
    given, names, numbers = SAID[name]
    labels = raw(given, "label", "data")
    classes = of_one(labels.one_place(), None, None)
    assert (classes and classes.names) == names
    assert np.asarray(numbers_of_one(labels, classes)).tolist() == numbers


@pytest.mark.parametrize("value", [datetime.date(2020, 1, 1), np.datetime64("2020-01-01"), {"a": 1}, 1j])
def test_labels_of_other_types_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"row 0: the label in 'label' is .*labels are texts, numbers or truth values"):
        of_one(raw([value, value], "label", "data"), None, None)


@pytest.mark.parametrize("values", [["2024-01-02", "2024-01-03"], ["2/1/2024", "13/1/2024"], ["2024-01-02T10:00Z"] * 2])
def test_dates_are_no_classes(values: list[str]) -> None:
    with pytest.raises(ValueError, match=r"data: the labels in 'label' are dates, such as '2.*: name another column"):
        of_one(raw(values, "label", "data"), None, None)


def test_what_is_like_dates_may_be_classes() -> None:
    for labels in (["1.2.10", "1.3.2"], pd.Categorical(["2024-01-02", "2024-01-03"])):
        classes = of_one(raw(labels, "label", "data"), None, None)
        assert classes
        assert [*classes.names] == [*labels]


@pytest.mark.parametrize(
    "given",
    [
        [{"b", "a"}, {"b"}, set()],
        ["a, b", "b", None],
        ["a;b", "b", ""],
        ["['a', 'b']", "['b']", "[]"],
        [["a", "b"], ["b"], []],
    ],
)
def test_several_labels_in_one_text(given: Any) -> None:
    labels = RawLabels(given)
    classes = of_several(labels, None, None)
    assert classes is not None
    assert classes.names == ("a", "b")
    assert np.asarray(rows_of_several(labels, classes)).tolist() == [[1, 1], [0, 1], [0, 0]]


def test_what_is_odd_about_labels_is_said(caplog: pytest.LogCaptureFixture) -> None:
    of_one(RawLabels(["Pos", "pos", "neg"]), None, None)
    assert "differ in their spelling alone are one class: 'Pos' ('Pos', 'pos')" in caplog.text
    of_one(RawLabels([f"text {i}" for i in range(20)]), None, None)
    assert "20 rows have 20 different labels in 'labels', such as 'text 0'" in caplog.text
    floats = Classes(("0.0", "1.0"), False)
    assert floats.numbers(RawLabels([1, 0])).tolist() == [1, 0]
    assert numbers_of_one(RawLabels(["1.0", "0.0"]), None).tolist() == [1, 0]


def test_readings_that_may_be_others_are_said(caplog: pytest.LogCaptureFixture) -> None:
    composite = ["joy", "anger", "joy;anger", "joy"]
    assert of_one(RawLabels(composite), None, None) == Classes(("anger", "joy", "joy;anger"), False)
    assert "such as 'joy;anger' are classes of their own, though 'joy' and 'anger'" in caplog.text
    caplog.clear()
    of_one(RawLabels(["good", "bad", "good, bad as it is"]), None, None)
    of_one(RawLabels([0, 1, 2], names=("A", "B", "C")), None, None, ordered=True)
    of_one(RawLabels([0, 1, 2], names=("low", "medium", "high")), None, None, ordered=True)
    assert not caplog.text
    of_one(RawLabels([0, 1, 2], names=("high", "low", "medium")), None, None, ordered=True)
    assert "is that of the alphabet, high < low < medium" in caplog.text
    with pytest.raises(ValueError, match="has no column text, which the fit read, and 2 of texts, review, title"):
        plain({"review": ["a", "b"], "title": ["c", "d"]}, known=Columns(("text",)), with_labels=False)


@pytest.mark.parametrize(
    "written", [["{'a', 'b'}", "set()"], ["('a', 'b')", "()"], ["frozenset({'a', 'b'})", "frozenset()"]]
)
def test_written_sets_and_tuples_are_lists(written: list[str]) -> None:
    assert RawLabels(written).plain == [["a", "b"], []]
    assert RawLabels(["(5)", "{a}"]).plain == ["(5)", "{a}"]


def test_rows_of_a_pandas_table() -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": WORDS})
    found = plain(familiar([row for _, row in frame.iterrows()]))
    assert (found.inputs["text"][:], found.columns.label) == (TEXTS, "label")
