"""Laplace: the curvature and the predictive covariance against their formulas, and what the user gets."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters import AdaptedNetwork, Affine, Linearised
from bayeslora.curvature import Gram, gauss_newton, hessian_root
from bayeslora.methods import Laplace, laplace
from bayeslora.program import Program
from bayeslora.tasks import Classification, MultipleChoice, Regression
from tests.helpers import batch, tiny_bert, tokens
from tests.methods.conftest import NO_DROPOUT, dense_precision, randomise
from tests.tasks.cases import named

Make = Callable[..., Program]

LAPLACE_TORCH = Path(__file__).parents[1] / "references" / "laplace_torch.json"
"""Weights, data, and what laplace-torch makes of them: written by the script beside it."""


def given(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def padded(num_examples: int, **settings: int) -> dict[str, Tensor]:
    """A batch in which the last two tokens of every other example are padding."""
    inputs = batch(num_examples, **settings)
    inputs["attention_mask"][::2, -2:] = 0
    return inputs


def refined(make_program: Make, batches: list[dict[str, Tensor]], **fields: Any) -> Program:
    program = randomise(make_program("laplace", double=True, **fields)).eval()
    program.guide = program.method.refine(program, program.guide, batches, [])
    return program


def by_hand(program: Program, batches: list[dict[str, Tensor]], layer_name: str) -> tuple[list[Tensor], list[Tensor]]:
    """A layer's inputs and the gradients of its output, a vector per position and class, from a plain network.

    One example, one class at a time: √p_c (e_c − p) is a column of the root of diag(p) − p pᵀ.
    """
    from bayeslora.interop import merge

    model = merge(
        program.network, {n: type(f)(*(v.detach() for v in f)) for n, f in program.factors_at(program.centre()).items()}
    )
    layer, kept = model.get_submodule(layer_name), {}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        kept["x"], kept["h"] = inputs[0].detach(), output.detach().requires_grad_()
        return kept["h"]

    handle = layer.register_forward_hook(hook)
    inputs, gradients = [], []
    for each in batches:
        for example in range(len(each["labels"])):
            row = {name: value[[example]] for name, value in each.items() if name != "labels"}
            logits = model(**row).logits[0]
            p = logits.softmax(-1).detach()
            reached = torch.zeros(kept["x"].reshape(-1, kept["x"].shape[-1]).shape[0], dtype=torch.bool)
            for c in range(3):
                column = p[c].sqrt() * (torch.eye(3, dtype=p.dtype)[c] - p)
                (g,) = torch.autograd.grad(logits, kept["h"], column, retain_graph=True)
                gradients += list(g.reshape(-1, g.shape[-1]))
                reached |= g.reshape(-1, g.shape[-1]).any(-1)
            inputs += list(kept["x"].reshape(-1, kept["x"].shape[-1])[reached])
    handle.remove()
    return inputs, gradients


def predictive_covariance(program: Program, inputs: dict[str, Tensor]) -> Tensor:
    """J Σ Jᵀ of the linearised logits: Σ δ δᵀ over directions δ, the columns of a root of the guide's covariance.

    Stacks have a layer each.
    """
    centre = program.centre()
    at_centre, directions = program.factors_at(centre), []
    logits = program.network_logits(at_centre, inputs).detach()
    for site, matrix in laplace._matrices(program.guide).items():
        root = torch.linalg.cholesky(dense_precision(matrix)[0].inverse()).T
        draws = {other: value.detach().expand(len(root), *value.shape) for other, value in centre.items()}
        draws[site] = draws[site] + root.reshape(-1, *centre[site].shape)
        factors = [program.factors_at(draws)]
        linearised = Linearised(program.network, at_centre, factors.copy, program.likelihood.select)
        directions.append(linearised(inputs) - logits)
    change = torch.cat(directions)
    return torch.einsum("sec,sed->ecd", change, change)


def test_the_curvature_is_its_formula(make_program: Make) -> None:
    batches = [padded(5), padded(3, seed=2)]
    program = refined(make_program, batches, prior_precision=1.0)
    for name, index in (("32x32", 1), ("32x48", 0), ("48x32", 1)):
        layer = program.stacks[name].layer_names[index]
        x, g = (torch.stack(vectors) for vectors in by_hand(program, batches, layer))
        A, B = (program.guide[name].matrices[f].loc[index].detach() for f in "AB")
        s = 2.0
        for factor, z, gradient in (("A", x, s * g @ B), ("B", s * x @ A.T, g)):
            expected = torch.kron(gradient.T @ gradient, z.T @ z / len(z)) + torch.eye(
                A.numel() if factor == "A" else B.numel()
            )
            torch.testing.assert_close(
                dense_precision(program.guide[name].matrices[factor])[index], expected.double(), rtol=1e-5, atol=1e-7
            )


def test_padding_does_not_count(make_program: Make) -> None:
    program = randomise(make_program("laplace", double=True)).eval()
    inputs = padded(4)
    longer = {n: torch.nn.functional.pad(v, (0, 3), value=0) if v.dim() > 1 else v for n, v in inputs.items()}
    ranks = {"32x32.A": (4, 32)}
    ours, theirs = (gauss_newton(program, [each], ranks)["32x32.A"] for each in (inputs, longer))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.column_values, other.column_values)


def test_the_last_layers_predictive_is_its_formula(make_program: Make) -> None:
    tau, batches, test = 0.7, [batch(8), batch(5, seed=2)], batch(4, seed=9)
    program = refined(make_program, batches, prior_precision=tau, last_layer=True)
    features: list[Tensor] = []
    hook = program.network.layers("head_32x3")[0].register_forward_hook(
        lambda module, x, h: features.append(x[0].detach())
    )
    logits = [program(**each).logits.detach() for each in (*batches, test)]
    hook.remove()
    x = [torch.cat([part, torch.ones(len(part), 1).double()], dim=1) for part in features]
    p = torch.cat(logits[:2]).softmax(-1)
    R = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).sum(0)
    C = torch.cat(x[:2]).T @ torch.cat(x[:2]) / len(p)
    covariance = (torch.kron(R, C) + tau * torch.eye(3 * 33).double()).inverse()
    J = torch.stack([torch.kron(torch.eye(3).double(), row) for row in x[2]])
    expected = J @ covariance @ J.mT

    words = {name: value for name, value in test.items() if name != "labels"}
    torch.testing.assert_close(predictive_covariance(program, words), expected, rtol=1e-5, atol=1e-8)


class TwoLayers(nn.Module):
    """The network of `tests/references/laplace_torch.py`, without its adapters."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.classifier = nn.Linear(6, 3)
        head = weights["head.weight"]
        values = (weights["first.W0.weight"], weights["second.W0.weight"], head[:, :-1], head[:, -1])
        for parameter, value in zip(self.parameters(), values, strict=True):
            parameter.data = value

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.second(self.first(x).tanh()).tanh())


def test_curvature_and_predictive_are_those_of_laplace_torch() -> None:
    record = json.loads(LAPLACE_TORCH.read_text())
    weights = {name: given(value) for name, value in record["weights"].items()}
    labels, tau, rank = torch.tensor(record["labels"]), record["precision"], len(weights["first.A.weight"])
    network = AdaptedNetwork(TwoLayers(weights), rank=rank, alpha=record["scaling"] * rank, head_family=Affine())
    program = Program(network, Laplace(prior_precision=tau), Classification(3)).double().eval()
    sites = {
        "first.A.weight": "5x6.A",
        "first.B.weight": "5x6.B",
        "second.A.weight": "6x6.A",
        "second.B.weight": "6x6.B",
        "head.weight": "head_6x3.weight",
    }
    matrices = laplace._matrices(program.guide)
    for name, site in sites.items():
        if name != "head.weight":  # the head's factors are its change, which is 0
            matrices[site].loc.data[0] = weights[name]
    pairs = zip(given(record["x"]).split(record["batch_size"]), labels.split(record["batch_size"]), strict=True)
    batches = [{"x": x, "labels": some} for x, some in pairs]
    program.guide = program.method.refine(program, program.guide, batches, [])
    for name, site in sites.items():
        R, C = (given(record[factor][name]) for factor in "RC")
        precision = torch.kron(R, C) + tau * torch.eye(len(R) * len(C)).double()
        torch.testing.assert_close(dense_precision(matrices[site])[0], precision, rtol=1e-5, atol=1e-8)
    inputs = {"x": given(record["test"])}
    logits = program.network_logits(program.factors_at(program.centre()), inputs)
    torch.testing.assert_close(logits, given(record["logits"]), rtol=1e-5, atol=1e-8)
    covariance = predictive_covariance(program, inputs)
    torch.testing.assert_close(covariance, given(record["covariance"]), rtol=1e-5, atol=1e-8)


def test_the_last_layer_of_a_regression_is_bayesian_linear_regression() -> None:
    tau, scale = 0.7, 0.4
    network = AdaptedNetwork(tiny_bert(1, **NO_DROPOUT).double(), rank=2, head_family=Laplace.head_family)
    program = Program(network, Laplace(prior_precision=tau, last_layer=True), Regression(scale)).eval()
    batches = [{**part, "labels": part["labels"].double()} for part in (batch(8), batch(5, seed=2))]
    program.guide = program.method.refine(program, program.guide, batches, [])
    features: list[Tensor] = []
    with network.layers("head_32x1")[0].register_forward_hook(lambda module, x, h: features.append(x[0].detach())):
        for part in batches:
            program(**part)
    x = torch.cat([torch.cat(features), torch.ones(13, 1).double()], dim=1)
    expected = x.T @ x / scale**2 + tau * torch.eye(33).double()
    torch.testing.assert_close(dense_precision(program.guide["head_32x1"].matrices["weight"])[0], expected)


def test_a_choice_that_is_padding_has_no_curvature() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4, 3).double()
    logits[:2, 2] = -math.inf
    labels = torch.tensor([0, 1, 2, 0])
    p = logits.softmax(-1)
    columns = torch.stack(hessian_root(MultipleChoice(3), logits, labels))
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    torch.testing.assert_close(torch.einsum("ksc,ksd->scd", columns, columns), expected)


@pytest.mark.parametrize("name", ["Bert-choice", "Bert-multilabel", "Bert-regression", "GPT2-letters", "Llama-letters"])
def test_it_takes_tasks_with_a_vector_of_logits(name: str) -> None:
    case = named(name)
    posterior = bayeslora.fit(case.make(), case.data, "laplace", likelihood=case.likelihood, **FIT)
    assert posterior.predict(case.data, 4).draws.shape == (4, *case.shape)


@pytest.mark.parametrize("name", ["Bert-token", "Bert-span", "Llama-causal", "T5"])
def test_it_refuses_others_before_training(name: str) -> None:
    case = named(name)
    with pytest.raises(
        ValueError, match=r"'laplace' is for a number or a vector of logits per example.*another method"
    ):
        bayeslora.fit(case.make(), case.data, "laplace", **FIT)


def test_a_truncated_curvature_is_never_larger(make_program: Make) -> None:
    full, truncated = (
        refined(make_program, [batch(24)], prior_precision=1.0, max_width=width, kept=5) for width in (1024, 16)
    )
    for factor in "AB":
        matrices = [program.guide["32x32"].matrices[factor] for program in (full, truncated)]
        difference = dense_precision(matrices[0]) - dense_precision(matrices[1])
        assert float(torch.linalg.eigvalsh(difference).min()) > -1e-8
        assert float(difference.abs().max()) > 1e-6
    assert truncated.guide["32x32"].matrices["A"].column_basis.shape == (8, 32, 5)


def test_a_network_in_half_precision_has_factors_and_curvature_in_single() -> None:
    network = AdaptedNetwork(tiny_bert().bfloat16(), rank=2, num_examples=48, head_family=Laplace.head_family)
    program = randomise(Program(network, Laplace(prior_precision=100.0), Classification(3))).eval()
    program.guide = program.method.refine(program, program.guide, [batch(24)], [])
    assert {value.dtype for value in program.guide.state_dict().values()} == {torch.float32}
    words = {name: value for name, value in batch(5).items() if name != "labels"}
    logits = program.linearised(program.draw(4))(words)
    assert logits.dtype == torch.float32
    assert bool(logits.isfinite().all())
    assert float(logits.std(0).max()) > 0


def test_a_gram_matrix_of_low_rank_is_recovered() -> None:
    torch.manual_seed(1)
    vectors = torch.randn(40, 3).double() @ torch.randn(3, 10).double()
    for rank in (3, 4, 10):
        gram = Gram(rank)
        for part in vectors.split(7):
            gram.add(part)
        basis, values = gram.eigh()
        assert basis.shape == (10, rank)
        torch.testing.assert_close(basis @ torch.diag(values) @ basis.T, vectors.T @ vectors)
    few = Gram(5)
    few.add(vectors[:2])
    assert few.eigh()[0].shape == (10, 5)


def test_what_is_left_of_vectors_by_rounding_is_no_eigenvector() -> None:
    # Their squares are 0 in single precision, and dividing by a length of 0 made entries of 1e12.
    gram = Gram(3)
    gram.add(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1e-26, 1e-26, 0.0]]))
    basis, values = gram.eigh()
    assert torch.equal(basis.abs(), torch.tensor([[1.0, 0.0, 0.0], *[[0.0, 0.0, 0.0]] * 3]))
    assert torch.equal(values, torch.tensor([1.0, 0.0, 0.0]))


def test_the_evidence_is_largest_at_the_precision_found(make_program: Make) -> None:
    program = refined(make_program, [batch(24)], prior_precision="evidence")
    matrices = laplace._matrices(program.guide)
    found = float(matrices["32x32.A"].precision)
    values = torch.cat([matrix.eigenvalues().flatten() for matrix in matrices.values()])
    weights = [matrix.loc.detach() + laplace._frozen(program, site) for site, matrix in matrices.items()]
    square = sum(weight.square().sum() for weight in weights)

    def evidence(tau: float) -> float:
        return float(len(values) / 2 * math.log(tau) - tau / 2 * square - (values + tau).log().sum() / 2)

    assert 0.1 < found < 1e6
    assert evidence(found) > max(evidence(1.02 * found), evidence(found / 1.02))


# What the user gets

FIT: dict[str, Any] = {"rank": 2, "epochs": 6, "learning_rate": 5e-3, "progress": False}
TEST = tokens(40, seed=3)


def test_held_out_data_choose_the_precision(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        posterior = bayeslora.fit(tiny_bert(), tokens(), "laplace", validation=TEST, **FIT)
    assert "(validation)" in caplog.text
    scores = posterior.evaluate(TEST, 200)  # no warning that draws disagree: the linearised network is the method's own
    assert scores["nll"] < scores["center_nll"] + 0.005
    assert posterior.predict(TEST).epistemic.max() > 0


def test_on_the_last_layer_alone_the_network_is_linear(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        posterior = bayeslora.fit(tiny_bert(), tokens(), "laplace", last_layer=True, **FIT)
    assert "(evidence)" in caplog.text
    linear, exact = (posterior.predict(TEST, 8, approximation=how).draws for how in ("linear", "draws"))
    np.testing.assert_allclose(linear, exact, atol=1e-5)
    assert linear.std(0).max() > 1e-3
    assert np.array_equal(posterior.predict(TEST, 8).draws, linear)
    draws = posterior.draw(2)
    assert all(torch.equal(value[0], value[1]) for name, value in draws.items() if not name.startswith("head"))


def test_a_trained_lora_gets_a_posterior_without_training(tmp_path: Path) -> None:
    lora = bayeslora.fit(tiny_bert(), tokens(), "lora", **FIT)
    posterior = bayeslora.fit(
        tiny_bert(), tokens(), "laplace", init=lora, post_hoc=True, prior_precision=100.0, output_dir=tmp_path, **FIT
    )
    assert posterior.history.empty
    centre, trained = (p.predict(TEST, center=True).probs for p in (posterior, lora))
    np.testing.assert_allclose(centre, trained, atol=1e-6)
    loaded = bayeslora.load(tmp_path, tiny_bert())
    assert np.array_equal(loaded.predict(TEST, 4).draws, posterior.predict(TEST, 4).draws)


def test_it_trains_as_a_lora_does() -> None:
    histories = [bayeslora.fit(tiny_bert(), tokens(), name, **FIT).history["nll"] for name in ("laplace", "lora")]
    assert histories[0].iloc[-1] == pytest.approx(histories[1].iloc[-1], rel=0.2)


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match="give 'validation', 'evidence', 'auto' or a positive finite number"):
        Laplace(prior_precision=0.0)
    with pytest.raises(ValueError, match="kept=0: give a whole number"):
        Laplace(kept=0)
    network = AdaptedNetwork(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), rank=2)
    with pytest.raises(ValueError, match="last_layer=True: the network has no task head"):
        Program(network, Laplace(last_layer=True), Classification(3))
