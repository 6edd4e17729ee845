#!/usr/bin/env bash
# keras 3.15.1, torch 2.13.0, jax 0.10.2 (which the NumPy backend imports): average pooling with padding="same" counts
# padded values on the torch backend where the padding is uneven.
#
# Five values in windows of four with stride four need one value of padding on one side and two on the other. The NumPy
# backend averages what is there; the torch backend repeats the values at the border and averages these too.
# Whoever moves a Keras network between frameworks gets another function.
#
# Seen:
#   numpy: [2.0, 4.5]
#   torch: [1.75, 4.75]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q keras==3.15.1 torch==2.13.0 jax==0.10.2 numpy==2.4.6 scipy==1.17.1
cat > "$folder/run.py" <<'PYTHON'
import keras
import numpy

layer = keras.layers.AveragePooling1D(4, strides=4, padding="same")
values = numpy.array([1, 2, 3, 4, 5], dtype="float32").reshape(1, 5, 1)
result = keras.ops.convert_to_numpy(layer(values)).ravel().tolist()
print(f"{keras.backend.backend()}: {result}")
PYTHON
for backend in numpy torch; do
  KERAS_BACKEND=$backend "$folder/env/bin/python" "$folder/run.py"
done | tee "$folder/seen"
grep -qxF 'numpy: [2.0, 4.5]' "$folder/seen"
grep -qxF 'torch: [1.75, 4.75]' "$folder/seen"
