"""Modules around linear layers, such as LoRA layers of the user's own: each product gets one adapter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bayeslora
from bayeslora.adapters import AdaptedNetwork
from tests.architectures.families import classes, noise


class Around(nn.Module):
    """A LoRA layer written by hand around the layer it was made for."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(12, 16)
        self.in_features, self.out_features = 12, 16
        self.A, self.B = nn.Parameter(torch.randn(4, 12) / 4), nn.Parameter(torch.randn(16, 4) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T


class WithWeight(Around):
    """The same, with the weight that it stands for."""

    @property
    def weight(self) -> Tensor:
        return self.base.weight + self.B @ self.A

    @property
    def bias(self) -> Tensor:
        return self.base.bias


class Lends(nn.Module):
    """A layer whose attributes are those of the one within."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(12, 16)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


class Bottleneck(nn.Module):
    """Two layers, which say how many features they take and return."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 12, 16
        self.down, self.up = nn.Linear(12, 8), nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(torch.relu(self.down(x)))


class Within(nn.Linear):
    """A linear layer with a LoRA of linear layers in it, which starts at zero."""

    def __init__(self) -> None:
        super().__init__(12, 16)
        self.lora_A, self.lora_B = nn.Linear(12, 4, bias=False), nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.lora_B(self.lora_A(x))


class Factorised(nn.Module):
    """A layer whose weight is a product of two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 12, 16
        self.U, self.V = nn.Parameter(torch.randn(16, 5)), nn.Parameter(torch.randn(5, 12))

    @property
    def weight(self) -> Tensor:
        return self.U @ self.V

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Images(nn.Module):
    """A block of convolutions that calls its channels features."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 3, 4
        self.conv = nn.Conv1d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.view(len(x), 3, 4)).flatten(1)


def network(first: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def fitted(model: nn.Module, **settings: Any) -> bayeslora.Posterior:
    data = {"input": noise(6, 12)}, classes(6)
    return bayeslora.fit(model, data, "lora", epochs=1, rank=2, progress=False, **settings)


def adapted(posterior: bayeslora.Posterior) -> set[str]:
    return {name for stack in posterior.network.stacks.values() for name in stack.layer_names}


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (Around, {"0.base"}),
        (WithWeight, {"0.base"}),
        (Lends, {"0.base"}),
        (Bottleneck, {"0.down", "0.up"}),
        (Within, {"0"}),
    ],
)
def test_each_product_gets_one_adapter(make: Callable[[], nn.Module], layers: set[str]) -> None:
    posterior = fitted(network(make()))
    assert adapted(posterior) == {*layers, "2"}
    with torch.no_grad():
        for parameter in posterior.guide.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = noise(5, 12)
    with torch.no_grad():
        expected = posterior.program.eval().logits(posterior.program.centre(), {"input": x})
        assert torch.allclose(posterior.merge().eval()(x), expected, rtol=0, atol=1e-9)


def test_what_stands_around_a_layer_has_no_rank() -> None:
    with pytest.raises(ValueError, match=r"rank={'0': …} names no linear layer"):
        AdaptedNetwork(network(Around()), rank={"0": 2})


def test_nothing_is_merged_into_a_weight_that_is_computed() -> None:
    posterior = fitted(network(Factorised()))
    assert adapted(posterior) == {"0", "2"}
    with pytest.raises(ValueError, match="Layer '0', a Factorised, has no tensor 'weight' of its own"):
        posterior.merge()


def test_features_that_are_not_the_last_dimension_are_not_a_linear_layers(caplog: pytest.LogCaptureFixture) -> None:
    assert adapted(fitted(network(Images()))) == {"2"}
    assert "its output is [2, 16] for an input [2, 12], and it says 3 to 4 features at '0'" in caplog.text
