"""nie2018, Figure 4: three methods in a random three-layer CNN (top row) and FCN (bottom row), input "tabby".

"From left to right, each column represents GBP, DeconvNet and saliency map, respectively. Only GBP visualization in the
CNN is human-interpretable."
"""

from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d

from experiments.nie2018.three_layer import CNN, FCN, LABELS, ThreeLayer, column, images, random_networks, targets
from vis import metrics
from vis.claims import Claim, Criterion, above, below, departures, increasing, mean_and_spread, near_zero
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.store.run_folder import Results

PAPER = {"cnn": CNN | {"num_filters": 256}, "fcn": FCN | {"hidden": 4096}}
BLOCK = 14  # pixels

ONLY = "Only GBP visualization in the CNN is human-interpretable."
NOISE = "DeconvNet and saliency map in the CNN get random noise"
ALL_NOISE = "all the backpropagation-based methods (including GBP) in the FCN generate random noise"
THEOREM = "if the number of filters N is sufficiently large, GBP at the k-th logit can be approximated as x"
NOT_NOISE = "Finding 2: GBP in the FCN is not random noise; it holds the input at a low resolution."
LIMIT = "Finding 3: the limit of GBP is A x, not x, where A weighs a pixel by 1/norm of the patches on it."


class Figure4(ThreeLayer):
    def numbers(self, map_: Tensor, x: Tensor, weight: Tensor) -> dict[str, Tensor]:
        return super().numbers(map_, x, weight) | {
            "null_stds": metrics.pearson(map_, x) * x[0].numel() ** 0.5,  # pear of white noise has std 1/sqrt(d)
            "pear_blocks": metrics.pearson(avg_pool2d(map_, BLOCK), avg_pool2d(x, BLOCK)),
            "cosine_Ax": metrics.cosine(map_, weight * x),
            "cosine_limit": metrics.cosine(weight * x, x),
        }

    def claims(self, results: Results) -> list[Claim]:
        def of(name: str, network: str, method: str) -> list[float]:
            return column(results, name, network=network, method=method, target=targets(results)[0])

        def claim(name: str, sentence: str, source: str, metric: str, criterion: Criterion, values: Any) -> Claim:
            network = "fcn" if "_fcn" in name else "cnn"
            reason = departures(results.config.experiment, {"models": {network: PAPER[network]}})
            return Claim(
                name, sentence, source=source, metric=metric, criterion=criterion, values=values, reason=reason
            )

        pear, text = "pear: correlation of map and input", "Section 4.1"
        fine, channels = "HP: correlation of the high-passed map and input", "pearc: mean correlation of the channels"
        blocks = {"pixels": of("pear", "fcn", "gbp"), f"{BLOCK}x{BLOCK} blocks": of("pear_blocks", "fcn", "gbp")}
        cosines = {"of map and x": of("cosine", "cnn", "gbp"), "of map and A x": of("cosine_Ax", "cnn", "gbp")}
        limit = of("cosine_limit", "cnn", "gbp")[: len(images(results))]  # the same for all seeds
        nulls = of("null_stds", "fcn", "gbp")
        none, weak, tiny = (near_zero(bound, each=True) for bound in (0.03, 0.10, 0.05))
        return [
            claim("gbp_cnn", ONLY, "Figure 4", pear, above(0.65), of("pear", "cnn", "gbp")),
            claim(
                "gbp_cnn_cosL",
                THEOREM,
                "Theorem 1",
                "cosL: of A^-1 map and input",
                above(0.77),
                of("cosL", "cnn", "gbp"),
            ),
            claim("saliency_cnn", NOISE, text, pear, none, of("pear", "cnn", "saliency")),
            claim("deconvnet_cnn_HP", NOISE, text, fine, tiny, of("HP", "cnn", "deconvnet")),
            claim("deconvnet_cnn_pearc", NOISE, text, channels, tiny, of("pearc", "cnn", "deconvnet")),
            claim("gbp_fcn", ALL_NOISE, text, pear, weak, of("pear", "fcn", "gbp")),
            claim("deconvnet_fcn", ALL_NOISE, text, pear, none, of("pear", "fcn", "deconvnet")),
            claim("saliency_fcn", ALL_NOISE, text, pear, none, of("pear", "fcn", "saliency")),
            claim(
                "finding2_fcn_null",
                NOT_NOISE,
                text,
                "pear in stds of white noise's, 1/sqrt(d)",
                above(5, each=True),
                nulls,
            ),
            claim("finding2_fcn_blocks", NOT_NOISE, text, "pear, and that of block averages", increasing(), blocks),
            claim("finding3_limit", LIMIT, "Theorem 1", "cosine", increasing(), cosines),
            claim("finding3_cap", LIMIT, "Theorem 1", "cosine of A x and x: the cap at any N", below(0.95), limit),
        ]

    def draw(self, results: Results, claims: list[Claim]) -> dict[str, Figure]:
        config = results.config
        image, target = images(results)[0], targets(results)[0]
        methods = sorted(config.methods, key=lambda m: list(LABELS).index(m) if m in LABELS else len(LABELS))
        rows = []
        for network in config.experiment.models:
            panels = [Panel(display.picture(results.arrays[f"{image}/{network}/input"]), f"input: {image}")]
            for method in methods:
                map_ = results.arrays[f"{image}/{network}/{target}/{method}"]
                where = {"image": image, "network": network, "target": target, "method": method}
                pear, fine = (mean_and_spread(column(results, name, **where)) for name in ("pear", "HP"))
                note = f"correlation {pear}\nhigh-passed {fine}"
                title = f"{LABELS.get(method, method)}-{network.upper()}"
                panels.append(Panel(display.minmax(map_), title, note))
            rows.append(PanelRow(panels))
        cnn, fcn = config.experiment.models.cnn, config.experiment.models.fcn
        k = cnn.kernel_size
        caption = [
            f"A random three-layer CNN ({k}x{k}x3 filters, N = {cnn.num_filters}, stride {cnn.stride}; top) and a random "
            f"three-layer FCN ({fcn.hidden} hidden units; bottom)",
            *random_networks(results),
            "Under each map: its correlation with the input, and that of the two after a high-pass",
        ]
        return {"figure": panel_grid(rows, caption)}
