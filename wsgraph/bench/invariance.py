"""The suite that checks what models claim: how far outputs move under each symmetry."""

from __future__ import annotations

import torch

from wsgraph._outputs import largest_difference
from wsgraph.bench.bench import Bench, read_model, register_suite
from wsgraph.nn import build_model, model_entry
from wsgraph.space import WeightSpace

__all__: list[str] = []


@register_suite("invariance")
def invariance(bench: Bench) -> None:
    """Largest relative change of a model's outputs when its networks are moved by each symmetry, in double precision."""
    spaces = {
        "relu CNN": WeightSpace.cnn([1, 8, 8], [4], "relu"),
        "tanh CNN": WeightSpace.cnn([1, 8, 8], [4], "tanh"),
        "SIREN": WeightSpace.siren((2, 16, 16, 1)),
    }
    columns = [(name, kind) for name, space in spaces.items() for kind in _moves(space)]
    rows, results = [], []
    for model in bench.models:
        changes, (name_of, options) = {}, read_model(model)
        for name, kind in columns:
            space, generator = spaces[name], torch.Generator().manual_seed(0)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                module = build_model(name_of, space, 3, **options).double().eval()
            thetas = space.sample(32, generator=generator, dtype=torch.float64)
            g = space.sample_symmetry(32, (1e-2, 1e2), symmetries=[kind], generator=generator)
            with torch.no_grad():
                changes[name, kind] = largest_difference(module(space.batch(space.act(g, thetas))), module(space.batch(thetas)))
        claimed = ", ".join(model_entry(name_of).symmetries) or "none"
        rows.append([model, claimed, *(f"{changes[column]:.0e}" for column in columns)])
        results.append({"model": model, "changes": {f"{name}, {kind}": change for (name, kind), change in changes.items()}})
    head = ["model", "claims", *(f"{name}, {kind}" for name, kind in columns)]
    title = "Largest relative change of outputs when networks are moved by each symmetry (factors 0.01 to 100), untrained models, float64"
    bench.write_table("invariance", title, head, rows, {"results": results})


def _moves(space: WeightSpace) -> list[str]:
    allowed = [space.class_symmetry(label) for label, groups in space.scale_classes.items() if groups[0].role == "hidden"]
    return ["permutation", *(["scale"] if allowed[0].positive else []), *(["sign"] if allowed[0].sign else [])]
