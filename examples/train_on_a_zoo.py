"""Make a small zoo of tanh CNNs, train a model to predict their test accuracies, and draw its robustness curve."""

import sys
from pathlib import Path

from wsgraph.data import make_cnn_zoo
from wsgraph.plot import robustness_curve, robustness_data
from wsgraph.tasks import run

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example-zoo")
networks = int(sys.argv[2]) if len(sys.argv) > 2 else 300

zoo = make_cnn_zoo(folder / "zoo", networks=networks, activation="tanh", seed=0)
print(zoo)
results = [run("generalization", zoo=zoo, model=model, epochs=10, seed=0, output=folder / model) for model in ("statnn", "monomial_gnn")]
for result in results:
    print(result)
robustness_curve(robustness_data(results), folder / "robustness.pdf", title="Digits, tanh: neurons permuted, signs flipped")
