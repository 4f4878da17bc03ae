"""A method of one's own: a mean-field Gaussian over `A`, a point for `B`. Runs in seconds and downloads nothing."""

from dataclasses import dataclass

import pyro
import torch
from pyro import poutine
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import bayeslora
from bayeslora import guides, priors
from bayeslora.adapters import Factors, Stack


@bayeslora.register
@dataclass(frozen=True)
class MeanField(bayeslora.PerStackMethod):
    r"""$p(A) = N(0, \sigma_p^2)$ and $q(A) = N(M, \Omega^2)$, entry by entry; $B$ a point.

    Args:
        prior_scale: Standard deviation $\sigma_p$, in units of the weights.
        init_scale: Starting value of $\Omega$, in units of the weights.
        temperature: Multiplies the KL, which enters as temperature / n per example.
    """

    name = "meanfield"
    prior_scale: float = 0.2
    init_scale: float = 0.02
    temperature: float = 1.0

    def stack_prior(self, stack: Stack) -> Factors:
        with stack.layers, poutine.scale(scale=self.temperature / stack.num_examples):
            A = pyro.sample(stack.site("A"), priors.normal(stack.A_shape, self.prior_scale))
            B = pyro.sample(stack.site("B"), priors.flat(stack.B_shape))
        return Factors(A, B)

    def stack_guide(self, stack: Stack) -> nn.Module:
        return guides.Sites(
            stack,
            scale=self.temperature / stack.num_examples,
            A=guides.Normal(guides.kaiming(len(stack), *stack.A_shape), self.init_scale),
            B=guides.Point(torch.zeros(len(stack), *stack.B_shape)),
        )


if __name__ == "__main__":
    torch.set_num_threads(1)  # on tensors this small, threads would wait for each other
    torch.manual_seed(0)
    tokens = torch.randint(3, 60, (1024, 6))
    labels = (tokens[:, 0] > 30).long()  # made up: the first token decides
    train, test = (tokens[:768], labels[:768]), (tokens[768:], labels[768:])
    config = BertConfig(vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    model = BertForSequenceClassification(config)
    settings = {"epochs": 5, "batch_size": 64, "learning_rate": 1e-2, "progress": False}
    posterior = bayeslora.fit(model, train, "meanfield", temperature=0.01, **settings)
    print(posterior.history.filter(["step", "loss", "nll"]).tail(3))
    print(posterior.evaluate(test, num_draws=16))
