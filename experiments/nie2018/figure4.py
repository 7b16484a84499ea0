"""nie2018, Figure 4: three methods in a random three-layer CNN (top row) and FCN (bottom row), input "tabby".

"From left to right, each column represents GBP, DeconvNet and saliency map, respectively. Only GBP visualization in the
CNN is human-interpretable."
"""

from functools import partial

from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import avg_pool2d

from experiments.nie2018.three_layer import CNN, FCN, LABELS, ThreeLayer, column, images, random_networks, targets
from vis import metrics
from vis.figures import display
from vis.figures.layout import Panel, PanelRow, panel_grid
from vis.oldclaims import Claim, above, below, departures, increasing, mean_and_spread, near_zero
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

        cnn, fcn = (
            partial(Claim, reason=departures(results.config.experiment, {"models": {network: PAPER[network]}}))
            for network in ("cnn", "fcn")
        )
        pear, text = "pear: correlation of map and input", "Section 4.1"
        fine, channels = "HP: correlation of the high-passed map and input", "pearc: mean correlation of the channels"
        blocks = {"pixels": of("pear", "fcn", "gbp"), f"{BLOCK}x{BLOCK} blocks": of("pear_blocks", "fcn", "gbp")}
        cosines = {"of map and x": of("cosine", "cnn", "gbp"), "of map and A x": of("cosine_Ax", "cnn", "gbp")}
        limit = of("cosine_limit", "cnn", "gbp")[: len(images(results))]  # the same for all seeds
        nulls = of("null_stds", "fcn", "gbp")
        none, weak, tiny = (near_zero(bound, each=True) for bound in (0.03, 0.10, 0.05))
        return [
            cnn(
                "gbp_cnn", ONLY, source="Figure 4", metric=pear, criterion=above(0.65), values=of("pear", "cnn", "gbp")
            ),
            cnn(
                "gbp_cnn_cosL",
                THEOREM,
                source="Theorem 1",
                metric="cosL: of A^-1 map and input",
                criterion=above(0.77),
                values=of("cosL", "cnn", "gbp"),
            ),
            cnn("saliency_cnn", NOISE, source=text, metric=pear, criterion=none, values=of("pear", "cnn", "saliency")),
            cnn(
                "deconvnet_cnn_HP", NOISE, source=text, metric=fine, criterion=tiny, values=of("HP", "cnn", "deconvnet")
            ),
            cnn(
                "deconvnet_cnn_pearc",
                NOISE,
                source=text,
                metric=channels,
                criterion=tiny,
                values=of("pearc", "cnn", "deconvnet"),
            ),
            fcn("gbp_fcn", ALL_NOISE, source=text, metric=pear, criterion=weak, values=of("pear", "fcn", "gbp")),
            fcn(
                "deconvnet_fcn",
                ALL_NOISE,
                source=text,
                metric=pear,
                criterion=none,
                values=of("pear", "fcn", "deconvnet"),
            ),
            fcn(
                "saliency_fcn",
                ALL_NOISE,
                source=text,
                metric=pear,
                criterion=none,
                values=of("pear", "fcn", "saliency"),
            ),
            fcn(
                "finding2_fcn_null",
                NOT_NOISE,
                source=text,
                metric="pear in stds of white noise's, 1/sqrt(d)",
                criterion=above(5, each=True),
                values=nulls,
                origin="project",
            ),
            fcn(
                "finding2_fcn_blocks",
                NOT_NOISE,
                source=text,
                metric="pear, and that of block averages",
                criterion=increasing(),
                values=blocks,
                origin="project",
            ),
            cnn(
                "finding3_limit",
                LIMIT,
                source="Theorem 1",
                metric="cosine",
                criterion=increasing(),
                values=cosines,
                origin="project",
            ),
            cnn(
                "finding3_cap",
                LIMIT,
                source="Theorem 1",
                metric="cosine of A x and x: the cap at any N",
                criterion=below(0.95),
                values=limit,
                origin="project",
            ),
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
