"""Files that Keras itself wrote, which CI installs for these tests alone: the same outputs as Keras's own."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wsgraph import load_networks
from wsgraph.data import import_zoo
from wsgraph.nn import build_model

pytestmark = [
    pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed"),
    pytest.mark.filterwarnings("ignore"),
]
os.environ.setdefault("KERAS_BACKEND", "torch")


def models() -> dict[str, Any]:
    import keras
    from keras import layers as L

    keras.utils.set_random_seed(0)
    kinds: dict[str, Any] = {}
    kinds["mlp"] = [L.Input((4,)), L.Dense(8, "relu"), L.Dense(8, "tanh"), L.Dense(3, "softmax")]
    kinds["cnn"] = [L.Input((9, 8, 3)), L.Conv2D(4, 3, padding="same", activation="relu"), L.MaxPooling2D()]
    kinds["cnn"] += [L.Conv2D(5, 3, strides=2, padding="same"), L.ReLU(), L.Dropout(0.3), L.Flatten(), L.Dense(6, "gelu"), L.Dense(3)]
    kinds["norms"] = [L.Input((8, 8, 3)), L.Conv2D(4, 3, use_bias=False), L.BatchNormalization(epsilon=0.01, scale=False)]
    kinds["norms"] += [L.Activation("relu"), L.SeparableConv2D(5, 3, padding="same"), L.LayerNormalization(), L.LeakyReLU(), L.Flatten()]
    kinds["norms"][3:3] = [L.GroupNormalization(2, epsilon=0.01), L.GroupNormalization(-1, center=False), L.RMSNormalization()]
    kinds["norms"] += [L.LayerNormalization(center=False), L.RMSNormalization(), L.Dense(6, activation=L.ELU(0.5)), L.Dense(3)]
    kinds["rnn"] = [L.Input((5,)), L.Embedding(10, 6), L.LSTM(7, return_sequences=True), L.GRU(4, return_sequences=True)]
    kinds["rnn"] += [L.SimpleRNN(3), L.Dense(2)]
    kinds["sequences"] = [L.Input((12, 3)), L.Conv1D(4, 3, padding="causal", activation="relu"), L.BatchNormalization()]
    kinds["sequences"] += [
        L.GroupNormalization(2, scale=False),
        L.MaxPooling1D(2, padding="same"),
        L.Conv1D(5, 3, dilation_rate=2),
        L.Dense(4, "swish"),
    ]
    kinds["sequences"] += [L.GlobalMaxPooling1D(), L.RepeatVector(3), L.Flatten(), L.Dense(2, "hard_sigmoid")]
    kinds["decoder"] = [L.Input((4,)), L.Dense(32, "selu"), L.Reshape((4, 4, 2)), L.Conv2D(3, 3, activation="elu")]
    kinds["decoder"] += [
        L.PReLU(shared_axes=[1, 2]),
        L.Dense(2),
        L.Permute((3, 1, 2)),
        L.Cropping2D(((0, 1), (0, 0))),
        L.Flatten(),
        L.Dense(1),
    ]
    measured = L.Normalization()
    measured.adapt(np.random.default_rng(2).normal(2, 3, (50, 5, 4, 3)))
    kinds["transposed"] = [L.Input((5, 4, 3)), measured, L.Conv2DTranspose(4, (3, 2), strides=2, padding="same", activation="relu")]
    kinds["transposed"] += [L.Conv2DTranspose(3, (2, 3), strides=(3, 1)), L.Conv2DTranspose(2, 4, strides=1, padding="same"), L.Flatten()]
    kinds["transposed"] += [L.Dense(2)]
    found = {name: keras.Sequential(layers) for name, layers in kinds.items()}

    x = keras.Input((4,))
    first, shared = L.Dense(8, "relu", name="zed")(x), L.Dense(8, name="shared")
    out = L.Dense(2, name="aa")(L.Concatenate()([L.Add()([first, shared(shared(first))]), x]))
    found["graph"] = inner = keras.Model(x, out)
    x = keras.Input((4,))
    twice = L.Average()([inner(x), inner(L.Dense(4)(x))])
    found["nested"] = keras.Model(x, [L.Dense(3)(twice), L.Dense(1, "sigmoid")(twice)])
    x = keras.Input((8, 8, 3))
    y = L.Activation("relu")(L.BatchNormalization()(L.Conv2D(4, 3, padding="same")(x)))
    z = L.LayerNormalization()(L.DepthwiseConv2D(3, padding="same", depth_multiplier=1)(y)) + y
    z = L.Concatenate()([L.UpSampling2D()(z), L.ZeroPadding2D(4)(y)])
    found["residual"] = keras.Model(x, L.Dense(5)(L.GlobalAveragePooling2D()(L.AveragePooling2D(2)(z))))
    return found


def randomize(model: Any) -> Any:
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "variance" in variable.path:
            variable.assign(rng.uniform(0.5, 2, variable.shape))
        elif not any(kept in variable.path for kept in ("seed", "mean", "count")):
            variable.assign(rng.normal(size=variable.shape) * 0.4)
    return model


def as_list(values: Any) -> list[Any]:
    return list(values) if isinstance(values, (list, tuple)) else [values]


@pytest.mark.parametrize("name", ["mlp", "cnn", "norms", "rnn", "sequences", "decoder", "transposed", "graph", "nested", "residual"])
def test_outputs_are_those_of_keras(name: str, tmp_path: Path) -> None:
    model = randomize(models()[name])
    rng, shape = np.random.default_rng(1), (5, *model.inputs[0].shape[1:])
    x = rng.integers(0, 10, shape) if name == "rnn" else rng.normal(size=shape).astype(np.float32)
    expected = [value.detach().cpu().numpy() for value in as_list(model(x))]
    inputs = torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim > 3 else x)
    for ending in ("keras", "h5"):
        model.save(tmp_path / f"model.{ending}")
        (found,) = load_networks(tmp_path / f"model.{ending}")
        results = as_list(found.space.evaluate(found.theta[None], inputs))
        assert len(results) == len(expected)
        for result, wanted in zip(results, expected, strict=True):
            assert np.abs(wanted).max() > 1e-3
            assert np.allclose(result[0].numpy(), wanted, rtol=1e-5, atol=1e-5)
        moved = found.space.act(found.space.sample_symmetry(), found.theta[None])
        again = as_list(found.space.evaluate(moved, inputs))
        assert all(np.allclose(one[0].numpy(), wanted, rtol=1e-3, atol=1e-3) for one, wanted in zip(again, expected, strict=True))


@pytest.mark.parametrize("told", [False, True])
def test_channels_may_be_first(told: bool, tmp_path: Path) -> None:
    import keras
    from keras import layers as L

    first = {"data_format": "channels_first"}
    layers = [L.Input((3, 8, 7)), L.Conv2D(4, 3, activation="relu", **first), L.BatchNormalization(axis=1), L.MaxPooling2D(**first)]
    model = randomize(keras.Sequential([*layers, L.Flatten(**first) if told else L.Flatten(), L.Dense(2)]))
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(1).normal(size=(5, 3, 8, 7)).astype(np.float32)
    (found,) = load_networks(tmp_path / "model.keras")
    result = found.space.evaluate(found.theta[None], torch.from_numpy(x))[0]
    assert np.allclose(result.numpy(), model(x).detach().cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_weights_alone_are_those_of_keras(tmp_path: Path) -> None:
    import keras
    from keras import layers as L

    model = randomize(
        keras.Sequential([L.Input((6, 6, 1)), L.Conv2D(4, 3, activation="relu"), L.Flatten(), L.Dense(5, "relu"), L.Dense(2)])
    )
    model.save_weights(tmp_path / "model.weights.h5")
    x = np.random.default_rng(1).normal(size=(5, 6, 6, 1)).astype(np.float32)
    (found,) = load_networks(tmp_path / "model.weights.h5", activation="relu")
    result = found.space.evaluate(found.theta[None], torch.from_numpy(np.moveaxis(x, -1, 1).copy()))[0]
    assert np.allclose(result.numpy(), model(x).detach().cpu().numpy(), rtol=1e-5, atol=1e-5)


def test_layers_that_are_not_known_are_refused(tmp_path: Path) -> None:
    import keras
    from keras import layers as L

    keras.Sequential([L.Input((4,)), L.Dense(4), L.Lambda(lambda x: 2 * x)]).save(tmp_path / "lambda.keras")
    keras.Sequential([L.Input((6, 4)), L.Masking(), L.LSTM(3)]).save(tmp_path / "masking.keras")
    for name in ("lambda", "masking"):
        with pytest.raises(ValueError, match=f"(?i)of the class {name}, which is not among the layers that are known"):
            load_networks(tmp_path / f"{name}.keras")


def test_a_zoo_of_keras_is_predicted_as_the_same_zoo_of_torch(tmp_path: Path) -> None:
    import keras
    from keras import layers as L

    for folder in ("keras", "torch"):
        (tmp_path / folder).mkdir()
    for number in range(200):
        keras.utils.set_random_seed(number)
        sizes = (5, 8, 8, 2) if number % 2 else (5, 6, 2)
        act = "tanh" if number % 3 else "relu"
        dense = [L.Dense(size, act) for size in sizes[1:-1]]
        model = randomize(keras.Sequential([L.Input((sizes[0],)), *dense, L.Dense(sizes[-1])]))
        model.save(tmp_path / "keras" / f"{number:03d}.keras")
        arrays = [torch.from_numpy(np.array(array)) for array in model.get_weights()]
        state = {f"{i // 2}.{('weight', 'bias')[i % 2]}": array.T.contiguous() if i % 2 == 0 else array for i, array in enumerate(arrays)}
        torch.save(state, tmp_path / "torch" / f"{number:03d}.pt")
    acts = "\n".join(f"{number:03d}.pt,{'tanh' if number % 3 else 'relu'}" for number in range(200))
    (tmp_path / "torch" / "metadata.csv").write_text(f"file_name,activation\n{acts}\n")
    zoos = [import_zoo(tmp_path / f"zoo-{name}", tmp_path / name) for name in ("torch", "keras")]
    assert [len(zoo.spaces) for zoo in zoos] == [4, 4]
    order = [np.argsort(zoo.column("file")) for zoo in zoos]
    zoos[0].set_column("target", torch.randn(200, generator=torch.Generator().manual_seed(0)))
    torch.manual_seed(0)
    model = build_model("monomial_gnn", zoos[0].spaces, 1, task="invariant")
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    dataset = zoos[0].dataset(target="target")
    for step in range(20):
        optimizer.zero_grad()
        batch = dataset.batch(torch.arange(step % 4, 200, 4))
        (model(batch)[:, 0] - batch.y).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        results = [
            torch.cat([model(zoo.dataset(target=None).batch(torch.tensor([int(i)]))) for i in places])
            for zoo, places in zip(zoos, order, strict=True)
        ]
    assert results[0].std() > 0.1
    assert torch.allclose(results[0], results[1], rtol=1e-5, atol=1e-5)
