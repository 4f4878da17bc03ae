"""What the `transformers` Trainer's users are used to: metrics, collators, the best model, lines of the log."""

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    EvalPrediction,
    TrainerCallback,
    TrainingArguments,
)

import bayeslora
from bayeslora.contracts import ArgumentError
from bayeslora.posterior import Posterior
from tests.helpers import tiny_bert, tokens
from tests.tasks.cases import CASES, model
from tests.test_data import tiny_tokenizer as words

TRAIN, HELD_OUT = tokens(24), tokens(20, seed=1)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    plain = {"num_train_epochs": 2, "report_to": [], "disable_tqdm": True, "use_cpu": True, "learning_rate": 1e-2}
    evaluated = {"eval_strategy": "epoch", "save_strategy": "no", "per_device_train_batch_size": 8}
    return TrainingArguments(str(folder), dataloader_pin_memory=False, **plain | evaluated | settings)


def fit(model: Any = None, data: Any = TRAIN, **settings: Any) -> Posterior:
    settings = {"rank": 2, "validation": HELD_OUT} | settings
    return bayeslora.fit(tiny_bert() if model is None else model, data, "blob", **settings)


class Seen(TrainerCallback):
    """What the Trainer says at each evaluation, and the learned state there."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.states: list[dict[str, Tensor]] = []

    def on_evaluate(self, *positional: Any, metrics: Any = None, model: Any = None, **others: Any) -> None:
        self.metrics.append(dict(metrics))
        self.states.append({name: value.detach().clone() for name, value in model.trainable()})


def same(posterior: Posterior, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in posterior.program.trainable())


# Metrics


def test_metrics_are_of_the_centres_logits_and_the_labels(tmp_path: Path) -> None:
    given: list[EvalPrediction] = []

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        given.append(prediction)
        return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

    seen = Seen()
    posterior = fit(args=arguments(tmp_path), compute_metrics=compute, callbacks=[seen])
    assert len(given) == len(seen.metrics) == 2
    logits = np.log(posterior.predict(HELD_OUT, center=True).probs)
    np.testing.assert_allclose(torch.as_tensor(given[-1].predictions).log_softmax(-1), logits, atol=1e-5)
    np.testing.assert_array_equal(given[-1].label_ids, HELD_OUT[1])
    scores = posterior.evaluate(HELD_OUT, 2)
    assert seen.metrics[-1]["eval_right"] == pytest.approx(scores["center_accuracy"])
    ours = {f"eval_{name.removeprefix('center_')}": v for name, v in scores.items() if name.startswith("center_")}
    assert {name: seen.metrics[-1][name] for name in ours} == pytest.approx(ours, nan_ok=True, abs=1e-5)


def test_metrics_of_numbers_get_a_column_as_the_trainers_do(tmp_path: Path) -> None:
    shapes = []

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        shapes.append((prediction.predictions.shape, prediction.label_ids.shape))
        return {}

    data = [(inputs, labels.double()) for inputs, labels in (TRAIN, HELD_OUT)]
    fit(tiny_bert(1), data[0], validation=data[1], args=arguments(tmp_path), compute_metrics=compute)
    assert shapes[0] == ((20, 1), (20,))


def test_metrics_get_rows_in_the_order_of_the_data(tmp_path: Path) -> None:
    # A metric may hold a column of its own, such as each row's group.
    rows = [{"input_ids": [5] * length, "labels": length % 3} for length in (7, 2, 9, 4, 3, 8, 5, 6)]
    given: list[EvalPrediction] = []
    seen = Seen()
    settings: dict[str, Any] = {"compute_metrics": lambda all_rows: given.append(all_rows) or {}, "callbacks": [seen]}
    args = arguments(tmp_path, include_for_metrics=["inputs"], per_device_eval_batch_size=3)
    posterior = fit(data=rows, validation=rows, tokenizer=words(), args=args, **settings)
    assert given[-1].label_ids.tolist() == [row["labels"] for row in rows]
    assert [(ids > 0).sum() for ids in given[-1].inputs] == [len(row["input_ids"]) for row in rows]
    logits = np.log(posterior.predict(rows, center=True).probs)
    np.testing.assert_allclose(torch.as_tensor(given[-1].predictions).log_softmax(-1), logits, atol=1e-5)
    assert seen.metrics[-1]["eval_nll"] == pytest.approx(posterior.evaluate(rows, 2)["center_nll"], abs=1e-6)


def test_metrics_may_be_collected_batch_by_batch(tmp_path: Path) -> None:
    right: list[bool] = []

    def compute(prediction: EvalPrediction, compute_result: bool) -> dict[str, float]:
        right.extend((prediction.predictions.argmax(-1) == prediction.label_ids).tolist())
        return {"own": sum(right) / len(right), "rows": len(right)} if compute_result else {}

    seen = Seen()
    args = arguments(tmp_path, batch_eval_metrics=True, per_device_eval_batch_size=6, num_train_epochs=1)
    fit(args=args, compute_metrics=compute, callbacks=[seen])
    assert seen.metrics[-1]["eval_rows"] == 20
    assert seen.metrics[-1]["eval_own"] == pytest.approx(seen.metrics[-1]["eval_accuracy"])


@pytest.mark.parametrize("kind", ["ordinal", "question_answering"])
def test_metrics_written_for_the_trainer_fit_kinds_with_logits_of_their_own(kind: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.likelihood.name == kind)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        if kind == "ordinal":
            return {"own": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}
        (starts, ends), (first, last) = prediction.predictions, prediction.label_ids
        return {"own": float((starts.argmax(-1) == first).mean()), "last": float((ends.argmax(-1) == last).mean())}

    seen = Seen()
    settings: dict[str, Any] = {"args": arguments(tmp_path), "compute_metrics": compute, "callbacks": [seen]}
    posterior = fit(case.make(), case.data, validation=case.data, likelihood=kind, **settings)
    centre = posterior.predict(case.data[0], center=True)
    right = [centre.probs.argmax(1) == np.asarray(case.data[1])]
    expected = right[0].mean(0) if right[0].ndim == 2 else [right[0].mean()]
    found = [seen.metrics[-1][name] for name in ("eval_own", "eval_last") if name in seen.metrics[-1]]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("compute", [lambda: {}, lambda logits, labels: {}])
def test_a_metric_of_other_arguments_is_refused_before_training(compute: Any) -> None:
    with pytest.raises(ArgumentError, match=r"compute_metrics is called with one argument, .* function of \("):
        fit(compute_metrics=compute)


def test_an_error_of_a_metric_says_whose_it_is() -> None:
    with pytest.raises(KeyError) as caught:
        fit(compute_metrics=lambda _: {}["f1"], epochs=1, progress=False)
    assert caught.value.__notes__ == ["It was raised by compute_metrics."]


def test_metrics_without_held_out_data_or_an_evaluation_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="compute_metrics is for held-out data"):
        fit(validation=None, compute_metrics=dict)
    with pytest.raises(ValueError, match=r"torch_compile=True: a Pyro program cannot be compiled"):
        fit(args=arguments(tmp_path, torch_compile=True))
    with pytest.raises(ValueError, match="eval_strategy='no'"):
        fit(args=arguments(tmp_path, eval_strategy="no"), compute_metrics=dict)
    with pytest.raises(ValueError, match="prediction_loss_only=True, by which it would never be called"):
        fit(args=arguments(tmp_path, prediction_loss_only=True), compute_metrics=dict)
    with pytest.raises(
        ValueError, match=r"args\.eval_strategy='epoch' evaluates held-out data, and there is none: pass"
    ):
        fit(validation=None, args=arguments(tmp_path))
    with pytest.raises(
        ValueError, match=r"EarlyStoppingCallback goes by args\.metric_for_best_model at each evaluation"
    ):
        fit(args=arguments(tmp_path), callbacks=[EarlyStoppingCallback(1)])
    for found in (None, 0.5):
        with pytest.raises(ArgumentError, match=rf"compute_metrics returned {found}: return a mapping from names to"):
            fit(epochs=1, compute_metrics=lambda _, found=found: found)


def test_a_metric_called_loss_does_not_hide_the_nll(caplog: pytest.LogCaptureFixture) -> None:
    posterior = fit(epochs=1, compute_metrics=lambda _: {"loss": 9.0, "own": np.float32(0.5), "parts": {"a": 1}})
    assert posterior.history["validation_nll"].iloc[-1] < 9
    assert "compute_metrics returns 'loss', which is the held-out NLL's name" in caplog.text
    with pytest.raises(ValueError, match="EarlyStoppingCallback goes by held-out data"):
        fit(validation=None, callbacks=[EarlyStoppingCallback])


def test_rows_of_published_tables_keep_their_order_in_the_scores(tmp_path: Path) -> None:
    # Rows are evaluated by length, whatever the sampler that was asked for.
    rows = [{"input_ids": [5] * length, "labels": length % 3} for length in (7, 2, 9, 4, 3, 8, 5, 6)]
    seen = Seen()
    grouped = arguments(tmp_path, train_sampling_strategy="group_by_length", per_device_eval_batch_size=3)
    posterior = fit(data=rows, validation=rows, tokenizer=words(), args=grouped, callbacks=[seen])
    assert seen.metrics[-1]["eval_nll"] == pytest.approx(posterior.evaluate(rows, 2)["center_nll"], abs=1e-6)


# The best model


@pytest.mark.parametrize("metric", ["eval_accuracy", "nll", "steps"])
def test_the_best_posterior_is_restored(metric: str, tmp_path: Path) -> None:
    seen = Seen()
    own = {"compute_metrics": lambda _: {"steps": -len(seen.metrics)}} if metric == "steps" else {}
    best = {"load_best_model_at_end": True, "save_strategy": "epoch", "metric_for_best_model": metric}
    # The held-out labels are wrong: training makes it worse.
    inputs, labels = HELD_OUT
    args = arguments(tmp_path, num_train_epochs=4, save_total_limit=1, **best)
    callbacks = [seen, EarlyStoppingCallback(2)]
    posterior = fit(validation=(inputs, (labels + 1) % 3), args=args, callbacks=callbacks, **own)
    values = [metrics[f"eval_{metric.removeprefix('eval_')}"] for metrics in seen.metrics]
    at = int(np.argmin(values) if metric == "nll" else np.argmax(values))
    assert same(posterior, seen.states[at])
    assert not same(posterior, seen.states[at - 1])
    assert len(values) == min(at + 3, 4)
    again = bayeslora.load(tmp_path, tiny_bert())
    assert same(again, seen.states[at])


@pytest.mark.parametrize("best", [2, 6, 8])
def test_the_best_posterior_is_restored_wherever_others_are_saved(best: int, tmp_path: Path) -> None:
    seen = Seen()
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 4}
    wanted = {"load_best_model_at_end": True, "metric_for_best_model": "own", "num_train_epochs": 4}
    args = arguments(tmp_path, save_total_limit=1, **steps, **wanted)
    posterior = fit(
        args=args, callbacks=[seen], compute_metrics=lambda _: {"own": float(len(seen.metrics) == best / 2 - 1)}
    )
    assert len(seen.states) == 6
    assert [same(posterior, state) for state in seen.states] == [step == best for step in (2, 4, 6, 8, 10, 12)]


def test_stopping_early_needs_no_arguments() -> None:
    seen = Seen()
    inputs, labels = HELD_OUT
    held_out = (inputs, (labels + 1) % 3)
    stop = EarlyStoppingCallback(1, early_stopping_threshold=1e9)  # which no loss is better by
    posterior = fit(validation=held_out, epochs=9, learning_rate=3e-2, progress=False, callbacks=[seen, stop])
    losses = [metrics["eval_loss"] for metrics in seen.metrics]
    assert len(losses) == 2
    assert same(posterior, seen.states[int(np.argmin(losses))])


def test_a_best_metric_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    seen = Seen()
    with pytest.raises(ValueError, match=r"metric_for_best_model='f1': evaluation gives 'loss', .*'accuracy'.*'nll'"):
        fit(args=arguments(tmp_path, metric_for_best_model="f1"), callbacks=[seen])
    assert not seen.metrics  # it was said before training
    with pytest.raises(ValueError, match=r"metric_for_best_model='f1': .*'own'"):
        fit(args=arguments(tmp_path, metric_for_best_model="f1"), compute_metrics=lambda _: {"own": 1.0})


# Collators and tokenizers


def texts() -> tuple[Any, Any]:
    import datasets

    rows = {"text": ["the film", "a fine film", "the bad", "bad a film the"] * 3, "label": [0, 1, 0, 1] * 3}
    return words(), datasets.Dataset.from_dict(rows)


def test_a_collator_of_transformers_gives_what_ours_does(tmp_path: Path) -> None:
    tokenizer, table = texts()
    by_ours = fit(tiny_bert(2), table, validation=table, tokenizer=tokenizer, args=arguments(tmp_path))
    collator = DataCollatorWithPadding(tokenizer)
    settings = {"processing_class": tokenizer, "data_collator": collator, "args": arguments(tmp_path)}
    by_theirs = fit(tiny_bert(2), table, validation=table, **settings)
    assert by_ours.history.equals(by_theirs.history)
    np.testing.assert_array_equal(by_ours.predict(table).probs, by_theirs.predict(table).probs)
    assert by_ours.evaluate(table) == by_theirs.evaluate(table)


def test_an_own_collator_makes_every_batch() -> None:
    sizes: list[int] = []

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        sizes.append(len(rows))
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "labels"}
        # What the network does not take is left out; numbers may be NumPy's, and labels under the other name.
        found = {**batch, "word_ids": None, "number": 3}
        return found | ({"label": np.array([int(row["labels"]) for row in rows])} if "labels" in rows[0] else {})

    plain, own = (fit(data_collator=collator, progress=False, epochs=1) for collator in (None, collate))
    assert plain.history.equals(own.history)
    before = len(sizes)
    np.testing.assert_array_equal(plain.predict(HELD_OUT[0]).probs, own.predict(HELD_OUT[0]).probs)
    assert len(sizes) > before
    members = {"data_collator": collate, "progress": False, "epochs": 1, "rank": 2}
    ensemble = bayeslora.fit(tiny_bert(), TRAIN, "deep_ensemble", members=2, **members)
    assert ensemble.history["loss"].notna().all()


def test_a_collator_may_make_the_labels() -> None:
    tokenizer, table = texts()
    table = table.remove_columns("label")
    collator, causal = DataCollatorForLanguageModeling(tokenizer, mlm=False), model("Llama", "ForCausalLM")
    own = fit(causal(), table, validation=None, tokenizer=tokenizer, data_collator=collator, progress=False)
    plain = fit(causal(), table, validation=None, tokenizer=tokenizer, progress=False)
    assert own.history.equals(plain.history)


@pytest.mark.parametrize(
    ("collator", "message"),
    [
        (lambda rows: rows, r"data_collator returned a list: let it return a mapping from .*input_ids.*'labels'"),
        (lambda rows: {"input_ids": torch.full((len(rows), 2), 99), "labels": torch.zeros(len(rows))}, "input_ids"),
    ],
)
def test_what_a_collator_returns_is_looked_at(collator: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        fit(data_collator=collator, progress=False)


def test_an_error_of_a_collator_says_whose_it_is() -> None:
    with pytest.raises(KeyError) as caught:
        fit(data_collator=lambda rows: rows[0]["text"], progress=False)
    assert caught.value.__notes__ == [
        "It was raised by data_collator, given rows with input_ids, attention_mask, labels."
    ]


def test_a_loader_has_a_collator_of_its_own() -> None:
    loader = torch.utils.data.DataLoader([{"input_ids": torch.tensor([3, 4]), "labels": 1}] * 4)
    with pytest.raises(TypeError, match="give it as its collate_fn"):
        fit(data=loader, validation=None, data_collator=list, progress=False)


def test_a_tokenizer_goes_by_one_of_its_names() -> None:
    with pytest.raises(ArgumentError, match="processing_class is the Trainer's name of tokenizer, and both are given"):
        fit(tokenizer=words(), processing_class=words())


# Lines of the log


def test_without_a_bar_a_line_says_what_part_of_the_loss_is_the_nll(tmp_path: Path, capsys: Any) -> None:
    posterior = fit(args=arguments(tmp_path, logging_steps=2, logging_strategy="steps"))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{'loss'")]
    assert len(printed) == 3
    history = posterior.history
    for index, line in enumerate(printed):
        values = ast.literal_eval(line)
        assert [*values][:3] == ["loss", "nll", "kl"]
        rows = history.iloc[2 * index : 2 * index + 2]
        for name in ("loss", "nll"):
            assert float(values[name]) == pytest.approx(rows[name].mean(), rel=1e-3)
        assert float(values["loss"]) == pytest.approx(float(values["nll"]) + float(values["kl"]), rel=2e-3)


def test_lines_are_printed_where_there_is_no_terminal_and_nothing_where_nothing_is_wanted(capsys: Any) -> None:
    fit(epochs=1)
    shown = capsys.readouterr()
    assert "'eval_accuracy'" in shown.out
    assert "it/s" not in shown.err
    fit(epochs=1, progress=False)
    assert capsys.readouterr().out == ""
