"""What was meant by a name that is not known: the names of PEFT and `transformers`, and misspelt ones."""

import difflib
from collections.abc import Iterable, Sequence

ALIASES = {
    "rank": ("r", "lora_r", "rank_pattern", "lora_rank"),
    "alpha": ("lora_alpha", "alpha_pattern", "scaling"),
    "targets": ("target_modules", "target_parameters", "layers_to_transform", "modules"),
    "exclude": ("exclude_modules", "ignore_modules"),
    "head": ("modules_to_save",),
    "learning_rate": ("lr", "max_lr"),
    "epochs": ("num_train_epochs", "num_epochs", "n_epochs", "max_epochs", "nb_epochs"),
    "batch_size": (
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "train_batch_size",
        "eval_batch_size",
        "per_gpu_train_batch_size",
        "bs",
    ),
    "data": ("train_dataset", "dataset", "train_data", "train", "test_dataset", "test_data", "X", "x", "inputs"),
    "validation": ("eval_dataset", "eval_data", "validation_data", "val_data", "valid_data", "dev", "val"),
    "inputs": ("prompt", "prompts", "text", "texts", "input_ids"),
    "likelihood": ("task_type", "task", "loss"),
    "model": ("base_model", "base", "model_name_or_path", "base_model_name_or_path", "network"),
    "method": ("peft_type", "algorithm"),
    "args": ("training_args", "training_arguments"),
    "resume": ("resume_from_checkpoint",),
    "seed": ("random_state", "random_seed", "rng"),
    "output_dir": ("output", "output_path", "save_dir"),
    "progress": ("verbose", "disable_tqdm", "progress_bar"),
    "num_particles": ("particles", "n_particles", "num_samples"),
    "num_draws": ("num_samples", "n_samples", "n_draws", "draws", "samples", "mc_samples", "num_return_sequences"),
    "num_examples": ("n", "num_rows", "dataset_size"),
    "center": ("centre", "mean"),
    "folder": ("path", "save_directory", "directory", "filename", "pretrained_model_name_or_path"),
    "p": ("lora_dropout", "dropout", "dropout_rate"),
    "components": ("num_components", "n_components", "monteclora_n"),
}
"""Ours, and what others call it."""

ADVICE = {
    "lora_dropout": "for dropout on the adapters' inputs there are method='mc_dropout' and 'lora_dropout'",
    "use_dora": "that is method='dora'",
    "use_rslora": "set alpha to LoRA's alpha times the root of the rank",
    "bias": "that is method='bitfit'",
    "init_lora_weights": "pass trained adapters as init=…",
    "device": "move the model there before the fit",
    "device_map": "load the model with it, and pass the model",
    "compute_loss_func": "the loss is the likelihood's: pass your own, likelihood=…",
    "preprocess_logits_for_metrics": "take what you need of the logits in compute_metrics",
    "model_init": "pass the model",
    "labels": "pass (inputs, labels), or data with a column 'labels'",
    "y": "pass (inputs, labels), or data with a column 'labels'",
}
"""What to do instead of what has no name of ours."""

CLOSE = 0.7
"""Similarity from which a name is taken for a misspelt one."""


def suggestions(unknown: Iterable[str], known: Sequence[str]) -> str:
    """Return sentences that say what may have been meant by names, one each; nothing where there is nothing to say.

    Args:
        unknown: The names.
        known: The names there are.
    """
    said = [text for name in unknown if (text := _suggestion(name, known))]
    return "".join(f" {text[0].upper()}{text[1:]}" for text in said)


def _suggestion(name: str, known: Sequence[str]) -> str:
    for ours, theirs in ALIASES.items():
        if name in theirs and ours in known:
            return f"what others call {name!r} is {ours!r} here."
    plain = name.lower().replace("-", "_").strip("_")
    if name in ADVICE and "method" in known:
        return f"{name!r}: {ADVICE[name]}."
    if "args" in known and _is_of_trainer(name):
        return f"{name!r} is the Trainer's: pass it with args=TrainingArguments({name}=…)."
    close = difflib.get_close_matches(plain, known, 1, CLOSE)
    if not close and len(plain) > 2:
        close = [ours for ours in known if ours.endswith(f"_{plain}") or plain.endswith(ours)][:1]
    return f"did you mean {close[0]!r} instead of {name!r}?" if close else ""


def _is_of_trainer(name: str) -> bool:
    from transformers import TrainingArguments

    return name in TrainingArguments.__dataclass_fields__
