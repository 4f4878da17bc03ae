"""Write ivon_nuts.json: a logistic regression on an adapter's factor, and what NUTS draws from its posterior.

    python tests/references/ivon_nuts.py

The network is a frozen linear layer with two outputs, to which s B A x is added; B is held, A ~ N(0, PRIOR²).
"""

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

NUM_EXAMPLES, D_IN, RANK, S, PRIOR = 200, 6, 1, 1.0, 1.0
FILE = Path(__file__).with_suffix(".json")


def main() -> None:
    """Draw inputs, labels and the posterior, and write them."""
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    x = torch.linalg.qr(torch.randn(NUM_EXAMPLES, D_IN)).Q * NUM_EXAMPLES**0.5  # orthogonal, of unit variance
    W, b, B = 0.1 * torch.randn(2, D_IN), 0.1 * torch.randn(2), torch.tensor([[-0.5], [0.5]])
    A = 0.4 * torch.randn(RANK, D_IN)

    def logits(A: torch.Tensor) -> torch.Tensor:
        return x @ (W + S * B @ A).T + b

    labels = dist.Categorical(logits=logits(A)).sample()

    def model() -> None:
        A = pyro.sample("A", dist.Normal(0.0, PRIOR).expand((RANK, D_IN)).to_event(2))
        with pyro.plate("examples", NUM_EXAMPLES):
            pyro.sample("labels", dist.Categorical(logits=logits(A)), obs=labels)

    mcmc = MCMC(NUTS(model, jit_compile=False), num_samples=2000, warmup_steps=300, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["A"].flatten(1)[::2]
    record = {"x": x, "labels": labels, "W": W, "b": b, "B": B, "draws": draws}
    lists = {name: value.double().mul(1e4).round().div(1e4).tolist() for name, value in record.items()}
    FILE.write_text(json.dumps({"scale": S, "prior": PRIOR, **lists}) + "\n")


if __name__ == "__main__":
    main()
