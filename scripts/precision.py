"""Measure the error of low precision in the evidence of windows (zhou2018), in % of its RMS; print a table without times.

python scripts/precision.py [--device cuda] [--quick]

"values" rounds everything in full passes, "changes" only the differences that a window makes (the engine). The windows are
evenly spaced over a photograph and contain their conditional means. Full passes round weights and the inputs and outputs of
layers, and sum in float32, as tensor cores do.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from bench import evenly, hardware, photographs, random_network, with_windows
from torch import Tensor, nn

from vis import methods
from vis.config.options import load_node, options
from vis.data import digits, preprocessing
from vis.graph.modes import evaluating
from vis.methods.perturbation import log2_odds
from vis.models import build_model
from vis.training.fit import NetworkInputs
from vis.training.standin import standin
from vis.windows.engine import Incremental


def precisions(device: str, quick: bool) -> Iterator[str]:
    """Yield the lines of the table."""
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
    heads = [f"{form}, {name}" for form in ("values", "changes") for name in dtypes]
    yield f"| network | windows | RMS of the evidence [bits] | {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) + 2)}"
    for name, count in {"alexnet": 32}.items() if quick else {"alexnet": 128, "vgg16": 128, "vgg_small": 841}.items():
        yield _precisions(name, count, device, list(dtypes.values()))


def _precisions(name: str, count: int, device: str, dtypes: list[torch.dtype]) -> str:
    if name == "vgg_small":
        node = load_node(options("model")["vgg_small"]) | {"trained_on": "digits"}
        trained = standin(node, Path("outputs/standins"), device)
        model = build_model(node | {"weights": str(trained.path)}, device=device)
        net, words, method = model.net, trained.words, methods.PDAFast(window=4, patch=8)
        images = NetworkInputs(digits(), preprocessing(model.preprocess), model.input_size, model.channels)
    else:
        net, words, method, images = random_network(name, device), "random weights", methods.PDAFast(), photographs()
    method.fit(images)
    image = images[0][None].to(device)
    at = evenly(method.windows(image), count)
    with evaluating(net), torch.no_grad():
        patches, unit = method.expected.means(image[0], at, method.window), int(net(image).argmax())

        def evidence(base: Tensor, logits: Tensor) -> Tensor:
            odds = [log2_odds(each.double().softmax(1)[:, unit], each.shape[1]) for each in (base, logits)]
            return odds[0] - odds[1]

        def full_passes(net: nn.Module) -> Tensor:
            return evidence(net(image), torch.cat([net(images) for images in with_windows(image, at, patches)]))

        def by_engine(low: torch.dtype | None) -> Tensor:
            engine = Incremental(net, image, low=low)
            return evidence(engine.base, engine.logits(at, patches))

        wanted = by_engine(None)
        found = [full_passes(_rounded(net, dtype)) for dtype in dtypes] + [by_engine(dtype) for dtype in dtypes]
    rms = wanted.square().mean().sqrt()
    errors = [f"{100 * (each - wanted).square().mean().sqrt() / rms:.3g}" for each in found]
    return f"| {name}, {words} | {count} | {rms:.3g} | {' | '.join(errors)} |"


def _rounded(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a network, rounding its weights and the inputs and outputs of its layers."""
    net = copy.deepcopy(net)
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype).float()
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.to(dtype).float() for x in inputs))
            module.register_forward_hook(lambda _, __, output: output.to(dtype).float())
    return net


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="one network, fewer windows")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # as in a run with precision=float32
    print(f"{hardware(arguments.device)}\n")
    for line in precisions(arguments.device, arguments.quick):
        print(line, flush=True)


if __name__ == "__main__":
    main()
