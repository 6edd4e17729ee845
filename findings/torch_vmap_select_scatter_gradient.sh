#!/usr/bin/env bash
# torch 2.13.0: vmap of select_scatter gives wrong gradients, silently.
#
# Whoever evaluates many networks at once runs their recorded operators under vmap and differentiates with respect to
# all weights. What writes to a row of a tensor is recorded as select_scatter. Under vmap its values are right, but the
# gradient of what is written is that of other entries; a loop over the batch has the right one.
#
# Seen:
#   select_scatter: values equal True
#   select_scatter: gradient of the loop [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]
#   select_scatter: gradient under vmap [0.0, 16.0, 32.0, 48.0, 64.0, 80.0]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 numpy
cat > "$folder/run.py" <<'PYTHON'
import torch
from torch.func import vmap

weights = torch.arange(24.0).view(2, 3, 4)


def compare(name, function, written):
    base = torch.zeros(2, 3, 4)
    batched = written.clone().requires_grad_()
    together = vmap(function)(base, batched)
    looped = written.clone().requires_grad_()
    alone = torch.stack([function(base[i], looped[i]) for i in range(2)])
    print(f"{name}: values equal {torch.equal(together, alone)}")
    for result, leaf, text in ((alone, looped, "of the loop"), (together, batched, "under vmap")):
        (gradient,) = torch.autograd.grad((result * weights).sum(), leaf)
        print(f"{name}: gradient {text} {gradient.flatten().tolist()}")


compare("select_scatter", lambda a, b: torch.select_scatter(a, b, 1, 0), torch.ones(2, 3))
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'select_scatter: values equal True' "$folder/seen"
grep -qxF 'select_scatter: gradient of the loop [0.0, 4.0, 8.0, 12.0, 16.0, 20.0]' "$folder/seen"
grep -qxF 'select_scatter: gradient under vmap [0.0, 16.0, 32.0, 48.0, 64.0, 80.0]' "$folder/seen"
