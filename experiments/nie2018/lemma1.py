"""nie2018, Lemma 1 and its extensions: the closed forms of Eqs. (4), (6) and (8) are what autograd computes.

"The backpropagation-based visualizations for a random three-layer CNN can be unified as"

    s_k(x) = sum_j D_j^T sum_i h(V_q_ij,k) w~(i,j),    w~(i,j) = w(i) for DeconvNet, w(i) 1[w(i)^T y(j) > 0] otherwise  (4)

up to the constant 1/Z_k. With max-pooling, h(delta'(o_ij) V_q~_ij,k) takes the place of h(V_q_ij,k) (6), and in a deep CNN
h(V^(1)), with V^(L-1) = Gamma_k^(L) and V^(l) = d o~(l+1)/d o(l) h(V^(l+1)) (8). This module spells out all of it in numpy.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.nie2018.three_layer import LABELS
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import Claim, below
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results

Array = np.ndarray
H: dict[str, Callable[[Array], Array]] = {  # Eq. (2)
    "saliency": lambda V: V,
    "deconvnet": lambda V: np.maximum(V, 0),
    "gbp": lambda V: np.maximum(V, 0),
}
MASKED = {"saliency": True, "deconvnet": False, "gbp": True}  # g is the ReLU, whose derivative is 1[y > 0]
EQUATIONS = {"cnn": "Eq. 4", "cnn_stride_1": "Eq. 4", "fcn": "Eq. 4", "pool": "Eq. 6", "deep": "Eq. 8"}


def closed_form(x: Array, W: Array, V: Array, stride: int, padding: int, method: str) -> Array:
    """Compute Eq. (4) patch by patch. x [3, H, W], W [N, 3, k, k], V [N, J], or V^(1) for Eqs. (6) and (8)."""
    size, side = W.shape[-1], x.shape[-1]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    map_ = np.zeros_like(padded)
    steps = range(0, padded.shape[-1] - size + 1, stride)
    for j, (row, column) in enumerate((r, c) for r in steps for c in steps):
        patch = (slice(None), slice(row, row + size), slice(column, column + size))
        for w, v in zip(W, H[method](V[:, j]), strict=True):
            if not MASKED[method] or (w * padded[patch]).sum() > 0:
                map_[patch] += v * w
    return map_[:, padding : padding + side, padding : padding + side]


def chosen(o: Array) -> Array:
    """Return delta' of Eq. (6) for 2x2 windows: 1 where the largest value of its window lies (the first of equal ones)."""
    N, rows, columns = o.shape
    windows = o.reshape(N, rows // 2, 2, columns // 2, 2).swapaxes(2, 3).reshape(N, rows // 2, columns // 2, 4)
    one = np.eye(4)[windows.argmax(-1)].reshape(N, rows // 2, columns // 2, 2, 2)
    return one.swapaxes(2, 3).reshape(o.shape)


def hidden(gammas: Sequence[Array], o: Array, V: Array, method: str) -> Array:
    """Compute V^(1) of Eq. (8) from Gamma^(2) ... Gamma^(L-1) [d_l, d_l+1], o^(1) [d_2] and Gamma_k^(L)."""
    slopes = []
    for gamma in gammas:
        y = gamma.T @ o
        slopes.append((y > 0).astype(float) if MASKED[method] else np.ones_like(y))
        o = np.maximum(y, 0)
    for gamma, slope in zip(reversed(gammas), reversed(slopes), strict=True):
        V = gamma @ (slope * H[method](V))
    return V


def expected(net: Any, x: Array, k: int, method: str) -> Array:
    """Compute the closed form for one of this experiment's networks from its weights. x [3, H, W]."""
    V = net.fc2.weight[k] if hasattr(net, "fc2") else net.fc.weight[k]
    V = V.detach().numpy()
    if hasattr(net, "fc1"):  # the FCN's one patch is the whole image
        return closed_form(x, net.fc1.weight.detach().numpy().reshape(-1, *x.shape), V[:, None], 1, 0, method)
    with torch.no_grad():
        o = net.relu(net.conv1(torch.from_numpy(x)[None]))
        shape = o.shape[1:]
        if isinstance(net.pool, torch.nn.MaxPool2d):
            V = np.kron(V.reshape(len(o[0]), shape[1] // 2, -1), np.ones((2, 2))) * chosen(o[0].numpy())
        elif layers := [m for m in getattr(net, "extra", []) if isinstance(m, torch.nn.Conv2d)]:
            basis = torch.eye(o.numel(), dtype=o.dtype).reshape(-1, *shape)
            gammas = [layer(basis).flatten(1).numpy() for layer in layers]
            V = hidden(gammas, o.flatten().numpy(), V, method)
    conv = net.conv1
    V = V.reshape(len(o[0]), -1)
    return closed_form(x, conv.weight.detach().numpy(), V, conv.stride[0], conv.padding[0], method)


class Lemma1(Experiment):
    """Compare the closed forms with autograd. models: {name: config node} of small networks; tasks are seeds and networks."""

    def __init__(self, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.models = models

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed, "network": network} for seed in run.seeds for network in self.models]

    def load(self, run: Run, task: Task) -> Load:
        return Load(self.models[task["network"]], task["seed"], len(run.dataset), len(run.methods), 0)

    def compute(self, run: Run, task: Task) -> Output:
        seed, network = task["seed"], task["network"]
        model = run.model(self.models[network], seed)
        batch = run.batch(model, range(len(run.dataset)))
        output, on_cpu = Output(tables={"table": []}), copy.deepcopy(model.net).cpu()
        for target in run.targets:
            units = run.units_of(model, target, batch.names)
            explained = run.explain(model, batch.x, [units])
            for i, image in enumerate(batch.names):
                k = int(explained.logits[i].argmax()) if units is None else units[i]
                for method, maps in explained.maps[0].items():
                    formula, map_ = expected(on_cpu, batch.x[i].cpu().numpy(), k, method), maps[i].numpy()
                    row = {"seed": seed, "network": network, "image": image, "target": str(target), "method": method}
                    error = float(np.abs(map_ - formula).max() / np.abs(formula).max())
                    output.tables["table"].append({**row, "equation": EQUATIONS[network], "error": error})
                    if seed == run.seeds[0] and target == run.targets[0]:
                        output.arrays |= {
                            f"{image}/{network}/{method}/{n}": a for n, a in (("4", formula), ("g", map_))
                        }
        return output

    def claims(self, results: Results) -> list[Claim]:
        metric = "largest absolute difference over the largest absolute value of the map"
        sentences = {
            "Eq. 4": "the visualizations can be unified as s_k(x) = sum_j D_j^T sum_i h(V_q_ij,k) w~(i,j) / Z_k",
            "Eq. 6": "with max-pooling they can be formulated as sum_j D_j^T sum_i h(delta'(o_ij) V_q~_ij,k) w~(i,j) / Z_k",
            "Eq. 8": "in an L-layer deep CNN they can be formulated as sum_j D_j^T sum_i h(V^(1)_q_ij,k) w~(i,j) / Z_k",
        }
        return [
            Claim(
                f"{equation.replace('. ', '').lower()}_{method}",
                f"{sentence} ({LABELS[method]})",
                source=equation,
                metric=metric,
                criterion=below(1e-12, each=True),
                values=[row["error"] for row in results.rows(equation=equation, method=method)],
                reason="" if results.config.precision == "float64" else "it takes precision=float64",
            )
            for equation, sentence in sentences.items()
            for method in results.config.methods
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, network = results.rows()[0]["image"], results.rows()[0]["network"]
        methods = [m for m in LABELS if m in results.config.methods]
        rows = []
        for key, label in (("4", "Eq. 4"), ("g", "autograd")):
            maps = [results.arrays[f"{image}/{network}/{m}/{key}"] for m in methods]
            errors = [max(r["error"] for r in results.rows(network=network, method=m)) for m in methods]
            notes = [f"largest relative difference {e:.0e}" if key == "g" else "" for e in errors]
            titles = [LABELS[m] if key == "4" else "" for m in methods]
            rows.append(
                PanelRow([Panel(display.minmax(m), t, n) for m, t, n in zip(maps, titles, notes, strict=True)], label)
            )
        node, worst = results.config.experiment.models[network], max(r["error"] for r in results.rows())
        equations = ", ".join(dict.fromkeys(r["equation"] for r in results.rows()))
        caption = [
            f"Lemma 1: the closed form (top) and automatic differentiation (bottom) in a random three-layer CNN with "
            f"{node.num_filters} filters, stride {node.stride}, input {image} at {node.input_size}x{node.input_size}",
            f"Maps are scaled {display.scaling('minmax')[1]}",
            f"Over {equations}, all networks and {results.config.seeds} seeds the largest relative difference is {worst:.1e}",
        ]
        return {"figure": panel_grid(rows, caption)}
