"""The published parameter-sharing layers, term by term: the yardstick for the speed and memory of wsgraph's.

One module per layer, written from the formulas of the papers and computed as the published implementations compute them: one map per term,
means copied together and broadcast, every sum a new tensor, every product of weights formed. Names and shapes of the parameters are the
published ones.

* ``NPLinear`` and ``HNPLinear``: Zhou et al. 2023, `Permutation Equivariant Neural Functionals <https://arxiv.org/abs/2302.14040>`_.
* ``MonomialLinear``: Tran et al. 2024, `Monomial Matrix Group Equivariant Neural Functional Networks <https://arxiv.org/abs/2409.11697>`_.
* ``MAGEPLinear`` and ``MAGEPInvariant``: Vo et al. 2025, Equivariant Polynomial Functional Networks (ICML 2025),
  `code <https://github.com/Fsoft-AIC/MAGEP-NFN>`_.

In the formulas, W^(i) and b^(i) with i = 1..L are the weights and biases of a network, b runs over networks, c over channels in, a over
channels out, j over rows, k over columns, q over input and p over output neurons. Lists and names of parameters count layers from 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["HNPLinear", "MAGEPInvariant", "MAGEPLinear", "MonomialLinear", "NPLinear"]

Kernel = Sequence[int] | None
Features = tuple[list[Tensor], list[Tensor]]


class Coefficients(nn.Module):
    """The coefficients of one term and the einsum that applies them."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) / math.sqrt(math.prod(shape[1:])))

    def forward(self, equation: str, *tensors: Tensor) -> Tensor:
        return torch.einsum(equation, self.weight, *tensors)


class PublishedLayer(nn.ModuleDict):
    """A layer whose maps are looked up by their published names.

    Args:
        sizes: Neurons per layer, n_0 to n_L.
        kernels: Kernel of every weight, e.g. ``[3, 3]``, and ``None`` for a dense one.
        in_channels: Channels per weight on the way in.
        out_channels: Channels per weight on the way out.

    Shapes:
        input: Weights ``[B, in_channels, n_out, n_in, *kernel]`` and biases ``[B, in_channels, n_out]``, a list of each.
        output: The same with ``out_channels``.
    """

    def __init__(self, sizes: Sequence[int], kernels: Sequence[Kernel], in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.sizes, self.kernels, self.depth = list(sizes), list(kernels), len(kernels)
        self.in_channels, self.out_channels = in_channels, out_channels
        # Kernel positions are folded into the channels, so that a layer has f times as many of them.
        self.f = [1 if kernel is None else math.prod(kernel) for kernel in kernels]
        self.build()

    def build(self) -> None:
        """Add the maps."""
        raise NotImplementedError

    def fold(self, weights: list[Tensor]) -> list[Tensor]:
        """``[B, C f, n_out, n_in]`` for every weight, channels slowest."""
        return [weight.permute(0, 1, *range(4, weight.ndim), 2, 3).flatten(1, weight.ndim - 3) for weight in weights]

    def unfold(self, weights: list[Tensor]) -> list[Tensor]:
        """The inverse of :meth:`fold`."""
        unfolded = []
        for weight, kernel in zip(weights, self.kernels, strict=True):
            spread = weight.unflatten(1, (-1, *(kernel or ())))
            unfolded.append(spread.permute(0, 1, spread.ndim - 2, spread.ndim - 1, *range(2, spread.ndim - 2)))
        return unfolded


class _MeansLayer(PublishedLayer):
    """The maps that Zhou et al. apply to a weight whose rows and columns both carry symmetry."""

    def add_maps(self, i: int, everything: int, columns: int, rows: int) -> None:
        pointwise, e = self.in_channels * self.f[i], self.out_channels
        self[f"layer_{i}"] = nn.Conv2d(pointwise, e * self.f[i], 1)
        self[f"layer_{i}_rc"] = nn.Linear(everything, e * self.f[i])
        self[f"layer_{i}_r"] = nn.Conv1d(columns, e * self.f[i], 1)
        self[f"layer_{i}_c"] = nn.Conv1d(rows, e * self.f[i], 1)
        self[f"bias_{i}"] = nn.Conv1d(rows, e, 1)
        self[f"bias_{i}_rc"] = nn.Linear(everything, e)

    def apply_maps(self, i: int, weight: Tensor, everything: Tensor, columns: list[Tensor], rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        of_columns, of_rows = torch.cat(columns, dim=1), torch.cat(rows, dim=1)
        pointwise = self[f"layer_{i}"](weight)
        broadcast = self[f"layer_{i}_rc"](everything)[:, :, None, None]
        down = self[f"layer_{i}_r"](of_columns)[:, :, None, :]
        across = self[f"layer_{i}_c"](of_rows)[:, :, :, None]
        return pointwise + broadcast + down + across, self[f"bias_{i}"](of_rows) + self[f"bias_{i}_rc"](everything)[:, :, None]


class NPLinear(_MeansLayer):
    """Linear layer equivariant under permutations of all neurons."""

    def build(self) -> None:
        f, d = self.f, self.in_channels
        for i in range(self.depth):
            below = f[i - 1] + 1 if i > 0 else 0
            above = f[i + 1] if i < self.depth - 1 else 0
            self.add_maps(i, d * (sum(f) + self.depth), d * (f[i] + below), d * (f[i] + 1 + above))

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> Features:
        weights = self.fold(weights)
        over_rows, over_columns = [weight.mean(2) for weight in weights], [weight.mean(3) for weight in weights]
        everything = torch.cat([*(weight.mean((2, 3)) for weight in weights), *(bias.mean(2) for bias in biases)], dim=1)
        new_weights, new_biases = [], []
        for i, weight in enumerate(weights):
            columns, rows = [over_rows[i]], [over_columns[i], biases[i]]
            if i > 0:
                columns += [over_columns[i - 1], biases[i - 1]]
            if i < self.depth - 1:
                rows += [over_rows[i + 1]]
            new_weight, new_bias = self.apply_maps(i, weight, everything, columns, rows)
            new_weights.append(new_weight)
            new_biases.append(new_bias)
        return self.unfold(new_weights), new_biases


class HNPLinear(_MeansLayer):
    """Linear layer equivariant under permutations of hidden neurons."""

    def build(self) -> None:
        f, d, e, last = self.f, self.in_channels, self.out_channels, self.depth - 1
        first_row, last_column, outputs = self.sizes[0] * f[0], self.sizes[-1] * f[last], self.sizes[-1]
        everything = d * (sum(f) + self.depth + first_row + last_column + outputs)
        from_last, from_first = (last_column, first_row) if last == 1 else (0, 0)
        of_rows, of_columns = d * (first_row + f[1] + 1 + from_last), d * (last_column + f[last - 1] + from_first)
        self["w0_rpt"], self["w0_rbdcst"] = nn.Conv1d(of_rows, e * first_row, 1), nn.Linear(everything, e * first_row)
        self["bias_0"], self["bias_0_rc"] = nn.Conv1d(of_rows, e, 1), nn.Linear(everything, e)
        self["wfin_cpt"], self["wfin_cbdcst"] = nn.Conv1d(of_columns, e * last_column, 1), nn.Linear(everything, e * last_column)
        self["bias_fin_rc"] = nn.Linear(everything, e * outputs)
        for i in range(1, last):
            columns = f[i - 1] + f[i] + 1 + (first_row if i == 1 else 0)
            rows = f[i + 1] + f[i] + 1 + (last_column if i == last - 1 else 0)
            self.add_maps(i, everything, d * columns, d * rows)

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> Features:
        weights = self.fold(weights)
        last = self.depth - 1
        over_rows, over_columns = [weight.mean(2) for weight in weights], [weight.mean(3) for weight in weights]
        # Input and output neurons are told apart: along them, every entry is a feature of the hidden neuron at its other end.
        first_rows, last_columns = weights[0].transpose(2, 3).flatten(1, 2), weights[last].flatten(1, 2)
        means = [*(weight.mean((2, 3)) for weight in weights), *(bias.mean(2) for bias in biases)]
        boundary = [over_rows[0].flatten(1), over_columns[last].flatten(1), biases[last].flatten(1)]
        everything = torch.cat([*means, *boundary], dim=1)

        of_rows = torch.cat([first_rows, over_rows[1], biases[0], *([last_columns] if last == 1 else [])], dim=1)
        first = self["w0_rpt"](of_rows) + self["w0_rbdcst"](everything)[:, :, None]
        new_weights = [first.unflatten(1, (-1, self.sizes[0])).transpose(2, 3)]
        new_biases = [self["bias_0"](of_rows) + self["bias_0_rc"](everything)[:, :, None]]
        for i in range(1, last):
            columns = [over_rows[i], over_columns[i - 1], biases[i - 1], *([first_rows] if i == 1 else [])]
            rows = [over_columns[i], biases[i], over_rows[i + 1], *([last_columns] if i == last - 1 else [])]
            new_weight, new_bias = self.apply_maps(i, weights[i], everything, columns, rows)
            new_weights.append(new_weight)
            new_biases.append(new_bias)
        of_columns = torch.cat([last_columns, over_columns[last - 1], *([first_rows] if last == 1 else [])], dim=1)
        final = self["wfin_cpt"](of_columns) + self["wfin_cbdcst"](everything)[:, :, None]
        new_weights.append(final.unflatten(1, (-1, self.sizes[-1])))
        new_biases.append(self["bias_fin_rc"](everything).unflatten(1, (-1, self.sizes[-1])))
        return self.unfold(new_weights), new_biases


class MonomialLinear(PublishedLayer):
    """Linear layer equivariant under permutations and scales of hidden neurons."""

    def build(self) -> None:
        f, d, e, n_0, n_L = self.f, self.in_channels, self.out_channels, self.sizes[0], self.sizes[-1]
        last = self.depth - 1
        self["layer_0_Y_W"] = Coefficients(e * f[0], d * f[0], n_0, n_0)
        self["layer_0_Y_b"] = Coefficients(e * f[0], d, n_0)
        self["layer_0_z_W"] = Coefficients(e, d * f[0], n_0)
        self["layer_0_z_b"] = Coefficients(e, d)
        for i in range(1, last):
            self[f"layer_{i}_Y_W"] = Coefficients(e * f[i], d * f[i])
            self[f"layer_{i}_z_b"] = Coefficients(e, d)
        self[f"layer_{last}_Y_W"] = Coefficients(e * f[last], d * f[last], n_L, n_L)
        self[f"layer_{last}_z_b"] = Coefficients(e, d, n_L, n_L)
        self[f"layer_{last}_z_tau"] = Coefficients(e, n_L)

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> Features:
        weights = self.fold(weights)
        last = self.depth - 1
        from_weights = self["layer_0_Y_W"]("acqk,bcjq->bajk", weights[0])
        from_biases = self["layer_0_Y_b"]("ack,bcj->bajk", biases[0])
        new_weights = [from_weights + from_biases]
        new_biases = [self["layer_0_z_W"]("acq,bcjq->baj", weights[0]) + self["layer_0_z_b"]("ac,bcj->baj", biases[0])]
        for i in range(1, last):
            new_weights.append(self[f"layer_{i}_Y_W"]("ac,bcjk->bajk", weights[i]))
            new_biases.append(self[f"layer_{i}_z_b"]("ac,bcj->baj", biases[i]))
        new_weights.append(self[f"layer_{last}_Y_W"]("acpj,bcpk->bajk", weights[last]))
        new_biases.append(self[f"layer_{last}_z_b"]("acpj,bcp->baj", biases[last]) + self[f"layer_{last}_z_tau"]("aj->aj"))
        return self.unfold(new_weights), new_biases


class StableTerms:
    """The stable polynomial terms of a batch of dense networks, each a matrix (or vector) per channel.

    Args:
        weights: Weights ``[B, C, n_out, n_in]``.
        biases: Biases ``[B, C, n_out]``.

    Attributes:
        W: By (s, t), the product [W]^(s,t) = W^(s) ... W^(t+1), n_s x n_t.
        b: By s, the bias b^(s).
        Wb: By (s, t), the vector [W]^(s,t) b^(t).
    """

    def __init__(self, weights: list[Tensor], biases: list[Tensor]) -> None:
        self.depth = len(weights)
        self.b = dict(enumerate(biases, 1))
        self.W: dict[tuple[int, int], Tensor] = {}
        for t in range(self.depth):
            self.W[t + 1, t] = weights[t]
            for s in range(t + 2, self.depth + 1):
                self.W[s, t] = weights[s - 1] @ self.W[s - 1, t]
        self.Wb = {(s, t): torch.einsum("bcjk,bck->bcj", self.W[s, t], self.b[t]) for s, t in self.W if t > 0}

    def bW(self, s: int, t: int, psi: Tensor) -> Tensor:  # noqa: N802
        """[bW]^(s)(L,t) = b^(s) psi [W]^(L,t), n_s x n_t."""
        return self.b[s][..., None] @ psi @ self.W[self.depth, t]

    def WW(self, s: int, t: int, Psi: Tensor) -> Tensor:  # noqa: N802
        """[WW]^(s,0)(L,t) = [W]^(s,0) Psi [W]^(L,t), n_s x n_t."""
        return self.W[s, 0] @ Psi @ self.W[self.depth, t]


class _PolynomialLayer(PublishedLayer):
    """What the layers of Vo et al. share: dense weights, and the terms that lead from the last layer back to hidden neurons."""

    def draw(self, rows: int, trained: bool) -> nn.Parameter:
        """A random psi (one row) or Psi (n_0 rows)."""
        scale = self.in_channels * rows * self.sizes[-1]
        return nn.Parameter(torch.randn(self.in_channels, rows, self.sizes[-1]) / scale, requires_grad=trained)

    def build_loops(self, trained: bool) -> None:
        if max(self.f) > 1:
            raise ValueError(f"{type(self).__name__} multiplies the weights of successive layers: each needs one kernel position.")
        for name, rows in (("Psi_s_L_s", 1), ("Psi_s_0_L_s", self.sizes[0])):
            self[name] = nn.ParameterDict({f"{s}_{s}": self.draw(rows, trained) for s in range(1, self.depth)})

    def traces(self, terms: StableTerms) -> tuple[Tensor, Tensor]:
        """Traces of [WW]^(s,0)(L,s) and of [bW]^(s)(L,s) for s = 1..L-1, each ``[B, C, L - 1]``."""
        WW = [terms.WW(s, s, getattr(self["Psi_s_0_L_s"], f"{s}_{s}")) for s in range(1, self.depth)]
        bW = [terms.bW(s, s, getattr(self["Psi_s_L_s"], f"{s}_{s}")) for s in range(1, self.depth)]
        of_WW, of_bW = ([torch.einsum("bcjj->bc", matrix) for matrix in matrices] for matrices in (WW, bW))
        return torch.stack(of_WW, dim=-1), torch.stack(of_bW, dim=-1)


class MAGEPLinear(_PolynomialLayer):
    """Polynomial layer equivariant under permutations and scales of hidden neurons, for dense networks."""

    def build(self) -> None:
        n_0, n_L, L = self.sizes[0], self.sizes[-1], self.depth
        self.pairs = [(s, t) for s in range(1, L + 1) for t in range(s)]
        for name, rows in (("Psi_s_L_t", 1), ("Psi_s_0_L_t", n_0)):
            self[name] = nn.ParameterDict({f"{s}_{t}": self.draw(rows, False) for s, t in self.pairs})
        self.build_loops(False)
        for i in range(L):
            square = {0: (n_0, n_0), L - 1: (n_L, n_L)}.get(i, ())
            shapes: dict[str, tuple[int, ...]] = {"W_W": square, "W_WW": square, "W_bW": square}
            if i < L - 1:
                shapes |= {"b_W": (n_0,), "b_WW": (n_0,), "b_bW": (n_0,), "b_b": ()}
                shapes |= {"W_b": (n_0,)} if i == 0 else {"b_Wb": ()}
            else:
                shapes |= {"b_W": (n_L, n_0, n_L), "b_WW_L0L0": (n_L, n_0, n_L), "b_bW_LL0": (n_L, n_0, n_L)}
                shapes |= {"b_Wb": (n_L, n_L), "b_b_L": (n_L, n_L), "b_WW_0L": (L - 1, n_L), "b_bW_L": (L - 1, n_L)}
            for name, shape in shapes.items():
                self[f"layer_{i}_{name}"] = Coefficients(self.out_channels, self.in_channels, *shape)
        self[f"layer_{L - 1}_b"] = Coefficients(self.out_channels, n_L)

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> Features:
        terms, L = StableTerms(weights, biases), self.depth
        W, b = terms.W, terms.b
        # All of them, as published, although only those with t = s - 1 and t = 0 are read.
        bW = {(s, t): terms.bW(s, t, getattr(self["Psi_s_L_t"], f"{s}_{t}")) for s, t in self.pairs}
        WW = {(s, t): terms.WW(s, t, getattr(self["Psi_s_0_L_t"], f"{s}_{t}")) for s, t in self.pairs}
        traces_WW, traces_bW = self.traces(terms)
        new_weights, new_biases = [], []
        for i in range(1, L + 1):
            name = f"layer_{i - 1}"
            mix = {1: "acqk,bcjq->bajk", L: "acpj,bcpk->bajk"}.get(i, "ac,bcjk->bajk")
            weight = (
                self[f"{name}_W_W"](mix, W[i, i - 1]) + self[f"{name}_W_WW"](mix, WW[i, i - 1]) + self[f"{name}_W_bW"](mix, bW[i, i - 1])
            )
            if i == 1:
                weight = weight + self[f"{name}_W_b"]("ack,bcj->bajk", b[1])
            if i < L:
                bias = self[f"{name}_b_W"]("acq,bcjq->baj", W[i, 0])
                bias = bias + self[f"{name}_b_WW"]("acq,bcjq->baj", WW[i, 0])
                bias = bias + self[f"{name}_b_bW"]("acq,bcjq->baj", bW[i, 0])
                bias = bias + self[f"{name}_b_b"]("ac,bcj->baj", b[i])
            else:
                bias = self[f"{name}_b_W"]("acpqj,bcpq->baj", W[L, 0])
                bias = bias + self[f"{name}_b_WW_L0L0"]("acpqj,bcpq->baj", WW[L, 0])
                bias = bias + self[f"{name}_b_bW_LL0"]("acpqj,bcpq->baj", bW[L, 0])
                bias = bias + self[f"{name}_b_b_L"]("acpj,bcp->baj", b[L]) + self[f"{name}_b"]("aj->aj")
                bias = bias + self[f"{name}_b_WW_0L"]("acsj,bcs->baj", traces_WW) + self[f"{name}_b_bW_L"]("acsj,bcs->baj", traces_bW)
            for t in range(1, i):
                bias = bias + self[f"{name}_b_Wb"]("ac,bcj->baj" if i < L else "acpj,bcp->baj", terms.Wb[i, t])
            new_weights.append(weight)
            new_biases.append(bias)
        return new_weights, new_biases


class MAGEPInvariant(_PolynomialLayer):
    """Polynomial layer invariant under permutations and scales of hidden neurons, for dense networks: ``[B, out_channels]``."""

    def build(self) -> None:
        n_0, n_L, L = self.sizes[0], self.sizes[-1], self.depth
        self.Psi_s_L_t, self.Psi_s_0_L_t = self.draw(1, True), self.draw(n_0, True)
        self.build_loops(True)
        shapes: dict[str, tuple[int, ...]] = {"WW": (n_L, n_0), "W": (n_L, n_0), "bW": (n_L, n_0), "Wb": (n_L,), "b": (n_L,)}
        for name, shape in (shapes | {"WW_pp": (L - 1,), "bW_pp": (L - 1,)}).items():
            self[f"layer_{name}"] = Coefficients(self.out_channels, self.in_channels, *shape)
        self.tau_weight = nn.Parameter(torch.zeros(self.out_channels))

    def forward(self, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        terms, L = StableTerms(weights, biases), self.depth
        traces_WW, traces_bW = self.traces(terms)
        result = self["layer_WW"]("acpq,bcpq->ba", terms.WW(L, 0, self.Psi_s_0_L_t))
        result = result + self["layer_W"]("acpq,bcpq->ba", terms.W[L, 0])
        result = result + self["layer_bW"]("acpq,bcpq->ba", terms.bW(L, 0, self.Psi_s_L_t))
        for t in range(1, L):
            result = result + self["layer_Wb"]("acp,bcp->ba", terms.Wb[L, t])
        result = result + self["layer_b"]("acp,bcp->ba", terms.b[L])
        result = result + self["layer_WW_pp"]("acs,bcs->ba", traces_WW) + self["layer_bW_pp"]("acs,bcs->ba", traces_bW)
        return result + self.tau_weight
