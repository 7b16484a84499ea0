"""LIME and meaningful perturbation: on networks whose right answer is known, and against a ridge regression by hand."""

import networks
import numpy as np
import pytest
import torch
from torch import nn

from vis.methods import LIME, MeaningfulPerturbation
from vis.methods.baseline import baseline_image


class Linear(nn.Module):
    """The first logit is (x * weight).sum(), the second 0."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        first = (x * self.weight).sum((1, 2, 3))
        return torch.stack([first, torch.zeros_like(first)], 1)


def test_lime_of_a_linear_network_is_what_each_superpixel_adds():
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(3, n, n, generator=generator, dtype=torch.float64) for n in (32, 4))
    x = nn.functional.interpolate(x[None], 32, mode="bilinear")[0]  # noise has no superpixels
    lime = LIME(samples=400, superpixels=9, alpha=0.0, output="logit")
    (map_,) = lime(Linear(weight), x[None], 0)
    segments = lime.segments(x)
    assert segments.max() > 3
    for s in range(int(segments.max()) + 1):
        inside = segments == s
        mean = x[:, inside].mean(1, keepdim=True)
        adds = (weight[:, inside] * (x[:, inside] - mean)).sum()
        torch.testing.assert_close(map_[0][inside], adds.expand(int(inside.sum())))


def test_lime_is_the_weighted_ridge_regression():
    """On a network that is not linear, by the normal equations."""
    net, x = networks.build("vgg_like"), networks.images(1)
    lime = LIME(samples=60, superpixels=8, alpha=0.7, sigma=0.3)
    (map_,) = lime(net, x, 2)
    segments = lime.segments(x[0])
    count = int(segments.max()) + 1
    kept = np.random.default_rng(0).integers(0, 2, (60, count)).astype(float)
    kept[0] = 1
    p = []
    for row in kept:
        image = x[0].clone()
        for s in range(count):
            if not row[s]:
                image[:, segments == s] = x[0][:, segments == s].mean(1, keepdim=True)
        p.append(net(image[None]).softmax(1)[0, 2].item())
    distance = 1 - kept.sum(1) / np.sqrt(kept.sum(1).clip(1e-12) * count)
    w = np.exp(-(distance**2) / (2 * 0.3**2))
    design = np.hstack([kept, np.ones((60, 1))])
    ridge = 0.7 * np.diag([1.0] * count + [0.0])
    coefficients = np.linalg.solve(design.T @ (w[:, None] * design) + ridge, design.T @ (w * np.array(p)))
    expected = torch.from_numpy(coefficients[:count])[segments]
    torch.testing.assert_close(map_[0], expected, atol=1e-10, rtol=1e-8)


def test_meaningful_perturbation_finds_the_patch_that_carries_the_class():
    weight = torch.zeros(1, 32, 32, dtype=torch.float64)
    weight[:, 8:16, 16:24] = 0.05
    x = torch.zeros(1, 1, 32, 32, dtype=torch.float64)
    x[:, :, 8:16, 16:24] = 1
    x[:, :, 24:30, 2:8] = 1  # as bright, of no use to the network
    method = MeaningfulPerturbation(cells=8, iterations=120, jitter=1)
    (map_,) = method(Linear(weight), x, 0)
    assert map_.min() >= 0
    assert map_.max() <= 1
    assert map_[0, 8:16, 16:24].mean() > 10 * map_[0, 24:30, 2:8].mean()


@pytest.mark.parametrize(
    "method", [LIME(samples=20, superpixels=6), MeaningfulPerturbation(cells=4, iterations=12, patience=3)]
)
def test_a_batch_gives_what_its_images_give_and_the_model_stays(method):
    net, x = networks.build("residual"), networks.images()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    whole = method(net, x, [4, 0, 2])
    for i, unit in enumerate([4, 0, 2]):
        torch.testing.assert_close(method(net, x[i : i + 1], unit)[0], whole[i], atol=1e-9, rtol=1e-7)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert whole.shape == (3, 1, *x.shape[2:])


def test_the_kept_mask_is_never_worse_than_no_mask():
    """The loss of its best step is at most that of the first, the untouched image's probability."""
    net, x = networks.build("vgg_like"), networks.images()
    method = MeaningfulPerturbation(cells=4, iterations=15, jitter=0)
    blurred = baseline_image(x, "blur", None)
    mask = 1 - method(net, x, 1)
    assert (net(mask * x + (1 - mask) * blurred).softmax(1)[:, 1] <= net(x).softmax(1)[:, 1] + 1e-12).all()
