"""What suites of the benchmark run with: their size, their zoos, a fair search for every model, their tables."""

from __future__ import annotations

import json
import math
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsgraph import data
from wsgraph.bench.cells import Cell, run_cells
from wsgraph.data import ZooStore, load_images
from wsgraph.data.generators.lineages import list_lineage_kinds, make_lineage_zoo
from wsgraph.files import write_atomically, write_json
from wsgraph.measure import machine
from wsgraph.nn import list_models, model_options, widths_for_parameters
from wsgraph.plugins import Registry
from wsgraph.scores import better
from wsgraph.tasks.registry import task_class
from wsgraph.tasks.result import mean_and_error
from wsgraph.tasks.task import distinct_spaces

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from wsgraph.space import WeightSpace
from wsgraph.bench.sizes import SIZES, Size

__all__ = ["Bench", "documented", "list_suites", "read_model", "register_suite", "run_suite", "scores_of", "summarised"]


@dataclass(frozen=True)
class Bench:
    """What a suite runs with.

    Attributes:
        folder: Where zoos and cells are kept.
        output: Where tables and figures go.
        size: How large the benchmark is.
        models: Models, by name or as ``NAME:OPTION=VALUE,...``; see :func:`read_model`.
        workers: Cells trained at a time; ``None`` for as many as there are processors.
        zoos: Folders of zoos by name, instead of those made here.
        images: Pictures for implicit neural representations (default: digits).
        parameters: Number of parameters that models are brought to by their widths (default: published widths).
        ray: Address of a Ray cluster that makes zoos and trains cells (default: this machine).
    """

    folder: Path
    output: Path
    size: Size
    models: tuple[str, ...]
    workers: int | None = 1
    zoos: Mapping[str, Path] = field(default_factory=dict)
    images: Path | None = None
    parameters: int | None = None
    ray: str | None = None

    @property
    def cells(self) -> Path:
        """Where results of cells are kept."""
        return self.folder / "cells"

    def run(self, cells: Sequence[Cell], title: str) -> list[dict[str, Any]]:
        """Results of cells, trained where they are not finished.

        Args:
            cells: The cells.
            title: Shown beside the progress bar.

        Returns:
            For every cell its ``metrics`` and the ``machine`` it was trained on, or no metrics and an ``error``.
        """
        return run_cells(cells, self.cells, workers=self.workers, ray=self.ray, title=title)

    def searched(
        self,
        task: str,
        zoos: Mapping[str, Path],
        variants: Mapping[str, Mapping[str, Any]],
        *,
        search: str,
        test_zoos: Mapping[str, Path] | None = None,
    ) -> list[dict[str, Any]]:
        """Every model on every zoo in every variant, trained with all seeds and the learning rate found in one of the variants.

        The search is short and leaves the test split untouched: for every model and zoo the rate with the lowest validation loss. What goes
        wrong with a model is printed, and its row says so.

        Args:
            task: Name of the task.
            zoos: Folders of zoos by name.
            variants: Options of the task by name.
            search: Name of the variant in which learning rates are searched.
            test_zoos: Folders of further zoos to be scored on, by name.

        Returns:
            For every model, zoo and variant ``runs``, the cells that succeeded with their ``metrics``, the ``learning_rate``, and an
            ``error`` where a cell failed.

        Raises:
            ValueError: If nothing succeeded, with the reasons.
        """
        size = self.size
        rows: list[dict[str, Any]] = [
            {"model": label, "zoo": zoo, "variant": variant, "learning_rate": None, "runs": []}
            for label in self.models
            for zoo in zoos
            for variant in variants
        ]
        errors: dict[tuple[str, str], str] = {}
        options: dict[tuple[str, str], dict[str, Any]] = {}
        for label, zoo in dict.fromkeys((row["model"], row["zoo"]) for row in rows):
            try:
                options[label, zoo] = self._model(task, label, zoos[zoo], test_zoos or {})
            except ValueError as error:
                errors[label, zoo] = str(error)

        trained_on = {name: len(ZooStore(path).dataset("train", target=None)) for name, path in zoos.items()}
        trials = [(place, rate) for place in options for rate in size.learning_rates]
        searches = []
        for place, rate in trials:
            few = {"train_size": size.search_networks} if size.search_networks < trained_on[place[1]] else {}
            short = {"epochs": size.search_epochs, "seed": size.seeds[0], "learning_rate": rate, "test": False}
            searches.append(Cell(task, zoos[place[1]], {**options[place], **variants[search], **short, **few}))
        losses: dict[tuple[str, str], dict[float, float]] = {place: {} for place in options}
        for (place, rate), found in zip(trials, self.run(searches, f"{task}: learning rates"), strict=True):
            loss = found["metrics"].get("validation_loss")
            if loss is None:
                errors[place] = found.get("error", "the validation loss is not finite")
            else:
                losses[place][rate] = loss
        best = {place: min(rates, key=rates.__getitem__) for place, rates in losses.items() if rates}

        finals = []
        for row in rows:
            place = (row["model"], row["zoo"])
            if place not in best:
                row["error"] = errors[place]
                continue
            row["learning_rate"] = best[place]
            shared = {"epochs": size.epochs, **options[place], **variants[row["variant"]], "learning_rate": best[place]}
            for seed in size.seeds:
                cell = Cell(task, zoos[place[1]], {**shared, "seed": seed, "scales": list(size.scales)}, dict(test_zoos or {}))
                finals.append((row, cell))
        for (row, cell), found in zip(finals, self.run([cell for _, cell in finals], f"{task}: seeds"), strict=True):
            if found["metrics"]:
                row["runs"].append({"cell": cell, "metrics": found["metrics"], "machine": found["machine"]})
            else:
                row["error"] = found["error"]
        reasons = {f"{row['model']} on {row['zoo']}: {row['error']}": None for row in rows if "error" in row}
        if not any(row["runs"] for row in rows):
            raise ValueError("No training succeeded. " + " ".join(reasons))
        for reason in reasons:
            print(reason, file=sys.stderr)
        return rows

    def _model(self, task: str, label: str, zoo: Path, test_zoos: Mapping[str, Path]) -> dict[str, Any]:
        """Options of a task that name a model and, if a number of parameters is asked for, bring it there."""
        spaces = distinct_spaces([ZooStore(path).dataset(target=None) for path in (zoo, *test_zoos.values())])
        learned, networks = task_class(task)(), ZooStore(zoo).dataset(target=None)
        fitted = learned.fitted({"train": networks[learned.known(networks)]})
        name, options = self.model(label, spaces, fitted.outputs, "equivariant" if learned.edits else "invariant")
        return {"model": name, **({"model_options": options} if options else {})}

    def model(self, label: str, spaces: Sequence[WeightSpace], outputs: int = 1, kind: str = "invariant") -> tuple[str, dict[str, Any]]:
        """Name and options of a model, with the widths that bring it to the number of parameters if one is asked for.

        Args:
            label: The model as it was given; see :func:`read_model`.
            spaces: Weight spaces of the networks that it reads.
            outputs: Outputs per network or per weight.
            kind: ``"invariant"`` or ``"equivariant"``.

        Returns:
            Arguments of :func:`wsgraph.nn.build_model`: the name, and options by name.

        Raises:
            ValueError: If the model cannot be brought there.
        """
        name, options = read_model(label)
        if self.parameters is not None:
            space = spaces[0] if len(spaces) == 1 else spaces
            options |= widths_for_parameters(name, space, outputs, self.parameters, kind, **options)
        return name, options

    def classifier_zoo(self, *activations: str, channels: Sequence[int] = (16, 16, 16), share: float = 1.0) -> Path:
        """The folder of a zoo of small CNNs on digits, made where it is missing.

        Args:
            activations: Activations of its networks, each of an equal share.
            channels: Output channels of their convolutions.
            share: How many networks, relative to the size of the benchmark.

        Returns:
            Path of the folder.
        """
        networks = round(share * self.size.networks)
        widths = "" if tuple(channels) == (16, 16, 16) else "-" + "-".join(map(str, channels))
        path = self.folder / f"cnn{widths}-{'-'.join(activations)}-{networks}"
        return data.make_cnn_zoo(
            path, networks, activations[0] if len(activations) == 1 else activations, channels=channels, ray=self.ray
        ).path

    def classifiers(self) -> dict[str, Path]:
        """Zoos of small CNNs, ReLU and Tanh."""
        return dict(self.zoos) or {activation: self.classifier_zoo(activation) for activation in ("relu", "tanh")}

    def architecture_zoos(self) -> dict[str, Path]:
        """Zoos of digits ResNets, vision transformers and mixers, half as large as others, and one that holds all of them."""
        if self.zoos:
            return dict(self.zoos)
        networks, names = self.size.networks // 2, ("resnet", "vit", "mixer")
        stores = [data.make_cnn_zoo(self.folder / f"{name}-{networks}", networks, architecture=name, ray=self.ray) for name in names]
        mixed = self.folder / f"{'-'.join(names)}-{networks}"
        if not mixed.exists():
            ZooStore.merge(mixed, stores)
        return {**{name: store.path for name, store in zip(names, stores, strict=True)}, "mixed": mixed}

    def transfer_zoos(self) -> tuple[Path, dict[str, Path]]:
        """A zoo to train on, and others by name to test on: the first of those given and the rest, or CNNs that differ in one thing."""
        if self.zoos:
            source, *rest = self.zoos
            return self.zoos[source], {name: self.zoos[name] for name in rest}
        others = {
            "width 8": self.classifier_zoo("relu", channels=(8, 8, 8), share=0.5),
            "width 24": self.classifier_zoo("relu", channels=(24, 24, 24), share=0.5),
            "2 convolutions": self.classifier_zoo("relu", channels=(16, 16), share=0.5),
            "tanh": self.classifier_zoo("tanh"),
        }
        if self.images is not None:
            networks = self.size.networks // 2
            path = self.folder / f"cnn-{self.images.stem}-relu-{networks}"
            others[self.images.stem] = data.make_cnn_zoo(path, networks, data=load_images(self.images), stride=2, ray=self.ray).path
        return self.classifier_zoo("relu"), others

    def lineage_zoos(self) -> dict[str, Path]:
        """Zoos of families whose heritage is known, by the kind of their networks; those given must be of such kinds too."""
        if self.zoos:
            return dict(self.zoos)
        families = self.size.families
        made = {kind: self.folder / f"families-{kind}-{families}" for kind in list_lineage_kinds()}
        return {kind: make_lineage_zoo(path, kind, families, ray=self.ray).path for kind, path in made.items()}

    def pictures(self) -> dict[str, Path]:
        """A zoo of implicit neural representations."""
        if self.zoos:
            return dict(self.zoos)
        name = "digits" if self.images is None else self.images.stem
        path = self.folder / f"inr-{name}-{self.size.pictures}"
        data.make_inr_zoo(path, self.size.pictures, data=None if self.images is None else load_images(self.images), ray=self.ray)
        return {name: path}

    def write_table(self, name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], document: Mapping[str, Any]) -> None:
        """Print a table, and write it as Markdown, with what it was made of as JSON.

        Args:
            name: Name of the files.
            title: Title of the table, without a full stop.
            head: Names of the columns.
            rows: Entries of every row.
            document: What the table was made of.
        """
        from rich.console import Console
        from rich.table import Table

        table = Table(*head, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console = Console()
        if not console.is_terminal:
            console.width = 240  # files need not be as narrow as terminals
        console.print(table)
        lines = [title + ".", "", "| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        text = "\n".join(lines) + "\n"
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomically(self.output / f"{name}.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        record = {"suite": name, "command": command, "machine": machine(), "size": self.size.__dict__, "parameters": self.parameters}
        write_json(self.output / f"{name}.json", {**record, **document})

    def write_scores(
        self,
        name: str,
        title: str,
        found: Sequence[Mapping[str, Any]],
        scores: Mapping[str, str],
        baselines: Mapping[str, str] | None = None,
        places: int = 3,
    ) -> None:
        """Print and write the table of a score: a row for every model, a column for every zoo and variant, and who leads by how much.

        Args:
            name: Name of the files.
            title: Of the table.
            found: What :meth:`searched` returned.
            scores: Name of the score in every variant.
            baselines: By the name of a row, the name of a score that is the same for all models.
            places: Decimal places.
        """
        columns = list(dict.fromkeys((row["zoo"], row["variant"]) for row in found))
        several = len({zoo for zoo, _ in columns}) > 1
        head = ["model", *(f"{zoo}, {variant}" if several and variant else variant or zoo for zoo, variant in columns)]
        values: dict[tuple[str, str], dict[str, list[float | None]]] = {place: {} for place in columns}
        for row in found:
            values[row["zoo"], row["variant"]][row["model"]] = scores_of(row, scores[row["variant"]])
        rows = [[model, *(self.cell(values[place].get(model, []), places) for place in columns)] for model in self.models]
        rows.append(["gap to the second", *(_gap(values[zoo, variant], scores[variant], places) for zoo, variant in columns)])
        for label, score in (baselines or {}).items():
            known = {(row["zoo"], row["variant"]): scores_of(row, score)[:1] for row in found if row["runs"]}
            rows.append([label, *(summarised(known.get(place, []), places) for place in columns)])
        self.write_table(name, title, head, rows, {"scores": scores, "results": documented(found)})

    def cell(self, values: Sequence[float | None], places: int = 3) -> str:
        """Mean and standard error as text, with the number of seeds where some failed.

        Args:
            values: The values of the seeds that succeeded.
            places: Decimal places.

        Returns:
            Such as ``0.801 ± 0.002``, or ``-`` where there is none.
        """
        text = summarised(values, places)
        return text if text == "-" or len(values) == len(self.size.seeds) else f"{text} ({len(values)} of {len(self.size.seeds)} seeds)"

    def write_figure(self, name: str, figure: Figure) -> None:
        """Write a figure as ``NAME.png``.

        Args:
            name: Name of the file.
            figure: What to write.
        """
        self.output.mkdir(parents=True, exist_ok=True)
        write_atomically(self.output / f"{name}.png", lambda temporary: figure.savefig(temporary, format="png"))


def read_model(label: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a model written as ``NAME:OPTION=VALUE,...``, so that it can be compared with itself.

    Args:
        label: The text; a value is a number, ``true``, ``false``, a list such as ``[16,16,5]``, or else text.

    Raises:
        ValueError: If the model or an option is unknown, or an option has no value or one of another kind.

    Example:
        >>> read_model("neural_graph:probes=64,layer=transformer"), read_model("np:channels=[8,8]")
        (('neural_graph', {'probes': 64, 'layer': 'transformer'}), ('np', {'channels': [8, 8]}))
    """
    name, _, text = label.partition(":")
    known = model_options(name)
    options: dict[str, Any] = {}
    for part in re.split(r",(?=[A-Za-z_]+=)", text) if text else ():
        option, _, value = part.partition("=")
        if not option or not value:
            raise ValueError(f"Expected a model as NAME:OPTION=VALUE,... (got {label!r}).")
        if option not in known:
            raise ValueError(f"The model {name!r} has no option {option!r}; it has: {', '.join(known)}.")
        try:
            options[option] = json.loads(value.lower() if value.lower() in ("true", "false") else value)
        except json.JSONDecodeError:
            options[option] = value
        if isinstance(known[option], (bool, int, float)) and isinstance(options[option], str):
            raise ValueError(f"Expected the option {option!r} of {name!r} to be like {known[option]!r} (got {value!r}).")
    return name, options


def summarised(values: Sequence[float | None], places: int = 3) -> str:
    """Mean and standard error as text, ``-`` where there is none.

    Example:
        >>> summarised([0.7, 0.8, 0.9]), summarised([0.5]), summarised([])
        ('0.800 ± 0.058', '0.500', '-')
    """
    mean, error = mean_and_error(values)
    return "-" if math.isnan(mean) else f"{mean:.{places}f}" if math.isnan(error) else f"{mean:.{places}f} ± {error:.{places}f}"


def scores_of(row: Mapping[str, Any], score: str) -> list[float | None]:
    """A score of all seeds that succeeded, of a row that :meth:`Bench.searched` returned; ``None`` where it is not finite."""
    return [run["metrics"].get(score) for run in row["runs"]]


def documented(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What :meth:`Bench.searched` returned as JSON can hold it: the options of cells instead of cells."""
    return [{**row, "runs": [{**run, "cell": run["cell"].options} for run in row["runs"]]} for row in found]


def _gap(values: Mapping[str, Sequence[float | None]], score: str, places: int) -> str:
    """The best model, and by how much it leads the second; nothing where that is not known, or they are equal."""
    means = {model: mean_and_error(each)[0] for model, each in values.items()}
    ranked = sorted((-better(score) * mean, model) for model, mean in means.items() if not math.isnan(mean))
    if len(ranked) < 2 or not better(score) or ranked[0][0] == ranked[1][0]:
        return "-"
    return f"{ranked[0][1]} by {ranked[1][0] - ranked[0][0]:.{places}f}"


_SUITES: Registry[Callable[[Bench], None]] = Registry("suite")


def register_suite(name: str) -> Callable[[Callable[[Bench], None]], Callable[[Bench], None]]:
    """Decorator that enters a function of a :class:`Bench` as a suite of ``wsgraph bench``.

    Args:
        name: Name of the suite.

    Raises:
        ValueError: If the name is taken.
    """

    def register(function: Callable[[Bench], None]) -> Callable[[Bench], None]:
        _SUITES.add(name, function)
        return function

    return register


def list_suites() -> list[str]:
    """Names of the suites.

    Example:
        >>> {"generalization", "provenance", "robustness"} <= set(list_suites())
        True
    """
    return _SUITES.names()


def run_suite(
    name: str,
    *,
    size: str | Size = "quick",
    folder: Path,
    output: Path,
    models: Sequence[str] | None = None,
    zoos: Mapping[str, Path] | None = None,
    images: Path | None = None,
    parameters: int | None = None,
    workers: int | None = 1,
    ray: str | None = None,
) -> None:
    """Run a suite of the benchmark: a table on the terminal, as Markdown and JSON, and figures.

    Zoos and finished cells are kept: a run that was interrupted, however, continues when it is started again.

    Args:
        name: One of :func:`list_suites`.
        size: ``"quick"`` (minutes), ``"full"`` (hours) or a :class:`Size`.
        folder: Where zoos and cells are kept.
        output: Where tables and figures go.
        models: Models to compare, by name or as ``NAME:OPTION=VALUE,...`` (default: all of :func:`wsgraph.nn.list_models`).
        zoos: Folders of zoos by name, instead of those that the suite would make.
        images: Pictures for implicit neural representations, a folder of IDX files or an ``.npz`` file (default: digits).
        parameters: Number of parameters that all models are brought to, as nearly as their widths allow (default: published widths).
        workers: Cells trained at a time, each by one thread; ``None`` for as many as there are processors.
        ray: Address of a Ray cluster that makes zoos and trains cells, ``"auto"`` for the one that this machine belongs to, ``"local"``
            for a new one of this machine alone (default: without Ray). Costs are measured on this machine.

    Raises:
        ConnectionError: If there is no Ray cluster at the address.
        ImportError: If Ray is asked for and not installed.
        OSError: If a folder cannot be written.
        ValueError: If the suite, the size or a model is unknown.
    """
    suite = _SUITES.find(name)
    if isinstance(size, str) and size not in SIZES:
        raise ValueError(f"Expected 'size' to be {' or '.join(map(repr, SIZES))} or a Size (got {size!r}).")
    labels = tuple(dict.fromkeys(models or list_models()))
    for label in labels:
        read_model(label)
    if bad := [zoo for zoo in zoos or () if not zoo or "/" in zoo]:
        raise ValueError(f"Expected names of zoos without '/' (got {bad[0]!r}).")
    chosen = SIZES[size] if isinstance(size, str) else size
    suite(Bench(Path(folder), Path(output), chosen, labels, workers, dict(zoos or {}), images, parameters, ray))
