"""Our layers against the published ones, and the command that compares them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.reference import RECIPES, TOLERANCE, compare, load, main

VECTORS = Path(__file__).parents[1] / "data" / "vectors"
FILES = {path.stem: path for path in sorted(VECTORS.glob("*.safetensors"))}


@pytest.mark.parametrize("name", FILES)
def test_layers_compute_what_the_published_ones_do(name: str) -> None:
    assert compare(*load(FILES[name])) <= TOLERANCE == 1e-9


SIZES: list[tuple[list[int], list[list[int] | None]]] = [
    ([3, 4, 5], [None, None]),
    ([2, 4, 3, 5, 3], [[3, 2], [2, 2], None, None]),
    ([2, 4, 3, 2], [[5], [3], [2]]),
    ([1, 4, 3, 3, 2, 2], [[2, 2, 2], [1, 2, 1], [3, 1, 1], [1, 1, 1], None]),
    ([60, 4, 3, 3, 2], [None] * 4),
]


@pytest.mark.parametrize(("sizes", "kernels"), SIZES)
@pytest.mark.parametrize(
    ("name", "yardstick"),
    [
        ("NPLinear", "NPLinear"),
        ("HNPLinear", "HNPLinear"),
        ("HNPSLinear", "MonomialLinear"),
        ("HNPSMixerLinear", "MAGEPLinear"),
        ("HNPSMixerInv", "MAGEPInvariant"),
    ],
)
def test_other_sizes_against_the_yardstick_of_the_benchmarks(
    name: str, yardstick: str, sizes: list[int], kernels: list[list[int] | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The vectors have one input or no kernels, and dense outputs; here inputs, outputs and kernel positions are all several.
    monkeypatch.syspath_prepend(VECTORS.parents[2] / "benchmarks")
    import published

    if "Mixer" in name:
        kernels = [None] * len(kernels)
    torch.manual_seed(0)
    layer = getattr(published, yardstick)(sizes, kernels, 2, 3).double()
    weights = [
        torch.randn(2, 2, rows, columns, *(kernel or ()), dtype=torch.float64)
        for columns, rows, kernel in zip(sizes, sizes[1:], kernels, strict=False)
    ]
    biases = [torch.randn(2, 2, rows, dtype=torch.float64) for rows in sizes[1:]]
    with torch.no_grad():
        output = layer(weights, biases)
    results = {"out": output if isinstance(output, tuple) else ([], []), "in": (weights, biases)}
    tensors = {
        f"{side}.{kind}.{i}": values
        for side, lists in results.items()
        for kind, part in zip(("weight", "bias"), lists, strict=True)
        for i, values in enumerate(part)
    }
    if isinstance(output, Tensor):
        tensors["out.value"] = output
    tensors |= {f"param.{key}": values for key, values in layer.state_dict().items()}
    meta = {"layer": name, "layer_sizes": sizes, "kernels": kernels, "in_channels": 2, "out_channels": 3}
    largest = max(float(values.abs().max()) for key, values in tensors.items() if key.startswith("out"))
    assert compare(meta, tensors) <= 1e-12 * max(1, largest)


def test_every_layer_has_a_vector() -> None:
    assert {name.split("__")[0] for name in FILES} == set(RECIPES)


def write(folder: Path, name: str, tensors: dict[str, Tensor], **changes: Any) -> Path:
    """A copy of a vector with other tensors or metadata."""
    meta, _ = load(FILES[name])
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, {"meta": json.dumps(meta | changes)})
    return path


def test_command_on_good_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("NPPool__mlp_2_8_8_1", "HNPSLinear__mlp_3_7_5_6_4"):
        shutil.copy(FILES[name], tmp_path)
    assert main([str(tmp_path), str(FILES["StatFeaturizer__mlp_2_8_8_1"])]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = [["HNPSLinear", "mlp_3_7_5_6_4"], ["NPPool", "mlp_2_8_8_1"], ["StatFeaturizer", "mlp_2_8_8_1"]]
    assert [line[:2] for line in lines] == expected
    assert all(len(line) == 3 and float(line[2]) < 1e-12 for line in lines)


@pytest.mark.parametrize(
    "name, key",
    [
        ("NPLinear__mlp_3_7_5_6_4", "out.bias.2"),
        ("HNPSMixerInv__cnn_1_4_5_6_10", "out.value"),
        ("HNPSMixerInv__cnn_1_4_5_6_10", "mid.0.weight.1"),
        ("HNPSPool__mlp_2_8_8_1", "param.regularize_W_1.bias"),
    ],
)
def test_command_notices_a_small_change(name: str, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load(FILES[name])[1]
    tensors[key].view(-1)[0] += 1e-6
    assert main([str(write(tmp_path, name, tensors))]) == 1
    layer, spec, error, *verdict = capsys.readouterr().out.split()
    assert f"{layer}__{spec}" == name
    assert 1e-9 < float(error) < 1e-5
    assert verdict == ["exceeds", "1e-09"]


def test_command_tells_why_a_file_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "NPPool__mlp_2_8_8_1"
    tensors = load(FILES[name])[1]

    def line(path: Path) -> str:
        assert main([str(path)]) == 1
        (text,) = capsys.readouterr().out.splitlines()
        return text

    assert "NPPool__mlp_2_8_8_1.safetensors: ValueError: unknown layer 'Mixer'; known are NP" in line(
        write(tmp_path, name, tensors, layer="Mixer")
    )
    assert "should have the shape (9, 8) (got (8, 8))" in line(write(tmp_path, name, tensors, layer_sizes=[2, 8, 9, 1]))
    assert "outputs 'value' should have the shape (1,) (got (2, 3, 6))" in line(
        write(tmp_path, name, tensors | {"out.value": torch.zeros(1)})
    )
    assert "should have the shape (2, 3) (got None)" in line(write(tmp_path, name, tensors | {"out.extra": torch.zeros(2, 3)}))
    save_file(tensors, tmp_path / "plain.safetensors")
    assert "plain.safetensors: ValueError: no metadata entry 'meta'" in line(tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("not a tensor file")
    assert "text.safetensors: SafetensorError: " in line(tmp_path / "text.safetensors")
    assert "none.safetensors: FileNotFoundError: " in line(tmp_path / "none.safetensors")
    (tmp_path / "empty").mkdir()
    assert "empty: holds no *.safetensors" in line(tmp_path / "empty")


def test_command_compares_the_rest_after_a_bad_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "A.safetensors").write_text("")
    shutil.copy(FILES["NPPool__mlp_2_8_8_1"], tmp_path)
    assert main([str(tmp_path)]) == 1
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("A.safetensors: ")
    assert second.startswith("NPPool  ")


@pytest.mark.parametrize(
    "name", [name for name in FILES if "mlp" in name and any(key.startswith("param.") for key in load(FILES[name])[1])]
)
def test_every_published_parameter_is_needed(name: str) -> None:
    meta, tensors = load(FILES[name])
    for key in [key for key in tensors if key.startswith("param.")]:
        rest = {other: tensor for other, tensor in tensors.items() if other != key}
        with pytest.raises(ValueError, match=r"published parameter .*: missing|parameters of our layer that nothing fills"):
            compare(meta, rest)


def test_parameters_without_a_place_and_of_other_shapes() -> None:
    meta, tensors = load(FILES["NPLinear__mlp_3_7_5_6_4"])
    with pytest.raises(ValueError, match=r"published parameters without a place in our layer: layer_9_r\.weight"):
        compare(meta, tensors | {"param.layer_9_r.weight": torch.zeros(4, 9, 1)})
    with pytest.raises(ValueError, match=r"published parameter 'bias_0\.bias': .*"):
        compare(meta, tensors | {"param.bias_0.bias": torch.zeros(8)})


def test_nan_outputs_are_counted() -> None:
    meta, tensors = load(FILES["StatFeaturizer__mlp_2_8_8_1"])
    assert meta["nan_outputs"] == int(tensors["out.value"].isnan().sum()) == 6
    with pytest.raises(ValueError, match="6 published outputs are NaN, not 5"):
        compare(meta | {"nan_outputs": 5}, tensors)
    tensors["in.weight.0"][0, 0, 0, 0] = torch.nan  # ours is then NaN too, where the published output is not
    assert compare(meta, tensors) > 1
