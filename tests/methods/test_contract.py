"""What every method in `METHODS` promises."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.distributions import Delta

from bayeslora import metrics
from bayeslora.methods import METHODS, Method, PerStackMethod, make_method, register
from bayeslora.methods.point import LoRA
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from tests.helpers import batch, tiny_bert
from tests.methods.conftest import NO_DROPOUT, randomise

Make = Callable[..., Program]


def latent_sites(trace: poutine.Trace) -> dict[str, object]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not (site["is_observed"] or site["infer"].get("is_auxiliary"))
        and type(site["fn"]).__name__ != "_Subsample"
    }


def test_prior_and_guide_share_their_sites(method: Method, make_program: Make) -> None:
    program = make_program(method)
    prior = latent_sites(poutine.trace(program.factors).get_trace())
    guide = latent_sites(poutine.trace(program.guide).get_trace())
    assert list(prior) == list(guide)
    for name, site in guide.items():
        assert site["fn"].batch_shape == prior[name]["fn"].batch_shape
        assert site["fn"].event_shape == prior[name]["fn"].event_shape
        assert site["scale"] == prior[name]["scale"], name
        assert name.split(".")[0] in program.stacks


def test_prior_can_be_sampled(method: Method, make_program: Make) -> None:
    program = make_program(method)
    for name, factors in program.factors().items():
        stack = program.stacks[name]
        assert [f.shape for f in factors] == [(len(stack), *shape) for shape in stack.shapes.values()]


def test_centre_of_a_new_guide_is_the_base_model(method: Method, make_program: Make) -> None:
    program = make_program(method).eval()
    inputs = batch(5)
    base = tiny_bert(**NO_DROPOUT)
    # The head is a copy of the base model's.
    expected = base(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    torch.testing.assert_close(program(**inputs).logits, expected, rtol=0, atol=0)


def test_every_parameter_gets_a_finite_gradient(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method))
    program(**batch(5)).loss.backward()
    for name, parameter in program.trainable():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_no_frozen_weight_gets_a_gradient(method: Method, make_program: Make) -> None:
    program = make_program(method)
    program(**batch(5)).loss.backward()
    learned = {name for name, _ in program.trainable()}
    assert all(name.startswith(("guide.", "network.model.classifier.")) for name in learned)
    assert all(parameter.grad is None for name, parameter in program.named_parameters() if name not in learned)


def test_no_divergence_of_a_distribution_is_negative(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method))
    program(**batch(5))
    prior = latent_sites(poutine.trace(program.factors).get_trace())
    guide = latent_sites(poutine.trace(program.guide).get_trace())
    for name, term in program.terms.items():
        if name in prior and not isinstance(guide[name]["fn"], Delta):
            assert term >= 0, name


def test_loss_is_the_sum_of_its_terms(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method))
    loss = program(**batch(5)).loss
    assert loss.item() == pytest.approx(sum(program.terms.values()).item(), rel=1e-6)


def test_state_round_trip(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method))
    other = make_program(method)
    other.load_state_dict(program.state_dict())
    other.eval(), program.eval()
    assert torch.equal(other(**batch(5)).logits, program(**batch(5)).logits)


def test_refined_state_round_trip(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method)).eval()
    program.guide = method.refine(program, program.guide, [batch(24)], [])
    other = make_program(method).eval()
    other.load_state_dict(program.state_dict())
    draws = []
    for each in (program, other):
        torch.manual_seed(1)
        draws.append(each.draw(3))
    assert draws[0].keys() == draws[1].keys()
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    assert torch.equal(other(**batch(5)).logits, program(**batch(5)).logits)


def test_guide_holds_no_tensor_twice(method: Method, make_program: Make) -> None:
    program = make_program(method)
    pointers = [value.data_ptr() for value in program.guide.state_dict().values()]
    assert len(pointers) == len(set(pointers))


def test_double_precision_stays_double(method: Method, make_program: Make) -> None:
    program = make_program(method, double=True)
    assert {value.dtype for value in program.guide.state_dict().values()} == {torch.float64}
    output = program(**batch(5))
    assert output.loss.dtype == output.logits.dtype == torch.float64
    assert {value.dtype for value in program.draw(2).values()} == {torch.float64}


def test_a_program_can_be_deep_copied_with_factors_bound(method: Method, make_program: Make) -> None:
    program = make_program(method)
    program(**batch(5))
    copied = copy.deepcopy(program).eval()
    assert torch.equal(copied(**batch(5)).logits, program.eval()(**batch(5)).logits)


def test_the_same_seed_gives_the_same_draws(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method))
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(program.draw(3))
    assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
    if method.num_draws(program.guide) is None:
        assert not all(torch.equal(draws[0][name], draws[2][name]) for name in draws[0])


def test_draws_have_a_leading_dimension_and_give_logits(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method)).eval()
    draws = program.draw(4)
    for name, value in draws.items():
        assert value.shape[:2] == (4, len(program.stacks[name.split(".")[0]])), name
    together = program.logits(draws, batch(5))
    apart = [program.logits({name: value[i] for name, value in draws.items()}, batch(5)) for i in range(4)]
    torch.testing.assert_close(together, torch.stack(apart), rtol=1e-4, atol=1e-5)


def test_averaged_probabilities_are_no_worse_than_their_draws_on_average(method: Method, make_program: Make) -> None:
    # Theorem 4.5 of LoRA Dropout: −log is convex in the prediction. It holds on any data, at any parameters.
    program = randomise(make_program(method), scale=0.4).eval()
    inputs = batch(24)
    posterior = Posterior(program)
    prediction = posterior.predict({name: value for name, value in inputs.items() if name != "labels"}, 6)
    labels = inputs["labels"].numpy()
    members = [metrics.nll(draw, labels) for draw in prediction.draws]
    assert metrics.nll(prediction.probs, labels) <= np.mean(members) + 1e-12
    assert posterior.evaluate(({n: v for n, v in inputs.items() if n != "labels"}, labels), 6)["nll"] == pytest.approx(
        metrics.nll(prediction.probs, labels)
    )


def test_particles_are_averaged(method: Method, make_program: Make) -> None:
    program = randomise(make_program(method, num_particles=3))
    output = program(**batch(5))
    assert output.logits.shape == (3, 5, 3)
    labels = batch(5)["labels"].expand(3, 5)
    nll = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    assert program.terms["labels"].item() == pytest.approx(nll.item(), rel=1e-5)
    output.loss.backward()


def test_loss_falls(method: Method, make_program: Make) -> None:
    program = make_program(method)
    optimizer = torch.optim.Adam([p for _, p in program.trainable()], lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = program(**batch(24)).loss
        loss.backward()
        optimizer.step()
        losses.append(program.terms["labels"].item())
    assert sum(losses[-10:]) < 0.85 * sum(losses[:10])


def test_the_global_parameter_store_stays_empty(method: Method, make_program: Make) -> None:
    program = make_program(method)
    program(**batch(5)).loss.backward()
    program.draw(2)
    assert not dict(pyro.get_param_store())


def test_summaries_have_draw_and_layer_dimensions(method: Method, make_program: Make) -> None:
    program = make_program(method)
    draws = program.draw(3)
    for name, stack in program.stacks.items():
        own = {site[len(name) + 1 :]: value for site, value in draws.items() if site.startswith(f"{name}.")}
        for value, dims in method.summaries(stack, own).values():
            assert value.shape[:2] == (3, len(stack))
            assert value.dim() == 2 + len(dims)


def test_every_method_says_its_formula_and_its_source(method: Method) -> None:
    text = type(method).__doc__ or ""
    assert "Args:" in text
    assert "References:" in text
    assert "$" in text


def test_fields_are_set_by_name_and_unknown_ones_are_listed(method: Method) -> None:
    with pytest.raises(TypeError, match=r"has no field 'nonsense'; (its fields are|it has no fields)"):
        make_method(method.name, nonsense=1)
    with pytest.raises(TypeError, match="has no field 'nonsense'"):
        make_method(method, nonsense=1)


def test_every_method_stands_in_the_documentation() -> None:
    root = Path(__file__).parents[2]
    pages = [(root / page).read_text() for page in ("README.md", "docs/methods/index.md")]
    assert [name for name in METHODS if not all(f"`{name}`" in page for page in pages)] == []


def test_unknown_methods_list_those_there_are() -> None:
    with pytest.raises(ValueError, match=f"method='nonsense' is not known. Methods: {', '.join(METHODS)}"):
        make_method("nonsense")


def test_register_adds_a_method_and_refuses_what_is_none() -> None:
    class Mine(LoRA):
        name = "mine"

    class Thief(LoRA):
        name = "monteclora"

    class Nameless(PerStackMethod):
        stack_prior = LoRA.stack_prior
        stack_guide = LoRA.stack_guide

    try:
        assert register(Mine) is Mine
        assert register(Mine) is Mine  # again is no error
        assert isinstance(make_method("mine"), Mine)
    finally:
        METHODS.pop("mine", None)
    with pytest.raises(ValueError, match="'monteclora' belongs to MonteCLoRA"):
        register(Thief)
    with pytest.raises(TypeError, match="needs a class attribute `name`"):
        register(Nameless)
    with pytest.raises(TypeError, match="is no method"):
        register(PerStackMethod)
