"""Self-contained pages: HTML without scripts or anything from the network, everything of the user's escaped."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bayeslora import filing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NARROW = 4
"""The most columns of a table that stays one on a small screen."""

MIDDLING = 8
"""The most columns of a table that stays one on a middling screen."""


WHOLE = 12
"""Characters of a word, or of a number, that is not broken."""

SMALLEST, LARGEST = 1e-4, 1e9
"""Numbers between these are written without an exponent."""


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Args:
        caption: What it shows.
        columns: Its columns.
        rows: Its rows; the first cell names a row.
        texts: Numbers of the columns that hold texts; the others are set as numbers.
        prose: Those of the columns of texts that hold sentences, and need more room.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: tuple[int, ...] = (0,)
    prose: tuple[int, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A figure, as a vector image.

    Args:
        source: A data URI.
        text: What it shows, for readers who do not see it.
        caption: What stands below it.
    """

    source: str
    text: str
    caption: str


@dataclass
class Section:
    """A part of a page.

    Args:
        title: Its heading.
        facts: Names to facts, in a list at its start.
        says: Paragraphs.
        tables: Tables.
        pictures: Figures.
        code: Texts to be shown as they are, by their titles, folded away.
    """

    title: str
    facts: dict[str, str] = field(default_factory=dict)
    says: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    code: Mapping[str, str] = field(default_factory=dict)


def picture(figure: "Figure", text: str, caption: str) -> Picture:
    """Return a figure as a picture that is the same at every call."""
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "bayeslora"}):
        content = filing.picture(figure, format="svg", metadata={"Date": None, "Creator": None})
    return Picture(f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}", text, caption)


def number(value: Any, digits: int = 4) -> str:
    """Return a number to so many significant digits, or to whole ones: no reader wants 1.2e+04 for 12,000."""
    value = float(value)
    if not math.isfinite(value) or value == 0 or not SMALLEST <= abs(value) < LARGEST:
        return f"{value:.{digits}g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{round(value, places):,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def render(title: str, lead: Sequence[str], sections: Sequence[Section]) -> str:
    """Return a page as HTML.

    Args:
        title: Its title.
        lead: What has to be known first, in sentences.
        sections: Its parts.
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template, bounds = environment.from_string(TEMPLATE), {"most": NARROW, "more": MIDDLING, "whole": WHOLE}
    return template.render(title=title, lead=lead, sections=sections, **bounds)


def rows_of(table: Any) -> tuple[list[str], list[list[str]]]:
    """Return the columns and the rows of a pandas table of texts, its index first."""
    columns = [str(table.index.name or ""), *map(str, table.columns)]
    rows = zip(table.index, table.to_numpy(dtype=object), strict=True)
    return columns, [[str(name), *map(str, row)] for name, row in rows]


TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: #fff; color: #1b1f24;
  overflow-wrap: anywhere;
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; padding-top: 1rem; border-top: 1px solid #d0d7de; }
p { margin: 0 0 .75rem; max-width: 46rem; overflow-wrap: anywhere; }
a { color: #0550ae; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 3px solid #0550ae; outline-offset: 2px; }
.skip { position: absolute; left: -9999px; }
.skip:focus { position: static; }
.lead { padding: .25rem 0 .25rem 1rem; border-left: 4px solid #0550ae; list-style: none; margin: 0 0 1rem;
  max-width: 46rem; }
.lead li { margin: .4rem 0; }
nav { margin: 0 0 1rem; }
nav ul { padding: 0; margin: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .3rem 1.25rem; margin: 0 0 1rem; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 0 0 1.25rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; min-width: 50%; }
caption { text-align: left; font-weight: 600; padding: .25rem 0 .5rem; white-space: normal; }
th, td { padding: .35rem .75rem .35rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #d8dee4; }
thead th { border-bottom: 2px solid #57606a; white-space: nowrap; }
td, th { white-space: nowrap; overflow-wrap: break-word; }
.text { text-align: left; white-space: normal; overflow-wrap: anywhere; unicode-bidi: plaintext; }
td.text { min-width: 5.8rem; max-width: 24rem; }
.whole { white-space: nowrap; }
thead .text { overflow-wrap: normal; }
th.text { max-width: 20rem; }
tbody th.text { min-width: 7rem; }
tbody .prose { min-width: 8rem; }
.widest { font-size: .8rem; }
.widest td, .widest th { white-space: normal; padding-right: .4rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem 2rem; }
figure { margin: 0 0 1rem; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #424a53; }
summary { cursor: pointer; font-weight: 600; }
pre { background: #f6f8fa; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
@media (max-width: 30rem) { th, td { padding-right: .5rem; } thead th { white-space: normal; }
  table { font-size: .82rem; } caption { max-width: 85vw; }
  dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
{% macro listed(name) %}
  {{ name }}, {{ name }} caption, {{ name }} tbody, {{ name }} tr, {{ name }} tbody th, {{ name }} td { display: block;
    width: auto; min-width: 0; max-width: none; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  {{ name }} thead { position: absolute; left: -9999px; }
  {{ name }} tr { border-bottom: 2px solid #d8dee4; padding: .4rem 0; }
  {{ name }} tbody th, {{ name }} td { border: 0; padding: .1rem 0; }
  {{ name }} td { display: grid; grid-template-columns: 8rem 1fr; gap: .75rem; }
  {{ name }} td::before { content: attr(data-label); color: #424a53; }
{% endmacro %}
/* A table that is wider than the screen is a list of its rows, and keeps its roles. */
@media screen and (max-width: 48rem) {
{{ listed(".wide") }}
}
@media screen and (max-width: 62rem) {
{{ listed(".widest") }}
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav, .skip { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; min-width: 0; }
  th, td { white-space: normal; }
  td.text, th.text, tbody .prose { min-width: 0; }
  h2, caption { break-after: avoid; }
  figure, tr, .lead { break-inside: avoid; }
  thead { display: table-header-group; }
  pre { white-space: pre-wrap; }
}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>{{ title }}</h1>
<nav aria-label="Sections"><ul>
{% for section in sections %}
<li><a href="#section-{{ loop.index }}">{{ section.title }}</a></li>
{% endfor %}
</ul></nav>
</header>
<main id="main">
{% if lead %}
<ul class="lead" aria-label="In short">
{% for sentence in lead %}
<li>{{ sentence }}</li>
{% endfor %}
</ul>
{% endif %}
{% for section in sections %}
{% set number = loop.index %}
<section aria-labelledby="section-{{ number }}">
<h2 id="section-{{ number }}">{{ section.title }}</h2>
{% if section.facts %}
<dl>
{% for name, fact in section.facts.items() %}
<dt>{{ name }}</dt><dd>{{ fact }}</dd>
{% endfor %}
</dl>
{% endif %}
{% for sentence in section.says %}
<p>{{ sentence }}</p>
{% endfor %}
{% for table in section.tables %}
<div class="scroll" role="region" tabindex="0" aria-labelledby="table-{{ number }}-{{ loop.index }}">
<table{% if table.columns | length > most %} class="wide{{ ' widest' if table.columns | length > more }}" role="table"
{%- endif %}>
<caption id="table-{{ number }}-{{ loop.index }}">{{ table.caption }}</caption>
{% set wide = table.columns | length > most %}
<thead{% if wide %} role="rowgroup"{% endif %}><tr{% if wide %} role="row"{% endif %}>
{% for column in table.columns %}
<th scope="col"{{ ' role="columnheader"' | safe if wide }}{{ ' class="text"' | safe if loop.index0 in table.texts }}>
{{- column }}</th>
{% endfor %}
</tr></thead>
<tbody{% if wide %} role="rowgroup"{% endif %}>
{% for row in table.rows %}
<tr{% if wide %} role="row"{% endif %}>
{% for cell in row %}
{% if loop.first %}
<th scope="row"{% if wide %} role="rowheader"{% endif %} class="text{{ ' prose' if 0 in table.prose }}">{{ cell }}</th>
{% else %}
<td{% if wide %} role="cell" data-label="{{ table.columns[loop.index0] }}"{% endif %}
{{- (' class="text prose"' if loop.index0 in table.prose else ' class="text"') | safe if loop.index0 in table.texts }}>
{%- if loop.index0 in table.texts and cell | length <= whole and " " not in cell %}
<span class="whole">{{ cell }}</span></td>
{% else %}
{{- cell | replace(" ± ", " ±\u00a0") if table.columns | length > more else cell }}</td>
{% endif %}
{% endif %}
{% endfor %}
</tr>
{% endfor %}
</tbody>
</table>
</div>
{% endfor %}
{% if section.pictures %}
<div class="pictures">
{% for picture in section.pictures %}
<figure>
<img src="{{ picture.source }}" alt="{{ picture.text }}">
<figcaption>{{ picture.caption }}</figcaption>
</figure>
{% endfor %}
</div>
{% endif %}
{% for name, text in section.code.items() %}
<details><summary>{{ name }}</summary>
<pre>{{ text }}</pre>
</details>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
