"""Write the page of architectures from the table of results that `survey` keeps.

python -m tests.architectures.page results.json docs/architectures.md
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from tests.architectures.cases import KNOWN_WRONG
from tests.architectures.checks import CHECKS

INTRODUCTION = """\
# Architectures

Which networks the library has been tried on, and what it makes of each: {count} networks of {families} families of
transformers {transformers}, made small from their configurations with random weights, and plain networks that do
something unusual. Each goes through the same checks, in double precision, with data as a user has it:

| check | what has to hold |
| --- | --- |
{checks}

*Works* means that all of them hold. *One by one* means that they hold, and that a prediction takes a pass through the
network for each draw of the weights, because some layer does not see the rows of a batch in their order. *Refused*
means that the library says what does not fit before it trains. What is known to be wrong is listed at the end.

The page is made by `make architectures`, here with torch {torch} and peft {peft}.
"""


def main(results: Path, page: Path) -> None:
    table = json.loads(results.read_text())
    models = [entry for entry in table.values() if entry["family"]]
    text = INTRODUCTION.format(
        count=len(models),
        families=len({entry["family"] for entry in models}),
        transformers=transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        peft=peft.__version__,
        checks="\n".join(f"| {name} | {first_line(check)} |" for name, check in CHECKS.items()),
    )
    for kind in dict.fromkeys(entry["kind"] for entry in table.values()):
        text += f"\n## {kind.capitalize()}\n\n"
        text += section({name: entry for name, entry in table.items() if entry["kind"] == kind})
    page.write_text(text + known_wrong(table))


def section(entries: Mapping[str, Any]) -> str:
    """What works, works one by one, and is refused, of one kind of networks."""
    verdicts = {name: verdict(entry) for name, entry in entries.items()}
    parts = []
    for word in ("works", "works one by one"):
        names = [shown(name, entries[name]) for name, v in verdicts.items() if v == word]
        parts += [f"{word.capitalize()}: {', '.join(names)}."] if names else []
    if refused := [name for name, v in verdicts.items() if v == "refused"]:
        rows = [f"| {shown(name, entries[name])} | {refusal(entries[name])} |" for name in refused]
        parts.append("\n".join(["| refused | message |", "| --- | --- |", *rows]))
    wrong = [shown(name, entries[name]) for name, v in verdicts.items() if v == "wrong"]
    parts += [f"Not right yet, see below: {', '.join(wrong)}."] if wrong else []
    return "\n\n".join(parts) + "\n"


def known_wrong(table: Mapping[str, Any]) -> str:
    """What is wrong, by its reason: the networks, and which of the checks they fail."""
    if not KNOWN_WRONG:
        return ""
    text = "\n## What is not right yet\n"
    for reason, cases in KNOWN_WRONG.items():
        rows = [f"| {shown(name, table[name])} | {', '.join(checks.split())} |" for name, checks in cases.items()]
        text += "\n".join(["", reason, "", "| network | checks that fail |", "| --- | --- |", *rows, ""])
    return text


def verdict(entry: Mapping[str, Any]) -> str:
    results = entry["checks"].values()
    if any(not result["right"] for result in results):
        return "wrong"
    if entry["checks"]["default"]["outcome"] == "refused":
        return "refused"
    return "works one by one" if entry["one_by_one"] else "works"


def refusal(entry: Mapping[str, Any]) -> str:
    message = entry["checks"]["default"]["detail"].partition(": ")[2]
    return message.replace("|", "\\|")


def shown(name: str, entry: Mapping[str, Any]) -> str:
    return f"`{name}`" if entry["family"] else name


def first_line(check: Any) -> str:
    return check.__doc__.partition("\n")[0].rstrip(".")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
