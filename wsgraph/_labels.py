"""What tells runs apart, as text; by itself, so that what only reads results does not wait for PyTorch."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

__all__ = ["as_text", "labelled", "options_of", "plain"]

Document = TypeVar("Document")


def as_text(value: Any) -> str:
    """A value of a JSON file as text that is the same for equal values."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def plain(value: Any) -> str:
    """A value as people write it.

    Example:
        >>> plain("relu"), plain(0.001), plain(0.123456789), plain([1, 2])
        ('relu', '0.001', '0.123456789', '[1, 2]')
    """
    if isinstance(value, float):
        return short if float(short := f"{value:g}") == value or value != value else repr(value)
    return value if isinstance(value, str) else as_text(value)


def options_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was trained with, beside its model, zoo and seed, as the command names it.

    Args:
        config: Its options, as in ``result.json``.

    Returns:
        Options by name; those of the model as ``model_options.NAME``.
    """
    known = dict(config)
    for name in ("model", "zoo", "zoo_digest", "seed"):
        known.pop(name, None)
    networks, options = known.pop("networks", None), known.pop("model_options", None)
    if isinstance(networks, dict) and "train" in networks:
        known["train_size"] = networks["train"]
    moved = re.fullmatch(
        r"RandomSymmetry\(scale=\(1\.0, ([\d.e+]+)\), distribution='uniform', .*, probability=0\.5\)", str(known.get("augment"))
    )
    if moved and known.get("augment_validation"):
        known |= {"augment": None, "augment_validation": False, "augment_scale": float(moved[1])}
    # What parameters were divided by follows from the zoo and the seed.
    known["standardize"] = True if known.get("standardize") else None
    if isinstance(options, dict):
        known |= {f"model_options.{name}": value for name, value in options.items()}
    return known


def labelled(runs: Sequence[tuple[Mapping[str, Any], Document]]) -> dict[str, list[Document]]:
    """Runs that differ in nothing but the seed, under the model and what tells them from others of the same model.

    Args:
        runs: Options of every run, as in ``result.json``, and the run.

    Returns:
        Runs by label, in their order.

    Example:
        >>> configs = [{"model": "np", "learning_rate": rate, "seed": seed} for rate in (0.1, 0.01) for seed in (0, 1)]
        >>> {label: len(same) for label, same in labelled([(config, config) for config in configs]).items()}
        {'np, learning_rate=0.1': 2, 'np, learning_rate=0.01': 2}
    """
    alike: dict[str, list[tuple[Mapping[str, Any], Document]]] = {}
    for config, run in runs:
        alike.setdefault(as_text([config.get("model"), options_of(config)]), []).append((config, run))
    models: dict[str, list[list[tuple[Mapping[str, Any], Document]]]] = {}
    for same in alike.values():
        models.setdefault(str(same[0][0].get("model")), []).append(same)
    found: dict[str, list[Document]] = {}
    for model, several in models.items():
        options = [options_of(same[0][0]) for same in several]
        names = [
            name
            for name in dict.fromkeys(key for each in options for key in each)
            if len({as_text(each.get(name)) for each in options}) > 1
        ]
        for same, each in zip(several, options, strict=True):
            told = [f"{name.removeprefix('model_options.')}={plain(each[name])}" for name in names if _given(each.get(name))]
            label = ", ".join([model, *told])
            # Texts of different values may agree.
            free = next(text for text in itertools.chain([label], (f"{label} ({i})" for i in itertools.count(2))) if text not in found)
            found[free] = [run for _, run in same]
    return found


def _given(value: Any) -> bool:
    return value not in (None, False, [], {}, "")
