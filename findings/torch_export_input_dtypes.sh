#!/usr/bin/env bash
# torch 2.13.0: torch.export records a linear layer for inputs of a dtype that the layer itself refuses.
#
# Whoever reads a network's structure from torch.export takes the recorded program for what the module computes. Its
# shapes are checked while it is recorded, the dtypes that meet in a product are not: the export succeeds and names the
# dtype of a result, where both the module and the exported program raise an error.
#
# Seen:
#   int64: exported, said to return torch.float32
#   int64: the module raises RuntimeError, the exported program raises RuntimeError
#   float64: exported, said to return torch.float64
#   float64: the module raises RuntimeError, the exported program raises RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import torch
from torch import nn

layer = nn.Linear(4, 8).eval()


def outcome(call, x):
    try:
        call(x)
        return "returns"
    except Exception as error:
        return f"raises {type(error).__name__}"


for dtype in (torch.int64, torch.float64):
    name, x = str(dtype).removeprefix("torch."), torch.ones(2, 4, dtype=dtype)
    program = torch.export.export(layer, (x,), strict=False)
    (result,) = [node.args[0][0] for node in program.graph.nodes if node.op == "output"]
    print(f"{name}: exported, said to return {result.meta['val'].dtype}")
    print(f"{name}: the module {outcome(layer, x)}, the exported program {outcome(program.module(), x)}")
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'int64: exported, said to return torch.float32' "$folder/seen"
grep -qxF 'int64: the module raises RuntimeError, the exported program raises RuntimeError' "$folder/seen"
grep -qxF 'float64: exported, said to return torch.float64' "$folder/seen"
grep -qxF 'float64: the module raises RuntimeError, the exported program raises RuntimeError' "$folder/seen"
