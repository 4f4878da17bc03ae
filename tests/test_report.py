"""Reports: one page that says what is so, escapes what is not ours, and stays small."""

import base64
import html
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import bayeslora
from bayeslora import (
    MultiLabelPrediction,
    Prediction,
    RegressionPrediction,
    TokenPrediction,
    compare,
    metrics,
)
from bayeslora.report import examples, findings
from bayeslora.report.fitted import of_prediction
from bayeslora.report.page import Section, Table, number, render
from bayeslora.study.comparison import FIRST
from bayeslora.tasks.collecting import Rows
from bayeslora.tasks.prediction import BasePrediction
from tests.clock import units
from tests.study.networks import DATA, FEW, TEST, network
from tests.tasks.cases import named
from tests.test_site import CHROMIUM, OFFLINE

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> & \"quoted\" {{ 7 * 7 }} $\\frac{1}{0$"


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in tags]


def checked(text: str) -> Page:
    """A page that is well formed, needs no network, runs nothing, and can be read without seeing it."""
    page = Page(text)
    assert not page.open
    assert not page.all("script", "link", "iframe", "object")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    sources = [each["src"] or "" for each in page.all("img")]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert all(each.get("alt") for each in page.all("img"))
    assert all((each["href"] or "").startswith("#") for each in page.all("a"))
    assert page.all("html")[0]["lang"] == "en"
    assert len(page.all("h1")) == len(page.all("main")) == 1
    assert all(each["scope"] in ("row", "col") for each in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len({*ids})
    assert {(each["href"] or "")[1:] for each in page.all("a")} <= {*ids}
    return page


def classes(count: int, draws: int = 8, num_classes: int = 3, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, num_classes)) + spread * rng.normal(size=(draws, count, num_classes))
    return metrics.softmax(logits)


def made_up(kind: str, count: int) -> tuple[BasePrediction, np.ndarray]:
    rng = np.random.default_rng(1)
    draws, names = classes(count), ("a <b>", "c & d", "$e_")
    labels = (rng.random((count, 1)) > draws.mean(0).cumsum(-1)).sum(-1)
    if kind == "classification":
        return Prediction(draws, names), labels
    if kind == "ordinal":
        return bayeslora.tasks.ordinal.OrdinalPrediction(draws, names), labels
    if kind == "multilabel":
        return MultiLabelPrediction(draws, names), (rng.random((count, 3)) < draws.mean(0)).astype(int)
    if kind == "tokens":
        rows = Rows(np.arange(count) // 4, np.arange(count) % 4, -(-count // 4))
        return TokenPrediction(draws, rows, names), labels
    mean = rng.normal(size=count) + 0.3 * rng.normal(size=(8, count))
    return RegressionPrediction(mean, 0.5), mean.mean(0) + 0.5 * rng.normal(size=count)


@pytest.mark.parametrize("kind", ["classification", "ordinal", "multilabel", "tokens", "regression"])
def test_every_kind_of_label_has_a_page(kind: str) -> None:
    prediction, labels = made_up(kind, 200)
    sections = of_prediction(prediction, labels, lambda example: f"{EVIL} {example}", {}, prediction, count=3)
    lead = findings.lead(prediction, labels, prediction.scores(labels), {})
    text = render(EVIL, [*lead, EVIL], sections)
    page = checked(text)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text  # not computed
    assert "nan" not in re.sub(r'src="[^"]*"', "", text)
    assert len(page.all("img")) >= 1
    assert {"Scores", "Examples, and why"} <= {section.title for section in sections}


SCREENS = (320, 400, 768, 769, 800, 992, 993, 1280)
"""Widths of screens, and those beside which the layout changes."""

WIDTHS = """<script>onload = () => { const found = [];
for (const frame of document.querySelectorAll('iframe')) {
  const page = frame.contentDocument, wide = [...page.querySelectorAll('.scroll')];
  found.push(page.documentElement.scrollWidth - frame.width);
  found.push(...wide.map(each => each.scrollWidth - each.clientWidth)); }
document.body.textContent = 'widths ' + found.map(each => Math.round(each)).join(' ') + ' end'; }</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_nothing_is_wider_than_a_screen(tmp_path: Path) -> None:
    frames, columns = [], ["method", *FIRST, "nll difference", "ece floor", "majority", "parameters", "verdict"]
    cells = ["lora + temperature", *["+0.123 ± 0.456"] * (len(columns) - 2), "not to be told from lora: +0.123 ± 0.456"]
    widest = Table("widest", columns, [cells] * 3, texts=(0, 10), prose=(10,))
    for kind, text in (("classification", "x" * 3000), ("tokens", "مرحبا " * 300), ("regression", EVIL)):
        prediction, labels = made_up(kind, 200)
        if kind == "regression":
            prediction, labels = RegressionPrediction(1e5 * prediction.draws, 5e4), 1e5 * labels
        near = examples.Nearest(lambda k, text=text: text, None, np.zeros((2, 1)), np.eye(1), np.zeros((200, 1)))  # type: ignore[misc]
        sections = of_prediction(prediction, labels, lambda example, text=text: text, {}, prediction, near, count=2)  # type: ignore[misc]
        sections.append(Section("Widest", tables=[widest]))
        page = render(text, [text, *findings.lead(prediction, labels, prediction.scores(labels), {})], sections)
        frames += [f'<iframe width="{width}" srcdoc="{html.escape(page)}"></iframe>' for width in SCREENS]
    (tmp_path / "frames.html").write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(frames)}{WIDTHS}")
    command = [str(CHROMIUM), *OFFLINE, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    seen = subprocess.run(
        [*command, (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, check=True, timeout=600
    ).stdout
    widths = [int(width) for width in re.search(r"widths (.*) end", seen)[1].split()]  # type: ignore[index]
    assert len(widths) > 4 * len(frames)
    assert max(widths) <= 1


def test_numbers_are_written_for_readers() -> None:
    given = [0, 0.00012346, -0.5, 3.14159, 12345.678, -98765432.1, 1e12, float("nan")]
    found = ["0", "0.0001235", "-0.5", "3.142", "12,350", "-98,770,000", "1e+12", "nan"]
    assert [number(each) for each in given] == found


def test_cells_of_wide_tables_carry_their_columns() -> None:
    columns = ["text", "label", 'a "quoted" <b>', "entropy", "why"]
    table = Table("wide", columns, [["one", "2", "3", "4", "5"]], texts=(0, 4))
    page = checked(render("Wide", [], [Section("Tables", tables=[table, Table("small", columns[:4], [["a"] * 4])])]))
    assert [each.get("data-label") for each in page.all("td")] == [*columns[1:], None, None, None]
    assert [each.get("role") for each in page.all("table")] == ["table", None]
    assert [each.get("role") for each in page.all("tr", "td")] == ["row", "row", *["cell"] * 4, *[None] * 5]


def test_a_page_of_ten_thousand_examples_is_small_and_soon_made() -> None:
    prediction, labels = made_up("classification", 10_000)
    pages: list[str] = []

    def make() -> None:
        lead = findings.lead(prediction, labels, prediction.scores(labels), {})
        pages.append(render("Many", lead, of_prediction(prediction, labels, str, {}, prediction)))

    assert units(make, times=1) < 20_000
    assert len(pages[0].encode()) < 5e6


@pytest.mark.parametrize(
    ("sharpen", "said"), [(1.0, "Calibrated, as"), (3.0, "Overconfident"), (0.3, "Underconfident")]
)
def test_calibration_is_judged_by_what_calibrated_labels_would_give(sharpen: float, said: str) -> None:
    prediction, labels = made_up("classification", 2000)
    probs = metrics.softmax(sharpen * np.log(prediction.draws.mean(0)))
    assert said in findings._calibration(probs, labels, metrics.ece(probs, labels))


@pytest.mark.parametrize(("right", "interval"), [(50, "92.9% to 100.0%"), (0, "0.0% to 7.1%")])
def test_a_score_that_never_changes_has_no_interval_of_no_width(right: int, interval: str) -> None:
    prediction, _ = made_up("classification", 50)
    labels = (prediction.probs.argmax(-1) + (right == 0)) % 3
    scores = prediction.scores(labels)
    left = {name: [value] * 20 if name == "accuracy" else [value, value + 0.1] for name, value in scores.items()}
    lead, table = findings.lead(prediction, labels, scores, left), findings.scores_table(scores, left, {})
    assert f"(95 % interval {interval})" in lead[0]
    cells = {row[0]: row[1] for row in table.rows}
    assert cells["accuracy"] == f"{right / 50:.3f}"
    assert cells["nll"].startswith(f"{scores['nll']:.3f} ± ")
    assert cells["auroc errors"] == "–"


def test_few_examples_leave_verdicts_open() -> None:
    # Three classes at about a half: chance alone makes an ECE of .48 in one label, and of .3 in eight.
    for count in (1, 8):
        probs = np.tile([0.5, 0.3, 0.2], (count, 1))
        labels = np.arange(count) % 2
        text = findings._calibration(probs, labels, metrics.ece(probs, labels))
        assert text.startswith("Whether it is calibrated is not known: the ECE is ")
        assert text.endswith(f"would be chance in so few labels ({count}).")
    prediction = Prediction(np.tile([[0.5, 0.3, 0.2]], (4, 1, 1)))
    said = " ".join(findings.lead(prediction, np.array([0]), prediction.scores(np.array([0])), {}, np.log([0.5])))
    assert said.startswith("100.0% of 1 row is predicted right (95 % interval 20.7% to 100.0%).")
    assert "nan" not in said
    assert "the centre" not in said


def test_intervals_of_numbers_are_judged_too() -> None:
    assert "Calibrated" in findings._coverage(0.9, 1000)
    assert "too narrow" in findings._coverage(0.8, 1000)
    assert "too wide" in findings._coverage(0.97, 1000)
    assert "hold 80.0% of so few labels (10) that too wide ones would not show" in findings._coverage(0.8, 10)


def test_draws_that_agree_are_not_said_to_disagree() -> None:
    sure = Prediction(np.full((2, 5, 2), [0.8, 0.2]))
    assert findings._parts(sure).startswith("Draws of the adapters agree: next to all of the uncertainty is aleatoric")
    apart = Prediction(np.array([[[0.9, 0.1]], [[0.1, 0.9]]]))
    assert "of the uncertainty is epistemic: draws of the adapters disagree" in findings._parts(apart)


def test_why_tells_draws_that_disagree_from_examples_that_are_unclear() -> None:
    sure, unclear = [0.98, 0.01, 0.01], [0.5, 0.5, 0.0]
    draws = np.array([[sure, unclear, [0.98, 0.01, 0.01]], [sure, unclear, [0.01, 0.98, 0.01]]])
    prediction = Prediction(draws, ("yes", "no", "other"))
    assert examples.why(Prediction(np.full((2, 1, 2), [0.999, 0.001])), 0).startswith("all draws are sure")
    assert examples.why(prediction, 1) == "aleatoric: draws agree that it is between yes (0.50) and no (0.50)"
    assert examples.why(prediction, 2) == "epistemic: of 2 draws, 1 say yes, 1 say no"
    apart = RegressionPrediction(np.array([[0.0, 1.0], [4.0, 1.0]]), 0.5)
    assert examples.why(apart, 0).startswith("epistemic (94% epistemic): draws say 0 to 4, with a noise of 0.5")
    assert examples.why(apart, 1).startswith("aleatoric (0% epistemic)")


def test_tables_of_examples_have_the_right_ones_in_order() -> None:
    prediction, labels = made_up("classification", 60)
    least, most, wrong = examples.section(prediction, labels, str, 4).tables
    order = np.argsort(prediction.entropy, kind="stable")
    assert [row[0] for row in least.rows] == [str(row) for row in order[::-1][:4]]
    assert [row[0] for row in most.rows] == [str(row) for row in order[:4]]
    assert [row[0] for row in wrong.rows] == [str(r) for r in order if prediction.predicted[r] != labels[r]][:4]
    assert most.rows[0][1] == prediction.class_names[labels[order[0]]]  # type: ignore[attr-defined]


def test_nearest_familiar_examples_are_those_in_the_units_of_the_features() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 2)) * [1, 100]
    own = np.array([[features[7, 0] + 0.01, features[7, 1] + 5]])
    nearest = examples.Nearest.made(lambda k: f"word {k}", [f"label {k}" for k in range(50)], features, own)
    assert nearest.of(0, 1) == "word 7 → label 7"


def test_decisions_without_held_out_rows_promise_nothing() -> None:
    prediction, labels = made_up("classification", 300)
    section = findings.decisions(prediction, labels, [0.1])
    assert section is not None
    curve = metrics.risk_coverage(prediction.entropy, prediction.predicted != labels)
    share = (np.flatnonzero(curve["risk"] <= 0.1).max(initial=-1) + 1) / 300
    assert f"At a risk of 10%, {share:.0%} of these rows" in section.says[0]
    assert "nothing is promised" in section.says[-1]
    assert findings.decisions(*made_up("tokens", 40), [0.1]) is None


def test_a_posterior_and_a_comparison_have_pages(tmp_path: Path) -> None:
    posterior = bayeslora.fit(network(), DATA, "blob", progress=False, **FEW | {"epochs": 2})
    settings: dict[str, Any] = {"familiar": DATA, "num_draws": 4, "examples": 3}
    path = posterior.report(tmp_path / "new" / "report.html", TEST, validation=(DATA[0][:30], DATA[1][:30]), **settings)
    text = path.read_text()
    page = checked(text)
    assert posterior.held_out is None  # it is not changed
    scores = posterior.evaluate(TEST, 4)
    assert f"<td>{scores['nll']:.3f} ± " in text
    assert f"<td>{scores['center_nll']:.3f}</td>" in text
    assert "nearest familiar examples" in text
    assert "With probability 90 %" in text
    assert len(page.all("img")) >= 4
    again = posterior.report(tmp_path / "again.html", TEST, validation=(DATA[0][:30], DATA[1][:30]), **settings)
    assert again.read_text() == text

    found = compare(network(), DATA, ["blob"], test=TEST, seeds=1, num_draws=2, **FEW | {"epochs": 0})
    text = found.report(tmp_path / "comparison.html").read_text()
    checked(text)
    assert found.verdict("blob") in text
    assert f"{found.table.loc['lora', 'nll']:.3f}" in text


def test_scores_that_one_row_does_not_have_are_dashes_on_the_page_of_a_comparison(tmp_path: Path) -> None:
    test = (TEST[0][:1], TEST[1][:1])
    found = compare(network(), DATA, ["blob"], test=test, seeds=1, num_draws=2, **FEW | {"epochs": 0})
    text = re.sub(r'src="[^"]*"', "", found.report(tmp_path / "comparison.html").read_text())
    assert "nan" not in text
    assert "–</td>" in text


def test_a_mixture_has_a_page_and_a_card(tmp_path: Path) -> None:
    made = bayeslora.fit(network(), DATA, "blob", progress=False, **FEW | {"epochs": 0})
    both = bayeslora.mixture([made, made])
    text = both.report(tmp_path / "page.html", TEST, familiar=DATA, num_draws=4, examples=2).read_text()
    checked(text)
    assert "&#34;weight&#34;: 0.5" in text
    both.save_pretrained(tmp_path / "shared", test=TEST)
    assert "| components | 2 × blob |" in (tmp_path / "shared" / "README.md").read_text()
    assert bayeslora.load(tmp_path / "shared", network()).evaluate(TEST, 4) == both.evaluate(TEST, 4)


@pytest.mark.parametrize("name", ["Bert-token", "Bert-span", "GPT2-causal"])
def test_other_kinds_have_pages_too(name: str, tmp_path: Path) -> None:
    case = named(name)
    posterior = bayeslora.fit(case.make(), case.data, "lora", epochs=0, rank=2, progress=False)
    checked(posterior.report(tmp_path / "page.html", case.data, num_draws=2, examples=2).read_text())


def test_figures_say_the_same_at_every_call() -> None:
    prediction, labels = made_up("classification", 100)
    scores = prediction.scores(labels)
    first, second = (findings.pictures(prediction, labels, scores) for _ in range(2))
    assert [each.source for each in first] == [each.source for each in second]
    assert b"<svg" in base64.b64decode(first[0].source.partition(",")[2])


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    from bayeslora.failing import NotSavedError
    from bayeslora.filing import write_file

    (tmp_path / "file").touch()
    with pytest.raises(NotSavedError, match=r"page\.html could not be written"):
        write_file(tmp_path / "file" / "page.html", "")


def test_what_a_page_cannot_be_made_of_is_said_before_anything_is_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posterior = bayeslora.fit(network(), DATA, "lora", epochs=0, progress=False)
    monkeypatch.setattr(type(posterior), "_run", None)
    page = tmp_path / "page.html"
    (tmp_path / "file").touch()
    for path, test, familiar, message in (
        (tmp_path, TEST, None, "is a folder: give the name of a file"),
        (tmp_path / "file" / "page.html", TEST, None, "cannot be written at .*it is not a folder"),
        (page, TEST[0], None, "test has no labels"),
        (page, TEST, [], "familiar has no examples"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            posterior.report(path, test, familiar=familiar)


class Records(torch.utils.data.Dataset):
    """Texts that are computed one by one."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"text": f"文 {row}", "label": row}


def test_texts_are_shown_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\n文 0,0\n文 1,1\n")
    posterior = SimpleNamespace(columns=SimpleNamespace(text=("text",)), tokenizer=None)
    lines = [{"text": f"文 {row}", "label": row} for row in range(2)]
    for data in ({"text": ["文 0", "文 1"], "label": [0, 1]}, lines, Records(), tmp_path / "test.csv"):
        assert examples.texts_of(data, posterior, None)(1) == "文 1"


def test_entropies_that_differ_by_rounding_tell_no_errors() -> None:
    probs = np.full((3, 6, 2), 0.5) + 1e-7 * np.arange(6)[:, None] * [1, -1]
    said = findings._ranking(Prediction(probs), np.array([0, 1, 0, 1, 0, 1]))
    assert said.startswith("Uncertainty is next to the same for all examples")
