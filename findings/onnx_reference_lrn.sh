#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator's LRN normalises as many channels as there are examples in the batch.
#
# The sum over neighbouring channels is taken in a loop whose bound is the size of the batch, so that with one example
# only the first of three channels is divided, and all are with three examples. By the operator's definition, ones
# with size 3, alpha 3, beta 1 and bias 1 become 1/3, 1/4, 1/3.
#
# Seen:
#   one example: [0.33329999446868896, 1.0, 1.0]
#   three examples: [0.33329999446868896, 0.25, 0.33329999446868896]
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


node = helper.make_node("LRN", ["x"], ["y"], size=3, alpha=3.0, beta=1.0, bias=1.0)
print("one example:", run(node, np.ones((1, 3, 1, 1)), 13).reshape(-1).tolist())
print("three examples:", run(node, np.ones((3, 3, 1, 1)), 13)[0].reshape(-1).tolist())
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'one example: [0.33329999446868896, 1.0, 1.0]' "$folder/seen"
grep -qxF 'three examples: [0.33329999446868896, 0.25, 0.33329999446868896]' "$folder/seen"
