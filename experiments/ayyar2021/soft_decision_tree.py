"""ayyar2021, Section 2.1: a trained network distilled into a soft decision tree (Frosst & Hinton 2017).

Inner node i of a binary tree sends an image to its right child with the probability

    p_i(x) = sigma(beta (x w_i + b_i))                                                                              (1)

(beta is Frosst & Hinton's inverse temperature; the survey leaves it out), and leaf l holds a distribution Q^l over the
classes. With P^n(x) the product of the probabilities on the way to node n, and targets T, the network's probabilities (soft
labels) or the true classes, the loss is the cross entropy of each leaf weighted by the probability of its path, and a
penalty that keeps the inner nodes of depth d from sending all images one way,

    L = - sum_l P^l(x) sum_k T_k log Q_k^l  -  lambda sum_i 2^-d (log alpha_i + log(1 - alpha_i)) / 2
    alpha_i = sum_x P^i(x) p_i(x) / sum_x P^i(x)        averaged over the last batches, 2^d of them

The tree's answer is the Q of the leaf with the most probable path. A tree explains a dataset: its filters w_i show what it
looks for, and the path of an image shows why it is classified so.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor, nn

from experiments.ayyar2021.verdicts import POSITIVE
from vis.claims import Claim, Column, Compared, above, at_small_sizes, exactly, mean_and_spread
from vis.errors import UserError
from vis.figures import display
from vis.figures.layout import PAGE_WIDTH, plot, styled
from vis.models import Model
from vis.runner.experiment import Experiment, Run, Task
from vis.runner.remarks import plural
from vis.store.run_folder import Output, Results
from vis.store.tables import Rows
from vis.system.console import progress
from vis.training.images import Images, load_images, order, splits

LABELS = {"soft": "the network's probabilities", "true": "the true classes"}
_DRAWN = 4  # levels of a tree that fit on a page


class SoftDecisionTree(nn.Module):
    """A soft decision tree: images [B, ...] -> log Q [B, K] of each image's most probable leaf.

    Nodes are numbered level by level, from left to right: the children of i are 2i + 1 (left) and 2i + 2 (right).
    """

    def __init__(self, values: int, classes: int, depth: int, beta: float = 1.0) -> None:
        super().__init__()
        self.depth, self.beta = depth, beta
        self.filters = nn.Linear(values, 2**depth - 1)
        self.leaves = nn.Parameter(0.01 * torch.randn(2**depth, classes))  # log Q up to a constant

    def paths(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return p_i(x) of the inner nodes [B, 2^depth - 1] and P^n(x) of all nodes [B, 2^(depth + 1) - 1]."""
        p = torch.sigmoid(self.beta * self.filters(x.flatten(1)))
        levels = [p.new_ones(len(p), 1)]
        for d in range(self.depth):
            right = p[:, 2**d - 1 : 2 ** (d + 1) - 1]
            levels.append(torch.stack([levels[-1] * (1 - right), levels[-1] * right], 2).flatten(1))
        return p, torch.cat(levels, 1)

    def log_q(self) -> Tensor:
        """Return log Q_k^l of the leaves: [2^depth, K]."""
        return self.leaves.log_softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.log_q()[self.paths(x)[1][:, len(self.leaves) - 1 :].argmax(1)]


class Penalty:
    """Computes the penalty of L, without lambda, from a batch's `paths`; keeps running sums for alpha."""

    def __init__(self, depth: int) -> None:
        self.window = torch.cat([torch.full((2**d,), 2.0**d) for d in range(depth)])
        self.sums: Tensor | None = None  # of P^i p_i and of P^i: [2, inner nodes]

    def __call__(self, p: Tensor, P: Tensor) -> Tensor:
        P, window = P[:, : p.shape[1]], self.window.to(p)
        now = torch.stack([(P * p).mean(0), P.mean(0)])
        self.sums = now if self.sums is None else self.sums.detach() + (now - self.sums.detach()) / window
        alpha = (self.sums[0] / self.sums[1]).clamp(1e-6, 1 - 1e-6)
        return -((alpha.log() + (1 - alpha).log()) / (2 * window)).sum()


def loss(tree: SoftDecisionTree, P: Tensor, T: Tensor) -> Tensor:
    """Return the cross entropy of L, the mean over a batch of paths P [B, nodes] and targets T [B, K]."""
    return -(P[:, len(tree.leaves) - 1 :] * (T @ tree.log_q().T)).sum(1).mean()


def grow(x: Tensor, T: Tensor, depth: int, recipe: Mapping[str, Any], seed: int) -> SoftDecisionTree:
    """Train a tree by Adam on images x [N, ...] and targets T [N, K]; reproducible by seed.

    recipe: steps, batch_size, lr (decays to 0 as a cosine), beta, penalty (lambda).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tree = SoftDecisionTree(x[0].numel(), T.shape[1], depth, recipe["beta"]).to(x)
    steps, size, penalty = recipe["steps"], recipe["batch_size"], Penalty(depth)
    adam = torch.optim.Adam(tree.parameters(), recipe["lr"])
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for step in progress(range(steps), steps, "steps", desc=f"a tree of depth {depth}", leave=False):
        epoch, batch = divmod(step, -(-len(x) // size))
        if batch == 0:
            batches = order(seed, epoch, len(x)).to(x.device).split(size)
        p, P = tree.paths(x[batches[batch]])
        value = loss(tree, P, T[batches[batch]]) + recipe["penalty"] * penalty(p, P)
        adam.zero_grad()
        value.backward()
        adam.step()
        falling.step()
    return tree.requires_grad_(False)


class Distillation(Experiment):
    """Distill a network into trees of several depths. A task is a tree; the network's answers stay in memory.

    depths: depths of the trees; the figure shows the shallowest, the claims judge the deepest. recipe: see `grow`.
    """

    metrics = ("accuracy", "agreement")
    series = "labels"

    def __init__(self, depths: Sequence[int], recipe: Mapping[str, Any]) -> None:
        if not depths or min(depths) < 1 or max(depths) > 12:
            raise UserError(f"experiment.depths={list(depths)}: depths must be from 1 to 12")
        self.depths, self.recipe = sorted(set(depths)), dict(recipe)
        self._taught: tuple[Model, list[tuple[Tensor, Tensor, Tensor]]] | None = None

    def tasks(self, run: Run) -> Sequence[Task]:
        return [{"depth": d, "labels": each, "seed": s} for d in self.depths for each in LABELS for s in run.seeds]

    def compute(self, run: Run, task: Task) -> Output:
        model, ((x, soft, true), (val_x, val_soft, val_true)) = self._teach(run)
        T = soft if task["labels"] == "soft" else nn.functional.one_hot(true, soft.shape[1]).to(soft)
        tree = grow(x, T, task["depth"], self.recipe, task["seed"])
        own, network = tree(val_x).argmax(1), val_soft.argmax(1)
        row = {**task, "accuracy": agreement(own, val_true), "agreement": agreement(own, network)}
        row |= {"network": agreement(network, val_true), "train_images": len(x), "val_images": len(val_x)}
        row |= {
            "weights": model.weights,
            "data": run.dataset.origin,
            "equation_error": equation_error(tree, val_x[:100]),
        }
        output = Output(tables={"table": [row]})
        if (task["depth"], task["labels"], task["seed"]) == (self.depths[0], "soft", run.seeds[0]):
            P = tree.paths(val_x)[1]
            pixels = run.preprocess(model).inverse(val_x[:1].cpu())[0]
            output.arrays = {
                "filters": tree.filters.weight.view(-1, *val_x.shape[1:]).cpu().numpy(),
                "Q": tree.log_q().exp().cpu().numpy(),
                "use": P.mean(0).cpu().numpy(),  # share of the test images that reach each node
                "example": pixels.numpy(),
                "path": P[0].cpu().numpy(),
            }
        return output

    def _teach(self, run: Run) -> tuple[Model, list[tuple[Tensor, Tensor, Tensor]]]:
        """Return the network, and for its training and its test images x, probabilities and true classes."""
        if self._taught is None:
            node = OmegaConf.to_container(run.config.dataset, resolve=True)
            assert isinstance(node, dict)
            # Before the model: a download of MNIST makes it available to the training of the stand-in.
            parts = splits({str(key): value for key, value in node.items()})
            model = run.model()
            run.reader.dataset = parts[0]  # for the provenance
            parts_of = [load_images(part, model.input_size, model.channels) for part in parts]
            self._taught = model, [answers(run, model, images) for images in parts_of]
        return self._taught

    # --- from what is stored ------------------------------------------------------------------------------------------

    def claims(self, results: Results) -> list[Claim]:
        rows = results.rows(depth=self.depths[-1])
        found = {labels: [row for row in rows if row["labels"] == labels] for labels in LABELS}

        def of(labels: str, name: str) -> Column:
            return Column(found[labels], name, "seed")

        share = "share of test images that tree and network call the same"
        mimics = [
            Compared(share, of("soft", "agreement"), above(0.9, ours="the bound is ours"), null=1 / 10, control="chance: 1/10"),
            Compared(f"{share}, tree of its probabilities - of the true classes",
                     of("soft", "agreement") - of("true", "agreement"), POSITIVE, null=0.0,
                     control="a tree that only learnt the classes: 0"),
        ]  # fmt: skip
        every = Column(results.rows(), "equation_error", "seed")
        equation = Compared("largest |p_i - σ(x w_i + b_i)| or |sum of the paths - 1|", every, exactly(0, 1e-12), null=1.0,
                            control="a path that is lost: 1")  # fmt: skip
        better = Compared("test accuracy, tree of the network's probabilities - of the true classes",
                          of("soft", "accuracy") - of("true", "accuracy"), POSITIVE, null=0.0, control="no gain: 0")  # fmt: skip
        below = Compared("test accuracy, network - tree of its probabilities", of("soft", "network") - of("soft", "accuracy"),
                         POSITIVE, null=0.0, control="an equal tree: 0")  # fmt: skip
        source = "Frosst & Hinton 2017, whom Section 2.1 cites"
        return [
            Claim("A-2.1-a", mimics, reason=at_small_sizes(results.config)),
            Claim("A-2.1-b", [equation]),
            Claim("soft_labels", [better], source=source,
                  sentence="A tree that learns the network's probabilities generalizes better than one of the true classes."),
            Claim("below_network", [below], source=source, sentence="The tree stays below the network."),
        ]  # fmt: skip

    def summaries(self, results: Results) -> dict[str, Rows]:
        """Return the accuracies by depth, mean and standard deviation over the seeds."""
        rows = []
        for depth in self.depths:
            row: dict[str, Any] = {"depth": depth, "network": results.rows()[0]["network"]}
            for labels in LABELS:
                found = results.rows(depth=depth, labels=labels)
                row[f"{labels} labels"] = mean_and_spread([r["accuracy"] for r in found])
                row[f"{labels} labels, agreement"] = mean_and_spread([r["agreement"] for r in found])
            rows.append(row)
        return {"accuracies": rows}

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config, arrays = results.config, results.arrays
        row = results.rows()[0]
        shown = min(self.depths[0], _DRAWN)
        caption = [
            f"A soft decision tree of depth {self.depths[0]} that learnt from {config.model.name}, {row['weights']}",
            f"Its accuracy is {row['accuracy']:.2%}, the network's {row['network']:.2%}",
            "Inner nodes: the filters w (red positive, blue negative); an image x goes to the right where x w + b > 0. "
            "Below: the classes' probabilities at each end"
            + (f", over the leaves under it (the upper {shown} levels are drawn)" if shown < self.depths[0] else ""),
            "Red: the way of the image at the upper left to its most probable leaf, which is the tree's answer",
        ]
        tree, (axes,) = plot(PAGE_WIDTH, 0.55 * shown + 1.1, caption)
        with styled():
            _draw_tree(axes, arrays["filters"], ends(arrays["Q"], arrays["use"], shown), arrays["path"], shown)
            corner = axes.inset_axes((0.0, 0.82, 0.12, 0.18))
            corner.imshow(display.picture(arrays["example"]))
            corner.set_axis_off()
        caption = [
            f"Accuracy on {row['val_images']} test images: {config.model.name} and trees that learnt its probabilities or the "
            f"true classes from {row['train_images']} images of {row['data']}, {plural(config.seeds, 'seed')}"
        ]
        accuracy, (axes,) = plot(caption=caption)
        with styled():
            axes.axhline(100 * row["network"], color="black", linewidth=1, label="network")
            for labels, words in LABELS.items():
                means = [results.rows(depth=d, labels=labels) for d in self.depths]
                axes.plot(
                    self.depths, [100 * np.mean([r["accuracy"] for r in each]) for each in means], "-", label=words
                )
                color = axes.lines[-1].get_color()
                for each in means:
                    axes.plot([r["depth"] for r in each], [100 * r["accuracy"] for r in each], ".", color=color)
            axes.set(xlabel="depth of the tree", ylabel="accuracy (%)", xticks=self.depths)
            axes.legend()
        return {"figure": tree, "accuracy": accuracy}


@torch.no_grad()
def answers(run: Run, model: Model, images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Return preprocessed images [N, C, H, W], the network's probabilities [N, K] and the true classes [N], on the device."""
    preprocess, found = run.preprocess(model), []
    pixels = images.pixels.to(run.device)
    x = torch.cat([preprocess(part.to(run.dtype) / 255) for part in pixels.split(1000)])
    for part in progress(x.split(500), None, "batches", desc="the network's answers", leave=False):
        found.append(model.net(part.to(memory_format=model.memory_format)).softmax(1))
    soft, true = torch.cat(found), images.labels.to(run.device)
    if int(true.max()) >= soft.shape[1]:
        raise UserError(
            f"{images.origin} has more classes than the {soft.shape[1]} of {model.name}: give its own dataset"
        )
    return x, soft, true


def agreement(a: Tensor, b: Tensor) -> float:
    """Return the share of equal entries."""
    return (a == b).double().mean().item()


def equation_error(tree: SoftDecisionTree, x: Tensor) -> float:
    """Return the largest difference of p_i from Eq. 1, and of the sum of all paths from 1, in float64."""
    tree, x = copy.deepcopy(tree).double(), x.double()
    p, P = tree.paths(x)
    printed = torch.sigmoid(x.flatten(1) @ tree.filters.weight.T + tree.filters.bias)
    return max((p - printed).abs().max().item(), (P[:, p.shape[1] :].sum(1) - 1).abs().max().item())


def ends(Q: np.ndarray, use: np.ndarray, shown: int) -> np.ndarray:
    """Return the class probabilities at the nodes of level `shown`: the mean Q [leaves, K] below, weighted by `use` [nodes]."""
    weight = use[len(Q) - 1 :, None] + 1e-12  # avoids 0 / 0 at leaves that no image reaches
    grouped = (weight * Q).reshape(2**shown, -1, Q.shape[1]).sum(1)
    return grouped / grouped.sum(1, keepdims=True)


def way_to_answer(P: np.ndarray) -> set[int]:
    """Return the leaf with the largest path probability in P [nodes], and the nodes above it."""
    inner = len(P) // 2
    way = {inner + int(P[inner:].argmax())}
    while (node := min(way)) > 0:
        way.add((node - 1) // 2)
    return way


def _draw_tree(axes: Any, filters: np.ndarray, Q: np.ndarray, P: np.ndarray, shown: int) -> None:
    """Draw the filters [inner, C, H, W] of the upper levels, Q [2^shown, K] under them, and the answer's path by P in red."""
    way = way_to_answer(P)
    height = 1 / (shown + 1)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()

    def place(i: int) -> tuple[float, float]:
        level = (i + 1).bit_length() - 1
        return (i + 1 - 2**level + 0.5) / 2**level, 1 - (level + 0.5) * height

    for i in range(1, 2 ** (shown + 1) - 1):
        ends_ = place((i - 1) // 2), place(i)
        axes.plot(
            *zip(*ends_, strict=True),
            color="tab:red" if i in way else "0.7",
            linewidth=2 if i in way else 0.6,
            zorder=0,
        )
    bound = np.abs(filters[: 2**shown - 1]).max()
    for i in range(2 ** (shown + 1) - 1):
        x, y = place(i)
        side = min(0.8 * height, 0.9 / 2 ** max(shown - 1, 2))
        inset = axes.inset_axes((x - 0.45 / 2**shown, y - 0.45 * height, 0.9 / 2**shown, 0.8 * height))
        if i < 2**shown - 1:
            inset.remove()
            inset = axes.inset_axes((x - side / 2, y - 0.42 * height, side, 0.84 * height))
            inset.imshow(filters[i].sum(0), cmap="seismic", vmin=-bound, vmax=bound)
        else:
            q = Q[i + 1 - 2**shown]
            inset.bar(range(len(q)), q, color="tab:red" if i in way else "0.45", width=0.8)
            inset.set(ylim=(0, 1), xlim=(-0.6, len(q) - 0.4))
            inset.set_title(str(int(q.argmax())), fontsize=7, pad=1)
        inset.set(xticks=[], yticks=[])
        inset.spines[:].set(visible=True, color="tab:red" if i in way else "0.6", linewidth=1.5 if i in way else 0.5)
