"""The networks of a run, dealt, prepared and with their targets, and the record of what it depends on."""

from __future__ import annotations

import hashlib
import pickle
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from wsgraph._counts import counted
from wsgraph.data import ParameterStatistics, ZooDataset
from wsgraph.data.dataset import group_split
from wsgraph.data.families import copies_among, families_of
from wsgraph.data.folder import ZooFolder
from wsgraph.data.transforms import Canonicalize, WeightTransform
from wsgraph.nn import model_entry
from wsgraph.options import (
    FolderOptions,
    ReadingOptions,
    ScoringOptions,
    TrainingOptions,
    differing,
    named_text,
    plain_value,
)
from wsgraph.plugins import source_of
from wsgraph.tasks.runs import is_first_process
from wsgraph.tasks.task import Task, opened
from wsgraph.tasks.trained import check_scored

__all__ = ["RunNetworks", "name_of"]

_FEW = 100
_WHOLE = "the zoo"
_SPLITS = {"train": 0.6, "val": 0.2, "test": 0.2}  # shares where networks are dealt anew


@dataclass
class RunNetworks:
    """A run, and the networks that it reads."""

    task: Task
    reading: ReadingOptions
    training: TrainingOptions
    scoring: ScoringOptions
    where: FolderOptions
    call: dict[str, Any]

    def say(self, text: str) -> None:
        """Tell what becomes of the run."""
        if self.where.progress and is_first_process():
            line = f"{self.training.model}: {text}"
            Console(stderr=True).print(line, highlight=False, markup=False, soft_wrap=True)

    # == Networks ==

    def read_networks(self) -> None:
        """The networks of all splits with their targets, and what is learned of these."""
        reading, task = self.reading, self.task
        self.store = opened(reading.zoo)
        is_dealt = reading.group is not None or reading.fold is not None
        names = [_WHOLE] if is_dealt else list(_SPLITS)
        splits = {name: self.store.dataset(None if name == _WHOLE else name, target=None) for name in names}
        if reading.select:
            splits = {name: split.select(reading.select) for name, split in splits.items()}
        known = {name: split[task.known(split)] for name, split in splits.items()}
        self.blanks = {name: len(split) - len(known[name]) for name, split in splits.items() if len(split) > len(known[name])}
        if self.blanks:
            listed = ", ".join(f"{count:,} of {name}" for name, count in self.blanks.items())
            self.say(f"networks without a value of {task.column!r} are left out: {listed}")
        if is_dealt:
            known = self.dealt(known[_WHOLE])
        if (size := reading.train_size) is not None:
            if not isinstance(size, int) or not 2 <= size <= len(known["train"]):
                raise ValueError(f"Expected 'train_size' to be an integer from 2 to {len(known['train'])} (got {size!r}).")
            chosen = torch.randperm(len(known["train"]), generator=torch.Generator().manual_seed(self.training.seed))[:size]
            known["train"] = known["train"][chosen.sort().values]
        for name, split in known.items():
            if len(split) < 2:
                raise ValueError(f"Expected at least 2 networks in the split {name!r} of {self.store!r} (got {len(split)}).{self.why()}")
        if len(known["train"]) < _FEW and not task.edits and reading.fold is None:
            compare = "" if self.scoring.baselines else " compare with the baselines (--baselines),"
            self.say(
                f"{counted(len(known['train']), 'training network is', 'training networks are')} few: "
                f"cross-validate (--folds 5),{compare} and prefer a small model"
            )
        self.task = task = task.fitted(known)
        for remark in task.remarks(known):
            self.say(remark)
        self.splits = {name: task.labelled(split) for name, split in known.items()}
        self.further: dict[str, ZooDataset] = {}
        for name, other in (self.scoring.test_zoos or {}).items():
            try:
                self.further[name] = check_scored(task, opened(other).dataset("test", target=None), self.splits["train"].spaces)
            except ValueError as error:
                raise ValueError(f"'test_zoos' {name!r} cannot be scored on: {error}") from None
        # All networks that the model must read, by where they are; those trained on come first.
        self.all_networks = {f"the split {name!r}": split for name, split in self.splits.items()}
        self.all_networks |= {f"'test_zoos' {name!r}": split for name, split in self.further.items()}

    def why(self) -> str:
        """What may have emptied a split."""
        reading, task = self.reading, self.task
        causes = [
            *([f"'select' keeps only networks with {reading.select}"] if reading.select else []),
            *([f"those without a value of {task.column!r} are left out"] if self.blanks else []),
            *([f"those with one value of {reading.group!r} lie in one split"] if reading.group is not None else []),
        ]
        return f" Note that {', and '.join(causes)}." if causes else ""

    def dealt(self, data: ZooDataset) -> dict[str, ZooDataset]:
        """Networks dealt into splits anew, families together."""
        reading = self.reading
        families = families_of(data, reading.group)
        if reading.fold is None:
            names = group_split(families, _SPLITS, seed=self.training.seed)
        else:
            i, n = reading.fold
            folds = group_split(families, {str(fold): 1 / n for fold in range(n)}, seed=self.training.seed)
            names = np.where(folds == str(i), "test", np.where(folds == str((i + 1) % n), "val", "train"))
        if reading.group is None:
            count = len(np.unique(families))
            if count < len(data) and reading.fold is not None and not reading.fold[0]:
                self.say(
                    "networks of one file, and equal ones, lie in one fold: "
                    f"{counted(count, 'family', 'families')} of {len(data):,} networks"
                )
        elif across := sum(names[copy.number] != names[copy.first] for copy in copies_among(data)):
            what = counted(int(across), "network has", "networks have")
            self.say(f"{what} the weights of one in another split, so that what is learned of one is scored on the other")
        return {name: data[torch.from_numpy(names == name)] for name in _SPLITS}

    def deviations(self) -> dict[str, float] | None:
        """What parameters are divided by."""
        if not self.reading.standardize:
            return None
        train = self.splits["train"]
        if len(train.spaces) > 1:
            raise ValueError(f"'standardize' is for networks of one architecture (got {train!r}).")
        form = Canonicalize(self.reading.canonicalize) if self.reading.canonicalize else None
        deviations = {name: _spread(each) for name, each in train.statistics(form).items()}
        for where, split in self.all_networks.items():
            if any([param.name for param in space.params] != list(deviations) for space in split.spaces):
                raise ValueError(f"'standardize' divides by what was found for {train.space!r}, not for {where}: {split!r}.")
        return deviations

    # == What the run depends on ==

    def config(self) -> dict[str, Any]:
        """All that the run depends on, for its record."""
        task, reading, training, scoring = self.task, self.reading, self.training, self.scoring
        config = {
            "model": training.model,
            "zoo": name_of(self.store),
            "zoo_digest": self.store.digest,
            "epochs": training.epochs,
            "seed": training.seed,
            "scales": scoring.bounds,
            "target": task.column,
            "batch_size": training.batch_size,
            "learning_rate": training.learning_rate,
            "weight_decay": training.weight_decay,
            "model_options": dict(training.model_options or {}),
            "networks": {name: len(split) for name, split in self.splits.items()},
            "select": None if reading.select is None else {name: _selected(value) for name, value in reading.select.items()},
            "canonicalize": list(reading.canonicalize),
            "standardize": self.deviations(),
            "augment": None if reading.augment is None else named_text(reading.augment),
            "augment_validation": reading.augment_validation,
            "test": scoring.test,
            "test_zoos": {name: f"{name_of(split.store)} {split.store.digest}" for name, split in self.further.items()},
            **{name: plain_value(value) for name, value in task.own_options().items() if value not in (None, False)},
            # What came later is recorded where it is used, so that earlier runs are still those of the same options.
            **differing(training, ("schedule", "patience", "trainer_options")),
            **differing(reading, ("group", "fold")),
        }
        if self.blanks:
            config["blanks"] = self.blanks
        if state := task.state():
            config["learned"] = plain_value(state)
        if reading.select:
            config["selected"] = _digest(split.positions for split in self.splits.values())
        sources = {
            "model": source_of(model_entry(training.model).build),
            "task": source_of(type(task)),
            "augment": None if reading.augment is None else _of_others(reading.augment),
        }
        if any(sources.values()):
            config["sources"] = {name: source for name, source in sources.items() if source is not None}
        return config


def name_of(store: ZooFolder) -> str:
    """What a zoo is called: the last part of its path."""
    return Path(store.path).resolve().name


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{len(tensor)} ".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _of_others(transform: WeightTransform) -> str | None:
    """What the text of a transform does not say of transforms of others within: a digest of their code and of all they hold."""
    digest = hashlib.sha256()

    def found(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return max(map(found, value), default=False)  # every one counts
        if not isinstance(value, WeightTransform):
            return False
        theirs = source_of(type(value))
        if theirs is None:
            return max(map(found, vars(value).values()), default=False)
        try:
            content = pickle.dumps(vars(value))
        except Exception:  # whatever an object's own way of being pickled raises
            content = uuid.uuid4().bytes  # like no other
        digest.update(theirs.encode() + content)
        return True

    return digest.hexdigest()[:16] if found(transform) else None


def _spread(of: ParameterStatistics) -> float:
    """The standard deviation of a parameter; 0 if it is what rounding makes of a constant. Digits that threads differ in are left out."""
    return float(f"{of.std:.6g}") if of.std > 1e-9 * max(abs(of.minimum), abs(of.maximum)) else 0.0


def _selected(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, list, tuple)) else named_text(value)
