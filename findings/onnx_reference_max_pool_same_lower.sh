#!/usr/bin/env bash
# onnx 1.23.2: the reference evaluator's MaxPool pads SAME_LOWER as SAME_UPPER.
#
# Four entries 1 to 4 with kernel 3 and stride 2 need one entry of padding. SAME_LOWER puts it at the beginning: the
# windows are (pad, 1, 2) and (2, 3, 4), the maxima 2 and 4. The evaluator gives 3 and 4 for both attributes.
#
# Seen:
#   SAME_UPPER [3.0, 4.0]
#   SAME_LOWER [3.0, 4.0]
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


for pad in ("SAME_UPPER", "SAME_LOWER"):
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3], strides=[2], auto_pad=pad)
    print(pad, run(node, np.array([[[1.0, 2.0, 3.0, 4.0]]]), 12).reshape(-1).tolist())
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'SAME_UPPER [3.0, 4.0]' "$folder/seen"
grep -qxF 'SAME_LOWER [3.0, 4.0]' "$folder/seen"
