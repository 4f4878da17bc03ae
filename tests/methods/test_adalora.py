"""AdaLoRA against PEFT's, its schedule by hand, and what `fit` does with both."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn
from transformers import TrainerCallback

import bayeslora
from bayeslora.adapters import AdaptedNetwork, Stack
from bayeslora.methods import AdaLoRA
from bayeslora.methods.adalora import AdaLoRAGuide
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import batch, tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT, randomise

Make = Callable[..., Program]

SCHEDULE = {"warmup": 0.2, "final": 0.3, "interval": 2}
STEPS = 10


def singular_values(program: Program) -> torch.Tensor:
    """λ of every layer and triplet."""
    guides = [module for module in program.guide.modules() if isinstance(module, AdaLoRAGuide)]
    return torch.cat([guide.point("lam").detach().flatten() for guide in guides])


def train(program: Program, num_steps: int, learning_rate: float = 1e-2) -> list[int]:
    """Train with the hook after every step; how many λ are not 0 after each."""
    program.num_steps = num_steps
    optimizer = torch.optim.Adam([p for _, p in program.trainable()], lr=learning_rate)
    left = []
    for step in range(1, num_steps + 1):
        optimizer.zero_grad()
        program(**batch(8, seed=step)).loss.backward()
        optimizer.step()
        program.method.after_step(program, step)
        left.append(int(singular_values(program).count_nonzero()))
    return left


# PEFT


def pair(**fields: Any) -> tuple[Program, nn.Module]:
    """The same AdaLoRA twice, penalties off, on all linear layers of a tiny BERT: ours and PEFT's."""
    method = AdaLoRA(orthogonality=0.0, **SCHEDULE, **fields)
    base = tiny_bert(**NO_DROPOUT)
    network = AdaptedNetwork(base, method.family, rank=4, alpha=8, start_rank=method.start_rank)
    program = randomise(Program(network, method, Classification(3)))
    names = [name for stack in program.stacks.values() for name in stack.layer_names]
    config = AdaLoraConfig(
        init_r=6,
        target_r=4,
        lora_alpha=8,
        target_modules=names,
        modules_to_save=["classifier"],
        orth_reg_weight=0.0,
        tinit=2,
        tfinal=3,
        deltaT=2,
        total_step=STEPS,
        task_type="SEQ_CLS",
    )
    theirs = get_peft_model(tiny_bert(**NO_DROPOUT), config)
    with torch.no_grad():
        for name, factors in program.factors_at(program.centre()).items():
            for index, layer in enumerate(program.stacks[name].layer_names):
                module = theirs.base_model.model.get_submodule(layer)
                for ours, their in (("P", "lora_B"), ("lam", "lora_E"), ("Q", "lora_A")):
                    value = getattr(factors, ours)[index]
                    getattr(module, their)["default"].copy_(value[:, None] if ours == "lam" else value)
        head = theirs.base_model.model.classifier.modules_to_save["default"]
        head.load_state_dict(program.network.model.classifier.state_dict())
    return program, theirs.train()


def test_forward_scores_and_budget_are_those_of_peft() -> None:
    program, theirs = pair()
    allocator = theirs.base_model.rankallocator
    program.num_steps = STEPS
    learned = [p for p in theirs.parameters() if p.requires_grad]
    optimizers = [torch.optim.SGD(p, lr=0.5) for p in ([p for _, p in program.trainable()], learned)]
    pruned = 0
    for step in range(1, STEPS - 3):  # PEFT freezes its scores one step before the budget is final
        inputs = batch(8, seed=step)
        outputs = program(**inputs), theirs(**inputs)
        torch.testing.assert_close(outputs[0].logits, outputs[1].logits, rtol=1e-5, atol=1e-5)
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
        program.method.after_step(program, step)
        theirs.base_model.update_and_allocate(step)
        for name, stack in program.stacks.items():
            guide = program.guide[name]
            for index, layer in enumerate(stack.layer_names):
                for ours, their in (("P", "lora_B"), ("lam", "lora_E"), ("Q", "lora_A")):
                    key = next(k for k in allocator.exp_avg_ipt if k.endswith(f"{layer}.{their}.default"))
                    scores = {"sensitivity": allocator.exp_avg_ipt, "uncertainty": allocator.exp_avg_unc}
                    for kind, values in scores.items():
                        own = guide.get_buffer(f"{kind}_{ours}")[index]
                        torch.testing.assert_close(own, values[key].view_as(own), rtol=1e-4, atol=1e-7)
                lam = theirs.base_model.model.get_submodule(layer).lora_E["default"][:, 0]
                assert torch.equal(guide.point("lam")[index].eq(0), lam.eq(0))
        pruned += int(singular_values(program).eq(0).any())
        budget = program.method.budget(step, STEPS, list(program.stacks.values()))
        assert budget == allocator.budget_schedule(step)[0]
    assert pruned >= 2


# The schedule


def test_the_budget_by_hand(stack: Stack) -> None:
    # Two layers that start at rank 3 and end at 2: of ten steps, two prune nothing and the last three are final.
    method = AdaLoRA(**SCHEDULE)
    budgets = [method.budget(step, STEPS, [stack]) for step in range(1, STEPS + 1)]
    # 4 + 2 (1 − (t − 2)/5)³, rounded down
    assert budgets == [6, 6, *(4 + int(2 * (1 - t / 5) ** 3) for t in range(1, 6)), 4, 4, 4]
    assert budgets[2] == 5


def test_every_delta_t_steps_prune_and_the_last_all_do(make_program: Make) -> None:
    program = make_program("adalora", **SCHEDULE)
    layers = program.stacks.num_layers
    left = train(program, STEPS)
    budgets = [program.method.budget(step, STEPS, list(program.stacks.values())) for step in range(1, STEPS + 1)]
    assert left[0] == left[1] == left[2] == 4 * layers  # step 3 is no multiple of ΔT
    assert left[3] == budgets[3] < 4 * layers
    assert left[4] > left[5] == budgets[5]  # what was pruned goes on learning
    assert left[6:] == [2 * layers] * 4


def test_scores_are_frozen_at_the_final_budget(make_program: Make) -> None:
    program = make_program("adalora", **SCHEDULE)
    scores, zeros = [], []

    def hook(_: Program, step: int) -> None:
        AdaLoRA.after_step(program.method, program, step)
        scores.append(torch.cat([guide.importance().flatten() for guide in program.guide.values()]))
        zeros.append(singular_values(program).eq(0))

    object.__setattr__(program.method, "after_step", hook)
    train(program, STEPS)
    assert not torch.equal(scores[5], scores[6])  # step 7 is T − t_f
    assert all(torch.equal(scores[6], later) for later in scores[7:])
    assert all(torch.equal(zeros[6], later) for later in zeros[7:])


@pytest.mark.parametrize("num_steps", [1, 2, 3, 7])
@pytest.mark.parametrize("fields", [{}, {"warmup": 0.5}, {"final": 0.0}, {"init_ratio": 2.0}], ids=str)
def test_the_budget_is_met_at_the_end(make_program: Make, num_steps: int, fields: dict[str, Any]) -> None:
    program = make_program("adalora", **fields)
    target = program.method.target_rank(4)
    assert train(program, num_steps)[-1] == target * program.stacks.num_layers


@pytest.mark.parametrize("ratio", [1.0, 1.1, 1.5, 2.0, 3.7])
def test_the_rank_asked_for_is_found_again_from_the_start(ratio: float) -> None:
    method = AdaLoRA(init_ratio=ratio)
    for rank in range(1, 200):
        assert method.start_rank(rank) >= ratio * rank - 1e-6
        assert method.target_rank(method.start_rank(rank)) == rank
    assert [AdaLoRA().start_rank(rank) for rank in (1, 2, 3, 8)] == [2, 3, 5, 12]


# The penalty


def test_the_penalty_and_its_gradient_by_hand(make_program: Make) -> None:
    programs = [randomise(make_program("adalora", double=True, orthogonality=value)) for value in (0.0, 0.3)]
    for program in programs:
        program(**batch(5)).loss.backward()
    without, with_penalty = programs
    assert list(without.terms) == ["labels"]
    for name, guide in with_penalty.guide.items():
        P, Q = (guide.point(factor).detach() for factor in ("P", "Q"))
        identity = torch.eye(4, dtype=torch.float64)
        gaps = P.mT @ P - identity, Q @ Q.mT - identity
        penalty = sum(torch.linalg.matrix_norm(gap).square().sum() for gap in gaps)
        assert with_penalty.terms[f"{name}.orthogonality"].item() == pytest.approx(0.3 * penalty.item(), rel=1e-10)
        # ∇‖PᵀP − I‖² = 4 P (PᵀP − I)
        for factor, gradient in (("P", 4 * P @ gaps[0]), ("Q", 4 * gaps[1] @ Q), ("lam", 0.0)):
            extra = guide.point(factor).grad - without.guide[name].point(factor).grad
            torch.testing.assert_close(extra, 0.3 * gradient + torch.zeros_like(extra), rtol=1e-8, atol=1e-10)


def test_the_penalty_makes_triplets_orthogonal(make_program: Make) -> None:
    program = make_program("adalora", orthogonality=1.0)
    guides = list(program.guide.values())
    before = sum(guide.distance_from_orthogonal().sum() for guide in guides)
    train(program, 30, learning_rate=2e-2)
    assert sum(guide.distance_from_orthogonal().sum() for guide in guides) < 0.2 * before


# Through `fit`


def fit(**settings: Any) -> bayeslora.Posterior:
    defaults = {"rank": 4, "alpha": 6, "epochs": 3, "learning_rate": 1e-2, "progress": False, "method": "adalora"}
    return bayeslora.fit(tiny_bert(), tokens(), **{**defaults, **settings})


def test_fit_starts_above_the_rank_asked_for_and_ends_at_it() -> None:
    posterior = fit(interval=2)
    stacks = posterior.network.stacks
    for stack in stacks.values():
        assert stack.rank == 6
        assert stack.scaling == (1.0,) * len(stack)
    left = singular_values(posterior.program).count_nonzero()
    assert left == 4 * stacks.num_layers
    draws = posterior.draw(1)
    ranks = [
        posterior.method.summaries(stack, {"lam": draws[f"{name}.lam"]})["rank"][0] for name, stack in stacks.items()
    ]
    assert sum(rank.sum() for rank in ranks) == left


def test_ranks_by_suffix_and_those_not_named_all_start_higher() -> None:
    posterior = fit(rank={"query": 2}, epochs=1)
    for stack in posterior.network.stacks.values():
        assert stack.rank == (3 if all(name.endswith("query") for name in stack.layer_names) else 12)


def test_a_layer_of_one_feature_starts_at_the_only_rank_there_is() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 1), torch.nn.Linear(1, 8), torch.nn.Linear(8, 3))
    for rank in (None, {"0": 1}):
        network = AdaptedNetwork(model, AdaLoRA().family, ["0", "1"], rank, start_rank=AdaLoRA().start_rank)
        assert [stack.rank for stack in network.stacks.values()] == [1, 1]


def test_a_rank_that_starts_too_high_says_what_fits() -> None:
    with pytest.raises(ValueError, match=r"rank=30, which starts at 45, does not fit .*from 1 to 21,"):
        fit(rank=30)


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        control.should_training_stop = state.global_step >= self.step


@pytest.mark.parametrize("stop", [3, 6])  # before the final budget, and after it
def test_resuming_goes_on_with_scores_and_budget(tmp_path: Path, stop: int) -> None:
    whole = fit(output_dir=tmp_path / "whole", interval=2)
    fit(output_dir=tmp_path / "cut", callbacks=[StopAfter(stop)], interval=2)
    resumed = fit(output_dir=tmp_path / "cut", resume=True, interval=2)
    for (name, ours), theirs in zip(resumed.guide.state_dict().items(), whole.guide.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert resumed.history.equals(whole.history)
    loaded = bayeslora.load(tmp_path / "cut", tiny_bert())
    inputs, _ = tokens(4)
    assert (loaded.predict(inputs).draws == whole.predict(inputs).draws).all()


def test_without_the_number_of_steps_the_hook_says_so(make_program: Make) -> None:
    program = make_program("adalora")
    program(**batch(4)).loss.backward()
    with pytest.raises(ValueError, match=r"schedule of 'adalora' needs the number of steps: set program.num_steps"):
        program.method.after_step(program, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"init_ratio": 0.5}, "init_ratio=0.5: give a finite number of at least 1"),
        ({"orthogonality": -1.0}, "orthogonality=-1.0: give a finite number of at least 0"),
        ({"interval": 0}, "interval=0: give a whole number of at least 1"),
        ({"beta1": 1.0}, "beta1=1.0: give a number of at least 0 and less than 1"),
        ({"warmup": 0.6}, "final=0.5: with warmup=0.6 it is more than the whole training"),
    ],
)
def test_fields_out_of_range_say_what_fits(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaLoRA(**fields)


# LoRA Dropout on it


def test_lora_dropout_of_zero_on_adalora_is_adalora_bit_for_bit() -> None:
    adalora = fit()
    dropout = fit(method="lora_dropout", base="adalora", p=0.0, num_particles=1)
    assert dropout.history["loss"].tolist() == adalora.history["loss"].tolist()
    for name in adalora.network.stacks:
        own, points = adalora.guide[name].state_dict(), dropout.guide[name].points.state_dict()
        assert own.keys() == points.keys()
        assert all(torch.equal(own[key], points[key]) for key in own)
    assert singular_values(dropout.program).count_nonzero() == 4 * adalora.network.stacks.num_layers


def test_masks_are_on_columns_of_Q_and_rows_of_P_and_none_on_the_singular_values(make_program: Make) -> None:
    program = randomise(make_program("lora_dropout", base="adalora", p=0.4))
    draws = program.draw(40)
    for name, factors in program.factors_at(draws).items():
        points = program.guide[name].factors
        kept_in, kept_out = factors.Q.ne(0), factors.P.ne(0)
        for kept, dim in ((kept_in, -2), (kept_out, -1)):
            assert torch.equal(kept.any(dim), kept.all(dim))
            assert not bool(kept.all())
        assert torch.equal(factors.Q, points.Q * kept_in)
        assert torch.equal(factors.P, points.P * kept_out)
        assert torch.equal(factors.lam, points.lam.expand_as(factors.lam))


def test_sparsity_weighs_the_whole_update_of_adalora(make_program: Make) -> None:
    program = randomise(make_program("lora_dropout", base="adalora", p=0.3, double=True))
    for guide in program.guide.values():
        P, lam, Q = guide.factors
        update = 8 / 4 * P @ torch.diag_embed(lam) @ Q
        torch.testing.assert_close(guide.dropped_square(), (2 * 0.3 - 0.3**2) * update.square().sum((-2, -1)))
