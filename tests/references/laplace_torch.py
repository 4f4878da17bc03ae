"""What laplace-torch makes of a small network with adapters: its factors and its predictive covariance, as JSON.

    pip install laplace-torch==0.3 && pip uninstall torchvision && python tests/references/laplace_torch.py

No dependency of the tests: it brings a torchvision that a CPU build of torch cannot load, and with it there the
Trainer of transformers cannot be imported.
"""

import json
from pathlib import Path

import torch
from laplace import Laplace
from laplace.curvature import CurvlinopsGGN
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

NUM_EXAMPLES, BATCH_SIZE, WIDTHS, CLASSES, RANK, SCALING, PRECISION = 11, 4, (5, 6, 6), 3, 2, 1.5, 0.7
PATH = Path(__file__).with_suffix(".json")


class Adapted(nn.Module):
    """tanh(W₀ x + s B A x), twice, and a head whose bias is a last column."""

    def __init__(self, d_in: int, d_out: int):
        super().__init__()
        self.W0 = nn.Linear(d_in, d_out, bias=False).requires_grad_(False)
        self.A = nn.Linear(d_in, RANK, bias=False)
        self.B = nn.Linear(RANK, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.W0(x) + self.B(SCALING * self.A(x))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (Adapted(*WIDTHS[k : k + 2]) for k in (0, 1))
        self.head = nn.Linear(WIDTHS[-1] + 1, CLASSES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.second(self.first(x).tanh()).tanh()
        return self.head(torch.cat([features, torch.ones_like(features[:, :1])], dim=1))


def main() -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    network = Network()
    x, labels = torch.randn(NUM_EXAMPLES, WIDTHS[0]), torch.randint(CLASSES, (NUM_EXAMPLES,))
    test = torch.randn(3, WIDTHS[0])
    posterior = Laplace(network, "classification", "all", "kron", prior_precision=PRECISION, backend=CurvlinopsGGN)
    posterior.fit(DataLoader(TensorDataset(x, labels), batch_size=BATCH_SIZE))
    names = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    _, covariance = posterior._glm_predictive_distribution(test)
    factors = dict(zip(names, posterior.H_facs.kfacs, strict=True))
    record = {
        "scaling": SCALING,
        "precision": PRECISION,
        "batch_size": BATCH_SIZE,
        "weights": {name: value.tolist() for name, value in network.state_dict().items()},
        "x": x.tolist(),
        "labels": labels.tolist(),
        "test": test.tolist(),
        "R": {name: R.tolist() for name, (R, _) in factors.items()},
        "C": {name: C.tolist() for name, (_, C) in factors.items()},
        "logits": network(test).tolist(),
        "covariance": covariance.tolist(),
    }
    PATH.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
