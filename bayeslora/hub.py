"""Posteriors on the hub: what is fetched, what is pushed, and the card that goes with it.

Nothing is fetched without `download=True`, and nothing is pushed but by `push_to_hub`. What comes from there is read as
any stranger's folder is.
"""

import html
import logging
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bayeslora.paths import HUB_NAME
from bayeslora.record import MANIFEST

logger = logging.getLogger(__name__)

FILES = [f"*{MANIFEST}", "*posterior-*.safetensors", "*tokenizer-*/*"]
"""Patterns of the files that make up a posterior: nothing else is fetched."""

TAGS = {
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForTokenClassification": "token-classification",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForCausalLM": "text-generation",
}
"""The hub's names of what models are for, by the class that loads them."""


class Measured(NamedTuple):
    """A metric.

    Args:
        value: Its value.
        low: Lower end of its 95 % interval over examples; NaN where there is none.
        high: The upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan


def located(name: str | os.PathLike[str], download: bool, revision: str | None = None) -> Path:
    """Return the folder of a posterior: that of the name, or its copy in the hub's cache.

    Args:
        name: A folder, or a name on the hub.
        download: Whether it may be fetched from there.
        revision: A branch, tag or commit there; None for the newest.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path, text = Path(name), os.fspath(name)
    if os.path.exists(path) or os.path.lexists(path / MANIFEST) or "/" not in text or not HUB_NAME.fullmatch(text):
        return path
    import huggingface_hub

    if download:
        return Path(huggingface_hub.snapshot_download(text, revision=revision, allow_patterns=FILES))
    cached = huggingface_hub.try_to_load_from_cache(text, MANIFEST, revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent
    raise FileNotFoundError(
        f"{text} holds no posterior: there is no such folder, and no copy of one by that name on the hub. Nothing is "
        "fetched unasked: load(…, download=True)."
    )


def push(folder: Path, repo_id: str, private: bool | None, revision: str | None, message: str) -> str:
    """Upload a folder to the hub as a model, and return its address.

    Args:
        folder: The folder, all of which is uploaded; a posterior that was there before is removed.
        repo_id: The name on the hub, `user/name`.
        private: Whether a new repository is private; None for the hub's default.
        revision: The branch; None for the main one.
        message: Of the commit.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi(library_name="bayeslora")
    address = api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        repo_type="model",
        revision=revision,
        commit_message=message,
        delete_patterns=FILES,
    )
    return str(address)


def card(
    record: Mapping[str, Any],
    facts: Mapping[str, str],
    auto_class: str,
    name: str = "user/name",
    metrics: Mapping[str, Measured] | None = None,
    intended_use: str | None = None,
    figure: str | None = None,
) -> str:
    """Return the card of a posterior in Markdown, whatever is in the texts that it is made of.

    Args:
        record: The posterior's record.
        facts: What it shows of itself.
        auto_class: The class of `transformers` that loads its base.
        name: Its name on the hub.
        metrics: Its metrics.
        intended_use: What it is meant for, in the author's words.
        figure: A reliability diagram in the same folder.
    """
    from huggingface_hub import ModelCardData

    base = record["base"]["name"]
    is_public = isinstance(base, str) and HUB_NAME.fullmatch(base) is not None and not Path(base).exists()
    tag = TAGS.get(auto_class)
    data = ModelCardData(
        library_name="bayeslora",
        pipeline_tag=tag,
        tags=["bayeslora", "uncertainty"],
        base_model=base if is_public else None,
    )
    method = record["method"]
    if not is_public and "network" in facts:  # a path on the author's machine is nobody else's business
        facts = {**facts, "network": facts["network"].partition(" from ")[0]}
    fields = [f"| `{_code(n)}` | `{_code(v)}` |" for n, v in method["fields"].items()]
    shown = [f"| {_text(n)} | {_text(v)} |" for n, v in facts.items()]
    model = "" if is_public else ", model=base"
    lines = [
        *("---", data.to_yaml().strip(), "---", "", f"# {_text(name)}", ""),
        f"A posterior over the adapters of {_text(base) if is_public else 'a base model'}, fitted by",
        f"[bayeslora](https://bayeslora.readthedocs.io) with the method `{_code(method['name'])}`. A prediction",
        "averages draws of the weights, and says how uncertain it is, and how much of that more data could remove.",
        *("", "## How to load it", "", "```python", "import bayeslora", ""),
        f'posterior = bayeslora.load("{_code(name)}"{model}, download=True)',
        'answers = bayeslora.pipeline(posterior)("…")' if tag == "text-classification" else "posterior.predict(…)",
        *("```", "", "The files are data: loading them runs no code.", ""),
        *("## What it is", "", "| | |", "| --- | --- |", *shown, ""),
        *("The method's fields:", "", "| field | value |", "| --- | --- |", *fields, ""),
        *_measured(metrics or {}),
        *([f"![Reliability diagram]({figure})", ""] if figure else []),
        *("## Intended use", "", _text(intended_use) if intended_use else "The author has not said.", ""),
        "Probabilities are as good as the labelled data are like yours: `posterior.calibrate` and `posterior.decide`,",
        "on rows of your own, say how good, and set thresholds that hold there.",
    ]
    return "\n".join([*lines, ""])


def _measured(metrics: Mapping[str, Measured]) -> list[str]:
    if not metrics:
        return []
    rows = []
    for name, (value, low, high) in metrics.items():
        interval = "" if math.isnan(low) else f"{low:.4f} to {high:.4f}"
        rows.append(f"| {_text(name)} | {value:.4f} | {interval} |")
    return ["## Metrics", "", "| metric | value | 95 % interval over examples |", "| --- | --- | --- |", *rows, ""]


def _text(value: object) -> str:
    """A text on one line in which Markdown and HTML mean nothing."""
    plain = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", plain)


def _code(value: object) -> str:
    """A text between backticks, or in a text of Python's, on one line."""
    return re.sub(r"[`|\"\\<>]", "?", " ".join(str(value).split()))
