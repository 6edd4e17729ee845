import argparse
import itertools
import json
import math
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from wsgraph import WeightSpace
from wsgraph.data import ZooStore
from wsgraph.nn import build_model, list_models, model_entry, registry
from wsgraph.testing import assert_invariant

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def import_and_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts find their neighbours as when they are run, and leave the number of threads and the list of models as they were."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads, registered = torch.get_num_threads(), dict(registry._MODELS)
    yield
    torch.set_num_threads(threads)
    registry._MODELS.clear()
    registry._MODELS.update(registered)


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--quick", "--output", str(folder)])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    (document,) = folder.glob("*.json")
    assert document.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob(".*"))
    result: dict[str, Any] = json.loads(document.read_text())
    assert result["machine"]["torch"] == torch.__version__
    return result


def test_sharing_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = run("sharing_speed", tmp_path, monkeypatch)
    assert (tmp_path / "sharing_speed_cpu.json").exists()
    rows = {row["layer"]: row for row in document["layers"]}
    assert list(rows) == ["np", "hnp", "monomial", "magep", "magep_invariant"]
    for row in rows.values():
        assert row["network"] == "2-32-32-1"
        for measure, ratio in row["ratios"].items():
            assert math.isfinite(ratio)
            assert ratio > 0
            assert ratio == pytest.approx(row["published"][measure] / row["ours"][measure])
            assert document["geometric_means"][row["layer"]][measure] == pytest.approx(ratio)
    # Mixed along the first weight with its bias, the middle weight and bias alone, the last weight alone, the last bias with a shift.
    by_hand = (16 * 3) ** 2 + 16**2 + 16**2 + 16**2 + 16 * (16 + 1)
    assert rows["monomial"]["ours"]["trainable_parameters"] == by_hand
    assert all(row["ours"]["trainable_parameters"] == row["published"]["trainable_parameters"] for row in rows.values())
    assert all(0 < row[who]["kept_bytes"] < row[who]["peak_bytes"] for row in rows.values() for who in ("ours", "published"))
    assert [set(row) >= {"ours", "other_order", "published"} for row in document["orders_of_contraction"]] == [True]
    assert "geometric mean" in capsys.readouterr().out


@pytest.mark.slow
def test_message_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = run("message_speed", tmp_path, monkeypatch)
    assert (tmp_path / "message_speed_cpu.json").exists()
    models, comparisons, headline = list_models("invariant"), document["comparisons"], document["headline"]
    assert document["settings"]["models"] == models
    assert list(comparisons) == ["small CNNs", "small SIRENs", "mixed", "small ResNets"]
    for name, rows in comparisons.items():
        able = models if name != "mixed" else [model for model in models if model_entry(model).mixed]
        assert [row["name"] for row in rows] == able
        needs_chain = {row["name"] for row in rows if row["note"]}
        assert needs_chain == ({"magep"} if name == "small ResNets" else set())
    swept = [*itertools.chain(*document["batches"].values()), *document["channels"]]
    measured = [row for row in (*itertools.chain(*comparisons.values()), *headline["rows"], *swept) if row["note"] is None]
    for row in measured:
        assert 0 < row["kept_bytes"] < row["peak_bytes"]
        assert row["networks_per_second"] == pytest.approx(1000 * row["batch"] / row["milliseconds"])
    for rows in document["batches"].values():
        assert [(row["name"], row["batch"]) for row in rows] == list(itertools.product(models, document["settings"]["batches"]))
        # What is kept is kept per network.
        assert all(
            large["kept_bytes"] / small["kept_bytes"] == pytest.approx(2, rel=0.1)
            for small, large in zip(rows[::2], rows[1::2], strict=True)
        )
    passing = [model for model in models if model_entry(model).family == "message passing"]
    assert {row["name"] for row in document["channels"]} == set(passing) == set(document["widths"]["slopes"])

    first, *others = headline["rows"]
    assert first["options"] == {"channels": 8, "rounds": 1}
    assert {"scalegmn, forward", "scalegmn, bidirectional"} < {row["name"] for row in others}
    for row in others:
        ratios = headline["ratios_to_monomial_gnn"][row["name"]]
        assert ratios == {m: pytest.approx(row[m] / first[m]) for m in ("milliseconds", "kept_bytes", "peak_bytes")}
    # Features of neurons alone against features of edges.
    slopes = document["widths"]["slopes"]
    assert slopes["monomial_gnn"]["kept_bytes"] < 1.2
    assert min(slopes[model]["kept_bytes"] for model in ("neural_graph", "scalegmn")) > 1.6
    rows = [row for row in document["widths"]["rows"] if row["name"] == "scalegmn"]
    small, large = rows[0], rows[-1]
    growth = math.log(large["kept_bytes"] / small["kept_bytes"]) / math.log(large["width"] / small["width"])
    assert slopes["scalegmn"]["kept_bytes"] == pytest.approx(growth)
    assert "needs a chain" in capsys.readouterr().out


@pytest.mark.slow
def test_accuracy_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On two zoos of random networks, with one short training per case in a process of its own."""
    import accuracy_prediction as script

    for activation in script.ACTIVATIONS:
        space = WeightSpace.cnn([1, 4, 4], [3], activation)
        thetas = space.sample(48, generator=torch.Generator().manual_seed(0))
        table = {"test_accuracy": thetas[:, -1].sigmoid(), "split": ["train"] * 24 + ["val"] * 12 + ["test"] * 12}
        split = table.pop("split")
        ZooStore.create(tmp_path / "work" / f"zoo-{activation}", space, thetas, table).set_column("split", split)
    case = script.Case("probes", "probes alone", {"probes": 4})
    monkeypatch.setattr(script, "models", lambda: [script.Case(name, name, {}) for name in ("magep", "monomial_gnn")])
    monkeypatch.setattr(script, "ablations", lambda: [script.Case("default", "monomial_gnn", {}), case])
    folders = ["--folder", str(tmp_path / "work"), "--output", str(tmp_path / "results")]
    monkeypatch.setattr(
        sys, "argv", ["accuracy_prediction.py", "--epochs", "1", "--seeds", "1", "--ablation-seeds", "1", "--workers", "1", *folders]
    )

    script.main()
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "runs").glob("*.json")}
    # Two models and one more case of the ablation, on two zoos: the default is trained once for both tables.
    assert len(trained) == 2 * (2 + 1)
    document = json.loads((tmp_path / "results" / "accuracy_prediction.json").read_text())
    assert [row["name"] for row in document["tables"]["models"]] == ["magep", "monomial_gnn"]
    for row in itertools.chain(*document["tables"].values()):
        for activation in script.ACTIVATIONS:
            entry = row[activation]
            assert entry["tau"] == pytest.approx(sum(entry["taus"]) / len(entry["taus"]))
            # Symmetric models do not notice; answers to learned inputs do where scales of float32 do.
            assert entry["largest_change"] <= 1e-3
    assert document["tables"]["models"][1]["relu"] == document["tables"]["ablation"][0]["relu"]
    assert (tmp_path / "results" / "accuracy_prediction.png").read_bytes().startswith(b"\x89PNG")
    assert "relu: monomial_gnn is " in capsys.readouterr().out

    # A second run reads what the first has trained.
    script.main()
    assert {path: path.stat().st_mtime_ns for path in trained} == trained


def test_accuracy_prediction_divides_a_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import accuracy_prediction as script

    def made(path: Path, networks: int, activation: str, seed: int) -> ZooStore:
        space = WeightSpace.mlp([2, 3, 1], activation)
        thetas = space.sample(networks, generator=torch.Generator().manual_seed(seed))
        table = {"test_accuracy": torch.rand(networks), "network": torch.arange(networks).flip(0), "split": ["test"] * networks}
        return ZooStore.create(path, space, thetas, table)

    monkeypatch.setattr(script, "make_cnn_zoo", made)
    store = ZooStore(script.make_zoo(tmp_path, "tanh", 1500))
    split = list(store.table["split"])
    assert [split.count(part) for part in ("train", "val", "test")] == [1024, 120, 356]
    assert len(set(split[:50])) == 3  # divided at random, not in blocks
    monkeypatch.setattr(script, "make_cnn_zoo", lambda *_, **__: pytest.fail("made again"))
    assert script.make_zoo(tmp_path, "tanh", 1500) == store.path


@pytest.mark.slow
def test_real_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Small networks, this version against itself."""
    options = ["--quick", "--baseline", str(BENCHMARKS.parent), "--threads", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["real_networks.py", *options])
    runpy.run_path(str(BENCHMARKS / "real_networks.py"), run_name="__main__")
    document = json.loads((tmp_path / "real_networks.json").read_text())
    assert (tmp_path / "real_networks.png").read_bytes().startswith(b"\x89PNG")
    assert [row["kind"] for row in document["rows"]] == ["graph"] * 2 + ["step"] * 3 + ["trace"] * 2 + ["zoo"] * 4
    for row in document["rows"]:
        for version in ("old", "new"):
            assert row[version].get("seconds", 1) > 0
            assert ("error" in row[version]) != ("seconds" in row[version])
        if "seconds" in row["old"]:
            assert row["old_to_new"]["seconds"] == pytest.approx(row["old"]["seconds"] / row["new"]["seconds"])
    assert all("seconds" in row["new"] for row in document["rows"])
    assert all(row["new"]["relative_to_export"] > 0 for row in document["rows"] if row["kind"] == "trace")
    assert "monomial_gnn on one small ViT" in capsys.readouterr().out


def test_real_networks_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import real_networks
    import real_work

    with real_work.PeakMemory() as memory:
        bytearray(64 * 2**20)
    assert 60 * 2**20 < memory.bytes < 200 * 2**20
    with pytest.raises(SystemExit, match=r"Cannot read commit nothing .*Run this in a git clone"), real_networks.checkouts("nothing"):
        pass
    answers: dict[str, dict[str, Any]] = {"old": {"error": "ValueError: refused"}, "new": {"seconds": 2.0, "bytes": 5e6}}
    monkeypatch.setattr(real_networks.Versions, "run", lambda self, version, task, **_: answers[version])
    results = real_networks.Versions({"old": tmp_path, "new": tmp_path}, 1, 1.0).compare(2, "measure_step")
    rows = [real_networks.row("reading", "step", "under 1 GB", results)]
    assert rows[0]["old_to_new"] == {"seconds": None, "bytes": None}
    answers["old"] = {"seconds": 6.0, "bytes": 20e6}
    results = real_networks.Versions({"old": tmp_path, "new": tmp_path}, 1, 1.0).compare(3, "measure_step")
    rows.append(real_networks.row("again", "step", "", results))
    assert rows[1]["old_to_new"] == {"seconds": 3.0, "bytes": 4.0}
    real_networks.show(rows, "earlier")
    assert "under 1 GB; old: ValueError: refused" in capsys.readouterr().out
    assert len(real_networks.draw(rows, "title").axes) == 1


def test_import_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["import_speed.py", "--quick", "--output", str(tmp_path)])
    runpy.run_path(str(BENCHMARKS / "import_speed.py"), run_name="__main__")
    document = json.loads((tmp_path / "import_speed.json").read_text())
    assert document["files"] == 40
    kinds = ["mixed", "pt", "safetensors", "keras", "onnx"]
    for seconds in (document["seconds"], document["busy_seconds"]):
        assert [*seconds] == kinds
        assert all(value > 0 for values in seconds.values() for value in values)
    printed = capsys.readouterr().out
    assert all(kind in printed for kind in kinds)


def test_real_models_have_the_parameters_of_the_published_ones() -> None:
    from real_models import REAL_MODELS

    known = {"ResNet-18": 11_689_512, "ResNet-50": 25_557_032, "DenseNet-121": 7_978_856, "ViT-B/16": 86_567_656}
    with torch.device("meta"):
        counts = {name: sum(parameter.numel() for parameter in REAL_MODELS[name]().parameters()) for name in known}
    assert counts == known


def test_message_speed_keeps_limits(capsys: pytest.CaptureFixture[str]) -> None:
    import message_speed

    options = argparse.Namespace(device="cpu", dtype="float32", memory=1.0, seconds=0.0, step_seconds=60.0)
    case = message_speed.Case("scalegmn", "scalegmn", message_speed.FULL.workloads[1], 16)
    contestant, row = message_speed.prepare(case, options)
    assert row["parameters"] == sum(p.numel() for p in contestant.model.parameters())
    options.memory = row["peak_bytes"] / 2**30 / 2
    with pytest.raises(message_speed.CannotMeasureError, match="out of memory at batch 16"):
        message_speed.prepare(case, options)
    options.memory, options.step_seconds = 1.0, 0.01
    larger = case._replace(size=64)
    settings = message_speed.QUICK
    (stopped,) = message_speed.sweep({64: larger, 128: case}, (16, row | {"milliseconds": 5.0}), settings, options)
    assert stopped["note"] == "over 0.01 s at batch 64"
    assert stopped["milliseconds"] is None


def test_resnet20() -> None:
    from networks import resnet20

    assert repr(resnet20()) == "WeightSpace(21 groups, 29 layers, 271,690 parameters)"
    space = resnet20(2)
    assert [len(members) for members in space.permutation_classes.values() if len(members) > 1] == [4, 3, 3]
    thetas = space.sample(2, generator=torch.manual_seed(0), dtype=torch.float64)
    inputs = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = torch.stack([run_resnet20(space.unflatten(theta), inputs) for theta in thetas])
    torch.testing.assert_close(space.evaluate(thetas, inputs), expected)
    moved = space.act(space.sample_symmetry(2, generator=torch.manual_seed(1), dtype=torch.float64), thetas)
    torch.testing.assert_close(space.evaluate(moved, inputs), expected)
    assert_invariant(build_model("monomial_gnn", space, 1, channels=8, rounds=2, probes=2), space)


def run_resnet20(p: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    def conv(name: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = p[f"{name}.weight"]
        return F.conv2d(x, weight, p[f"{name}.bias"], stride, weight.shape[-1] // 2)

    x = conv("conv1", x).relu()
    for stage, block in itertools.product((1, 2, 3), (0, 1, 2)):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        skip = conv(f"{name}.downsample", x, stride) if stride > 1 else x
        x = (conv(f"{name}.conv2", conv(f"{name}.conv1", x, stride).relu()) + skip).relu()
    return F.linear(x.mean((2, 3)), p["fc.weight"], p["fc.bias"])


@pytest.mark.parametrize("name", ["NPLinear", "HNPLinear", "MonomialLinear", "MAGEPLinear", "MAGEPInvariant"])
def test_published_layers_commute_with_their_group(name: str) -> None:
    import published

    torch.manual_seed(0)
    sizes = [2, 4, 5, 3]
    layer = getattr(published, name)(sizes, [None] * 3, 2, 3).double()
    weights = [torch.randn(2, 2, n_out, n_in, dtype=torch.float64) for n_in, n_out in itertools.pairwise(sizes)]
    biases = [torch.randn(2, 2, n_out, dtype=torch.float64) for n_out in sizes[1:]]
    elements = [torch.eye(size, dtype=torch.float64) for size in sizes]
    for i in (1, 2):
        elements[i] = elements[i][torch.randperm(sizes[i])]
        if name.startswith("M"):
            elements[i] = elements[i] * torch.tensor([-3.0, 0.5, 2.0, -1.0, 4.0], dtype=torch.float64)[: sizes[i]]

    def move(features: tuple[list[torch.Tensor], list[torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        moved = [
            g_out @ weight @ torch.linalg.inv(g_in) for weight, g_in, g_out in zip(features[0], elements[:-1], elements[1:], strict=True)
        ]
        return moved, [bias @ g.T for bias, g in zip(features[1], elements[1:], strict=True)]

    out, of_moved = layer(weights, biases), layer(*move((weights, biases)))
    torch.testing.assert_close(of_moved, out if isinstance(out, torch.Tensor) else move(out), rtol=1e-10, atol=1e-10)


def test_the_page_shows_the_tables_as_they_are() -> None:
    import readme

    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert readme.filled(page, BENCHMARKS / "results") == page
    shown = re.findall(r"\]\((results/[^)]+)\)", page)
    assert shown
    assert [name for name in shown if not (BENCHMARKS / name).exists()] == []


def test_tables_are_filled_in(tmp_path: Path) -> None:
    import readme

    (tmp_path / "speed.md").write_text("| new |\n")
    page = "Before\n<!-- table: speed -->\n| old |\n| rows |\n<!-- end -->\nafter\n"
    assert readme.filled(page, tmp_path) == "Before\n<!-- table: speed -->\n| new |\n<!-- end -->\nafter\n"
    for wrong in (page.replace("<!-- end -->", ""), page + "<!-- end -->\n"):
        with pytest.raises(ValueError, match="Expected '<!-- end -->' after every"):
            readme.filled(wrong, tmp_path)


@pytest.mark.slow
def test_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = run("alignment", tmp_path, monkeypatch)
    assert list(document["architectures"]) == ["MLP", "CNN", "ResNet", "ResNet with batch norms", "transformer layer"]
    for found in document["architectures"].values():
        assert found["recovered"] == found["networks"] == 1
        for kind in ("left_in_place", "moved"):
            assert all(0.5 < row["median"] <= row["worst"] <= 1 + 1e-9 for row in found[kind].values())
    for name, found in document["between"].items():
        methods = [name for name in found["midpoints"] if "recalibrated" not in name]
        assert methods == ["as trained", "aligned by weights", "aligned by activations"]
        assert len(found["midpoints"]) == (6 if "norms" in name else 3)
        # Functions are kept, so the ends of all lines are as accurate as the networks.
        for method in methods:
            (curve,) = found["curves"][method]
            assert (curve[0] + curve[-1]) / 2 == pytest.approx(found["ends"], abs=0.006)
    assert "Halfway between networks trained apart" in capsys.readouterr().out


@pytest.mark.slow
def test_search_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = run("search_speed", tmp_path, monkeypatch)
    assert [each["networks"] for each in document["results"]] == [40, 40]
    for each in document["results"]:
        assert [row["noise"] for row in each["searches"]] == [0, 0.1, 0.3]
        assert all(row["recall"] == 1 for row in each["searches"])
        assert each["peak_bytes"] > each["index_bytes"] > 0
