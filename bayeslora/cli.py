"""The command line: `bayeslora demo | fit | predict | evaluate`."""

import json
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from bayeslora import contracts
from bayeslora.methods import METHODS, named, own_fields
from bayeslora.tasks import LIKELIHOODS
from bayeslora.types import Data

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Bayesian adapters for pre-trained networks.")
console = Console()

Draws = Annotated[int, typer.Option(help="Draws of the weights.")]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
DataName = Annotated[
    str, typer.Argument(help="A file (CSV, TSV, JSON, JSON lines, Parquet, Excel), a folder of them, or a hub name.")
]
Text = Annotated[
    list[str] | None, typer.Option(help="Column of the texts, twice for pairs of texts; by default found.")
]
Label = Annotated[str | None, typer.Option(help="Column of the labels; by default found.")]
Id = Annotated[str | None, typer.Option(help="Column that names the rows, and is not read.")]
Folder = Annotated[Path, typer.Argument(help="A saved posterior.")]
Base = Annotated[str | None, typer.Option("--model", help="The base model, if it is not the one named at the fit.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the posterior, arviz file, figure and tables.")] = Path(
        "demo-output"
    ),
    seed: Seed = 0,
) -> None:
    """Learn from 300 words which words are positive: LoRA against MonteCLoRA, on a real encoder, offline."""
    from bayeslora import demo as main_job

    _quiet()
    start = time.perf_counter()
    doing = "Fitting LoRA and MonteCLoRA to 300 words, predicting 1,000 (under 3 minutes on 2 cores)…"
    with _errors(), console.status(doing):
        result = main_job.run(seed)
        main_job.write(result, output)
    table = result.table()
    words = result.words
    _print(table, f"{len(words.test)} test words; unfamiliar: {len(words.unfamiliar)} emoticons and slang", "method")
    _print(result.least_sure(), "The words it is least sure of, and how much the ten raters disagreed", "word")
    console.print(
        f"{time.perf_counter() - start:.0f} s in all. Saved in {output}/: posterior (bayeslora.load), arviz.nc "
        "(arviz.from_netcdf), reliability.png, table.csv, least-sure.csv."
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Path or hub name of the model.")],
    data: Annotated[str, typer.Option(help="A file, such as CSV or JSON, a folder of them, or a hub name.")],
    output: Annotated[Path, typer.Option(help="Where to save the posterior.")],
    method: Annotated[str, typer.Option(help="One of: " + ", ".join(METHODS))] = "monteclora",
    likelihood: Annotated[
        str | None, typer.Option(help="What the labels are; by default inferred: " + ", ".join(LIKELIHOODS))
    ] = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
    validation: Annotated[str | None, typer.Option(help="Held-out data; by default the data's own split.")] = None,
    targets: Annotated[
        str, typer.Option(help="all-linear, attention, a suffix or a regular expression.")
    ] = "all-linear",
    exclude: Annotated[
        str | None, typer.Option(help="Layers to leave out of these: a suffix or a regular expression.")
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Modules of the task head, separated by commas; empty for none; by default found."),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="Rank of the adapters; by default 8, or less in narrower layers.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="LoRA's alpha.")] = 16,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data; by default 3 to 8, to make 200 steps.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 16,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; by default from width and n.")
    ] = None,
    num_particles: Annotated[
        int | None, typer.Option(help="Draws of the weights per step; by default the method's.")
    ] = None,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option(help="Continue from the newest whole checkpoint in the output folder.")
    ] = False,
    resume_anyway: Annotated[bool, typer.Option(help="The same, also from a checkpoint of another fit.")] = False,
) -> None:
    """Fit a posterior and save it. The method's fields are flags too: --noise-ratio 2 --components 8."""
    import bayeslora
    from bayeslora.data import read, split

    _quiet()
    with _errors():
        settings: dict[str, Any] = {
            **_columns(text, label, id),
            "likelihood": likelihood,
            "targets": targets,
            "exclude": exclude,
            "head": None if head is None else tuple(filter(None, head.split(","))),
            "rank": rank,
            "alpha": alpha,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "num_particles": num_particles,
            "seed": seed,
            "output_dir": output,
            "resume": "anyway" if resume_anyway else resume,
            **method_fields(method, context.args),
        }
        contracts.check_arguments(bayeslora.fit, model=model, data=data, method=method, **settings)  # before it reads
        rows = read(data)
        held_out = split(read(validation), "train") if validation else None
        posterior = bayeslora.fit(model, rows, method, validation=held_out, **settings)
    history = posterior.history
    end = "".join(
        f" Step {last['step']:.0f}: loss {last['loss']:.4f}, NLL {last['nll']:.4f} nats."
        for last in history.tail(1).to_dict("records")
    )
    console.print(f"Saved in {output}.{end}")


@app.command()
def predict(
    posterior: Folder,
    data: DataName,
    output: Annotated[Path | None, typer.Option(help="CSV file to write; by default the first rows are shown.")] = None,
    num_draws: Draws = 32,
    seed: Seed = 0,
    model: Base = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
) -> None:
    """Predict with a saved posterior: a row per example, with probabilities and uncertainty in nats."""
    from bayeslora.choice import narrating
    from bayeslora.data import read
    from bayeslora.loading import load
    from bayeslora.posterior import Posterior

    _quiet()
    with _errors():
        columns = _columns(text, label, id)
        contracts.check_arguments(Posterior.predict, None, data, num_draws=num_draws, seed=seed, **columns)
        loaded, rows = load(posterior, model), _test_split(read(data))
        with narrating(True):
            table = loaded.predict(rows, num_draws, seed=seed, **columns).to_pandas()
        names = id or loaded.columns.id
        if names in getattr(rows, "column_names", ()) and len(rows) == len(table):
            table.insert(0, names, list(rows[names]))
        if output is not None:
            table.to_csv(output, index=False)
    if output is None:
        _print(table.head(20), f"First of {len(table)} predictions", "predicted")
    else:
        console.print(f"{len(table)} predictions in {output}.")


@app.command()
def evaluate(
    posterior: Folder,
    data: DataName,
    num_draws: Draws = 32,
    seed: Seed = 0,
    model: Base = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
) -> None:
    """Print the metrics of a saved posterior on labelled data, as JSON."""
    from bayeslora.choice import narrating
    from bayeslora.data import read
    from bayeslora.loading import load
    from bayeslora.posterior import Posterior

    _quiet()
    with _errors():
        columns = _columns(text, label, id)
        contracts.check_arguments(Posterior.evaluate, None, data, num_draws=num_draws, seed=seed, **columns)
        loaded, rows = load(posterior, model), _test_split(read(data))
        with narrating(True):
            scores = loaded.evaluate(rows, num_draws, seed=seed, **columns)
    typer.echo(as_json(scores))


def as_json(scores: Mapping[str, float]) -> str:
    """Return scores as JSON; NaN, which JSON does not have, becomes null."""
    return json.dumps({name: None if math.isnan(value) else value for name, value in scores.items()}, indent=2)


def method_fields(method: str, flags: list[str]) -> dict[str, Any]:
    """Read fields of a method from command-line flags, `--noise-ratio 2` or `--noise-ratio=2`, with values in JSON."""
    cls = named(method)
    words = [word for flag in flags for word in (flag.split("=", 1) if flag.startswith("--") else [flag])]
    if len(words) % 2 or not all(name.startswith("--") for name in words[::2]):
        raise ValueError(f"Cannot read {' '.join(flags)!r}: give pairs, --field value.")
    fields = {name[2:].replace("-", "_"): _value(value) for name, value in zip(words[::2], words[1::2], strict=True)}
    contracts.refuse_unknown(fields, own_fields(cls))
    return fields


def main() -> None:
    """Run the `bayeslora` command."""
    app()


def _value(word: str) -> Any:
    """Return the value of a flag: a number, true, false or null as in JSON, and otherwise text."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return word


def _columns(text: list[str] | None, label: str | None, id: str | None) -> dict[str, Any]:
    """Return the columns that are named as keywords of `fit`, `predict` and `evaluate`."""
    return {"text": text or None, "label": label, "id": id}


def _test_split(data: Mapping[str, Data]) -> Data:
    """Return the split to predict: `test`, else `validation`, else `train`."""
    return next(data[name] for name in ("test", "validation", "train") if name in data)


def _quiet() -> None:
    """Turn off the reports of libraries: loading a model for fine-tuning always reports that its head is new."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bar()


class _errors:
    """A context that turns errors into one line and an exit status: 2 for the user's input, 1 for what else failed."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        from bayeslora.divergence import DivergedError

        if isinstance(error, (ValueError, TypeError, FileNotFoundError, ImportError)):
            status = 2
        elif isinstance(error, (DivergedError, OSError)):
            status = 1
        elif isinstance(error, KeyboardInterrupt):
            status = 128 + signal.SIGINT
        else:
            return
        # Where a fit was broken off, the notes say where its last good state is.
        lines = [str(error) or "Interrupted.", *getattr(error, "__notes__", ())]
        typer.secho(f"bayeslora: {' '.join(lines)}", fg="red", err=True)
        raise typer.Exit(status) from None


def _print(frame: "pd.DataFrame", title: str, key: str) -> None:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in frame.columns:
        table.add_column(column.replace("_", " "), justify="left" if column == key else "right", no_wrap=column == key)
    for row in frame.to_dict("records"):
        digits = {name: 0 if name == "seconds" else 3 for name in row}
        table.add_row(
            *(f"{value:.{digits[name]}f}" if isinstance(value, float) else str(value) for name, value in row.items())
        )
    console.print(table)


if __name__ == "__main__":
    main()
