"""Arguments are checked at the door: each has a contract, and a message says what was given and what fits."""

import contextlib
import inspect
import math
import random
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import TrainerCallback, TrainingArguments

import bayeslora
from bayeslora import LIKELIHOODS, MonteCLoRA, contracts
from bayeslora.contracts import ArgumentError, Count, Scale, checked, declared
from bayeslora.isolation import seeded
from bayeslora.sklearn import Regressor
from bayeslora.tasks import TokenClassification
from tests.clock import units
from tests.door.signatures import public


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))


def rows() -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(int)


def fit(*others: Any, **settings: Any) -> bayeslora.Posterior:
    settings = {"rank": 2, "epochs": 0, "progress": False} | settings
    return bayeslora.fit(*(others or (network(), rows(), "lora")), **settings)


@pytest.fixture(scope="module")
def posterior() -> bayeslora.Posterior:
    return fit()


@pytest.mark.parametrize("name", public())
def test_every_argument_of_every_public_call_has_a_contract(name: str) -> None:
    function = public()[name]
    assert hasattr(function, "__contract__"), f"decorate {name} with @public() or @checked()"
    contract = function.__contract__  # type: ignore[attr-defined]
    several = inspect.Parameter.VAR_KEYWORD
    for argument, parameter in list(inspect.signature(function).parameters.items()):
        if argument == "self":
            continue
        if parameter.kind is several:
            assert contract.fields is not None, f"{name}: say what {argument} may be"
        else:
            assert contracts.is_understood(contract.declared[argument]), f"{name}: {argument} declares nothing"


BAD: dict[str, list[tuple[Any, str]]] = {
    "epochs": [
        (10**20, "a finite number of at least 0 and at most 1000000"),
        (-1, "a finite number of at least 0"),
        (math.nan, ""),
        (math.inf, ""),
        ("3", ""),
        (True, ""),
    ],
    "learning_rate": [(0, "a positive finite number"), (-1e-3, ""), (10**400, ""), ([1], "")],
    "alpha": [(0, "a positive finite number, or a mapping from text to a positive finite number"), ({"0": 0}, "")],
    "rank": [(0, "a whole number of at least 1"), (1.5, ""), ({"0": 1.5}, ""), (2**70, "below 9223372036854775808")],
    "num_particles": [(1.5, "a whole number of at least 1 and at most 10000"), (0, ""), (np.float64(2), "")],
    "batch_size": [(True, "a whole number of at least 1"), (np.bool_(True), ""), (0, ""), (torch.tensor([2]), "")],
    "seed": [(2**70, "a whole number of at least 0 and at most 4294967295"), (-1, ""), (2**32, ""), (1.0, "")],
    "targets": [(3, "text or a list, each text"), ([3], "")],
    "text": [(3, "text, a list, each text, or None"), ([3], "")],
    "label": [(3, "text, a list, each text, or None"), ([3], "text, a list")],
    "id": [(3, "text or None")],
    "weight": [(3, "the name of a column, or an array with a number for each row, or None")],
    "class_weights": [(3, ""), ("even", ""), ({"a": -1.0}, ""), ([-1], "")],
    "head": [(3, "")],
    "exclude": [([None], "")],
    "likelihood": [(3, "a Likelihood, its name in bayeslora.LIKELIHOODS, a function of logits and labels, or None")],
    "tokenizer": [("bert", "a tokenizer, such as AutoTokenizer.from_pretrained loads, or None")],
    "output_dir": [(3, "the path of a folder, or None"), ("x" * 300, ""), ("a\0b", ""), ("", ""), ("\ud800", "")],
    "answers": [("first", "'all' or 'last'"), (1, "")],
    "packing": [(1, "True or False"), ("yes", "")],
    "shots": [(3, "a datasets.Dataset or DatasetDict, a pandas DataFrame"), (nn.Identity(), "")],
    "resume": [("yes", "True or False, or 'anyway'"), (1, "")],
    "progress": [(1, "True or False"), ("no", "")],
    "compute_metrics": [(3, "a function")],
    "data_collator": [({}, "a function")],
    "processing_class": [("bert", "a tokenizer, such as AutoTokenizer.from_pretrained loads, or None")],
    "callbacks": [(print, "a list, each a TrainerCallback of transformers"), (["early"], "")],
    "args": [({"lr": 1}, "transformers' TrainingArguments, or None")],
    "init": [(3, "a Posterior, a torch.nn.Module, the folder of either, or None")],
    "prior": [("folder", "a Posterior, or None"), (3, ""), (nn.Identity(), "")],
    "num_examples": [(0, "a whole number of at least 1, or None")],
    "validation": [(3, "a datasets.Dataset or DatasetDict, a pandas DataFrame"), (nn.Identity(), "")],
    "folds": [(1, "a whole number of at least 2 and at most 1000, or None"), (2.5, ""), (True, ""), ("5", "")],
    "refit": [(1, "True or False, or None"), ("yes", "")],
    "model": [(3, "a torch.nn.Module, or the path or hub name of a model"), (nn.Linear, "Give an instance, Linear(…)")],
    "data": [(None, "a datasets.Dataset or DatasetDict"), (3, ""), (b"x", ""), (object(), ""), (list, "")],
    "method": [
        (3, "a Method, the name of one in bayeslora.METHODS, or None"),
        (MonteCLoRA, "an instance, MonteCLoRA(…)"),
    ],
}


@pytest.mark.parametrize(("argument", "value", "fitting"), [(a, *case) for a, cases in BAD.items() for case in cases])
def test_what_does_not_fit_is_refused_by_name_with_what_does(argument: str, value: Any, fitting: str) -> None:
    arguments: dict[str, Any] = {"model": network(), "data": rows(), "method": "lora"}
    with pytest.raises(ArgumentError, match=rf"^{argument}(=| is ).*: give .*{re.escape(fitting)}"):
        bayeslora.fit(**arguments | {argument: value})


def test_every_argument_of_fit_is_tried() -> None:
    assert BAD.keys() == declared(bayeslora.fit).keys() - {"hyperparameters"}


@pytest.mark.parametrize(
    ("keyword", "meant"),
    [
        ("r", "What others call 'r' is 'rank' here."),
        ("lora_alpha", "'alpha'"),
        ("target_modules", "'targets'"),
        ("exclude_modules", "'exclude'"),
        ("modules_to_save", "'head'"),
        ("lr", "'learning_rate'"),
        ("num_train_epochs", "'epochs'"),
        ("per_device_train_batch_size", "'batch_size'"),
        ("eval_dataset", "'validation'"),
        ("compute_loss_func", "pass your own, likelihood=…"),
        ("random_state", "'seed'"),
        ("resume_from_checkpoint", "'resume'"),
        ("weight_decay", "args=TrainingArguments(weight_decay=…)"),
        ("use_dora", "method='dora'"),
        ("learning_rte", "Did you mean 'learning_rate' instead of 'learning_rte'?"),
        ("component", "Did you mean 'components' instead of 'component'?"),
        ("Noise-Ratio", "'noise_ratio'"),
    ],
)
def test_names_of_others_and_misspelt_ones_get_ours(keyword: str, meant: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(meant)):
        fit(network(), rows(), "monteclora", **{keyword: 1})


def test_names_that_mean_nothing_get_the_list_alone() -> None:
    with pytest.raises(ArgumentError, match=r"LoRA has no field 'qqq'; its fields are: prior_scale\.$"):
        fit(qqq=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: bayeslora.fit(), "fit needs 'model' and 'data': give a torch.nn.Module"),
        (lambda p: bayeslora.fit(network()), "fit needs 'data': give a datasets.Dataset"),
        (lambda p: bayeslora.fit(network(), rows(), "lora", 8), "fit takes 3 arguments by place, and more were given"),
        (lambda p: bayeslora.fit(network(), rows(), data=rows()), "fit is given 'data' twice"),
        (lambda p: bayeslora.fit(rows(), network()), "model is a tuple: give a torch.nn.Module"),
        (lambda p: bayeslora.load(3), "folder=3: give the path of a folder"),
        (lambda p: bayeslora.load("a", base_model=1), "What others call 'base_model' is 'model' here."),
        (lambda p: bayeslora.load("a", download="no"), "download='no': give True or False."),
        (lambda p: p.predict(None), "data=None: give a datasets.Dataset"),
        (lambda p: p.predict(rows()[0], num_samples=3), "What others call 'num_samples' is 'num_draws' here."),
        (lambda p: p.predict(rows()[0], num_draw=3), "Did you mean 'num_draws' instead of 'num_draw'?"),
        (lambda p: p.predict(rows()[0], approximation="lin"), "approximation='lin': give 'draws', 'linear' or None."),
        (lambda p: p.predict(rows()[0], center="yes"), "center='yes': give True or False."),
        (lambda p: p.evaluate(rows(), batch_size=0), "batch_size=0: give a whole number of at least 1."),
        (lambda p: p.calibrate(rows(), 2.5), "num_draws=2.5: give a whole number of at least 1"),
        (lambda p: p.to_arviz(rows(), raw=1), "raw=1: give True or False."),
        (lambda p: p.save(None), "folder=None: give the path of a folder."),
        (lambda p: p.export_peft(7), "folder=7: give the path of a folder."),
        (lambda p: p.merge(1), "Posterior.merge takes 0 arguments by place"),
        (lambda p: p.draw(seed="a"), "seed='a': give a whole number of at least 0"),
        (lambda p: bayeslora.diagnostics.chains([3, p]), "posteriors is a list: give a list, each a Posterior."),
        (lambda p: bayeslora.diagnostics.chains([p, bayeslora.Posterior]), ": give a list, each a Posterior."),
        (lambda p: bayeslora.diagnostics.chains(p), "give a list, each a Posterior."),
        (lambda p: bayeslora.diagnostics.to_arviz("saved"), "posteriors='saved': give a Posterior, or a list, each a"),
        (lambda p: bayeslora.diagnostics.sbc(p.program, rows()), "posterior is a Program: give a Posterior."),
        (lambda p: bayeslora.diagnostics.gold(None, rows()), "posterior=None: give a Posterior."),
        (lambda p: bayeslora.diagnostics.predictive_check("saved", rows()), "posterior='saved': give a Posterior."),
        (
            lambda p: bayeslora.diagnostics.sbc(fit(network(), rows(), "blob"), rows(), lambda _: None, 1),
            "fit returned a NoneType: return what has draw(num_draws).",
        ),
        (
            lambda p: bayeslora.rank_for_budget(network(), "lora", 10.5),
            "budget=10.5: give a whole number of at least 1",
        ),
        (lambda p: bayeslora.MonteCLoRA(component=3), "Did you mean 'components' instead of 'component'?"),
        (lambda p: fit(network(), rows(), "montclora"), "Did you mean 'monteclora' instead of 'montclora'?"),
        (lambda p: fit(likelihood="classificaton"), "Did you mean 'classification' instead of 'classificaton'?"),
    ],
)
def test_other_calls_say_so_too(posterior: bayeslora.Posterior, call: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        call(posterior)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bayeslora.tasks.Classification(-1), "num_classes=-1: give a whole number of at least 1"),
        (lambda: LIKELIHOODS["ordinal"](10**12), "num_classes=1000000000000: give a whole number"),
        (lambda: LIKELIHOODS["ordinal"](3, [0.0, "a"]), "cut_points=[0.0, 'a']: give a list, each a finite number"),
        (lambda: LIKELIHOODS["student_t"](df=2), "df=2: give a finite number above 2."),
        (lambda: LIKELIHOODS["regression"](math.nan), "scale=nan: give a positive finite number."),
        (lambda: LIKELIHOODS["answer_letters"]("ab"), "token_ids='ab': give a list, each a whole number of at least 0"),
        (lambda: LIKELIHOODS["multilabel"](num_labels=3), "num_labels"),
        (lambda: MonteCLoRA(components=10**12), "components=1000000000000: give a whole number of at least 1 and at"),
    ],
)
def test_constructors_have_contracts(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        make()


def test_training_arguments_in_the_wrong_place_are_shown_theirs(tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), report_to=[])
    with pytest.raises(ArgumentError, match=r"method is a TrainingArguments: .* It is what 'args' takes: .*args=…"):
        bayeslora.fit(network(), rows(), args)  # type: ignore[arg-type]


def test_an_argument_error_is_caught_as_either() -> None:
    for kind in (ValueError, TypeError):
        with pytest.raises(kind, match="epochs=-1"):
            fit(epochs=-1)


def test_numbers_of_numpy_and_torch_are_taken_and_recorded_as_pythons(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "rank": {"0": np.int64(2), "2": torch.tensor(1)},
        "alpha": np.float32(3),
        "epochs": torch.tensor(1.0),
        "learning_rate": Fraction(1, 100),
        "batch_size": np.uint8(4),
        "num_particles": np.array(2),
        "seed": np.int32(1),
        "progress": np.bool_(False),
        "targets": np.array(["0", "2"]),
        "head": (),
        "prior_scale": np.float64(0.5),
    }
    as_python = {"rank": {"0": 2, "2": 1}, "alpha": 3.0, "epochs": 1, "learning_rate": 0.01, "batch_size": 4}
    as_python |= {"num_particles": 2, "seed": 1, "targets": ["0", "2"], "prior_scale": 0.5}
    ours, plain = fit(network(), rows(), "lora", **settings), fit(network(), rows(), "lora", head=(), **as_python)
    ours.save(tmp_path)
    loaded = bayeslora.load(tmp_path, network())
    assert loaded.record() == plain.record()
    x = rows()[0]
    np.testing.assert_array_equal(
        loaded.predict(x, np.int64(3), batch_size=torch.tensor(5)).probs, plain.predict(x, 3, batch_size=5).probs
    )


def test_callbacks_are_taken_as_instances_and_as_classes() -> None:
    class Mine(TrainerCallback):
        pass

    for callbacks in ([Mine()], (Mine,)):
        fit(callbacks=callbacks)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [2**70, 2**64, -(2**70)])
def test_a_seed_that_torch_refuses_leaves_no_random_state_changed(seed: Any) -> None:
    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # noqa: NPY002

    refused = seeded.__wrapped__(seed)  # type: ignore[attr-defined]  # without the tests' type check, which draws
    before = states()
    with pytest.raises((ValueError, TypeError)):
        next(refused)
    assert states() == before


def test_checking_a_call_takes_a_few_milliseconds_at_most(posterior: bayeslora.Posterior) -> None:
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (
            bayeslora.fit,
            (network(), rows(), "monteclora"),
            {"rank": {"0": 4}, "components": 3},
        ),
        (bayeslora.Posterior.predict, (posterior, rows()[0], 32), {"seed": 1, "batch_size": 8}),
        (bayeslora.load, ("folder", network()), {}),
    ]
    for function, args, settings in calls:
        # A millisecond, on a processor that nobody else uses: benchmarks/checks_cost.py.
        assert units(partial(contracts.check_arguments, function, *args, **settings)) < 5


def test_a_function_with_a_contract_of_its_own() -> None:
    @checked()
    def area(width: Scale, height: Scale = 1.0, *more: Count, unit: Literal["m", "cm"] = "m") -> tuple[Any, ...]:
        return (width, height, more, unit)

    assert area(np.float32(2), 3, np.int64(4), unit="cm") == (2.0, 3, (4,), "cm")
    with pytest.raises(ArgumentError, match=r"^more=0: give a whole number of at least 1\.$"):
        area(1, 2, 3, 0)
    with pytest.raises(ArgumentError, match=r"^unit='km': give 'm' or 'cm'\.$"):
        area(1, unit="km")
    with pytest.raises(ArgumentError, match=r"^area has no argument 'units'; .* mean 'unit' instead of 'units'\?$"):
        area(1, units="m")


@pytest.mark.parametrize("kind", [Regressor, TokenClassification])
def test_an_inherited_constructor_is_called_by_the_class_that_is_made(kind: Any) -> None:
    with pytest.raises(ArgumentError, match=f"^{kind.__name__} has no "):
        kind(words=3)


def raises(*args: Any, **settings: Any) -> Any:
    raise RuntimeError("of somebody else's")


def hostile(*methods: str, parents: tuple[type, ...] = (), value: Any = None) -> Any:
    """A value that raises errors when it is looked at."""
    made = type("Odd", parents, dict.fromkeys(methods, raises))
    return made() if value is None else made(value)


HOSTILE: dict[str, Any] = {
    "an attribute": hostile("__getattr__"),
    "its class": type("Liar", (), {"__class__": property(raises)})(),
    "a float": hostile("__float__", "__gt__", "__ge__", "__le__", "__lt__", parents=(float,), value=2.0),
    "a whole number": hostile("__abs__", "__gt__", "__ge__", "__le__", "__lt__", parents=(int,), value=2),
    "a list": hostile("__iter__", parents=(list,), value=[1]),
    "a mapping": hostile("__iter__", "items", parents=(dict,), value={"a": 1}),
    "a path": hostile("__fspath__"),
    "a text": hostile("__repr__", "__eq__", "__hash__", parents=(str,), value="lora"),
    "dimensions": type("Array", (), {"ndim": property(raises)})(),
    "time": np.timedelta64("NaT"),
    "digits": 10**5000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_values_that_raise_errors_when_they_are_looked_at_do_not_fit(name: str) -> None:
    for function in (bayeslora.fit, bayeslora.compare, bayeslora.Posterior.predict):
        for argument, declaration in declared(function).items():
            with contextlib.suppress(ArgumentError):
                contracts.check_value(argument, HOSTILE[name], declaration)
    with pytest.raises(ArgumentError, match=r"^epochs(=| is an? )"):
        contracts.check_value("epochs", HOSTILE[name], Scale)


def test_endless_ranges_are_refused_unread() -> None:
    assert contracts.fits(range(3), Sequence[int])
    x, y = rows()
    for number in (10**12, 10**30):  # whose length Python itself cannot say
        endless = range(number)
        assert not contracts.fits(endless, Sequence[int])
        for data in ((x, endless), (endless, y), (x, y, endless), {"input": x, "labels": endless}):
            with pytest.raises(ValueError, match=r"data, (entry|column) \S+, is range\(0, 10+\), of more than"):
                bayeslora.fit(network(), data, "lora")
            with pytest.raises(ValueError, match=r"weight(: give a finite number|=range)"):
                bayeslora.fit(network(), (x, y), "lora", weight=endless)


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(OSError, match=r"output_dir='.*' cannot be written at .*file: it is not a folder\.$"):
            bayeslora.fit(network(), "nowhere.csv", output_dir=folder)


@pytest.mark.parametrize("data", [{}, "x" * 300, [], (), {1: [2]}, (rows()[0], 3), (rows()[0], np.array(3))])
def test_data_without_a_row_or_a_name_that_is_too_long_is_said(posterior: bayeslora.Posterior, data: Any) -> None:
    for call in (posterior.predict, posterior.evaluate, lambda data: fit(network(), data)):
        with pytest.raises((ValueError, TypeError), match=r"^data\b"):
            call(data)


@pytest.mark.parametrize(("keyword", "column"), [("text", "review"), ("text", ["a", "b"]), ("label", "stars")])
def test_columns_named_of_data_without_columns_are_refused(
    posterior: bayeslora.Posterior, keyword: str, column: Any
) -> None:
    x, y = rows()
    pairs = TensorDataset(torch.tensor(x), torch.tensor(y))
    for data in ((x, y), pairs):
        for call in (partial(fit, network()), partial(posterior.evaluate, num_draws=2)):
            with pytest.raises(ArgumentError, match=re.escape(f"{keyword}={column!r}: data has no columns to name")):
                call(data, **{keyword: column})
    posterior.predict(x, 2, label="stars")  # no labels are looked at


def test_a_label_that_rows_lack_is_refused_with_what_they_have(posterior: bayeslora.Posterior) -> None:
    x, y = rows()
    for data in ({"input": x, "labels": y}, [{"input": a, "labels": int(b)} for a, b in zip(x, y, strict=True)]):
        for call in (partial(fit, network()), partial(posterior.evaluate, num_draws=2)):
            with pytest.raises(ArgumentError, match="label='stars': data has no such column, only input, labels"):
                call(data, label="stars")
            call(data, label="labels")


def test_the_name_of_a_series_of_labels_may_be_said(posterior: bayeslora.Posterior) -> None:
    x, y = rows()
    named = (x, pd.Series(y, name="stars"))
    assert posterior.evaluate(named, 2, label="stars") == posterior.evaluate((x, y), 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_kwargs": {"power": 2}}, "TypeError: .* unexpected keyword argument 'power'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "ValueError: One of min_lr or min_lr_rate should be set"),
        ({"optim": "lomo"}, "ImportError: .*lomo_optim"),
        ({"optim_args": "fast"}, "ValueError: "),
        ({"report_to": "nobody"}, "ValueError: nobody is not supported"),
        ({"train_sampling_strategy": "group_by_length"}, "ValueError: .*infer lengths"),
    ],
)
def test_what_the_trainer_refuses_before_the_first_step_names_args(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    given = TrainingArguments(str(tmp_path), use_cpu=True, **{"report_to": []} | settings)
    with pytest.raises(ArgumentError, match=rf"^args \(or callbacks\) .*: {said}.*leave args out\.$"):
        fit(args=given)


def test_training_arguments_that_leave_out_every_row_are_refused(tmp_path: Path) -> None:
    few: dict[str, Any] = {"report_to": [], "use_cpu": True, "num_train_epochs": 1}
    given = TrainingArguments(str(tmp_path), dataloader_drop_last=True, per_device_train_batch_size=13, **few)
    with pytest.raises(ArgumentError, match="data has 12 rows, fewer than the 13 of one"):
        fit(args=given)
    with pytest.raises(ValueError, match="eval_on_start=True evaluates held-out data, and there is none"):
        fit(args=TrainingArguments(str(tmp_path), eval_on_start=True, **few))


def test_an_error_of_a_callback_of_the_users_stays_what_it_is() -> None:
    class Broken(TrainerCallback):
        def __init__(self) -> None:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(callbacks=[Broken], epochs=1)


@pytest.mark.parametrize("labels", ["010101010101", b"010101010101"])
def test_one_text_is_no_labels(posterior: bayeslora.Posterior, labels: Any) -> None:
    for call in (partial(fit, network()), partial(posterior.evaluate, num_draws=2)):
        with pytest.raises(ValueError, match=f"the labels are one {type(labels).__name__}: give an array with one for"):
            call((rows()[0], labels))


def test_long_doubles_are_read_as_doubles(posterior: bayeslora.Posterior) -> None:
    x, _ = rows()
    np.testing.assert_array_equal(
        posterior.predict(x.astype(np.longdouble), 2).probs, posterior.predict(x.astype(np.float64), 2).probs
    )


def test_stop_strings_are_texts(posterior: bayeslora.Posterior) -> None:
    with pytest.raises(ArgumentError, match="stop_strings=3: give text, a list, each text, or None"):
        posterior.generate([[1]], stop_strings=3)
