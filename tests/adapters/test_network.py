"""Choice of layers, stacks, and the adapted network as a function of its factors."""

import copy
import pickle
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayeslora.adapters import AdaptedNetwork, Factors, choose_targets
from bayeslora.adapters.layer import AdaptedLayer, NotFoldedError, Slot
from bayeslora.adapters.weights import copied
from tests.helpers import batch, tiny_bert, tiny_deberta, tiny_gpt2, tiny_llama

ATTENTION_OF_BERT = [
    f"bert.encoder.layer.{layer}.attention.self.{name}" for layer in range(2) for name in ("query", "key", "value")
]


class MLP(nn.Module):
    """A network that `transformers` knows nothing of."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Transformer(nn.Module):
    """PyTorch's own encoder layer, whose attention reads its projections' weights."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=batch_first)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.encoder.self_attn.batch_first:
            return self.head(self.encoder(x).mean(1))
        return self.head(self.encoder(x.transpose(0, 1)).mean(0))


def random_factors(network: AdaptedNetwork, num_draws: int | None = None, scale: float = 0.3) -> dict[str, Factors]:
    shape = () if num_draws is None else (num_draws,)
    return {
        name: Factors(
            scale * torch.randn(*shape, len(stack), *stack.A_shape, dtype=network.dtype),
            scale * torch.randn(*shape, len(stack), *stack.B_shape, dtype=network.dtype),
        )
        for name, stack in network.stacks.items()
    }


def at_draw(factors: dict[str, Factors], index: int) -> dict[str, Factors]:
    return {name: Factors(value.A[index], value.B[index]) for name, value in factors.items()}


def inputs(**settings: int) -> dict[str, Tensor]:
    return {name: value for name, value in batch(**settings).items() if name != "labels"}


def suffixes(names: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def all_names(network: AdaptedNetwork) -> list[str]:
    return [name for stack in network.stacks.values() for name in stack.layer_names]


# Choice of layers


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny_bert, {"query": 2, "key": 2, "value": 2, "dense": 6}),
        (tiny_llama, dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), 2)),
        (tiny_gpt2, {"c_attn": 2, "c_proj": 4, "c_fc": 2}),
    ],
)
def test_all_linear_takes_the_body_and_neither_pooler_nor_head(make: Any, expected: dict[str, int]) -> None:
    names = choose_targets(make(), "all-linear")
    assert {suffix: sum(name.endswith(f".{suffix}") for name in names) for suffix in suffixes(names)} == expected
    assert not any("pooler" in name or name.startswith(("classifier", "score")) for name in names)


def test_all_linear_leaves_out_the_output_embedding() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1, intermediate_size=48))
    names = choose_targets(model, "all-linear")
    assert len(names) == 7
    assert "lm_head" not in names
    assert AdaptedNetwork(model).head_names == ()  # a pre-trained language-model head stays frozen


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (tiny_bert, {"query", "key", "value"}),
        (tiny_llama, {"q_proj", "k_proj", "v_proj"}),
        (tiny_gpt2, {"c_attn"}),
    ],
)
def test_attention_takes_the_projections(make: Any, expected: set[str]) -> None:
    names = choose_targets(make(), "attention")
    assert suffixes(names) == expected
    assert len(names) == 2 * len(expected)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("query", [name for name in ATTENTION_OF_BERT if name.endswith("query")]),
        ("self.query", [name for name in ATTENTION_OF_BERT if name.endswith("query")]),
        ("pooler.dense", ["bert.pooler.dense"]),  # what is named is adapted, the pooler too
        (["value", "query"], [name for name in ATTENTION_OF_BERT if not name.endswith("key")]),
        (["bert.encoder.layer.1.attention.self.key"], [ATTENTION_OF_BERT[4]]),
        (r".*\.layer\.1\..*\.(query|value)", [ATTENTION_OF_BERT[3], ATTENTION_OF_BERT[5]]),
    ],
)
def test_suffixes_and_expressions(targets: str | list[str], expected: list[str]) -> None:
    assert choose_targets(tiny_bert(), targets) == expected


def test_a_suffix_is_whole_name_parts() -> None:
    with pytest.raises(ValueError, match="match no linear layer"):
        choose_targets(tiny_bert(), "uery")


def test_the_last_blocks() -> None:
    names = choose_targets(tiny_bert(), "last:1")
    assert names == [name for name in choose_targets(tiny_bert(), "all-linear") if ".layer.1." in name]
    assert choose_targets(tiny_bert(), "last:2") == choose_targets(tiny_bert(), "all-linear")
    assert choose_targets(tiny_llama(), "last:1", exclude="down_proj")[-1] == "model.layers.1.mlp.up_proj"
    assert choose_targets(MLP(), "last:1") == ["body.2"]
    stages = nn.Sequential(*(nn.Sequential(*(nn.Linear(4, 4) for _ in range(2))) for _ in range(3)))
    assert choose_targets(stages, "last:2") == ["1.0", "1.1", "2.0", "2.1"]


def test_a_decoder_of_one_layer_is_the_last_block() -> None:
    def part(count: int) -> nn.Module:
        return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(count)), "out": nn.Linear(4, 4)})

    model = nn.ModuleDict({"encoder": part(2), "bridge": nn.Sequential(nn.Linear(4, 4)), "decoder": part(1)})
    assert choose_targets(model, "last:1") == ["decoder.layers.0"]
    assert choose_targets(model, "last:2") == ["encoder.layers.1", "decoder.layers.0"]
    with pytest.raises(ValueError, match="has 3 blocks: give 1 to 3 of them, or name layers"):
        choose_targets(model, "last:4")


@pytest.mark.parametrize("targets", ["last:0", "last:3"])
def test_more_blocks_than_there_are(targets: str) -> None:
    with pytest.raises(ValueError, match="has 2 blocks: give 1 to 2"):
        choose_targets(tiny_bert(), targets)
    with pytest.raises(ValueError, match="not a list of blocks"):
        choose_targets(nn.Bilinear(1, 1, 1), targets)


@pytest.mark.parametrize("targets", ["q_proj", ["query", "q_proj"], r".*\.q_[a-z]+", [], "classifier"])  # the head
def test_matching_nothing_lists_the_names(targets: str | list[str]) -> None:
    with pytest.raises(ValueError, match="match no linear layer") as error:
        choose_targets(tiny_bert(), targets)
    assert "exist: dense, key, query, value" in str(error.value)
    assert "bert.encoder.layer.0.attention.self.query" in str(error.value)


def test_a_broken_expression_is_named() -> None:
    with pytest.raises(ValueError, match="nor a regular expression"):
        choose_targets(tiny_bert(), "layer.[0")


def test_a_model_without_linear_layers_says_so() -> None:
    with pytest.raises(ValueError, match="no linear layers"):
        choose_targets(nn.Sequential(nn.Conv2d(1, 1, 1)), "all-linear")


def test_the_projection_inside_torch_attention_is_never_adapted() -> None:
    model = Transformer()
    assert choose_targets(model, "all-linear") == ["encoder.linear1", "encoder.linear2"]
    with pytest.raises(ValueError, match="match no linear layer"):
        choose_targets(model, "out_proj")


# Stacks, ranks, scaling


def test_layers_of_one_shape_form_a_stack() -> None:
    stacks = AdaptedNetwork(tiny_bert(), rank=4, num_examples=17).stacks
    assert {name: len(stack) for name, stack in stacks.items()} == {"32x32": 8, "32x48": 2, "48x32": 2}
    assert stacks["32x48"].layer_names == tuple(f"bert.encoder.layer.{i}.intermediate.dense" for i in range(2))
    assert (stacks["32x48"].A_shape, stacks["32x48"].B_shape) == ((4, 32), (48, 4))
    assert (stacks.num_layers, stacks.num_examples) == (12, 17)
    assert {(stack.num_layers, stack.num_examples) for stack in stacks.values()} == {(12, 17)}


def test_stacks_of_conv1d_read_their_features_the_right_way_round() -> None:
    stacks = AdaptedNetwork(tiny_gpt2(), targets="c_attn", rank=4).stacks
    assert list(stacks) == ["32x96"]
    assert (stacks["32x96"].A_shape, stacks["32x96"].B_shape) == ((4, 32), (96, 4))


def test_rank_patterns_split_stacks_and_name_them() -> None:
    network = AdaptedNetwork(tiny_bert(), targets="attention", rank={"query": 2, "layer.1.attention.self.key": 4})
    assert {name: (stack.rank, suffixes(stack.layer_names)) for name, stack in network.stacks.items()} == {
        "32x32r2": (2, {"query"}),
        "32x32r8": (8, {"key", "value"}),
        "32x32r4": (4, {"key"}),
    }
    assert list(AdaptedNetwork(tiny_bert(), targets="attention", rank={"query": 8}).stacks) == ["32x32"]


def test_scaling_is_alpha_over_rank_per_layer() -> None:
    model = tiny_bert()
    network = AdaptedNetwork(model, targets="attention", rank=4, alpha={"query": 2.0, "key": 8.0})
    scaling = dict(zip(network.stacks["32x32"].layer_names, network.scaling("32x32").tolist(), strict=True))
    assert [scaling[name] for name in ATTENTION_OF_BERT] == [0.5, 2.0, 4.0] * 2
    assert network.scaling("32x32").tolist() == list(network.stacks["32x32"].scaling)

    # The change of one layer's output is its own s B A x.
    factors = random_factors(network)
    network.bind(factors)
    x = torch.randn(2, 32)
    layers = network.stacks["32x32"].layer_names
    for index, layer in enumerate(network.layers("32x32")):
        A, B = (factor[index] for factor in factors["32x32"])
        torch.testing.assert_close(layer(x) - layer.base(x), scaling[layers[index]] * (x @ A.T @ B.T))


@pytest.mark.parametrize("rank", [0, -1, 33, {"query": 40}])
def test_a_rank_that_does_not_fit_is_an_error(rank: int | dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"does not fit layer 'bert.*query', which is 32 to 32 features.*from 1 to 32"):
        AdaptedNetwork(tiny_bert(), targets="attention", rank=rank)


# The user's model


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_gpt2, MLP])
def test_the_users_model_is_untouched_and_its_weights_are_shared(make: Any) -> None:
    model = make()
    next(model.parameters()).requires_grad_(False)
    before = {name: (p.data_ptr(), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    modules = [(name, id(module)) for name, module in model.named_modules()]
    network = AdaptedNetwork(model, rank=2)
    network(random_factors(network), {"x": torch.randn(2, 5)} if make is MLP else inputs())

    assert [(name, id(module)) for name, module in model.named_modules()] == modules
    own = {name.replace(".base.", "."): p for name, p in network.model.named_parameters()}
    assert own.keys() == before.keys()
    for name, parameter in model.named_parameters():
        pointer, requires_grad, value = before[name]
        assert (parameter.data_ptr(), parameter.requires_grad) == (pointer, requires_grad)
        assert torch.equal(parameter, value)
        is_head = name.split(".")[0] in network.head_names
        assert (own[name].data_ptr() == pointer) is not is_head, name
        assert own[name].requires_grad is is_head, name
        assert torch.equal(own[name], value)


def test_the_head_is_what_stands_outside_the_body() -> None:
    assert AdaptedNetwork(tiny_bert()).head_names == ("classifier",)
    assert AdaptedNetwork(tiny_llama()).head_names == ("score",)
    network = AdaptedNetwork(MLP(), rank=2)
    assert network.head_names == ("head",)
    assert set(network.head_state()) == {"head.weight", "head.bias"}
    assert AdaptedNetwork(nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9))).head_names == ()


def test_training_the_head_of_the_copy_leaves_the_users() -> None:
    model = MLP()
    before = model.head.weight.detach().clone()
    with torch.no_grad():
        AdaptedNetwork(model, rank=2).model.get_submodule("head").weight.add_(1.0)
    assert torch.equal(model.head.weight, before)


# The forward pass


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_gpt2])
def test_before_training_it_is_the_base_network(make: Any) -> None:
    model = make()
    expected = model(**inputs()).logits
    network = AdaptedNetwork(model, rank=4).eval()
    factors = {name: Factors(value.A, 0 * value.B) for name, value in random_factors(network).items()}
    assert torch.equal(network(factors, inputs()), expected)
    network(random_factors(network), inputs())
    network.unbind()
    assert torch.equal(network.model(**inputs()).logits, expected)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("length", [6, 12])  # 12: as many tokens as rows over all draws
def test_draws_in_one_pass_equal_a_loop(make: Any, length: int) -> None:
    network = AdaptedNetwork(make(), rank=4).eval()
    factors = random_factors(network, num_draws=3)
    x = inputs(length=length)
    x["attention_mask"][1, 4:] = 0
    with torch.no_grad():
        together = network(factors, x)
        loop = torch.stack([network(at_draw(factors, i), x) for i in range(3)])
    assert together.shape == (3, 4, 3)
    assert loop.std(0).mean() > 1e-3  # the draws differ
    torch.testing.assert_close(together, loop, atol=1e-5, rtol=1e-5)


def not_batch_first(name: str) -> tuple[AdaptedNetwork, dict[str, Factors], dict[str, Tensor]]:
    """Such a network, two draws of its factors, and four examples.

    DeBERTa's projections also see positions that all examples share; a sequence-first network is transposed inside.
    """
    if name == "deberta":
        model, x = tiny_deberta(), inputs(length=10)
    else:
        model, x = Transformer(False), {"x": torch.randn(4, 10, 16)}
    network = AdaptedNetwork(model, rank=4).eval()
    return network, random_factors(network, num_draws=2), x


@pytest.mark.parametrize("name", ["deberta", "sequence_first"])
def test_draws_where_layers_are_not_batch_first(name: str, caplog: pytest.LogCaptureFixture) -> None:
    network, factors, x = not_batch_first(name)
    with torch.no_grad(), caplog.at_level("INFO", "bayeslora"):
        together = network(factors, x)
        loop = torch.stack([network(at_draw(factors, i), x) for i in range(2)])
    assert not torch.allclose(loop[0], loop[1], atol=1e-3)
    torch.testing.assert_close(together, loop, atol=1e-5, rtol=1e-5)
    assert_gradients_of_a_loop(network, factors, x)
    assert re.fullmatch(
        r"\w+: draws run one by one: a layer's input, [^.]* rows of several draws\.", caplog.messages[0]
    )


def assert_gradients_of_a_loop(network: AdaptedNetwork, factors: dict[str, Factors], x: dict[str, Tensor]) -> None:
    """Gradients of several draws at once are those of each draw alone."""

    def gradients(draws: dict[str, Factors]) -> list[Tensor]:
        leaves = {name: Factors(*(f.clone().requires_grad_() for f in value)) for name, value in draws.items()}
        network(leaves, x).log_softmax(-1)[..., 0].sum().backward()
        return [factor.grad for value in leaves.values() for factor in value]

    network.eval()  # no dropout, but gradients
    apart = [gradients(at_draw(factors, i)) for i in range(2)]
    for together, *single in zip(gradients(factors), *apart, strict=True):
        assert together.abs().max() > 1e-3
        torch.testing.assert_close(together, torch.stack(single), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["deberta", "sequence_first"])
def test_every_draw_trains_on_rows_of_its_own_where_layers_are_not_batch_first(name: str) -> None:
    network, factors, x = not_batch_first(name)
    blocks = [{key: value[i : i + 2] for key, value in x.items()} for i in (0, 2)]
    apart = torch.cat([network(at_draw(factors, i), block) for i, block in enumerate(blocks)])
    torch.testing.assert_close(network(factors, x, rows_by_draw=True), apart, atol=1e-5, rtol=1e-5)


def test_draws_run_one_by_one_are_not_checkpointed() -> None:
    network = AdaptedNetwork(tiny_deberta(), rank=4).train()
    network.model.activation_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(
        ValueError, match=r"^DebertaV2\w+ does not keep the batch first .* one by one, .* checkpointing"
    ):
        network(random_factors(network, num_draws=2), inputs(length=10))


def test_a_network_that_repeats_its_passes_finds_no_single_draws_factors() -> None:
    # It does so in the backward pass, when the last draw's would be the ones that are bound.
    class Repeating(Transformer):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    network = AdaptedNetwork(Repeating(False), rank=4)
    factors = random_factors(network, num_draws=2)
    for value in factors.values():
        value.A.requires_grad_()
    logits = network(factors, {"x": torch.randn(4, 10, 16)})
    with pytest.raises(NotFoldedError, match="one by one, which activation checkpointing cannot repeat"):
        logits.sum().backward()


# Several sequences in a row

CHOICE = {"vocab_size": 60, "num_attention_heads": 4, "intermediate_size": 48, "hidden_size": 32}
CHOICE |= {"num_hidden_layers": 1, "max_position_embeddings": 40}


def multiple_choice(family: str) -> nn.Module:
    import transformers as hf

    torch.manual_seed(0)
    if family == "xlnet":  # works on [token, sequence, …]
        config = hf.XLNetConfig(vocab_size=60, d_model=32, n_layer=1, n_head=4, d_inner=48)
        return hf.XLNetForMultipleChoice(config).eval()
    if family == "deberta":
        config = hf.DebertaV2Config(**CHOICE, relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=True)
        return hf.DebertaV2ForMultipleChoice(config).eval()
    return hf.BertForMultipleChoice(hf.BertConfig(**CHOICE)).eval()


def choices(length: int) -> dict[str, Tensor]:
    """Three choices for each of two examples."""
    ids = torch.randint(3, 60, (2, 3, length), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def count_passes(network: AdaptedNetwork) -> list[Any]:
    passes: list[Any] = []
    network.model.register_forward_hook(lambda *arguments: passes.append(None))
    return passes


# At two draws: 4 rows, 12 sequences, which a length may equal.
@pytest.mark.parametrize(
    ("family", "length", "folds"),
    [
        *(("bert", length, True) for length in (2, 3, 4, 5, 6, 12)),
        *((family, length, False) for family in ("xlnet", "deberta") for length in (3, 4, 5, 12)),
    ],
)
def test_choices_are_rows_of_their_draw(family: str, length: int, folds: bool) -> None:
    network = AdaptedNetwork(multiple_choice(family), rank=4).eval()
    factors, x = random_factors(network, num_draws=2), choices(length)
    with torch.no_grad():
        assert network.folds(factors, x) is folds
        mapped = not folds and network.maps(factors, x)
        seen = count_passes(network)
        together = network(factors, x)
        assert len(seen) == (1 if folds or mapped else 2)  # a pass that is given up is not counted
        loop = torch.stack([network(at_draw(factors, i), x) for i in range(2)])
    assert together.shape == (2, 2, 3)
    assert (loop[0] - loop[1]).abs().max() > 1e-3
    torch.testing.assert_close(together, loop, atol=1e-5, rtol=1e-5)


# At two draws: 4 rows, 12 sequences, which a length may equal.
@pytest.mark.parametrize("length", [4, 5, 12])
@pytest.mark.parametrize("family", ["bert", "xlnet", "deberta"])
def test_choices_train_with_several_draws(family: str, length: int) -> None:
    network = AdaptedNetwork(multiple_choice(family), rank=4)
    assert_gradients_of_a_loop(network, random_factors(network, num_draws=2), choices(length))


def test_adapters_work_where_torch_would_use_its_fused_encoder_layer() -> None:
    network = AdaptedNetwork(Transformer(), rank=4).eval()
    factors, x = random_factors(network), {"x": torch.randn(2, 6, 16)}
    with torch.inference_mode():
        at_inference = network(factors, x)
    torch.testing.assert_close(at_inference, network.train()(factors, x), atol=1e-5, rtol=1e-5)
    network.unbind()
    assert not torch.allclose(at_inference, network.model(**x), atol=1e-3)


class Padded(nn.Module):
    """Token 0 is padding, which torch's encoder leaves out in evaluation mode, and the mean over tokens sees."""

    def __init__(self, norm: nn.Module | None):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, norm), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=ids == 0).mean(1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(8)])
@pytest.mark.parametrize("left_aligned", [True, False])
def test_draws_and_gradients_where_torch_would_leave_out_padding(norm: nn.Module | None, left_aligned: bool) -> None:
    torch.manual_seed(0)
    model = Padded(norm).double().eval()
    if norm is not None:
        nn.init.normal_(model.encoder.norm.bias)
    ids = torch.randint(1, 20, (4, 6))
    ids[1, 3:] = ids[2, 5:] = 0
    ids[3, 0] *= left_aligned
    network = AdaptedNetwork(model, rank=2).eval()
    factors = random_factors(network, num_draws=2)
    with torch.inference_mode():
        torch.testing.assert_close(network.logits({"ids": ids}), model(ids), atol=1e-12, rtol=0)
        found = network(factors, {"ids": ids})
    assert network.folds(factors, {"ids": ids})
    leaves = {name: Factors(*(x.clone().requires_grad_() for x in f)) for name, f in factors.items()}
    torch.testing.assert_close(network(leaves, {"ids": ids}).detach(), found, atol=1e-12, rtol=0)
    assert_gradients_of_a_loop(network, factors, {"ids": ids})


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("num_draws", [None, 2])
def test_factors_survive_activation_checkpointing(make: Any, num_draws: int | None) -> None:
    network = AdaptedNetwork(make(**dropout_free(make)), rank=4).train()
    factors = random_factors(network, num_draws)

    def gradients() -> list[Tensor]:
        leaves = {name: Factors(*(f.clone().requires_grad_() for f in value)) for name, value in factors.items()}
        network(leaves, inputs()).square().sum().backward()
        return [factor.grad for value in leaves.values() for factor in value]

    plain = gradients()
    network.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for checkpointed, expected in zip(gradients(), plain, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(checkpointed, expected)


def dropout_free(make: Any) -> dict[str, float]:
    return {
        tiny_bert: {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        tiny_llama: {},
        tiny_gpt2: {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    }[make]


def test_copies_and_pickles_leave_bound_factors_behind() -> None:
    network = AdaptedNetwork(MLP(), rank=2)
    factors = {name: Factors(*(f.requires_grad_() for f in value)) for name, value in random_factors(network).items()}
    bound = {name: Factors(2 * value.A, 2 * value.B) for name, value in factors.items()}  # in a graph: no leaves
    network(bound, {"x": torch.randn(2, 5)})
    layer = network.layers("5x8")[0]
    assert layer.slot.factors is not None

    copied = copy.deepcopy(network)
    assert copied.layers("5x8")[0].slot.factors is None
    assert copied.layers("5x8")[0] is copied.model.get_submodule("body.0")
    assert isinstance(pickle.loads(pickle.dumps(layer.slot)), Slot)
    assert pickle.loads(pickle.dumps(layer.slot)).factors is None
    assert layer.slot.factors is not None


def test_hooks_and_empty_tables_of_a_copy_are_its_own() -> None:
    model = MLP()
    first: Any = model.body[0]
    first.table = first.same = {}
    adapted: Any = AdaptedNetwork(model, rank=2).model
    for layer in (copied(model).body[0], adapted.body[0].base):
        layer.register_forward_hook(lambda *args: None)
        layer.table["x"] = 1
        assert layer.same is layer.table
        assert type(layer._forward_hooks) is type(first._forward_hooks)
    assert not first._forward_hooks
    assert not first.table


class Pair(NamedTuple):
    layer: nn.Module
    name: str


@pytest.mark.parametrize(
    "keep",
    [
        lambda layer: {"layer": [layer]},
        lambda layer: OrderedDict(layer=layer),
        lambda layer: defaultdict(list, layer=[layer]),
        lambda layer: deque([Pair(layer, "layer")]),
        lambda layer: (layer, [layer]),
    ],
)
def test_layers_in_tables_that_parts_hold_together_are_adapted_there(keep: Callable[[nn.Module], Any]) -> None:
    model = MLP()
    first, last = (layer for layer in model.body if isinstance(layer, nn.Linear))
    first.held = last.held = keep(first)  # type: ignore[assignment]
    first.round = [[]]  # type: ignore[assignment]
    first.round[0].append(first.round)  # type: ignore[index, union-attr]
    body: Any = AdaptedNetwork(model, rank=2).model.body
    held, too = body[0].base.held, body[2].base.held
    assert held is too or held[1] is too[1]
    assert type(held) is type(first.held)
    assert AdaptedLayer.__name__ in repr(held)
    assert AdaptedLayer.__name__ not in repr(first.held)


def test_any_module_works_and_rows_of_draws_stay_apart() -> None:
    model = MLP()
    network = AdaptedNetwork(model, rank=2)
    assert all_names(network) == ["body.0", "body.2"]
    x, factors = torch.randn(4, 5), random_factors(network, num_draws=3)
    expected = []
    for i in range(3):
        merged = copy.deepcopy(model)
        for name, stack in network.stacks.items():
            for layer, A, B in zip(stack.layer_names, factors[name].A[i], factors[name].B[i], strict=True):
                merged.get_submodule(layer).weight.data += 8.0 * B @ A  # alpha / rank = 16 / 2
        expected.append(merged(x))
    torch.testing.assert_close(network(factors, {"x": x}), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_an_adapted_layer_shows_its_layers_attributes() -> None:
    layer = AdaptedNetwork(MLP(), rank=2).layers("5x8")[0]
    assert isinstance(layer, AdaptedLayer)
    assert (layer.in_features, layer.out_features, layer.weight.shape) == (5, 8, (8, 5))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = layer.nothing_of_the_kind


def test_running_statistics_are_the_bases_and_the_heads_are_learned() -> None:
    body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8))
    model = nn.Sequential(OrderedDict(body=body, head=nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))))
    network = AdaptedNetwork(model, rank=2).train()
    network(random_factors(network), {"input": torch.randn(16, 5)})
    assert not network.model.body[1].running_mean.any()
    assert network.model.head[0].running_mean.any()
    assert not network.eval().model.head[0].training


# Precision


def test_a_double_precision_base_has_double_factors() -> None:
    from bayeslora.methods import make_method
    from bayeslora.program import Program
    from bayeslora.tasks import Classification

    network = AdaptedNetwork(MLP().double(), rank=2)
    assert network.dtype == torch.float64
    program = Program(network, make_method("monteclora"), Classification(3))
    assert {p.dtype for p in program.parameters()} == {torch.float64}
    assert program(x=torch.randn(2, 5).double(), labels=torch.tensor([0, 1])).logits.dtype == torch.float64
    assert {value.dtype for value in program.draw(2).values()} == {torch.float64}


def test_a_half_precision_base_has_single_precision_factors() -> None:
    model = tiny_bert()
    exact = AdaptedNetwork(model, rank=4).eval()
    factors = random_factors(exact)
    network = AdaptedNetwork(copy.deepcopy(model).bfloat16(), rank=4).eval()
    assert network.dtype == torch.float32
    leaves = {name: Factors(*(f.clone().requires_grad_() for f in value)) for name, value in factors.items()}
    logits = network(leaves, inputs())
    assert logits.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits of every activation.
    torch.testing.assert_close(logits.float(), exact(factors, inputs()), atol=0.05, rtol=0.05)
    logits.float().sum().backward()
    assert all(f.grad.dtype == torch.float32 and f.grad.abs().max() > 0 for value in leaves.values() for f in value)
