"""nie2018, Lemma 1 and its extensions: the closed forms of Eqs. (3), (4), (6) and (8) against the network and autograd.

"The backpropagation-based visualizations for the k-th logit in a random three-layer CNN is formalized as"

    s_k(x) = sum_j D_j^T sum_i h(V_q_ij,k) w~(i,j),    w~(i,j) = w(i) for DeconvNet, w(i) 1[w(i)^T y(j) > 0] otherwise  (4)

up to the constant 1/Z_k. With max-pooling, h(delta'(o_ij) V_q~_ij,k) takes the place of h(V_q_ij,k) (6), and in a deep CNN
h(V^(1)), with V^(L-1) = Gamma_k^(L) and V^(l) = d o~(l+1)/d o(l) h(V^(l+1)) (8). This module spells out all of it in numpy.

Eq. (6) has one V for each o_ij, so it is that of windows that do not overlap; where they do, a response that several windows
choose has the sum of theirs. Section 1 on linear models is tested on the network without its ReLU, and on one whose ReLUs
are all active and have positive weights behind them: there the three rules are one.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.nie2018.three_layer import LABELS
from vis import metrics
from vis.claims import Claim, Column, Compared, exactly, near
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.methods import DeconvNet, GuidedBackprop, Saliency
from vis.runner.experiment import Experiment, Load, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

Array = np.ndarray
H: dict[str, Callable[[Array], Array]] = {  # Eq. (2)
    "saliency": lambda V: V,
    "deconvnet": lambda V: np.maximum(V, 0),
    "gbp": lambda V: np.maximum(V, 0),
}
MASKED = {"saliency": True, "deconvnet": False, "gbp": True}  # g is the ReLU, whose derivative is 1[y > 0]
EQUATIONS = {
    "cnn": "Eq. 4",
    "cnn_stride_1": "Eq. 4",
    "fcn": "Eq. 4",
    "pool": "Eq. 6",
    "deep": "Eq. 8",
    "overlap": "sum of V",
}
CLAIMS = {"N-L1": "Eq. 4", "N-E6": "Eq. 6", "N-E8": "Eq. 8", "overlap": "sum of V"}
OVERLAP = (
    "Where pooling windows overlap, Eq. (6) holds with the sum of V over the windows that choose o_ij, not with one V."
)


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


def summed(o: Array, V: Array, side: Any) -> Array:
    """Return, for each o_ij, the sum of V over the windows with stride 1 that choose it. o, V: [N, H, W]."""
    reach, result = side // 2, np.zeros_like(V)
    padded = np.pad(o, ((0, 0), (reach, reach), (reach, reach)), constant_values=-np.inf)
    for i, r, c in np.ndindex(o.shape):
        row, column = divmod(int(padded[i, r : r + side, c : c + side].argmax()), side)
        result[i, r + row - reach, c + column - reach] += V[i, r, c]
    return result


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


def expected(net: Any, x: Array, k: int, method: str, printed: bool = False) -> Array:
    """Compute the closed form for one of this experiment's networks from its weights. x [3, H, W].

    printed: where windows overlap, take one V for each o_ij as in Eq. (6), not the sum over windows.
    """
    V = net.fc2.weight[k] if hasattr(net, "fc2") else net.fc.weight[k]
    V = V.detach().numpy()
    if hasattr(net, "fc1"):  # the FCN's one patch is the whole image
        return closed_form(x, net.fc1.weight.detach().numpy().reshape(-1, *x.shape), V[:, None], 1, 0, method)
    with torch.no_grad():
        o = net.relu(net.conv1(torch.from_numpy(x)[None]))
        shape, o_ij = o.shape[1:], o[0].numpy()
        if isinstance(net.pool, torch.nn.MaxPool2d) and net.pool.stride == 1:
            whole, side = V.reshape(shape), net.pool.kernel_size
            V = whole * (summed(o_ij, np.ones(shape), side) > 0) if printed else summed(o_ij, whole, side)
        elif isinstance(net.pool, torch.nn.MaxPool2d):
            V = np.kron(V.reshape(len(o[0]), shape[1] // 2, -1), np.ones((2, 2))) * chosen(o_ij)
        elif layers := [m for m in getattr(net, "extra", []) if isinstance(m, torch.nn.Conv2d)]:
            basis = torch.eye(o.numel(), dtype=o.dtype).reshape(-1, *shape)
            gammas = [layer(basis).flatten(1).numpy() for layer in layers]
            V = hidden(gammas, o.flatten().numpy(), V, method)
    conv = net.conv1
    V = V.reshape(len(o[0]), -1)
    return closed_form(x, conv.weight.detach().numpy(), V, conv.stride[0], conv.padding[0], method)


def logit(net: Any, x: Array, k: int) -> float:
    """Compute Eq. (3) for a three-layer CNN without biases and pooling as the sum over patches and filters."""
    W, stride, padding = net.conv1.weight.detach().numpy(), net.conv1.stride[0], net.conv1.padding[0]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, W.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
    responses = np.maximum(np.einsum("icuv,crsuv->irs", W, patches), 0)
    return float((net.fc.weight[k].detach().numpy() * responses.ravel()).sum())


def relative(a: Array, b: Array) -> float:
    """Return the largest absolute difference over the largest absolute value of b."""
    return float(np.abs(a - b).max() / np.abs(b).max())


def linear_models(net: Any, x: Tensor) -> dict[str, float]:
    """Test section 1 on linear models, and its control, for logit 0 of a three-layer CNN. x [1, 3, H, W].

    rules: how far the maps of the three rules differ if all ReLUs are active and have positive weights behind them.
    weights: how far the gradient differs from the weights of the model, f(e_p) for each pixel e_p. _relu: with ReLUs at work.
    """
    found, basis = {}, torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    for name, bias in (("rules", 1e6), ("rules_relu", 0.0)):
        active = copy.deepcopy(net)
        active.conv1.bias.data.fill_(bias)
        active.fc.weight.data.abs_()
        maps = [method(active, x, targets=0).numpy() for method in (Saliency(), DeconvNet(), GuidedBackprop())]
        found[name] = max(relative(map_, maps[0]) for map_ in maps[1:])
    for name, activation in (("weights", torch.nn.Identity()), ("weights_relu", net.relu)):
        model = copy.deepcopy(net)
        model.relu = activation
        with torch.no_grad():
            weights = model(basis)[:, 0].view(x.shape).numpy()
        found[name] = relative(Saliency()(model, x, targets=0).numpy(), weights)
    return found


def _models(net: Any, x: Tensor, seed: int) -> dict[str, float]:
    """Compute a row of the table `models` from logit 0 of a three-layer CNN: relative errors and those of their controls."""
    biased = copy.deepcopy(net)
    torch.nn.init.normal_(biased.conv1.bias, generator=torch.Generator().manual_seed(seed))
    value, found = logit(net, x[0].numpy(), 0), linear_models(net, x)
    with torch.no_grad():
        found |= {n: abs(f(x)[0, 0].item() - value) / abs(value) for n, f in (("sum", net), ("sum_bias", biased))}
    maps = {"slopes": Saliency()(net, x, targets=0), "slopes_gbp": GuidedBackprop()(net, x, targets=0)}
    return found | {name: finite_differences(net, x, map_, seed) for name, map_ in maps.items()}


def finite_differences(net: Any, x: Tensor, map_: Tensor, seed: int, step: float = 1e-5) -> float:
    """Return the error of a map of logit 0 as the gradient: of f(x + step u) - f(x - step u) in random directions u, relative."""
    u = torch.randn(8, *x.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    with torch.no_grad():
        slopes = (net(x + step * u) - net(x - step * u))[:, 0] / (2 * step)
    return relative((map_ * u).flatten(1).sum(1).numpy(), slopes.numpy())


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
        output, on_cpu, x = Output(tables={"table": []}), copy.deepcopy(model.net).cpu(), batch.x.cpu()
        for target in run.targets:
            units = run.units_of(model, target, batch.names)
            explained = run.explain(model, batch.x, [units])
            for i, image in enumerate(batch.names):
                k = int(explained.logits[i].argmax()) if units is None else units[i]
                maps = {method: each[i].numpy() for method, each in explained.maps[0].items()}
                formulas = {method: expected(on_cpu, x[i].numpy(), k, method) for method in maps}
                for (method, map_), other in zip(maps.items(), np.roll(list(maps), 1), strict=True):
                    row = {"seed": seed, "network": network, "image": image, "target": str(target), "method": method}
                    control = (
                        expected(on_cpu, x[i].numpy(), k, method, True) if network == "overlap" else formulas[other]
                    )
                    errors = {"error": relative(map_, formulas[method]), "control": relative(map_, control)}
                    output.tables["table"].append({**row, "equation": EQUATIONS[network], **errors})
                    if target == run.targets[0] and (seed == run.seeds[0] or network == "cnn"):
                        output.arrays[f"{image}/{network}/{method}/{seed}"] = map_
                        output.arrays[f"{image}/{network}/{method}/{seed}/formula"] = formulas[method]
        if network == "cnn_stride_1":  # the smallest
            output.tables["models"] = [{"seed": seed, **_models(on_cpu, x[:1], seed)}]
        return output

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Errors of each equation: the largest, and the smallest of the control; correlations of maps of two seeds."""
        seeds = sorted({row["seed"] for row in results.rows()})
        errors = []
        for seed in seeds:
            for equation in dict.fromkeys(EQUATIONS.values()):
                rows = results.rows(seed=seed, equation=equation)
                worst, best = max(r["error"] for r in rows), min(r["control"] for r in rows)
                errors.append({"seed": seed, "equation": equation, "error": worst, "control": best})
        image, pairs = results.rows()[0]["image"], []
        for a, b in zip(seeds, seeds[1:] + seeds[:1], strict=True):
            for method in results.config.methods:
                maps = (torch.from_numpy(results.arrays[f"{image}/cnn/{method}/{seed}"])[None] for seed in (a, b))
                pairs.append({"seed": a, "method": method, "correlation": metrics.pearson(*maps).item()})
        return {"errors": errors, "pairs": pairs}

    def claims(self, results: Results) -> list[Claim]:
        if not set(LABELS) <= set(results.config.methods):
            return []
        models = results.rows("models")

        def exact(metric: str, rows: Rows, name: str, control: str, words: str, within: float = 1e-12) -> Compared:
            column, null = Column(rows, name, "seed"), Column(rows, control, "seed")
            return Compared(f"{metric}, relative", column, exactly(0, within), null=null, control=words)

        found = []
        for id_, equation in CLAIMS.items():
            own = id_.startswith("N-")
            control = "the closed form of another method" if own else "one V, as printed"
            rows = results.rows("errors", equation=equation)
            compared = exact(
                "largest difference of closed form and autograd", rows, "error", control="control", words=control
            )
            sentence, source = ("", "") if own else (OVERLAP, "Section 3.2.1, Eq. (6)")
            found.append(Claim(id_, [compared], sentence=sentence, source=source))
        sal, gbp = (Column(results.rows("pairs", method=m), "correlation", "seed") for m in ("saliency", "gbp"))
        seeds = Compared("correlation of maps of two seeds", sal, near(0, 0.03, 0.5), null=gbp, control="GBP")
        relus = "the network with its ReLUs"
        found += [
            Claim(
                "N-3.1-a",
                [exact("difference of logit and double sum", models, "sum", "sum_bias", "a network with biases")],
            ),
            Claim("N-1-a", [exact("largest difference of the three maps", models, "rules", "rules_relu", relus)]),
            Claim("N-1-b", [exact("largest difference of map and weights", models, "weights", "weights_relu", relus)]),
            Claim(
                "N-3.1.2-b", [exact("error of finite differences", models, "slopes", "slopes_gbp", "GBP", 1e-6), seeds]
            ),
        ]
        reason = "" if results.config.precision == "float64" else "it takes precision=float64"
        return [replace(claim, reason=reason) for claim in found]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        image, network = results.rows()[0]["image"], results.rows()[0]["network"]
        methods = [m for m in LABELS if m in results.config.methods]
        rows = []
        for key, label in (("/formula", "Eq. 4"), ("", "autograd")):
            maps = [results.arrays[f"{image}/{network}/{m}/{results.config.seed}{key}"] for m in methods]
            errors = [max(r["error"] for r in results.rows(network=network, method=m)) for m in methods]
            notes = ["" if key else f"largest relative difference {e:.0e}" for e in errors]
            titles = [LABELS[m] if key else "" for m in methods]
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
