"""Measure the errors of low precision; print two tables without times.

python scripts/precision.py [--device cuda] [--quick]

The first has the errors of maps with precision=mixed, of SqueezeNet with its published weights and the bundled photographs:
relative l2 against precision=float32, and the largest change of each metric.

The second has the error in the evidence of windows (zhou2018), in % of its RMS. "values" rounds everything in full passes,
"changes" only the differences that a window makes (the engine). The windows are evenly spaced over a photograph and contain
their conditional means. Full passes round weights and the inputs and outputs of layers, and sum in float32, as tensor cores
do.
"""

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench import evenly, hardware, photographs, random_network, with_windows
from torch import Tensor, nn

from vis import methods, metrics
from vis.config.compose import compose_config
from vis.config.options import load_node, options
from vis.data import digits, preprocessing
from vis.graph.modes import evaluating
from vis.methods.perturbation import log2_odds
from vis.models import Model, build_model
from vis.runner.experiment import Run
from vis.system.device import set_precision
from vis.training.fit import NetworkInputs
from vis.training.standin import standin
from vis.windows.engine import Incremental

MIXED = (
    "saliency", "deconvnet", "gbp", "input_x_gradient", "guided_gradcam", "gradcam_gradient", "lrp", "deeplift",
    "integrated_gradients", "smoothgrad", "expected_gradients", "ablationcam", "scorecam", "guided_ig",
)  # fmt: skip
METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pearson": metrics.pearson,
    "high-pass pearson": metrics.high_pass_pearson,
    "cosine": metrics.cosine,
    "spearman": lambda map_, x: metrics.spearman(map_.abs().amax(1, keepdim=True), metrics.luma(x)),
    "ssim": lambda map_, x: metrics.ssim(metrics.luma(map_), metrics.luma(x)),
    "total variation": lambda map_, _: metrics.total_variation(map_),
    "participation ratio": lambda map_, _: metrics.participation_ratio(map_),
    "g4": lambda map_, _: metrics.grid4(map_),
}  # of a map and the network's input; the last three have units, so their changes are relative


def mixed_errors(device: str, quick: bool) -> Iterator[str]:
    """Yield the lines of the table of maps."""
    words = [
        f"device={device}",
        "model=squeezenet",
        "dataset.names=all",
        f"method=[{','.join(MIXED)}]",
        "methods.lrp.rule=epsilon",
        "methods.ablationcam.layer=features.6",
    ]
    run = Run(compose_config(words))
    model = run.model()
    x = torch.cat([run.batch(model, [i]).x for i in range(2 if quick else len(run.dataset))])
    yield f"| method | l2 [%], median | largest | {' | '.join(METRICS)} |"
    yield f"|---|{'---:|' * (len(METRICS) + 2)}"
    for name, method in run.methods.items():
        found = {precision: _maps(method, model, run, x, precision) for precision in ("float32", "mixed")}
        pairs = list(zip(*found.values(), strict=True))
        errors = torch.stack([(low - exact).norm() / exact.norm() for exact, low in pairs])
        changes = []
        for metric, of in METRICS.items():
            exact, low = (
                torch.cat([of(m.expand_as(x[[i]]), x[[i]]) for i, m in enumerate(maps)]) for maps in found.values()
            )
            change = (low - exact).abs() / (exact if metric in list(METRICS)[-3:] else 1)
            changes.append(f"{change.max():.1g}")
        yield f"| {name} | {100 * errors.median():.2g} | {100 * errors.max():.2g} | {' | '.join(changes)} |"


def _maps(method: methods.Method, model: Model, run: Run, x: Tensor, precision: str) -> list[Tensor]:
    """Return the maps of the largest logit of each image, [1, C, H, W]."""
    set_precision(precision)
    try:
        return [method(model.net, image[None], None, run.preprocess(model)).cpu() for image in x]
    finally:
        set_precision("float32")


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
    for table in (mixed_errors, precisions):
        for line in table(arguments.device, arguments.quick):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
