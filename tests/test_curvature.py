"""Curvature of layers that a pass calls several times, against the exact Gauss-Newton matrix."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayeslora.adapters import AdaptedNetwork
from bayeslora.curvature import gauss_newton, hessian_root
from bayeslora.methods import Laplace
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.architectures.tiny import tiny_model
from tests.helpers import batch
from tests.methods.conftest import randomise

SIZE = 4


class Looped(nn.Module):
    """One layer, called three times; `sequence_first` turns its inputs to `[token, example, feature]`."""

    def __init__(self, sequence_first: bool = False) -> None:
        super().__init__()
        self.inner = nn.Linear(SIZE, SIZE)
        self.layers = nn.ModuleList([self.inner] * 2)
        self.head = nn.Linear(SIZE, 3)
        self.sequence_first = sequence_first

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1) if self.sequence_first else x
        x = x + self.inner(x).tanh()
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.head(x.mean(0 if self.sequence_first else 1))


class Siamese(nn.Module):
    """One layer, called on two inputs, each of which is an example of its own."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3)
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        parts = [x] if self.together else x.split(2)
        return self.head(torch.cat([self.inner(part).tanh() for part in parts]))


def program_of(model: nn.Module) -> Program:
    method = Laplace()
    network = AdaptedNetwork(model.double(), method.family, rank=2, alpha=4)
    return randomise(Program(network, method, Classification(3))).eval()


def ranks_of(program: Program) -> dict[str, tuple[int, int]]:
    return {
        stack.site(name): (shape[0], shape[1])
        for stack in program.stacks.values()
        for name, shape in stack.matrix_shapes.items()
    }


def exact_traces(program: Program, inputs: dict[str, Tensor], site: str) -> Tensor:
    """Tr Σ_n J_nᵀ Λ_n J_n of a site's layers, example by example, with the gradient of each root's column."""
    sites = {name: value.detach().clone().requires_grad_() for name, value in program.centre().items()}
    total = torch.zeros(len(sites[site]), dtype=torch.float64)
    for example in range(len(inputs["labels"])):
        row = {name: value[[example]] for name, value in inputs.items()}
        logits = program.logits(sites, row)
        for column in hessian_root(program.likelihood, logits, row["labels"]):
            (gradient,) = torch.autograd.grad(logits, sites[site], column, retain_graph=True)
            total += gradient.flatten(1).square().sum(1)
    return total


def traces(program: Program, batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    found = gauss_newton(program, batches, ranks_of(program))
    return {
        site: torch.stack([each.row_values.sum() * each.column_values.sum() for each in layers])
        for site, layers in found.items()
    }


def data(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(5, 3, SIZE, generator=generator, dtype=torch.float64), "labels": torch.arange(5) % 3}


def test_the_trace_is_exact_where_a_layer_is_called_several_times() -> None:
    program, batches = program_of(Looped()), [data(), data(1)]
    for site, found in traces(program, batches).items():
        torch.testing.assert_close(found, sum(exact_traces(program, each, site) for each in batches))


def test_the_trace_of_alberts_layers_is_exact() -> None:
    program = program_of(tiny_model("AlbertForSequenceClassification", {"num_hidden_layers": 6, "num_labels": 3}))
    inputs = batch(3)
    shared = {name: i for name, stack in program.stacks.items() for i, n in enumerate(stack.layer_names) if "ffn" in n}
    assert len(shared) == 2
    for site, found in traces(program, [inputs]).items():
        stack = site.partition(".")[0]
        if stack in shared:
            index = shared[stack]
            torch.testing.assert_close(found[index], exact_traces(program, inputs, site)[index])


def test_calls_on_examples_of_their_own_are_one_call_on_all() -> None:
    inputs = {"x": torch.randn(4, SIZE, dtype=torch.float64), "labels": torch.arange(4) % 3}
    apart, together = (program_of(model) for model in (Siamese(False), Siamese(True)))
    together.network.model.load_state_dict(apart.network.model.state_dict())
    together.guide.load_state_dict(apart.guide.state_dict())
    for site, found in traces(apart, [inputs]).items():
        torch.testing.assert_close(found, traces(together, [inputs])[site])


@pytest.mark.parametrize("size", [5, 3])
def test_without_examples_first_all_calls_count_by_themselves(size: int) -> None:
    first, later = program_of(Looped()), program_of(Looped(sequence_first=True))
    later.network.model.load_state_dict(first.network.model.state_dict())
    later.guide.load_state_dict(first.guide.state_dict())
    inputs = {name: value[:size] for name, value in data().items()}
    # R and C have the same directions; only the scale is not measured.
    ours, theirs = (gauss_newton(program, [inputs], ranks_of(program)) for program in (first, later))
    for site in ours:
        for one, other in zip(ours[site], theirs[site], strict=True):
            torch.testing.assert_close(one.row_values, other.row_values)
            torch.testing.assert_close(
                one.column_values / one.column_values.sum(), other.column_values / other.column_values.sum()
            )
            assert not torch.allclose(one.column_values, other.column_values)


def relus(between: Callable[[], nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, SIZE), between(), nn.Linear(SIZE, SIZE), between(), nn.Linear(SIZE, 3))


def test_a_network_may_write_into_what_its_layers_return() -> None:
    inputs = {"input": data()["x"][:, 0], "labels": data()["labels"]}
    ours, theirs = (
        gauss_newton(program, [inputs], ranks_of(program))
        for program in (program_of(relus(nn.ReLU)), program_of(relus(lambda: nn.ReLU(inplace=True))))
    )
    for site in ours:
        for one, other in zip(ours[site], theirs[site], strict=True):
            assert all(map(torch.equal, one, other))


class WritesBack(nn.Module):
    """A network that writes into the input of a layer after its call, and has a layer that it does not call."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.inner, self.head, self.unused = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3), nn.Linear(SIZE, 2)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(1)
        y = self.inner(x)
        return self.head(x.add_(y) if self.writes else x + y)


def test_a_network_that_writes_into_the_input_of_a_layer_is_refused() -> None:
    program = program_of(WritesBack(writes=True))
    with pytest.raises(ValueError, match=r"WritesBack writes into a tensor .* x = x \+ y instead of x \+= y"):
        gauss_newton(program, [data()], ranks_of(program))


def test_a_layer_that_is_not_called_has_no_curvature() -> None:
    program = program_of(WritesBack(writes=False))
    found = traces(program, [data()])
    assert {site: bool(total.any()) for site, total in found.items()} == {
        site: site.startswith("4x4") for site in ranks_of(program)
    }
