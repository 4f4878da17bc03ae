"""A posterior as a model of the evaluation harness."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from bayeslora.drawing import draw
from bayeslora.harness import HarnessModel
from tests.tasks.cases import model
from tests.tasks.templates import byte_tokenizer
from tests.test_generation import MODELS, posterior


class Instance(NamedTuple):
    """What the harness asks."""

    args: tuple[Any, ...]


@pytest.fixture(scope="module")
def fitted() -> Any:
    MODELS["Wide"] = model("Llama", "ForCausalLM", vocab_size=300, eos_token_id=257, pad_token_id=257)
    try:
        return posterior("Wide", tokenizer=byte_tokenizer("<s>", "</s>"), noise_ratio=30.0)
    finally:
        del MODELS["Wide"]


def by_hand(fitted: Any, ids: list[int], first: int, num_draws: int = 3) -> tuple[float, bool]:
    """The log of the mean probability of the tokens from one on, and whether they are the mixture's most probable."""
    program = fitted.program
    factors = program.factors_at(draw(program, num_draws, seed=0))
    log_probs = []
    for index in range(num_draws):
        one = {name: type(value)(*(factor[index] for factor in value)) for name, value in factors.items()}
        with torch.no_grad():
            log_probs.append(
                program.network(one, {"input_ids": torch.tensor([ids])})[0, first - 1 : -1].log_softmax(-1)
            )
    program.network.unbind()
    each, tokens = torch.stack(log_probs), torch.tensor(ids[first:])
    total = each[:, range(len(tokens)), tokens].sum(-1).logsumexp(0) - np.log(num_draws)
    return float(total), bool((each.exp().mean(0).argmax(-1) == tokens).all())


def test_log_likelihoods_are_of_the_mean_probability(fitted: Any) -> None:
    harness = HarnessModel(fitted, num_draws=3, batch_size=2)
    pairs = [("ab", " cd"), ("ab ", "cd"), ("", "abc"), ("<s>a", "b"), ("x" * 60, "yz")]
    found = harness.loglikelihood([Instance(pair) for pair in pairs])
    tokenizer = fitted.tokenizer
    tokens = [tokenizer(a + b)["input_ids"] for a, b in pairs[:3]] + [tokenizer("ab")["input_ids"]]
    tokens.append(tokenizer("x" * 38 + "yz", add_special_tokens=False)["input_ids"])
    for (value, greedy), ids, first in zip(found, tokens, [3, 3, 1, 2, 38], strict=True):
        expected, most_probable = by_hand(fitted, ids, first)
        assert (value, greedy) == (pytest.approx(expected, abs=1e-9), most_probable)
    # The most probable next byte, and then the next, are greedy.
    ids = tokenizer("ab")["input_ids"]
    written = fitted.generate([ids], num_draws=3, average=True, max_new_tokens=1, suppress_tokens=[257])
    token = tokenizer.convert_ids_to_tokens(written.tokens[0, 0].tolist())[0]
    if token is not None and len(token) == 1 and token.isascii():
        assert harness.loglikelihood([Instance(("ab", token))])[0][1]


def test_a_long_text_is_read_in_windows_and_every_token_scored_once(fitted: Any) -> None:
    harness = HarnessModel(fitted, num_draws=3)
    assert harness.max_length == 40
    windows = [*harness._windows([0], list(range(1, 100)))]
    assert [token for ids, count in windows for token in ids[len(ids) - count :]] == list(range(1, 100))
    assert [len(ids) for ids, _ in windows] == [40, 40, 40]
    short, long = harness.loglikelihood_rolling([Instance(("hello",)), Instance(("hello " * 12,))])
    assert short == pytest.approx(by_hand(fitted, fitted.tokenizer("hello")["input_ids"], 1)[0], abs=1e-9)
    assert np.isfinite(long)
    assert long < short


def test_texts_end_where_the_task_says(fitted: Any) -> None:
    harness = HarnessModel(fitted, num_draws=2)
    (whole,) = harness.generate_until([Instance(("ab", {"max_gen_toks": 8}))])
    ids = fitted.tokenizer("ab")["input_ids"]
    assert whole == fitted.generate([ids], num_draws=2, average=True, max_new_tokens=8).texts[0][0]
    stop = whole[len(whole) // 2]
    found = harness.generate_until([Instance(("ab", {"max_gen_toks": 8, "until": [stop]}))])
    assert found == [whole.split(stop)[0]]


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({"max_new_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 5, "max_new_tokens": 3}, {"max_new_tokens": 3}),
        ({"max_length": 8}, {"max_new_tokens": 5}),
        ({"max_gen_toks": 5, "top_p": 0.9, "temperature": 0.0}, {"max_new_tokens": 5}),
        (
            {"max_gen_toks": 5, "repetition_penalty": 9.0, "do_sample": False},
            {"max_new_tokens": 5, "repetition_penalty": 9.0},
        ),
        ({"max_gen_toks": 5, "temperature": 0.7}, {"max_new_tokens": 5, "do_sample": True, "temperature": 0.7}),
        ({"max_gen_toks": 5, "do_sample": True}, {"max_new_tokens": 5, "do_sample": True}),
        ({"max_gen_toks": 5, "do_sample": True, "seed": 3}, {"max_new_tokens": 5, "do_sample": True, "seed": 3}),
        ({"max_gen_toks": 5, "stop": "never"}, {"max_new_tokens": 5}),
        ({}, {"max_new_tokens": 37}),  # all that the model has beside what is asked
    ],
)
def test_texts_are_written_as_the_task_says(fitted: Any, asked: dict[str, Any], settings: dict[str, Any]) -> None:
    (found,) = HarnessModel(fitted, num_draws=2).generate_until([Instance(("ab", asked))])
    ids = fitted.tokenizer("ab")["input_ids"]
    assert found == fitted.generate([ids], num_draws=2, average=True, **settings).texts[0][0]


def test_as_many_tokens_as_a_task_asks_for_are_written(fitted: Any) -> None:
    harness = HarnessModel(fitted, num_draws=1)
    assert harness.generate_until([Instance(("ab", {"max_gen_toks": 0}))]) == [""]
    with pytest.raises(ValueError, match=r"asks for 60 tokens, and the model reads 40 .*max_gen_toks"):
        harness.generate_until([Instance(("ab", {"max_gen_toks": 60}))])


def test_the_centre_is_asked_without_draws(fitted: Any) -> None:
    ((value, _),) = HarnessModel(fitted, num_draws=0).loglikelihood([Instance(("ab", "c"))])
    merged = fitted.merge()
    with torch.no_grad():
        ids = torch.tensor([fitted.tokenizer("abc")["input_ids"]])
        log_probs = merged(ids).logits[0].log_softmax(-1)
    assert value == pytest.approx(float(log_probs[-2, ids[0, -1]]), abs=1e-6)


def test_what_cannot_be_asked_is_said() -> None:
    with pytest.raises(ValueError, match="without a tokenizer cannot be asked"):
        HarnessModel(posterior("Llama"))
    with pytest.raises(TypeError, match=r"has no argument .draws.; its arguments are: .*num_draws"):
        HarnessModel(posterior("Llama"), draws=2)


def test_the_harness_runs_a_local_task(fitted: Any, tmp_path: Path) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    rows = [{"question": f"{a}+1=", "choices": [str(a + 1), str(a)], "answer": 0} for a in range(1, 7)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sums.yaml").write_text(
        f"task: sums\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path / 'sums.jsonl'}\n"
        "output_type: multiple_choice\ntest_split: train\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    harness = HarnessModel(fitted, num_draws=3)
    tasks = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=harness, tasks=["sums"], task_manager=tasks, bootstrap_iters=0)
    right = []
    for row in rows:
        pairs = [Instance((row["question"], f" {choice}")) for choice in row["choices"]]
        right.append(np.argmax([value for value, _ in harness.loglikelihood(pairs)]) == row["answer"])
    assert results["results"]["sums"]["acc,none"] == pytest.approx(np.mean(right))
