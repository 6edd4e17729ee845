"""Options of runs: what is read, how it is trained, what is scored and where it lies, each said in one place.

Signatures, the command line, configuration files and the commands of reports are made of these fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgraph.data import ZooStore
    from wsgraph.data.transforms import WeightTransform

__all__ = [
    "KINDS",
    "FolderOptions",
    "Option",
    "ReadingOptions",
    "ScoringOptions",
    "TrainingOptions",
    "acting_options",
    "command_text",
    "command_words",
    "differing",
    "given_options",
    "known_options",
    "named_text",
    "option",
    "options_of",
    "plain_value",
    "read_options",
    "read_pairs",
    "read_value",
    "signature_of",
    "written_options",
]


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name and default.

    Args:
        help: What it does, in a sentence.
        flag: Its name on the command line; empty for one of Python alone.
        form: How the command line reads it: ``"one"`` value, ``"several"`` (repeated), ``"pairs"`` (``NAME=VALUE``,
            repeated), ``"switch"``.
        kind: Type of its values there.
        minimum: Least value there.
        acts: Whether results depend on it; others say where a run lies and how it is watched.
    """

    help: str
    flag: str = ""
    form: str = "one"
    kind: type = str
    minimum: float | None = None
    acts: bool = True

    def read(self, texts: Sequence[str]) -> Any:
        """The value of texts of a command line.

        Args:
            texts: One text, or several.

        Raises:
            ValueError: If a text is no value of its kind.
        """
        if self.form == "pairs":
            return read_pairs(self.flag, texts)
        try:
            values = [self.kind(text) for text in texts]
        except ValueError:
            raise ValueError(f"Expected {self.flag} to be of type {self.kind.__name__} (got {', '.join(texts)}).") from None
        if self.minimum is not None and (low := [value for value in values if value < self.minimum]):
            raise ValueError(f"Expected {self.flag} to be at least {self.minimum:g} (got {low[0]}).")
        return values if self.form == "several" else values[-1]


def option(default: Any, help: str, **about: Any) -> Any:
    """A field of a dataclass of options.

    Args:
        default: Its default; ``dataclasses.MISSING`` where it must be given.
        help: What it does.
        **about: Fields of :class:`Option`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Mine:
        ...     width: int = option(3, "Width of the head.", flag="--width", kind=int)
        >>> Mine().width, options_of(Mine)["width"].help
        (3, 'Width of the head.')
    """
    return field(default=default, metadata={"option": Option(help, **about)})


def options_of(kind: Any) -> dict[str, Option]:
    """The options among the fields of a dataclass, by name.

    Args:
        kind: A dataclass, or an object of one.
    """
    return {each.name: each.metadata["option"] for each in dataclasses.fields(kind) if "option" in each.metadata}


@dataclass(frozen=True)
class ReadingOptions:
    """Which networks are read, and how they are prepared.

    Args:
        zoo: Zoo of networks or its path.
        select: Conditions on columns of the table that networks of all splits must meet; see
            :meth:`wsgraph.data.ZooDataset.select`.
        group: Column whose values are kept together when networks are dealt into training, validation and test
            anew, such as the run that checkpoints are of (default: the column ``split`` of the zoo).
        train_size: Number of training networks, chosen by the seed (default: all).
        canonicalize: Which of ``"scale"``, ``"phase"``, ``"flip"``, ``"sign"`` and ``"order"`` to settle in all
            networks before they are read, after test networks were moved.
        standardize: Whether every parameter is divided by its standard deviation over the training networks, as
            publications on implicit neural representations do, whose weights are small. It keeps all symmetries, but
            not what a network computes: leave it out for models with probes. For networks of one architecture.
        augment: Random transform of the training networks, drawn anew in every epoch, such as
            :class:`wsgraph.data.transforms.RandomINRTransform`.
        augment_validation: Whether the transform is for the validation networks too, drawn alike in every epoch.

    Raises:
        ValueError: If a part of the canonical form is unknown.
    """

    zoo: ZooStore | str | os.PathLike[str] = option(dataclasses.MISSING, "Folder of the zoo.", flag="--zoo", kind=Path)
    select: Mapping[str, Any] | None = option(
        None, "Condition on a column that networks must meet, as COLUMN=VALUE; repeat it.", flag="--select", form="pairs"
    )
    group: str | None = option(None, "Deal networks into splits anew, those with one value of this column together.", flag="--group")
    train_size: int | None = option(
        None, "Number of training networks, chosen by the seed (default: all).", flag="--train-size", kind=int, minimum=2
    )
    canonicalize: Collection[str] = option(
        (),
        "Settle scale, phase, flip, sign or order in all networks before they are read; repeat it.",
        flag="--canonicalize",
        form="several",
    )
    standardize: bool = option(
        False,
        "Divide parameters by their spread over the training networks; not for models with probes.",
        flag="--standardize",
        form="switch",
    )
    augment: WeightTransform | None = option(None, "Random transform of the training networks.")
    augment_validation: bool = option(False, "Transform validation networks too.")


@dataclass(frozen=True)
class TrainingOptions:
    """Which model is trained, and how.

    Args:
        model: One of :func:`wsgraph.nn.list_models`.
        model_options: Options of the model, such as ``{"channels": 32}``.
        epochs: Passes over the training split.
        seed: Seed of initialisation, batches, dropout and group elements.
        batch_size: Networks per step.
        learning_rate: Largest learning rate of the schedule.
        weight_decay: Weight decay of AdamW.
        schedule: ``"one_cycle"``, ``"constant"``, ``"cosine"``, or ``schedule(optimizer, steps)`` that returns a
            scheduler of PyTorch, to be stepped once per training step.
        patience: Epochs without a lower validation loss after which training stops (default: never).
        trainer_options: Options of Lightning's ``Trainer``, such as ``{"precision": "bf16-mixed"}``.
        callbacks: Callbacks of Lightning beside our own.
        logger: Loggers of Lightning beside ``metrics.csv``, or their names: ``"tensorboard"``, ``"wandb"``,
            ``"mlflow"``.
        accelerator: As in Lightning: ``"auto"``, ``"cpu"`` or ``"gpu"``.
        devices: Processes that train together on this machine (data-parallel), each with its share of every batch;
            under ``torchrun`` its own number counts.

    Raises:
        ValueError: If a number is out of range.
    """

    model: str = option("monomial_gnn", "Model to train; `wsgraph models` lists them.", flag="--model")
    model_options: Mapping[str, Any] | None = option(
        None, "Option of the model, as NAME=VALUE; repeat it.", flag="--model-option", form="pairs"
    )
    epochs: int = option(30, "Passes over the training networks.", flag="--epochs", kind=int, minimum=1)
    seed: int = option(0, "Seed of everything random.", flag="--seed", kind=int)
    batch_size: int = option(64, "Networks per step.", flag="--batch-size", kind=int, minimum=1)
    learning_rate: float = option(3e-3, "Largest learning rate of the schedule.", flag="--learning-rate", kind=float)
    weight_decay: float = option(1e-2, "Weight decay of AdamW.", flag="--weight-decay", kind=float)
    schedule: Any = option("one_cycle", "Learning rate over the run: one_cycle, constant or cosine.", flag="--schedule")
    patience: int | None = option(
        None,
        "Stop after so many epochs without a lower validation loss (default: never).",
        flag="--patience",
        kind=int,
        minimum=1,
    )
    trainer_options: Mapping[str, Any] | None = option(
        None,
        "Option of Lightning's Trainer, as NAME=VALUE, such as precision=bf16-mixed; repeat it.",
        flag="--trainer-option",
        form="pairs",
    )
    callbacks: Sequence[Any] = option((), "Callbacks of Lightning.", acts=False)
    logger: Any = option(
        None,
        "Log to tensorboard, wandb or mlflow too; repeat it.",
        flag="--log",
        form="several",
        acts=False,
    )
    accelerator: str = option("auto", "auto, cpu or gpu.", flag="--accelerator", acts=False)
    devices: int = option(
        1,
        "Processes that train together, each with its share of every batch.",
        flag="--devices",
        kind=int,
        minimum=1,
        acts=False,
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "devices", "batch_size", *(["patience"] if self.patience is not None else [])):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Expected {name!r} to be an integer of at least 1 (got {value!r}).")


@dataclass(frozen=True)
class ScoringOptions:
    """On which networks a trained model is scored.

    Args:
        scales: Upper bounds of the positive factors of moved test networks, where their activation allows any.
        test: Whether to score the test split; without it, for searching by ``validation_loss``, it stays untouched.
        test_zoos: Further zoos by name whose test splits the model is scored on as they are, such as networks for
            other pictures; of other architectures for models that read mixed batches. Where such networks would pass
            through parameters that those trained on do not use, whose values mean nothing, scores are NaN and a
            warning names the parameters; validation and test networks of this kind are refused.
        intervals: Resamplings of the test networks for bootstrap intervals of 95 %; 0 for none.

    Raises:
        ValueError: If a bound is less than 1 or not finite.
    """

    scales: Sequence[float] | float = option(
        (1,),
        "Upper bound of the scales of moved test networks; repeat it (default: as the task).",
        flag="--scale",
        form="several",
        kind=float,
    )
    test: bool = option(True, "Whether to score the test split.")
    test_zoos: Mapping[str, Any] | None = option(
        None, "Further zoo whose test networks are scored, as NAME=FOLDER; repeat it.", flag="--test-zoo", form="pairs"
    )
    intervals: int = option(
        1000,
        "Resamplings of the test networks for intervals of 95 %; 0 for none.",
        flag="--intervals",
        kind=int,
        minimum=0,
        acts=False,
    )

    def __post_init__(self) -> None:
        if bad := [scale for scale in self.bounds if not 1 <= scale < float("inf")]:
            raise ValueError(f"Expected 'scales', upper bounds of U[1, s], to be finite and at least 1 (got {bad[0]:g}).")

    @property
    def bounds(self) -> list[float]:
        """The upper bounds as floats."""
        return [float(scale) for scale in (self.scales if isinstance(self.scales, Sequence) else [self.scales])]


@dataclass(frozen=True)
class FolderOptions:
    """Where a run lies, and what becomes of one that lies there.

    Args:
        output: Folder for checkpoints and logs (default: ``runs/TASK/ZOO-MODEL-seedSEED``, followed by ``-2``,
            ``-3``, ... where that holds a run of other options). The same run is continued there where it was
            interrupted, and its result is returned where it has finished; a folder that holds another run is refused.
        progress: Whether to show progress.
        resume: Continue a run of fewer epochs, and refuse any other that the folder holds. The learning rate goes on
            where the cycle of the longer run is by then; ``config["continued_from"]`` says after how many epochs, and
            a result that the shorter run has is kept in ``epochs-N`` in its folder.
        overwrite: Train again, removing the run that ``output`` holds or, in the default folders, the run of these
            options.
    """

    output: str | os.PathLike[str] | None = option(
        None,
        "Folder for checkpoints and logs (default: runs/TASK/ZOO-MODEL-seedSEED, with -2, -3, ... for runs of other options).",
        flag="--output",
        kind=Path,
        acts=False,
    )
    progress: bool = option(True, "Whether to show progress.", acts=False)
    resume: bool = option(
        False,
        "Continue a run of fewer epochs; interrupted ones are continued anyway.",
        flag="--resume",
        form="switch",
        acts=False,
    )
    overwrite: bool = option(
        False,
        "Train again, removing the run that --output holds or that has the same options.",
        flag="--overwrite",
        form="switch",
        acts=False,
    )


KINDS = (ReadingOptions, TrainingOptions, ScoringOptions, FolderOptions)
"""All options that tasks share."""


def given_options(own: type, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Options by what they belong to: those of a task, and those of every kind of :data:`KINDS`.

    Args:
        own: Class of the task.
        options: Options by name.

    Returns:
        One dictionary for the task and one for every kind.

    Raises:
        TypeError: If a name is none of them, with those that are like it.
    """
    names = [list(options_of(kind)) for kind in (own, *KINDS)]
    known = [name for each in names for name in each]
    if unknown := [name for name in options if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=2, cutoff=0.5)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else f" There are {', '.join(sorted(known))}."
        raise TypeError(f"The task has no option {unknown[0]!r}.{meant}")
    return [{name: options[name] for name in each if name in options} for each in names]


def signature_of(*kinds: type) -> inspect.Signature:
    """The signature of a function that takes the options of some dataclasses by name.

    Args:
        *kinds: The dataclasses; of two fields of one name, the first counts.
    """
    fields: dict[str, inspect.Parameter] = {}
    for kind in kinds:
        for each in dataclasses.fields(kind):
            if "option" in each.metadata:
                default = inspect.Parameter.empty if each.default is dataclasses.MISSING else each.default
                made = inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=each.type)
                fields.setdefault(each.name, made)
    return inspect.Signature(list(fields.values()))


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def named_text(value: Any) -> str:
    """What an object says of itself, without its address."""
    return _ADDRESS.sub("", repr(value))


def plain_value(value: Any) -> Any:
    """A value as JSON can hold it: paths and zoos as text; others as they are."""
    path = getattr(value, "path", None)
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {name: plain_value(each) for name, each in value.items()}
    return [plain_value(each) for each in value] if isinstance(value, (tuple, set, frozenset)) else value


def written_options(options: Mapping[str, Any], acting: Collection[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Options that results depend on, as JSON can hold them; and those that it cannot hold, as text.

    Args:
        options: Options by name.
        acting: Names of those that results depend on.
    """
    written, unwritten = {}, {}
    for name, value in options.items():
        if name not in acting or value is None or (isinstance(value, (Mapping, Collection)) and not value):
            continue
        plain = plain_value(value)
        try:
            json.dumps(plain, allow_nan=False)
            written[name] = plain
        except (TypeError, ValueError):
            unwritten[name] = named_text(value)
    return written, unwritten


def acting_options(*kinds: type) -> Iterator[str]:
    """Names of the options that results depend on."""
    for kind in kinds:
        yield from (name for name, about in options_of(kind).items() if about.acts)


def differing(kind: Any, names: Collection[str]) -> dict[str, Any]:
    """Of some options of an object, those that are not at their defaults, as text or plain values.

    Args:
        kind: An object of a dataclass of options.
        names: Which options.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(kind)}
    found = {name: getattr(kind, name) for name in names if getattr(kind, name) != defaults[name]}
    written, unwritten = written_options(found, found)
    return written | unwritten


# == The command line ==


def read_value(text: str) -> Any:
    """A value as people write it on a command line: JSON where it is that, else text.

    Args:
        text: The text.

    Example:
        >>> read_value("3"), read_value("true"), read_value("[4, 2]"), read_value("relu")
        (3, True, [4, 2], 'relu')
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def read_pairs(flag: str, texts: Sequence[str]) -> dict[str, Any]:
    """Values by name, from texts such as ``NAME=VALUE``.

    Args:
        flag: The option that they are given by.
        texts: The texts.

    Raises:
        ValueError: If one is written otherwise, or a name comes twice.

    Example:
        >>> read_pairs("--model-option", ["channels=32", "name=a=b"])
        {'channels': 32, 'name': 'a=b'}
    """
    pairs = [text.partition("=") for text in texts]
    if bad := [text for text, (name, _, value) in zip(texts, pairs, strict=True) if not name or not value]:
        raise ValueError(f"Expected {flag} as NAME=VALUE (got {bad[0]!r}).")
    if len({name for name, _, _ in pairs}) < len(pairs):
        raise ValueError(f"Expected {flag} with different names (got {', '.join(name for name, _, _ in pairs)}).")
    return {name: read_value(value) for name, _, value in pairs}


def read_options(kind: Any, words: Sequence[str]) -> dict[str, Any]:
    """Options of a dataclass from the words of a command line.

    Args:
        kind: The dataclass.
        words: Words such as ``["--operation", "erode"]``.

    Returns:
        Options by name.

    Raises:
        ValueError: If an option is unknown, with those like it, or lacks its value.

    Example:
        >>> read_options(ReadingOptions, ["--canonicalize", "scale", "--canonicalize=sign", "--standardize"])
        {'canonicalize': ['scale', 'sign'], 'standardize': True}
    """
    flags = {about.flag: (name, about) for name, about in options_of(kind).items() if about.flag}
    found: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    left = list(words)
    while left:
        flag, given, value = left.pop(0).partition("=")
        if flag not in flags:
            near = difflib.get_close_matches(flag, flags, n=1)
            meant = f" Did you mean {near[0]}?" if near else f" The task has {', '.join(flags) or 'no options of its own'}."
            raise ValueError(f"There is no option {flag}.{meant}")
        name, about = flags[flag]
        if about.form == "switch":
            found[name] = True
            continue
        if not given and not left:
            raise ValueError(f"Expected a value after {flag}: {about.help}")
        texts.setdefault(name, []).append(value if given else left.pop(0))
    for name, values in texts.items():
        about = options_of(kind)[name]
        found[name] = about.read(values)
    return found


def command_words(options: Mapping[str, Any], known: Mapping[str, Option]) -> list[str] | None:
    """The words of a command line that give options; ``None`` where it lacks one.

    Args:
        options: Plain values by name.
        known: What is known of all options.

    Example:
        >>> command_words({"epochs": 3, "canonicalize": ["sign"], "standardize": True}, known_options())
        ['--epochs', '3', '--canonicalize', 'sign', '--standardize']
    """
    words: list[str] = []
    for name, value in options.items():
        about = known.get(name)
        if about is None or not about.flag:
            return None
        if about.form == "switch":
            words += [about.flag] * bool(value)
        elif about.form == "pairs":
            if not all(isinstance(each, (str, int, float, bool, list, tuple)) for each in value.values()):
                return None
            words += [word for key, each in value.items() for word in (about.flag, f"{key}={_word(each)}")]
        else:
            several = value if about.form == "several" and isinstance(value, (list, tuple)) else [value]
            words += [word for each in several for word in (about.flag, _word(each))]
    return words


def _word(value: Any) -> str:
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value else repr(value)
    return value if isinstance(value, str) else json.dumps(value)


def known_options(*kinds: Any) -> dict[str, Option]:
    """What is known of the options of tasks and of some dataclasses, by name."""
    return {name: about for kind in (*kinds, *KINDS) for name, about in options_of(kind).items()}


def command_text(call: Mapping[str, Any], known: Mapping[str, Option]) -> str:
    """The command that repeats a call of :func:`wsgraph.tasks.run`, or the call in Python where the command lacks an option.

    Args:
        call: Its ``task``, ``options`` as plain values, ``unwritten`` ones as text, and ``plugins``.
        known: What is known of options, by name.

    Returns:
        A line for a shell.

    Example:
        >>> call = {"task": "prediction", "options": {"zoo": "my zoo", "scales": [1, 10]}, "plugins": ["mine.py"]}
        >>> command_text(call, known_options())
        "wsgraph --plugin mine.py train prediction --zoo 'my zoo' --scale 1 --scale 10"
    """
    task, options, plugins = call["task"], call["options"], call.get("plugins") or []
    words = None if call.get("unwritten") else command_words(options, known)
    if words is None:
        return _python(task, options, plugins)
    return shlex.join(["wsgraph", *(word for place in plugins for word in ("--plugin", place)), "train", task, *words])


def _python(task: str, options: Mapping[str, Any], plugins: list[str]) -> str:
    lines = ["from wsgraph.tasks import run"]
    if plugins:
        lines.append("from wsgraph.plugins import add_plugin")
        lines += [f"add_plugin({_literal(place)})" for place in plugins]
    arguments = ", ".join([_literal(task), *(f"{name}={_literal(value)}" for name, value in options.items())])
    return shlex.join(["python", "-c", "; ".join([*lines, f"run({arguments})"])])


def _literal(value: Any) -> str:
    """A value of a JSON file as Python, with quotes that need no escape in a shell."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(name)}: {_literal(each)}" for name, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value) if isinstance(value, str) else repr(value)
