"""Programs over small networks, for every method."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bayeslora.adapters import AdaptedNetwork, Stack
from bayeslora.methods import METHODS, Method, make_method
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import tiny_bert

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


# A method with its defaults, by its name, or with other fields.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in sorted(METHODS)} | {
    "monteclora auto": ("monteclora", {"noise_ratio": "auto"}),
    "autoguide learning its prior": ("autoguide", {"prior_scale": "learn"}),
    "lora_dropout on adalora": ("lora_dropout", {"base": "adalora"}),
    **{f"monteclora on {base}": ("monteclora", {"base": base}) for base in ("full", "dora", "adalora")},
}


@pytest.fixture(params=VARIANTS)
def method(request: pytest.FixtureRequest) -> Method:
    """Each method with its defaults, and variants with other sites."""
    name, fields = VARIANTS[request.param]
    return make_method(name, **fields)


@pytest.fixture
def make_program() -> Callable[..., Program]:
    """Builds a program over a tiny BERT without dropout."""

    def make(method: str | Method, *, num_particles: int = 1, double: bool = False, **fields: Any) -> Program:
        model = tiny_bert(**NO_DROPOUT)
        chosen = make_method(method, **fields)
        network = AdaptedNetwork(
            model.double() if double else model,
            chosen.family,
            rank=4,
            alpha=8,
            num_examples=48,
            head_family=chosen.head_family,
        )
        # An ensemble's particles are its members.
        count = chosen.num_particles if chosen.own_batches else num_particles
        return Program(network, chosen, Classification(3), count)

    return make


@pytest.fixture
def stack() -> Stack:
    """Two layers of 6 → 5 features at rank 3, of three in the network."""
    return Stack(
        name="6x5",
        layer_names=("first", "second"),
        d_in=6,
        d_out=5,
        rank=3,
        scaling=(2.0, 3.0),
        num_layers=3,
        num_examples=10,
    )


def randomise(program: Program, scale: float = 0.2, seed: int = 5) -> Program:
    """Move every learned parameter off its start, so that no term vanishes by symmetry."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in program.trainable():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return program


def dense_precision(matrix: Any) -> torch.Tensor:
    """R ⊗ C + τ I of a Laplace approximation, over the entries of the matrix row by row, `[layer, number, number]`."""
    R, C = (
        getattr(matrix, f"{side}_basis")
        @ torch.diag_embed(getattr(matrix, f"{side}_values"))
        @ getattr(matrix, f"{side}_basis").mT
        for side in ("row", "column")
    )
    products = torch.stack([torch.kron(r, c) for r, c in zip(R, C, strict=True)])
    return products + matrix.precision * torch.eye(products.shape[-1], dtype=products.dtype)
