import re
import runpy
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import nn

from wsgraph.nn import registry

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_convert_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("convert_checkpoint.py", monkeypatch=monkeypatch)
    assert "permutation x scale" in capsys.readouterr().out


def test_your_own_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        run("your_own_layer.py", monkeypatch=monkeypatch)
    finally:
        registry._MODELS.pop("path_norm", None)
    assert "permutation x scale" in capsys.readouterr().out


@pytest.mark.slow
def test_merge_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("merge_networks.py", str(tmp_path), "2", monkeypatch=monkeypatch)
    midpoints = [float(value) for value in re.findall(r"midpoint ([0-9.]+)", capsys.readouterr().out)]
    assert midpoints[1] > midpoints[0] + 0.1
    assert (tmp_path / "merge.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_train_on_a_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("train_on_a_zoo.py", str(tmp_path), "60", monkeypatch=monkeypatch)
    assert (tmp_path / "robustness.pdf").read_bytes().startswith(b"%PDF")
    assert "monomial_gnn" in capsys.readouterr().out


@pytest.mark.slow
def test_readme_code_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    save_file(module.state_dict(), "model.safetensors")
    blocks = re.findall(r"```python\n(.*?)```", (EXAMPLES.parent / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 8
    # The same code on less data: only the size of the zoo and the length of training change.
    code = "\n".join(blocks).replace("networks=1000", "networks=20").replace("epochs=30", "epochs=1")
    exec(compile(code, "README.md", "exec"), {})
    assert "permutation x scale" in capsys.readouterr().out


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{path.name}"' in text for path in EXAMPLES.glob("*.py"))
