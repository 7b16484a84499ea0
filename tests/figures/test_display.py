"""Scalings: the picture of a map, and the sentence in the caption."""

import json

import numpy as np
import pytest
import torch
from conftest import SMALL

from vis.errors import UserError
from vis.figures import display
from vis.figures.display import CLIP, SCALINGS, scaling

PIXELS = np.full((3, 40, 50), 0.5, dtype=np.float32)
CLIPPED = ("midgray", "diverging", "absolute", "evidence")


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((3, 40, 50)).astype(np.float32)


def show(name: str, map_: np.ndarray, clip: float = CLIP) -> np.ndarray:
    return scaling(name, clip)[0](map_, PIXELS)


def test_zero_is_mid_gray_and_the_ends_are_plus_and_minus_the_percentile():
    map_ = noise()
    map_[:, 0, 0] = 0
    c = np.percentile(np.abs(map_), 99)
    expected = np.moveaxis(np.clip(map_, -c, c) / (2 * c) + 0.5, 0, -1)
    np.testing.assert_allclose(show("midgray", map_), expected, atol=1e-6)
    assert (show("midgray", map_)[0, 0] == 0.5).all()
    np.testing.assert_allclose(show("midgray", -map_), 1 - show("midgray", map_), atol=1e-6)


@pytest.mark.parametrize("name", CLIPPED)
def test_a_single_pixel_does_not_set_the_scale_of_a_map(name):
    map_ = noise()
    loud = map_.copy()
    loud[:, 5, 5] = 1000
    rest = np.ones((40, 50), dtype=bool)
    rest[5, 5] = False
    change = np.abs(show(name, loud) - show(name, map_))[rest]
    assert change.max() < 0.02
    assert show(name, loud, 100)[rest].std() < 0.1 * show(name, loud)[rest].std(), "without the clip the map is blank"


def test_100_shows_a_map_up_to_its_largest_magnitude():
    map_ = noise()
    shown = show("midgray", map_, 100)
    np.testing.assert_allclose(2 * shown - 1, np.moveaxis(map_, 0, -1) / np.abs(map_).max(), atol=1e-6)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3])
def test_a_constant_map_is_flat(name, value):
    map_ = np.full((3, 40, 50), value, dtype=np.float32)
    map_[0, ::2] *= 1 + np.finfo(np.float32).eps  # a difference of rounding size
    shown = show(name, map_)
    assert np.isfinite(shown).all()
    assert shown.std((0, 1)).max() < 1e-6


def test_a_map_of_zeros_looks_like_zero():
    zeros = np.zeros((3, 40, 50), dtype=np.float32)
    for name, value in {"minmax": 0.5, "midgray": 0.5, "absolute": 0}.items():
        assert (show(name, zeros) == value).all(), name
    assert show("diverging", zeros).min() > 0.99


@pytest.mark.parametrize("name", CLIPPED)
def test_values_rarer_than_the_percentile_are_still_shown(name):
    map_ = np.zeros((3, 40, 50), dtype=np.float32)
    map_[:, 5, 5] = 2
    shown = show(name, map_)
    assert np.isfinite(shown).all()
    assert np.abs(shown[5, 5] - shown[0, 0]).max() > 0.4
    assert (shown[0, 0] == shown[1:, 6:]).all()


@pytest.mark.parametrize("name", ["minmax", "overlay"])
def test_min_max_and_overlays_are_not_clipped(name):
    map_ = noise()
    assert (show(name, map_, 50) == show(name, map_, 100)).all()
    assert scaling(name)[1] == scaling(name, 100)[1]


def test_the_words_name_the_percentile():
    for name in CLIPPED:
        assert scaling(name)[1].endswith(", clipped at the 99th percentile of each map")
        assert scaling(name, 99.5)[1].endswith("clipped at the 99.5th percentile of each map")
        assert "clipped" not in scaling(name, 100)[1]
    assert "92nd" in scaling("midgray", 92)[1]
    assert display.sentences({"A": "midgray", "B": "overlay", "C": "midgray"})[0].startswith("A, C: in RGB")
    assert display.sentences({"A": "minmax", "B": "minmax"}) == ["Maps: min-max over each RGB map"]


@pytest.mark.parametrize("clip", [0, -1, 101, float("nan")])
def test_an_invalid_percentile_is_an_error(clip):
    with pytest.raises(UserError, match="is not a percentile"):
        scaling("midgray", clip)


def captions(folder) -> dict[str, str]:
    return json.loads((folder / "figures.json").read_text(encoding="utf-8"))


def test_visualize_clips_what_it_shows_says_so_and_measures_the_raw_maps(vis_run):
    methods = "method=[saliency,gbp,gradcam]"
    clipped = vis_run(*SMALL, methods).folder
    whole = vis_run(*SMALL, methods, "experiment.clip=100").folder
    words = "Saliency map, Guided backprop: in RGB, 0 is mid-gray"
    assert f"{words}, clipped at the 99th percentile of each map." in captions(clipped)["figure"]
    assert f"{words}. GradCAM: viridis colours from 0" in captions(whole)["figure"]
    assert (clipped / "figure.png").read_bytes() != (whole / "figure.png").read_bytes()
    for name in ("table.csv", "maps.npz"):
        assert (clipped / name).read_bytes() == (whole / name).read_bytes(), name


def test_an_invalid_clip_is_a_one_line_error(vis_run):
    ran = vis_run(*SMALL, "experiment.clip=0.0")
    assert ran.code == 2
    assert "clip=0 is not a percentile" in ran.err


def test_nie2018_shows_the_papers_min_max_once(vis_run):
    folder = vis_run("experiment=nie2018/figure2", *SMALL, "seeds=1", "target=[max,1,2]").folder
    as_printed = captions(folder).pop("as_printed")
    assert "min-max over each RGB map" in as_printed
    others = [caption for name, caption in captions(folder).items() if name != "as_printed"]
    assert all("clipped at the 99th percentile of each map" in caption for caption in others)


def test_maps_of_a_trained_network_are_visible(weights, data):
    """SqueezeNet's maps deviate by 7, 5 and 4 of 255 gray levels with min-max, by 29, 27 and 24 with clipping."""
    from PIL import Image
    from torchvision.models import squeezenet1_1

    from vis.data import preprocessing, to_pixels
    from vis.methods import DeconvNet, GuidedBackprop, Saliency, explain_all

    net = squeezenet1_1().eval()
    net.load_state_dict(torch.load(weights / "squeezenet1_1_imagenet.pt", weights_only=True))
    files = sorted((data / "images" / "imagenet").iterdir())[::80]
    pixels = torch.stack([to_pixels(Image.open(file), (224, 224), 3, 256) for file in files])
    methods = {"saliency": Saliency(), "deconvnet": DeconvNet(), "gbp": GuidedBackprop()}
    (maps,), _ = explain_all(methods, net, preprocessing("imagenet")(pixels), [None])
    for name, values in maps.items():
        for map_ in values.numpy():
            assert 255 * show("minmax", map_).std() < 12, name
            assert 255 * show("midgray", map_).std() > 18, name
