#!/usr/bin/env bash
# torch 2.13.0: batch normalisation in evaluation mode has no gradient with respect to its running statistics.
#
# Whoever learns on weights differentiates networks with respect to everything in their state dict. In evaluation mode
# the running mean and variance are constants of an affine map, and vmap takes a batch of them; but batch_norm refuses
# those that require a gradient, in functional_call too. The formula written out is differentiable.
#
# Seen:
#   vmap over running means: (2, 4, 3)
#   formula: gradient (3,)
#   batch_norm: not differentiable with respect to argument 'running_mean'
#   functional_call: not differentiable with respect to argument 'running_mean'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import re

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.functional import batch_norm

x, variance = torch.ones(4, 3), torch.ones(3)
print(f"vmap over running means: {tuple(vmap(lambda mean: batch_norm(x, mean, variance))(torch.zeros(2, 3)).shape)}")


def gradient(name, function):
    mean = torch.zeros(3, requires_grad=True)
    try:
        (found,) = torch.autograd.grad(function(mean).sum(), mean)
        print(f"{name}: gradient {tuple(found.shape)}")
    except RuntimeError as error:
        print(f"{name}: {re.search('not differentiable with respect to argument .[a-z_]+.', str(error)).group()}")


layer = nn.BatchNorm1d(3).eval()
gradient("formula", lambda mean: (x - mean) / (variance + 1e-5).sqrt())
gradient("batch_norm", lambda mean: batch_norm(x, mean, variance))
gradient("functional_call", lambda mean: functional_call(layer, {"running_mean": mean}, (x,)))
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'vmap over running means: (2, 4, 3)' "$folder/seen"
grep -qxF 'formula: gradient (3,)' "$folder/seen"
grep -qxF "batch_norm: not differentiable with respect to argument 'running_mean'" "$folder/seen"
grep -qxF "functional_call: not differentiable with respect to argument 'running_mean'" "$folder/seen"
