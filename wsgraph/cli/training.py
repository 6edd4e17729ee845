"""Commands that train and compare models."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from wsgraph.cli.common import Images, Seed, app, explained, given, named_folders
from wsgraph.cli.results import print_results

__all__: list[str] = []


@app.command()
def models() -> None:
    """List the models that tasks and benchmarks can name."""
    from rich.console import Console

    from wsgraph.nn import list_models, model_entry

    console = Console()
    for name in list_models():
        entry = model_entry(name)
        mixed = "; mixed batches" if entry.mixed else ""
        symmetries = " x ".join(entry.symmetries) or "no symmetry"
        console.print(f"[bold]{name}[/bold]  {entry.family}")
        console.print(f"  {', '.join(entry.tasks)}; {symmetries}{mixed}", highlight=False)
        console.print(textwrap.fill(entry.description, console.width - 1, initial_indent="  ", subsequent_indent="  "), highlight=False)


@app.command()
def train(
    task: Annotated[str, typer.Argument(help="Task to train: generalization, inr_classification or inr_editing.")],
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    model: Annotated[str, typer.Option(help="Model to train; `wsgraph models` lists them.")] = "monomial_gnn",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training networks.")] = 30,
    seed: Seed = 0,
    scale: Annotated[
        list[float] | None, typer.Option(help="Upper bound of the scales of moved test networks; repeat it (default: as the task).")
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Largest learning rate of the one-cycle schedule.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Networks per step.")] = 64,
    output: Annotated[Path | None, typer.Option(help="Folder for checkpoints and logs (default: runs/TASK/ZOO-MODEL-seedSEED).")] = None,
    canonicalize: Annotated[
        list[str] | None, typer.Option(help="Settle scale, phase, sign or order in all networks before they are read; repeat it.")
    ] = None,
    operation: Annotated[
        str | None, typer.Option(help="Of inr_editing: dilate, erode, gradient, sharpen or contrast (default: dilate).")
    ] = None,
    augment_scale: Annotated[
        float | None,
        typer.Option(help="Of generalization: move training networks too, with factors up to this bound, anew in every epoch."),
    ] = None,
    train_size: Annotated[int | None, typer.Option(min=2, help="Number of training networks, chosen by the seed (default: all).")] = None,
    test_zoo: Annotated[
        list[str] | None, typer.Option(help="Further zoo whose test networks are scored, as NAME=FOLDER; repeat it.")
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="Processes that train together, each with its share of every batch.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run from its last checkpoint.")] = False,
) -> None:
    """Train a model on a task and print its scores.

    Examples: wsgraph train generalization --zoo my-zoo --model monomial_gnn --epochs 30

    wsgraph train inr_classification --zoo mnist-sirens --canonicalize phase

    wsgraph train generalization --zoo mnist-cnns --test-zoo svhn=svhn-cnns

    torchrun --nproc-per-node 4 -m wsgraph train generalization --zoo my-zoo
    """
    from wsgraph.tasks import run
    from wsgraph.tasks.training import is_first_process

    with explained():
        for name, value, of in (("operation", operation, "inr_editing"), ("augment-scale", augment_scale, "generalization")):
            if value is not None and task != of:
                raise ValueError(f"--{name} is for {of}, not for {task}.")
        result = run(
            task,
            zoo=zoo,
            model=model,
            epochs=epochs,
            seed=seed,
            **given(scales=tuple(scale) if scale else None, operation=operation, augment_scale=augment_scale),
            train_size=train_size,
            test_zoos=named_folders("--test-zoo", test_zoo or ()),
            canonicalize=tuple(canonicalize or ()),
            learning_rate=learning_rate,
            batch_size=batch_size,
            output=output,
            devices=devices,
            resume=resume,
        )
    if is_first_process():
        print_results([result], f"{task} on {zoo}")
        typer.echo(f"Checkpoints, logs and result.json: {result.folder}")


@app.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="What to measure: generalization, robustness, train-size, transfer, inr, editing, memory, parameters or invariance."
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
) -> None:
    """Compare models on the papers' tasks: a table (terminal, Markdown, JSON) and figures.

    Every model gets the same data, epochs and search of the learning rate. Zoos and finished trainings are kept: a run that was killed
    continues when the command is repeated.

    Examples: wsgraph bench robustness --quick --model statnn --model monomial_gnn

    wsgraph bench inr --full --images mnist-folder

    wsgraph bench inr --model scalegmn --model scalegmn:bidirectional=true,channels=16

    wsgraph bench generalization --full --zoo cifar10=small-cnn-zoo/processed
    """
    import os
    from dataclasses import replace

    from wsgraph.bench import SIZES, run_suite
    from wsgraph.tasks.training import prepare_folder

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
            workers=workers or os.cpu_count() or 1,
        )
    typer.echo(f"Tables and figures: {output or folder / 'results'}")
