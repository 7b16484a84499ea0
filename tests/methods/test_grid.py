"""Grids of images and networks of one cell (Rao et al. 2022), on a small network in float64."""

import pytest
import torch
from torch import nn

from experiments.rao2022.figure5 import rank_correlation
from experiments.rao2022.localisation import smoothed
from vis import metrics
from vis.claims import jackknife
from vis.methods import LRP, GradCAM, GuidedGradCAM, HiResCAM, InputXGradient, Saliency
from vis.methods.grid import SETTINGS, FromImage, OneCell, cells, cut, features, joined, logits_of, place


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def parts():
    return torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_cells_lie_row_by_row(parts):
    grid = joined(parts, 2)
    assert grid.shape == (1, 2, 16, 16)
    assert all(torch.equal(cut(grid, cell, 2)[0], part) for cell, part in zip(cells(2), parts, strict=True))
    assert place((1, 0), 2, 27, 27) == (slice(13, 26), slice(0, 13)), "of 27 rows, the last belongs to no cell"


@pytest.mark.parametrize("layer", [None, "features.1", "features.4"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_each_setting_gives_the_logits_of_its_definition(net, parts, setting, layer):
    grid, cell = joined(parts, 2), (0, 1)
    one = OneCell(net, setting, cell, 2, grid, layer, "features.4")
    maps = net.features(grid)
    expected = {
        "gridpg": net(grid), "difull": net(parts[1:2]), "dipart": net.head(cut(maps, cell, 2).mean((2, 3))),
    }[setting]  # fmt: skip
    assert torch.allclose(one(features(net, grid, setting, layer, 2)), expected)
    assert torch.allclose(net(grid), net.head(maps.mean((2, 3)))), "no hook remains"


def test_other_cells_have_no_gradient_and_grad_cam_shows_them_all_the_same(net, parts):
    grid, cell = joined(parts, 2), (1, 1)
    one = OneCell(net, "difull", cell, 2, grid)
    for method in (Saliency(), InputXGradient(), LRP(rule="zplus")):
        map_ = method(one, grid, 2)
        assert cut(map_, cell, 2).any()
        assert all(not cut(map_, other, 2).any() for other in cells(2) if other != cell)
    whole = FromImage(net, "difull", cell, 2, grid, "features.4")
    f = features(net, grid, "difull", "features.4", 2)
    weights = net.head.weight[2] / 16 / 4  # of 16 positions in the cell; the mean is over the four cells
    cam = GradCAM(layer=FromImage.AT)(whole, grid, 2)
    expected = torch.nn.functional.interpolate(
        torch.einsum("v,bvhw->bhw", weights, f).relu()[:, None], grid.shape[-2:], mode="bilinear"
    )
    assert torch.allclose(cam, expected)
    assert GuidedGradCAM(layer=FromImage.AT)(whole, grid, 2).shape == grid.shape


def test_at_the_last_layer_input_x_gradient_is_hirescam_before_the_relu(net, parts):
    grid = joined(parts, 2)
    one = OneCell(net, "gridpg", (0, 0), 2, grid, "features.4")
    f = features(net, grid, "gridpg", "features.4", 2).detach()
    summed = InputXGradient()(one, f, 3).sum(1, keepdim=True)
    assert torch.allclose(summed, torch.einsum("v,bvhw->bhw", net.head.weight[3] / f[0, 0].numel(), f)[:, None])
    assert torch.allclose(summed.relu(), HiResCAM(layer="at")(one, f, 3))
    assert torch.allclose(summed.relu(), GradCAM(layer="at")(one, f, 3))


def test_other_logits_need_not_be_computed(net, parts):
    whole = net(parts).detach()
    weight = net.head.weight
    with logits_of(net, [3, 1], parts, net) as few:
        assert few
        assert torch.allclose(net(parts), whole[:, [3, 1]])
    assert net.head.weight is weight
    mixing = nn.Sequential(net, nn.Softmax(1))
    with logits_of(net, [3, 1], parts, mixing) as few:
        assert not few, "a softmax depends on the other logits"
        assert torch.allclose(mixing(parts), whole.softmax(1))


def test_localisation_is_the_share_of_the_positive_part():
    map_ = torch.tensor([[[[3.0, -9.0], [1.0, 0.0]]], [[[-1.0, -2.0], [0.0, -1.0]]]])
    score = metrics.localisation(map_, slice(0, 1), slice(0, 1))
    assert score[0] == 0.75
    assert score[1].isnan(), "a map without a positive part"


def test_smoothing_is_a_gaussian_window_with_sigma_k_4():
    impulse = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    impulse[..., 4, 4] = 1
    at = torch.arange(-2, 3, dtype=torch.float64)
    g = torch.exp(-0.5 * (at / 1.25) ** 2)
    expected = torch.outer(g, g) / g.sum() ** 2
    assert torch.allclose(smoothed(impulse, 5)[0, 0, 2:7, 2:7], expected)
    assert torch.equal(smoothed(impulse, 0), impulse)
    assert torch.allclose(smoothed(impulse, 5).sum(), impulse.sum()), "the map is 0 outside"


def test_pseudo_values_average_to_the_jackknife_of_spearman():
    groups = [[(0.1 * i, 0.1 * i + 0.05 * (i % 2)), (0.3 * i, 0.2)] for i in range(5)]
    pairs = [pair for group in groups for pair in group]
    values = jackknife(groups, lambda some: rank_correlation([pair for group in some for pair in group]))
    assert values[0] == pytest.approx(5 * rank_correlation(pairs) - 4 * rank_correlation(pairs[2:]))
    assert rank_correlation([(1, 1), (2, 4), (3, 9)]) == pytest.approx(1)
    assert rank_correlation([(1, 1), (1, 4)]) == 0
