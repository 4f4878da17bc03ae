"""Every adapter family: its start, its draws, its norms, and what it folds into the weights."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from bayeslora import interop
from bayeslora.adapters import (
    SVD,
    AdaptedNetwork,
    Affine,
    Bias,
    Bottleneck,
    DoRA,
    Factors,
    Family,
    Full,
    InputDropout,
    LowRank,
    choose_targets,
)
from bayeslora.adapters.families import Shapes
from bayeslora.adapters.families.base import linear
from bayeslora.methods.point import PointEstimate
from bayeslora.program import Program
from bayeslora.tasks import Classification
from tests.helpers import assert_mean_close, batch, tiny_bert, tiny_gpt2, tiny_llama


class RankOneFactors(NamedTuple):
    u: Tensor
    v: Tensor


class RankOne(Family):
    """A family of one's own, which nothing in the library names: h = W0 x + u (v · x), with v at 1 and u at 0."""

    factors = RankOneFactors
    layer_dims = (1, 1)
    has_rank = False

    def shapes(self, d_in: int, d_out: int, rank: int) -> Shapes:
        return {"u": (d_out,), "v": (d_in,)}

    def initial(self, num_layers: int, shapes: Shapes, measured: Mapping[str, Tensor]) -> RankOneFactors:
        return RankOneFactors(torch.zeros(num_layers, *shapes["u"]), torch.ones(num_layers, *shapes["v"]))

    def forward(self, base: nn.Module, x: Tensor, factors: RankOneFactors) -> Tensor:
        return base(x) + linear(linear(x, factors.v[..., None, :]), factors.u[..., None])

    def delta(self, factors: RankOneFactors, bases: Sequence[nn.Module] = ()) -> Tensor:
        return factors.u[..., None] * factors.v[..., None, :]

    def difference_norm(
        self, factors: RankOneFactors, reference: RankOneFactors | None = None, bases: Sequence[nn.Module] = ()
    ) -> Tensor:
        change = self.delta(factors) - (0 if reference is None else self.delta(reference))
        return change.norm(dim=(-2, -1))


FAMILIES = (
    *(LowRank(), SVD(), DoRA(), Full(), Bias(), Affine(), Bottleneck(), Bottleneck("relu", after_attention=False)),
    RankOne(),
)
FOLDED = tuple(family for family in FAMILIES if not isinstance(family, Bottleneck))
MAKERS = (tiny_bert, tiny_llama, tiny_gpt2)


def name_of(value: Any) -> str:
    return getattr(value, "__name__", type(value).__name__)


def inputs(num_examples: int = 4, length: int = 7) -> dict[str, Tensor]:
    x = batch(num_examples, length=length)
    del x["labels"]
    return x


def factors_of(network: AdaptedNetwork, *draws: int, scale: float = 0.2) -> dict[str, Any]:
    """Random factors around those that a fit starts from."""
    factors = {}
    for name, stack in network.stacks.items():
        start = [value.to(network.dtype) for value in stack.initial()]
        factors[name] = stack.family.factors(*(v + scale * torch.randn(*draws, *v.shape, dtype=v.dtype) for v in start))
    return factors


def at(factors: dict[str, Any], draw: int) -> dict[str, Any]:
    return {name: type(value)(*(factor[draw] for factor in value)) for name, value in factors.items()}


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_it_starts_as_the_base_network(family: Family, make: Any) -> None:
    model = make()
    network = AdaptedNetwork(model, family, rank=3).eval()
    start = {name: stack.initial() for name, stack in network.stacks.items()}
    assert torch.equal(network(start, inputs()), model(**inputs()).logits)
    assert all(
        bool((stack.family.difference_norm(start[name], bases=network.bases(name)) == 0).all())
        for name, stack in network.stacks.items()
    )


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_draws_together_are_draws_apart(family: Family, make: Any) -> None:
    network = AdaptedNetwork(make(), family, rank=3).eval()
    factors = factors_of(network, 3)
    with torch.no_grad():
        together = network(factors, inputs())
        apart = torch.stack([network(at(factors, draw), inputs()) for draw in range(3)])
    assert apart.std(0).mean() > 1e-4
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("family", FOLDED, ids=name_of)
def test_merged_weights_compute_the_same(family: Family, make: Any) -> None:
    model = make().double()
    network = AdaptedNetwork(model, family, rank=3).eval()
    factors = factors_of(network)
    with torch.no_grad():
        expected = network(factors, inputs())
        merged = interop.merge(network, factors)
        torch.testing.assert_close(merged(**inputs()).logits, expected, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(expected, model(**inputs()).logits, atol=1e-3)
    assert not any("Adapted" in type(module).__name__ for module in merged.modules())


@pytest.mark.parametrize("family", FOLDED, ids=name_of)
def test_norms_are_those_of_the_changes(family: Family) -> None:
    network = AdaptedNetwork(tiny_gpt2().double(), family, rank=3)
    factors, others = (network.scaled(factors_of(network, 2)) for _ in range(2))
    for name in network.stacks:
        bases = network.bases(name)

        def change(f: Any, bases: Sequence[nn.Module] = bases) -> Tensor:
            weight, bias = family.delta(f, bases), family.bias_delta(f)
            parts = [part for part in (weight, None if bias is None else bias[..., None]) if part is not None]
            return torch.cat(parts, dim=-1)

        ours, theirs = change(factors[name]), change(others[name])
        norm = family.difference_norm(factors[name], bases=bases)
        torch.testing.assert_close(norm, ours.norm(dim=(-2, -1)))
        norm = family.difference_norm(factors[name], others[name], bases)
        torch.testing.assert_close(norm, (ours - theirs).norm(dim=(-2, -1)))
        # The centre, which has no draws, is compared with draws.
        centre = type(factors[name])(*(factor[0] for factor in factors[name]))
        norm = family.difference_norm(factors[name], centre, bases)
        torch.testing.assert_close(norm, (ours - ours[0]).norm(dim=(-2, -1)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=name_of)
def test_shapes_are_those_of_the_start(family: Family) -> None:
    for stack in AdaptedNetwork(tiny_bert(), family, rank=3).stacks.values():
        start = stack.initial()
        assert {name: tuple(value.shape) for name, value in start._asdict().items()} == {
            name: (len(stack), *shape) for name, shape in stack.shapes.items()
        }
        assert family.layer_dims == tuple(len(shape) for shape in stack.shapes.values())


def test_families_without_a_rank_take_any() -> None:
    stacks = AdaptedNetwork(tiny_bert(), Full(), rank=10_000).stacks
    assert {name: stack.rank for name, stack in stacks.items()} == {"32x32": 32, "32x48": 32, "48x32": 32}


def test_a_method_trains_a_family_of_ones_own() -> None:
    class RankOneAlone(PointEstimate):
        name = "rank_one"
        family = RankOne()

    network = AdaptedNetwork(tiny_bert(), RankOne(), num_examples=4)
    program = Program(network, RankOneAlone(), Classification(3))
    program(**batch(4)).loss.backward()
    gradients = [parameter.grad for name, parameter in program.guide.named_parameters() if ".u." in name]
    assert len(gradients) == len(network.stacks)
    assert all(gradient.abs().max() > 0 for gradient in gradients)  # that of v is 0 while u is
    with pytest.raises(ValueError, match="RankOne adapters have no form in PEFT's LoRA"):
        interop.export_peft(network, program.factors_at(program.centre()), "unused")


# What methods ask of a family

SIDED = (LowRank(), InputDropout(0.1), SVD(), DoRA(), Full())
PRODUCTS = (LowRank(), SVD())
CURVED = (LowRank(), Affine())


@pytest.mark.parametrize("family", SIDED, ids=name_of)
def test_its_sides_belong_to_input_and_output_features(family: Family) -> None:
    shapes = family.shapes(7, 5, 3)
    assert shapes[family.columns][-1] == 7
    assert shapes[family.rows][-2] == 5


@pytest.mark.parametrize("family", [LowRank(), SVD(), Full()], ids=name_of)
def test_a_column_is_an_input_feature_and_a_row_an_output_feature(family: Family) -> None:
    factors = family.factors(*(torch.randn(2, *shape).double() for shape in family.shapes(7, 5, 3).values()))
    left_out = factors._replace(**{family.columns: getattr(factors, family.columns).clone()})
    getattr(left_out, family.columns)[..., 4] = 0
    expected = family.delta(factors).clone()
    expected[..., 4] = 0
    torch.testing.assert_close(family.delta(left_out), expected)
    left_out = left_out._replace(**{family.rows: getattr(left_out, family.rows).clone()})
    getattr(left_out, family.rows)[..., 2, :] = 0
    expected[..., 2, :] = 0
    torch.testing.assert_close(family.delta(left_out), expected)


@pytest.mark.parametrize("family", [family for family in SIDED if family.has_rank], ids=name_of)
def test_the_scale_of_the_start_is_its_standard_deviation(family: Family) -> None:
    shapes = family.shapes(40, 5, 3)
    start = family.initial(400, shapes, {"m": torch.ones(400, 5)})
    entries = getattr(start, family.columns).flatten()
    assert_mean_close(entries.square(), family.start_scale(40) ** 2)


def test_full_weights_count_in_hundredths_of_a_new_layers() -> None:
    assert Full().start_scale(40) == pytest.approx(LowRank().start_scale(40) / 100, rel=1e-12)


@pytest.mark.parametrize("family", PRODUCTS, ids=name_of)
def test_the_product_is_the_change(family: Family) -> None:
    factors = family.factors(*(torch.randn(2, 4, *shape).double() for shape in family.shapes(7, 5, 3).values()))
    right, left = family.product(factors)
    assert (right.shape, left.shape) == ((2, 4, 3, 7), (2, 4, 5, 3))
    torch.testing.assert_close(left @ right, family.delta(factors))
    x = torch.randn(6, 7).double()
    base = nn.Linear(7, 5, dtype=torch.float64)
    layer = family.factors(*(factor[0, 0] for factor in factors))
    torch.testing.assert_close(family.forward(base, x, layer) - base(x), x @ (left @ right)[0, 0].T)


@pytest.mark.parametrize("family", [Bias(), Bottleneck(), RankOne()], ids=name_of)
def test_a_family_without_sides_says_so(family: Family) -> None:
    with pytest.raises(TypeError, match=f"{name_of(family)} adapters have no factor whose columns belong to the"):
        _ = family.columns
    with pytest.raises(TypeError, match=f"{name_of(family)} adapters have no factor whose rows belong to the"):
        _ = family.rows
    with pytest.raises(TypeError, match="have no factor whose columns"):
        family.start_scale(7)


@pytest.mark.parametrize("family", [DoRA(), Full(), Bias(), Affine(), Bottleneck(), RankOne()], ids=name_of)
def test_a_family_whose_change_is_no_product_says_so(family: Family) -> None:
    factors = family.factors(*(torch.zeros(2, *shape) for shape in family.shapes(7, 5, 3).values()))
    with pytest.raises(TypeError, match=f"{name_of(family)} adapters do not change the weight by a product"):
        family.product(factors)


@pytest.mark.parametrize("family", CURVED, ids=name_of)
def test_inputs_and_gradients_of_its_matrices_make_up_their_gradient(family: Family) -> None:
    shapes = family.shapes(7, 5, 3)
    start = family.factors(*(torch.randn(1, *shape).double() for shape in shapes.values()))
    matrices = {name: value.requires_grad_() for name, value in family.matrices(start).items()}
    factors = family.from_matrices(matrices)
    s, x, g = torch.tensor([1.7]).double(), torch.randn(2, 6, 7).double(), torch.randn(2, 6, 5).double()
    base = nn.Linear(7, 5, dtype=torch.float64).requires_grad_(False).eval()
    (layer,) = family.unstack(family.scale(factors, s if family.has_rank else torch.ones(1).double()))
    gradients = torch.autograd.grad((family.forward(base, x, layer) * g).sum(), list(matrices.values()))
    parts = family.curvature(*family.unstack(factors), s[0], x, g)
    assert list(parts) == list(matrices)
    for (z, gradient), expected in zip(parts.values(), gradients, strict=True):
        torch.testing.assert_close(torch.einsum("...r,...c->rc", gradient, z), expected[0])


@pytest.mark.parametrize("family", [SVD(), DoRA(), Full(), Bias(), Bottleneck(), RankOne()], ids=name_of)
def test_a_family_whose_curvature_is_not_known_says_so(family: Family) -> None:
    factors = family.factors(*(torch.zeros(shape) for shape in family.shapes(7, 5, 3).values()))
    with pytest.raises(TypeError, match=f"The curvature of {name_of(family)} factors is not known; that of low-rank"):
        family.curvature(factors, torch.ones(()), torch.zeros(4, 7), torch.zeros(4, 5))


# SVD


def test_svd_is_a_scaled_sum_of_outer_products() -> None:
    network = AdaptedNetwork(tiny_bert(), SVD(), targets="query", rank=3, alpha=6)
    factors = factors_of(network)
    P, lam, Q = (factor[1] for factor in factors["32x32"])
    network.bind(factors)
    layer, x = network.layers("32x32")[1], torch.randn(5, 32)
    expected = layer.base(x) + 2 * sum(lam[i] * torch.outer(x @ Q[i], P[:, i]) for i in range(3))
    torch.testing.assert_close(layer(x), expected)


# DoRA


def test_doras_rows_have_the_norms_m() -> None:
    network = AdaptedNetwork(tiny_bert().double(), DoRA(), rank=3)
    factors = network.scaled(factors_of(network))
    for name, value in factors.items():
        bases = network.bases(name)
        weights = torch.stack([base.weight for base in bases]) + DoRA().delta(value, bases)
        torch.testing.assert_close(weights.norm(dim=-1), value.m.abs())


def test_a_row_of_zeros_stays_one() -> None:
    model = tiny_bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.query.weight[3] = 0
    network = AdaptedNetwork(model, DoRA(), targets="query", rank=3).eval()
    start = {name: stack.initial() for name, stack in network.stacks.items()}
    assert torch.equal(network(start, inputs()), model(**inputs()).logits)


def test_quantised_weights_have_no_norms() -> None:
    model = tiny_bert()
    layer = model.bert.encoder.layer[0].attention.self.query
    layer.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"Linear holds quantised weights \(torch.int8\), whose rows DoRA cannot"):
        AdaptedNetwork(model, DoRA(), targets="query", rank=3)
    AdaptedNetwork(model, SVD(), targets="query", rank=3)


def peft_dora(network: AdaptedNetwork, model: nn.Module, factors: dict[str, Any]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    names = [name for stack in network.stacks.values() for name in stack.layer_names]
    settings = {"fan_in_fan_out": True} if type(model).__name__.startswith("GPT2") else {}
    config = LoraConfig(r=3, lora_alpha=6, target_modules=names, use_dora=True, **settings)
    adapted = get_peft_model(copy.deepcopy(model), config).eval()
    with torch.no_grad():
        for name, stack in network.stacks.items():
            for layer, A, B, m in zip(stack.layer_names, *factors[name], strict=True):
                lora = adapted.base_model.model.get_submodule(layer)
                lora.lora_A["default"].weight.copy_(A)
                lora.lora_B["default"].weight.copy_(B)
                lora.lora_magnitude_vector["default"].weight.copy_(m)
    return adapted


@pytest.mark.parametrize("make", MAKERS)
def test_dora_is_pefts(make: Any) -> None:
    model = make()
    network = AdaptedNetwork(model, DoRA(), rank=3, alpha=6).eval()
    factors = {
        name: type(value)(*(factor.requires_grad_() for factor in value)) for name, value in factors_of(network).items()
    }
    labels = batch(4)["labels"]
    logits = network(factors, inputs())
    nn.functional.cross_entropy(logits, labels).backward()
    reference = peft_dora(network, model, factors)
    expected = reference(**inputs()).logits
    nn.functional.cross_entropy(expected, labels).backward()

    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    for name, stack in network.stacks.items():
        for index, layer in enumerate(stack.layer_names):
            lora = reference.base_model.model.get_submodule(layer)
            for own, theirs in zip(factors[name], (lora.lora_A, lora.lora_B, lora.lora_magnitude_vector), strict=True):
                gradient = theirs["default"].weight.grad
                assert gradient.abs().max() > 0
                torch.testing.assert_close(own.grad[index], gradient, rtol=1e-5, atol=1e-5)


# Weights and biases


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_layers_without_a_bias_get_one(make: Any) -> None:
    model = make()
    network = AdaptedNetwork(model, Bias(), rank=3).eval()
    factors = factors_of(network)
    network.bind(factors)
    for name, value in factors.items():
        for layer, bias in zip(network.layers(name), value.bias, strict=True):
            x = torch.randn(2, 5, network.stacks[name].d_in)
            torch.testing.assert_close(layer(x), layer.base(x) + bias)
    merged = interop.merge(network, factors)
    layer = next(iter(network.stacks.values())).layer_names[0]
    before = model.get_submodule(layer).bias
    bias = next(iter(factors.values())).bias[0]
    torch.testing.assert_close(merged.get_submodule(layer).bias, bias if before is None else before + bias)
    assert (model.get_submodule(layer).bias is None) == (before is None)


# Bottlenecks


def test_a_bottleneck_follows_its_layer() -> None:
    network = AdaptedNetwork(tiny_bert(), Bottleneck("relu"), rank=3)
    factors = factors_of(network)
    network.bind(factors)
    for name, layer in (("32x32", network.layers("32x32")[1]), ("48x32", network.layers("48x32")[1])):
        W_down, b_down, W_up, b_up = (factor[1] for factor in factors[name])
        x = torch.randn(5, network.stacks[name].d_in)
        h = layer.base(x)
        torch.testing.assert_close(layer(x), h + torch.relu(h @ W_down.T + b_down) @ W_up.T + b_up)


def test_a_bottleneck_cannot_be_merged() -> None:
    network = AdaptedNetwork(tiny_bert(), Bottleneck(), rank=3)
    with pytest.raises(ValueError, match=r"do not change the weights.*center=True"):
        interop.merge(network, factors_of(network))


def architectures() -> dict[str, tuple[Any, list[str], list[str]]]:
    """A small model of each, the layers that end its attention, and those that end its MLP."""
    import transformers as tf

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    text = {"vocab_size": 60, "pad_token_id": 0, **size}
    t5 = {"vocab_size": 60, "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8}
    bart = {"vocab_size": 60, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
    bart |= {
        f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("attention_heads", 4), ("ffn_dim", 48))
    }
    bert = "encoder.layer.0."
    decoder = "model.layers.0."
    return {
        "bert": (
            tf.BertForSequenceClassification(tf.BertConfig(**text)),
            [f"bert.{bert}attention.output.dense"],
            [f"bert.{bert}output.dense"],
        ),
        "roberta": (
            tf.RobertaForSequenceClassification(tf.RobertaConfig(**text)),
            [f"roberta.{bert}attention.output.dense"],
            [f"roberta.{bert}output.dense"],
        ),
        "gpt2": (
            tf.GPT2ForSequenceClassification(tf.GPT2Config(vocab_size=60, n_embd=32, n_layer=1, n_head=4)),
            ["transformer.h.0.attn.c_proj"],
            ["transformer.h.0.mlp.c_proj"],
        ),
        "llama": (
            tf.LlamaForSequenceClassification(tf.LlamaConfig(**text)),
            [f"{decoder}self_attn.o_proj"],
            [f"{decoder}mlp.down_proj"],
        ),
        "t5": (
            tf.T5ForConditionalGeneration(tf.T5Config(**t5)),
            [
                "encoder.block.0.layer.0.SelfAttention.o",
                "decoder.block.0.layer.0.SelfAttention.o",
                "decoder.block.0.layer.1.EncDecAttention.o",
            ],
            ["encoder.block.0.layer.1.DenseReluDense.wo", "decoder.block.0.layer.2.DenseReluDense.wo"],
        ),
        "vit": (
            tf.ViTForImageClassification(tf.ViTConfig(image_size=16, patch_size=8, **size)),
            ["vit.layers.0.attention.o_proj"],
            ["vit.layers.0.mlp.fc2"],
        ),
        "bart": (
            tf.BartForSequenceClassification(tf.BartConfig(**bart)),
            [
                "model.encoder.layers.0.self_attn.out_proj",
                "model.decoder.layers.0.self_attn.out_proj",
                "model.decoder.layers.0.encoder_attn.out_proj",
            ],
            ["model.encoder.layers.0.fc2", "model.decoder.layers.0.fc2"],
        ),
        "distilbert": (
            tf.DistilBertForSequenceClassification(
                tf.DistilBertConfig(vocab_size=60, dim=32, n_layers=1, n_heads=4, hidden_dim=48)
            ),
            ["distilbert.transformer.layer.0.attention.out_lin"],
            ["distilbert.transformer.layer.0.ffn.lin2"],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "t5", "vit", "bart", "distilbert"])
def test_houlsby_follows_attention_and_mlp_and_pfeiffer_the_mlp(name: str) -> None:
    model, attention, mlp = architectures()[name]
    assert sorted(choose_targets(model, "all-linear", Bottleneck())) == sorted(attention + mlp)
    assert choose_targets(model, "all-linear", Bottleneck(after_attention=False)) == mlp
    assert len(choose_targets(model, "all-linear")) > len(attention + mlp)


def test_unknown_places_are_asked_for() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8))
    with pytest.raises(ValueError, match=r"name those layers in `targets`\. Suffixes that exist: 0, 2"):
        AdaptedNetwork(model, Bottleneck(), rank=2)
    assert AdaptedNetwork(model, Bottleneck(), targets=["2"], rank=2).stacks["8x8"].layer_names == ("2",)


@pytest.mark.parametrize("draws", [(), (1,)])
def test_a_draw_at_many_positions_is_added_to_the_weights(draws: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    base, family = torch.nn.Linear(6, 4), LowRank()
    factors = Factors(torch.randn(*draws, 2, 6), torch.randn(*draws, 4, 2))
    for positions, merged in ((2, False), (3, True)):  # 24 / 10 positions make them equally dear
        x = torch.randn(1, positions, 6)
        expected = base(x) + family.update(x, factors)
        torch.testing.assert_close(family.forward(base, x, factors), expected)
        with torch.inference_mode():
            assert family.is_cheaper_merged(base, x, factors) is merged
            torch.testing.assert_close(family.forward(base, x, factors), expected, rtol=1e-5, atol=1e-6)
            half = copy.deepcopy(base).to(torch.bfloat16)
            assert not family.is_cheaper_merged(half, x.to(torch.bfloat16), factors)
            with torch.autocast("cpu", torch.bfloat16):
                assert not family.is_cheaper_merged(base, x, factors)
        assert not family.is_cheaper_merged(base, x, factors)


def test_a_layer_with_hooks_is_called() -> None:
    base, family = torch.nn.Linear(6, 4), LowRank()
    factors, x = Factors(torch.randn(2, 6), torch.randn(4, 2)), torch.randn(1, 9, 6)
    base.register_forward_hook(lambda module, inputs, output: 2 * output)
    with torch.inference_mode():
        assert family.is_cheaper_merged(base, x, factors)
        torch.testing.assert_close(family.forward(base, x, factors), base(x) + family.update(x, factors))
