"""Exported draws, served by PEFT and over HTTP."""

import json
import math
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import bayeslora
from bayeslora.serving import AdapterEnsemble, CompletionsClient, Served, draws_in
from tests.helpers import tiny_bert, tokens


@pytest.fixture(scope="module")
def posterior() -> bayeslora.Posterior:
    fitted = bayeslora.fit(tiny_bert(), tokens(24), "blob", rank=2, epochs=0, progress=False)
    with torch.no_grad():
        for _, parameter in fitted.program.trainable():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    fitted.temperature = 1.7
    return fitted


def test_adapters_averaged_equal_predict(posterior: bayeslora.Posterior, tmp_path: Path) -> None:
    posterior.export_peft(tmp_path, num_draws=3, seed=4)
    served = AdapterEnsemble.from_folder(tiny_bert(), tmp_path)
    inputs = tokens(8, seed=1)[0]
    expected, found = posterior.predict(inputs, 3, seed=4), served.predict(**inputs)
    np.testing.assert_allclose(found.draws, expected.draws, atol=1e-5)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)
    for name in ("entropy", "aleatoric", "epistemic"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5)
    assert expected.epistemic.max() > 1e-4  # the draws differ


@pytest.mark.parametrize(("kind", "outputs"), [("multilabel", 3), ("regression", 1)])
def test_other_labels_are_served_as_they_are_predicted_or_refused(kind: str, outputs: int, tmp_path: Path) -> None:
    inputs = tokens(8, seed=1)[0]
    labels = torch.arange(24).view(8, 3) % 2.0 if kind == "multilabel" else torch.arange(8.0)
    fitted = bayeslora.fit(
        tiny_bert(outputs), (inputs, labels), "lora", rank=2, epochs=1, progress=False, likelihood=kind
    )
    fitted.export_peft(tmp_path, num_draws=1)
    served = AdapterEnsemble.from_folder(tiny_bert(outputs), tmp_path)
    if kind == "regression":
        with pytest.raises(ValueError, match=r"draws are of 'regression', .*call the ensemble itself"):
            served.predict(**inputs)
        return
    expected, found = fitted.predict(inputs, 1), served.predict(**inputs)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-5)
    np.testing.assert_allclose(found.entropy, np.asarray(expected.entropy).reshape(8, -1).sum(-1), atol=1e-5)


def test_folders_of_draws_are_read_in_order(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no draws: write some.*num_draws=8"):
        draws_in(tmp_path)
    for number in (0, 2, 10):
        (tmp_path / f"draw-{number}").mkdir()
    paths, temperature = draws_in(tmp_path)
    assert [path.name for path in paths] == ["draw-0", "draw-2", "draw-10"]
    assert temperature == 1.0
    for content, message in (("{", "is damaged"), ('{"draws": ["../x"], "temperature": 1}', "names '../x'")):
        (tmp_path / "draws.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            draws_in(tmp_path)


def log_prob(adapter: str, text: str, place: int) -> float:
    """What the stand-in thinks of a character, given those before it."""
    number = int(adapter.split("-")[1]) + 1
    return -((ord(text[place]) * number + place) % 7) / 3


SAID = {
    "words": b"<html>",
    "nothing": b"{}",
    "no choices": b'{"choices": []}',
    "no logprobs": b'{"choices": [{"logprobs": null}]}',
    "others": b'{"choices": [{"logprobs": {"text_offset": [0], "token_logprobs": [null, -1]}}]}',
    "bytes": b"\xff\xfe",
    "endless": b'{"choices": [{"logprobs": {"text_offset": [0, Infinity], "token_logprobs": [null, -1]}}]}',
    "other tokens": b'{"choices": [{"logprobs": {"tokens": ["token_id:1", "!"], "token_logprobs": [null, -1]}}]}',
    "not repeated": b'{"choices": [{"text": "b", "logprobs": {"tokens": ["b"], "token_logprobs": [-1]}}]}',
    "nan": b'{"choices": [{"logprobs": {"text_offset": [0, 1], "token_logprobs": [null, NaN]}}]}',
}
"""What servers may say instead."""


class Server(BaseHTTPRequestHandler):
    """A stand-in for vLLM's interface of completions: its tokens are two characters long, and it writes one more."""

    bodies: list[dict[str, Any]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append({**body, "path": self.path, "key": self.headers.get("Authorization")})
        if "busy" in body["model"] and len(self.bodies) < 3:
            self.send_response(503 if self.bodies[1:] else 429)
            self.send_header("Retry-After", "0" if "short" in body["model"] else "3600")
            self.end_headers()
            return
        if body["model"] in SAID:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SAID[body["model"]])
            return
        if not body["model"].startswith("draw-"):
            self.send_response(404)
            self.end_headers()
            self.wfile.write(b'{"error": "no such model"}')
            return
        text = body["prompt"]
        offsets = list(range(0, len(text), 2))
        values: list[float | None] = [
            None
            if start == 0
            else sum(log_prob(body["model"], text, p) for p in range(start, min(start + 2, len(text))))
            for start in offsets
        ]
        found = {"text_offset": [*offsets, len(text)], "token_logprobs": [*values, -0.5]}
        if body["model"].endswith("-begun"):  # as vLLM does for tokenizers that begin a text
            tokens = ["<s>", *(text[start : start + 2] for start in offsets), "!"]
            if "😀" in text:  # whose bytes are three tokens, none of which is a text
                at = offsets.index(text.index("😀"))
                tokens[at + 1 : at + 2] = ["\ufffd", "\ufffd", "\ufffd"]
                values[at : at + 1] = [values[at], 0.0, 0.0]
            offsets = [0, *np.cumsum([len(token) for token in tokens[:-1]]).tolist()]
            values = [None, sum(log_prob(body["model"], text, place) for place in range(2)), *values[1:]]
            found = {"tokens": tokens, "text_offset": offsets, "token_logprobs": [*values, -0.5]}
            if "records" in body["model"]:
                each = zip(tokens, [*values, -0.5], strict=True)
                found = {"content": [{"token": token, "logprob": value} for token, value in each]}
            if "best" in body["model"]:
                each = zip(tokens, [*values, -0.5], strict=True)
                found = {
                    "tokens": tokens,
                    "top_logprobs": [None if v is None else {t: v, "other": -9.0} for t, v in each],
                }
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"text": text + "!", "logprobs": found}]}).encode())

    def log_message(self, *parts: Any) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    Server.bodies.clear()
    yield f"http://127.0.0.1:{server.server_port}/v1/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_client_averages_over_adapters(url: str) -> None:
    prompts, answers = ["What is it? ", "Is it so? "], [" yes", " no!", "maybe"]
    client = CompletionsClient(url, ["draw-0", "draw-1"], key="secret")
    found = client.log_probs(prompts, answers)
    assert found.shape == (2, 2, 3)
    for d, adapter in enumerate(client.adapters):
        for p, prompt in enumerate(prompts):
            for a, answer in enumerate(answers):
                text = prompt + answer
                expected = sum(log_prob(adapter, text, place) for place in range(len(prompt), len(text)))
                assert found[d, p, a] == pytest.approx(expected)
    served = client.predict(prompts, answers)
    by_hand = np.exp(found) / np.exp(found).sum(-1, keepdims=True)
    np.testing.assert_allclose(served.probs, by_hand.mean(0))
    assert {body["path"] for body in Server.bodies} == {"/v1/completions"}
    assert {body["key"] for body in Server.bodies} == {"Bearer secret"}
    with pytest.raises(ValueError, match=r"refused a request for 'nobody': 404 .*no such model"):
        CompletionsClient(url, ["nobody"]).predict(prompts, answers)


@pytest.mark.parametrize(
    ("prompt", "answer"), [("What is it? ", "yes."), ("", "no"), ("Say: ", " 😀 "), ("😀 so it is. ", "why")]
)
@pytest.mark.parametrize("form", ["", "-records", "-best"])
def test_what_begins_a_text_moves_no_answer(url: str, prompt: str, answer: str, form: str) -> None:
    (((found,),),) = CompletionsClient(url, [f"draw-1{form}-begun"]).log_probs([prompt], [answer])
    text = prompt + answer
    first = 2 * (len(prompt) // 2)  # a token that is partly in the answer belongs to it
    assert found == pytest.approx(sum(log_prob("draw-1", text, place) for place in range(first, len(text))))


@pytest.mark.parametrize("adapter", SAID)
def test_an_answer_without_log_probabilities_is_said(url: str, adapter: str) -> None:
    words = (
        r"is not JSON .*is it the interface\?"
        if adapter in ("words", "bytes")
        else r"no log-probabilities for 'b': .*echo"
    )
    with pytest.raises(ValueError, match=words):
        CompletionsClient(url, [adapter]).predict(["a"], ["b"])


def test_an_error_that_is_not_one_of_http_is_passed_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAID, "out", b'{"object": "error", "message": "out of\\nmemory"}')
    with pytest.raises(ValueError, match=r"/v1 refused a request for 'out': out of memory"):
        CompletionsClient(url + "completions", ["out"]).predict(["a"], ["b"])


def test_a_server_that_is_busy_is_asked_again(url: str) -> None:
    found = CompletionsClient(url, ["draw-0-short-busy"]).log_probs(["a "], ["b"])
    assert len(Server.bodies) == 3
    np.testing.assert_allclose(found, [[[log_prob("draw-0", "a b", 2)]]])
    Server.bodies.clear()
    with pytest.raises(ValueError, match="refused a request for 'draw-0-busy': 429"):
        CompletionsClient(url, ["draw-0-busy"]).log_probs(["a "], ["b"])


def test_a_server_that_does_not_answer_is_said() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        there = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=r"does not answer a request for 'draw-0' within 1 s: .*refused"):
            CompletionsClient(there, ["draw-0"], timeout=1).predict(["a"], ["b"])
        silent.listen()
        with pytest.raises(ConnectionError, match=r"within 0\.05 s: timed out"):
            CompletionsClient(there, ["draw-0"], timeout=0.05).predict(["a"], ["b"])
    with pytest.raises(ValueError, match=r"url='localhost:8000': give the whole address"):
        CompletionsClient("localhost:8000", ["draw-0"])
    with pytest.raises(ValueError, match=r"adapters=\['a', 'a'\] names a draw twice"):
        CompletionsClient(there, ["a", "a"])
    with pytest.raises(ValueError, match=r"answers\[1\] is empty"):
        CompletionsClient(there, ["draw-0"]).predict(["a"], ["b", ""])
    for prompts, answers, name in (([], ["a"], "prompts"), (["a"], [], "answers")):
        with pytest.raises(ValueError, match=f"{name} is empty: give at least one"):
            CompletionsClient(there, ["draw-0"]).predict(prompts, answers)


def test_uncertainty_of_what_was_served() -> None:
    apart = Served(np.array([[[1.0, 0.0]], [[0.0, 1.0]]]))
    assert apart.entropy[0] == pytest.approx(math.log(2))
    assert apart.aleatoric[0] == pytest.approx(0.0)
    assert apart.epistemic[0] == pytest.approx(math.log(2))


@pytest.fixture(params=["centre", pytest.param("student", marks=pytest.mark.slow)])
def merged(request: pytest.FixtureRequest, posterior: bayeslora.Posterior) -> tuple[nn.Module, np.ndarray]:
    """A posterior at its centre, or what it was distilled to at its mean, and its logits' probabilities."""
    chosen = posterior if request.param == "centre" else posterior.distil(tokens(16, seed=2)[0], epochs=1)
    chosen = chosen._at_temperature(1.0)
    return chosen.merge().eval(), chosen.predict(tokens(4)[0], center=True).probs


def test_a_merged_centre_is_exported_as_a_program(merged: tuple[nn.Module, np.ndarray]) -> None:
    inputs = tokens(4)[0]
    program = torch.export.export(merged[0], (), dict(inputs)).module()
    with torch.no_grad():
        probs = program(**inputs).logits.softmax(-1)
    np.testing.assert_allclose(probs.numpy(), merged[1], atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_a_merged_centre_is_exported_to_onnx(merged: tuple[nn.Module, np.ndarray]) -> None:
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference")
    inputs = tokens(4)[0]
    exported = torch.onnx.export(merged[0], (), kwargs=dict(inputs), dynamo=True, verbose=False)
    assert exported is not None
    given = {name: value.numpy() for name, value in inputs.items()}
    (logits, *_) = evaluator.ReferenceEvaluator(exported.model_proto).run(None, given)
    np.testing.assert_allclose(torch.as_tensor(logits).softmax(-1).numpy(), merged[1], atol=1e-5)
