"""A trained model of a task that reads networks: it predicts, is scored, saved and loaded."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from wsgraph.convert import CheckpointError, load_checkpoint
from wsgraph.convert.state_dict import read_network
from wsgraph.data import ZooDataset, ZooStore
from wsgraph.data.families import families_of
from wsgraph.data.public.base import tracked
from wsgraph.data.transforms import RandomSymmetry, WeightTransform
from wsgraph.nn import load_model, read_about, recipe_of, save_model
from wsgraph.scores import finite_or_none, none_as_nan
from wsgraph.space import ParameterGraph, SpaceMismatchError, WeightSpace
from wsgraph.space.assumed import tell_assumed
from wsgraph.space.distinct import DistinctSpaces
from wsgraph.tasks.distance import Reference
from wsgraph.tasks.intervals import bootstrap_intervals
from wsgraph.tasks.predicting import Predictions, Reading, predictions_of
from wsgraph.tasks.registry import task_of
from wsgraph.tasks.scored import Scores
from wsgraph.tasks.task import Task, all_match, composed, float32, model_outputs, opened, preparation

__all__ = ["TrainedModel", "check_read", "check_scored"]

_OWN = "task.safetensors"
# Draws of a model's parameters that show which of their entries act: a unit that is silent in half of them is in all with 1e-7.
_DRAWS = 24


def _single(batch: ParameterGraph) -> ParameterGraph:
    return batch.with_weights(lambda space, thetas: thetas.float())


def _activations(space: WeightSpace) -> set[str]:
    return {group.activation for group in space.groups if group.role == "hidden"}


@dataclass
class TrainedModel:
    """A model with the task that it was trained for: it predicts, is scored on other zoos, saved and loaded.

    Attributes:
        task: What it was trained for.
        module: The trained module, with outputs as the task's loss reads them.
        config: Options of the run that trained it.
        trained_on: Weight spaces of the networks that it was trained on.
        metrics: Its scores.
        reference: Where the networks lie that it was trained on; ``None`` where that is not known.

    Example:
        >>> import tempfile
        >>> from wsgraph.nn import build_model
        >>> from wsgraph.tasks import Generalization, TrainedModel
        >>> space = WeightSpace.mlp([2, 8, 1])
        >>> task = Generalization(learned_kind="share")
        >>> trained = TrainedModel(task, build_model("statnn", space, 1), {}, [space])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trained.save(folder)
        ...     again = TrainedModel.load(folder)
        >>> again.predict(space, space.sample(3)).shape
        torch.Size([3])
    """

    task: Task
    module: nn.Module
    config: dict[str, Any]
    trained_on: list[WeightSpace]
    metrics: dict[str, float] = field(default_factory=dict)
    reference: Reference | None = None

    @property
    def model(self) -> nn.Module:
        """The model that reads networks, which the task may have wrapped."""
        return self.module.get_submodule("model") if self.task.edits else self.module

    @property
    def name(self) -> str:
        """Name of the model."""
        return recipe_of(self.model).name

    @property
    def fixed(self) -> WeightTransform | None:
        """What is done to all networks before they are read."""
        return preparation(self.task, self.config)

    # == Predicting ==

    def read(self, state_dict: Mapping[str, Tensor], activation: str | None = None) -> tuple[WeightSpace, Tensor]:
        """Weight space and flat checkpoint of a network like those that the model was trained on.

        Of networks trained on with the same shapes, the space is theirs; else it is that of a chain, see
        :func:`wsgraph.from_state_dict`.

        Args:
            state_dict: Tensors by key, such as :func:`wsgraph.load_checkpoint` returns.
            activation: Activation of the hidden neurons (default: that of all networks trained on).

        Returns:
            The space and the weights ``[P]``.

        Raises:
            ValueError: If the state dict is no chain, or several activations, or architectures of these shapes, were trained on.
        """
        known = {activation for space in self.trained_on for activation in _activations(space)}
        if activation is None:
            if len(known) != 1:
                raise ValueError(
                    f"The model was trained on networks of {' and '.join(sorted(known))} neurons; a checkpoint does not say which it has. "
                    "Give 'activation'."
                )
            activation = next(iter(known))
        space, theta = read_network(state_dict, activation)
        shapes = [param.shape for param in space.params]
        alike = [own for own in self.trained_on if _activations(own) == {activation} and [param.shape for param in own.params] == shapes]
        if not all(own.matches(alike[0]) for own in alike):
            raise ValueError(
                f"Networks of {len(alike)} architectures with these shapes were trained on, such as other strides, and weights do not show "
                "which this is. Call predict() with its weight space."
            )
        if not alike:
            tell_assumed([space])  # networks like those trained on have their geometry
        return (alike[0] if alike else space), theta

    @overload
    def predict(self, networks: WeightSpace, thetas: Tensor, *, batch_size: int = 256) -> Tensor: ...
    @overload
    def predict(self, networks: Any, thetas: None = None, *, batch_size: int = 256, **options: Any) -> Predictions: ...
    def predict(self, networks: Any, thetas: Tensor | None = None, *, batch_size: int = 256, **options: Any) -> Tensor | Predictions:
        """What the model says of networks: of flat checkpoints as a tensor, of files, folders, zoos and state dicts as a table.

        Args:
            networks: The weight space of ``thetas``; or a folder of checkpoints or of a zoo, a file, a zoo or dataset, a state dict, a
                network of :func:`wsgraph.load_networks`, a sequence of such, or a mapping of them by name.
            thetas: Flat checkpoints ``[N, P]``.
            batch_size: Networks per forward pass.
            **options: ``activation``, ``prefix`` and ``entry`` of networks in files; ``output``, the folder for edited networks.

        Returns:
            Of flat checkpoints, on the CPU, numbers in units of the column ``[N]``, probabilities of classes ``[N, classes]``, or edited
            checkpoints ``[N, P]``. Else :class:`Predictions`: a row for every network, with its distance from those trained on and whether
            its architecture is new, and errors for networks that cannot be read.

        Raises:
            SpaceMismatchError: If the model cannot read networks of this space, or ``thetas`` has another shape.
            TypeError: If ``networks`` is something else, or there is no such option.
            ValueError: If the model returns networks and no folder for them is given.

        Example:
            >>> from wsgraph.nn import build_model
            >>> from wsgraph.tasks import Generalization, TrainedModel
            >>> space = WeightSpace.mlp([2, 8, 1])
            >>> trained = TrainedModel(Generalization(learned_kind="share"), build_model("statnn", space, 1), {}, [space])
            >>> trained.predict({"mine": space.unflatten(space.sample(1)[0])})
            Predictions(1 network, 0 errors)
        """
        if isinstance(networks, WeightSpace):
            if not isinstance(thetas, Tensor):
                raise TypeError(f"Expected flat checkpoints beside their weight space (got {type(thetas).__name__}).")
            networks.check_thetas(thetas, finite=True)
            space = DistinctSpaces(self.trained_on).first(networks)
            self._check_predicted([space])
            return self.predicted(space.batch(part) for part in thetas.split(batch_size))
        output = options.pop("output", None)
        return predictions_of(self, networks, Reading(**options), output=output, batch_size=batch_size)

    @torch.no_grad()
    def predicted(self, batches: Iterable[ParameterGraph]) -> Tensor:
        """What the model says of batches of networks, in the order of the batches, on the CPU; see :meth:`predict`.

        Args:
            batches: Batches of parameter graphs.

        Returns:
            Tensor of shape ``[N, ...]``, for all networks of all batches.
        """
        device, fixed = next(self.module.parameters()).device, self.fixed
        self.module.eval()
        settled = (batch if fixed is None else fixed(batch) for batch in map(_single, batches))
        return torch.cat([self.task.predict(self.module, batch.to(device)).cpu() for batch in settled])

    def embed(self, space: WeightSpace, thetas: Tensor, *, batch_size: int = 256) -> Tensor:
        """What the model's last layer reads of networks: features by which it tells them apart.

        Of an invariant model they are invariant too.

        Args:
            space: The weight space of the networks.
            thetas: Flat checkpoints ``[N, P]``.
            batch_size: Networks per forward pass.

        Returns:
            Tensor ``[N, D]``, on the CPU.

        Raises:
            SpaceMismatchError: If the model cannot read these networks.
            ValueError: If a weight is NaN or infinite, or the model has no last layer with one vector for every network.
        """
        read: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
            for layer in self.module.modules()
            if isinstance(layer, nn.Linear)
        ]
        found = []
        try:
            for part in thetas.split(batch_size):
                read.clear()
                self.predict(space, part, batch_size=batch_size)
                if not read or read[-1].shape[0] != len(part):
                    raise ValueError(f"{self.name} has no last linear layer that reads one vector of every network: it embeds none.")
                found.append(read[-1].flatten(1).cpu())
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat(found)

    def predict_zoo(self, data: ZooDataset, *, batch_size: int = 256) -> Tensor:
        """What the model says of the networks of a zoo, in their order there, which batches of several architectures do not keep.

        Args:
            data: The networks.
            batch_size: Networks per forward pass.

        Returns:
            Tensor of shape ``[N, ...]``, on the CPU; see :meth:`predict`.

        Raises:
            SpaceMismatchError: If the model cannot read these networks.
        """
        data = data.under_names_of(self.trained_on)
        self._check_predicted(data.spaces)
        owners = data.store.owners(data.positions)
        rows = [part for owner in owners.unique() for part in (owners == owner).nonzero()[:, 0].split(batch_size)]
        found = self.predicted(data.batch(part) for part in tracked(rows, "predicting, batch by batch"))
        return found[torch.cat(rows).argsort()]

    def _check_predicted(self, spaces: Sequence[WeightSpace]) -> None:
        """Refuse networks that cannot be edited, and warn of those of which the model says nothing."""
        other = [space for space in spaces if not all_match([space], self.trained_on)]
        if self.task.edits and other:
            raise SpaceMismatchError(f"A model trained for {self.task.name} changes networks of {self.trained_on[0]!r} (got {other[0]!r}).")
        if unknown := self.untrained(spaces):
            which = " and ".join(map(repr, spaces))
            warnings.warn(f"What {self.name} predicts of {which} means nothing: {unknown}.", stacklevel=3)

    # == Scoring ==

    def evaluate(
        self,
        zoo: ZooDataset | ZooStore | str | os.PathLike[str],
        *,
        split: str | None = "test",
        scales: Sequence[float] | float = (),
        intervals: int = 0,
        group: str | None = None,
    ) -> Scores:
        """Scores on networks of a zoo, as they are and moved by random symmetries of their own.

        Args:
            zoo: A zoo or its path, or a dataset of some of its networks, with targets as the task has them or without.
            split: Which networks of a zoo are scored; ``None`` for all.
            scales: Upper bounds of the positive factors of moved networks, where their activation allows any.
            intervals: How often networks are drawn again for intervals of the scores of networks as they are; 0 for none.
            group: Column of families of networks that are drawn together (default: those of one file, and equal ones).

        Returns:
            The task's :class:`Scores`, each also with the suffix ``_scale_S`` on moved networks. NaN, with a warning that names them,
            where the networks pass through parameters of the model that those trained on do not use, whose values mean nothing.

        Raises:
            ValueError: If there are less than two networks, or their targets make no sense for the model.
            SpaceMismatchError: If the model cannot read these networks.
        """
        data = zoo if isinstance(zoo, ZooDataset) else opened(zoo).dataset(split, target=None)
        data = check_scored(self.task, data, self.trained_on)
        if unknown := self.untrained(data.spaces):
            name = Path(data.store.path).resolve().name
            warnings.warn(f"The networks of {name!r} are not scored by {self.name}: {unknown}.", stacklevel=2)
        scales = scales if isinstance(scales, Sequence) else [scales]
        moves = {f"_scale_{s:g}": RandomSymmetry((1.0, s), distribution="uniform", seed=self.config.get("seed", 0)) for s in scales}
        metrics = Scores()
        for suffix, move in {"": None, **moves}.items():
            moved = data.with_transform(composed(move, self.fixed))
            # Batch by batch, so that a split larger than memory can be scored; not by a loader, which would give each process a share.
            batches = (moved.batch(slice(start, start + 256), float32) for start in range(0, len(moved), 256))
            outputs, targets = model_outputs(self.module, batches)
            scores = self.task.measured(outputs, targets)
            metrics.update({f"{name}{suffix}": math.nan if unknown else value for name, value in scores.items()})
            if move is not None or unknown:
                continue
            metrics.predictions, metrics.targets = self.task.predictions(outputs).double(), targets
            if intervals:
                metrics.intervals = bootstrap_intervals(
                    self.task.measured,
                    outputs,
                    targets,
                    intervals,
                    groups=families_of(data, group),
                    seed=self.config.get("seed", 0),
                )
        return metrics

    @torch.enable_grad()
    def untrained(self, spaces: Sequence[WeightSpace]) -> str:
        """Which parameters act on networks of some spaces but not on those trained on, in words; empty if there is none.

        Args:
            spaces: Weight spaces of networks.

        Returns:
            A sentence without its end.
        """
        others = [space for space in spaces if not all_match([space], self.trained_on)]
        if not others:
            return ""
        mode = self.module.training
        state = {name: value.detach().clone() for name, value in self.module.state_dict().items()}
        self.module.eval()
        acting, used = self._acting(others), self._acting(self.trained_on)
        generator = torch.Generator().manual_seed(0)
        for _ in range(_DRAWS):
            doubtful = [name for name, acts in acting.items() if bool((acts & ~_lines(used[name])).any())]
            if not doubtful:
                break
            # Weights at which units are silent say nothing of what is never used: others are drawn.
            with torch.no_grad():
                for parameter in self.module.parameters():
                    noise = torch.randn(2, *parameter.shape, generator=generator).to(parameter)
                    parameter.mul_(noise[0].sign()).add_(0.02 * noise[1])
            used = {name: acts | used[name] for name, acts in self._acting(self.trained_on).items()}
        self.module.load_state_dict(state)
        self.module.zero_grad(set_to_none=True)
        self.module.train(mode)
        names = sorted(doubtful)
        listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        return f"they pass through parameters that those trained on do not use ({listed})" if names else ""

    def _acting(self, spaces: Sequence[WeightSpace]) -> dict[str, Tensor]:
        """Which entries of all parameters act on networks of some spaces, a matter of their architecture: any weights will do."""
        device = next(self.module.parameters()).device
        self.module.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(0)
        acting = {name: torch.zeros_like(parameter, dtype=torch.bool) for name, parameter in self.module.named_parameters()}
        for space in spaces:
            batch = space.batch(space.sample(8, generator=generator))
            self.module(batch.to(device)).square().sum().backward()
        for name, parameter in self.module.named_parameters():
            if parameter.grad is not None:
                acting[name] |= parameter.grad != 0
        return acting

    # == On disk ==

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save model, task and scores as a folder of safetensors and JSON; see :func:`wsgraph.nn.save_model`.

        Args:
            folder: Folder to write; one that holds a model is replaced.

        Raises:
            OSError: If the folder cannot be written.
        """
        spaces = recipe_of(self.model).spaces
        about = {
            "task": self.task.name,
            "config": self.config,
            "trained_on": [spaces.index(space) for space in self.trained_on],
            "metrics": finite_or_none(self.metrics),
            "reference": None if self.reference is None else self.reference.document(),
        }
        own = self._own()
        save_model(self.model, folder, about=about, beside={_OWN: own} if own else None)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> TrainedModel:
        """Load what :meth:`save` wrote; nothing in the folder is run.

        Args:
            folder: Folder of the model, or of the run that trained it.

        Returns:
            The model, in eval mode on the CPU.

        Raises:
            FileNotFoundError: If the folder holds no model.
            CheckpointError: If a file is damaged, or the model was not trained for a task.
            ValueError: If the model or the task is not registered.
        """
        path = Path(folder)
        if (path / "model" / "config.json").exists():
            path = path / "model"
        elif (path / "config.json").exists() and not (path / "model.safetensors").exists():
            raise FileNotFoundError(f"The run in {str(path)!r} is not finished: repeat what started it to continue it.")
        about, model = read_about(path), load_model(path)
        try:
            name, config, places, metrics = (about[key] for key in ("task", "config", "trained_on", "metrics"))
        except KeyError as error:
            raise CheckpointError(f"The model in {str(path)!r} was not trained for a task ({error} is missing in config.json).") from None
        spaces = [recipe_of(model).spaces[place] for place in places]
        task = task_of(name, config)
        module = task.wrap(model, spaces[0], config)
        lies = about.get("reference")
        reference = None if lies is None else Reference(**{name: tuple(values) for name, values in lies.items()})
        trained = cls(task, module.eval(), config, spaces, none_as_nan(metrics), reference)
        if own := trained._own():
            state = load_checkpoint(path / _OWN)
            if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
                raise CheckpointError(f"The weights in {str(path / _OWN)!r} are not those of the task {name!r}.")
            module.load_state_dict(state, strict=False)
        return trained

    def _own(self) -> dict[str, Tensor]:
        """What the task's wrapper learns itself."""
        state = self.module.state_dict()
        return {name: tensor for name, tensor in state.items() if not name.startswith("model.")} if self.task.edits else {}

    def __repr__(self) -> str:
        scores = "".join(f", {name}={value:.4g}" for name, value in self.metrics.items() if "_scale_" not in name)
        return f"TrainedModel({self.task.name}, {self.name}{scores})"


def _lines(used: Tensor) -> Tensor:
    """Entries that lie, along every axis, at a place where some entry is used: of a product, both factors are."""
    crossing = torch.ones_like(used)
    for axis in range(used.ndim):
        others = [other for other in range(used.ndim) if other != axis]
        crossing &= used.any(dim=others, keepdim=True) if others else used
    return crossing


def check_read(trained: TrainedModel, networks: Mapping[str, ZooDataset], scored_only: Collection[str]) -> None:
    """Refuse networks that a model cannot read, or read only through parameters that training does not reach, before it is trained.

    Args:
        trained: The model, not trained yet.
        networks: All that it must read, by where they are.
        scored_only: Those of them that are scored beside others; where these pass through parameters that are not trained, a warning
            says that they will not be.

    Raises:
        ValueError: With where they are and their architecture.
    """
    device = next(trained.module.parameters()).device
    for where, data in networks.items():
        for space in data.spaces:
            if all_match([space], trained.trained_on):
                continue
            try:
                with torch.no_grad():
                    trained.module(space.batch(space.sample(2, generator=torch.Generator().manual_seed(0))).to(device))
            except ValueError as error:
                raise ValueError(f"The model {trained.name!r} cannot read networks of {space!r} in {where}: {error}") from None
            if unknown := trained.untrained([space]):
                if where in scored_only:
                    warnings.warn(f"Networks of {space!r} in {where} will not be scored by {trained.name}: {unknown}.", stacklevel=2)
                    continue
                raise ValueError(
                    f"The networks of {space!r} in {where} have an architecture that no training network has: {unknown} in "
                    f"{trained.name!r}, so that nothing of what it says of them is learned. Leave them out with 'select', or add networks "
                    "like them to the training split."
                )


def check_scored(task: Task, data: ZooDataset, trained_on: Sequence[WeightSpace]) -> ZooDataset:
    """The networks with their targets; those that a model cannot be scored on are refused.

    Args:
        task: What the model is trained for.
        data: The networks; targets that they have by the name of the task's column are those of the task.
        trained_on: Weight spaces of the networks that it is trained on.

    Raises:
        ValueError: If there are less than two, their targets make no sense for the model, or their architecture is not that of the task.
    """
    data = data.under_names_of(trained_on)
    labelled = data if task.column is not None and data.target == task.column else task.labelled(data)
    if len(labelled) < 2:
        raise ValueError(f"Expected at least 2 networks to score (got {labelled!r}).")
    if task.edits and not all_match(data.spaces, trained_on):
        raise ValueError(f"Expected networks of {trained_on[0]!r} for {task.name} (got {data!r}).")
    return labelled
