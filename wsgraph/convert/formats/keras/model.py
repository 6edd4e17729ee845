"""Models of Keras as modules of PyTorch, made from their configuration and weights."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsgraph.convert.formats.keras import plain, weighted  # noqa: F401
from wsgraph.convert.formats.keras.files import KerasFile, Store, snake_case
from wsgraph.convert.formats.keras.layer import LAYERS, KerasLayer, Value, in_order

__all__ = ["KerasModule", "build_module", "without_names"]

_SEQUENTIAL, _GRAPHS = "Sequential", ("Functional", "Model")
_INPUT = "InputLayer"
_ADVICE = "Export the model as ONNX (model.export(path, format='onnx')), or build it in PyTorch and trace it."
_MODULES = re.compile(r"(?:keras|tf_keras|tensorflow\.python\.keras|tensorflow\.keras)(?:\.|$)")


class KerasModule(nn.Module):
    """The layers of a model, called one after the other on what they read.

    Args:
        shapes: Shape of every input, without the batch and with channels first.

    Returns:
        Called with a tensor for each input, the output, or a tuple of several.
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[nn.Module, tuple[int, ...]]] = []
        self._outputs: tuple[int, ...] = ()
        self.example_inputs: tuple[Tensor, ...] = ()

    def forward(self, *inputs: Tensor) -> Any:
        values: list[Any] = list(inputs)
        for module, sources in self._steps:
            values.append(module(*(values[source] for source in sources)))
        outputs = tuple(values[source] for source in self._outputs)
        return outputs if len(outputs) > 1 else outputs[0]


@dataclass(frozen=True)
class _Slot:
    """A value of the graph that is built: its number, and what is known of it."""

    number: int
    value: Value


def build_module(file: KerasFile, shapes: Sequence[Sequence[int]] = ()) -> KerasModule:
    """The module of a file's model, with its weights.

    Args:
        file: Configuration and weights.
        shapes: Shapes of inputs, channels first and with a batch, for sizes that the file leaves open.

    Raises:
        ValueError: If the model has a layer that is not known, or weights and configuration do not fit.
    """
    if not isinstance(file.config, Mapping):
        raise ValueError(f"its configuration is a {type(file.config).__name__}, not that of a model.")
    try:
        module = _Builder(file, shapes).build()
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        raise ValueError(f"its configuration describes no model that runs ({type(error).__name__}: {text}).") from error
    module.eval()
    return module


class _Builder:
    def __init__(self, file: KerasFile, shapes: Sequence[Sequence[int]]) -> None:
        assert file.config is not None
        self.file = file
        self.module = KerasModule()
        self.given = list(shapes)
        self.channels_first = _channels_first(file.config)
        major = file.version.partition(".")[0]
        self.version = int(major) if major.isdigit() else 2
        self.dtype = _dtype(file.config)
        self.count = 0
        self.built: dict[str, tuple[tuple[Any, ...], list[nn.Module], tuple[int, ...]]] = {}

    def build(self) -> KerasModule:
        config = self.file.config
        assert config is not None
        inputs = list(self._inputs(config))
        if self.given and len(self.given) != len(inputs):
            raise ValueError(f"expected shapes of its {len(inputs)} inputs (got {len(self.given)}).")
        self.module.example_inputs = tuple(slot.value.tensor for slot in inputs)
        outputs = self._model(config, self.file.store, inputs, "")
        self.module._outputs = tuple(self._ordered(slot).number for slot in outputs)
        return self.module

    # == Inputs ==

    def _inputs(self, config: Mapping[str, Any]) -> Iterator[_Slot]:
        """An example of every input."""
        for name, shape in _input_shapes(config):
            sizes: list[int | None] = list(shape[1:])
            if len(sizes) > 2 and not self.channels_first:
                sizes = [sizes[-1], *sizes[:-1]]
            given = list(self.given[self.count])[1:] if self.count < len(self.given) else None
            if given is not None and (len(given) != len(sizes) or any(b not in (None, a) for a, b in zip(given, sizes, strict=True))):
                raise ValueError(f"expected a shape for the input {name!r} that fits {['N', *sizes]} (got {['N', *given]}).")
            sizes = sizes if given is None else [*given]
            known = [size for size in sizes if size is not None]
            if len(known) < len(sizes):
                raise ValueError(
                    f"it leaves sizes of its input {name!r} open, {['N', *sizes]}: say them with shapes=, for instance shapes=[(1, "
                    f"{', '.join(str(8 if size is None else size) for size in sizes)})]."
                )
            is_index = _is_read_by_embedding(config, name)
            yield self._slot(Value(torch.zeros([2, *known], dtype=torch.long if is_index else self.dtype)))

    def _slot(self, value: Value) -> _Slot:
        self.count += 1
        return _Slot(self.count - 1, value)

    # == Layers ==

    def _step(self, module: nn.Module, sources: Sequence[_Slot], unordered: tuple[int, ...] = ()) -> _Slot:
        with torch.no_grad():
            result = module.eval()(*(slot.value.tensor for slot in sources))
        self.module._steps.append((module, tuple(slot.number for slot in sources)))
        return self._slot(Value(result, unordered))

    def _ordered(self, slot: _Slot) -> _Slot:
        return self._step(in_order(slot.value), [slot]) if slot.value.unordered else slot

    def _layer(self, spec: _Spec, store: Store, inputs: list[_Slot], key: str, shared: bool) -> list[_Slot]:
        if spec.is_model:
            return self._model(spec.written, store, inputs, f"{key}.")
        entry = LAYERS[spec.kind]
        if not entry.unordered or shared or len(inputs) > 1:
            inputs = [self._ordered(slot) for slot in inputs]
        seen = tuple((tuple(slot.value.tensor.shape), slot.value.unordered) for slot in inputs)
        if key not in self.built:
            layer = KerasLayer(spec.name, spec.kind, spec.config, store, self.channels_first, self.version, self.dtype)
            try:
                steps = entry.build(layer, [slot.value for slot in inputs])
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(f"{layer.label} has a configuration that cannot be read ({type(error).__name__}: {error}).") from error
            for step in steps:
                if step.module.state_dict():
                    self._register(f"{key}.{step.name}" if step.name else key, step.module)
            self.built[key] = (seen, [step.module for step in steps], layer.unordered)
        before, modules, unordered = self.built[key]
        if before != seen:
            raise ValueError(f"the layer {spec.name!r} is called on inputs of several shapes, which is not built here. {_ADVICE}")
        kept = inputs[0].value.unordered
        for module in modules:
            inputs = [self._step(module, inputs, kept)]
        slot = inputs[0]
        order = unordered or (kept if len(slot.value.tensor.shape) == 2 and entry.unordered and not _mixes(modules) else ())
        return [_Slot(slot.number, Value(slot.value.tensor, order))]

    def _register(self, key: str, module: nn.Module) -> None:
        owner: nn.Module = self.module
        *parents, last = key.split(".")
        for name in parents:
            if name not in owner._modules:
                owner.add_module(name, nn.Module())
            owner = owner.get_submodule(name)
        owner.add_module(last, module)

    # == Graphs ==

    def _model(self, written: Mapping[str, Any], store: Store, inputs: list[_Slot], prefix: str) -> list[_Slot]:
        specs = _specs(written)
        keys = _layer_keys([spec for spec in specs if spec.kind != _INPUT], self.module if not prefix else nn.Module())
        numbers = _class_numbers(specs)
        stores = {spec.name: store.child(spec.name, numbers[spec.name]) for spec in specs}
        if written["class_name"] == _SEQUENTIAL:
            for spec in specs:
                if spec.kind != _INPUT:
                    inputs = self._layer(spec, stores[spec.name], inputs, prefix + keys[spec.name], False)
            return inputs
        config = written["config"]
        results: dict[tuple[str, int, int], _Slot] = {}
        for place, slot in zip(_references(config["input_layers"]), inputs, strict=True):
            results[place] = slot
        first = _first_calls(written)
        waiting = [
            (spec, first.get(spec.name, 0) + number, list(_references(node)), len(spec.calls) > 1)
            for spec in specs
            for number, node in enumerate(spec.calls)
        ]
        while waiting:
            ready = [call for call in waiting if all(place in results for place in call[2])]
            if not ready:
                lacking = sorted({place[0] for call in waiting for place in call[2] if place not in results})
                raise ValueError(f"its layers {', '.join(map(repr, lacking))} are read and never called.")
            for spec, number, sources, shared in ready:
                found = self._layer(spec, stores[spec.name], [results[place] for place in sources], prefix + keys[spec.name], shared)
                results |= {(spec.name, number, i): slot for i, slot in enumerate(found)}
            waiting = [call for call in waiting if call not in ready]
        outputs = list(_references(config["output_layers"]))
        if unknown := [place[0] for place in outputs if place not in results]:
            raise ValueError(f"its output {unknown[0]!r} is never computed.")
        return [results[place] for place in outputs]


def _mixes(modules: Sequence[nn.Module]) -> bool:
    """Whether modules make entries from several, as those with weights do."""
    return any(module.state_dict() for module in modules)


# == Configurations ==


@dataclass(frozen=True)
class _Spec:
    """A layer in the configuration of a model."""

    name: str
    kind: str
    config: Mapping[str, Any]
    calls: Sequence[Any]
    written: Mapping[str, Any]

    @property
    def is_model(self) -> bool:
        return self.kind == _SEQUENTIAL or self.kind in _GRAPHS


def _layer_list(written: Mapping[str, Any]) -> list[Any]:
    config = written.get("config")
    if isinstance(config, list):  # the first releases of Keras 2
        return config
    found = config.get("layers") if isinstance(config, Mapping) else None
    kind = written.get("class_name")
    if not isinstance(found, list) or kind not in (_SEQUENTIAL, *_GRAPHS):
        raise ValueError(f"its model is of the class {kind!r}, whose wiring is code that is not in the file. {_ADVICE}")
    return found


def _specs(written: Mapping[str, Any]) -> list[_Spec]:
    """The layers of a model, all of which are known."""
    specs = []
    for entry in _layer_list(written):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("config"), (Mapping, list)):
            raise ValueError("the configuration of one of its layers cannot be read.")
        kind, config = str(entry.get("class_name")), entry["config"]
        settings = config if isinstance(config, Mapping) else {}
        name = str(entry.get("name") or settings.get("name") or kind)
        spec = _Spec(name, kind, settings, entry.get("inbound_nodes") or (), entry)
        module, registered = entry.get("module"), entry.get("registered_name")
        custom = bool(registered and registered != kind) or bool(module and not _MODULES.match(str(module)))
        entry_of = LAYERS.get(kind)
        known = spec.is_model or kind == _INPUT or (entry_of is not None and (entry_of.operation or not _is_operation(entry)))
        if custom or not known:
            what = f"of the class {registered or f'{module}.{kind}' if custom else kind}"
            raise ValueError(f"the layer {name!r} is {what}, which is not among the layers that are known. {_ADVICE}")
        dtype = settings.get("dtype")
        if isinstance(dtype, Mapping) and "Quantized" in str(dtype.get("class_name")):
            raise ValueError(f"the layer {name!r} is quantised ({dtype.get('class_name')}): save the model as it was before.")
        specs.append(spec)
    if doubled := [name for name, count in Counter(spec.name for spec in specs).items() if count > 1]:
        raise ValueError(f"it has several layers of the name {doubled[0]!r}.")
    return specs


def _is_operation(written: Mapping[str, Any]) -> bool:
    """Whether an entry is a function of Keras, such as that of ``x + y``, and no layer."""
    return ".ops." in f"{written.get('module', '')}."


def _class_numbers(specs: Sequence[_Spec]) -> dict[str, str]:
    """What Keras 3 calls every layer in its files: its class, and its number where it is not the first of it."""
    seen: Counter[str] = Counter()
    numbers = {}
    for spec in specs:
        kind = "functional" if spec.kind in _GRAPHS else snake_case(spec.kind)
        # Operations such as x + y stand among the layers and are none.
        if _is_operation(spec.written):
            continue
        numbers[spec.name] = f"{kind}_{seen[kind]}" if seen[kind] else kind
        seen[kind] += 1
    return {spec.name: numbers.get(spec.name, "") for spec in specs}


def _layer_keys(specs: Sequence[_Spec], owner: nn.Module) -> dict[str, str]:
    """Keys of layers in the state dict: names that people gave, and those of Keras numbered from the first."""
    seen: Counter[str] = Counter()
    keys: dict[str, str] = {}
    for spec in specs:
        kind = snake_case(spec.kind)
        key = re.sub(r"\W", "_", spec.name)
        if re.fullmatch(rf"{kind}(_\d+)?", spec.name):
            key = f"{kind}_{seen[kind]}" if seen[kind] else kind
            seen[kind] += 1
        while key in keys.values() or hasattr(owner, key):
            key += "_"
        keys[spec.name] = key
    return keys


# What does not change the function of a model whose weights are there.
_IDLE = re.compile(r"name|trainable|shared_object_id|build_config|compile_config|build_input_shape|.*_(initializer|regularizer|constraint)")


def without_names(written: Mapping[str, Any]) -> str:
    """A configuration as text that is the same for models that only differ in the names of their layers.

    Example:
        >>> layer = {"class_name": "Dense", "config": {"name": "dense_7", "units": 3}}
        >>> without_names({"class_name": "Sequential", "config": {"name": "a", "layers": [layer]}})
        '{"class_name": "Sequential", "config": {"layers": [{"class_name": "Dense", "config": {"units": 3}}]}}'
    """

    def settings(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: settings(entry) for key, entry in value.items() if not _IDLE.fullmatch(str(key))}
        return [settings(entry) for entry in value] if isinstance(value, list) else value

    def model(value: Mapping[str, Any]) -> dict[str, Any]:
        specs = _specs(value)
        numbers = {spec.name: number for number, spec in enumerate(specs)}

        def wired(entry: Any) -> Any:
            """Calls of layers, with numbers for the names of layers."""
            return [(numbers.get(name), call, number) for name, call, number in _references(entry)]

        layers = []
        for spec in specs:
            own = model(spec.written) if spec.is_model else settings({"class_name": spec.kind, "config": spec.config})
            layers.append({**own, **({"calls": [wired(node) for node in spec.calls]} if spec.calls else {})})
        config = value["config"] if isinstance(value["config"], Mapping) else {}
        ends = {key: wired(config[key]) for key in ("input_layers", "output_layers") if key in config}
        return {"class_name": value["class_name"], "config": {"layers": layers, **ends}}

    return json.dumps(model(written))


def _references(written: Any) -> Iterator[tuple[str, int, int]]:
    """Results of layers that a call reads, in order: name of the layer, number of its call, number of the result."""
    if isinstance(written, Mapping):
        if written.get("class_name") == "__keras_tensor__":
            name, call, number = written["config"]["keras_history"]
            yield str(name), int(call), int(number)
            return
        if "args" in written:
            kwargs = written.get("kwargs") or {}
            unread = [value for key, value in kwargs.items() if key not in ("training", "mask") and value is not None]
            if unread or kwargs.get("training") or kwargs.get("mask"):
                raise ValueError(f"one of its layers is called with {', '.join(map(repr, kwargs))}, which is not built here. {_ADVICE}")
            for entry in written["args"]:
                yield from _references(entry)
            return
        for key in sorted(written):  # as Keras orders the inputs and outputs of a model that are named
            yield from _references(written[key])
        return
    if not isinstance(written, Sequence) or isinstance(written, str):
        raise ValueError(f"one of its layers is called with the constant {written!r}, which is not built here. {_ADVICE}")
    if len(written) in (3, 4) and isinstance(written[0], str) and isinstance(written[1], int):
        if len(written) == 4 and {key: value for key, value in written[3].items() if value not in (None, False)}:
            raise ValueError(f"one of its layers is called with {', '.join(map(repr, written[3]))}, which is not built here. {_ADVICE}")
        yield str(written[0]), int(written[1]), int(written[2])
        return
    for entry in written:
        yield from _references(entry)


def _all_references(written: Mapping[str, Any]) -> Iterator[tuple[str, int, int]]:
    for spec in _specs(written):
        for node in spec.calls:
            yield from _references(node)
    yield from _references(written["config"]["output_layers"])


def _first_calls(written: Mapping[str, Any]) -> dict[str, int]:
    """The number of the first call of models within a model, which some versions count from one."""
    models = {spec.name for spec in _specs(written) if spec.is_model}
    found: dict[str, int] = {}
    for name, call, _ in _all_references(written):
        if name in models:
            found[name] = min(call, found.get(name, 1))
    return found


def _input_shapes(written: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[int | None]]]:
    """Name and shape of every input of a model, in the order in which it takes them."""
    specs = _specs(written)
    if written["class_name"] == _SEQUENTIAL:
        first = specs[0] if specs else None
        config = written["config"]
        built = (config.get("build_input_shape") if isinstance(config, Mapping) else None) or (
            (written.get("build_config") or {}).get("input_shape")
        )
        shape = (_shape_of(first) if first else None) or built
        if first is not None and shape is None and first.is_model:
            yield from _input_shapes(first.written)
            return
        if first is None or shape is None:
            raise ValueError("its configuration does not say the shape of its input: call the model once before it is saved.")
        yield first.name, shape
        return
    by_name = {spec.name: spec for spec in specs}
    for name, *_ in _references(written["config"]["input_layers"]):
        shape = _shape_of(by_name[name]) if name in by_name else None
        if shape is None:
            raise ValueError(f"its input {name!r} has no shape.")
        yield name, shape


def _shape_of(spec: _Spec) -> Sequence[int | None] | None:
    """The shape that the configuration of a first layer says, with the batch."""
    found = spec.config.get("batch_shape") or spec.config.get("batch_input_shape")
    return found if isinstance(found, Sequence) else None


def _is_read_by_embedding(written: Mapping[str, Any], name: str) -> bool:
    """Whether an input is whole numbers, whatever type its configuration says."""
    specs = _specs(written)
    if written["class_name"] == _SEQUENTIAL:
        layers = [spec for spec in specs if spec.kind != _INPUT]
        return bool(layers) and layers[0].kind == "Embedding"
    return any(spec.kind == "Embedding" and any(place[0] == name for node in spec.calls for place in _references(node)) for spec in specs)


def _all_layers(written: Mapping[str, Any]) -> Iterator[_Spec]:
    for spec in _specs(written):
        if spec.is_model:
            yield from _all_layers(spec.written)
        else:
            yield spec


def _dtype(written: Mapping[str, Any]) -> torch.dtype:
    """What a model computes in: half precision is computed in single precision."""
    for spec in _all_layers(written):
        said = spec.config.get("dtype")
        name = said.get("config", {}).get("name") if isinstance(said, Mapping) else said
        if name == "float64":
            return torch.float64
    return torch.float32


def _channels_first(written: Mapping[str, Any]) -> bool:
    """Whether images of a model lie with their channels first, as all of its layers have to say alike."""
    found = {
        spec.config["data_format"] for spec in _all_layers(written) if spec.kind != "Flatten" and spec.config.get("data_format") is not None
    }
    if len(found) > 1:
        raise ValueError("some of its layers have their channels first and others last, which is not built here.")
    return found == {"channels_first"}
