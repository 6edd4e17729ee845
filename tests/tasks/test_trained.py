import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from tests.data import test_formats as formats
from tests.tasks.test_generalization import make_store
from wsgraph import CheckpointError, SpaceMismatchError, WeightSpace
from wsgraph.cli import app
from wsgraph.convert.formats import FileNetwork
from wsgraph.convert.onnx.module import OnnxWarning
from wsgraph.data import ZooStore, ZooWarning, import_zoo
from wsgraph.nn import build_model, list_models, load_model, recipe_of, save_model
from wsgraph.space import Signal
from wsgraph.tasks import TrainedModel, run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    return make_store(tmp_path_factory.mktemp("zoos") / "relu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ZooStore:
    space = WeightSpace.siren((2, 6, 1), signal=Signal((4, 4), "row"))
    thetas = space.sample(20, generator=torch.Generator().manual_seed(0))
    table = {"label": np.arange(20) % 3, "split": ["train"] * 12 + ["val"] * 4 + ["test"] * 4}
    return ZooStore.create(tmp_path_factory.mktemp("zoos") / "sirens", space, thetas, table)


def train(task: str, zoo: ZooStore, folder: Path, model: str = "statnn", **options: Any) -> TrainedModel:
    run(task, zoo=zoo, model=model, epochs=2, progress=False, intervals=0, output=folder, **options)
    return TrainedModel.load(folder)


@pytest.mark.parametrize("name", list_models())
def test_every_model_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    space = WeightSpace.cnn([1, 4, 4], [3], "relu")
    torch.manual_seed(0)
    model = build_model(name, space, 2).eval()
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    batch = space.batch(space.sample(3, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(again(batch), model(batch))
    assert recipe_of(again) == recipe_of(model)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_models_of_several_architectures_and_tasks(tmp_path: Path) -> None:
    spaces = [WeightSpace.mlp([2, 4, 1]), WeightSpace.mlp([2, 6, 6, 1], "tanh")]
    model = build_model("monomial_gnn", spaces, 1, "equivariant", channels=8).eval()
    save_model(model, tmp_path / "model")
    batch = spaces[1].batch(spaces[1].sample(2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(load_model(tmp_path / "model")(batch), model(batch))


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 4, 1])
    folder = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=r"There is no model in .*: expected config.json and model.safetensors"):
        load_model(folder)
    with pytest.raises(ValueError, match="Expected a model made by build_model"):
        save_model(nn.Linear(2, 1), folder)
    save_model(build_model("statnn", space, 1), folder)
    with pytest.raises(CheckpointError, match="was not trained for a task"):
        TrainedModel.load(folder)
    text = (folder / "config.json").read_text()
    for broken, message in (
        (text[:100], "is damaged"),
        (text.replace('"wsgraph"', '"other"'), "does not describe a model of wsgraph"),
        (text.replace('"format": 2', '"format": 99'), "this version reads formats 1 and 2"),
        (text.replace('"statnn"', '"unknown"'), "Unknown model 'unknown'"),
        (text.replace('"out_channels": 1', '"out_channels": 2'), "do not fit the model 'statnn'"),
        (text.replace('"spaces"', '"places"'), "is damaged .KeyError: 'spaces'"),
    ):
        (folder / "config.json").write_text(broken)
        with pytest.raises(ValueError, match=message):
            load_model(folder)
    (folder / "config.json").write_text(text)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(folder)


def test_a_run_leaves_a_model_that_predicts_and_is_scored_alike(store: ZooStore, tmp_path: Path) -> None:
    result = run("generalization", zoo=store, model="statnn", epochs=2, progress=False, intervals=0, output=tmp_path / "run", scales=[10])
    trained = TrainedModel.load(tmp_path / "run")
    assert repr(trained).startswith("TrainedModel(generalization, statnn, tau=")
    scores = trained.evaluate(store, scales=[10])
    assert scores == {name: value for name, value in result.metrics.items() if name.startswith(("tau", "r2"))}
    predictions = trained.predict(store.space, store.thetas[:7], batch_size=3)
    assert predictions.shape == (7,)
    assert bool(((predictions > 0) & (predictions < 1)).all())
    with pytest.raises(ValueError, match="NaN or infinite"):
        trained.predict(store.space, store.thetas[:2] * float("inf"))
    (tmp_path / "run" / "model" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"The run in .* is not finished"):
        TrainedModel.load(tmp_path / "run")


def test_canonical_forms_are_taken_before_predicting(tmp_path: Path) -> None:
    store = make_store(tmp_path / "zoo", "tanh", networks=40)
    trained = train("generalization", store, tmp_path / "run", canonicalize=["sign"])
    thetas = store.thetas[:5]
    g = store.space.sample_symmetry(5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(trained.predict(store.space, store.space.act(g, thetas)), trained.predict(store.space, thetas))


def test_classes_are_probabilities(pictures: ZooStore, tmp_path: Path) -> None:
    trained = train("inr_classification", pictures, tmp_path / "run")
    probabilities = trained.predict(pictures.space, pictures.thetas[:4])
    assert probabilities.shape == (4, 3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(4))


def test_edits_are_networks(pictures: ZooStore, tmp_path: Path) -> None:
    result = run("inr_editing", zoo=pictures, model="np", epochs=2, progress=False, intervals=0, output=tmp_path / "run", operation="erode")
    trained = TrainedModel.load(tmp_path / "run")
    edited = trained.predict(pictures.space, pictures.thetas[:4])
    expected = result.model.edit(pictures.space.batch(pictures.thetas[:4]))  # type: ignore[operator]
    assert torch.equal(edited, expected.detach())
    assert trained.evaluate(pictures)["mse"] == result.metrics["mse"]
    load_model(tmp_path / "run" / "model")  # the model itself, without what the task adds
    (tmp_path / "run" / "model" / "task.safetensors").unlink()
    save_file({"scales": torch.ones(3)}, tmp_path / "run" / "model" / "task.safetensors")
    with pytest.raises(CheckpointError, match="are not those of the task 'inr_editing'"):
        TrainedModel.load(tmp_path / "run")


def test_checkpoints_are_read_as_those_trained_on(store: ZooStore, tmp_path: Path) -> None:
    trained = train("generalization", store, tmp_path / "run", "scalegmn")
    theirs = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1)).state_dict()
    space, theta = trained.read(theirs)
    assert space is trained.trained_on[0]
    wide, more = trained.read(nn.Sequential(nn.Linear(2, 9), nn.ReLU(), nn.Linear(9, 1)).state_dict())
    assert wide.matches(WeightSpace.mlp([2, 9, 1]))
    assert trained.predict(wide, more[None]).shape == (1,)
    assert trained.predict(space, theta[None]).shape == (1,)


def test_a_checkpoint_of_one_of_several_activations(tmp_path: Path) -> None:
    both = ZooStore.merge(tmp_path / "both", [make_store(tmp_path / "r", "relu", 40), make_store(tmp_path / "t", "tanh", 40)])
    trained = train("generalization", both, tmp_path / "run", "scalegmn")
    theirs = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).state_dict()
    with pytest.raises(ValueError, match=r"trained on networks of relu and tanh neurons.* Give 'activation'"):
        trained.read(theirs)
    assert trained.read(theirs, "tanh")[0].groups[1].activation == "tanh"


def test_models_of_unknown_tasks_cannot_be_loaded(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run")
    config = tmp_path / "run" / "model" / "config.json"
    document = json.loads(config.read_text())
    document["about"]["task"] = "mystery"
    config.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"Unknown task 'mystery'\. Available tasks: generalization"):
        TrainedModel.load(tmp_path / "run")


def test_networks_of_interleaved_architectures_keep_their_order(tmp_path: Path) -> None:
    spaces = [WeightSpace.mlp([2, 6, 1]), WeightSpace.mlp([2, 3, 1])]
    generator = torch.Generator().manual_seed(0)
    parts = []
    for i in range(4):
        space = spaces[i % 2]
        table = {"test_accuracy": torch.rand(6, generator=generator), "split": ["train", "train", "val", "val", "test", "test"]}
        parts.append(ZooStore.create(tmp_path / f"part{i}", space, space.sample(6, generator=generator), table))
    store = ZooStore.merge(tmp_path / "zoo", parts)
    trained = train("generalization", store, tmp_path / "run", "scalegmn")
    data = store.dataset()
    one_by_one = torch.cat([trained.predicted([data.batch([i])]) for i in range(len(data))])
    torch.testing.assert_close(trained.predict_zoo(data, batch_size=4), one_by_one)


def test_a_folder_never_holds_the_model_of_another_run(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run")
    with pytest.raises(ValueError, match="diverged"):
        run(
            "generalization",
            zoo=store,
            model="np",
            epochs=3,
            learning_rate=1e30,
            progress=False,
            intervals=0,
            output=tmp_path / "run",
            overwrite=True,
        )
    with pytest.raises(FileNotFoundError, match="is not finished"):
        TrainedModel.load(tmp_path / "run")
    train("generalization", store, tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "model")
    with pytest.raises(FileNotFoundError, match=r"the model is missing.*overwrite=True"):
        train("generalization", store, tmp_path / "b")
    assert train("generalization", store, tmp_path / "b", overwrite=True).name == "statnn"


def test_editors_refuse_other_architectures(pictures: ZooStore, tmp_path: Path) -> None:
    trained = train("inr_editing", pictures, tmp_path / "run", "np")
    wide = WeightSpace.siren((2, 9, 1), signal=pictures.space.signal)
    with pytest.raises(SpaceMismatchError, match="A model trained for inr_editing changes networks of"):
        trained.predict(wide, wide.sample(2))
    zoo = ZooStore.create(tmp_path / "wide", wide, wide.sample(2), {})
    with pytest.raises(SpaceMismatchError, match="A model trained for inr_editing changes networks of"):
        trained.predict_zoo(zoo.dataset(target=None))


def test_what_cannot_be_saved_destroys_nothing(tmp_path: Path) -> None:
    space = WeightSpace.mlp([2, 4, 1])
    model = build_model("statnn", space, 1).double()
    save_model(model, tmp_path / "model")
    with pytest.raises(ValueError, match="nothing that JSON can hold"):
        save_model(model, tmp_path / "model", about={"function": print})
    state = torch.get_rng_state()
    again = load_model(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), state)
    assert next(again.parameters()).dtype == torch.float64


def test_predictions_of_architectures_that_were_not_trained_on_are_called_meaningless(store: ZooStore, tmp_path: Path) -> None:
    deep = WeightSpace.mlp([2, 5, 5, 1], "tanh")
    table = {"test_accuracy": torch.linspace(0, 1, 6), "split": ["test"] * 6}
    other = ZooStore.create(tmp_path / "deep", deep, deep.sample(6, generator=torch.Generator().manual_seed(0)), table)
    with pytest.warns(UserWarning, match="will not be scored by scalegmn: they pass through parameters"):
        trained = train("generalization", store, tmp_path / "run", "scalegmn", test_zoos={"deep": other})
    with pytest.warns(UserWarning, match="means nothing: they pass through parameters"), torch.no_grad():
        trained.predict(deep, other.thetas[:])
    with pytest.warns(UserWarning, match="means nothing: they pass through parameters"):
        trained.predict_zoo(other.dataset())


# == Networks wherever they are ==


def test_files_folders_zoos_and_state_dicts_are_predicted_alike(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run")
    trained = TrainedModel.load(tmp_path / "run")
    expected = trained.predict(store.space, store.thetas[:3]).tolist()
    states = [{key: value.clone() for key, value in store.space.unflatten(theta).items()} for theta in store.thetas[:3]]
    folder = tmp_path / "files"
    folder.mkdir()
    for i, state in enumerate(states):
        torch.save(state, folder / f"{i}.pt")
    (folder / "notes.txt").write_text("no network")
    nets = [FileNetwork(f"net{i}", store.space, theta) for i, theta in enumerate(store.thetas[:3])]
    few = store.dataset(None, target=None)[torch.arange(3)]
    for given in (folder, sorted(folder.glob("*.pt")), states, dict(zip("abc", states, strict=True)), nets, few):
        found = trained.predict(given)
        assert not found.errors
        assert [row["predicted_accuracy"] for row in found.rows] == pytest.approx(expected, abs=1e-6)
        assert not any(row["new_architecture"] for row in found.rows)
    assert [row["checkpoint"] for row in trained.predict(dict(zip("abc", states, strict=True))).rows] == list("abc")
    assert len(trained.predict([store, folder]).rows) == len(store) + 3
    found = trained.predict(folder)
    found.to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text().splitlines()[0] == "checkpoint,predicted_accuracy,distance,nearer,new_architecture"
    (folder / "3.pt").write_bytes(b"damaged")
    with_error = trained.predict(folder)
    assert len(with_error.rows) == 3
    assert list(with_error.errors) == [str(folder / "3.pt")]
    assert repr(with_error) == "Predictions(3 networks, 1 error)"
    for wrong in (3, None):
        with pytest.raises(TypeError, match="Expected files, folders, zoos, state dicts or networks of load_networks"):
            trained.predict(wrong)
    with pytest.raises(TypeError, match="Expected flat checkpoints beside their weight space"):
        trained.predict(store.space)


def test_files_of_whole_networks_are_predicted_as_their_weights(store: ZooStore, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.ReLU(), torch.nn.Linear(6, 1)).eval()
    torch.onnx.export(module, (torch.zeros(1, 2),), tmp_path / "net.onnx", dynamo=True, verbose=False)
    train("generalization", store, tmp_path / "run")
    trained = TrainedModel.load(tmp_path / "run")
    (row,) = trained.predict(tmp_path / "net.onnx").rows
    state = {f"layers.{i}.{kind}": module[2 * i].get_parameter(kind).detach() for i in (0, 1) for kind in ("weight", "bias")}
    assert row["predicted_accuracy"] == pytest.approx(float(trained.predict(store.space, store.space.flatten(state)[None])), abs=1e-5)


def test_folders_of_several_formats_are_predicted(store: ZooStore, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    layers = formats.make_layers(0, (2, 6, 1))
    torch.save(formats.state_of(layers), folder / "a.pt")
    formats.write_keras(folder / "b.keras", layers)
    formats.write_onnx(folder / "c.onnx", layers)
    formats.write_flax(folder / "d.msgpack", layers)
    formats.write_agent(folder / "e.zip")
    train("generalization", store, tmp_path / "run")
    trained = TrainedModel.load(tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OnnxWarning)
        found = trained.predict(folder, activation="relu")
    predicted = {Path(row["checkpoint"]).name: row["predicted_accuracy"] for row in found.rows}
    assert [*predicted] == ["a.pt", "b.keras", "c.onnx", "d.msgpack"]
    assert [*predicted.values()] == pytest.approx([predicted["a.pt"]] * 4, abs=1e-5)
    assert [Path(name).name for name in found.errors] == ["e.zip:policy", "e.zip:value"]
    assert "give them with activation=" in next(iter(trained.predict(folder / "d.msgpack").errors.values()))


def test_distances_say_what_was_not_trained_on(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run", model="neural_graph")
    trained = TrainedModel.load(tmp_path / "run")
    assert trained.reference is not None
    rows = trained.predict(store.dataset("train", target=None)).rows
    distances = torch.tensor([row["distance"] for row in rows])
    assert float(distances.square().mean().sqrt()) == pytest.approx(1.0, rel=0.05)
    assert torch.tensor([row["nearer"] for row in rows]).mean() == pytest.approx(0.5, abs=0.05)
    # Moved networks are the same networks; larger outputs, and other architectures, are not.
    space, thetas = store.space, store.thetas[:20].double()
    moved = space.act(space.sample_symmetry(20, generator=torch.Generator().manual_seed(0)), thetas)
    before, after = (trained.reference.distances(space, each)[0] for each in (thetas, moved))
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)
    far, share = trained.reference.distances(space, 30 * thetas)
    assert bool((far > 3 * before.max()).all())
    assert bool((share >= 1).all())
    wide = WeightSpace.mlp([2, 9, 1])
    (row,) = trained.predict(FileNetwork("wide", wide, wide.sample(1)[0])).rows
    assert row["new_architecture"]
    assert row["distance"] > 2 * distances.max()


def test_errors_of_predictions_say_what_the_model_reads(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run")
    trained = TrainedModel.load(tmp_path / "run")
    wide = WeightSpace.mlp([2, 9, 1])
    found = trained.predict([FileNetwork("wide", wide, wide.sample(1)[0]), FileNetwork("known", store.space, store.thetas[0])])
    assert [row["checkpoint"] for row in found.rows] == ["known"]
    assert found.errors["wide"].startswith("It is a network of WeightSpace(")
    assert "was trained on networks of WeightSpace(2-6-1" in found.errors["wide"]


def test_rows_of_zoos_are_named_by_their_files(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run")
    trained = TrainedModel.load(tmp_path / "run")
    (tmp_path / "files").mkdir()
    for i in range(3):
        torch.save(formats.state_of(formats.make_layers(i, (2, 6, 1))), tmp_path / "files" / f"{i}.pt")
    with pytest.warns(ZooWarning, match="Nothing is known of the networks"):
        zoo = import_zoo(tmp_path / "zoo", tmp_path / "files", activation="relu", progress=False)
    rows = trained.predict(zoo).rows
    assert {Path(row["checkpoint"]).name for row in rows} == {"0.pt", "1.pt", "2.pt"}
    alone = {Path(row["checkpoint"]).name: row["predicted_accuracy"] for row in trained.predict(tmp_path / "files").rows}
    assert {Path(row["checkpoint"]).name: row["predicted_accuracy"] for row in rows} == pytest.approx(alone, abs=1e-6)
    zoo.set_column("role", ["policy", "value", ""])
    assert sorted(row["checkpoint"].rpartition("/")[2] for row in trained.predict(zoo).rows)[-1] == "2.pt"
    assert any(row["checkpoint"].endswith(".pt:policy") for row in trained.predict(zoo).rows)
    # One name each, also of a zoo that is given twice; without files, by the positions in the zoo.
    assert len({row["checkpoint"] for row in trained.predict([zoo, zoo]).rows}) == 6
    some = store.dataset(None, target=None)[torch.tensor([4, 7])]
    assert [Path(row["checkpoint"]).name for row in trained.predict(some).rows] == ["4", "7"]


def test_folders_without_networks_and_new_folders_for_predictions(store: ZooStore, tmp_path: Path) -> None:
    train("generalization", store, tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no network")
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(tmp_path / "empty")])
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert re.search(r"The folder holds no networks \(.*\.keras.*\.onnx.*\.zip\), and those below it are not looked into", said)
    rows = tmp_path / "new" / "folder" / "rows.csv"
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "run"), str(store.path), "--output", str(rows)])
    assert result.exit_code == 0
    assert len(rows.read_text().splitlines()) == len(store) + 1
