"""Five files that a stranger might bring, through the command line, with no flag beyond the paths where that can do."""

import bz2
import gzip
import inspect
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import bayeslora
from bayeslora.cli import app
from bayeslora.data import Columns, given, plain, read, split_of
from tests.tasks.cases import model
from tests.test_data import tiny_tokenizer

TEXTS = ["good film", "bad", "very good good film", "bad, bad film", "good", "film", "very very bad", "very good"]
WORDS = ["great", "bad", "great", "bad", "fair", "fair", "bad", "great"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pre-trained body without a head."""
    folder = tmp_path_factory.mktemp("base")
    model("Bert", "Model")().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def as_typer_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer hands its commands another class of contexts than they declare, which the tests' type checks refuse."""
    for command in app.registered_commands:
        monkeypatch.setattr(command, "callback", inspect.unwrap(command.callback))  # type: ignore[arg-type]


def run(*words: Any) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def fitted(base: Path, data: Path, folder: Path, *flags: str) -> Any:
    return run("fit", "--model", base, "--data", data, "--output", folder, "--method", "lora", "--epochs", "1", *flags)


def through(base: Path, data: Path, folder: Path, *flags: str, test: Path | None = None) -> tuple[pd.DataFrame, Any]:
    """Fit, predict and evaluate; return the predictions, and the scores."""
    found = fitted(base, data, folder, *flags)
    assert found.exit_code == 0, found.output
    table = folder / "predictions.csv"
    predicted = run("predict", folder, test or data, "--num-draws", "2", "--output", table)
    assert predicted.exit_code == 0, predicted.output
    evaluated = run("evaluate", folder, data, "--num-draws", "2")
    assert evaluated.exit_code == 0, evaluated.output
    return pd.read_csv(table), json.loads(evaluated.stdout)


def test_strings(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "reviews.csv"
    pd.DataFrame({"id": range(8), "review": TEXTS, "sentiment": WORDS, "label_text": WORDS}).to_csv(data)
    table, scores = through(base, data, tmp_path / "out", "--class-weights", '{"bad": 2}')
    probs = table[["p(bad)", "p(fair)", "p(great)"]].to_numpy()
    right = probs[range(8), [["bad", "fair", "great"].index(word) for word in WORDS]]
    assert scores["nll"] == pytest.approx(-np.log(right).mean(), abs=1e-6)
    assert scores["accuracy"] == (table["predicted"] == WORDS).mean()
    posterior = bayeslora.load(tmp_path / "out")
    assert (posterior.columns.text, posterior.columns.label) == (("review",), "sentiment")


def test_semicolons_and_latin_1(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "avis.csv"
    rows = [f'{i};"{text}; très";{word}é' for i, (text, word) in enumerate(zip(TEXTS, WORDS, strict=True))]
    data.write_bytes("\r\n".join(["nº;texte;label", *rows]).encode("latin-1"))
    assert read(str(data))["train"]["texte"][0] == "good film; très"
    table, scores = through(base, data, tmp_path / "out")
    assert list(table.columns[1:4]) == ["p(badé)", "p(fairé)", "p(greaté)"]
    assert scores["accuracy"] == (table["predicted"] == [f"{word}é" for word in WORDS]).mean()


def test_stars_as_real_numbers(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "stars.csv"
    stars = [5.0, 1.0, 4.0, 2.0, 3.0, 3.0, 1.0, 5.0]
    pd.DataFrame({"text": TEXTS, "stars": stars}).to_csv(data, index=False)
    refused = fitted(base, data, tmp_path / "out")
    assert refused.exit_code == 2
    line = refused.output.strip().splitlines()[-1]
    assert line.startswith("bayeslora: data: the labels in 'stars' are whole numbers written as real ones (5.0, 1.0,")
    assert all(f"'{way}'" in line for way in ("classification", "ordinal", "regression"))
    table, scores = through(base, data, tmp_path / "out", "--likelihood", "ordinal")
    assert list(table.columns[1:6]) == [f"p({star})" for star in range(1, 6)]
    right = table[[f"p({star})" for star in range(1, 6)]].to_numpy()[range(8), np.asarray(stars, int) - 1]
    assert scores["nll"] == pytest.approx(-np.log(right).mean(), abs=1e-6)


def test_words_with_tags(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "names.jsonl"
    rows = [
        {"tokens": text.split(), "ner_tags": ["B-X" if w == "film" else "O" for w in text.split()]} for text in TEXTS
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    table, scores = through(base, data, tmp_path / "out")
    tags = [tag for row in rows for tag in row["ner_tags"]]
    assert scores["accuracy"] == (table["predicted"] == tags).mean()


def test_a_test_file_without_labels(base: Path, tmp_path: Path) -> None:
    data, test = tmp_path / "train.tsv", tmp_path / "test.tsv"
    pd.DataFrame({"key": range(8), "sentence": TEXTS, "label": WORDS}).to_csv(data, sep="\t", index=False)
    pd.DataFrame({"sentence": TEXTS, "key": range(8)}).to_csv(test, sep="\t", index=False)
    table, _ = through(base, data, tmp_path / "out", "--id", "key", test=test)
    again = run("predict", tmp_path / "out", data, "--num-draws", "2", "--output", tmp_path / "again.csv")
    assert again.exit_code == 0
    written = pd.read_csv(tmp_path / "again.csv")
    assert written.pop("label").tolist() == WORDS
    pd.testing.assert_frame_equal(table, written)
    assert table.columns[0] == "key"
    failed = run("evaluate", tmp_path / "out", test)
    assert failed.exit_code == 2
    assert "has no labels" in failed.output


# Files


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_tables_of_text(separator: str, encoding: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["naïve, “quoted”; a|b", "two\nlines"], "label": ["NA", "null"], "n": [1, 2]})
    frame.to_csv(tmp_path / "data.csv", sep=separator, encoding=encoding, index=False)
    table = read(str(tmp_path / "data.csv"))["train"]
    assert table.to_dict() == frame.to_dict("list")


def test_a_bad_row_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,label\ngood,1\nbad, really bad,0\n")
    with pytest.raises(ValueError, match=r"csv, line 3: there are 3 columns, and 2 in the head: 'bad, really bad,0'"):
        read(str(data))
    data.write_text("")
    with pytest.raises(ValueError, match=r"data\.csv is empty"):
        read(str(data))
    data.write_text("text,label\n")
    with pytest.raises(ValueError, match=r"data\.csv has no rows"):
        read(str(data))
    lines = tmp_path / "data.jsonl"
    lines.write_text('{"text": "good", "label": 1}\n{"text": "bad" "label": 0}\n')
    with pytest.raises(ValueError, match=r"data\.jsonl cannot be read as jsonl: line 2: "):
        read(str(lines))


FRAME = pd.DataFrame({"id": range(6), "review": [f"good, {i}" for i in range(6)], "verdict": ["neg", "pos"] * 3})
CSV = FRAME.to_csv(index=False)
RECORDS = FRAME.to_dict("records")

WRITTEN: dict[str, bytes] = {
    "gz.csv.gz": gzip.compress(CSV.encode()),
    "bz2.tsv.bz2": bz2.compress(FRAME.to_csv(index=False, sep="\t").encode()),
    "lines.jsonl.xz": lzma.compress(FRAME.to_json(orient="records", lines=True).encode()),
    "no-mark.csv": CSV.encode("utf-16-le"),
    "other-no-mark.csv": CSV.encode("utf-16-be"),
    "lines.csv": CSV.replace("\n", "\r").encode(),
    "excel.csv": b"sep=;\n" + FRAME.to_csv(index=False, sep=";").encode(),
    "spaces.csv": ("id, review , verdict\n" + "".join(f'{i}, "good, {i}", {v}\n' for i, _, v in FRAME.values)).encode(),
    "list.json": json.dumps(RECORDS, indent=1).encode("utf-8-sig"),
    "lines.json": FRAME.to_json(orient="records", lines=True).encode("utf-16"),
    "pandas.json": FRAME.to_json().encode(),
    "index.json": FRAME.to_json(orient="index").encode(),
    "split.json": FRAME.to_json(orient="split").encode(),
    "columns.json": json.dumps(FRAME.to_dict("list")).encode(),
    "below.json": json.dumps({"version": 1, "data": RECORDS}).encode(),
    "utf-32.csv": CSV.encode("utf-32"),
    "end-of-dos.csv": CSV.encode() + b"\x1a",
    "packed.csv": gzip.compress(CSV.encode()),
    "unpacked.csv.gz": CSV.encode(),
    "over-lines.jsonl": "\n".join(json.dumps(row, indent=1) for row in RECORDS).encode(),
    "zst.csv.zst": pa.compress(CSV.encode(), "zstd", asbytes=True),
    "lines-in.csv": "\n".join(map(json.dumps, RECORDS)).encode(),
    "commas.jsonl": ",\n".join(map(json.dumps, RECORDS)).encode(),
    "one-line.json": "".join(map(json.dumps, RECORDS)).encode(),
    "one-list.jsonl": json.dumps(RECORDS).encode(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_table_is_read_however_it_is_written(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(WRITTEN[name])
    found = read(str(tmp_path / name))["train"]
    assert found.to_dict() == FRAME.to_dict("list")
    columns = plain(found).columns
    assert (columns.text, columns.label) == (("review",), "verdict")


TOLD: dict[str, tuple[str, dict[str, list[Any]]]] = {
    "escaped.csv": ('text,n\n"a ""b"", c",1\n'.replace('""', '\\"'), {"text": ['a "b", c'], "n": [1]}),
    "backslash.csv": ('text,n\n"C:\\",1\n', {"text": ["C:\\"], "n": [1]}),
    "mark.csv": ("\ufefftext,n\na,1\n".encode().decode("latin-1") + "é,2\n", {"text": ["a", "é"], "n": [1, 2]}),
    "line.jsonl": ('{"text": "a\u2028b"}\n{"text": "c\x85d"}\n', {"text": ["a\u2028b", "c\x85d"]}),
    "cut.jsonl": ('{"text": "a \\ud83d"}\n', {"text": ["a \ufffd"]}),
    "codes.csv": (
        "id,zip,text,n\n007,,a b,0\n012,02134,c,10\n",
        {"id": ["007", "012"], "zip": [None, "02134"], "text": ["a b", "c"], "n": [0, 10]},
    ),
    "codes-2.csv": ("text;n\na;007\nb;\n", {"text": ["a", "b"], "n": ["007", None]}),
    "numbers.csv": ("id,x,label\n01,07,1\n02,10,0\n", {"id": ["01", "02"], "x": [7, 10], "label": [1, 0]}),
    "empty-place.csv": (
        "id,text,n\n1234567890123456789,a,1\n,b,0.5\n1234567890123456787,c,\n",
        {
            "id": [1234567890123456789, None, 1234567890123456787],
            "text": ["a", "b", "c"],
            "n": [1.0, 0.5, None],
        },
    ),
    "marks.tsv": ('text\tn\n"a\t1\nb\t2\nc"\t3\n', {"text": ['"a', "b", 'c"'], "n": [1, 2, 3]}),
    "marks-2.tsv": ('text\tn\n"a" is b\t1\nc\t2\n', {"text": ['"a" is b', "c"], "n": [1, 2]}),
    "marks-3.tsv": ('text\tn\n"a ""b"""\t1\n"c"\t2\n', {"text": ['a "b"', "c"], "n": [1, 2]}),
    "no-head.tsv": (
        "gj04\t1\t\ta b.\ngj04\t0\t*\tc d.\ngj04\t1\t\te.\n",
        {
            "column 1": ["gj04"] * 3,
            "column 2": [1, 0, 1],
            "column 3": [None, "*", None],
            "column 4": ["a b.", "c d.", "e."],
        },
    ),
    "large.csv": (f"text,n\na,{10**25}\nb,1\n", {"text": ["a", "b"], "n": [str(10**25), "1"]}),
    "r.csv": ("text,n\na,1.5\nNA,NA\n", {"text": ["a", "NA"], "n": [1.5, None]}),
    "thousands.csv": ('text,n\na,"1,000"\nb,12\n', {"text": ["a", "b"], "n": [1000, 12]}),
    "several.csv": ('text,n\na,"1,2"\nb,2\n', {"text": ["a", "b"], "n": ["1,2", "2"]}),
    "arrays.csv": ("text,n\na,[0 1]\nb,[1 0]\n", {"text": ["a", "b"], "n": [[0, 1], [1, 0]]}),
    "spans.json": ('[{"text": "a", "spans": [[0, 3, "X"]]}]', {"text": ["a"], "spans": [["[0, 3, 'X']"]]}),
    "texts.json": ('["a b", "c"]', {"text": ["a b", "c"]}),
    "texts.txt": ("a b, c\n\nd\n", {"text": ["a b, c", "d"]}),
    "table.txt": ("text,n\na,1\n", {"text": ["a"], "n": [1]}),
    "head.txt": ("text\na b\n", {"text": ["a b"]}),
    "words.txt": (
        "-DOCSTART- -X- O\n\na X B-P\nb Y O\n\nc X O\n",
        {"tokens": [["a", "b"], ["c"]], "ner_tags": [["B-P", "O"], ["O"]]},
    ),
    "words.tsv": ("a\tB-P\nb\tO\n\nc\tO", {"tokens": [["a", "b"], ["c"]], "ner_tags": [["B-P", "O"], ["O"]]}),
    "words.conll": ("a PER\nb no\n", {"tokens": [["a", "b"]], "ner_tags": [["PER", "no"]]}),
    "untagged.conll": ("a\nb\n\nc\n", {"tokens": [["a", "b"], ["c"]]}),
    "words.conllu": (
        "# x\n1-2\tab" + "\t_" * 8 + "\n1\ta\ta\tDET" + "\t_" * 6 + "\n2\tb\tb\tNOUN" + "\t_" * 6 + "\n",
        {"tokens": [["a", "b"]], "upos": [["DET", "NOUN"]]},
    ),
    "squad.json": (
        json.dumps(
            {
                "data": [
                    {
                        "title": "t",
                        "paragraphs": [
                            {
                                "context": "a b",
                                "qas": [{"id": "1", "question": "q", "answers": [{"text": "b", "answer_start": 2}]}],
                            }
                        ],
                    }
                ]
            }
        ),
        {
            "id": ["1"],
            "title": ["t"],
            "context": ["a b"],
            "question": ["q"],
            "answers": [{"text": ["b"], "answer_start": [2]}],
        },
    ),
}


@pytest.mark.parametrize("name", TOLD)
def test_files_are_read_as_what_they_hold(name: str, tmp_path: Path) -> None:
    content, expected = TOLD[name]
    (tmp_path / name).write_bytes(content.encode("latin-1" if "é" in content else "utf-8"))
    assert read(str(tmp_path / name))["train"].to_dict() == expected


def test_tables_of_arrow_and_splits_of_json(tmp_path: Path) -> None:
    FRAME.to_feather(tmp_path / "table.feather")
    pq.write_table(
        pa.table({**FRAME.to_dict("list"), "review": [text.encode() for text in FRAME["review"]]}),
        tmp_path / "bytes.parquet",
    )
    for name in ("table.feather", "bytes.parquet"):
        found = plain(read(str(tmp_path / name))["train"])
        assert (found.columns.text, found.columns.label) == (("review",), "verdict")
        assert found.inputs["review"][:] == FRAME["review"].tolist()
    (tmp_path / "splits.json").write_text(json.dumps({"train": RECORDS, "test": RECORDS[:2]}))
    assert {name: len(rows) for name, rows in read(str(tmp_path / "splits.json")).items()} == {"train": 6, "test": 2}
    (tmp_path / "splits.json").write_text(
        json.dumps({"train": FRAME.to_dict("list"), "test": FRAME[:2].to_dict("list")})
    )
    splits = read(str(tmp_path / "splits.json"))
    assert {name: rows["verdict"][:] for name, rows in splits.items()} == {
        "train": ["neg", "pos"] * 3,
        "test": ["neg", "pos"],
    }


@pytest.mark.parametrize(
    ("names", "wanted", "found"),
    [
        (["training", "dev"], ["train"], "training"),
        (["Train", "Test"], ["test", "validation", "train"], "Test"),
        (["train_en", "val_en"], ["validation"], "val_en"),
        (["default"], ["train"], "default"),
        (["default"], ["test", "validation", "train"], "default"),
        (["train", "train_extra"], ["train"], "train"),
        (["a", "b"], ["train"], None),
        (["test"], ["train"], None),
        (["train_en", "train_de"], ["train"], None),
    ],
)
def test_splits_by_the_words_in_their_names(names: list[str], wanted: list[str], found: str | None) -> None:
    splits = {name: datasets.Dataset.from_dict({"name": [name]}) for name in names}
    if found is not None:
        assert split_of(splits, *wanted)["name"][:] == [found]
        return
    with pytest.raises(ValueError, match=r"has no 'train' split, only .*: give the one to read"):
        split_of(splits, *wanted)


def test_an_encoding_that_may_be_wrong_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data.csv").write_bytes("text,label\nхорошо,да\n".encode("cp1251"))
    read(str(tmp_path / "data.csv"))
    assert "data.csv is not in UTF-8, and is read in Windows' Western encoding (cp1252), such as 'õîðîøî" in caplog.text
    (tmp_path / "other.csv").write_bytes("text,label\ntrès bon,oui\n".encode("cp1252"))
    caplog.clear()
    read(str(tmp_path / "other.csv"))
    assert not caplog.text


def test_commas_for_points_and_lists_in_a_table_of_text(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text;rating\ngood;0,5\nbad, really;-1,25\n")
    assert read(str(path))["train"].to_dict() == {"text": ["good", "bad, really"], "rating": [0.5, -1.25]}
    words, tags = [["good", "film"], ["bad"]], [["O", "B-X"], ["O"]]
    pd.DataFrame({"tokens": words, "ner_tags": tags}).to_csv(path, index=False)
    assert read(str(path))["train"].to_dict() == {"tokens": words, "ner_tags": tags}


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (["1.500,25", "7,5", "-"], [1500.25, 7.5, None]),
        (["-1.234.567", "2,5", "3"], [-1234567.0, 2.5, 3.0]),
        (["1.2.2024", "7,5", "3"], ["1.2.2024", "7,5", "3"]),
    ],
)
def test_numbers_with_a_comma_before_the_decimals(values: list[str], found: list[Any], tmp_path: Path) -> None:
    (tmp_path / "german.csv").write_text("text;price\n" + "".join(f"a;{value}\n" for value in values))
    assert read(str(tmp_path / "german.csv"))["train"]["price"][:] == found


def test_empty_rows_at_the_end_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "sheet.csv").write_text("text,label\na,1\n,\nb,2\n,\n,\n")
    rows = read(str(tmp_path / "sheet.csv"))["train"]
    assert rows["text"][:] == ["a", None, "b"]  # within the table, they are for the user to see
    (tmp_path / "empty.csv").write_text("text,label\n,\n,\n")
    with pytest.raises(ValueError, match="has no rows"):
        read(str(tmp_path / "empty.csv"))


def test_a_first_line_that_is_a_row_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data.csv").write_text(CSV.partition("\n")[2])
    read(str(tmp_path / "data.csv"))
    assert "the first line looks like a row, as it has '0' where others have the like" in caplog.text


def test_folders_patterns_and_lists_of_files(tmp_path: Path) -> None:
    for name, rows in {"train-1.csv": FRAME[:4], "train-2.csv": FRAME[4:], "dev.tsv": FRAME[:2]}.items():
        rows.to_csv(tmp_path / name, index=False, sep="\t" if name.endswith("tsv") else ";")
    FRAME[:3].to_json(tmp_path / "test.jsonl", orient="records", lines=True)
    (tmp_path / "README.md").write_text("# Reviews")
    found = read(str(tmp_path))
    assert {split: len(rows) for split, rows in found.items()} == {"train": 6, "validation": 2, "test": 3}
    files = [tmp_path / "train-1.csv", str(tmp_path / "train-2.csv")]
    for rows in (
        found["train"],
        read(str(tmp_path / "train-*.csv"))["train"],
        given(files, "train"),
        given(found, "train"),
    ):
        assert rows.to_dict() == FRAME.to_dict("list")
    assert given(str(tmp_path / "train-1.csv"), "test", "train").num_rows == 4
    assert given(["a text", "data.csv"]) == ["a text", "data.csv"]
    FRAME[["id"]].to_csv(tmp_path / "train-3.csv", index=False)
    with pytest.raises(ValueError, match=r"train-3\.csv has columns id, and .*train-1\.csv has id, review, verdict"):
        read(str(tmp_path))
    datasets.Dataset.from_pandas(FRAME).save_to_disk(tmp_path / "saved")
    assert read(str(tmp_path / "saved"))["train"].num_rows == 6


def test_a_form_for_predictions_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, columns in {"train": ["id", "review", "verdict"], "test": ["id", "review"]}.items():
        FRAME[columns].to_csv(tmp_path / f"{name}.csv", index=False)
    FRAME[["id", "verdict"]].to_csv(tmp_path / "sample_submission.csv", index=False)
    found = read(str(tmp_path))
    assert {split: rows.column_names[1:] for split, rows in found.items()} == {
        "train": ["review", "verdict"],
        "test": ["review"],
    }
    assert "sample_submission.csv: a form for predictions, by its name, which is left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv.gz", gzip.compress(CSV.encode(), mtime=0)[:20], "a.csv.gz cannot be unpacked: "),
        ("a.json", b"[1, 2]", "a.json has '1' in row 0: give a list of records"),
        ("a.json", b'[{"a": 1},\n{"a":}]', "a.json cannot be read as json: line 2: "),
        ("a.pdf.gz", b"x", r"ends in '.gz'; give a file that ends in .csv.* and .gz"),
        ("a.csv", b'text,n\nb,1\n"c,1\nd,2\n', r"a.csv, line 3: a quotation mark is opened, and not closed"),
        ("a.csv", b"Reviews\n\na,n\nb,1\n", r"line 3: .* 1 in the head: .* Remove what stands above the names"),
        ("a.csv", b"MZ" + bytes(range(200)), "a.csv is not a text, whatever its name ends in"),
        ("a.csv", b"PAR1" + bytes(range(200)), "a.csv is a table of Parquet: let its name end in .parquet"),
        ("a.csv", b"<!DOCTYPE html>\n<html>", "a.csv is a page of the web: download the file"),
        ("a.db", b"SQLite format 3\0", r"a.db is a database of SQLite: .* pandas.read_sql"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a.parquet is a pointer of Git LFS"),
        ("a.json", b"{}", "a.json has no rows"),
        ("a.json", b'{"text": ["a", "b"], "label": [1]}', "a.json: columns differ in length, 'text' 2, 'label' 1"),
        (
            "a.parquet.gz",
            gzip.compress(b"x", mtime=0),
            "a.parquet.gz is compressed, and only texts are read so: unpack",
        ),
        ("a.xlsx.zip", b"PK", "a.xlsx.zip is compressed, and only texts are read so: unpack"),
        ("a.xlsx", b"PK\x03\x04", "a.xlsx is not a spreadsheet that can be read: "),
        ("a.conll", b"a O\nb\n", "a.conll, line 2: there are 1 columns, and 2 before"),
        ("a.parquet", b"x", r"a.parquet cannot be read as parquet: .*[^.]\.$"),
    ],
)
def test_files_that_do_not_fit(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(str(tmp_path / name))


def test_a_spreadsheet_of_far_more_than_its_size_is_not_unpacked(tmp_path: Path) -> None:
    data = tmp_path / "data.xlsx"
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed:
        packed.writestr("xl/worksheets/sheet1.xml", b"<row/>".ljust(65 * 2**22))
    with pytest.raises(ValueError, match=r"data\.xlsx, of .* bytes, holds 272,629,760 bytes: unpack it yourself"):
        read(str(data))


def test_far_too_many_columns_are_refused(tmp_path: Path) -> None:
    wide = tmp_path / "wide.csv"
    wide.write_text("\n".join(",".join([first, "label", *["1"] * 20_000]) for first in ("text", "a good film")))
    with pytest.raises(ValueError, match=r"wide\.csv has 20,002 columns, more than 20,000: leave out"):
        read(str(wide))
    with pytest.raises(ValueError, match=r"data has 20,001 columns"):
        plain([{f"x{number}": "a" for number in range(20_001)}] * 2)


def test_a_spreadsheet_says_which_package_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.xlsx"
    data.write_bytes(b"PK")
    frame = pd.DataFrame({"text": ["good", None], "label": [1, 0]})
    monkeypatch.setattr(pd, "read_excel", lambda *_, **__: frame)
    assert read(str(data))["train"].to_dict() == {"text": ["good", None], "label": [1, 0]}
    titled = pd.DataFrame({"Survey": ["by hand", "text"], "Unnamed: 1": [None, "label"]})
    monkeypatch.setattr(pd, "read_excel", lambda *_, skiprows=0, **__: frame if skiprows == 2 else titled)
    assert read(str(data))["train"].to_dict() == {"text": ["good", None], "label": [1, 0]}

    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Missing optional dependency 'openpyxl'.")

    monkeypatch.setattr(pd, "read_excel", missing)
    failed = run("evaluate", tmp_path, data)
    assert failed.exit_code == 2
    with pytest.raises(ImportError, match=r"data\.xlsx: reading this file needs the package openpyxl: pip install"):
        read(str(data))


# Labels in several columns

COMMENTS = pd.DataFrame(
    {"comment_text": TEXTS, "toxic": [0, 1] * 4, "threat": [0, 0, 1, 1] * 2, "insult": [0] * 7 + [1]}
)
CLASSES = ["toxic", "threat", "insult"]
ROWS = COMMENTS[CLASSES].to_numpy().tolist()
SEVERAL = Columns.asked(None, CLASSES, None)


@pytest.mark.parametrize("kind", [int, bool, float, str, object, "Int64", "category"])
@pytest.mark.parametrize("form", ["frame", "table", "mapping", "records", "beside"])
def test_columns_of_labels_are_rows_of_labels(kind: Any, form: str) -> None:
    frame = COMMENTS.astype(dict.fromkeys(CLASSES, kind))
    forms: dict[str, Any] = {
        "frame": lambda: frame,
        "table": lambda: datasets.Dataset.from_dict(COMMENTS.to_dict("list")),
        "mapping": lambda: frame.to_dict("list"),
        "records": lambda: frame.to_dict("records"),
        "beside": lambda: (TEXTS, frame),
    }
    found = plain(forms[form](), SEVERAL)
    assert found.labels is not None
    assert found.labels.plain.tolist() == ROWS
    assert (found.labels.names, found.columns.labels) == (tuple(CLASSES), tuple(CLASSES))
    assert found.columns.text == (() if form == "beside" else ("comment_text",))
    turned = plain(frame[["insult", "comment_text", "threat", "toxic"]], known=found.columns.plain)
    assert turned.labels is not None
    assert turned.labels.plain.tolist() == ROWS


@pytest.mark.parametrize(
    ("columns", "label", "message"),
    [
        ({"toxic": [0, -1] * 4}, CLASSES, r"data has -1 in 'toxic', row 1, and each of several columns says whether"),
        ({"toxic": [0, None] * 4}, CLASSES, r"the label in 'toxic' is missing in 4 row\(s\), the first is row 1"),
        ({"toxic": ["yes", "no"] * 4}, CLASSES, r"data has 'yes' in 'toxic', row 0"),
        ({}, ["toxic", "obscene"], r"label=\['toxic', 'obscene'\]: data has no column 'obscene', only comment_text"),
        ({}, ["toxic", "toxic"], r"label=\['toxic', 'toxic'\]: name a column, or several different ones"),
        ({}, [], r"label=\[\]: name a column, or several"),
    ],
)
def test_columns_that_are_not_of_labels_are_named(columns: dict[str, Any], label: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(COMMENTS.assign(**columns), Columns.asked(None, label, None))


def test_a_file_with_several_columns_of_labels(base: Path, tmp_path: Path) -> None:
    data, test = tmp_path / "comments.csv", tmp_path / "new.csv"
    COMMENTS.to_csv(data, index=False)
    COMMENTS[["comment_text"]].to_csv(test, index=False)
    flags = [word for name in CLASSES for word in ("--label", name)]
    table, scores = through(base, data, tmp_path / "out", *flags, test=test)
    probs = table[[f"p({name})" for name in CLASSES]].to_numpy()
    right = np.where(np.asarray(ROWS) == 1, probs, 1 - probs)
    assert scores["nll"] == pytest.approx(-np.log(right).sum(1).mean(), abs=1e-5)
    posterior = bayeslora.load(tmp_path / "out")
    assert (posterior.columns.labels, posterior.class_names) == (tuple(CLASSES), tuple(CLASSES))
    with pytest.raises(ValueError, match="has no column 'threat'"):
        posterior.evaluate(COMMENTS.drop(columns="threat"), 2)
    with pytest.raises(ValueError, match="label='comment_text': the fit read this column as a text"):
        posterior.evaluate(COMMENTS, 2, label="comment_text")
    settings: dict[str, Any] = {"tokenizer": posterior.tokenizer, "epochs": 0, "progress": False}
    first = bayeslora.fit(posterior.network.model, COMMENTS, "blob", label=CLASSES, **settings)
    again = bayeslora.fit(posterior.network.model, COMMENTS, prior=first, **settings)
    assert again.columns.labels == tuple(CLASSES)


# Numbers that are texts


def test_numbers_are_texts_where_they_are_named_so() -> None:
    frame = pd.DataFrame({"text": [7.0, None, 2.5], "label": ["a", "b", "a"]})
    for data in (frame, frame.to_dict("list")):
        for columns in ({"asked": Columns(text=("text",))}, {"known": Columns(text=("text",), label="label")}):
            assert plain(data, **columns).inputs["text"][:] == ["7", None, "2.5"]


@pytest.mark.parametrize(
    "data",
    [
        pd.DataFrame({"text": [1, 2], "label": ["a", "b"]}),
        {"text": [1, 2], "label": ["a", "b"]},
        datasets.Dataset.from_dict({"text": [1, 2], "label": ["a", "b"]}),
        ([1, 2], ["a", "b"]),
    ],
    ids=["frame", "mapping", "table", "list"],
)
def test_numbers_that_are_not_named_as_texts_are_refused_in_words(data: Any) -> None:
    network = model("Bert", "ForSequenceClassification")()
    said = r"; the network takes input_ids, .* numbers are texts if the column is named so"
    alone = r"data: 'input_ids' has shape \(2,\) and is of int64: give the numbers of tokens, .*, or texts"
    with pytest.raises(ValueError, match=alone if isinstance(data, tuple) else said):
        bayeslora.fit(network, data, "lora", tokenizer=tiny_tokenizer(), progress=False)


def test_folders_that_say_a_column_are_read(base: Path, tmp_path: Path) -> None:
    names = [f"{word} ä/b" for word in WORDS]
    table = pd.DataFrame({"text": TEXTS, "label": names, "year": [1, 2] * 4})
    table.to_parquet(tmp_path / "rows", partition_cols=["year", "label"])
    (tmp_path / "rows" / "_SUCCESS").write_text("")
    found = read(str(tmp_path / "rows"))["train"].to_pandas().astype({"year": int, "label": str})
    expected = table.sort_values("text", ignore_index=True)
    pd.testing.assert_frame_equal(
        found.sort_values("text", ignore_index=True)[list(table)], expected, check_dtype=False
    )


@pytest.mark.parametrize("form", [pd.DataFrame, dict, datasets.Dataset.from_dict, pa.table])
def test_splits_are_tables_of_any_kind(form: Any) -> None:
    train, other = form({"text": TEXTS, "label": WORDS}), form({"text": TEXTS[:3], "label": WORDS[:3]})
    assert len(split_of({"test": other, "train": train}, "train")["text"]) == 8
    assert len(given({"train": train, "dev": other}, "validation", "test")["text"]) == 3
    with pytest.raises(ValueError, match="no 'test' split, only a, b: give the one to read"):
        given({"a": train, "b": other}, "test")


def test_columns_with_several_names_are_called_by_all_of_them() -> None:
    frame = pd.DataFrame({("film", "text"): TEXTS, ("film", "label"): WORDS})
    found = plain(given(frame), Columns.asked("film text", "film label", None))
    assert (found.columns.text, found.columns.label) == (("film text",), "film label")
    asked = Columns.asked(None, ("film", "label"), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data has no column 'film', 'label', only film text, film label"):
        plain(given(frame), asked)


def test_several_tables_are_not_rows() -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": WORDS})
    with pytest.raises(ValueError, match="data is a list of 2 tables, and one is needed: put them together, pandas"):
        plain(given([frame, frame]))


def test_columns_by_row_are_no_splits() -> None:
    rows = pd.DataFrame({"tokens": [["a", "b"], ["c"]], "ner_tags": [["O", "B-X"], ["O"]]}).to_dict()
    assert given(rows, "test") == rows


def test_texts_of_which_one_is_the_label_are_named() -> None:
    network = model("T5", "ForConditionalGeneration")()
    rows = {"document": TEXTS, "summary": [f"{text} {text}" for text in TEXTS]}
    with pytest.raises(ValueError, match=r"document, summary are read as texts. .* such as label='summary'"):
        bayeslora.fit(network, rows, "lora", tokenizer=tiny_tokenizer(), rank=2, epochs=0, progress=False)
