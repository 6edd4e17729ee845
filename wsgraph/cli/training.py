"""Commands that train and compare models."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from wsgraph.cli.checkpoints import Activation, Entry, Inputs, Module, Prefix, open_network
from wsgraph.cli.common import (
    AsJson,
    Images,
    Ray,
    Split,
    Trained,
    app,
    explained,
    given,
    named_folders,
    split_named,
    told_warnings,
    working,
)
from wsgraph.cli.options import chosen_options, read_search_space, with_run_options
from wsgraph.cli.results import print_folds, print_json, print_results, print_search, print_whole
from wsgraph.scores import finite_or_none

__all__: list[str] = []

_SHOWN_ROWS = 50


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that tasks and benchmarks can name."""
    from rich.console import Console

    from wsgraph.nn import list_models, model_entry, model_options

    if as_json:
        listed = [(entry, model_options(entry.name)) for entry in map(model_entry, list_models())]
        print_json([{**asdict(entry), "build": entry.build.__qualname__, "options": options} for entry, options in listed])
        return
    console = Console()
    for name in list_models():
        entry = model_entry(name)
        mixed = "; mixed batches" if entry.mixed else ""
        symmetries = " x ".join(entry.symmetries) or "no symmetry"
        console.print(f"[bold]{name}[/bold]  {entry.family}")
        console.print(f"  {', '.join(entry.tasks)}; {symmetries}{mixed}", highlight=False)
        console.print(textwrap.fill(entry.description, console.width - 1, initial_indent="  ", subsequent_indent="  "), highlight=False)


@app.command()
def tasks(as_json: AsJson = False) -> None:
    """List the tasks that `wsgraph train` knows, with the options of each, what must be given and what else is assumed."""
    from rich.console import Console

    from wsgraph._labels import plain
    from wsgraph.options import defaults_of, options_of, plain_value
    from wsgraph.tasks import list_tasks, task_class

    found = {name: task_class(name) for name in list_tasks()}
    if as_json:
        listed = {
            name: {
                each: {"help": about.help, "required": each not in defaults_of(task), "default": plain_value(defaults_of(task).get(each))}
                for each, about in options_of(task).items()
            }
            for name, task in found.items()
        }
        print_json([{"name": name, "description": task.description, "options": listed[name]} for name, task in found.items()])
        return
    console = Console()
    for name, task in found.items():
        console.print(f"[bold]{name}[/bold]  {task.description}")
        defaults = defaults_of(task)
        for each, about in options_of(task).items():
            default = defaults.get(each)
            usual = "" if default in (None, False, ()) else f" (default: {plain(plain_value(default))})"
            if about.flag:
                told = f"{about.flag}: {about.help}{usual if each in defaults else ' (required)'}"
                console.print(
                    textwrap.fill(told, console.width - 1, initial_indent="  ", subsequent_indent="    "), highlight=False, markup=False
                )


@app.command(context_settings={"ignore_unknown_options": True})
@with_run_options
def train(
    context: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]", help="Task to train, and options of its own; `wsgraph tasks` lists them."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML or JSON file with options by name; options given here win.")] = None,
    folds: Annotated[int | None, typer.Option(min=3, help="Cross-validate in so many folds, for zoos of few networks.")] = None,
    search: Annotated[int | None, typer.Option(min=1, help="Search options in so many trials, by the validation loss.")] = None,
    search_space: Annotated[
        list[str] | None,
        typer.Option(
            help="What a search varies, as NAME=LOW,HIGH,log, NAME=LOW,HIGH,uniform or NAME=CHOICE,CHOICE,...; repeat it "
            "(default: learning rate, weight decay and widths that are not given)."
        ),
    ] = None,
    ray: Ray = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time on a Ray cluster (default: 8).")] = None,
    as_json: AsJson = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a model on a task (default: prediction, of the column --target) and print its scores.

    The same command continues a run that was interrupted, and prints the scores of one that has finished. No run replaces another.
    Options of the task's own, which `wsgraph tasks` lists, are given here too.

    Examples: wsgraph train --zoo my-zoo --target dataset

    wsgraph train generalization --zoo my-zoo --model monomial_gnn --epochs 30

    wsgraph train inr_classification --zoo mnist-sirens --canonicalize phase

    wsgraph train generalization --zoo mnist-cnns --test-zoo svhn=svhn-cnns

    wsgraph train --zoo my-agents --target algorithm --folds 5

    wsgraph train --zoo my-zoo --target dataset --search 20 --search-space learning_rate=1e-4,1e-2,log

    wsgraph train --config run.toml --trainer-option precision=bf16-mixed --patience 5 --log tensorboard

    torchrun --nproc-per-node 4 -m wsgraph train generalization --zoo my-zoo
    """
    from wsgraph.tasks.runs import is_first_process

    with explained():
        from wsgraph import tasks

        name, chosen = chosen_options(context, config, options)
        space = chosen.pop("search_space", None)  # of the configuration file
        if search is None and (search_space or ray or workers):
            raise ValueError("--search-space, --ray and --workers are for searches: give the number of trials, --search 20.")
        if search is not None and folds is not None:
            raise ValueError("Expected --search or --folds (got both): search first, and cross-validate with the options that are found.")
        if search is not None:
            space = read_search_space(search_space) if search_space else space
            found = tasks.search(name, trials=search, search_space=space, ray=ray, workers=workers, **chosen)
            if as_json:
                print_json({**found.document(), "folder": str(found.folder)})
                return
            print_search(found)
            print_results([found.result], f"{name} on {chosen['zoo']}")
            typer.echo(f"Trials, trials.csv and search.json: {found.folder}")
            return
        if folds is not None:
            validated = tasks.cross_validate(name, folds=folds, **chosen)
            if is_first_process() and as_json:
                print_json({**validated.document(), "folder": str(validated.folder)})
            elif is_first_process():
                print_folds(validated)
                typer.echo(f"Runs and folds.json: {validated.folder}")
            return
        result = tasks.run(name, **chosen)
    if is_first_process() and as_json:
        print_json({**result.document(), "folder": str(result.folder)})
    elif is_first_process():
        print_results([result], f"{name} on {chosen['zoo']}")
        typer.echo(f"Model, logs and result.json: {result.folder}")


@app.command()
def evaluate(
    model: Trained,
    zoo: Annotated[list[Path], typer.Option(help="Folder of a zoo whose networks are scored; repeat it.")],
    split: Split = "test",
    scale: Annotated[
        list[float] | None, typer.Option(help="Score networks also with neurons permuted and scaled by U[1, S]; repeat it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained model on the networks of other zoos.

    Example: wsgraph evaluate runs/generalization/my-zoo-monomial_gnn-seed0 --zoo other-zoo --scale 100
    """
    from rich.table import Table

    from wsgraph.tasks import TrainedModel

    with explained():
        trained = TrainedModel.load(model)
        found = {}
        for path in zoo:
            with working(f"Scoring the networks of {path}"):
                found[str(path)] = trained.evaluate(path, split=split_named(split), scales=tuple(scale or ()))
    if as_json:
        print_json({name: finite_or_none(scores) for name, scores in found.items()})
        return
    typer.echo(repr(trained))
    table = Table("zoo", *next(iter(found.values())))
    for name, scores in found.items():
        table.add_row(escape(name), *(f"{value:.4g}" for value in scores.values()))
    print_whole(table)


@app.command()
def predict(
    model: Trained,
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint files, folders of such, or folders of zoos.")],
    activation: Activation = None,
    module: Module = None,
    inputs: Inputs = None,
    prefix: Prefix = None,
    entry: Entry = None,
    output: Annotated[Path | None, typer.Option(help="CSV file to write; of models that edit networks, the folder for these.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a trained model predicts of new networks: the column that it was trained for, or what else the task was.

    Checkpoints are read as networks like those that the model was trained on; say otherwise with --activation or --module. Where one
    cannot be read, the others still are, and the exit status is 1.

    Examples: wsgraph predict runs/generalization/my-zoo-monomial_gnn-seed0 new/*.safetensors

    wsgraph predict my-model my-zoo --output predictions.csv
    """
    from rich.table import Table

    from wsgraph.files import prepare_folder
    from wsgraph.tasks import TrainedModel
    from wsgraph.tasks.predicting import Reading, predictions_of

    with explained():
        if output is not None:
            prepare_folder(output.parent)
        trained = TrainedModel.load(model)
        reading = Reading(
            activation,
            prefix,
            entry,
            (lambda file: open_network(file, activation, module, inputs, False, prefix, entry)) if module else None,
        )
        with told_warnings():
            found = predictions_of(trained, list(checkpoints), reading, output=output)
        if output is not None and not trained.task.edits and found.rows:
            found.to_csv(output)
    if as_json:
        print_json({"model": str(model), "predictions": [finite_or_none(row) for row in found.rows], "errors": found.errors})
    elif found.rows:
        table = Table(*found.rows[0])
        for row in found.rows[:_SHOWN_ROWS]:
            table.add_row(*(escape(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row.values()))
        print_whole(table)
        if len(found.rows) > _SHOWN_ROWS:
            typer.echo(f"... and {len(found.rows) - _SHOWN_ROWS:,} more; --output writes all, --json prints them")
    far = sum(row.get("nearer", 0) >= 1 or row.get("new_architecture", False) for row in found.rows)
    if far and not as_json:
        typer.echo(f"{far:,} of {len(found.rows):,} lie further off than all networks trained on, or are of a new architecture.")
    for name, error in found.errors.items():
        typer.secho(f"Error: {name}: {error}", fg=typer.colors.RED, err=True)
    if found.errors:
        raise typer.Exit(1)


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="What to measure: generalization, architectures, robustness, train-size, transfer, inr, "
            "editing, memory, parameters or invariance."
        ),
    ],
    full: Annotated[bool, typer.Option("--full/--quick", help="Hours, for results to report, or minutes, to see that it runs.")] = False,
    model: Annotated[
        list[str] | None, typer.Option(help="Model to compare, as NAME or NAME:OPTION=VALUE,...; repeat it (default: all).")
    ] = None,
    zoo: Annotated[list[str] | None, typer.Option(help="Your zoo instead of those made here, as NAME=FOLDER; repeat it.")] = None,
    images: Images = None,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="Bring all models to this number of parameters (default: published widths).")
    ] = None,
    networks: Annotated[
        int | None, typer.Option(min=20, help="Networks in every zoo (default: 200, or 400 of pictures; with --full, 2,000 and 10,000).")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training networks (default: 6 or, with --full, 20).")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of every model (default: 2 or, with --full, 3).")] = None,
    folder: Annotated[Path, typer.Option(help="Where zoos and finished cells are kept.")] = Path("wsgraph-bench"),
    output: Annotated[Path | None, typer.Option(help="Where tables and figures go (default: FOLDER/results).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at a time (default: one per core).")] = None,
    ray: Ray = None,
) -> None:
    """Compare models on the papers' tasks: a table (terminal, Markdown, JSON) and figures.

    Every model gets the same data, epochs and search of the learning rate. Zoos and finished trainings are kept: a run that was killed
    continues when the command is repeated.

    Examples: wsgraph bench robustness --quick --model statnn --model monomial_gnn

    wsgraph bench inr --full --images mnist-folder

    wsgraph bench inr --model scalegmn --model scalegmn:bidirectional=true,channels=16

    wsgraph bench generalization --full --zoo cifar10=small-cnn-zoo/processed

    wsgraph bench inr --full --ray auto
    """
    from dataclasses import replace

    from wsgraph.bench import SIZES, run_suite
    from wsgraph.files import prepare_folder

    size = SIZES["full" if full else "quick"]
    with explained():
        run_suite(
            suite,
            size=replace(
                size, **given(networks=networks, pictures=networks, epochs=epochs, seeds=None if seeds is None else tuple(range(seeds)))
            ),
            folder=prepare_folder(folder),
            output=prepare_folder(output or folder / "results"),
            models=model,
            zoos=named_folders("--zoo", zoo or ()),
            images=images,
            parameters=parameters,
            workers=workers,
            ray=ray,
        )
    typer.echo(f"Tables and figures: {output or folder / 'results'}")
