import json
import subprocess
import sys

import pytest

import wsgraph


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; import json, sys; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_help_and_completion_do_not_wait_for_pytorch() -> None:
    assert not {"torch", "rich_click", "matplotlib"} & modules_after("import wsgraph.cli")


def test_converting_brings_in_no_training_plotting_or_cluster() -> None:
    found = modules_after("import wsgraph; wsgraph.WeightSpace, wsgraph.trace, wsgraph.symmetry")
    assert "torch" in found
    assert not {"lightning", "matplotlib", "ray", "sklearn", "scipy", "onnx", "pandas"} & found


def test_every_public_name_is_there() -> None:
    for name in (*wsgraph.__all__, *wsgraph._MODULES):
        assert getattr(wsgraph, name) is not None
        assert name in dir(wsgraph)
    with pytest.raises(AttributeError, match="module 'wsgraph' has no attribute 'nothing'"):
        wsgraph.nothing  # noqa: B018
