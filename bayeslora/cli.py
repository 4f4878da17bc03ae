"""The command line: `bayeslora demo | fit | predict | evaluate | calibrate | merge | export`, and `commands`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bayeslora import commands, contracts
from bayeslora.commands import Draws, Id, Label, Text
from bayeslora.methods import METHODS
from bayeslora.piping import STANDARD, columns_beside, piped, read_named, write_out
from bayeslora.shell import (
    FitCommand,
    as_json,
    check_output,
    columns_named,
    console,
    held_out_of,
    json_or_text,
    method_fields,
    number_or_auto,
    print_table,
    progress,
    split_to_predict,
    with_columns,
    with_decisions,
    write_table,
)
from bayeslora.tasks import LIKELIHOODS
from bayeslora.wording import errors, quiet

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Bayesian adapters for pre-trained networks.")
app.add_typer(commands.app)


def _version(asked: bool) -> bool:
    if asked:
        import bayeslora

        typer.echo(f"bayeslora {bayeslora.__version__}")
        raise typer.Exit
    return bool(asked)


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Bayesian adapters for pre-trained networks."""


DrawsOrAuto = Annotated[
    Any,
    typer.Option(parser=number_or_auto, metavar="INTEGER|auto", help="Draws of the weights; auto: as many as needed."),
]
Seed = Annotated[int, typer.Option(help="Seed of all randomness.")]
DataName = Annotated[
    str,
    typer.Argument(
        help="A file (CSV, TSV, JSON, JSON lines, Parquet, Excel), a folder of them, or a hub name; - for standard "
        "input."
    ),
]
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

    quiet()
    start = time.perf_counter()
    doing = "Fitting LoRA and MonteCLoRA to 300 words, predicting 1,000 (under 3 minutes on 2 cores)…"
    with errors(shows=False), console.status(doing):
        result = main_job.run(seed)
        main_job.write(result, output)
    table = result.table()
    words = result.words
    print_table(
        table, f"{len(words.test)} test words; unfamiliar: {len(words.unfamiliar)} emoticons and slang", "method"
    )
    print_table(result.least_sure(), "The words it is least sure of, and how much the ten raters disagreed", "word")
    console.print(
        f"{time.perf_counter() - start:.0f} s in all. Saved in {output}/: posterior (bayeslora.load), arviz.nc "
        "(arviz.from_netcdf), reliability.png, table.csv, least-sure.csv."
    )


@app.command(cls=FitCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def fit(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Path or hub name of the model.")],
    data: Annotated[
        str, typer.Option(help="A file, such as CSV or JSON, a folder of them, or a hub name; - for standard input.")
    ],
    output: Annotated[Path, typer.Option(help="Where to save the posterior.")],
    method: Annotated[
        str | None, typer.Option(help=f"One of: {', '.join(METHODS)}; by default monteclora, or the prior's.")
    ] = None,
    likelihood: Annotated[
        str | None, typer.Option(help="What the labels are; by default inferred: " + ", ".join(LIKELIHOODS))
    ] = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
    last_answer: Annotated[bool, typer.Option(help="Of conversations, learn the last answer alone.")] = False,
    shots: Annotated[
        str | None, typer.Option(help="Of answer_letters, a file of questions with answers that precede every one.")
    ] = None,
    validation: Annotated[str | None, typer.Option(help="Held-out data; by default the data's own split.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Cross-fit: that many members, each without its part of the data, set the dial.")
    ] = None,
    refit: Annotated[
        bool | None,
        typer.Option(help="Of --folds, save one fit of all data, or the mixture of members; by default the method's."),
    ] = None,
    weight: Annotated[str | None, typer.Option(help="The column that says how much rows count.")] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            help='balanced: classes count inversely to their frequency. Or JSON: {"spam": 5}; others count 1.'
        ),
    ] = None,
    init: Annotated[str | None, typer.Option(help="Folder of a posterior or of a PEFT adapter to start from.")] = None,
    prior: Annotated[Path | None, typer.Option(help="Folder of a posterior to learn on from: it is the prior.")] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            help="all-linear, attention, last:2 for the last two blocks, a suffix or a regular expression; several for "
            "several suffixes; by default all-linear."
        ),
    ] = None,
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
        float | None, typer.Option(help="Passes over the data; by default 3 to 8, to make 200 steps, or 400.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 16,
    packing: Annotated[bool, typer.Option(help="Of a causal language model, several short texts in one row.")] = False,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; by default from the network's width.")
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
    """Fit a posterior and save it. The method's fields, listed below, are flags too: --components 8 --sparse."""
    import bayeslora
    from bayeslora.data import split

    quiet()
    with errors():
        earlier = None if prior is None else bayeslora.load(prior, model)
        named = method or (earlier.method.name if earlier else "monteclora")
        settings: dict[str, Any] = {
            "prior": earlier,
            **columns_named(text, label, id),
            "answers": "last" if last_answer else "all",
            "shots": shots,
            "packing": packing,
            "likelihood": likelihood,
            "folds": folds,
            "refit": refit,
            "weight": weight,
            "class_weights": None if class_weights is None else json_or_text(class_weights),
            "init": init,
            "targets": "all-linear" if not targets else targets[0] if len(targets) == 1 else targets,
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
            **method_fields(named, context.args),
        }
        contracts.check_arguments(bayeslora.fit, model=model, data=data, method=method, **settings)  # before it reads
        check_output(output)
        rows = read_named(data)
        held_out = split(read_named(validation), "train") if validation else None
        posterior = bayeslora.fit(model, rows, method, validation=held_out, **settings)
    history = posterior.history
    last = history[history["epoch"] > history["epoch"].max() - 1]  # a single step is a few rows
    nll = f" Training NLL of the last epoch: {last['nll'].mean():.4f} nats per row." if len(last) else ""
    console.print(f"Saved in {output}.{nll}")


@app.command()
def predict(
    posterior: Folder,
    data: DataName,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: CSV, TSV, JSON, JSON lines, Parquet or Excel, by its name; - for standard output; by "
            "default the first rows are shown."
        ),
    ] = None,
    decide: Annotated[
        str | None, typer.Option(help="Held-out data, by which to abstain and give sets of labels or intervals.")
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(help="Error rate of the rows that are answered; by default 0.05 with --decide. Column abstain."),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Share of labels in their sets; by default 0.9 with --decide. Column set, or lower and upper."
        ),
    ] = None,
    num_draws: DrawsOrAuto = 32,
    seed: Seed = 0,
    model: Base = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
) -> None:
    """Predict with a saved posterior: a row per example, with probabilities and uncertainty in nats."""
    from bayeslora.loading import load
    from bayeslora.posterior import Posterior
    from bayeslora.tasks.prediction import BasePrediction

    quiet()
    with errors():
        columns = columns_named(text, label, id)
        contracts.check_arguments(Posterior.predict, None, data, num_draws=num_draws, seed=seed, **columns)
        check_output(output, is_table=True, read=(data, decide))
        contracts.check_arguments(BasePrediction.abstain, None, **({} if risk is None else {"risk": risk}))
        contracts.check_arguments(BasePrediction.sets, None, **({} if coverage is None else {"coverage": coverage}))
        loaded, given = load(posterior, model), piped(data)
        rows = split_to_predict(given.splits)
        if decide is not None:
            held_out = held_out_of(read_named(decide))
            with progress("Predicting held-out rows", held_out):
                loaded.decide(held_out, num_draws, seed=seed, **columns)
        with progress("Predicting", rows):
            predicted = loaded.predict(rows, num_draws, seed=seed, **columns)
        table = predicted.to_pandas()
        if predicted.used is not None:
            table["draws"] = predicted.of_table(predicted.used)
        table = with_decisions(table, predicted, risk, coverage, decide is not None)
        table = with_columns(table, rows, columns_beside(rows, loaded.columns, text, label, id))
        if str(output) == STANDARD:
            write_out(table, given.ending)
        elif output is not None:
            write_table(table, output)
    if output is None:
        print_table(table.head(20), f"First of {len(table)} predictions", "predicted")
    elif str(output) != STANDARD:
        console.print(f"{len(table)} predictions in {output}.")


@app.command()
def evaluate(
    posterior: Folder,
    data: DataName,
    num_draws: DrawsOrAuto = 32,
    seed: Seed = 0,
    model: Base = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
) -> None:
    """Print the metrics of a saved posterior on labelled data, as JSON."""
    from bayeslora.loading import load
    from bayeslora.posterior import Posterior

    quiet()
    with errors():
        columns = columns_named(text, label, id)
        contracts.check_arguments(Posterior.evaluate, None, data, num_draws=num_draws, seed=seed, **columns)
        loaded, rows = load(posterior, model), split_to_predict(read_named(data))
        with progress("Predicting", rows, passes=2):  # draws, and the centre
            scores = loaded.evaluate(rows, num_draws, seed=seed, **columns)
    typer.echo(as_json(scores))


@app.command()
def calibrate(
    posterior: Folder,
    data: DataName,
    output: Annotated[Path, typer.Option(help="Where to save the calibrated posterior.")],
    num_draws: Draws = 32,
    seed: Seed = 0,
    model: Base = None,
    text: Text = None,
    label: Label = None,
    id: Id = None,
) -> None:
    """Divide the logits by the temperature that fits held-out data best, and save the posterior."""
    from bayeslora.loading import load
    from bayeslora.posterior import Posterior

    quiet()
    with errors():
        columns = columns_named(text, label, id)
        contracts.check_arguments(Posterior.calibrate, None, data, num_draws=num_draws, seed=seed, **columns)
        check_output(output)
        loaded, rows = load(posterior, model), held_out_of(read_named(data))
        with progress("Predicting", rows):
            calibrated = loaded.calibrate(rows, num_draws, seed=seed, **columns)
        calibrated.save(output)
    console.print(f"Saved in {output}, at a temperature of {calibrated.temperature:.3f}.")


@app.command()
def merge(
    posterior: Folder,
    output: Annotated[Path, typer.Option(help="Where to save the model.")],
    model: Base = None,
) -> None:
    """Fold the centre's adapters into the weights, and save a plain model with its tokenizer."""
    from bayeslora.interop import save_merged
    from bayeslora.loading import load

    quiet()
    with errors():
        check_output(output)
        loaded = load(posterior, model)
        save_merged(loaded.merge(), loaded.tokenizer, output)
    console.print(f"Saved in {output}: a plain model, AutoModel….from_pretrained.")


@app.command()
def export(
    posterior: Folder,
    output: Annotated[Path, typer.Option(help="Where to write the adapters.")],
    num_draws: Annotated[
        int | None, typer.Option(help="Draws to write, each to a folder of its own; by default the centre.")
    ] = None,
    seed: Seed = 0,
    model: Base = None,
) -> None:
    """Write adapters and task head as ordinary PEFT adapters."""
    from bayeslora.loading import load
    from bayeslora.posterior import Posterior

    quiet()
    with errors():
        contracts.check_arguments(Posterior.export_peft, None, output, num_draws, seed=seed)
        check_output(output)
        folders = load(posterior, model).export_peft(output, num_draws, seed=seed)
    console.print(f"{len(folders)} PEFT adapter{'s' * (len(folders) > 1)} in {output}.")


def main() -> None:
    """Run the `bayeslora` command."""
    app()


if __name__ == "__main__":
    main()
