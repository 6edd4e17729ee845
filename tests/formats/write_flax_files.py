"""Writes files with Flax itself, and what its networks answer: run in an environment that has Flax, for test_written_by_flax.py."""

import json
import sys
from pathlib import Path
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, serialization
from flax.training import train_state


class Deep(linen.Module):
    """More layers than one figure numbers."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(11):
            x = jnp.tanh(linen.Dense(6)(x))
        return linen.Dense(2)(x)


class Convolutional(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = jnp.tanh(linen.Conv(4, (3, 3), padding="VALID")(x))
        x = jnp.tanh(linen.Conv(5, (2, 2), strides=2, padding="VALID")(x))
        x = jnp.tanh(linen.Dense(6)(x.reshape((x.shape[0], -1))))
        return linen.Dense(2, use_bias=False)(x)


class Listed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs) for _ in range(11)])
        self.out = nnx.Linear(4, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs, deterministic=True)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.out(self.dropout(x))


def randomized(tree: Any) -> Any:
    """Every array with random numbers, biases too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda array: jnp.asarray(rng.normal(size=array.shape) / max(array.shape[0], 1) ** 0.5, array.dtype), tree)


def write(folder: Path) -> None:
    options: dict[str, Any] = {}
    for name, module, shape in (("deep", Deep(), (5, 4)), ("convolutional", Convolutional(), (5, 7, 8, 2))):
        x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        variables = randomized(module.init(jax.random.key(0), x))
        np.savez(folder / f"{name}.npz", x=x, y=module.apply(variables, x))
        state = train_state.TrainState.create(apply_fn=module.apply, params=variables["params"], tx=optax.adam(1e-3))
        for kind, content in (("variables", variables), ("params", variables["params"]), ("state", state)):
            (folder / f"{name}-{kind}.msgpack").write_bytes(serialization.to_bytes(content))
        options[name] = {} if len(shape) < 4 else {"stride": [1, 2], "padding": 0, "pooling": "none"}
    model = Listed(nnx.Rngs(0))
    nnx.update(model, randomized(nnx.state(model, nnx.Param)))
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    np.savez(folder / "listed.npz", x=x, y=model(x))
    (folder / "listed-params.msgpack").write_bytes(serialization.to_bytes(nnx.to_pure_dict(nnx.state(model, nnx.Param))))
    options["listed"] = {}
    (folder / "options.json").write_text(json.dumps(options))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
