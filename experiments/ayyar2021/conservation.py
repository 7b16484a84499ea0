"""ayyar2021, sections 5.1 and 5.2: what the equations of LRP, deep Taylor decomposition and DeepLIFT conserve (Eqs. 11 to 25).

A task is a seed: a random network with its layers in a row and a residual one, each with and without biases, in float64.
"""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.ayyar2021.equations import RESIDUAL, denominators, linear, network, relevances, score
from vis import metrics
from vis.claims import Claim, Column, Compared, Rule, above, each_above, exactly, mean
from vis.figures.layout import plot, styled
from vis.methods import DeepLIFT
from vis.methods.rules import Part, alpha_beta_rule, epsilon_rule, gamma_eq14_rule, negative, positive
from vis.methods.rules import Rule as Shares
from vis.runner.experiment import Experiment, Run, Task
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows

KINDS = ("plain", RESIDUAL)
LEVELS = (0.0, 0.1, 0.3, 1.0, 3.0)  # epsilon, in parts of the root mean square of z
STEPS = (1.0, 1e-2, 1e-4, 1e-6)  # distances of DeepLIFT's reference
EXACT, CONSERVED, OTHER = exactly(0, 1e-12), exactly(0, 1e-6), each_above(1e-6)


def alpha_beta(alpha: float, beta: float) -> Shares:
    """Return the rule of Eq. 15 for any alpha and beta."""
    down = Part(-beta, ((positive, negative), (negative, positive)))
    return Shares((alpha_beta_rule(1).parts[0]._replace(coefficient=alpha), *([down] if beta else [])))


RULES = {
    "LRP-0": epsilon_rule(0.0), "LRP-ε": epsilon_rule(0.1), "LRP-γ": gamma_eq14_rule(0.25),
    "LRP-αβ, α = 2, β = 1": alpha_beta(2, 1), "LRP-αβ, α = 1, β = 0": alpha_beta(1, 0),
}  # fmt: skip
UNCONSTRAINED = {"α = 2, β = 1/2": alpha_beta(2, 0.5), "α = 1, β = 1/2": alpha_beta(1, 0.5)}
CONSERVING = tuple(name for name in RULES if name != "LRP-ε")


class Conservation(Experiment):
    """Measure each equation on random networks."""

    metrics = ("error",)
    series = "rule"

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"seed": seed} for seed in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        seed = task["seed"]
        generator = torch.Generator().manual_seed(seed)
        x, x0 = (torch.rand(1, 3, 12, 12, generator=generator, dtype=torch.float64) - 0.5 for _ in range(2))
        output = Output(tables={"table": [], "networks": []})
        for kind in KINDS:
            for biases in (True, False):
                net, where = network(kind, seed, biases), {"seed": seed, "network": kind, "biases": biases}
                for rule, shares in (RULES | UNCONSTRAINED).items():
                    output.tables["table"] += [where | row for row in conserved(net, x, rule, shares)]
                for rule in ("rescale", "reveal_cancel"):
                    output.tables["table"] += [where | row for row in summed_to_delta(net, x, x0, rule)]
            net = network(kind, seed)
            output.tables["networks"].append({"seed": seed, "network": kind} | of_lrp(net, x) | of_deeplift(net, x, x0))
        output.tables["networks"][0] |= connections(network("plain", seed), x, generator)
        output.tables["taylor"] = [{"seed": seed, "neuron": i} | taylor(generator) for i in range(20)]
        return output

    # --- from what is stored ------------------------------------------------------------------------------------------

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the mean and the largest deviation from conservation of each rule."""
        rows: Rows = []
        for rule in dict.fromkeys(row["rule"] for row in results.rows()):
            for biases in (True, False):
                errors = [row["error"] for row in results.rows(rule=rule, biases=biases)]
                rows.append({"rule": rule, "biases": biases, "mean": mean(errors), "largest": max(errors)})
        return {"summary": rows}

    def claims(self, results: Results) -> list[Claim]:
        def sums(rule: str, words: str = "|ΣR / S - 1| in each layer", how: Rule = CONSERVED, **where: Any) -> Compared:
            rows, without = (results.rows(rule=rule, **chosen) for chosen in (where, {"biases": False}))
            own, null = (Column(each, "error", ("seed", "network", "layer")) for each in (rows, without))
            words = f"{words}, {rule}" + {True: ", biases", False: ", no biases", None: ""}[where.get("biases")]
            return Compared(words, own, how, null=1.0 if where.get("biases") is False else null,
                            control="nothing arrives: 1" if where.get("biases") is False else "no biases")  # fmt: skip

        both = [sums(rule, biases=biases) for rule in RULES for biases in (True, False)]
        constrained = [sums(rule, biases=False) for rule in CONSERVING[2:]]
        constrained += [sums(rule, how=OTHER, biases=False, layer=0) for rule in UNCONSTRAINED]
        delta = [sums(rule, "|ΣR - ΔS| / |ΔS| in each layer") for rule in ("rescale", "reveal_cancel")]
        return [
            Claim("A-5.1-a", both),
            Claim("A-5.1-c", [sums("LRP-0", biases=True)]),
            Claim("A-5.1-h", constrained),
            Claim("A-5.2-a", delta),
            Claim("conserved_without_biases", [sums(rule, biases=False) for rule in CONSERVING],
                  sentence="Without biases, all rules of LRP but LRP-ε conserve relevance.", source="The project, Eq. 11"),
            *self._of_networks(results), *self._of_neurons(results),
        ]  # fmt: skip

    def _of_networks(self, results: Results) -> list[Claim]:
        def one(
            words: str, name: str, rule: Rule, null: str | float = 0.0, control: str = "no difference: 0"
        ) -> Compared:
            own, other = (Column(results.rows("networks"), str(key), "seed") for key in (name, null))
            return Compared(words, own, rule, null=other if isinstance(null, str) else null, control=control)

        largest = "log10 of the largest |R|, LRP-0 - LRP-ε"
        share = "slope of the share of |R_ij| on the strongest tenth of the connections, as ε rises"
        return [
            Claim("A-5.1-b", [one("|R - x ∂S/∂x| / |R| of LRP-0, biases", "gradient", OTHER, control="equal maps: 0")]),
            Claim("A-5.1-d", [one(f"{largest}, {how}", name, above(0)) for how, name in
                              (("as printed", "stabler_printed"), ("signed", "stabler_signed"))]),
            Claim("A-5.1-e", [one("rank correlation of the share that a neuron passes on with its |z|, ε = 0.1 - ε = 0",
                                  "kept", above(0))]),
            Claim("A-5.1-f", [one(share, "strongest", above(0), "strongest_random", "a random tenth of the connections")]),
            Claim("A-5.1-g", [one("share of |R_ij| through positive weights, γ = 0.25 - γ = 0", "through_positive", above(0))]),
            Claim("A-5.2-b", [
                one("|m - ∂S/∂y| / |∂S/∂y|, reference at a distance of 1e-6", "slope_1e-06", exactly(0, 1e-3), "slope_1",
                    "reference at a distance of 1"),
                one("the same at a distance of 1", "slope_1", each_above(1e-3), control="the derivative: 0"),
                one("|m - Σ_j m_j m_j'| / |m|, the chain rule of Eq. 21", "chain", EXACT, "chain_gradient",
                    "the chain rule with derivatives")]),
        ]  # fmt: skip

    def _of_neurons(self, results: Results) -> list[Claim]:
        def one(words: str, name: str, null: str, control: str) -> Compared:
            own, other = (Column(results.rows("taylor"), key, ("seed", "neuron")) for key in (name, null))
            return Compared(f"largest {words}", own, EXACT, null=other, control=control)

        other, root = "another root", "|first-order term - Eq. 13|"
        mended = one(f"{root}, ã_i = a_i ε / (a_j + ε)", "epsilon_mended", "other_root", other)
        return [
            Claim("A-5.1-i", [one("remainder of Eq. 18, root on the side of a", "remainder", "across", "root across the kink")]),
            Claim("A-5.1-j", [one("|first-order term - Eq. 12|, ã = 0", "zero", "other_root", other)]),
            Claim("A-5.1-k", [one(f"{root}, ã = ε / (a_j + ε)", "epsilon_printed", "other_root", other)]),
            Claim("A-5.2-c", [one("|Δz⁺ + Δz⁻ - Δz|, RevealCancel", "reveal_cancel", "positive_alone", "Δz⁺ alone"),
                              one("|R⁺ - Eq. 23| and |R⁻ - Eq. 24|", "by_sign", "positive_alone", "Δz⁺ alone"),
                              one("|Σ R - Δz|, Rescale", "rescale", "positive_alone", "Δz⁺ alone")]),
            Claim("epsilon_root_mended", [mended], source="The project, section 5.1.1",
                  sentence="The root of LRP-ε has the factor a_i, which the survey omits."),
        ]  # fmt: skip

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        rules = list(RULES)
        caption = [
            "Sum of the relevance of each layer over the logit, from the image (0) to the logit; mean of "
            f"{results.config.seeds} random networks, ε = 0.1 rms z, γ = 0.25",
            "Eq. 11 asks for 1 in each layer",
        ]
        figure, axes = plot(6.5, 2.6, caption, columns=2)
        with styled():
            for axis, biases in zip(axes, (True, False), strict=True):
                for rule in rules:
                    rows = results.rows(rule=rule, network="plain", biases=biases)
                    layers = sorted({row["layer"] for row in rows})
                    axis.plot(layers, [mean([r["sum"] for r in rows if r["layer"] == k]) for k in layers], "o-",
                              markersize=2.5, linewidth=1, label=rule)  # fmt: skip
                axis.xaxis.get_major_locator().set_params(integer=True)
                axis.axhline(1, color="0.7", linewidth=0.6, zorder=0)
                axis.set(
                    title="with biases" if biases else "without biases", xlabel="module", ylabel=r"$\Sigma R\,/\,S$"
                )
            axes[-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
        return {"figure": figure}


# --- what is measured ---------------------------------------------------------------------------------------------------


def conserved(net: nn.Sequential, x: Tensor, rule: str, shares: Shares) -> Rows:
    """Return the sum of the relevance over the logit S for the inputs of each module."""
    c, R = score(net, x)
    found = [relevance.sum().item() / R[0, c].item() for _, relevance in relevances(net, x, R, shares)]
    return [{"rule": rule, "layer": k, "sum": each, "error": abs(each - 1)} for k, each in enumerate(found)]


def summed_to_delta(net: nn.Sequential, x: Tensor, x0: Tensor, rule: str) -> Rows:
    """Return |sum R - dS| / |dS| of DeepLIFT for the inputs of each layer: the rest of the network is explained."""
    c, _ = score(net, x)
    delta = (net(x) - net(x0))[0, c].item()
    rows: Rows = []
    for k, module in enumerate(net):
        if isinstance(module, nn.Conv2d | nn.Linear):
            total = lifted(net[k:], net[:k](x), net[:k](x0), c, rule).sum().item() / delta
            rows.append({"rule": rule, "layer": k, "sum": total, "error": abs(total - 1)})
    return rows


def lifted(net: nn.Sequential, y: Tensor, y0: Tensor, c: int | list[int], rule: str = "rescale") -> Tensor:
    """Return DeepLIFT's relevance of the inputs y of a network, [B, C, H, W] or flat, with the reference y0."""
    if y.ndim == 2:
        net, y, y0 = nn.Sequential(nn.Flatten(), *net), y[..., None, None], y0[..., None, None]
    return DeepLIFT(rule, baseline=y0)(net, y, [c] if isinstance(c, int) else c)


def of_lrp(net: nn.Sequential, x: Tensor) -> dict[str, float]:
    """Return the numbers of LRP-0, LRP-ε and LRP-γ on a network with biases."""
    c, R = score(net, x)
    zero, epsilon = RULES["LRP-0"], RULES["LRP-ε"]
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[0, c], leaf)
    maps = {name: relevances(net, x, R, rule, signed)[0][1].abs() for name, rule, signed in
            (("zero", zero, True), ("printed", epsilon, False), ("signed", epsilon, True))}  # fmt: skip
    found = {
        f"stabler_{how}": (maps["zero"].amax().log10() - maps[how].amax().log10()).item()
        for how in ("printed", "signed")
    }
    lrp = relevances(net, x, R, zero)[0][1]
    found["gradient"] = ((lrp - x * gradient).norm() / lrp.norm()).item()
    kept, through = (
        [_of_layers(net, x, R, rule) for rule in both] for both in ((epsilon, zero), (RULES["LRP-γ"], zero))
    )
    found["kept"] = kept[0]["kept"] - kept[1]["kept"]
    return found | {"through_positive": through[0]["positive"] - through[1]["positive"]}


def _of_layers(net: nn.Sequential, x: Tensor, R: Tensor, rule: Shares) -> dict[str, float]:
    """Return means over layers: of the share kept by a neuron, its rank correlation with |z|; the share of |R_ij| by w > 0."""
    steps, kept, through = relevances(net, x, R, rule), [], []
    for module, (a, _), (_, R_out) in zip(net, steps[:-1], steps[1:], strict=True):
        if not isinstance(module, nn.Conv2d | nn.Linear) or steps[0][0] is a:
            continue
        (part,) = rule.parts
        z, below, _ = denominators(module, a, part, rule.epsilon)
        active = (R_out != 0) & (below != 0)
        assert module.bias is not None
        bias = part.products[0][1](module.bias).view(-1, *[1] * (z.ndim - 2))
        passed = ((z - bias) / below).detach()
        if active.sum() > 2:
            kept.append(metrics.spearman(passed[active][None], z.detach().abs()[active][None]).item())
        messages = torch.where(active, (R_out / below).abs(), 0)
        w = part.products[0][1](module.weight)
        up, down = (_messages(module, a, each, messages) for each in (w.clamp(min=0), w.clamp(max=0).abs()))
        through.append(up / (up + down))
    return {"kept": mean(kept), "positive": mean(through)}


def _messages(module: nn.Module, a: Tensor, w: Tensor, messages: Tensor) -> float:
    """Return sum_ij a_i w_ij m_j of a layer."""
    return (linear(module, a, w, None) * messages).sum().item()


def connections(net: nn.Sequential, x: Tensor, generator: torch.Generator) -> dict[str, float]:
    """Return how the share of |R_ij| on the strongest tenth of the connections |a_i w_ij|, and on a random one, rises with ε.

    Of the dense layer before the last: the slope over the steps of LEVELS.
    """
    layer: Any = net[-3]
    _, R = score(net, x)
    shares: list[list[float]] = [[], []]
    for level in LEVELS:
        steps = relevances(net, x, R, epsilon_rule(level))
        a, R_out = steps[-4][0], steps[-3][1]
        _, below, _ = denominators(layer, a, epsilon_rule(level).parts[0], level)
        strong = (a * layer.weight)[:, (a != 0)[0]][(R_out != 0)[0]].flatten()
        sent = (a * layer.weight * (R_out / below).T)[:, (a != 0)[0]][(R_out != 0)[0]].abs().flatten()
        count = len(strong) // 10
        chosen = (strong.abs().topk(count).indices, torch.randperm(len(strong), generator=generator)[:count])
        for share, indices in zip(shares, chosen, strict=True):
            share.append((sent[indices].sum() / sent.sum()).item())
    own, random = (torch.tensor(share, dtype=torch.float64) for share in shares)
    steps_ = torch.arange(len(LEVELS), dtype=torch.float64) - (len(LEVELS) - 1) / 2
    return {
        "strongest": (own @ steps_ / steps_.square().sum()).item(),
        "strongest_random": (random @ steps_ / steps_.square().sum()).item(),
    }


def of_deeplift(net: nn.Sequential, x: Tensor, x0: Tensor) -> dict[str, float]:
    """Return how far multipliers are from the derivative and from the chain rule of Eq. 21."""
    c, _ = score(net, x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(net(leaf)[0, c], leaf)
    found = {}
    for step in STEPS:
        near = x + step * (x0 - x)
        m = lifted(net, x, near, c) / (x - near)
        found[f"slope_{step:g}"] = ((m - gradient).norm() / gradient.norm()).item()
    m, head, tail = lifted(net, x, x0, c) / (x - x0), net[:-1], net[-1:]
    z, z0 = head(x), head(x0)
    outer = (lifted(tail, z, z0, c).flatten() / (z - z0).flatten()).nan_to_num()
    n = len(outer)
    inner = lifted(head, x.expand(n, -1, -1, -1), x0, list(range(n))) / (x - x0)
    chained = torch.einsum("j,jchw->chw", outer, inner)[None]
    derivatives = torch.autograd.functional.jacobian(lambda v: head(v)[0], x)[:, 0]
    by_derivatives = torch.einsum("j,jchw->chw", outer, derivatives)[None]
    found["chain"], found["chain_gradient"] = (
        ((each - m).norm() / m.norm()).item() for each in (chained, by_derivatives)
    )
    return found


def taylor(generator: torch.Generator, inputs: int = 8, epsilon: float = 0.1) -> dict[str, float]:
    """Return the largest errors of Eqs. 16 to 18 and 22 to 25 for a random neuron with a bias, whose output is positive."""

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator, dtype=torch.float64)

    a, w, r = normal(inputs + 1).abs(), normal(inputs + 1), normal(1)[0]
    a[0] = 1  # the bias neuron
    w = w if a @ w > 0 else -w
    z = a @ w

    def R(at: Tensor) -> Tensor:
        return (at @ w).clamp(min=0) * r  # Eq. 17

    def first_order(root: Tensor) -> Tensor:
        return (a - root) * w * r

    near, far = 0.5 * a, a - 2 * z * w / (w @ w)
    printed = torch.full_like(a, epsilon) / (z + epsilon)
    zero, rule = a * w / z * R(a), a * w / (z + epsilon) * R(a)
    found = {
        "remainder": R(a) - R(near) - first_order(near).sum(), "across": R(a) - R(far) - first_order(far).sum(),
        "zero": first_order(torch.zeros_like(a)) - zero, "other_root": first_order(near) - zero,
        "epsilon_printed": first_order(printed) - rule, "epsilon_mended": first_order(a * epsilon / (z + epsilon)) - rule,
    }  # fmt: skip
    return {name: each.abs().max().item() for name, each in found.items()} | reveal_cancel(w[1:], w[0], normal)


def reveal_cancel(w: Tensor, b: Tensor, normal: Any) -> dict[str, float]:
    """Return the errors of Eqs. 22 to 25 in DeepLIFT of a network that is one neuron max(0, w x + b)."""
    x, x0 = normal(len(w)), normal(len(w))
    layer = nn.Linear(len(w), 1).double().requires_grad_(False)
    layer.weight.copy_(w[None])
    layer.bias.copy_(b[None])
    net = nn.Sequential(nn.Flatten(), layer, nn.ReLU())
    y0, terms = x0 @ w + b, w * (x - x0)
    up, down = terms.clamp(min=0).sum(), terms.clamp(max=0).sum()

    def g(*added: Tensor) -> Tensor:
        return (y0 + sum(added, torch.zeros_like(y0))).clamp(min=0)

    rise = ((g(up) - g()) + (g(up, down) - g(down))) / 2  # Eq. 23
    fall = ((g(down) - g()) + (g(down, up) - g(up))) / 2  # Eq. 24
    R = {rule: lifted(net, x[None, :, None, None], x0[None, :, None, None], 0, rule).flatten()
         for rule in ("rescale", "reveal_cancel")}  # fmt: skip
    delta, by_sign = g(up, down) - g(), R["reveal_cancel"]
    errors = {
        "reveal_cancel": rise + fall - delta,
        "rescale": R["rescale"].sum() - delta,
        "positive_alone": rise - delta,
    }
    signs = max((by_sign[terms > 0].sum() - rise).abs(), (by_sign[terms < 0].sum() - fall).abs())
    return {name: each.abs().item() for name, each in errors.items()} | {"by_sign": signs.item()}
