#!/usr/bin/env bash
# torch 2.13.0: torch.func.vmap runs a linear layer for many weights at once, but refuses an LSTM or a GRU.
#
# Stacked weights of several networks are run by vmap of functional_call. For nn.LSTM and nn.GRU it raises that the
# operator has no batching rule, although torch.export's decompositions write both in operators that have one.
#
# Seen:
#   Linear: (3, 4, 2)
#   LSTM: no batching rule for aten::lstm.input
#   GRU: no batching rule for aten::gru.input
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import re

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap


def outputs(make, inputs):
    networks = [make() for _ in range(3)]
    parameters, buffers = stack_module_state(networks)

    def run(weights, states):
        result = functional_call(networks[0], (weights, states), (inputs,))
        return result[0] if isinstance(result, tuple) else result

    return vmap(run)(parameters, buffers)


print(f"Linear: {tuple(outputs(lambda: nn.Linear(5, 2), torch.ones(4, 5)).shape)}")
for name in ("LSTM", "GRU"):
    try:
        print(f"{name}: {tuple(outputs(lambda: getattr(nn, name)(5, 2), torch.ones(4, 1, 5)).shape)}")
    except RuntimeError as error:
        operator = re.search(r"aten::[a-z_.]+", str(error))
        print(f"{name}: no batching rule for {operator.group().rstrip('.') if operator else error}")
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'Linear: (3, 4, 2)' "$folder/seen"
grep -qxF 'LSTM: no batching rule for aten::lstm.input' "$folder/seen"
grep -qxF 'GRU: no batching rule for aten::gru.input' "$folder/seen"
