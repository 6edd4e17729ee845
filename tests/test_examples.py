import json
import re
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import nn

from wsgraph.bench import bench
from wsgraph.data.generators.architectures import registry as architectures
from wsgraph.nn import registry as models
from wsgraph.space import OPERATORS
from wsgraph.tasks import registry as tasks

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@contextmanager
def unregistered() -> Iterator[None]:
    """What examples register is gone afterwards."""
    registries: list[Any] = [models._MODELS, tasks._TASKS, bench._SUITES, architectures._ARCHITECTURES, OPERATORS]
    before = [registry.copy() for registry in registries]
    try:
        yield
    finally:
        for registry, kept in zip(registries, before, strict=True):
            registry.clear()
            registry.update(kept)


def run(name: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_convert_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("convert_checkpoint.py", monkeypatch=monkeypatch)
    assert "permutation x scale" in capsys.readouterr().out


def test_your_own_layer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with unregistered():
        run("your_own_layer.py", monkeypatch=monkeypatch)
    assert "permutation x scale" in capsys.readouterr().out


@pytest.mark.slow
def test_merge_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("merge_networks.py", str(tmp_path), "2", monkeypatch=monkeypatch)
    midpoints = [float(value) for value in re.findall(r"midpoint ([0-9.]+)", capsys.readouterr().out)]
    assert midpoints[1] > midpoints[0] + 0.1
    assert (tmp_path / "merge.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_train_on_a_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("train_on_a_zoo.py", str(tmp_path), "30", monkeypatch=monkeypatch)
    assert (tmp_path / "robustness.pdf").read_bytes().startswith(b"%PDF")
    assert "monomial_gnn" in capsys.readouterr().out


@pytest.mark.slow
def test_benchmark_your_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("benchmark_your_zoo.py", str(tmp_path), "60", "1", monkeypatch=monkeypatch)
    assert "predicted to be the best" in capsys.readouterr().out
    for name in ("robustness", "costs", "scatter", "map"):
        assert (tmp_path / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert "monomial_gnn" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_tour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    cells = json.loads((EXAMPLES / "tour.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    code = code.replace("%matplotlib inline", "").replace("networks=400", "networks=20").replace("epochs=15", "epochs=1")
    exec(compile(code, "tour.ipynb", "exec"), {})
    assert "canonical forms differ" in capsys.readouterr().out
    shown = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
    assert shown == 4


PAGES = {
    "README.md": 4,
    "docs/checkpoints.md": 8,
    "docs/training.md": 2,
    "docs/zoos.md": 5,
    "docs/layers.md": 2,
    "docs/extending.md": 6,
    "docs/provenance.md": 4,
}
# The same code on less data: only the sizes of zoos and the length of training change.
SMALLER = {"networks=1000": "networks=20", "networks=100": "networks=20", "epochs=30": "epochs=1", "seeds=[0, 1, 2]": "seeds=[0, 1]"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_pages_runs_as_printed(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).state_dict(), "model.safetensors")
    Path("checkpoints").mkdir()
    rows = ["file_name,test_accuracy"]
    for i in range(24):
        save_file(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).state_dict(), f"checkpoints/{i}.safetensors")
        rows.append(f"{i}.safetensors,{i / 24}")
    Path("checkpoints/metadata.csv").write_text("\n".join(rows))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    assert len(blocks) == PAGES[page]
    code = "\n".join(blocks)
    for ours, smaller in SMALLER.items():
        code = code.replace(ours, smaller)
    with unregistered():
        exec(compile(code, page, "exec"), {"__name__": "__main__"})


def test_every_page_is_run_here() -> None:
    assert set(PAGES) == {"README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}


def test_links_and_pictures_of_the_pages_are_there() -> None:
    for page in (*PAGES, "benchmarks/README.md"):
        text = (ROOT / page).read_text()
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_every_example_is_run_here() -> None:
    text = Path(__file__).read_text()
    assert all(f'"{path.name}"' in text for path in EXAMPLES.iterdir() if path.is_file())
