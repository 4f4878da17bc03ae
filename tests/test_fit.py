"""Fitting: seeds, the history, checkpoints, resuming, and what reaches the Trainer."""

import json
import pickle
import random
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

import bayeslora
from bayeslora.adapters import AdaptedNetwork
from bayeslora.elbo import MeanFieldELBO
from bayeslora.methods import LoRA, make_method
from bayeslora.posterior import Posterior
from bayeslora.prediction import seeded
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import assert_mean_close, batch, tiny_bert, tiny_deberta, tokens

KLS = [f"{stack}.{name}" for stack in ("32x32", "32x48", "48x32") for name in ("weights", "cov_tril", "noise")] + [
    f"{stack}.cooperative" for stack in ("32x32", "32x48", "48x32")
]


def fit(model: nn.Module | None = None, data: Any = None, method: Any = "monteclora", **settings: Any) -> Posterior:
    settings = {"rank": 2, "epochs": 2, "learning_rate": 1e-2, "progress": False} | settings
    return bayeslora.fit(model or tiny_bert(), data or tokens(), method, **settings)


def arguments(folder: Path, **settings: Any) -> TrainingArguments:
    defaults = {"learning_rate": 1e-2, "num_train_epochs": 2, "per_device_train_batch_size": 16}
    quiet = {"report_to": [], "disable_tqdm": True, "dataloader_pin_memory": False}
    return TrainingArguments(str(folder), **(defaults | quiet | settings))


def learned(posterior: Posterior) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in posterior.program.trainable()}


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


class Capture(TrainerCallback):
    """Keeps the optimiser, and the learned state at the end of every epoch."""

    def __init__(self) -> None:
        self.optimizer: Any = None
        self.states: list[dict[str, Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.optimizer = others["optimizer"]

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.states.append({name: value.detach().clone() for name, value in model.trainable()})


class StopAfter(TrainerCallback):
    """Ends the run at a step, as an interruption would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


# Seeds and the caller's state


def test_the_same_seed_gives_the_same_bits() -> None:
    one, other, third = fit(), fit(), fit(seed=1)
    assert_same_state(learned(one), learned(other))
    assert one.history.equals(other.history)
    assert np.array_equal(one.predict(tokens()[0], 4).draws, other.predict(tokens()[0], 4).draws)
    assert not torch.equal(learned(one)["guide.32x32.loc"], learned(third)["guide.32x32.loc"])
    assert not np.array_equal(one.predict(tokens()[0], 4).draws, one.predict(tokens()[0], 4, seed=1).draws)


def test_the_seed_does_not_depend_on_the_callers_random_state() -> None:
    one = fit(epochs=1)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002 (the point is the global state)
    random.seed(123)
    assert_same_state(learned(one), learned(fit(epochs=1)))


def test_the_callers_random_states_are_left_alone(tmp_path: Path) -> None:
    model = tiny_bert()

    def states() -> tuple[Any, ...]:
        # Python's own is left out: the suite's type checker draws from it.
        return torch.get_rng_state().tolist(), repr(np.random.get_state())  # noqa: NPY002

    before = states()
    posterior = fit(model, epochs=1, output_dir=tmp_path)
    assert states() == before
    loader = DataLoader(TensorDataset(torch.randn(8, 5), torch.arange(8) % 3), batch_size=4, shuffle=True)
    mlp = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 3))
    before = states()
    posterior.draw(2)
    posterior.predict(tokens()[0], num_draws=2)
    posterior.evaluate(tokens(), num_draws=2)
    posterior.calibrate(tokens(), num_draws=2)
    fit(mlp, loader, epochs=1).predict(loader, num_draws=2)
    assert states() == before


def test_seeded_puts_every_random_state_back() -> None:
    def numbers() -> tuple[float, ...]:
        return random.random(), np.random.random(), torch.rand(()).item()  # noqa: NPY002

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    expected = numbers()
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
    inside = []

    def fail() -> None:
        inside.append(numbers())
        raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError), seeded(3):
            fail()
    assert inside[0] == inside[1]
    assert numbers() == expected


def test_without_a_seed_draws_move_the_callers_state_on() -> None:
    posterior = fit(epochs=1)
    one, other = posterior.draw(2, seed=None), posterior.draw(2, seed=None)
    assert not torch.equal(one["32x32.noise"], other["32x32.noise"])


def test_one_model_fitted_twice_gives_independent_posteriors() -> None:
    model = tiny_bert()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    first = fit(model)
    state, predicted = learned(first), first.predict(tokens()[0], 4).draws
    second = fit(model, seed=1, method="lora")
    assert_same_state(learned(first), state)
    assert np.array_equal(first.predict(tokens()[0], 4).draws, predicted)
    assert second.network.model is not first.network.model
    assert_same_state(dict(model.state_dict()), weights)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


@pytest.mark.parametrize("training", [True, False])
def test_modes_of_the_users_model_are_left_alone(training: bool) -> None:
    model = tiny_bert().train(training)
    model.bert.embeddings.eval()
    before = [module.training for module in model.modules()]
    fit(model, epochs=1)
    assert [module.training for module in model.modules()] == before


def test_no_process_wide_pyro_setting_changes() -> None:
    before = pyro.settings.get()
    fit(epochs=1).predict(tokens()[0], num_draws=2)
    assert pyro.settings.get() == before


# Losses and the history


@pytest.mark.parametrize(("method", "fields"), [("lora", {}), ("monteclora", {"noise_ratio": 0.5})])
def test_the_loss_falls(method: str, fields: dict[str, float]) -> None:
    x = torch.randn(64, 5)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    history = fit(model, (x, (x[:, 0] > 0).long()), method, epochs=10, learning_rate=3e-2, **fields).history
    assert history["nll"].tail(4).mean() < 0.5 * history["nll"].head(4).mean()


@pytest.mark.parametrize("method", ["lora_dropout", "deep_ensemble"])
def test_the_loss_of_several_particles_falls_where_layers_are_not_batch_first(method: str) -> None:
    history = fit(tiny_deberta(), method=method, epochs=10, learning_rate=3e-2, rank=4).history
    assert history["nll"].tail(4).mean() < 0.8 * history["nll"].head(4).mean()


def test_columns_of_the_history() -> None:
    history = fit(validation=tokens(20, seed=1)).history
    assert list(history) == ["step", "epoch", "loss", "nll", *KLS, "validation_nll"]
    assert history["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert history["epoch"].tolist() == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])
    np.testing.assert_allclose(history["loss"], history["nll"] + history[KLS].sum(axis=1), rtol=1e-5)
    assert history["validation_nll"].notna().tolist() == [False, False, True] * 2
    assert list(fit(epochs=1, method="lora").history) == ["step", "epoch", "loss", "nll"]  # a point has no KL


def test_the_last_validation_nll_is_that_of_the_centre() -> None:
    validation = tokens(20, seed=1)
    posterior = fit(validation=validation, epochs=1)
    scores = posterior.evaluate(validation, num_draws=2)
    assert posterior.history["validation_nll"].iloc[-1] == pytest.approx(scores["center_nll"], rel=1e-5)


def test_batches_of_one_step_are_averaged_in_the_history(tmp_path: Path) -> None:
    args = arguments(tmp_path, num_train_epochs=1, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    history = fit(args=args, method="lora").history
    assert history["step"].tolist() == [1, 2, 3]
    assert history["loss"].iloc[0] == pytest.approx(np.log(3), abs=0.1)  # a mean, not a sum, of two batches


def test_several_particles() -> None:
    posterior = fit(num_particles=3)
    assert posterior.program.elbo.num_particles == 3
    assert np.isfinite(posterior.history["loss"]).all()


def test_a_method_names_its_own_number_of_particles() -> None:
    class Twice(LoRA):
        num_particles = 2

    def particles(**settings: Any) -> int:
        return fit(method=Twice(), epochs=1, **settings).program.elbo.num_particles

    assert particles() == 2
    assert particles(num_particles=1) == 1
    assert fit(epochs=1).program.elbo.num_particles == 1


def test_several_particles_average_the_loss_of_one() -> None:
    network = AdaptedNetwork(tiny_bert(), rank=2).eval()
    program = Program(network, make_method("monteclora", noise_ratio=8.0), Classification(3))
    with torch.no_grad():
        for name, parameter in program.guide.named_parameters():
            if name.endswith(".B"):
                parameter.normal_(0, 0.3)
    data = batch(4)

    def losses(num_particles: int, count: int) -> Tensor:
        program.elbo = MeanFieldELBO(num_particles)
        program.train()
        network.eval()  # without dropout
        with torch.no_grad():
            return torch.stack([program(**data).loss for _ in range(count)])

    one, four = losses(1, 200), losses(4, 50)
    assert four.std() < 0.75 * one.std()  # half of it, in expectation
    assert_mean_close(four, float(one.mean()))


# Forms of data


@pytest.mark.parametrize("form", ["loader", "dataset"])
def test_torch_data_trains(form: str) -> None:
    x = torch.randn(32, 5)
    rows = TensorDataset(x, (x[:, 0] > 0).long())
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2))
    data = DataLoader(rows, batch_size=8, shuffle=True) if form == "loader" else rows
    posterior = fit(model, data, method="lora", batch_size=4, epochs=20)
    assert posterior.history["step"].iloc[-1] == 20 * (4 if form == "loader" else 8)  # a loader's batches are its own
    assert posterior.evaluate(rows)["nll"] < 0.4
    shuffled = DataLoader(rows, batch_size=8, shuffle=True)
    assert posterior.evaluate(shuffled) == pytest.approx(posterior.evaluate(rows), abs=1e-5, nan_ok=True)


# Full control, checkpoints


def test_training_arguments_take_over(tmp_path: Path) -> None:
    capture = Capture()
    args = arguments(tmp_path, max_steps=4, learning_rate=0.5, lr_scheduler_type="constant", seed=7, save_strategy="no")
    posterior = fit(args=args, epochs=9, learning_rate=1e-9, callbacks=[capture])
    assert posterior.history["step"].tolist() == [1, 2, 3, 4]
    assert {group["lr"] for group in capture.optimizer.param_groups} == {0.5}
    assert_same_state(bayeslora.load(tmp_path, tiny_bert()).draw(2), posterior.draw(2))


def test_the_best_epoch_is_restored(tmp_path: Path) -> None:
    capture = Capture()
    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    # The held-out labels are wrong, so that training makes it worse: the first epoch is the best.
    inputs, labels = tokens()
    args = arguments(tmp_path, num_train_epochs=3, **settings)
    posterior = fit(args=args, validation=(inputs, (labels + 1) % 3), callbacks=[capture], method="lora")
    nll = posterior.history["validation_nll"].dropna().tolist()
    assert len(nll) == 3
    assert nll[0] == min(nll)
    assert_same_state(learned(posterior), capture.states[0])
    assert not torch.equal(
        capture.states[0]["network.model.classifier.weight"], learned(fit(epochs=3))["network.model.classifier.weight"]
    )


def test_checkpoints_hold_adapters_and_head_only(tmp_path: Path) -> None:
    capture = Capture()
    model = tiny_bert(vocab_size=20000)
    posterior = fit(model, output_dir=tmp_path, callbacks=[capture])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    base = sum(parameter.nbytes for parameter in model.parameters())
    for index, name in enumerate(("checkpoint-3", "checkpoint-6")):
        folder = tmp_path / name
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 0.1 * base
        loaded = bayeslora.load(folder, tiny_bert(vocab_size=20000))
        assert_same_state(learned(loaded), capture.states[index])
        assert loaded.history["step"].tolist() == list(range(1, 4 + 3 * index))
    assert_same_state(learned(bayeslora.load(tmp_path, tiny_bert(vocab_size=20000))), learned(posterior))


@pytest.mark.parametrize("stop", [3, 4])  # at the end of an epoch, and within one
def test_resuming_gives_what_an_uninterrupted_run_gives(tmp_path: Path, stop: int) -> None:
    def settings(name: str) -> dict[str, Any]:
        args = arguments(tmp_path / name, save_strategy="steps", save_steps=1, num_train_epochs=3)
        return {"args": args, "validation": tokens(20, seed=1)}

    # Dropout, noise of the weights and the order of the data all have to go on where they were.
    whole = fit(**settings("whole"))
    fit(**settings("cut"), callbacks=[StopAfter(stop)])
    checkpoint = get_last_checkpoint(str(tmp_path / "cut"))
    assert checkpoint is not None
    assert checkpoint.endswith(f"checkpoint-{stop}")
    resumed = fit(**settings("cut"), resume=True)
    assert_same_state(learned(resumed), learned(whole))
    assert resumed.history.equals(whole.history)


def test_resuming_without_a_checkpoint_starts(tmp_path: Path) -> None:
    started = fit(output_dir=tmp_path / "new", resume=True)
    assert_same_state(learned(started), learned(fit(output_dir=tmp_path / "other")))


# What reaches the Trainer


def test_spreads_take_no_weight_decay_and_their_own_rate(tmp_path: Path) -> None:
    capture = Capture()
    args = arguments(tmp_path, max_steps=1, weight_decay=0.1, learning_rate=1e-3, lr_scheduler_type="constant")
    posterior = fit(args=args, callbacks=[capture], guide_learning_rate=0.05)
    names = {id(parameter): name for name, parameter in posterior.program.trainable()}
    places, spreads = ([names.pop(id(p)) for p in group["params"]] for group in capture.optimizer.param_groups)
    assert not names
    assert {name.rpartition(".")[2] for name in spreads} == {"log_concentration", "log_scale_diag"}
    assert {name.rpartition(".")[2] for name in places} == {"loc", "B", "weight", "bias"}
    assert [group["weight_decay"] for group in capture.optimizer.param_groups] == [0.1, 0.0]
    assert [group["lr"] for group in capture.optimizer.param_groups] == [1e-3, 0.05]


def test_a_layer_of_the_head_is_a_place_whatever_its_name(tmp_path: Path) -> None:
    layers = {"scale_out": nn.Linear(8, 8), "tanh": nn.Tanh(), "log_proj": nn.Linear(8, 2)}
    head = nn.Sequential(OrderedDict(layers))
    model = nn.Sequential(OrderedDict(body=nn.Linear(5, 8), classifier=head))
    capture = Capture()
    args = arguments(tmp_path, max_steps=1, weight_decay=0.1, learning_rate=1e-3, lr_scheduler_type="constant")
    x = torch.randn(12, 5)
    posterior = fit(
        model, (x, (x[:, 0] > 0).long()), targets=["body"], args=args, callbacks=[capture], guide_learning_rate=0.05
    )
    groups = {id(p): group for group in capture.optimizer.param_groups for p in group["params"]}
    places = {name: groups[id(p)] for name, p in posterior.program.trainable() if ".classifier." in name}
    assert len(places) == 4
    assert {(group["lr"], group["weight_decay"]) for group in places.values()} == {(1e-3, 0.1)}
    assert {group["lr"] for group in groups.values()} == {1e-3, 0.05}


@pytest.mark.parametrize(("rate", "moves"), [(None, True), (0.0, False)])
def test_a_rate_of_zero_holds_the_spreads(rate: float | None, moves: bool) -> None:
    posterior = fit(epochs=1, kl_weight=1.0, guide_learning_rate=rate)
    assert bool(learned(posterior)["guide.32x32.log_concentration"].any()) is moves


def test_activation_checkpointing_gives_the_same_fit(tmp_path: Path) -> None:
    plain = fit(args=arguments(tmp_path / "plain", num_train_epochs=1))
    checkpointed = fit(args=arguments(tmp_path / "less", num_train_epochs=1, activation_checkpointing=True))
    assert any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.network.model.modules())
    for name, value in learned(plain).items():
        torch.testing.assert_close(learned(checkpointed)[name], value)


def test_workers_that_are_not_forked_can_make_batches() -> None:
    # As on macOS and Windows, and everywhere from Python 3.14 on: they get copies.
    made = []

    class Copies(TrainerCallback):
        def on_train_begin(self, *given: Any, train_dataloader: Any, **others: Any) -> None:
            rows, collate = pickle.loads(pickle.dumps((train_dataloader.dataset, train_dataloader.collate_fn)))
            made.append(collate([rows[0], rows[1]]))

    fit(callbacks=[Copies()], epochs=1)
    assert len(made[0]["labels"]) == 2


def test_callbacks_see_the_hook_after_the_optimisers_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def after_step(self: Any, program: Program, step: int) -> None:
        B = next(p for name, p in program.guide.named_parameters() if name.endswith("32x32.sites.B.loc"))
        seen.append((step, bool(B.any()), B.grad is not None and bool(B.grad.any())))

    monkeypatch.setattr(bayeslora.METHODS["lora"], "after_step", after_step)
    fit(method="lora", epochs=1)
    assert seen == [(1, True, True), (2, True, True), (3, True, True)]


def test_class_names_come_from_the_data_or_the_model() -> None:
    named = tiny_bert(id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert fit(named, epochs=1).class_names == ("a", "b", "c")
    assert fit(epochs=1).class_names is None


def test_a_model_named_by_its_folder_is_loaded_for_the_datas_classes(tmp_path: Path) -> None:
    tiny_bert(num_labels=2).save_pretrained(tmp_path)
    from tests.test_data import LABELS, TEXTS, tiny_tokenizer

    tiny_tokenizer().save_pretrained(tmp_path)
    posterior = bayeslora.fit(str(tmp_path), (TEXTS, LABELS), "lora", rank=2, epochs=1, progress=False)
    assert posterior.predict(["good film"]).probs.shape == (1, 2)
    assert posterior.tokenizer is not None


def test_nothing_is_left_behind_without_an_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_posterior_is_saved_where_asked(tmp_path: Path) -> None:
    posterior = fit(epochs=1, output_dir=tmp_path, method="lora")
    assert json.loads((tmp_path / "bayeslora.json").read_text())["method"]["name"] == "lora"
    assert_same_state(learned(bayeslora.load(tmp_path, tiny_bert())), learned(posterior))


def test_resuming_another_fit_says_what_differs(tmp_path: Path) -> None:
    settings = {"epochs": 1, "progress": False, "output_dir": tmp_path}
    bayeslora.fit(tiny_bert(), tokens(), "lora", **settings)
    with pytest.raises(ValueError, match=r"checkpoint of another fit \(method 'lora', now 'monteclora'\)"):
        bayeslora.fit(tiny_bert(), tokens(), "monteclora", resume=True, **settings)
    with pytest.raises(ValueError, match=r"another fit \(prior_scale None, now 0.5\)"):
        bayeslora.fit(tiny_bert(), tokens(), "lora", resume=True, prior_scale=0.5, **settings)


def test_a_label_out_of_range_in_a_later_batch_says_so() -> None:
    inputs, labels = tokens(32)
    labels[20] = 7
    rows = [{**{name: value[i] for name, value in inputs.items()}, "labels": labels[i]} for i in range(32)]

    class Rows(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            return rows[index]

    with pytest.raises(ValueError, match=r"Labels range from 0 to 7, and the network has 3 classes"):
        fit(data=Rows(), epochs=1)


def test_accumulated_gradients_weigh_batches_as_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """22 rows in batches of 4, four batches a step: the last batch has 2 rows, and the last step 2 batches."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(22, 4, generator=generator, dtype=torch.float64), torch.arange(22) % 3
    base = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    seen: list[dict[str, Tensor]] = []
    start: dict[str, Tensor] = {}
    forward = Program.forward

    def noted(program: Program, **given: Any) -> Any:
        if program.training:
            start.update({} if start else {name: value.detach().clone() for name, value in program.trainable()})
            seen.append(given)
        return forward(program, **given)

    monkeypatch.setattr(Program, "forward", noted)
    plain = {
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "weight_decay": 0,
        "save_strategy": "no",
    }
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "num_train_epochs": 1}
    args = arguments(tmp_path, **plain, **sizes, learning_rate=0.1)
    posterior = bayeslora.fit(base, (x, y), "lora", rank=2, args=args, weight=np.arange(1.0, 23))
    assert [len(each["labels"]) for each in seen] == [4, 4, 4, 4, 4, 2]
    found, program = learned(posterior), posterior.program.train()
    with torch.no_grad():
        for name, value in program.trainable():
            value.copy_(start[name])
    for step in (seen[:4], seen[4:]):
        losses = []
        for each in step:
            nll = nn.functional.cross_entropy(forward(program, **each).logits, each["labels"], reduction="none")
            losses.append((each["weights_of_rows"] * nll).mean())
        program.zero_grad()
        torch.stack(losses).mean().backward()
        with torch.no_grad():
            for _, value in program.trainable():
                value -= 0.1 * value.grad
    for name, value in program.trainable():
        torch.testing.assert_close(value.detach(), found[name], rtol=0, atol=1e-14)
