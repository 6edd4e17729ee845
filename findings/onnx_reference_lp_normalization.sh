#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator's LpNormalization with p=1 divides by the sum, not by the norm.
#
# The 1-norm of (1, -1, 2) is 4, so the result should be (0.25, -0.25, 0.5). The evaluator leaves out the absolute
# values and divides by 2.
#
# Seen:
#   normalised: [0.5, -0.5, 1.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q onnx==1.23.2 numpy
cat > "$folder/run.py" <<'PYTHON'
import numpy as np
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator


def run(node, x, opset):
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    (y,) = ReferenceEvaluator(model).run(None, {"x": x.astype("float32")})
    return np.round(y, 4)


node = helper.make_node("LpNormalization", ["x"], ["y"], axis=0, p=1)
print("normalised:", run(node, np.array([1.0, -1.0, 2.0]), 1).tolist())
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'normalised: [0.5, -0.5, 1.0]' "$folder/seen"
