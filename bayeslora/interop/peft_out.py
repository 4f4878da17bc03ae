"""Adapters to PEFT: folders that it reads back before they are in place."""

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayeslora import filing
from bayeslora.adapters import AdaptedNetwork
from bayeslora.adapters.weights import is_transposed, is_within, names_of, share_weights, without_adapters
from bayeslora.interop.peft_fields import PREFIX
from bayeslora.interop.peft_files import CONFIG, Patterns
from bayeslora.interop.peft_in import _is_a, read_by_peft
from bayeslora.interop.starting import distance, from_factors, trained_head
from bayeslora.networks import is_a, output_names
from bayeslora.program import Program, evaluating
from bayeslora.serving import MANIFEST
from bayeslora.types import Batch, FactorsByStack, Sites, Tokenizer

logger = logging.getLogger(__name__)

DRAW = re.compile(r"draw-\d{1,9}")
"""Names of the folders of draws."""

TASKS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "SEQ_CLS": ("SEQUENCE_CLASSIFICATION", "SequenceClassification", ("classifier", "score")),
    "TOKEN_CLS": ("TOKEN_CLASSIFICATION", "TokenClassification", ("classifier", "score")),
    "QUESTION_ANS": ("QUESTION_ANSWERING", "QuestionAnswering", ("qa_outputs",)),
    "CAUSAL_LM": ("CAUSAL_LM", "CausalLM", ()),
    "SEQ_2_SEQ_LM": ("SEQ_TO_SEQ_CAUSAL_LM", "Seq2SeqLM", ()),
}
"""PEFT's task types: transformers' list of such models, the end of `AutoPeftModelFor…`, and the modules that PEFT
looks for in `modules_to_save` by itself."""


@dataclass(frozen=True)
class About:
    """What the card of exported adapters says about them.

    Args:
        method: The method of the fit.
        part: Which adapters of the posterior they are.
        temperature: What the posterior divides every logit by, which PEFT does not.
    """

    method: str
    part: str = "its centre"
    temperature: float = 1.0


def export_draws(
    program: Program, sites: Sites, folder: Path, several: bool, about: About, **settings: Any
) -> list[Path]:
    """Write adapters at one set of sites into a folder, or at several draws, `[draw, layer, …]`, each to its own.

    The first one is checked.

    Args:
        program: The program.
        sites: Sites, or draws of them.
        folder: Where to write; draws go to `draw-0`, `draw-1`, … in it, and what they are to `draws.json`.
        several: Whether they are draws.
        about: What cards say; the part is filled in.
        settings: Of `export_peft`.

    Returns:
        The folders written.
    """
    if about.temperature != 1:
        logger.warning("Exported adapters give the logits before calibration: divide them by %g.", about.temperature)
    if not several:
        with torch.no_grad():
            export_peft(program.network, program.factors_at(sites), folder, about=about, **settings)
        return [folder]
    count = len(next(iter(sites.values())))
    names = [f"draw-{index}" for index in range(count)]
    record = {"draws": names, "temperature": about.temperature, "method": about.method}

    def fill(beside: Path) -> None:
        for index, name in enumerate(names):
            (beside / name).mkdir()
            own = replace(about, part=f"draw {index} of {count}")
            with torch.no_grad():
                factors = program.factors_at({site: value[index] for site, value in sites.items()})
                adapter = Adapter(program.network, factors, own, check=index == 0, **settings)
                adapter.write(beside / name, folder / name)
        (beside / MANIFEST).write_text(json.dumps(record | {"likelihood": program.likelihood.name}, indent=2))

    filing.write_folder(folder, fill, [MANIFEST, CONFIG], lambda name: bool(DRAW.fullmatch(name)))
    return [folder / name for name in names]


def export_peft(
    network: AdaptedNetwork, factors: FactorsByStack, folder: str | os.PathLike[str], **settings: Any
) -> None:
    """Write given factors and the task head as an adapter for `peft.PeftModel.from_pretrained(base, folder)`.

    Files are written to a temporary folder and then moved, the configuration last: if the export fails, the folder is
    unchanged, and if it is killed, it holds the adapter of before, this one, or none.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.
        folder: Where to write `adapter_config.json`, `adapter_model.safetensors` and a card, `README.md`.
        settings: Further arguments of `Adapter`.

    Raises:
        ValueError: If the adapters have no form in PEFT's LoRA, or PEFT reads something else.
    """
    adapter = Adapter(network, factors, **settings)
    filing.write_folder(Path(folder), lambda beside: adapter.write(beside, Path(folder)), [CONFIG])


@dataclass(frozen=True)
class Adapter:
    """Given factors and the task head as an adapter of PEFT's.

    Args:
        network: The adapted network.
        factors: Factors by stack, without draws.
        about: What the card says.
        tokenizer: Written with the adapter, if there is one.
        check: Whether PEFT reads the adapter back, and is compared with the network; see `check_export`.
        batch: Inputs of the network to compare on, if there are any.
    """

    network: AdaptedNetwork
    factors: FactorsByStack
    about: About | None = None
    tokenizer: Tokenizer | None = None
    check: bool = True
    batch: Batch | None = None

    def write(self, beside: Path, folder: Path) -> None:
        """Write the files to a folder beside the one that they are for, where a card of somebody else's is kept."""
        config, tensors = self._content()
        content = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in tensors.items()}
        (beside / "adapter_model.safetensors").write_bytes(save(content, metadata={"format": "pt"}))
        (beside / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        (beside / "README.md").write_text(_card(config, self.network, self.about), encoding="utf-8")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(beside)
        if self.check:
            check_export(self.network, self.factors, beside, self.batch)
        if _is_of_another(folder / "README.md"):
            (beside / "README.md").unlink()

    def _content(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the configuration, and the tensors by name."""
        network, factors = self.network, self.factors
        for name, stack in network.stacks.items():
            noise = set(stack.family.factors._fields) - set(stack.family.without_noise().factors._fields)
            if any(bool(getattr(factors[name], field).any()) for field in noise):
                raise ValueError(
                    f"A draw of {type(stack.family).__name__} adapters is more than their factors, and has no form in "
                    "PEFT's LoRA: export the centre, num_draws=None."
                )
        _check_reach(network)
        adapters = from_factors(network, factors)
        tensors = dict(adapters.head)
        for name, value in adapters.factors.items():
            tensors |= {f"{name}.{key}": tensor for key, tensor in adapters.family.peft(value).items()}
        plain = _plain(network)
        task = next((task for task, (listed, _, _) in TASKS.items() if is_a(network.model, listed)), None)
        heads = [*network.head_names, *(TASKS[task][2] if task else ())]
        for name, module in plain.named_modules():  # PEFT goes by how names end, and wants to read whatever it finds
            if name.endswith(tuple(heads)) and not is_within(name, network.head_names):
                tensors |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        alphas = {name: _tidy(adapters.scaling[name] * rank) for name, rank in adapters.ranks.items()}
        rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (adapters.ranks, alphas))
        config = _lora_config(
            base_model_name_or_path=getattr(network.model, "name_or_path", "") or None,
            task_type=task,
            auto_mapping=None if task else _auto_mapping(network.model),
            r=rank,
            lora_alpha=alpha,
            rank_pattern=_patterns(adapters.ranks, rank),
            alpha_pattern=_patterns(alphas, alpha),
            target_modules=_target_modules(plain, list(adapters.factors)),
            modules_to_save=list(network.head_names) or None,
            fan_in_fan_out=any(is_transposed(base) for name in network.stacks for base in network.bases(name)),
            **adapters.family.peft_settings,
        )
        return config, tensors


def _check_reach(network: AdaptedNetwork) -> None:
    """Raise a ValueError if PEFT does not reach every use of an adapted layer."""
    names = names_of(network.model)
    for stack in network.stacks:
        for layer in network.layers(stack):
            if len(called := names[layer]) > 1:
                raise ValueError(
                    f"PEFT adapts a layer under one of its names, and the network has one layer under {len(called)}: "
                    f"{', '.join(called)}. posterior.merge() is right for every use of it."
                )
            if parametrize.is_parametrized(layer.base):
                raise ValueError(
                    f"PEFT cannot adapt {called[0]!r}, whose weight is parametrised: posterior.merge() folds that in."
                )


def _is_of_another(card: Path) -> bool:
    """Return whether a card exists that was not written by an export of ours."""
    return card.is_file() and "- bayeslora\n" not in card.read_text(encoding="utf-8", errors="replace")


def check_export(
    network: AdaptedNetwork, factors: FactorsByStack, folder: str | os.PathLike[str], batch: Batch | None = None
) -> None:
    """Let PEFT read an exported adapter, and compare its layers, its task head and its logits with ours.

    Layers are compared on random inputs, which needs no data; logits on a batch, if there is one. Without PEFT, the log
    says that nothing was compared.

    Raises:
        ValueError: If PEFT cannot read it, or reads something else.
    """
    # The head is set to 0 first, so that it can only equal the network's if PEFT reads it.
    base = _plain(network)
    with torch.no_grad():
        for head in network.head_names:
            for parameter in base.get_submodule(head).parameters():
                parameter.zero_()
    read = read_by_peft(base, folder)
    if read is None:
        return
    layers = {name: module for name, module in read.named_modules() if _is_a(module, "BaseTunerLayer")}
    ours = {name for stack in network.stacks.values() if not stack.in_head for name in stack.layer_names}
    if differing := sorted(ours ^ set(layers)):
        advice = "Leave them out of `targets`, or give modules names that do not end alike."
        if any("experts" in name.split(".") for name in set(layers) - ours):
            ends = sorted({name.rpartition(".")[2] for name in ours - set(layers)})
            advice = (
                f"PEFT takes whatever has the name of a fused expert's part for the experts: fit with exclude={ends}, "
                "or use posterior.merge()."
            )
        raise ValueError(
            f"PEFT reads the exported adapter onto other layers than it is for, so nothing was written: "
            f"{', '.join(differing[:5])}. {advice}"
        )
    with torch.no_grad(), evaluating(network):
        network.bind(factors)
        generator = torch.Generator().manual_seed(0)
        for name, layer in layers.items():
            own: Any = network.model.get_submodule(name)
            weight = own.base.weight
            dtype = weight.dtype if weight.is_floating_point() else network.dtype
            x = torch.randn(3, layer.in_features, generator=generator).to(weight.device, dtype)
            expected, before, got = own(x), own.base(x), layer(x)
            eps = torch.finfo(expected.dtype).eps
            rounding = (64 if eps < 1e-6 else 8) * eps * float(expected.abs().max())
            difference = float((got - expected).abs().max())
            if not difference <= rounding + 1e-3 * float((expected - before).abs().max()):
                raise ValueError(
                    f"PEFT reads the exported adapter of {name!r} so that its output differs by {difference:.2g}: "
                    "nothing was written. Please report this, with your version of peft."
                )
        network.unbind()
    state = {re.sub(r"\.modules_to_save\.default\b", "", name): value for name, value in read.state_dict().items()}
    for name, value in trained_head(network, factors).items():
        if name not in state or not torch.equal(state[name], value.to(state[name])):  # PEFT keeps the base's dtype
            has = "another value there" if name in state else "no such parameter"
            raise ValueError(
                f"PEFT does not read {name!r} of the trained task head from the exported adapter, it has {has}: "
                "nothing was written. posterior.merge() has the whole head."
            )
    if batch is not None and (difference := distance(network, factors, read, batch)):
        raise ValueError(
            f"The logits of PEFT's network with the exported adapter differ by {difference:.2g} on a batch, though its "
            "layers are right, and nothing was written: the network does not call them there, as PyTorch's "
            "TransformerEncoderLayer in evaluation. posterior.merge() is a plain model."
        )


def _plain(network: AdaptedNetwork) -> nn.Module:
    """Return a copy of an adapted network's base, around the same weights, with a copy of its task head."""
    with without_adapters():
        plain = share_weights(network.model, network.head_names)
    for module in plain.modules():
        if isinstance(module, nn.TransformerEncoderLayer):  # whose fused kernel, off in ours, is on in the base
            activation = module.activation
            is_relu, is_gelu = activation is nn.functional.relu, activation is nn.functional.gelu
            is_relu, is_gelu = is_relu or isinstance(activation, nn.ReLU), is_gelu or isinstance(activation, nn.GELU)
            module.activation_relu_or_gelu = 1 if is_relu else 2 if is_gelu else 0
    return plain


def _lora_config(**fields: Any) -> dict[str, Any]:
    """Return PEFT's configuration of an adapter; fields that are left out get their defaults."""
    plain = {"bias": "none", "init_lora_weights": True, "lora_dropout": 0.0, "use_rslora": False}
    return {"peft_type": "LORA", "inference_mode": True, **plain, **fields}


def _auto_mapping(model: nn.Module) -> dict[str, str] | None:
    """Return how `AutoPeftModel` finds a base's class without a PEFT task type; None if it is not transformers'."""
    library = type(model).__module__
    return (
        {"base_model_class": type(model).__name__, "parent_library": library}
        if library.startswith("transformers.")
        else None
    )


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Return the entries of layers that differ from the default, under names that match no other layer in PEFT."""
    patterns = {name: value for name, value in values.items() if value != default}
    read = Patterns("patterns", patterns)
    same = all(read.of(name, default) == value for name, value in values.items())
    return patterns if same else {f"^{re.escape(name)}": value for name, value in patterns.items()}


def _target_modules(model: nn.Module, names: list[str]) -> list[str] | str:
    """Return layers by name, or as a regular expression if PEFT, which compares the ends of names, would find more."""
    ends = tuple(f".{name}" for name in names)
    more = any(name.endswith(ends) for name, _ in model.named_modules() if name not in names)
    return "|".join(map(re.escape, names)) if more else names


def _tidy(number: float) -> float:
    """Round away the error of dividing and multiplying again; return a whole number as an integer."""
    rounded = float(f"{number:.9g}")
    return int(rounded) if rounded == int(rounded) else rounded


def _card(config: Mapping[str, Any], network: AdaptedNetwork, about: About | None) -> str:
    """Return the card of a folder of exported adapters, in Markdown."""
    base, task = config["base_model_name_or_path"], config["task_type"]
    settings: dict[str, Any] = {}
    model_config: Any = getattr(network.model, "config", None)
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        names = output_names(model_config)
        settings |= {"id2label": dict(enumerate(names))} if names else {"num_labels": model_config.num_labels}
    if task == "SEQ_CLS" and getattr(model_config, "pad_token_id", None) is not None:
        settings["pad_token_id"] = model_config.pad_token_id  # without which some would classify another token
    arguments = "".join(f", {name}={value}" for name, value in settings.items())
    head = ", ".join(f"`{name}`" for name in network.head_names)
    kind = "DoRA" if config.get("use_dora") else "LoRA"
    lines = [
        "---",
        *([f"base_model: {base}"] if base else []),
        "library_name: peft",
        "tags:",
        "- lora",
        "- bayeslora",
        "---",
        "",
        "# Adapters of a Bayesian fit",
        "",
        f"A {kind} adapter on {f'`{base}`' if base else 'a base without a name'}"
        + (f", with the task head trained with it ({head})." if head else "."),
    ]
    if about is not None:
        lines += [
            f"It is one point of a posterior that bayeslora fitted with the method `{about.method}`: {about.part}. One",
            "adapter gives one prediction; the uncertainty is in how those of several draws differ.",
        ]
        if about.temperature != 1:
            lines += ["", f"The posterior divides every logit by {about.temperature:.6g}; PEFT does not."]
    lines += ["", "```python"]
    if task and base:
        auto = f"AutoPeftModelFor{TASKS[task][1]}"
        lines += [f"from peft import {auto}", "", f'model = {auto}.from_pretrained("path/to/this/folder"{arguments})']
    else:
        lines += ["from peft import PeftModel", "", 'model = PeftModel.from_pretrained(base, "path/to/this/folder")']
    return "\n".join([*lines, "```", ""])
