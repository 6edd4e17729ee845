"""From a folder of checkpoint files to a comparison of models: import, train, compare costs and robustness, write a report, predict."""

import csv
import sys
from pathlib import Path

from safetensors.torch import save_file

from wsgraph.data import ZooStore, digits, import_zoo, make_mlp_zoo
from wsgraph.plot import cost_chart, prediction_scatter, robustness_curve, robustness_data, zoo_map
from wsgraph.report import write_report
from wsgraph.tasks import TrainedModel, run

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "example-benchmark")
networks = int(sys.argv[2]) if len(sys.argv) > 2 else 300
epochs = int(sys.argv[3]) if len(sys.argv) > 3 else 15

# Stand-ins for your checkpoints: one file each, and a table of what is known of them.
files = folder / "checkpoints"
if not files.exists():
    made = make_mlp_zoo(folder / "made", networks=networks, hidden=[16], seed=0)
    files.mkdir(parents=True)
    with (files / "metadata.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["file_name", "test_accuracy"])
        for i, (theta, accuracy) in enumerate(zip(made.thetas, made.column("test_accuracy"), strict=True)):
            save_file({name: tensor.contiguous() for name, tensor in made.space.unflatten(theta).items()}, files / f"{i:04}.safetensors")
            writer.writerow([f"{i:04}.safetensors", accuracy])

if not (folder / "zoo").exists():
    import_zoo(folder / "zoo", files, activation="relu")
models = ("statnn", "hnp", "monomial_gnn")
results = [
    run("generalization", zoo=folder / "zoo", model=model, epochs=epochs, seed=0, output=folder / "runs" / model) for model in models
]
for result in results:
    m = result.metrics
    print(f"{result.config['model']:14} tau {m['tau']:.3f}, scaled up to 10,000 {m['tau_scale_10000']:.3f}, {m['peak_memory_mb']:.0f} MB")

robustness_curve(robustness_data(results), folder / "robustness.pdf")
cost_chart(results, folder / "costs.pdf")
trained = TrainedModel.load(folder / "runs" / "monomial_gnn")
test = ZooStore(folder / "zoo").dataset("test")
predicted = trained.predict(test.space, test.thetas)
prediction_scatter(predicted, test.y, folder / "scatter.pdf", label="test accuracy")
zoo_map(test, folder / "map.pdf")
write_report(folder / "report.html", [folder / "runs"])

# The network that the model thinks best, run on the pictures.
best = int(predicted.argmax())
right = test.space.evaluate(test.thetas[best : best + 1], digits().test_images.flatten(1)).argmax(-1) == digits().test_labels
print(f"predicted to be the best: {float(right.float().mean()):.3f} right, {float(test.y.median()):.3f} in the median of the zoo")
print(f"figures and report: {folder}")
