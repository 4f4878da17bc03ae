"""Adapt a language model to another kind of text, and ask it token by token how sure it is.

    python examples/language_model.py
    python examples/language_model.py --text letters.txt --prompt "Dear"

A small Llama is trained on Python's language reference (that of `help("with")`), and then adapted, its weights frozen,
to NumPy's docstrings, or to a text file of yours. Nothing is downloaded. It prints, per token of held-out parts of that
text and of two other kinds, the NLL before and after, the entropy, and the mutual information of token and weights, all
in nats; then a text that 8 draws of the adapters write together, and the tokens of it about which they disagree most. A
model this small writes no sense. A minute and a half on one core.
"""

import argparse
import inspect
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bayeslora

LENGTH = 64  # tokens of an example, and of the longest text


def byte_pairs(text: str, size: int = 512) -> PreTrainedTokenizerFast:
    """A tokenizer of byte pairs: it knows every text, and those like this one by fewer tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def examples(tokenizer: PreTrainedTokenizerFast, text: str) -> Tensor:
    """The text in rows of equal length, `[example, token]`."""
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    return ids[: len(ids) // LENGTH * LENGTH].view(-1, LENGTH)


def pretrained(rows: Tensor, vocab_size: int, steps: int) -> LlamaForCausalLM:
    """A Llama of 0.4 million parameters, trained on these rows."""
    sizes = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    config = LlamaConfig(vocab_size=vocab_size, **sizes, max_position_embeddings=LENGTH, bos_token_id=0, eos_token_id=0)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (16,))]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def main() -> None:
    """Train, adapt, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="what to adapt to; by default NumPy's docstrings")
    parser.add_argument("--prompt", default="Return the ")
    parser.add_argument("--method", default="monteclora", choices=list(bayeslora.METHODS))
    parser.add_argument("--pretraining", type=int, default=600, help="steps on the language reference")
    parser.add_argument("--train", type=int, default=480, help="examples to adapt to, of 64 tokens")
    parser.add_argument("--test", type=int, default=60, help="examples of each kind to evaluate on")
    parser.add_argument("--epochs", type=float, default=4)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # on tensors this small, threads would wait for each other

    reference = "\n\n".join(topics.values())
    tokenizer = byte_pairs(reference)
    model = pretrained(examples(tokenizer, reference), len(tokenizer), options.pretraining)

    docstrings = "\n\n".join(inspect.getdoc(getattr(np, name)) or "" for name in sorted(np.__all__))
    text = options.text.read_text() if options.text else docstrings
    rows = examples(tokenizer, text)
    rows = rows[torch.randperm(len(rows))]
    train, test = rows[: options.train], rows[options.train :][: options.test]
    if len(test) == 0:
        raise SystemExit(f"The text has {len(rows)} examples of {LENGTH} tokens: --train must leave some to test on.")
    settings = {"tokenizer": tokenizer, "likelihood": "causal_lm", "learning_rate": 5e-3, "progress": False}
    posterior = bayeslora.fit(model, {"input_ids": train}, options.method, epochs=options.epochs, **settings)
    before = bayeslora.fit(model, {"input_ids": train}, "lora", epochs=0, **settings)  # the network as it was

    kinds = {
        "adapted to": test,
        "trained on": examples(tokenizer, reference)[: options.test],
        "neither": examples(tokenizer, inspect.getsource(argparse))[: options.test],
    }
    table = []
    for kind, ids in kinds.items():
        tokens = posterior.predict({"input_ids": ids}, num_draws=8)
        row = {"text": kind, "NLL before": -np.log(before.predict({"input_ids": ids}).probs).mean()}
        row |= {"NLL": -np.log(tokens.probs).mean(), "entropy": tokens.entropy.mean()}
        table.append(row | {"mutual information": tokens.epistemic.mean()})
    print(pd.DataFrame(table).round(3).to_string(index=False), "\n")

    written = posterior.generate(
        options.prompt, num_draws=8, average=True, do_sample=True, temperature=0.7, max_new_tokens=40
    )
    print(options.prompt + written.texts[0][0], "\n")
    tokens = written.to_pandas()[["position", "token", "p(token)", "entropy", "epistemic"]]
    tokens["token"] = [repr(tokenizer.decode([token])) for token in tokens["token"]]
    print(tokens.nlargest(5, "epistemic").round(3).to_string(index=False))


if __name__ == "__main__":
    main()
