"""What bad input gets: a message that says what was given, what fits and what to do, before time is spent."""

import re
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import TrainingArguments

import bayeslora
from bayeslora.tasks import Classification
from bayeslora.trainer import DivergedError
from tests.helpers import tiny_bert, tokens
from tests.test_data import LABELS, TEXTS, Bag, tiny_tokenizer


def fit(model: Any = None, data: Any = None, method: Any = "lora", **settings: Any) -> bayeslora.Posterior:
    settings = {"rank": 2, "epochs": 1, "progress": False} | settings
    return bayeslora.fit(
        tiny_bert() if model is None else model, tokens() if data is None else data, method, **settings
    )


def table(**columns: Any) -> datasets.Dataset:
    inputs, labels = tokens(6)
    ids, mask = inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()
    return datasets.Dataset.from_dict({"input_ids": ids, "attention_mask": mask, "labels": labels.tolist()} | columns)


def mlp(num_labels: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, num_labels))


def rows(num_examples: int = 12) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(num_examples, 5))
    return x, (x[:, 0] > 0).astype(int)


@pytest.fixture(autouse=True)
def no_training(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad input is found before training starts."""
    if "diverged" not in request.fixturenames and "posterior" not in request.fixturenames:
        monkeypatch.setattr("bayeslora.trainer.ProgramTrainer.train", lambda *_, **__: pytest.fail("training started"))


@pytest.fixture
def posterior() -> bayeslora.Posterior:
    return fit(mlp(), rows())


# Method and targets


def test_an_unknown_method_lists_those_known() -> None:
    with pytest.raises(ValueError, match=r"method='blurb' is not known\. Methods: .*lora, .*monteclora") as error:
        fit(method="blurb")
    assert all(name in str(error.value) for name in bayeslora.METHODS)


def test_an_unknown_field_lists_the_fields() -> None:
    with pytest.raises(
        TypeError, match=r"MonteCLoRA has no field 'component', 'rnak'; its fields are: components, .*df"
    ):
        fit(method="monteclora", component=3, rnak=4)
    with pytest.raises(TypeError, match=r"MonteCLoRA has no field 'component'; its fields are: components"):
        fit(method=bayeslora.MonteCLoRA(), component=3)


@pytest.mark.parametrize(
    ("method", "field", "value", "message"),
    [
        ("monteclora", "components", 0, "components=0: give a whole number of at least 1"),
        ("monteclora", "noise_ratio", -1.0, "noise_ratio=-1.0: give a finite number of at least 0"),
        ("monteclora", "concentration", 0.0, "concentration=0.0: give a positive finite number"),
        ("monteclora", "kl_weight", -1.0, "kl_weight=-1.0: give a positive finite number"),
        ("lora", "prior_scale", 0.0, "prior_scale=0.0: give a positive finite standard deviation, or None"),
    ],
)
def test_a_methods_field_out_of_range(method: str, field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fit(method=method, **{field: value})


def test_targets_that_match_nothing_list_the_names() -> None:
    with pytest.raises(ValueError, match=r"targets='q_proj' match no linear layer.*exist: dense, key, query, value"):
        fit(targets="q_proj")


def test_a_rank_larger_than_the_layer() -> None:
    with pytest.raises(
        ValueError, match=r"rank=33 does not fit layer '.*', which is 32 to 32 features: .*from 1 to 32"
    ):
        fit(rank=33)


# Labels


@pytest.mark.parametrize("form", ["arrays", "mapping", "table", "texts"])
@pytest.mark.parametrize("bad", [3, -1])
def test_labels_out_of_range_wherever_they_stand(form: str, bad: int) -> None:
    labels = [0, 1, 2, 0, 1, bad]
    inputs = tokens(6)[0]
    texts = [*TEXTS, "good"]
    data: Any = {
        "arrays": (inputs, labels),
        "mapping": inputs | {"labels": torch.as_tensor(labels)},
        "table": table(labels=labels),
        "texts": (texts, labels),
    }[form]
    lowest, highest = min(labels), max(labels)
    message = f"Labels range from {lowest} to {highest}, and the network has 3 classes, 0 to 2"
    with pytest.raises(ValueError, match=message):
        fit(data=data, tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match=message):
        fit(data=tokens(6), validation=data, tokenizer=tiny_tokenizer())


def test_labels_out_of_range_say_how_to_load_the_model() -> None:
    with pytest.raises(ValueError, match="renumber the labels, or load the model with num_labels=5"):
        fit(data=(tokens(5)[0], [0, 1, 2, 3, 4]))


def test_one_output_is_no_classification() -> None:
    with pytest.raises(ValueError, match=r"at least two classes, and the network has 1 output\(s\)"):
        fit(tiny_bert(num_labels=1), (tokens(4)[0], [0, 0, 0, 0]))


def test_missing_labels_name_what_is_there() -> None:
    with pytest.raises(ValueError, match=r"has no labels, only input_ids, attention_mask: give a 'labels' or 'label'"):
        fit(data=tokens()[0])
    with pytest.raises(ValueError, match="validation has no labels"):
        fit(validation=tokens()[0])


def test_metrics_of_data_without_labels(posterior: bayeslora.Posterior) -> None:
    with pytest.raises(ValueError, match="has no labels"):
        posterior.evaluate(rows()[0])
    with pytest.raises(ValueError, match="Labels range from 0 to 2, and the network has 2 classes"):
        posterior.evaluate((rows(3)[0], [0, 1, 2]))


@pytest.mark.parametrize("form", ["arrays", "table", "texts", "dataset"])
def test_float_labels(form: str) -> None:
    labels = [0.0, 1.0, 2.0, 0.0, 1.5]
    inputs = tokens(5)[0]
    data: Any = {
        "arrays": (inputs, np.asarray(labels)),
        "table": table().select(range(5)).remove_columns("labels").add_column("labels", labels),
        "texts": (TEXTS, labels),
        "dataset": TensorDataset(inputs["input_ids"], torch.as_tensor(labels)),
    }[form]
    with pytest.raises(
        ValueError, match=r"Labels are torch\.float\d\d; classification needs whole numbers from 0 to 2"
    ):
        fit(data=data, tokenizer=tiny_tokenizer())


# Inputs


@pytest.mark.parametrize("data", [([], []), {"input_ids": [], "labels": []}], ids=["pair", "mapping"])
def test_an_empty_split(data: Any) -> None:
    with pytest.raises(ValueError, match="data has no examples"):
        fit(data=data)
    with pytest.raises(ValueError, match="validation has no examples"):
        fit(validation=data)


def test_an_empty_table() -> None:
    with pytest.raises(ValueError, match="data has no examples"):
        fit(data=table().select([]))
    splits = datasets.DatasetDict({"train": table(), "validation": table().select([])})
    with pytest.raises(ValueError, match="validation has no examples"):
        fit(data=splits)


@pytest.mark.parametrize("form", ["arrays", "table", "dataset"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_infinity_in_the_inputs(form: str, value: float) -> None:
    x, y = rows()
    row = 1 if form == "dataset" else 7  # of a torch dataset, the first rows are looked at
    x[row, 2] = value
    x = x.astype(np.float32)
    data: Any = {
        "arrays": (x, y),
        "table": datasets.Dataset.from_dict({"input": x.tolist(), "label": y}),
        "dataset": TensorDataset(torch.as_tensor(x), torch.as_tensor(y)),
    }[form]
    with pytest.raises(ValueError, match=rf"data: 'input' is NaN or infinite in 1 row\(s\), the first is row {row}"):
        fit(mlp(), data)
    with pytest.raises(ValueError, match="validation: 'input' is NaN or infinite"):
        fit(mlp(), rows(), validation=data)


def test_text_without_a_tokenizer() -> None:
    for data in ((TEXTS, LABELS), datasets.Dataset.from_dict({"text": TEXTS, "label": LABELS})):
        with pytest.raises(ValueError, match="data is text, and there is no tokenizer: pass tokenizer="):
            fit(Bag(), data)


# Models


def test_a_model_without_a_head() -> None:
    bare = tiny_bert().bert.train()
    with pytest.raises(TypeError, match=r"returned BaseModelOutput.*there are no logits.*load it with a task head"):
        fit(bare)
    assert bare.training  # as it was


def test_a_path_whose_classes_cannot_be_told(tmp_path: Any) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not say how many classes .* should have: .*num_labels="):
        fit(str(tmp_path), TEXTS)


def test_outputs_without_a_likelihood() -> None:
    class PerToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(5, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(x)[:, None].expand(-1, 3, -1)

    message = r"No likelihood is known for outputs \(2, 3, 4\) and labels \(2,\) of 2 examples: pass likelihood="
    with pytest.raises(ValueError, match=message):
        fit(PerToken(), rows())


def test_a_posterior_of_another_base_model(posterior: bayeslora.Posterior, tmp_path: Any) -> None:
    posterior.save(tmp_path)
    with pytest.raises(
        ValueError, match=r"belongs to another base model: .*Load the checkpoint that it was trained on"
    ):
        bayeslora.load(tmp_path, mlp())


# Numbers


@pytest.mark.parametrize("num_draws", [0, -1])
def test_no_draws(posterior: bayeslora.Posterior, num_draws: int) -> None:
    for call in (posterior.draw, lambda n: posterior.predict(rows()[0], n), lambda n: posterior.evaluate(rows(), n)):
        with pytest.raises(ValueError, match=f"num_draws={num_draws}: give a whole number of at least 1"):
            call(num_draws)


def test_no_particles() -> None:
    with pytest.raises(ValueError, match="num_particles=0: give a whole number of at least 1"):
        fit(num_particles=0)


# A loss that is no number


@pytest.fixture
def diverged(tmp_path: Any) -> DivergedError:
    """Fitting stopped at the third step, whose batch has an input that overflows."""
    x, y = rows()
    x = x.astype(np.float32)
    x[9] = 3e38  # finite, so that it passes the check of the inputs
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        learning_rate=0.01,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(DivergedError) as error:
        fit(model, (x, y), "monteclora", args=args)
    return error.value


def test_a_loss_that_is_no_number_stops_the_fit_and_is_explained(diverged: DivergedError) -> None:
    _, y = rows()
    message = str(diverged)
    assert re.match(
        r"Training stopped at step 3 \(epoch 0\.\d\d\): the loss is (nan|inf), the largest gradient", message
    )
    assert re.search(r"largest gradient (inf|[\d.e+]+), of '(guide|network)\.[\w.]+'", message)
    assert f"Batch: input (4, 5), labels (4,), labels {y[8:].tolist()}" in message
    assert "Lower the learning rate (now 0.0" in message
    assert "extreme inputs in that batch" in message


def test_a_fit_that_was_stopped_leaves_its_last_good_state(diverged: DivergedError) -> None:
    posterior = diverged.posterior
    parameters = dict(posterior.program.trainable())
    assert all(bool(parameter.isfinite().all()) for parameter in parameters.values())
    assert any(bool(value.any()) for name, value in parameters.items() if name.endswith(".B"))  # trained, not the start
    assert posterior.history["step"].tolist() == [1, 2]
    assert np.isfinite(posterior.history["loss"]).all()
    assert not posterior.program.training
    assert np.isfinite(posterior.predict(rows()[0], num_draws=2).probs).all()


def test_a_rate_that_is_too_high_stops_too(posterior: bayeslora.Posterior) -> None:
    with pytest.raises(
        DivergedError, match=r"Training stopped at step \d+ .*Lower the learning rate \(now \d\.\de\+3\d\)"
    ) as e:
        fit(mlp(), rows(), learning_rate=1e38, batch_size=4, epochs=4)
    assert all(bool(parameter.isfinite().all()) for _, parameter in e.value.posterior.program.trainable())


def test_a_single_step_that_leaves_absurd_weights_is_noticed(posterior: bayeslora.Posterior) -> None:
    with pytest.raises(DivergedError, match=r"The last step, 1, made .* absurdly large.*now 1e\+30") as raised:
        fit(mlp(), rows(), learning_rate=1e30, batch_size=1000, epochs=1)
    assert all(float(value.detach().abs().max()) < 10 for _, value in raised.value.posterior.program.trainable())


def test_text_labels_say_how_to_number_them() -> None:
    with pytest.raises(ValueError, match=r"Labels are text, such as 'good'.*class_encode_column"):
        Classification(2).check_labels(["good", "bad"])


def test_too_few_degrees_of_freedom_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"df=2\.0: Σ needs at least rank = 8"):
        bayeslora.fit(tiny_bert(), tokens(), "monteclora", df=2.0, progress=False)
