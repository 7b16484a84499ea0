"""What is said of maps that show nothing, or nothing new: in the table and under the figure."""

import csv

import networks
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from vis.methods import AblationCAM, GradCAM, HiResCAM, LayerCAM, Method, Saliency
from vis.runner.remarks import remarks, sentences
from vis.store.run_folder import load_run

NEGATIVE = "all zero, the weighted sum of the feature maps is nowhere positive"
CONFIG = OmegaConf.create({"methods": {name: {"_target_": f"vis.methods.{name}"} for name in
                                       ("GradCAM", "HiResCAM", "AblationCAM", "LayerCAM", "Saliency")}})  # fmt: skip


class Given(Method):
    title = "Given"

    def __init__(self, maps: Tensor) -> None:
        self.maps = maps

    def explain(self, forward, targets):
        return self.maps


def said(maps: dict[str, Tensor], methods: dict[str, Method] | None = None) -> dict[str, list[str]]:
    net, x = networks.build("vgg_like"), networks.images()
    return remarks(methods or {name: Given(each) for name, each in maps.items()}, maps, net, x, CONFIG)


def test_zero_constant_and_not_finite_maps_are_said():
    fine = torch.randn(1, 2, 12, 12)
    maps = torch.cat([fine, 0 * fine, 0 * fine + 0.1, fine.clone().fill_(float("nan"))])
    assert said({"Saliency": maps}) == {"Saliency": ["", "all zero", "constant", "not finite"]}


def test_a_map_that_is_anothers_up_to_its_scale_is_said():
    a, b = torch.randn(2, 1, 12, 12), torch.randn(2, 1, 12, 12)
    maps = {"GradCAM": a, "HiResCAM": torch.cat([3 * a[:1], b[:1]]), "Saliency": torch.cat([-a[:1], b[:1] + 1e-3])}
    maps["LayerCAM"] = a.expand(-1, 3, -1, -1)
    assert said(maps) == {
        "GradCAM": ["", ""],
        "HiResCAM": ["the same as GradCAM, up to a factor", ""],
        "Saliency": ["", ""],
        "LayerCAM": ["", ""],
    }


def test_class_maps_are_the_reason_why_cams_are_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    x = networks.images(1)
    for layer, why in (("3", ", since layer 3 holds class maps"), ("1", None)):
        methods = {"GradCAM": GradCAM(layer), "AblationCAM": AblationCAM(layer)}
        maps = {name: method(net, x, int(net(x).argmax())) for name, method in methods.items()}
        assert maps["GradCAM"].any()
        (note,) = remarks(methods, maps, net, x, CONFIG)["AblationCAM"]
        assert note == ("" if why is None else f"the same as GradCAM, up to a factor{why}")


def test_a_cam_whose_sum_is_negative_everywhere_says_so():
    """A dense layer that takes the sum of what the ReLU gives from each logit."""
    net, x = networks.build("residual"), networks.images(2)
    with torch.no_grad():
        net.fc.weight.abs_().neg_()
    methods = {"GradCAM": GradCAM(), "LayerCAM": LayerCAM(), "Saliency": Saliency()}
    maps = {name: method(net, x, 1) for name, method in methods.items()}
    assert said(maps, methods) == {"GradCAM": [NEGATIVE] * 2, "LayerCAM": [NEGATIVE] * 2, "Saliency": ["", ""]}
    methods = {"HiResCAM": HiResCAM(convention="table1")}
    maps = {"HiResCAM": methods["HiResCAM"](net, x, 1)}
    assert "is constant or nowhere positive" in said(maps, methods)["HiResCAM"][0]


def test_a_caption_names_few_images_and_counts_many():
    rows = [{"method": "GradCAM", "image": i, "note": "constant" if i < "c" else ""} for i in "abcdef"]
    rows += [{"method": "Saliency", "image": i, "note": "all zero"} for i in "abcdef"]
    rows += [{"method": "HiResCAM", "image": i, "note": "constant" if i != "a" else ""} for i in "abcdef"]
    rows += [{"method": "LayerCAM", "image": "a"}]  # of a run from before there were notes
    assert sentences(rows, CONFIG) == [
        "GradCAM of a, b: constant",
        "Saliency map: all zero",
        "HiResCAM of 5 of 6 images: constant",
    ]


@pytest.mark.parametrize(
    ("experiment", "table"), [("visualize", "table"), ("compare", "table"), ("wall_check", "table")]
)
def test_tables_and_captions_hold_what_is_said(vis_run, tmp_path, experiment, table):
    """GradCAM at a layer whose gradient is negative; redrawn from what is stored."""
    from vis.models import MaskedCNN
    from vis.models.initialise import initialise

    net = MaskedCNN()
    initialise(net, "kaiming_normal", 0.1, seed=0)
    with torch.no_grad():
        net.classifier[-1].weight.abs_().neg_()
        net.classifier[-1].bias.zero_()
        for layer in net.classifier[:-1]:
            if isinstance(layer, nn.Linear):
                layer.weight.abs_()
    torch.save(net.state_dict(), tmp_path / "net.pt")
    options = ["experiment.steps=3"] if experiment == "compare" else []
    run = [
        "model=cnn_masked",
        f"model.weights={tmp_path / 'net.pt'}",
        "dataset=stacked_digits",
        "dataset.limit=1",
        *options,
    ]
    folder = vis_run(f"experiment={experiment}", *run, "method=[gradcam,layercam,saliency]").folder
    (image,) = {row["image"] for row in load_run(folder).rows(table)}
    with (folder / "table.csv").open(newline="") as file:
        notes = {row["method"]: row["note"] for row in csv.DictReader(file)}
    assert notes == {"gradcam": NEGATIVE, "layercam": NEGATIVE, "saliency": ""}
    for drawn in (folder, vis_run("--redraw", str(folder)).folder):
        assert f"GradCAM of {image}: {NEGATIVE}" in (drawn / "index.html").read_text()
