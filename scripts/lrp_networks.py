"""Compare LRP with zennit's on random networks in float64: how large relevance becomes, and where the two differ.

python scripts/lrp_networks.py [--size 48] [--seeds 3]        prints the tables of docs/lrp.md

zennit gets networks whose batch norms torch has folded (zennit's own folding leaves an epsilon behind), and its canonizers for
the additions in ResNets.
"""

import argparse
import copy
import sys
from collections.abc import Callable, Iterator

import torch
import zennit.composites as zc
import zennit.rules as zr
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.attribution import Gradient
from zennit.core import Composite
from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
from zennit.types import Linear

from vis.methods import LRP
from vis.models import torchvision_classifier

Make = Callable[..., Composite]  # stabilizer=, canonizers=


def conv_bn() -> nn.Sequential:
    """Build three convolutions with batch norm, average pooling and a dense layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def build(name: str, seed: int = 0) -> nn.Module:
    """Build a network in float64 and eval mode, with He initialisation and random biases and batch norms, as if trained."""
    torch.manual_seed(seed)
    net = conv_bn() if name == "conv_bn" else torchvision_classifier(name)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    module.bias.normal_(0, 0.05)
            elif isinstance(module, nn.BatchNorm2d):
                for key, values in module.state_dict().items():
                    if values.is_floating_point():
                        values.uniform_(0.5, 1.5) if key in ("weight", "running_var") else values.normal_(0, 0.3)
    return net.eval().double()


def folded(net: nn.Module) -> nn.Module:
    """Return a copy whose batch norms are folded into the preceding convolutions."""
    net = copy.deepcopy(net)
    before, conv = "", nn.Conv2d(1, 1, 1)
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            net.set_submodule(before, fuse_conv_bn_eval(conv, module))
            net.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            before, conv = name, module
    return net


def zennits(net: nn.Module, x: Tensor, unit: int, make: Make, stabilizer: float) -> Tensor:
    """Return the map of a folded network's logit, computed with a zennit composite."""
    composite = make(stabilizer=stabilizer, canonizers=[ResNetBottleneckCanonizer(), ResNetBasicBlockCanonizer()])
    with Gradient(net, composite) as attributor:
        return attributor(x, lambda out: nn.functional.one_hot(torch.tensor([unit]), out.shape[1]) * out)[1].detach()


def everywhere(rule: Callable[..., zr.BasicHook], **parameters: object) -> Make:
    def make(stabilizer: float, canonizers: list[object]) -> Composite:
        hook = rule(**parameters) if rule is zr.Epsilon else rule(stabilizer=stabilizer, **parameters)
        return zc.LayerMapComposite([*zc.layer_map_base(stabilizer), (Linear, hook)], canonizers=canonizers)

    return make


def boxed(stabilizer: float, canonizers: list[object]) -> Composite:
    return zc.EpsilonGammaBox(LOW, HIGH, stabilizer=stabilizer, canonizers=canonizers)


LOW, HIGH = -6.0, 6.0  # bounds of the normally distributed pixels
PAIRS: dict[str, tuple[LRP, Make]] = {
    "epsilon": (LRP("epsilon"), everywhere(zr.Epsilon, epsilon=1e-6)),
    "gamma": (LRP("gamma"), everywhere(zr.Gamma, gamma=0.25)),
    "alpha2 beta1": (LRP("alpha_beta"), everywhere(zr.AlphaBeta)),
    "alpha1 beta0": (LRP("alpha_beta", alpha=1.0), everywhere(zr.ZPlus)),
    "zplus": (LRP("zplus"), everywhere(zr.ZPlus, zero_params=["bias"])),
    "wsquare": (LRP("wsquare"), everywhere(zr.WSquare)),
    "flat": (LRP("flat"), everywhere(zr.Flat)),
    "epsilon_plus": (LRP(composite="epsilon_plus"), zc.EpsilonPlus),
    "epsilon_plus_flat": (LRP(composite="epsilon_plus_flat"), zc.EpsilonPlusFlat),
    "epsilon_gamma_box": (LRP(composite="epsilon_gamma_box", low=LOW, high=HIGH), boxed),
    "epsilon_alpha2_beta1": (LRP(composite="epsilon_alpha2_beta1"), zc.EpsilonAlpha2Beta1),
    "epsilon_alpha2_beta1_flat": (LRP(composite="epsilon_alpha2_beta1_flat"), zc.EpsilonAlpha2Beta1Flat),
    "excitation_backprop": (LRP(composite="excitation_backprop"), zc.ExcitationBackprop),
}
SUMS_DIFFER = ("alpha2 beta1", "alpha1 beta0", "zplus")  # one rule everywhere, also at additions and averages
NETWORKS = ("vgg16", "resnet18", "resnet50", "squeezenet1_1", "conv_bn")


def error(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return ((got - expected).abs().max() / expected.abs().max()).item()


def images(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, size, size, generator=generator, dtype=torch.float64)


def tables(size: int, seeds: int) -> Iterator[str]:
    yield "| sum of abs R / abs S | " + " | ".join(NETWORKS) + " |"
    yield "|---|" + "---|" * len(NETWORKS)
    errors: dict[str, list[str]] = {}
    cells: dict[str, list[str]] = {}
    for name in NETWORKS:
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(seeds):
            print(f"{name}, seed {seed}", file=sys.stderr)
            net, x = build(name, seed), images(size, seed)
            plain = folded(net)
            logits = net(x).detach()[0]
            unit = int(logits.argmax())
            for rule, (method, make) in {**PAIRS, "gamma_eq14": (LRP("gamma_eq14"), PAIRS["gamma"][1])}.items():
                ours = method(net, x, unit)
                theirs = [zennits(plain, x, unit, make, stabilizer) for stabilizer in (1e-14, 1e-6)]
                ratios = [(each.abs().sum() / logits[unit].abs()).item() for each in (ours, theirs[1])]
                found.setdefault(rule, []).append((*ratios, *(error(ours, each) for each in theirs)))
        for rule, values in found.items():
            ours_, theirs_, exact, usual = (list(each) for each in zip(*values, strict=True))
            cells.setdefault(rule, []).append(f"{span(ours_)} ({span(theirs_)})")
            errors.setdefault(rule, []).append(f"{max(exact):.0e} ({max(usual):.0e})")
    for rule, row in cells.items():
        yield f"| {rule} | {' | '.join(row)} |"
    yield ""
    yield "| largest difference / largest value | " + " | ".join(NETWORKS) + " |"
    yield "|---|" + "---|" * len(NETWORKS)
    for rule, row in errors.items():
        yield f"| {rule} | {' | '.join(row)} |"


def span(values: list[float]) -> str:
    low, high = (f"{v:.2g}" if v < 100 else f"{v:.0f}" for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    print(*tables(arguments.size, arguments.seeds), sep="\n")


if __name__ == "__main__":
    main()
