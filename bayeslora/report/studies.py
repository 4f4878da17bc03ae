"""The page of a comparison."""

import json
import os
from pathlib import Path
from typing import Any

from bayeslora import plots
from bayeslora.filing import write_file
from bayeslora.report.fitted import versions
from bayeslora.report.page import Section, Table, picture, render, rows_of


def of_comparison(comparison: Any, path: str | os.PathLike[str]) -> Path:
    """Write the page of a comparison, and return its path."""
    title, facts, _ = comparison._shown()
    others = [name for name in comparison.methods if name != comparison.baseline]
    lead = [f"{name}: {comparison.verdict(name)}." for name in others]
    shown = comparison.shown()
    columns, rows = rows_of(shown)
    texts = (0, columns.index("verdict")) if "verdict" in columns else (0,)
    about = {name: facts[name] for name in facts if name not in others}
    table = Section("Methods", about)
    table.tables.append(Table("Means over seeds, ± half of their 95 % intervals", columns, rows, texts, texts[1:]))
    table.says.append(
        "Verdicts are about the NLL, in nats. Differences are paired by seed and test row, and seeds are clusters: an "
        "interval has the variance between seeds and that between test examples. Level means a difference of 0 within "
        "its interval; of twenty such methods, one looks better or worse by chance."
    )
    if any(comparison.results(name) for name in others):
        text = f"Differences in NLL from {comparison.baseline}, with intervals: " + "; ".join(lead)
        caption = f"NLL minus that of {comparison.baseline}: left of 0 is better."
        table.pictures.append(picture(plots.differences(comparison), text, caption))
    scores = comparison.scores.round(4)
    cells = [["–" if cell != cell else str(cell) for cell in row] for row in scores.to_numpy().tolist()]
    every = Section("Every run")
    titles = [name.replace("_", " ") for name in scores.columns]
    every.tables.append(Table("Scores of single fits", titles, cells))
    again = Section("How to reproduce", versions())
    again.code = {"What all runs have in common": json.dumps(comparison.about, indent=1)}
    return write_file(path, render(f"{title} of {len(comparison.methods)} methods", lead, [table, every, again]))
