"""What a task returns."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from wsgraph.files import write_json
from wsgraph.measure import machine

__all__ = ["Result"]


@dataclass
class Result:
    """Scores of one training run, the model with the best validation loss, and what they came from.

    Attributes:
        task: Name of the task.
        metrics: Scores and costs as a flat dict of floats.
        model: The trained module, in eval mode.
        config: Options of the run.
        folder: Where logs and checkpoints lie.
    """

    task: str
    metrics: dict[str, float]
    model: nn.Module
    config: dict[str, Any]
    folder: Path
    machine: dict[str, Any] = field(default_factory=machine)

    def to_json(self) -> str:
        """The result without the model as JSON text; scores that are not finite become null."""
        return json.dumps(self.document(), indent=2)

    def document(self) -> dict[str, Any]:
        """The result without the model, as plain values."""
        metrics = {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}
        return {"task": self.task, "config": self.config, "metrics": metrics, "machine": self.machine}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_json` to a file."""
        write_json(path, self.document())

    def __repr__(self) -> str:
        metrics = ", ".join(f"{name}={value:.4g}" for name, value in self.metrics.items())
        return f"Result({self.task}, {self.config.get('model')}, {metrics})"
