"""Exported draws, served: one base with K adapters of PEFT, in this process or behind an HTTP server such as vLLM's.

Nothing here needs a posterior: only what `Posterior.export_peft(folder, num_draws=K)` wrote.
"""

import http.client
import json
import math
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayeslora.contracts import Scale, checked
from bayeslora.types import Folder

MANIFEST = "draws.json"
"""Says which folders hold the draws, and what their logits are divided by."""

CLASSES = ("classification", "token_classification", "multiple_choice")
"""Likelihoods whose logits have one class each."""

LABELS = ("multilabel",)
"""Likelihoods whose logits are of labels that are there or not, each by itself."""

MOST_BYTES = 2**20
"""Of the manifest."""

BUSY = (429, 503)
"""What a server answers that has too much to do, and should be asked again."""

FIRST_WAIT = 0.5
"""Seconds until it is, doubled each time, where it does not say how many."""


def draws_in(folder: Path) -> tuple[list[Path], float]:
    """Return the folders of exported draws, in order, and the temperature that divides their logits.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If the manifest names other things than folders of draws that are there.
    """
    record = _manifest(folder)
    if record is not None:
        try:
            names, temperature = [str(name) for name in record["draws"]], float(record["temperature"])
            if not 0 < temperature < math.inf or len({*names}) < len(names):
                raise ValueError("a draw stands twice, or the temperature is not a positive number")
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{folder / MANIFEST} is damaged ({error}): export the draws again.") from None
        if bad := [name for name in names if not re.fullmatch(r"draw-\d{1,9}", name) or not _is_folder(folder / name)]:
            raise ValueError(f"{folder / MANIFEST} names {bad[0]!r:.100}, which is not a draw: export again.")
    else:
        found = [path.name for path in folder.glob("draw-*") if re.fullmatch(r"draw-\d{1,9}", path.name)]
        names, temperature = sorted(found, key=lambda name: int(name[5:])), 1.0
    if not names:
        raise FileNotFoundError(f"{folder} has no draws: write some, posterior.export_peft(folder, num_draws=8).")
    return [folder / name for name in names], temperature


def _manifest(folder: Path) -> Any:
    """Return what the manifest says; None if there is none."""
    from bayeslora.record import read_json

    if not os.path.lexists(folder / MANIFEST):
        return None
    try:
        return read_json(folder / MANIFEST, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged ({error}): export the draws again.") from None


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


@dataclass(frozen=True)
class Served:
    """Probabilities from K draws, in numpy.

    Args:
        draws: Of each draw, `[draw, row, class]`.
        several: Whether each is that of a label by itself, so that they do not sum to 1.
    """

    draws: np.ndarray
    several: bool = False

    @property
    def probs(self) -> np.ndarray:
        """The average, `[row, class]`."""
        return self.draws.mean(0)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the average in nats, `[row]`."""
        return self._entropy(self.probs)

    @property
    def aleatoric(self) -> np.ndarray:
        """Average entropy of the draws in nats, `[row]`."""
        return self._entropy(self.draws).mean(0)

    @property
    def epistemic(self) -> np.ndarray:
        """What the draws differ by, entropy − aleatoric, in nats, `[row]`."""
        return np.maximum(self.entropy - self.aleatoric, 0)

    def _entropy(self, probs: np.ndarray) -> np.ndarray:
        return _entropy(probs) + (_entropy(1 - probs) if self.several else 0)


def _entropy(probs: np.ndarray) -> np.ndarray:
    return -(probs * np.log(np.maximum(probs, np.finfo(np.float64).tiny))).sum(-1)


class AdapterEnsemble(nn.Module):
    """One base with the adapters of all draws, which averages their probabilities; it needs torch and peft alone.

    Args:
        model: PEFT's model, with an adapter for each draw.
        names: The names of the adapters.
        temperature: Divides every logit.
        likelihood: The kind of label, which says how logits become probabilities.
    """

    def __init__(
        self, model: nn.Module, names: Sequence[str], temperature: float = 1.0, likelihood: str = "classification"
    ):
        super().__init__()
        self.likelihood = likelihood
        self.model = model
        self.names = list(names)
        self.temperature = temperature

    @classmethod
    @checked()
    def from_folder(cls, base: nn.Module, folder: Folder) -> "AdapterEnsemble":
        """Load the draws that `Posterior.export_peft(folder, num_draws=K)` wrote onto their base.

        Args:
            base: The base model, with as many outputs as the fit; PEFT puts its layers into it.
            folder: Where the draws were written. A stranger's is safe to load: see `fit(…, init=folder)`.

        Raises:
            FileNotFoundError: If there are no draws in the folder.
            ValueError: If they are damaged, or for another base.
        """
        from bayeslora.interop import put_by_peft

        paths, temperature = draws_in(Path(folder))
        likelihood = str((_manifest(Path(folder)) or {}).get("likelihood", "classification"))
        model = put_by_peft(base, paths)
        return cls(model.eval(), [path.name for path in paths], temperature, likelihood)

    @torch.inference_mode()
    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the logits of every draw, `[draw, batch, …]`, in one pass each, divided by the temperature."""
        found = []
        for name in self.names:
            self.model.set_adapter(name)  # type: ignore[operator]
            found.append(self.model(**inputs).logits / self.temperature)
        return torch.stack(found)

    def predict(self, **inputs: Tensor) -> Served:
        """Return probabilities of classes: those of `Posterior.predict(…, num_draws=K)` with the seed of the export.

        Of several labels a row they are those of each label, and uncertainties are sums over labels; of tokens and
        choices they are those of each, padding included.

        Raises:
            ValueError: If the likelihood has others: call the ensemble for logits.
        """
        if self.likelihood not in (*CLASSES, *LABELS):
            raise ValueError(
                f"The draws are of {self.likelihood!r:.40}, whose predictions are not a softmax of all logits: call "
                "the ensemble itself for logits, [draw, batch, …], or load the posterior."
            )
        logits, several = self(**inputs).double(), self.likelihood in LABELS
        return Served((logits.sigmoid() if several else logits.softmax(-1)).cpu().numpy(), several)


class CompletionsClient:
    """Scores answers under the draws that a server has as adapters, through OpenAI's interface of completions.

    Each adapter is a model of its own there, which is how vLLM serves `--lora-modules draw-0=…/draw-0 draw-1=…`.

    Args:
        url: Where the interface is, such as `http://localhost:8000/v1`.
        adapters: Names of the adapters there.
        temperature: Divides the log-probabilities of answers before they are normalised.
        timeout: Seconds to wait for an answer. A server that is busy (429 or 503) is asked again, after as many seconds
            as its `Retry-After` says, if they are within these.
        key: The server's key, if it wants one.
    """

    @checked()
    def __init__(
        self,
        url: str,
        adapters: Sequence[str],
        *,
        temperature: Scale = 1.0,
        timeout: Scale = 60.0,
        key: str | None = None,
    ):
        if not adapters:
            raise ValueError("adapters is empty: name those that the server has, such as ['draw-0', 'draw-1'].")
        if len({*adapters}) < len(adapters):
            raise ValueError(f"adapters={[*adapters]} names a draw twice, which would count twice: name each once.")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"url={url!r}: give the whole address, such as http://localhost:8000/v1.")
        self.url = url.rstrip("/").removesuffix("/completions")
        self.adapters = list(adapters)
        self.temperature, self.timeout, self.key = temperature, timeout, key

    @checked()
    def log_probs(self, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        """Return ln p(answer | prompt) under each adapter, summed over tokens, in nats, `[draw, prompt, answer]`.

        Args:
            prompts: The prompts.
            answers: The answers, as they continue a prompt: with their leading space, if there is to be one.

        Raises:
            ValueError: If the server refuses a request, or its answer lacks log-probabilities.
            ConnectionError: If it does not answer in time.
        """
        if "" in answers:
            raise ValueError(f"answers[{[*answers].index('')}] is empty: an answer has one character at least.")
        return np.array([[[self._score(a, p, text) for text in answers] for p in prompts] for a in self.adapters])

    @checked()
    def predict(self, prompts: Sequence[str], answers: Sequence[str]) -> Served:
        """Return the probability of each answer among the answers, averaged over the adapters."""
        if not prompts or not answers:
            raise ValueError(f"{'answers' if prompts else 'prompts'} is empty: give at least one.")
        scores = self.log_probs(prompts, answers) / self.temperature
        scores = scores - scores.max(-1, keepdims=True)
        return Served(np.exp(scores) / np.exp(scores).sum(-1, keepdims=True))

    def _score(self, adapter: str, prompt: str, answer: str) -> float:
        # One token more is asked for, because servers write at least one; it begins where the text ends.
        text = prompt + answer
        body = {"model": adapter, "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
        said = self._post(body)
        if isinstance(said, dict) and "choices" not in said and (why := said.get("error") or said.get("message")):
            raise ValueError(f"{self.url} refused a request for {adapter!r}: {' '.join(str(why).split()):.200}")
        try:
            if not _echoes(said["choices"][0].get("text"), text):
                raise ValueError("the prompt is not repeated")
            total = _of_answer(_in_lists(said["choices"][0]["logprobs"]), prompt, answer)
        except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError):
            total = []
        if not total or not np.isfinite(total).all():
            raise ValueError(
                f"The server has no log-probabilities for {answer!r:.50}: it has to support echo and logprobs."
            )
        return sum(total)

    def _post(self, body: Mapping[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(f"{self.url}/completions", json.dumps(body).encode(), headers)
        wait, last = FIRST_WAIT, time.monotonic() + self.timeout
        while True:
            try:
                return self._answered(request, str(body["model"]))
            except _Busy as busy:
                asked = wait if busy.seconds is None else busy.seconds
                if time.monotonic() + asked > last:
                    raise ValueError(busy.said) from None
                time.sleep(asked)
                wait *= 2

    def _answered(self, request: urllib.request.Request, adapter: str) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())
            refused = f"{self.url} refused a request for {adapter!r}: {error.code} {said:.200}"
            if error.code in BUSY:
                raise _Busy(refused, error.headers.get("Retry-After")) from None
            raise ValueError(refused) from None
        except (ValueError, RecursionError) as error:  # bytes that are not a text, too
            raise ValueError(f"{self.url} answers with what is not JSON ({error}): is it the interface?") from None
        except (OSError, http.client.HTTPException) as error:  # a server that is not there, or that takes too long
            reason = getattr(error, "reason", None) or error
            raise ConnectionError(
                f"{self.url} does not answer a request for {adapter!r} within {self.timeout:g} s: {reason}."
            ) from error


class _Busy(Exception):
    """A server has too much to do.

    Args:
        said: What it said.
        after: After which time to ask again, as it says.
    """

    def __init__(self, said: str, after: str | None):
        super().__init__(said)
        self.said = said
        self.seconds = float(after) if after is not None and re.fullmatch(r"\d{1,9}", after.strip()) else None


def _echoes(said: Any, text: str) -> bool:
    """Whether a server repeats a text, if it says what it wrote; white space and signs may be written otherwise."""
    if not isinstance(said, str):
        return True
    plain, repeated = (re.sub(r"[^a-z0-9]", "", each.casefold()) for each in (text, said))
    return plain in repeated


def _in_lists(found: Any) -> Mapping[str, Any]:
    """Return log-probabilities in lists by token, where a server has a record for each, or those of its best alone."""
    content, best = found.get("content"), found.get("top_logprobs")
    if isinstance(content, list):
        return {"tokens": [each["token"] for each in content], "token_logprobs": [each["logprob"] for each in content]}
    if found.get("token_logprobs") is None and isinstance(best, list):
        values = [None if each is None else each.get(token) for token, each in zip(found["tokens"], best, strict=True)]
        return {**found, "token_logprobs": values}
    return found


def _of_answer(found: Mapping[str, Any], prompt: str, answer: str) -> list[float]:
    """Return the log-probabilities of the tokens of an answer; one token more stands behind it."""
    values, tokens = found["token_logprobs"], found.get("tokens")
    if not isinstance(tokens, list):
        starts, end = [int(place) for place in found["text_offset"]], len(prompt) + len(answer)
        places = zip(starts, [*starts[1:], end + 1], values, strict=True)
        return [float(value) for start, stop, value in places if stop > len(prompt) and start < end]
    # A server counts what begins a text, such as <s>, among its characters, and parts of one as several: the answer is
    # found by its own text, or by that of the prompt before it.
    tokens = [str(token) for token in tokens]
    tokens = tokens[:-1] if not "".join(tokens).endswith(answer) or "".join(tokens[:-1]).endswith(answer) else tokens
    text = "".join(tokens)
    first = len(text) - len(answer) if text.endswith(answer) else text.index(prompt) + len(prompt)
    ends = np.cumsum([len(token) for token in tokens])
    if len(values) < len(tokens):
        raise ValueError("a token has no log-probability")
    return [float(value) for end, value in zip(ends, values, strict=False) if end > first]
