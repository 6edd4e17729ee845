"""Training with several processes: the result of one process with the same batches, and nothing written twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tasks.test_generalization import make_store, train
from wsgraph.data import DataLoader

ROOT = Path(__file__).parents[2]

_SCRIPT = """
import sys
from tests.tasks.test_generalization import train
store, output, devices = sys.argv[1:]
options = {"channels": 8, "layers": 1, "dropout": 0.0}
for _ in range(2):  # the second call returns the result of the first, in all processes
    result = train(store, output, "neural_graph", epochs=3, scales=[1], model_options=options, devices=int(devices), accelerator="cpu")
    assert str(result.folder) == output
"""


def _run(command: list[str]) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "RANK", "LOCAL_RANK"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "devices"])
def test_two_processes_give_the_result_of_one(tmp_path: Path, launcher: str) -> None:
    # 97 training networks in batches of 32: of the last batch, one network is left for two processes.
    store = make_store(tmp_path / "zoo", networks=194)
    assert len(store.split("train")) % 32 == 1
    options = {"channels": 8, "layers": 1, "dropout": 0.0}
    one = train(store, tmp_path / "one", "neural_graph", epochs=3, scales=[1], model_options=options, accelerator="cpu")
    (tmp_path / "script.py").write_text(_SCRIPT)
    arguments = [str(tmp_path / "script.py"), str(store.path), str(tmp_path / "two")]
    if launcher == "torchrun":
        _run(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments, "1"])
    else:
        _run([*arguments, "2"])
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    for name in ("tau", "r2", "best_epoch", "parameters"):
        assert two["metrics"][name] == pytest.approx(one.metrics[name], abs=1e-4), name
    first, second = (torch.load(tmp_path / name / "best.ckpt", weights_only=True)["state_dict"] for name in ("one", "two"))
    for name, values in first.items():
        torch.testing.assert_close(second[name], values, rtol=1e-3, atol=1e-5)
    logs = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("one", "two")]
    assert logs[0][0] == logs[1][0]
    assert len(logs[0]) == len(logs[1])
    for mine, theirs in zip(logs[0][1:], logs[1][1:], strict=True):
        numbers = [[float(value) for value in line.split(",") if value] for line in (mine, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5)
    assert {path.name for path in (tmp_path / "one").glob("[!.]*")} == {path.name for path in (tmp_path / "two").glob("[!.]*")}


def test_every_process_gets_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_store(tmp_path / "zoo", networks=20).dataset()
    whole = list(DataLoader(dataset, 7, shuffle=True, generator=torch.Generator().manual_seed(1)))
    assert all("num_counted" not in batch for batch in whole)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)
    shares = []
    for rank in range(8):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        shares.append(list(DataLoader(dataset, 7, shuffle=True, generator=torch.Generator().manual_seed(1))))
    for position, batch in enumerate(whole):
        held = [share[position] for share in shares]
        assert all(part.num_networks == max(part.num_counted, 1) for part in held)
        assert sum(part.num_counted for part in held) == batch.num_networks
        theirs = torch.cat([part.thetas()[: part.num_counted] for part in held])
        assert sorted(theirs.tolist()) == sorted(batch.thetas().tolist())


def test_the_number_of_processes_must_make_sense(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'devices' to be an integer of at least 1 \(got 0\)"):
        train(make_store(tmp_path / "zoo"), tmp_path / "run", devices=0)
