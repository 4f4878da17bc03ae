"""Where a posterior goes: into a plain model, into PEFT, onto a disk, onto a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import torch
from torch import nn

from bayeslora import guides, interop, storage, tables
from bayeslora.adapters import check_frozen
from bayeslora.contracts import Count, Kind, Probability
from bayeslora.failing import loadable
from bayeslora.isolation import public
from bayeslora.posterior.state import State
from bayeslora.types import BatchSize, Data, FileName, Folder, NumDraws, Seed

if TYPE_CHECKING:
    KHatGiven: TypeAlias = Any
else:
    KHatGiven: TypeAlias = Annotated[Any, Kind("what posterior.khat returns", lambda v: hasattr(v, "verdict"))]


class Leaving(State):
    """Merges, exports and saves."""

    @public()
    def merge(self) -> nn.Module:
        """Fold the centre's adapters into the weights of a plain model, for one prediction at the base model's cost.

        Raises:
            ValueError: If base layers are quantised, or the model differs from the centre on `example`.
        """
        check_frozen(self.network)
        return interop.merge(self.network, self.program.factors_at(self.program.centre()), self._example())

    @public()
    def export_peft(self, folder: Folder, num_draws: NumDraws | None = None, *, seed: Seed | None = 0) -> list[Path]:
        """Write adapters and task head as ordinary PEFT LoRA adapters; DoRA's as PEFT's DoRA.

        Beside them go the tokenizer, if there is one, and a card. Where PEFT is installed, it reads the first adapter
        back, and its layers, and after a fit its logits, are compared with ours. A temperature is not folded in.

        Args:
            folder: Where to write.
            num_draws: Draws to write, each to a folder of its own, `draw-0`, `draw-1`, …, with a list of them,
                `draws.json`, for `serving`; None for the centre, in `folder` itself. A finite posterior writes its
                members.
            seed: Seed of the draws.

        Returns:
            The folders written, each for `PeftModel.from_pretrained(base, …)`.

        Raises:
            ValueError: If the adapters have no form in PEFT's LoRA, or PEFT reads something else.
        """
        check_frozen(self.network)
        sites = self.program.centre() if num_draws is None else self.draw(num_draws, seed=seed)
        about = interop.About(self.method.name, temperature=self.temperature)
        settings: dict[str, Any] = {"about": about, "tokenizer": self.tokenizer, "batch": self._example()}
        return interop.export_draws(self.program, sites, Path(folder), num_draws is not None, **settings)

    @public()
    def report(
        self,
        path: FileName,
        test: Data,
        *,
        familiar: Data | None = None,
        validation: Data | None = None,
        khat: KHatGiven | None = None,
        risks: Sequence[Probability] = (0.01, 0.05, 0.1),
        examples: Count = 8,
        num_draws: NumDraws = 32,
        seed: Seed = 0,
        batch_size: BatchSize = 64,
        text: str | Sequence[str] | None = None,
        label: str | Sequence[str] | None = None,
        id: str | None = None,
    ) -> Path:
        """Write one self-contained HTML page about this posterior, to be read on a screen or printed.

        It says what was fitted on what; verdicts in words, with numbers and intervals; figures; the least and the most
        certain examples, and why; what can be decided at chosen risks; how the fit went; and how to reproduce it. It
        has no scripts, and loads nothing from the network. Examples are shown as they are: mind who may read them.

        Args:
            path: The file to write.
            test: Labelled data that the fit has not seen.
            familiar: The training data, say: the nearest of them are shown beside each example, by the features of the
                output layer.
            validation: Other held-out rows, for decisions with a promise (`decide`).
            khat: What `khat` returned.
            risks: Error rates that the answered rows may have.
            examples: Rows in each table of examples.
            num_draws: Draws of the weights.
            seed: Seed of the draws.
            batch_size: Examples per batch.
            text: The column of the texts, or two, if called otherwise than in the fit.
            label: The column of the labels, if called otherwise.
            id: A column that names the rows.

        Returns:
            The file.

        Raises:
            ValueError: If the data has no labels, or `validation` is given for labels that know no decisions.
            NotSavedError: If the file cannot be written.
        """
        from bayeslora.report import report

        columns = {"text": text, "label": label, "id": id}
        how = (num_draws, seed, batch_size, risks, examples, columns)
        return report(self, path, test, familiar, validation, khat, *how)

    @public()
    def save(self, folder: Folder) -> None:
        """Write adapters, head, method and history: safetensors and JSON, and the tokenizer's own files.

        All of it takes effect together, by one rename: whoever loads from the folder, during the save or after the
        process was killed in it, gets the posterior that was there before or this one.

        Raises:
            NotSavedError: If a file cannot be written, or `load` would refuse the posterior, because it holds NaN, say;
                what was saved there before is as it was.
        """
        self._save(Path(folder))

    def _save(self, folder: Path, about: Mapping[str, bytes] | None = None) -> None:
        """Save, together with files about the posterior, such as its card."""
        check_frozen(self.network)
        with loadable(folder):
            guides.check_loaded(self.guide)
        tensors = storage.state(self.program) | {"fingerprint": storage.fingerprint(self.network)}
        tensors |= tables.state(self) | {
            f"history/{name}": torch.tensor(column, dtype=torch.float64) for name, column in self._history.items()
        }
        storage.save_files(folder, tensors, self.record(), self.tokenizer, about=about)
