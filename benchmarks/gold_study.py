"""Every method against NUTS: logistic regression with one adapter, 60 examples.

    python benchmarks/gold_study.py

Every method is stored as it ends, so that an interrupted study goes on; the table has what is there.

Logits are s·BAx plus those of a frozen layer. Each method is fitted with its defaults, but temperature 1 where it has
one; a reference is then drawn with NUTS given the points of that fit: from the posterior that the method claims, or, of
noise and points, from that under A ~ N(0, 0.2²) given the method's B.
"""

import json
import time
import warnings
from typing import Any

import pandas as pd
import pyro
import torch
from demo_study import ROOT, fill, markdown
from torch import nn

import bayeslora
from bayeslora import METHODS, Posterior, diagnostics
from bayeslora.adapters import AdaptedNetwork, Factors, Stack
from bayeslora.methods import AutoGuide, make_method, own_fields
from bayeslora.priors import normal
from bayeslora.program import Program
from bayeslora.tasks import Classification

STORE = ROOT / "benchmarks" / "results" / "gold.jsonl"
NUM_EXAMPLES, D_IN, RANK, PRIOR = 60, 5, 2, 0.2
SETTINGS: dict[str, Any] = {"rank": RANK, "epochs": 60, "batch_size": 20, "learning_rate": 1e-2, "progress": False}
SAMPLES, WARMUP, DRAWS = 300, 100, 2000

OTHER_FAMILIES = ("full", "bitfit", "dora", "houlsby", "pfeiffer", "adalora")
"""Points without A and B, of which there is nothing more to say than of LoRA's."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: (name, {}) for name in METHODS if name not in ("full", "bitfit", "dora", "houlsby", "pfeiffer", "adalora")
    },
    "monteclora, elbo": ("monteclora", {"objective": "elbo"}),
    "autoguide, full rank": ("autoguide", {"autoguide": "AutoMultivariateNormal"}),
    "laplace, τ = 25": ("laplace", {"prior_precision": PRIOR**-2}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D_IN, 2).double())


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_EXAMPLES, D_IN, generator=generator, dtype=torch.float64)
    logit = x @ torch.tensor([1.5, -1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    return x, (torch.rand(NUM_EXAMPLES, generator=generator, dtype=torch.float64) < logit.sigmoid()).long()


def reference(posterior: Posterior) -> Posterior:
    """The posterior under A ~ N(0, 0.2²), given the B of another."""
    factors = next(iter(posterior.program.factors_at(posterior.program.centre()).values()))

    def prior(stack: Stack) -> Factors:
        with stack.layers:
            A = pyro.sample(stack.site("A"), normal(stack.A_shape, PRIOR))
        return Factors(A, factors.B.detach().expand(*A.shape[:-2], *factors.B.shape[-2:]))

    base = AdaptedNetwork(network(), rank=RANK, num_examples=NUM_EXAMPLES, head=[])
    method = AutoGuide(prior_program=prior, temperature=1.0, init_scale=0.1)
    return Posterior(Program(base, method, Classification(2).double()))


def run(name: str) -> dict[str, Any]:
    """One fit, its reference, and how far it is from it."""
    key, fields = VARIANTS[name]
    if "temperature" in own_fields(METHODS[key]).names:
        fields = {**fields, "temperature": 1.0}
    method = make_method(key, **fields)
    posterior = bayeslora.fit(network(), rows(), method, head=[], targets=["0"], **SETTINGS)
    claims = method.claims == "posterior"
    gold = diagnostics.gold(posterior if claims else reference(posterior), rows(), SAMPLES, WARMUP)
    found = gold.against(posterior, rows(), DRAWS)
    khat = posterior.khat(rows(), DRAWS) if claims else None
    return {
        "method": name,
        "claims": method.claims,
        **{column: f"{value:.2f}" for column, value in found.items()},
        "k-hat": f"{khat.khat:.2f}" if khat else "–",
        "width": f"{khat.width:.2f}" if khat else "–",
        "good": {True: "yes", False: "no", None: "–"}[khat.good if khat else None],
        "NUTS": f"{gold.effective:.0f} effective, {gold.divergences} divergent",
    }


def main() -> None:
    """Run what is missing, posteriors first, and write the table."""
    done = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    known = {line["method"] for line in done}
    claims = {name: make_method(key, **fields).claims for name, (key, fields) in VARIANTS.items()}
    order = sorted(VARIANTS, key=lambda name: ("posterior", "noise", "points").index(claims[name]))
    for name in order:
        if name in known:
            continue
        begun = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done.append(run(name))
        with STORE.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
        print(done[-1], f"{time.process_time() - begun:.0f} s", flush=True)
        done.sort(key=lambda line: order.index(line["method"]))
        fill(ROOT / "docs" / "trust.md", "gold", markdown(pd.DataFrame(done).astype(object)))


if __name__ == "__main__":
    main()
