"""Tables of text as strangers write them: heads, quotation marks, separators, notes and encodings."""

import logging
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bayeslora.data import classed, plain, read
from bayeslora.data.delimited import is_one
from bayeslora.data.encodings import encoding_of

ROWS = [("good film", "great"), ("bad", "bad"), ("so so", "great"), ("no, no", "bad")]
TABLE = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
PLACES = {"column 1": TABLE["text"], "column 2": TABLE["label"]}


def lines(separator: str = ";", end: str = "", head: str | None = "text;label", mark: str = "") -> list[str]:
    """The rows of the table, below a head."""
    rows = [separator.join(f"{mark}{cell}{mark}" for cell in row) + end for row in ROWS]
    return [*([] if head is None else [head.replace(";", separator)]), *rows]


LAYOUTS: dict[str, tuple[list[str], dict[str, list[Any]]]] = {
    "marks after the last column": (lines(end=";;"), TABLE),
    "numbers of rows without a name, as R writes them": (
        ["text;label", *(f"{n};{row}" for n, row in enumerate(lines(head=None), 1))],
        TABLE,
    ),
    "notes above the head": (["# made by hand", "#", *lines()], TABLE),
    "a head that is there again": ([*lines()[:3], "text;label", *lines()[3:]], TABLE),
    "single quotation marks": (lines(",", mark="'"), TABLE),
    "a comma in the head": (
        ["text, as said;label", *lines(head=None)],
        {"text, as said": TABLE["text"], "label": TABLE["label"]},
    ),
    "words, and no head": (lines(head=None), PLACES),
    "numbers, and no head": (
        ['"2";"good; film"', '"1";"bad"', '"2";"so so"'],
        {"column 1": [2, 1, 2], "column 2": ["good; film", "bad", "so so"]},
    ),
    "numbers that name columns": (["0;1", "2;3", "4;5", "6;7"], {"0": [2, 4, 6], "1": [3, 5, 7]}),
    "years that name columns": (["country;2019", "a;1", "b;2"], {"country": ["a", "b"], "2019": [1, 2]}),
    "classes that name columns": (
        ["phrase,1,2", "so be it,0,1", "or not,1,0"],
        {"phrase": ["so be it", "or not"], "1": [0, 1], "2": [1, 0]},
    ),
    "a class that names a column": (
        ["headline;ironic", "so it is;ironic", "it is;not", "is it;not", "it may;ironic"],
        {"headline": ["so it is", "it is", "is it", "it may"], "ironic": ["ironic", "not", "not", "ironic"]},
    ),
    "numbers with decimals, and no head": (["5.1,a", "4.9,b", "4.7,c"], {"column 1": [5.1, 4.9, 4.7]}),
    "the head within a text": (
        ["text,label", '"first', "text,label", 'last",a', "b,b"],
        {"text": ["first\ntext,label\nlast", "b"], "label": ["a", "b"]},
    ),
    "single marks around some texts": (
        ["text;label", "'Great';a", "rock 'n' roll;b"],
        {"text": ["'Great'", "rock 'n' roll"]},
    ),
    "single marks around a title": (["text;label", "'Great';a", "good;b"], {"text": ["'Great'", "good"]}),
    "single marks around a separator": (["text,label", "'so, so',a", "good,b"], {"text": ["so, so", "good"]}),
    "a head with a mark": (["#text,label", '"a, b",c', "d,e"], {"#text": ["a, b", "d"], "label": ["c", "e"]}),
    "a first text with a mark": (["#1, of all\ta b", "c\ta b"], {"#1, of all": ["c"]}),
    "a head like a value": (["text;good", "a film;good", "b;bad", "c;good", "d;bad"], {"text": list("abcd")}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, tmp_path: Path) -> None:
    content, expected = LAYOUTS[name]
    (tmp_path / "data.csv").write_text("\n".join(content) + "\n")
    found = read(str(tmp_path / "data.csv"))["train"]
    if name == "a head like a value":
        assert found.column_names == ["text", "good"]
        return
    assert {column: found[column][:] for column in expected} == expected
    assert not plain(found).columns.text or plain(found).columns.text[0] in (next(iter(expected)), "column 2")


FIELDS = [("text", "label"), *ROWS]


def marked(mark: str) -> str:
    """The table with a mark between its columns."""
    return "\n".join(f"{text}{mark}{label}" for text, label in FIELDS)


AS_TOOLS_PRINT = {
    "odd marks": marked("::"),
    "odd marks of one character": marked("^"),
    "bars by twos": marked("||"),
    "marks of Hive": marked("\x01"),
    "spaces": marked("   "),
    "Markdown": "\n".join(f"| {text} | {label} |" for text, label in [FIELDS[0], ("---", ":-:"), *FIELDS[1:]]),
    "psql": "\n".join([*(f" {a} | {b}" for a, b in [FIELDS[0], ("---+", "---"), *FIELDS[1:]]), "(4 rows)"]),
    "lines within marks": "\n".join(f'"{line}"' for line in marked(";").split("\n")),
    "backslashes": "\n".join(f"{text},{label}".replace(", ", "\\, ") for text, label in FIELDS),
    "formulas": "\n".join(f'="{text}";{label}' if text != "text" else "text;label" for text, label in FIELDS),
    "line ends of several kinds": "text;label\r\ngood film;great\rbad;bad\nso so;great\r\nno, no;bad",
    "a title": "Survey of 2024\n\n" + marked(";"),
    "a title over columns": "Survey of 2024;\nby hand;\n" + marked(";"),
    "notes": "// by hand\n% by me\n" + marked(";"),
    "notes as wide": "# by hand; in 2024\n# source; x\n" + marked(";"),
    "notes as wide, of a programmer": "// by hand; in 2024\n// x; y\n" + marked(";"),
    "an invisible mark in the head": marked(";").replace("label", "\ufefflabel"),
    "an empty character": marked(";").replace("so so", "so\0 so"),
}


@pytest.mark.parametrize("name", AS_TOOLS_PRINT)
def test_tables_as_tools_print_them(name: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(AS_TOOLS_PRINT[name].encode())
    assert read(str(tmp_path / "data.csv"))["train"].to_dict() == TABLE


def test_lines_of_text_are_no_table_with_odd_marks(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("Note: good\nWell: bad\n")
    assert read(str(tmp_path / "data.txt"))["train"].to_dict() == {"text": ["Note: good", "Well: bad"]}


IN_OTHER_LETTERS = {
    "cp1251": "Мне не понравилось, скучно и долго. Больше не пойду, и вам не советую.",
    "koi8-r": "Ужасный сервис, еда была холодной, официант грубил. Никогда больше не приду сюда.",
    "gb18030": "服务态度很差，房间太小。质量不错，物流也很快。我在这里买的东西都很好。",
    "big5": "服務態度很差，房間太小。質量不錯，物流也很快。我在這裡買的東西都很好。",
    "cp932": "とても良い映画でした。みんなに勧めたいです。",
    "euc-jp": "とても良い映画でした。みんなに勧めたいです。",
    "iso2022-jp": "とても良い映画でした。みんなに勧めたいです。",
    "cp949": "서비스가 나쁘다. 배송이 빨라요. 음식이 정말 맛있었습니다. 다시 가고 싶어요.",
    "cp1253": "δεν μου άρεσε καθόλου, χάλια ταινία, αλλά η μουσική ήταν ωραία",
    "cp1255": "לא אהבתי את הסרט הזה. שירות גרוע מאוד, ואוכל לא טעים",
    "cp1256": "لم يعجبني هذا الفيلم خدمة سيئة جدا الطعام لذيذ والمكان جميل",
    "cp874": "ไม่ชอบหนังเรื่องนี้เลย อาหารอร่อยมาก บริการดี",
    "utf-16-le": "Мне не понравилось, скучно и долго. Больше не пойду, и вам не советую.",
}


@pytest.mark.parametrize("encoding", IN_OTHER_LETTERS)
def test_letters_tell_the_encoding(encoding: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = IN_OTHER_LETTERS[encoding]
    (tmp_path / "data.csv").write_bytes(f'text,label\n"{text}",a\n"{text}",b\n'.encode(encoding))
    assert read(str(tmp_path / "data.csv"))["train"]["text"][:] == [text, text]
    assert (f"is read in {encoding}, by its letters" in caplog.text) == (encoding != "utf-16-le")


@pytest.mark.parametrize(("encoding", "text"), [("cp1250", "Świetny film, żółć i gęś"), ("cp1252", "été à Noël")])
def test_accents_tell_no_encoding(encoding: str, text: str) -> None:
    assert encoding_of(f"text,label\n{text},a\n{text},b\n".encode(encoding)) is None


def test_hashtags_are_not_notes(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("#metoo\n#1 film\nok, fine\nno\n")
    with pytest.raises(ValueError, match="line 3: there are 2 columns, and 1 in the head"):
        read(str(tmp_path / "data.csv"))


def test_a_head_may_begin_as_a_note_does(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("# text,label\ngood film,a\nbad,b\n")
    assert read(str(tmp_path / "data.csv"))["train"].to_dict() == {"# text": ["good film", "bad"], "label": ["a", "b"]}


def test_marks_that_are_a_part_of_texts(tmp_path: Path) -> None:
    rows = ['"good film\tbad', 'he said "x" to me\tgood', '5" wide\tbad']
    (tmp_path / "data.tsv").write_text("\n".join(["text\tlabel", *rows]))
    assert read(str(tmp_path / "data.tsv"))["train"]["text"][:] == [row.partition("\t")[0] for row in rows]
    (tmp_path / "data.csv").write_text('text,label\n"good,\nfilm",1\n"so, so",0\n')
    assert read(str(tmp_path / "data.csv"))["train"]["text"][:] == ["good,\nfilm", "so, so"]
    long = "a, " * 100_000
    (tmp_path / "data.csv").write_text(f'text,label\n"{long}",1\nb,0\n')
    assert read(str(tmp_path / "data.csv"))["train"]["text"][0] == long


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,label\ngood, really,1\nbad,0\n", True),
        ("a,b\n1,2,3\n1,2\n3,4\n", True),
        ("text\tlabel\nbad\n", True),
        ("Well, then\nNo commas here\nNor here\n", False),
        ("Well, I never.\nOh, really?\n", False),
        ("Name, please\nwhat is it\nfine\n", False),
        ("Oh, how nice\nGreat\nWell, ok\nNo, never\n", False),
        ("one text on a line\nand another\n", False),
    ],
)
def test_what_is_a_table_though_nothing_says_so(content: str, expected: bool) -> None:
    assert is_one(content) == expected


def test_labels_as_fasttext_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("__label__good a fine film\n__label__bad no\n")
    assert read(str(path))["train"].to_dict() == {"text": ["a fine film", "no"], "label": ["good", "bad"]}
    path.write_text("__label__good __label__long a fine film\n__label__bad no\n")
    assert read(str(path))["train"]["label"][:] == [["good", "long"], ["bad"]]


def test_lines_in_other_encodings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("text,label\nnaïve,1\n".encode() + "café,0\n".encode("latin-1"))
    assert read(str(path))["train"]["text"][:] == ["naïve", "café"]
    assert "data.csv is in UTF-8 but for 1 line(s), the first is line 3" in caplog.text


def test_an_archive_is_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with zipfile.ZipFile(tmp_path / "reviews.zip", "w") as packed:
        for name in ("reviews/train.csv", "reviews/test.csv", "__MACOSX/reviews/train.csv", "reviews/about.md"):
            packed.writestr(name, "\n".join(lines()))
    caplog.set_level(logging.WARNING)
    assert {split: len(rows) for split, rows in read(str(tmp_path / "reviews.zip")).items()} == {"train": 4, "test": 4}
    (tmp_path / "reviews.zip").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"reviews\.zip cannot be unpacked: "):
        read(str(tmp_path / "reviews.zip"))


def by_class(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"A film,\nsaid {name}.\n")
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pos/1.txt", "pos/2.txt", "neg/1.txt"], {"train": 3}),
        (["a/train/pos/1.txt", "a/train/neg/1.txt", "a/train/neg/2.txt"], {"train": 3}),
        (["by-train/sci.med/1", "by-train/rec/1", "by-test/rec/1", "by-test/rec/2"], {"train": 2, "test": 2}),
        (["train/pos/1.txt", "train/neg/1.txt", "train/neg/2.txt", "train/bags.feat", "README"], {"train": 3}),
        (["train/pos/1.txt", "train/neg/1.txt", "train/neg/2.txt", "test/1.txt", "test/2.txt"], {"train": 3}),
        (["Good/1.TXT", "Good/Thumbs.db", "Bad/1.TXT", "Bad/2.TXT"], {"train": 3}),
    ],
)
def test_texts_in_folders_by_class(names: list[str], expected: dict[str, int], tmp_path: Path) -> None:
    found = read(str(by_class(tmp_path, *names)))
    assert {split: len(rows) for split, rows in found.items()} == expected
    for rows in found.values():
        for row in rows:
            assert row["text"] == f"A film,\nsaid {row['id']}."
            assert row["label"] == Path(row["id"]).parent.name


def test_texts_without_a_label_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"train/{label}/{number}.txt" for label in ("pos", "neg", "unsup") for number in range(2)]
    rows = read(str(by_class(tmp_path, *names)))["train"]
    assert {*rows["label"]} == {"pos", "neg"}
    assert "unsup: these texts have no label, and are left out" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.txt", "train/2.txt", "test/1.txt"],
        ["en/texts.txt", "de/texts.txt"],
        ["train.csv", "raw/a/1.txt", "raw/a/2.txt", "raw/b/1.txt"],
    ],
)
def test_folders_that_are_no_classes(names: list[str], tmp_path: Path) -> None:
    assert not classed.tables(by_class(tmp_path, *names), lambda name: name if name in ("train", "test") else None)
