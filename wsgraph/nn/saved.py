"""Models on disk: weights as safetensors beside what they were built from as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from wsgraph.convert import CheckpointError, load_checkpoint
from wsgraph.files import explained_errors, write_atomically
from wsgraph.nn.registry import Recipe, recipe_of
from wsgraph.operators import apply_operator, operator_symmetry
from wsgraph.space import WeightSpace

__all__ = ["load_model", "read_about", "save_model"]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FORMAT = 2  # 1 lacked the operators; NeuralGraphNet reads its weights of that time
_READ = (1, 2)


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    *,
    about: Mapping[str, Any] | None = None,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Save a model as a folder with ``model.safetensors`` (weights) and ``config.json`` (name, options, weight spaces, version).

    Args:
        model: A model that :func:`~wsgraph.nn.build_model` returned.
        folder: Folder to write; one that holds a model is replaced.
        about: What else to record, anything that JSON can hold; see :func:`read_about`.
        beside: Further tensors, by name of their safetensors file and key.

    Raises:
        ValueError: If the model was not made by :func:`~wsgraph.nn.build_model`, or an option is nothing that JSON can hold; what the
            folder holds stays as it is.
        OSError: If the folder cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from wsgraph.nn import build_model, load_model, save_model
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> model = build_model("statnn", space, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_model(model, folder)
        ...     again = load_model(folder)
        >>> batch = space.batch(space.sample(3))
        >>> torch.equal(again(batch), model.eval()(batch))
        True
    """
    from wsgraph._version import __version__

    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    recipe, path = recipe_of(model), Path(folder)
    document = {
        "library": "wsgraph",
        "format": _FORMAT,
        "version": __version__,
        "model": recipe.name,
        "options": recipe.options,
        "out_channels": recipe.out_channels,
        "task": recipe.task,
        "spaces": [json.loads(space.to_json()) for space in recipe.spaces],
        "operators": _declared(recipe.spaces),
        "operator_values": {text: _values(text) for text in _declared(recipe.spaces)},
        "about": dict(about or {}),
    }
    try:
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The model cannot be saved: an option, or what is recorded beside, is nothing that JSON can hold ({error})."
        ) from None
    with explained_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        (path / _CONFIG).unlink(missing_ok=True)  # a folder without it is no model: no mixture of an old and a new one is ever read
    for name, tensors in {_WEIGHTS: model.state_dict(), **(beside or {})}.items():
        own = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
        write_atomically(path / name, partial(save_file, own, metadata={"format": "pt"}))
    write_atomically(path / _CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def load_model(folder: str | os.PathLike[str]) -> nn.Module:
    """Load a model that :func:`save_model` wrote; nothing in the folder is run.

    Args:
        folder: Folder of the model.

    Returns:
        The model in eval mode, on the CPU.

    Raises:
        FileNotFoundError: If the folder holds no model.
        CheckpointError: If a file is damaged, was written by a later version, or the weights do not fit the model.
        ValueError: If the model, or an operator of the networks that it reads, is not registered, or the operator with other
            symmetries or another function.
    """
    path = Path(folder)
    document = _read_config(path)
    _check_operators(document, path)
    try:
        spaces = tuple(WeightSpace.from_json(json.dumps(space)) for space in document["spaces"])
        recipe = Recipe(document["model"], spaces, document["out_channels"], document["task"], document["options"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{str(path / _CONFIG)!r} is damaged ({type(error).__name__}: {error}).") from None
    state = load_checkpoint(path / _WEIGHTS)
    with torch.random.fork_rng():
        model = recipe.build()
    model.to(next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"The weights in {str(path)!r} do not fit the model {recipe.name!r} that it names: {error}") from None
    return model.eval()


def read_about(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What was recorded with a model besides how it is built.

    Args:
        folder: Folder of the model.

    Returns:
        The argument ``about`` of :func:`save_model`.

    Raises:
        FileNotFoundError: If the folder holds no model.
        CheckpointError: If the file is damaged or was written by a later version.
    """
    about: dict[str, Any] = _read_config(Path(folder)).get("about") or {}
    return about


def _operators(space: Mapping[str, Any]) -> list[str]:
    """Operators that the JSON document of a space names, as written."""
    return [text for group in space["groups"] for text in group.get("operators", ())]


def _declared(spaces: Sequence[WeightSpace]) -> dict[str, list[bool]]:
    """What the operators of networks are registered to let through, positive factors and signs, by their text."""
    return {text: list(operator_symmetry(text)) for space in spaces for group in space.groups for text in group.operators}


def _check_operators(document: Mapping[str, Any], path: Path) -> None:
    """Refuse to load where an operator is missing, or one of the same name has other symmetries than when the model was saved."""
    declared = document.get("operators") or {}
    try:
        named = dict.fromkeys(text for space in document["spaces"] for text in _operators(space))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{str(path / _CONFIG)!r} is damaged ({type(error).__name__}: {error}).") from None
    for text in named:
        try:
            found = operator_symmetry(text)
        except ValueError as error:
            raise ValueError(
                f"The model in {str(path)!r} reads networks with the operator {text!r}, which cannot be used here: {error} "
                "Import the module that registers it before loading, or name the module with --plugin or WSGRAPH_PLUGINS."
            ) from None
        if text in declared and list(found) != declared[text]:
            said, now = (_passing(*passed) for passed in (declared[text], found))
            raise ValueError(
                f"The operator {text!r} let {said} through when the model in {str(path)!r} was saved, and lets {now} through as it is "
                "registered now: register the operator that the model was trained with."
            )
        saved, current = (document.get("operator_values") or {}).get(text), _values(text)
        if saved and current and not _alike(saved, current):
            raise ValueError(
                f"The operator {text!r} computes other values than when the model in {str(path)!r} was saved: register "
                "the operator that the model was trained with."
            )


def _alike(saved: Sequence[float], current: Sequence[float]) -> bool:
    """Whether values are the same but for the rounding of another machine."""
    return len(saved) == len(current) and torch.allclose(torch.tensor(saved), torch.tensor(current), rtol=1e-4, atol=1e-6)


def _values(text: str) -> list[float] | None:
    """What an operator makes of a few fixed numbers, by which its function is known again; ``None`` where that says nothing."""
    try:
        with torch.no_grad():
            values = apply_operator(text, torch.linspace(-2, 2, 16, dtype=torch.float64).view(1, 1, 4, 4)).flatten()
    except Exception:  # operators are anybody's code, and one may be made for other shapes
        return None
    return values.tolist() if bool(values.isfinite().all()) else None


def _passing(positive: bool, sign: bool) -> str:
    return " and ".join(name for name, passes in (("positive factors", positive), ("signs", sign)) if passes) or "no factors"


def _read_config(path: Path) -> dict[str, Any]:
    file = path / _CONFIG
    if not file.exists():
        raise FileNotFoundError(f"There is no model in {str(path)!r}: expected {_CONFIG} and {_WEIGHTS}, as save_model() writes them.")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{str(file)!r} is damaged ({error}).") from None
    if not isinstance(document, dict) or document.get("library") != "wsgraph":
        raise CheckpointError(f"{str(file)!r} does not describe a model of wsgraph.")
    if document.get("format") not in _READ:
        raise CheckpointError(
            f"{str(path)!r} was written by wsgraph {document.get('version')} in format {document.get('format')!r}, this version reads "
            f"formats {' and '.join(map(str, _READ))}: install that version."
        )
    return document
