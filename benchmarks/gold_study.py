"""Every method against NUTS: logistic regression with one adapter of rank 1, 60 examples.

    python benchmarks/gold_study.py [method …]

Every method is stored as it ends, so that an interrupted study goes on; the table has what is there. Methods that are
named, by their rows of the table, run anew.

The question is well posed where one factor is random: logits are those of a frozen layer plus s·BAx, `B` is held at one
value in every method, and `A` has the prior N(0, 0.2²), which makes this Bayesian logistic regression, in float64. With
both factors random the posterior is the same under every change of scale between them, and has no one mode. Every
temperature is 1, and a step has all examples. Laplace stands around the MAP under that prior, at its precision.

One reference is drawn for all that claim this posterior, and for noise and points. Three posteriors are over other
numbers, and have references of their own: ScalaBL's scales and MonteCLoRA's mixture by NUTS, given the fit's points;
the masks of LoRA Dropout, of which there are 128, by adding all of them up.
"""

import functools
import itertools
import json
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from demo_study import ROOT, fill, markdown
from torch import nn

import bayeslora
from bayeslora import METHODS, Posterior, diagnostics, guides
from bayeslora.adapters import AdaptedNetwork, Factors, Stack, Stacks
from bayeslora.diagnostics import Gold
from bayeslora.diagnostics.groups import logits_of
from bayeslora.methods import AutoGuide, Laplace, Method, own_fields
from bayeslora.methods.laplace_matrix import Matrix
from bayeslora.prediction import labelled
from bayeslora.priors import normal
from bayeslora.program import Program
from bayeslora.tasks import Classification

STORE = ROOT / "benchmarks" / "results" / "gold.jsonl"
NUM_EXAMPLES, D_IN, SCALING, PRIOR = 60, 5, 5.0, 0.2
HELD = torch.tensor([[0.5], [-0.5]])
SETTINGS: dict[str, Any] = {
    "rank": 1, "alpha": SCALING, "head": [], "targets": ["0"], "epochs": 500, "batch_size": NUM_EXAMPLES,
    "learning_rate": 1e-2, "progress": False,
}  # fmt: skip
SAMPLES, WARMUP, OWN_SAMPLES, DRAWS = 1000, 300, 150, 4000
OWN = ("scalabl", "monteclora, elbo", "lora_dropout, learn")
"""Posteriors over other numbers than `A` alone."""


def prior(stack: Stack) -> Factors:
    """A ~ N(0, 0.2²), with B held."""
    with stack.layers:
        A = pyro.sample(stack.site("A"), normal(stack.A_shape, PRIOR))
    return Factors(A, HELD.to(A).expand(*A.shape[:-2], *HELD.shape))


FULL = "autoguide, full rank"

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    FULL: ("autoguide", {"prior_program": prior, "autoguide": "AutoMultivariateNormal", "temperature": 1.0}),
    "autoguide, mean field": ("autoguide", {"prior_program": prior}),
    "laplace": ("laplace", {"prior_precision": PRIOR**-2, "post_hoc": True}),
    "Gaussian at the MAP": ("autoguide", {}),
    "blob": ("blob", {"prior_scale": PRIOR}),
    "ivon": ("ivon", {"prior_scale": PRIOR}),
    "monteclora, elbo": ("monteclora", {"objective": "elbo", "prior_scale": PRIOR}),
    "scalabl": ("scalabl", {}),
    "lora_dropout, learn": ("lora_dropout", {"p": "learn"}),
    "monteclora": ("monteclora", {}),
    "lora_dropout": ("lora_dropout", {}),
    "mc_dropout": ("mc_dropout", {}),
    "swag": ("swag", {}),
    "tfb": ("tfb", {}),
    "deep_ensemble": ("deep_ensemble", {}),
    "checkpoint_ensemble": ("checkpoint_ensemble", {}),
    "lora": ("lora", {}),
    "MAP": ("autoguide", {"prior_program": prior, "autoguide": "AutoDelta"}),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D_IN, 2).double())


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(NUM_EXAMPLES, D_IN, generator=generator, dtype=torch.float64)
    logit = x @ torch.tensor([1.5, -1.0, 0.5, 0.0, 0.0], dtype=torch.float64)
    return x, (torch.rand(NUM_EXAMPLES, generator=generator, dtype=torch.float64) < logit.sigmoid()).long()


@torch.no_grad()
def hold(guide: nn.Module) -> None:
    """Put B where it is held, as a point that is not trained."""
    for part in guide.modules():
        if isinstance(part, nn.ModuleDict) and "B" in part:
            if isinstance(part["B"], guides.Normal | Matrix):
                part["B"] = guides.Point(torch.zeros(1, *HELD.shape))
            part["B"].get_parameter("loc").copy_(HELD).requires_grad_(False)
        elif "B" in dict(part.named_parameters(recurse=False)):
            part.get_parameter("B").copy_(HELD).requires_grad_(False)


def held(cls: type[Method]) -> type[Method]:
    """The same method with B held."""

    def guide(self: Method, stacks: Stacks) -> nn.Module:
        made = cls.guide(self, stacks)
        hold(made)
        return made

    return type(cls.__name__, (cls,), {"guide": guide})


def fitted(name: str) -> Posterior:
    if name == "Gaussian at the MAP":
        return at_the_map()
    key, fields = VARIANTS[name]
    if "temperature" in own_fields(METHODS[key]).names:
        fields = {**fields, "temperature": 1.0}
    own = fields.get("prior_program") is not None
    start = {"init": fitted("MAP")} if METHODS[key] is Laplace else {}
    method = (METHODS[key] if own else held(METHODS[key]))(**fields)
    return bayeslora.fit(network(), rows(), method, **start, **SETTINGS)


def at_the_map() -> Posterior:
    """Laplace with all of the curvature, in the place of a full-rank guide's Gaussian."""
    x, labels = rows()
    logits = network()(x).detach()

    def energy(A: torch.Tensor) -> torch.Tensor:
        changed = logits + SCALING * (x @ A)[:, None] * HELD.double().T
        return nn.functional.cross_entropy(changed, labels, reduction="sum") + A.square().sum() / (2 * PRIOR**2)

    at = fitted("MAP").program.centre()["5x2.A"].detach().flatten()
    tril = torch.linalg.cholesky(torch.autograd.functional.hessian(energy, at).inverse())
    posterior = bayeslora.fit(network(), rows(), VARIANTS[FULL][0], **VARIANTS[FULL][1], **{**SETTINGS, "epochs": 0})
    auto: Any = posterior.program.guide["5x2"].auto
    with torch.no_grad(), pyro.settings.context(module_local_params=True):
        auto.loc.copy_(at)
        auto.scale, auto.scale_tril = tril.diagonal(), tril / tril.diagonal()[:, None]
    return posterior


@functools.cache
def common() -> Gold:
    """The posterior of A under N(0, 0.2²)."""
    base = AdaptedNetwork(network(), rank=1, alpha=SCALING, num_examples=NUM_EXAMPLES, head=[])
    method = AutoGuide(prior_program=prior, temperature=1.0, init_scale=0.1)
    posterior = Posterior(Program(base, method, Classification(2).double()))
    return diagnostics.gold(posterior, rows(), SAMPLES, WARMUP)


def of_masks(posterior: Posterior) -> Gold:
    """The posterior of all masks, each by its weight."""
    program = posterior.program
    centre = program.centre()
    masks = {name: value for name, value in centre.items() if ".mask_" in name}
    sizes = [value.shape[-1] for value in masks.values()]
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=sum(sizes))), dtype=torch.float64)
    sites = {name: value.expand(len(every), *value.shape) for name, value in centre.items()}
    for name, part in zip(masks, every.split(sizes, dim=1), strict=True):
        sites[name] = part[:, None]
    outputs, labels = labelled(program, posterior._source(rows()), sites, 0, NUM_EXAMPLES, None)
    weights = posterior._prediction(outputs).log_likelihood(labels).sum(1)  # prior_p = ½: every mask is as likely
    weights = np.exp(weights - weights.max())
    drawn = np.random.default_rng(0).choice(len(every), 4 * SAMPLES, p=weights / weights.sum())
    logits = logits_of(outputs, posterior._prediction(outputs), program)[drawn]
    return Gold({name: value[drawn] for name, value in sites.items()}, logits, float(len(drawn)), 0)


def run(name: str) -> dict[str, Any]:
    """One fit, its reference, and how far it is from it."""
    posterior = fitted(name)
    claims = "points" if name == "MAP" else posterior.method.claims
    if name == "lora_dropout, learn":
        gold, source = of_masks(posterior), "128 masks"
    elif name in OWN:
        gold = diagnostics.gold(posterior, rows(), OWN_SAMPLES, WARMUP // 3)
        source = f"own, {gold.effective:.0f} effective, {gold.divergences} divergent"
    else:
        gold = common()
        source = f"common, {gold.effective:.0f} effective, {gold.divergences} divergent"
    found = gold.against(posterior, rows(), DRAWS)
    try:
        khat = posterior.khat(rows(), DRAWS) if claims == "posterior" else None
    except ValueError:  # masks: a guide without a density against a prior that has none
        khat = None
    return {
        "method": name,
        "claims": claims,
        **{column: f"{value:.2f}" for column, value in found.items()},
        "k-hat": f"{khat.khat:.2f}" if khat and np.isfinite(khat.khat) else "none" if khat else "–",
        "width": f"{khat.width:.2f}" if khat else "–",
        "reference": source,
    }


def main() -> None:
    """Run what is missing, posteriors first, and write the table."""
    anew = sys.argv[1:]
    if unknown := {*anew} - {*VARIANTS}:
        sys.exit(f"{', '.join(sorted(unknown))}: the table has {', '.join(VARIANTS)}.")
    lines = [json.loads(line) for line in STORE.read_text().splitlines()] if STORE.exists() else []
    done = [line for line in lines if line["method"] not in anew]
    STORE.write_text("".join(json.dumps(line) + "\n" for line in done))
    known = {line["method"] for line in done}
    order = list(VARIANTS)
    for name in sorted(order, key=lambda name: name == "monteclora, elbo"):  # whose chain takes minutes
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
