#!/usr/bin/env bash
# PyTorch Geometric 2.8.1 (torch 2.13.0): a negative index into a Batch of graphs returns a mixture of two of them.
#
# A Batch of four graphs with 1, 2, 3 and 4 nodes, whose nodes, edges and targets carry the number of their graph, is
# asked for batch[-2]. A list would give graph 2. What comes back has the nodes and the target of graph 3, and edges
# shifted as for graph 2: from node 3 to node 6, of four nodes. batch[-1] raises "narrow(): length must be non-negative".
#
# Seen:
#   batch[-2]: x [3, 3, 3, 3], edge_index [3, 6], y [3]
#   batch[2]:  x [2, 2, 2], edge_index [0, 2], y [2]
#   batch[-1]: RuntimeError
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q torch==2.13.0 torch-geometric==2.8.1
cat > "$folder/run.py" <<'PYTHON'
import torch
from torch_geometric.data import Batch, Data

graphs = [
    Data(x=torch.full((i + 1, 1), i), edge_index=torch.tensor([[0], [i]]), y=torch.tensor([i])) for i in range(4)
]
batch = Batch.from_data_list(graphs)
for index in (-2, 2):
    one = batch[index]
    print(f"batch[{index}]: x {one.x.flatten().tolist()}, edge_index {one.edge_index.flatten().tolist()}, y {one.y.tolist()}")
try:
    batch[-1]
    print("batch[-1]: no error")
except RuntimeError as error:
    print(f"batch[-1]: RuntimeError ({str(error).splitlines()[0]})")
PYTHON
"$folder/env/bin/python" "$folder/run.py" | tee "$folder/seen"
grep -qxF 'batch[-2]: x [3, 3, 3, 3], edge_index [3, 6], y [3]' "$folder/seen"
grep -qxF 'batch[2]: x [2, 2, 2], edge_index [0, 2], y [2]' "$folder/seen"
grep -q '^batch\[-1\]: RuntimeError' "$folder/seen"
