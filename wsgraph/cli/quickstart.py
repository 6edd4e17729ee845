"""The command that shows the main job end to end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from wsgraph.cli.common import Seed, app, explained
from wsgraph.cli.results import print_results

__all__: list[str] = []

_MODELS = ("statnn", "neural_graph", "monomial", "monomial_gnn")


@contextmanager
def _half_of_the_threads() -> Iterator[None]:
    """Small models gain little from every core, and lose an order of magnitude when another job takes one of them."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _options_of(file: Path, wanted: dict[str, int]) -> dict[str, Any]:
    """Options of the quick start that wrote a file; those wanted if there is none."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        config = document["results"][0]["config"]
        return {"networks": document["zoo"]["configuration"]["networks"], "epochs": config["epochs"], "seed": config["seed"]}
    except FileNotFoundError:
        return wanted
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError):
        return dict.fromkeys(wanted, "unknown")


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for the zoo, logs and results.")] = Path("wsgraph-quickstart"),
    networks: Annotated[int, typer.Option(min=50, help="Number of CNNs in the zoo.")] = 800,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs per model.")] = 25,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the quick start of other options that the folder holds.")] = False,
) -> None:
    """Predict generalization from weights, end to end and offline, in under five minutes on two cores.

    Trains a zoo of small ReLU CNNs on scikit-learn's digits, then four models that read their weights; what is finished is kept for the
    next run. Shows how well each ranks unseen networks, as they are and after their neurons were rescaled, which changes no network's
    function.
    """
    from wsgraph.data import make_cnn_zoo
    from wsgraph.files import prepare_folder, write_json
    from wsgraph.plot import robustness_curve, robustness_data
    from wsgraph.report import write_report
    from wsgraph.tasks import run

    with explained():
        prepare_folder(output)
        options = {"networks": networks, "epochs": epochs, "seed": seed}
        if (former := _options_of(output / "quickstart.json", options)) != options:
            if not overwrite:
                listed = "; ".join(
                    f"--{name} {former[name]} there, {value} now" for name, value in options.items() if former[name] != value
                )
                raise ValueError(
                    f"{str(output)!r} holds the results of another quick start ({listed}): choose another --output, or give --overwrite to "
                    "remove them."
                )
            for name in ("quickstart.json", "robustness.png", "report.html"):
                (output / name).unlink(missing_ok=True)  # not to pass for those of this one if it is interrupted
        known = ": found, used again" if (output / "zoo-relu").exists() else ""
        typer.secho(f"1/3  A zoo of {networks} ReLU CNNs trained on digits ({output / 'zoo-relu'}){known}", bold=True, err=True)
        store = make_cnn_zoo(output / "zoo-relu", networks, "relu", seed=seed)
        typer.secho(f"2/3  Four models learn to predict their test accuracy, {epochs} epochs each", bold=True, err=True)
        with _half_of_the_threads():
            results = [
                run("generalization", zoo=store, model=name, epochs=epochs, seed=seed, output=output / name, overwrite=overwrite)
                for name in _MODELS
            ]
        typer.secho("3/3  Results", bold=True, err=True)
        print_results(results, f"Kendall's tau on {int(results[0].config['networks']['test'])} test networks, clean and moved by U[1, s]")
        write_json(output / "quickstart.json", {"zoo": store.info, "results": [result.document() for result in results]})
        robustness_curve(robustness_data(results), output / "robustness.png")
        write_report(output / "report.html", [output / "quickstart.json"])
    for what, name in (("Results", "quickstart.json"), ("Figure", "robustness.png"), ("Report", "report.html")):
        typer.echo(f"{what + ':':8} {output / name}")
    typer.echo(f"Next: wsgraph predict {output / 'monomial_gnn'} {output / 'zoo-relu'}, and wsgraph plot --help")
