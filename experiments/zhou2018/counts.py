"""zhou2018: counts of layers, windows, draws, softmaxes and passes, which do not depend on the machine."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.zhou2018.speed import SAMPLES
from vis.claims import Claim, Column, Compared, exactly
from vis.methods import PDA, PDAGradient
from vis.methods.perturbation import windows_of
from vis.methods.target import Target
from vis.store.run_folder import Results


class Counted(TorchDispatchMode):
    """Count softmaxes, and convolutions forward and backward, while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.softmax = self.forward = self.backward = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        self.softmax += found[..., 0].numel() if name == "_softmax" else 0
        self.forward += name == "convolution"
        self.backward += name == "convolution_backward"
        return found


def of_network(net: nn.Module, x: Tensor) -> dict[str, Any]:
    """Count a network's layers with weights, max-poolings and operations."""
    leaves = [m for m in net.modules() if not list(m.children())]
    row: dict[str, Any] = {"weight_layers": sum(isinstance(m, nn.Conv2d | nn.Linear) for m in leaves)}
    row["max_poolings"] = sum(isinstance(m, nn.MaxPool2d) for m in leaves)
    with FlopCounterMode(display=False) as operations, torch.no_grad():
        net(x)
    return row | {"operations": operations.get_total_flops()}


def of_algorithms(net: nn.Module, x: Tensor, method: Any) -> dict[str, Any]:
    """Count windows, draws and softmaxes of a fitted PDA, and passes of Algorithm 3."""
    size, S, passed = (x.shape[2], x.shape[3]), method.samples, list[int]()
    logits = torch.randn(7, S, 10, generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {}
    for average in ("logit", "probability"):
        with Counted() as counted:
            PDA(average=average)._measure(logits, Target(0))
        row[f"softmaxes_{average}"] = counted.softmax / len(logits)
    row["windows"] = len(windows_of(size, method.window))
    row |= {"samples_of_windows": S * row["windows"], "samples_of_pixels": S * size[0] * size[1]}
    simplified = PDAGradient(window=method.window, patch=method.patch)
    simplified.learnt = method.learnt
    with Counted() as once, torch.no_grad():
        net(x)
    hook = net.register_forward_hook(lambda _, inputs, output: passed.append(len(inputs[0])))
    with Counted() as counted:
        simplified(net, x, [0])
    hook.remove()
    return row | {"forward_passes": sum(passed), "backward_passes": counted.backward / once.forward}


def claims(results: Results) -> list[Claim]:
    """Judge the sentences on counts."""
    counts = results.rows("counts")

    def count(id_: str, metric: str, name: str, rule: Any, other: str, control: str) -> Claim:
        null = Column(counts, other, "network")
        return Claim(id_, [Compared(metric, Column(counts, name, "network"), rule, null=null, control=control)])

    passes = Compared(
        "forward passes of Algorithm 1 over those of Algorithm 2, without the one of the image itself",
        Column(results.rows(), "passes_ratio", ("network", "round")), exactly(results.rows()[0]["samples"]),
        null=1.0, control="Algorithm 1 against itself",
    )  # fmt: skip
    one = [
        Compared(
            f"{way} passes of Algorithm 3", Column(counts, f"{way}_passes", "network"), exactly(1),
            null=Column(counts, "windows", "network"), control="a pass for each window, Algorithm 2",
        )
        for way in ("forward", "backward")
    ]  # fmt: skip
    pixels = "one window for each pixel"
    return [
        count("Z-2-a", "windows of 10x10 in 224x224", "windows", exactly(215**2), "pixels", pixels),
        count(
            "Z-2-b", "S (n - k + 1)^2, the samples by the paper's own count of windows", "samples_of_windows",
            exactly(501_760), "samples_of_pixels", "224 x 224 x 10, one window for each pixel: equal",
        ),
        count(
            "Z-2.1-c", "softmaxes of a window where logits are averaged", "softmaxes_logit", exactly(1),
            "softmaxes_probability", "where probabilities are averaged",
        ),
        Claim("Z-2.1-v", [passes], paper=SAMPLES),
        Claim("Z-F19-c", one),
    ]  # fmt: skip
