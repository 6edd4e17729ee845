import base64
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.tasks.test_generalization import make_store, train
from tests.test_import import modules_after
from wsgraph.cli import app
from wsgraph.options import command_text, known_options
from wsgraph.report import write_report
from wsgraph.tasks import Generalization

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&"
MACHINE = {"processor": "A chip", "cores": 2, "torch": "2.13.0"}


def write_run(folder: Path, model: str = "np", seed: int = 0, losses: Sequence[float] = (), **more: Any) -> Path:
    config = {"model": model, "zoo": more.pop("zoo", "mine"), "seed": seed, "epochs": 2, "scales": [1.0, 10.0, 10000.0]}
    config |= {"networks": {"train": 60, "val": 20, "test": 20}, **more.pop("config", {})}
    metrics = {"tau": 0.7, "r2": 0.5, "tau_scale_1": 0.7, "tau_scale_10": 0.6, "tau_scale_10000": 0.1, "parameters": 1200.0}
    metrics |= {"peak_memory_mb": 2.5, "seconds_per_epoch": 0.25, **more.pop("metrics", {})}
    folder.mkdir(parents=True, exist_ok=True)
    call = {"call": more.pop("call")} if "call" in more else {}
    document = {"task": more.pop("task", "generalization"), "config": config, "metrics": metrics, "machine": MACHINE, **call}
    (folder / "result.json").write_text(json.dumps(document))
    if losses:
        rows = [f"{epoch},,{loss}\n{epoch},0.5,\n" for epoch, loss in enumerate(losses)]
        (folder / "metrics.csv").write_text("epoch,train_loss,val_loss\n" + "".join(rows))
    return folder


class Page(HTMLParser):
    """What a page holds: its elements, the text of everything, and tables as rows of cells."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def points(self) -> dict[str, int]:
        labels = [attributes["aria-label"] for _, attributes in self.elements if attributes.get("class") == "point"]
        return {label: labels.count(label) for label in labels}

    def best(self) -> list[str]:
        return re.findall(r'class="number best"[^>]*><span class="hidden">best: </span>([^<]*)', self.source)


def report(path: Path, *runs: Path, title: str | None = None) -> Page:
    write_report(path, runs, title=title)
    return Page(path)


# == Content ==


def test_seeds_become_one_row_with_mean_and_standard_error(tmp_path: Path) -> None:
    for seed, tau in enumerate((0.6, 0.7, 0.8)):
        write_run(tmp_path / "runs" / f"np-{seed}", "np", seed, metrics={"tau": tau})
    write_run(tmp_path / "runs" / "mlp", "mlp", 0, metrics={"tau": 0.5, "peak_memory_mb": 1.5})
    page = report(tmp_path / "report.html", tmp_path / "runs")
    head, *rows = page.tables[0][1:]
    assert head[:3] == ["model", "tau", "r2"]
    assert [row[0] for row in rows] == ["np", "mlp"]
    assert dict(zip(head, rows[0], strict=True))["tau"] == "best: 0.700 ± 0.058"
    assert dict(zip(head, rows[0], strict=True))["seeds"] == "0, 1, 2"
    assert dict(zip(head, rows[1], strict=True))["tau"] == "0.500"
    assert page.best() == ["0.700", "1.50"]  # higher is better for tau, lower for memory; all other columns are tied
    assert "2 models in 4 training runs of generalization" in page.text


def test_options_that_differ_tell_rows_of_a_model_apart(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "np", config={"learning_rate": 0.01, "model_options": {"channels": [8, 8]}})
    write_run(tmp_path / "b", "np", config={"learning_rate": 0.001, "model_options": {"channels": [8, 8]}})
    write_run(tmp_path / "c", "mlp", config={"learning_rate": 0.01, "model_options": {"hidden": 8}})
    page = report(tmp_path / "report.html", tmp_path)
    assert {row[0] for row in page.tables[0][2:]} == {"np, learning_rate=0.01", "np, learning_rate=0.001", "mlp"}
    assert "Beside the model, runs differ in learning_rate." in page.text


def test_runs_on_other_networks_are_other_comparisons(tmp_path: Path) -> None:
    write_run(tmp_path / "a", zoo="first")
    write_run(tmp_path / "b", zoo="second")
    write_run(tmp_path / "c", task="inr_editing", config={"operation": "dilate"}, metrics={"mse": 0.01})
    page = report(tmp_path / "report.html", tmp_path, title="Mine")
    assert "<title>Mine</title>" in page.source
    headings = re.findall(r"<h2>(.*?)</h2>", page.source)
    assert headings == ["generalization on first", "generalization on second", "inr_editing (dilate) on mine", "Machines and versions"]


def test_missing_scores_are_dashes_and_sort_last(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "first", metrics={"tau": None, "r2": float("nan")})
    write_run(tmp_path / "b", "second", metrics={"tau": 0.2, "r2": "broken"})
    write_run(tmp_path / "c", "third", metrics={"tau": 0.3, "r2": None})
    page = report(tmp_path / "report.html", tmp_path)
    rows = page.tables[0][2:]
    assert [row[:3] for row in rows] == [["third", "best: 0.300", "-"], ["second", "0.200", "-"], ["first", "-", "-"]]
    assert "nan" not in page.source.lower().replace("isnan", "")


def test_curves_and_costs_are_drawn_from_the_data(tmp_path: Path) -> None:
    for seed, tau in enumerate((0.5, 0.7)):
        write_run(tmp_path / f"np-{seed}", "np", seed, losses=[0.4, 0.2 + 0.1 * seed], metrics={"tau_scale_10": tau})
    write_run(tmp_path / "mlp", "mlp", 0, metrics={"peak_memory_mb": 9.0})
    points = report(tmp_path / "report.html", tmp_path).points()
    assert "np, s = 10: 0.600 ± 0.100" in points
    assert "np, 2.50 MB: 0.700 ± 0.000" in points
    assert "mlp, 9.00 MB: 0.700" in points
    assert "np, epoch 2: 0.25 ± 0.05" in points
    assert "np, epoch 1: 0.4 ± 0" in points


def test_logs_of_all_attempts_make_one_curve(tmp_path: Path) -> None:
    write_run(tmp_path / "a", losses=[9.0, 0.2])
    (tmp_path / "a" / "metrics.1.csv").write_text("epoch,train_loss,val_loss\n0,,0.5\n1,,0.4\n")
    (tmp_path / "a" / "metrics.csv").write_text("epoch,train_loss,val_loss\n1,,0.25\n2,,0.125\n")
    points = report(tmp_path / "report.html", tmp_path).points()
    assert {label for label in points if "epoch" in label} == {f"np, epoch {i}: {loss}" for i, loss in ((1, 0.5), (2, 0.25), (3, 0.125))}


def test_the_order_of_what_is_given_does_not_matter(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run{i}", model, i, losses=[0.3, 0.2]) for i, model in enumerate(["np", "mlp", "np", "statnn"])]
    folders += [RESULTS / "memory.json", RESULTS / "generalization.json"]
    write_report(tmp_path / "a.html", folders)
    write_report(tmp_path / "b.html", [*reversed(folders), folders[0], folders[0] / "result.json"])
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def called(task: str, options: dict[str, Any], plugins: Sequence[str] = (), **unwritten: str) -> dict[str, Any]:
    """What a run records of its call."""
    call = {"task": task, "options": options, "unwritten": unwritten, "plugins": list(plugins)}
    return {**call, "command": command_text(call, known_options(Generalization))}


def test_commands_repeat_the_runs(tmp_path: Path) -> None:
    options = {"zoo": "far away/mine", "model": "np", "epochs": 2, "scales": [1.0, 10000.0], "augment_scale": 100.0, "train_size": 60}
    options |= {"canonicalize": ["scale"], "standardize": True, "test_zoos": {"other": "far away/other"}, "learning_rate": 0.0012345678}
    config = {"seed": 3, "batch_size": 64, "learning_rate": 0.0012345678}
    write_run(tmp_path / "a", config=config, call=called("generalization", options, ["mine.py"]))
    options = {"zoo": "mine", "model": "mlp", "seed": 0, "model_options": {"hidden": 8, "name": "it's"}}
    write_run(tmp_path / "b", "mlp", call=called("generalization", options, ["mine.py"]))
    write_run(tmp_path / "c", "statnn", call=called("generalization", {"zoo": "mine"}, augment="WeightNoise(std=0.5)"))
    write_run(tmp_path / "d", "hnp")  # not known how it was called
    longer = {"continued_from": [10], "epochs": 30}
    write_run(tmp_path / "e", "magep", config=longer, call=called("generalization", {"zoo": "mine", "epochs": 30, "seed": 0}))
    page = report(tmp_path / "report.html", tmp_path)
    assert (
        "wsgraph --plugin mine.py train generalization --zoo 'far away/mine' --model np --epochs 2 --scale 1 --scale 10000 "
        "--augment-scale 100 --train-size 60 --canonicalize scale --standardize --test-zoo 'other=far away/other' "
        "--learning-rate 0.0012345678\n"
    ) in page.text
    assert (
        "wsgraph --plugin mine.py train generalization --zoo mine --model mlp --seed 0 --model-option hidden=8 --model-option 'name=it"
    ) in page.text
    assert 'run("generalization", zoo="mine")\'  # augment=WeightNoise(std=0.5)' in page.text
    assert "--epochs 30 --seed 0  # continued from a run of 10 epochs: first that, then this with --resume" in page.text
    assert "--model hnp" not in page.text


def test_runs_of_zoos_of_one_name_are_other_comparisons(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_run(tmp_path / name, config={"zoo_digest": name})
    headings = re.findall(r"<h2>(.*?)</h2>", report(tmp_path / "report.html", tmp_path).source)
    assert headings == ["generalization on mine", "generalization on mine", "Machines and versions"]


def test_seeds_whose_training_networks_differ_in_spread_are_one_row(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed=seed, config={"standardize": {"weight": 0.1 + seed}})
    rows, *_ = report(tmp_path / "report.html", tmp_path).tables
    assert sum(row[0].startswith("np") for row in rows) == 1


def test_runs_of_the_quick_start_are_not_counted_twice(tmp_path: Path) -> None:
    run = write_run(tmp_path / "np", losses=[0.4, 0.3])
    document = {"zoo": {"configuration": {"networks": 800}}, "results": [json.loads((run / "result.json").read_text())]}
    (tmp_path / "quickstart.json").write_text(json.dumps(document))
    page = report(tmp_path / "report.html", tmp_path)
    assert "1 model in 1 training run of" in page.text
    assert "wsgraph quickstart --networks 800 --epochs 2 --seed 0" in page.text
    assert "np, epoch 2: 0.3" in page.points()


def test_cells_of_a_benchmark_are_left_to_its_results(tmp_path: Path) -> None:
    write_run(tmp_path / "cells" / "one" / "run", "of a cell")
    (tmp_path / "cells" / "one" / "cell.json").write_text('{"task": "generalization", "metrics": {}}')
    write_run(tmp_path / "runs" / "np")
    assert "of a cell" not in report(tmp_path / "report.html", tmp_path).text
    assert "of a cell" in report(tmp_path / "report.html", tmp_path / "cells" / "one" / "run").text


@pytest.fixture(scope="module")
def benchmark_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(tmp_path_factory.mktemp("page") / "report.html", RESULTS)


def test_suites_of_the_benchmark(benchmark_page: Page) -> None:
    found = json.loads((RESULTS / "generalization.json").read_text())
    gnn = [row for row in found["results"] if (row["model"], row["zoo"], row["variant"]) == ("monomial_gnn", "relu", "original")]
    mean = sum(run["metrics"]["tau"] for run in gnn[0]["runs"]) / 3
    row = next(row for table in benchmark_page.tables for row in table if row[0] == "monomial_gnn" and len(row) == 6)
    assert row[1].startswith(f"best: {mean:.3f} ±")
    for command in ("generalization --full", "robustness --full", "parameters", "invariance", "memory --full"):
        assert f"wsgraph bench {command} --output benchmarks/results" in benchmark_page.text
    # Curves of the trainings that two suites share are drawn once, those of the mixed zoo by the suite that has it.
    assert benchmark_page.points()["statnn, s = 1000: 0.515 ± 0.014"] == 1
    assert benchmark_page.text.count("mixed zoo, original") > 0
    memory = base64.b64encode((RESULTS / "memory.png").read_bytes()).decode()
    assert f"data:image/png;base64,{memory}" in benchmark_page.source
    assert "reads networks of one architecture" in benchmark_page.text
    assert "30,096" in benchmark_page.text  # a table that only the Markdown file has


def test_failed_seeds_are_counted(tmp_path: Path) -> None:
    document = json.loads((RESULTS / "generalization.json").read_text())
    row = next(row for row in document["results"] if row["model"] == "np" and row["runs"])
    row |= {"runs": row["runs"][:2], "error": "Training diverged."}
    (tmp_path / "generalization.json").write_text(json.dumps(document))
    page = report(tmp_path / "report.html", tmp_path)
    assert "(2 seeds)" in page.text
    assert "np on relu: Training diverged." in page.text


def test_values_of_other_kinds_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path / "a", config={"networks": 3, "test_zoos": 3, "scales": None, "seed": None, "epochs": "\ud800"})
    memory = json.loads((RESULTS / "memory.json").read_text())
    memory["costs"]["relu CNN"] |= {"np": None, "mlp": {"milliseconds": "fast"}}
    memory["costs"] |= {"other": 3, "empty": {}}
    (tmp_path / "memory.json").write_text(json.dumps(memory | {"machine": None, "size": []}))
    (tmp_path / "mine.json").write_text('{"suite": "mine", "results": [{"runs": [3]}, 3]}')
    page = report(tmp_path / "report.html", tmp_path)
    assert "Benchmark: mine" in page.text
    assert next(row for row in page.tables[1] if row[0] == "np")[1:3] == ["-", "-"]


# == Safety ==


def everything_hostile(folder: Path) -> Path:
    for seed in (0, 1):
        more = {"operation": HOSTILE, "model_options": {HOSTILE: HOSTILE}, "augment": HOSTILE, "test_zoos": {HOSTILE: HOSTILE}}
        write_run(
            folder / f"run{seed}",
            HOSTILE,
            seed,
            losses=[0.3, 0.2],
            zoo=HOSTILE,
            task=HOSTILE,
            config=more,
            metrics={HOSTILE: 1.0, f"tau_on_{HOSTILE}": 0.5},
        )
    document = json.loads((RESULTS / "generalization.json").read_text())
    for row in document["results"]:
        row |= {"zoo": HOSTILE, "error": HOSTILE, "model": row["model"] + HOSTILE}
    document |= {"suite": HOSTILE, "command": HOSTILE, "machine": {HOSTILE: HOSTILE}, "size": {HOSTILE: HOSTILE}}
    (folder / "a.json").write_text(json.dumps(document))
    (folder / "a.md").write_text(f"{HOSTILE}\n\n| model | {HOSTILE} |\n| --- | --- |\n| np | {HOSTILE} |\n")
    return folder


def test_names_from_files_are_only_text(tmp_path: Path) -> None:
    page = report(tmp_path / "report.html", everything_hostile(tmp_path / "runs"), title=HOSTILE)
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not any(tag == "img" for tag, _ in page.elements)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert escape(HOSTILE) in page.source
    assert HOSTILE not in page.source


def test_nothing_is_requested(benchmark_page: Page) -> None:
    for tag, attributes in benchmark_page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "action", "data", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attributes)
    policy = next(attributes["content"] for _, attributes in benchmark_page.elements if attributes.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    style = benchmark_page.source.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.search(r"https?://", benchmark_page.source)


# == Errors ==


def test_errors_name_the_path_and_what_to_do(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    with pytest.raises(ValueError, match="Expected 'runs' with at least one folder or file"):
        write_report(target, [])
    with pytest.raises(FileNotFoundError, match=r"There is no file or folder '.*nowhere'. Name a folder that `wsgraph train`"):
        write_report(target, [tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"Expected results of .* in the folder '.*empty' \(found none\). Name a folder that holds a result.json"
    ):
        write_report(target, [tmp_path / "empty"])
    (tmp_path / "other.json").write_text('{"machine": {}}')
    with pytest.raises(ValueError, match=r"as the file '.*other.json' \(found none\)"):
        write_report(target, [tmp_path / "other.json"])
    (tmp_path / "empty" / "result.json").write_text('{"task": "gen')
    with pytest.raises(ValueError, match=r"result.json' is damaged: expected JSON .* Remove it, or repeat the command"):
        write_report(target, [tmp_path / "empty"])
    run = write_run(tmp_path / "run", losses=[0.3])
    (run / "metrics.csv").write_text("epoch,val_loss\n0,much\n")
    with pytest.raises(
        ValueError, match=r"metrics.csv' is damaged: expected numbers as 'epoch' and 'val_loss' .* Remove it to leave out its curve"
    ):
        write_report(target, [run])
    (tmp_path / "suite.json").write_text('{"suite": "mine"}')
    (tmp_path / "suite.md").write_text("| a | b |\n| --- | --- |\n| 1 |\n")
    with pytest.raises(ValueError, match=r"suite.md' is damaged: expected rows of 2 cells"):
        write_report(target, [tmp_path / "suite.json"])
    assert not target.exists()
    (run / "metrics.csv").unlink()
    with pytest.raises(OSError, match=r"Cannot write to .*Choose a path in a folder that you may write to"):
        write_report(tmp_path / "nowhere" / "report.html", [run])


def test_command(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "np")
    arguments = ["report", str(tmp_path / "runs"), "--output", str(tmp_path / "report.html"), "--title", "Two models"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "<h1>Two models</h1>" in (tmp_path / "report.html").read_text()
    failed = CliRunner().invoke(app, ["report", str(tmp_path / "missing")])
    assert failed.exit_code == 1
    assert "Error: There is no file or folder" in failed.output


def test_a_report_does_not_wait_for_pytorch() -> None:
    assert not {"torch", "lightning", "matplotlib", "scipy"} & modules_after("import wsgraph.report")


# == In a browser ==

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium, chromium-browser or google-chrome on the path")

# Runs in a copy of the page, and leaves what it finds where --dump-dom prints it.
PROBE = """
<script>
const found = {errors: [], tables: []};
addEventListener("error", (event) => found.errors.push(event.message));
console.error = (...parts) => found.errors.push(parts.join(" "));
addEventListener("load", () => {
  found.page = document.documentElement.scrollWidth;
  found.window = innerWidth;
  const table = document.querySelector("table"), heads = Array.from(table.querySelectorAll("th[aria-sort]"));
  const rows = () => Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent);
  const state = () => [heads.map((head) => head.getAttribute("aria-sort")), rows()];
  found.tables.push(state());
  for (const column of PRESSED) { heads[column].querySelector("button").click(); found.tables.push(state()); }
  const key = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  document.querySelector(".chart .point[tabindex='0']").focus();
  const tip = document.activeElement.closest(".chart").querySelector(".tip");
  found.tip = tip.textContent;
  key("ArrowRight");
  found.next = tip.textContent;
  found.inside = tip.getBoundingClientRect().right <= innerWidth;
  key("Escape");
  found.hidden = tip.hidden;
  const button = document.querySelector(".legend button");
  button.click();
  found.dimmed = document.querySelectorAll(".series.dim").length;
  button.click();
  found.bright = document.querySelectorAll(".series.dim").length;
  const shown = () => Array.from(document.querySelectorAll(".costs [data-choice]"), (each) => getComputedStyle(each).display !== "none");
  found.choices = [shown()];
  document.querySelector('.costs input[value="1"]').click();
  found.choices.push(shown());
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.append(out);
});
</script>
"""

MEASURE = """
<script>
document.querySelector("iframe").onload = (event) => {
  const page = event.target.contentWindow;
  document.title = `width ${page.innerWidth} ${page.document.documentElement.scrollWidth}`;
};
</script>
"""


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    profile = page.parent / "profile"
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    command = [
        BROWSER,
        "--headless=new",
        *sandbox,
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={profile}",
    ]
    command += ["--enable-logging=stderr", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probed(page: Path, pressed: Sequence[int], *options: str) -> dict[str, Any]:
    """What the probe finds in a copy of a page, whose policy would not let it run."""
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    copy = page.with_name("probed.html")
    copy.write_text(source.replace("<head>", "<head>" + PROBE.replace("PRESSED", json.dumps(list(pressed))), 1), encoding="utf-8")
    match = re.search(r'<pre id="found">([\w+/=]+)</pre>', browse(copy, "--dump-dom", *options).stdout)
    assert match is not None
    found: dict[str, Any] = json.loads(base64.b64decode(match[1]))
    return found


@in_browser
def test_tables_sort_and_charts_answer_in_a_browser(tmp_path: Path) -> None:
    scores = {"alpha": 0.5, "beta": None, "gamma": 0.65, "delta": -0.2}
    for i, (model, tau) in enumerate(scores.items()):
        write_run(tmp_path / model, model, losses=[0.4, 0.2], metrics={"tau": tau, "tau_scale_1": tau, "parameters": 10.0 ** (4 - i)})
    write_report(tmp_path / "report.html", [tmp_path])
    head = Page(tmp_path / "report.html").tables[0][1]
    found = probed(tmp_path / "report.html", [1, 1, 0, head.index("parameters"), head.index("parameters")])
    assert found["errors"] == []
    states, orders = zip(*found["tables"], strict=True)
    assert orders[0] == ["gamma", "alpha", "delta", "beta"]  # the best first, as written
    assert orders[1] == ["delta", "alpha", "gamma", "beta"]  # what is missing stays last
    assert orders[2] == orders[0]
    assert orders[3] == ["alpha", "beta", "delta", "gamma"]
    assert orders[4] == ["alpha", "beta", "gamma", "delta"]  # 10000 before 1000: as numbers, not as text
    assert orders[5] == orders[4][::-1]
    assert [state[1] for state in states[:4]] == ["descending", "ascending", "descending", "none"]
    assert states[3][0] == "ascending"
    assert found["tip"].startswith("s = 1")
    assert "0.500" in found["tip"]
    assert found["next"].startswith("s = 10")
    assert found["hidden"]
    assert found["dimmed"] > 0
    assert found["bright"] == 0
    assert found["choices"][0] == [True, False, False]
    assert found["choices"][1] == [False, True, False]


@in_browser
def test_pages_fit_a_phone_and_log_nothing_in_a_browser(tmp_path: Path) -> None:
    everything_hostile(tmp_path / "runs")
    write_report(tmp_path / "report.html", [RESULTS, tmp_path / "runs"])
    whole = browse(tmp_path / "report.html", "--dump-dom")
    assert "CONSOLE" not in whole.stderr
    assert '<html lang="en" class="js">' in whole.stdout  # its policy lets its script run
    assert "<title>taken" not in whole.stdout
    # Windows are never narrower than 500 pixels, frames are. The outer page must read the inner one: it holds its source.
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (tmp_path / "report.html").read_text(encoding="utf-8"))
    wrapper = tmp_path / "wrapper.html"
    frame = f'<iframe style="width:390px;height:800px;border:0" srcdoc="{escape(source)}"></iframe>'
    wrapper.write_text(frame + MEASURE, encoding="utf-8")
    widths = re.search(r"<title>width (\d+) (\d+)</title>", browse(wrapper, "--dump-dom").stdout)
    assert widths is not None
    assert int(widths[2]) <= int(widths[1]) == 390


@in_browser
def test_real_runs_in_a_browser(tmp_path: Path) -> None:
    store = make_store(tmp_path / "zoo")
    for model in ("statnn", "monomial_gnn"):
        train(store, tmp_path / "runs" / model, model, scales=[1, 100])
    page = report(tmp_path / "report.html", tmp_path / "runs")
    taus = [json.loads((tmp_path / "runs" / model / "result.json").read_text())["metrics"]["tau"] for model in ("statnn", "monomial_gnn")]
    assert all(math.isfinite(tau) and f"{tau:.3f}" in page.text for tau in taus)
    found = probed(tmp_path / "report.html", [0], "--window-size=1200,900")
    assert found["errors"] == []
    assert found["page"] <= found["window"]
    assert found["inside"]
