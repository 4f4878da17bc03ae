"""The commands of studies and reports: `bayeslora compare | sweep | report`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslora import filing
from bayeslora.methods import METHODS
from bayeslora.piping import read_named
from bayeslora.shell import check_output, columns_named, split_to_predict
from bayeslora.wording import errors, quiet

app = typer.Typer()

PAGES = (".html", ".htm")
"""Endings of the pages that are written."""

FIGURES = (".png", ".pdf", ".svg")
"""Endings of the pictures that are written."""

Model = Annotated[str, typer.Option(help="Path or hub name of the model.")]
Labels = Annotated[
    str, typer.Option(help="All labels to learn from: a file, such as CSV or JSON, a folder of them, or a hub name.")
]
Test = Annotated[str | None, typer.Option(help="The examples that are scored; by default the data's split 'test'.")]
Validation = Annotated[
    str | None, typer.Option(help="Held-out labels that every method may use; by default the data's split.")
]
Methods = Annotated[
    list[str],
    typer.Option("--method", help="A method, once for each; ' + temperature' may follow: " + ", ".join(METHODS)),
]
FolderOfRuns = Annotated[
    Path | None, typer.Option(help="Folder in which each run is kept as it ends; the same command goes on from there.")
]
Jobs = Annotated[int | None, typer.Option(help="Fits at a time, in processes of their own; -1 for all processors.")]
Draws = Annotated[int, typer.Option(help="Draws of the weights.")]
Text = Annotated[
    list[str] | None, typer.Option(help="Column of the texts, twice for pairs of texts; by default found.")
]
Label = Annotated[
    list[str] | None, typer.Option(help="Column of the labels, or several, one for each class; by default found.")
]
Id = Annotated[str | None, typer.Option(help="Column that names the rows, and is not read.")]
Likelihood = Annotated[str | None, typer.Option(help="What the labels are; by default inferred.")]
Targets = Annotated[list[str] | None, typer.Option(help="Layers to adapt, as in fit; by default all-linear.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the adapters.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.")]


def settings_given(text: Any, label: Any, id: Any, targets: list[str] | None, **settings: Any) -> dict[str, Any]:
    """Return the arguments of `fit` that a command line names."""
    targets_given = None if not targets else targets[0] if len(targets) == 1 else targets
    given = {**columns_named(text, label, id), "targets": targets_given, **settings}
    return {name: value for name, value in given.items() if value is not None}


@app.command()
def compare(
    model: Model,
    data: Labels,
    method: Methods,
    test: Test = None,
    validation: Validation = None,
    seeds: Annotated[int, typer.Option(help="Fits of each method.")] = 5,
    folds: Annotated[int | None, typer.Option(help="Folds to find temperatures and an elpd by.")] = None,
    num_draws: Draws = 32,
    store: FolderOfRuns = None,
    n_jobs: Jobs = None,
    page: Annotated[Path | None, typer.Option(help="An HTML page to write as well.")] = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
    likelihood: Likelihood = None,
    targets: Targets = None,
    rank: Rank = None,
    epochs: Epochs = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
) -> None:
    """Compare methods with LoRA, with and without a temperature, on the same labels: a table in Markdown."""
    import bayeslora

    quiet()
    with errors(once=True):
        check_output(page, flag="--page", endings=PAGES)
        given = settings_given(
            *(text, label, id, targets),
            likelihood=likelihood,
            rank=rank,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
        )
        found = bayeslora.compare(
            model,
            data,
            method,
            test=test,
            validation=validation,
            seeds=seeds,
            folds=folds,
            num_draws=num_draws,
            store=store,
            n_jobs=n_jobs,
            **given,
        )
        if page is not None:
            found.report(page)
    typer.echo(found.to_markdown())


@app.command()
def sweep(
    model: Model,
    data: Labels,
    method: Methods,
    test: Test = None,
    validation: Validation = None,
    learning_rate: Annotated[
        list[float] | None, typer.Option(help="A peak learning rate, once for each; by default 3e-4, 5e-5 and 1e-5.")
    ] = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(help="Examples per step, once for each; by default 8, 32 and 64.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Fits of each method at each point of the grid.")] = 1,
    num_draws: Draws = 32,
    store: FolderOfRuns = None,
    n_jobs: Jobs = None,
    figure: Annotated[Path | None, typer.Option(help="A picture of the boxes to write as well, .png or .pdf.")] = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
    likelihood: Likelihood = None,
    targets: Targets = None,
    rank: Rank = None,
    epochs: Epochs = None,
) -> None:
    """Fit methods at every learning rate, batch size and seed: a table of robustness against the first, in Markdown."""
    import bayeslora

    quiet()
    with errors(once=True):
        check_output(figure, flag="--figure", endings=FIGURES)
        given = settings_given(text, label, id, targets, likelihood=likelihood, rank=rank, epochs=epochs)
        grid: dict[str, Any] = {"learning_rates": learning_rate, "batch_sizes": batch_size}
        found = bayeslora.sweep(
            model,
            data,
            method,
            test=test,
            validation=validation,
            **{name: values for name, values in grid.items() if values},
            seeds=seeds,
            num_draws=num_draws,
            store=store,
            n_jobs=n_jobs,
            **given,
        )
        if figure is not None:
            kind = figure.suffix.lower().removeprefix(".")
            filing.write_file(figure, filing.picture(found.plot(), format=kind, bbox_inches="tight"))
    typer.echo(found.to_markdown())


@app.command()
def report(
    posterior: Annotated[Path, typer.Argument(help="A saved posterior.")],
    data: Annotated[str, typer.Argument(help="Labelled data that the fit has not seen; its split 'test', if any.")],
    output: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    familiar: Annotated[str | None, typer.Option(help="The training data: the nearest are shown.")] = None,
    validation: Annotated[str | None, typer.Option(help="Other held-out rows, to decide by.")] = None,
    num_draws: Draws = 32,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    model: Annotated[str | None, typer.Option(help="The base model, if it is not the one named at the fit.")] = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
) -> None:
    """Write one self-contained page about a saved posterior: verdicts, figures, examples and why, decisions."""
    from bayeslora.data import split
    from bayeslora.loading import load

    quiet()
    with errors():
        check_output(output, endings=PAGES)
        loaded = load(posterior, model)
        others = {"familiar": familiar, "validation": validation}
        known = {name: split(read_named(each), "train") for name, each in others.items() if each is not None}
        named = columns_named(text, label, id)
        written = loaded.report(
            output, split_to_predict(read_named(data)), num_draws=num_draws, seed=seed, **known, **named
        )
    typer.echo(f"Written to {written}.")
