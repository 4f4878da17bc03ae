"""Plain networks, each with one thing that an adapter of linear layers can get wrong."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.architectures.families import CLASSES, Batch, Case, classes, ids, language, noise
from tests.architectures.tiny import VOCABULARY, tiny_config

FEATURES, HIDDEN = 12, 16


def mlp(first: nn.Module | None = None, second: nn.Module | None = None) -> nn.Module:
    """Return a multi-layer perceptron, some of its layers given."""
    layers = [first or nn.Linear(FEATURES, HIDDEN), nn.Tanh(), second or nn.Linear(HIDDEN, HIDDEN), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN, CLASSES))


def weight_norm_mlp() -> nn.Module:
    return mlp(second=parametrizations.weight_norm(nn.Linear(HIDDEN, HIDDEN)))


def spectral_norm_mlp() -> nn.Module:
    return mlp(second=parametrizations.spectral_norm(nn.Linear(HIDDEN, HIDDEN)))


class Cosine(nn.Module):
    """A layer that calls itself linear and normalises its input and its weight."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / in_features**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class Scaled(Cosine):
    """A layer whose product is scaled, as layers with an equalised learning rate are."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * F.linear(x, self.weight)


class Turned(Cosine):
    """A layer that keeps its weight as `[in, out]`, which a square one does not show."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Wrapping(nn.Linear):
    """A linear layer of one's own, with an activation within."""

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(super().forward(x))


class Repeated(nn.Module):
    """One layer under three names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.layers = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN)] * 3)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


class TwoNames(nn.Module):
    """One layer under two names in two parts of the network."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(HIDDEN, HIDDEN)
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.up = nn.Sequential(shared, nn.Tanh())
        self.down = nn.Sequential(shared, nn.Tanh())
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.first(x))))


class TiedWeights(TwoNames):
    """Two layers that share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.down[0] = nn.Linear(HIDDEN, HIDDEN)
        self.down[0].weight = self.up[0].weight


class NeverCalled(nn.Module):
    """A layer whose weight its parent reads, as BEiT's `qkv` in timm."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.qkv = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.shift = nn.Parameter(torch.randn(HIDDEN))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.linear(self.first(x), self.qkv.weight, self.shift)))


class Unused(NeverCalled):
    """A layer that nobody looks at."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.first(x)))


class BatchNormed(nn.Module):
    """Convolutions, batch normalisation, and linear layers behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.hidden = nn.Sequential(nn.Linear(32, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Linear(HIDDEN, HIDDEN))
        self.fc = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.hidden(self.features(x)).tanh())


class OverRows(nn.Module):
    """A network whose rows do not stay rows, or do not stay in their order.

    Args:
        between: What happens between two layers, given the hidden states and a function that does what they should
            have done to them.
    """

    def __init__(self, between: Callable[[Tensor, Any], Tensor], features: int = FEATURES):
        super().__init__()
        self.first = nn.Linear(features, HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(torch.tanh(self.first(x)), self.second)
        return self.head(torch.tanh(x if x.dim() == 2 else x.mean(1)))


def standardised(x: Tensor, layer: Any) -> Tensor:
    """Statistics of the batch, in any mode."""
    x = layer(x)
    return (x - x.mean(0)) / (1e-3 + x.std(0))


def sorted_rows(x: Tensor, layer: Any) -> Tensor:
    """Rows in another order, and back, as before a packed sequence."""
    order = x.sum(-1).argsort()
    return layer(x[order])[order.argsort()]


def routed(x: Tensor, layer: Any) -> Tensor:
    """As many tokens as there are rows, those of the largest norm, wherever they are."""
    rows = x.flatten(0, 1)
    chosen = rows.norm(dim=-1).argsort()[-len(x) :]
    return rows.index_add(0, chosen, layer(rows[chosen])).view(x.shape)


def sequence_first(x: Tensor, layer: Any) -> Tensor:
    """Tokens first, rows second."""
    return layer(x.transpose(0, 1)).transpose(0, 1)


def flattened(x: Tensor, layer: Any) -> Tensor:
    """Tokens first, then flattened with the rows."""
    turned = x.transpose(0, 1)
    return layer(turned.flatten(0, 1)).view(*turned.shape[:2], -1).transpose(0, 1)


def shared_table(x: Tensor, layer: Any) -> Tensor:
    """A layer also on a table that all rows share, as relative positions in DeBERTa."""
    table = torch.linspace(-1, 1, 12 * HIDDEN, dtype=x.dtype).view(12, HIDDEN)
    return layer(x) * (1 + layer(table).mean(0))


class Texts(nn.Module):
    """Embeddings, layers of attention, and a mean."""

    def __init__(self, batch_first: bool = True, **named: nn.Module):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, 2, 32, dropout=0.0, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed(input_ids)
        x = self.encoder(x) if self.batch_first else self.encoder(x.transpose(0, 1)).transpose(0, 1)
        return self.head(x.mean(1))


class Recurrent(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, HIDDEN)
        self.lstm = nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.lstm(self.first(x))[0][:, -1]).tanh())


class Named(nn.Module):
    """A body and an output layer of some name."""

    def __init__(self, name: str):
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, HIDDEN)
        self.middle = nn.Linear(HIDDEN, HIDDEN)
        self.name = name
        self.add_module(name, nn.Linear(HIDDEN, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(self.middle(self.fc1(x).tanh()).tanh())


def my_gpt2() -> nn.Module:
    """Return a language model of a class of one's own."""
    import transformers as hf

    class MyGPT2(hf.GPT2LMHeadModel):
        """GPT-2, renamed."""

    return MyGPT2(tiny_config(hf.GPT2Config))


def rows(size: int, length: int) -> Batch:
    return {"x": noise(size, FEATURES)}, classes(size)


def sequences(size: int, length: int) -> Batch:
    return {"x": noise(size, length, FEATURES)}, classes(size)


def images(size: int, length: int) -> Batch:
    return {"x": noise(size, 3, 8, 8)}, classes(size)


def texts(size: int, length: int) -> Batch:
    return {"input_ids": ids(size, length)}, classes(size)


def inputs(size: int, length: int) -> Batch:
    return {"input": noise(size, FEATURES)}, classes(size)


def plain(name: str, make: Callable[[], nn.Module], batch: Callable[[int, int], Batch], **others: Any) -> Case:
    """A case of a plain network, in double precision and evaluation mode."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return make().double().eval()

    return Case(name, "plain networks", made, batch, **others)


PLAIN: list[Case] = [
    plain("narrow MLP", lambda: mlp(nn.Linear(6, HIDDEN)), lambda size, _: ({"input": noise(size, 6)}, classes(size))),
    plain("weight_norm", weight_norm_mlp, inputs),
    plain("spectral_norm", spectral_norm_mlp, inputs),
    plain("cosine layer", lambda: mlp(second=Cosine(HIDDEN, HIDDEN)), inputs),
    plain("scaled layer", lambda: mlp(second=Scaled(HIDDEN, HIDDEN)), inputs),
    plain("square weight [in, out]", lambda: mlp(second=Turned(HIDDEN, HIDDEN)), inputs),
    plain("activation within", lambda: mlp(second=Wrapping(HIDDEN, HIDDEN)), inputs),
    plain("one layer in a list, thrice", Repeated, rows),
    plain("one layer under two names", TwoNames, rows),
    plain("two layers with one weight", TiedWeights, rows),
    plain("weight read by the parent", NeverCalled, rows),
    plain("unused layer", Unused, rows),
    plain("batch normalisation", BatchNormed, images),
    plain("statistics of the batch", lambda: OverRows(standardised), rows),
    plain("rows sorted", lambda: OverRows(sorted_rows), rows),
    plain("tokens routed", lambda: OverRows(routed), sequences),
    plain("sequence first", lambda: OverRows(sequence_first), sequences),
    plain("sequence first, flattened", lambda: OverRows(flattened), sequences),
    plain("table shared by all rows", lambda: OverRows(shared_table), rows),
    plain("nn.TransformerEncoder", Texts, texts),
    plain("nn.TransformerEncoder, sequence first", lambda: Texts(batch_first=False), texts),
    plain("nn.LSTM", Recurrent, sequences),
    *(
        plain(f"output layer `{name}`", lambda name=name: Named(name), rows)  # type: ignore[misc]
        for name in ("classifier", "out", "linear", "regressor", "fc2")
    ),
    plain("subclass of GPT2LMHeadModel", my_gpt2, language, likelihood="causal_lm"),
]
