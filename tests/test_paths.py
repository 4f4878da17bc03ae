"""Files and folders that are not there, or hold nothing, are named in one sentence."""

import errno
import importlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

import bayeslora
from bayeslora.data import given, read
from bayeslora.data.packed import unpacked
from tests.helpers import tiny_bert
from tests.test_data import tiny_tokenizer

GOOD = "text,label\ngood film,1\nbad,0\n"


def fit(model: Any, data: Any) -> bayeslora.Posterior:
    return bayeslora.fit(model, data, "lora", tokenizer=tiny_tokenizer(), epochs=0, progress=False)


def test_addresses_are_not_fetched() -> None:
    for name, advice in {
        "https://example.org/data.csv": "download it, and give the path",
        "s3://bucket/train": "download it, and give the path",
        "https://huggingface.co/datasets/stanfordnlp/imdb": "give its name there, 'stanfordnlp/imdb'",
    }.items():
        for call in (read, given):
            with pytest.raises(ValueError, match=f"is an address, from which nothing is read: {advice}"):
                call(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.csv", r"data='.*no\.csv': there is no such file or folder"),
        ("god.csv", r"no such file or folder; there is '.*good\.csv'"),
        ("nowhere/data.csv", r"no such file or folder, because there is no folder '.*nowhere'"),
        ("nowhere/further/data", r"because there is no folder '.*nowhere'"),
        ("link.csv", "only a link to one that is not there"),
        ("empty.csv", r"empty\.csv is empty"),
        ("empty.json", r"empty\.json is empty"),
        ("head.csv", r"head\.csv has no rows"),
        ("folder", "is an empty folder"),
        ("data.pdf", r"ends in '\.pdf'; give a file that ends in \.csv"),
        ("half.jsonl", r"half\.jsonl cannot be read as jsonl: "),
        ("rubbish.parquet", r"rubbish\.parquet cannot be read as parquet: "),
        ("quote.csv", r"quote\.csv, line 3: a quotation mark is opened"),
    ],
)
def test_data_that_are_not_there(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "gone.csv")
    contents = {"empty.csv": "", "empty.json": "", "head.csv": "text,label\n", "data.pdf": "x", "rubbish.parquet": "x"}
    contents |= {"half.jsonl": '{"text": "good", "label": 0}\n{"text":', "quote.csv": 'text,label\ngood,0\n"bad,1\n'}
    for file, content in contents.items():
        (tmp_path / file).write_text(content)
    for data in (str(tmp_path / name), tmp_path / name):
        with pytest.raises(ValueError, match=message):
            fit(tiny_bert(2), data)


def test_a_folder_that_may_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(ValueError, match=r"data='.*' cannot be read: Permission denied \(.*\)\.$"):
        fit(tiny_bert(2), tmp_path)


@pytest.mark.parametrize("module", ["gzip", "bz2", "lzma", "zipfile"])
def test_a_file_that_holds_far_more_than_its_size_is_not_unpacked(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = b"text,label\n" + b"a,0\n" * 40_000
    path = tmp_path / f"data.csv.{module}"
    if module == "zipfile":
        for name in (path, tmp_path / "data.zip"):
            with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as packed:
                packed.writestr("data.csv", text)
    else:
        path.write_bytes(importlib.import_module(module).compress(text))
    assert unpacked(path) == text
    monkeypatch.setattr("bayeslora.data.packed.FREE", len(text) - 1)
    with pytest.raises(ValueError, match=r", of [\d,]+ bytes, holds (more than )?[\d,]+ bytes: unpack it yourself if"):
        unpacked(path)
    if module == "zipfile":
        with pytest.raises(ValueError, match=r"data\.zip, of [\d,]+ bytes, holds 160,011 bytes"):
            read(str(tmp_path / "data.zip"))
        monkeypatch.setattr("bayeslora.data.packed.MOST_FILES", 0)
        with pytest.raises(ValueError, match=r"holds 1 tables, more than 0"):
            read(str(tmp_path / "data.zip"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[" * 20_000, "it is nested too deeply"), (f'[{{"label": {"9" * 5000}}}]', "a number has too many digits")],
)
@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_json_that_nobody_can_read(text: str, message: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} cannot be read as jsonl?: {message}\.$"):
        read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["", " "])
def test_a_name_that_is_empty(name: str) -> None:
    with pytest.raises(ValueError, match=r"data='.*give"):
        fit(tiny_bert(2), name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", r"model='\./nowhere': there is no such file or folder"),
        ("/nowhere/model", r"no such file or folder, because there is no folder '/nowhere'"),
        ("{}", r"has no config\.json, only data\.csv: give a folder that save_pretrained wrote"),
        ("{}/data.csv", "is a file: give the folder"),
        ("{}/other", r"model='.*other': there is no such file or folder"),
        ("nobody/nothing", "is not a folder here, and cannot be fetched from the hub"),
    ],
)
def test_models_that_are_not_there(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(GOOD)
    with pytest.raises(ValueError, match=message) as error:
        fit(name.format(tmp_path), str(tmp_path / "data.csv"))
    assert "Repo id" not in str(error.value)


def test_a_saved_posterior_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        bayeslora.load(tmp_path / "nowhere", tiny_bert(2))
