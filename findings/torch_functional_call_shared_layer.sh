#!/usr/bin/env bash
# torch 2.13.0: torch.func.functional_call on a module that has one layer under two names leaves the layer changed.
#
# The call is meant to leave the module as it was. A Sequential that lists one Linear twice is called with weights of
# its own under both keys (one tensor, as its state dict has it). Afterwards the layer holds the tensor that was passed,
# no Parameter any more, the module's outputs have changed, and the dict that was passed holds the layer's own weight:
# a second call with the same dict computes with other weights than the first.
#
# Seen:
#   outputs unchanged: False
#   weight of the layer: Tensor
#   dict still holds what was put in: False
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import torch
from torch import nn
from torch.func import functional_call

layer = nn.Linear(2, 2, bias=False)
network = nn.Sequential(layer, nn.ReLU(), layer)
inputs = torch.ones(1, 2)
before = network(inputs)
weight = torch.full((2, 2), 5.0)
state = {"0.weight": weight, "2.weight": weight}
functional_call(network, state, (inputs,))
print(f"outputs unchanged: {torch.equal(network(inputs), before)}")
print(f"weight of the layer: {type(layer._parameters['weight']).__name__}")
print(f"dict still holds what was put in: {all(value is weight for value in state.values())}")
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'outputs unchanged: False' "$folder/seen"
grep -qxF 'weight of the layer: Tensor' "$folder/seen"
grep -qxF 'dict still holds what was put in: False' "$folder/seen"
