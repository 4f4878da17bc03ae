"""The contract of a method."""

import copy
import math
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bayeslora import contracts, guides, metrics
from bayeslora.adapters import AdaptedNetwork, split_site
from bayeslora.elbo import sites
from bayeslora.methods import Method, fields
from bayeslora.networks import inputs_of
from bayeslora.posterior import Posterior
from bayeslora.program import Program
from bayeslora.tasks import Classification
from bayeslora.testing.small import small_batch, small_network


class MethodContract:
    """What every method promises; the network is `small_network`, in single precision.

    Attributes:
        method: The method to be tested.
    """

    method: Method

    def program(self, num_particles: int = 1, double: bool = False) -> Program:
        """Make a program of the method over the small network."""
        torch.manual_seed(0)
        model, method = small_network().to(torch.float64 if double else torch.float32), self.method
        network = AdaptedNetwork(model, method.family, rank=4, alpha=8, num_examples=48, head_family=method.head_family)
        count = method.num_particles if method.own_batches else num_particles  # an ensemble's are its members
        return Program(network, method, Classification(3), count)

    def moved(self, scale: float = 0.2, **settings: Any) -> Program:
        """Make a program whose learned parameters are moved from their start, so that no term vanishes by symmetry."""
        program, generator = self.program(**settings), torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, parameter in program.trainable():
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        return program

    def traces(self, program: Program) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the latent sites of prior and guide."""
        return tuple(  # type: ignore[return-value]
            {
                name: site
                for name, site in sites(poutine.trace(run).get_trace())
                if not (site["is_observed"] or site["infer"].get("is_auxiliary"))
            }
            for run in (program.factors, program.guide)
        )

    def test_prior_and_guide_share_their_sites(self) -> None:
        program = self.program()
        prior, guide = self.traces(program)
        assert list(prior) == list(guide)
        for name, site in guide.items():
            assert site["fn"].batch_shape == prior[name]["fn"].batch_shape, name
            assert site["fn"].event_shape == prior[name]["fn"].event_shape, name
            assert site["scale"] == prior[name]["scale"], name
            assert split_site(name)[0] in program.stacks, name

    def test_prior_can_be_sampled(self) -> None:
        program = self.program()
        for name, factors in program.factors().items():
            stack = program.stacks[name]
            assert [factor.shape for factor in factors] == [(len(stack), *shape) for shape in stack.shapes.values()]

    def test_centre_of_a_new_guide_is_the_base_model(self) -> None:
        program, batch = self.program().eval(), small_batch()
        torch.testing.assert_close(program(**batch).logits, small_network()(**inputs_of(batch)).logits, rtol=0, atol=0)

    def test_every_parameter_gets_a_finite_gradient(self) -> None:
        program = self.moved()
        program(**small_batch()).loss.backward()
        for name, parameter in program.trainable():
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name
            assert bool(parameter.grad.any()), name

    def test_no_frozen_weight_gets_a_gradient(self) -> None:
        program = self.program()
        program(**small_batch()).loss.backward()
        learned = {name for name, _ in program.trainable()}
        assert all(name.startswith(("guide.", "network.model.classifier.")) for name in learned)
        assert all(parameter.grad is None for name, parameter in program.named_parameters() if name not in learned)

    def test_no_divergence_of_a_distribution_is_negative(self) -> None:
        program = self.moved()
        program(**small_batch())
        _, guide = self.traces(program)
        for name, term in program.terms.items():
            if name in guide and not isinstance(guide[name]["fn"], Delta):
                assert term >= 0, name

    def test_loss_is_the_sum_of_its_terms(self) -> None:
        program = self.moved()
        loss = program(**small_batch()).loss
        assert math.isclose(loss.item(), float(sum(program.terms.values())), rel_tol=1e-6)

    def test_state_round_trip(self) -> None:
        program, other = self.moved().eval(), self.program().eval()
        other.load_state_dict(program.state_dict())
        assert torch.equal(other(**small_batch()).logits, program(**small_batch()).logits)

    def test_refined_state_round_trip(self) -> None:
        program, other = self.moved().eval(), self.program().eval()
        program.guide = self.method.refine(program, program.guide, [small_batch(24)], [])
        other.load_state_dict(program.state_dict())
        draws = [self.draws(each, 1) for each in (program, other)]
        assert draws[0].keys() == draws[1].keys()
        assert all(torch.equal(draws[0][name], draws[1][name]) for name in draws[0])
        assert torch.equal(other(**small_batch()).logits, program(**small_batch()).logits)

    def draws(self, program: Program, seed: int, count: int = 3) -> dict[str, Tensor]:
        """Draw every site with a seed."""
        torch.manual_seed(seed)
        return program.draw(count)

    def test_guide_holds_no_tensor_twice(self) -> None:
        pointers = [value.data_ptr() for value in self.program().guide.state_dict().values()]
        assert len(pointers) == len(set(pointers))

    def test_double_precision_stays_double(self) -> None:
        program = self.program(double=True)
        assert {value.dtype for value in program.guide.state_dict().values()} == {torch.float64}
        output = program(**small_batch())
        assert output.loss.dtype == output.logits.dtype == torch.float64
        assert {value.dtype for value in program.draw(2).values()} == {torch.float64}

    def test_a_program_can_be_deep_copied_with_factors_bound(self) -> None:
        program, batch = self.program(), small_batch()
        program(**batch)
        copied = copy.deepcopy(program).eval()
        assert torch.equal(copied(**batch).logits, program.eval()(**batch).logits)

    def test_the_same_seed_gives_the_same_draws(self) -> None:
        program = self.moved()
        first, again, other = (self.draws(program, seed) for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        if self.method.num_draws(program.guide) is None:
            assert not all(torch.equal(first[name], other[name]) for name in first)

    def test_draws_have_a_leading_dimension_and_give_logits(self) -> None:
        program, batch = self.moved(double=True).eval(), small_batch()
        draws = program.draw(4)
        for name, value in draws.items():
            assert value.shape[:2] == (4, len(program.stacks[split_site(name)[0]])), name
        together = program.logits(draws, batch)
        apart = [program.logits({name: value[i] for name, value in draws.items()}, batch) for i in range(4)]
        torch.testing.assert_close(together, torch.stack(apart), rtol=1e-9, atol=1e-9)

    def test_averaged_probabilities_are_no_worse_than_their_draws_on_average(self) -> None:
        # −log is convex in the prediction, so that this holds on any data, at any parameters.
        program, batch = self.moved(scale=0.4).eval(), small_batch(24)
        posterior, labels = Posterior(program), batch["labels"].numpy()
        prediction: Any = posterior.predict(inputs_of(batch), 6)
        average = metrics.nll(prediction.probs, labels)
        assert average <= np.mean([metrics.nll(draw, labels) for draw in prediction.draws]) + 1e-12
        scores = posterior.evaluate((inputs_of(batch), labels), 6)
        assert math.isclose(scores["nll"], average, rel_tol=1e-6)

    def test_particles_are_averaged(self) -> None:
        count = self.method.num_particles if self.method.own_batches else 3
        program, batch = self.moved(num_particles=3), small_batch()
        output = program(**batch)
        if count > 1:
            assert output.logits.shape == (count, 5, 3)
        labels = batch["labels"].expand(count, 5)
        nll = nn.functional.cross_entropy(output.logits.view(-1, 3), labels.flatten())
        assert math.isclose(program.terms["labels"].item(), nll.item(), rel_tol=1e-5)
        output.loss.backward()

    def test_the_loss_changes_along_the_gradient_as_the_gradient_says(self) -> None:
        # At the same noise; spreads stay, since those with respect to a Dirichlet's parameters are implicit.
        program, batch = self.moved(double=True), small_batch(24)
        spreads = {id(parameter) for parameter in guides.spreads(program.guide)}
        places = [parameter for _, parameter in program.trainable() if id(parameter) not in spreads]

        def loss() -> Tensor:
            torch.manual_seed(3)
            return program(**batch).loss

        gradient = parameters_to_vector(torch.autograd.grad(loss(), places))
        start, direction, losses = parameters_to_vector(places).detach(), gradient / gradient.norm(), []
        for step in (1e-5, -1e-5):
            vector_to_parameters(start + step * direction, places)
            losses.append(loss().item())
        # Some stop a gradient on purpose, as DoRA does that of its norm: near is enough.
        assert math.isclose((losses[0] - losses[1]) / 2e-5, float(gradient.norm()), rel_tol=0.5)

    def test_the_global_parameter_store_stays_empty(self) -> None:
        program = self.program()
        program(**small_batch()).loss.backward()
        program.draw(2)
        assert not dict(pyro.get_param_store())

    def test_summaries_have_draw_and_layer_dimensions(self) -> None:
        program = self.program()
        draws = program.draw(3)
        for stack in program.stacks.values():
            for value, dims in self.method.summaries(stack, stack.own(draws)).values():
                assert value.shape[:2] == (3, len(stack))
                assert value.dim() == 2 + len(dims)

    def test_it_says_its_formula_and_its_source(self) -> None:
        text = type(self.method).__doc__ or ""
        assert "Args:" in text
        assert "References:" in text
        assert "$" in text

    def test_its_dial_is_a_field_with_values_to_try(self) -> None:
        dial, cls = self.method.dial, type(self.method)
        if dial is None:  # the temperature of predictions
            return
        declared = fields.declarations(cls)[dial.field]
        assert contracts.fits("auto", declared), f"let {dial.field} be 'auto', {dial.field}: PositiveOrAuto"
        assert len(dial.grid) > 1
        assert list(dial.grid) == sorted(dial.grid)
        assert all(contracts.fits(value, declared) for value in dial.grid)

    def test_a_dial_that_acts_after_training_is_in_the_guide(self) -> None:
        dial = self.method.dial
        if dial is None or dial.buffer is None:
            return
        method, self.method = self.method, self.method.replace(**{dial.field: "auto"})
        try:
            guide = self.program().guide
        finally:
            self.method = method
        dial.put(guide, dial.grid[0])
        assert math.isclose(dial.value(guide), dial.grid[0], rel_tol=1e-6)
