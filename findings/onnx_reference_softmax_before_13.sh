#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator runs Softmax of operator set 11 with the meaning of set 13.
#
# Before set 13, Softmax flattens its input to two dimensions at the axis and normalises all of the second, so that
# the entries of every example sum to 1. The evaluator normalises along the one axis whatever the model's operator set
# says: each of the two columns sums to 1.
#
# Seen:
#   sum of the entries of the example: 2.0
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


node = helper.make_node("Softmax", ["x"], ["y"], axis=1)
y = run(node, np.zeros((1, 2, 2)), 11)
print("sum of the entries of the example:", float(y.sum()))
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'sum of the entries of the example: 2.0' "$folder/seen"
