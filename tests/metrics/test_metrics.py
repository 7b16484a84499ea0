"""Metrics, checked against numpy, scipy, scikit-image and loops over pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from vis import metrics
from vis.metrics.sensitivity import max_sensitivity

TWO_IMAGES = [
    metrics.pearson,
    metrics.pearson_per_channel,
    metrics.high_pass_pearson,
    metrics.cosine,
    metrics.unit_distance,
    metrics.ssim,
]


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, noise = (torch.randn(2, 3, 24, 31, generator=generator, dtype=torch.float64) for _ in range(2))
    return a, 0.5 * a + noise + 0.3


@pytest.mark.parametrize("metric", TWO_IMAGES)
def test_metrics_do_not_depend_on_the_batch(metric, pair):
    a, b = pair
    single = torch.cat([metric(a[i : i + 1], b[i : i + 1]) for i in range(len(a))])
    torch.testing.assert_close(metric(a, b), single)


@pytest.mark.parametrize("metric", TWO_IMAGES)
def test_an_image_equals_itself(metric, pair):
    a, _ = pair
    perfect = 0.0 if metric is metrics.unit_distance else 1.0
    torch.testing.assert_close(metric(a, a), torch.full((2,), perfect, dtype=torch.float64))


def test_pearson_is_numpys(pair):
    a, b = pair
    for i in range(2):
        assert metrics.pearson(a, b)[i].item() == pytest.approx(
            np.corrcoef(a[i].ravel(), b[i].ravel())[0, 1], abs=1e-12
        )
        channels = [np.corrcoef(a[i, c].ravel(), b[i, c].ravel())[0, 1] for c in range(3)]
        assert metrics.pearson_per_channel(a, b)[i].item() == pytest.approx(np.mean(channels), abs=1e-12)


def test_pearson_per_channel_ignores_offsets_between_channels(pair):
    a, b = pair
    moved = b + torch.tensor([5.0, -40.0, 100.0]).view(3, 1, 1)
    torch.testing.assert_close(metrics.pearson_per_channel(a, moved), metrics.pearson_per_channel(a, b))
    assert (metrics.pearson(a, moved) - metrics.pearson(a, b)).abs().min() > 0.1


@settings(deadline=None, max_examples=30)
@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-1e3, 1e3), constant=st.floats(-1e6, 1e6))
def test_pearson_ignores_scale_and_shift_and_is_0_for_a_constant(scale, shift, constant):
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(1, 3, 9, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(
        metrics.pearson(a * scale + shift * scale, b), metrics.pearson(a, b), rtol=1e-6, atol=1e-9
    )
    assert metrics.pearson(torch.full_like(a, constant), b).item() == 0


@pytest.mark.parametrize("sigma", [0.7, 2.0, 3.3])
def test_high_pass_is_scipys_gaussian_filter_with_mirrored_borders(pair, sigma):
    a, _ = pair
    for i in range(2):
        gray = np.tensordot([0.299, 0.587, 0.114], a[i].numpy(), 1)
        expected = gray - gaussian_filter(gray, sigma, mode="mirror", truncate=4)
        np.testing.assert_allclose(metrics.high_pass(a, sigma)[i, 0].numpy(), expected, atol=1e-13)


def test_gray_is_pils():
    from PIL import Image

    pixels = torch.randint(0, 256, (1, 3, 9, 7), generator=torch.Generator().manual_seed(0))
    gray = np.asarray(Image.fromarray(pixels[0].permute(1, 2, 0).numpy().astype(np.uint8)).convert("L"))
    np.testing.assert_allclose(metrics.luma(pixels)[0, 0].numpy(), gray, atol=1.0)
    torch.testing.assert_close(metrics.luma(pixels[:, :1]), pixels[:, :1].double())


def test_cosine_and_unit_distance_of_a_known_angle():
    a, b = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2)
    a[..., 0], b[..., 0], b[..., 1] = 3.0, 5 * 0.5, 5 * 3**0.5 / 2  # 60 degrees
    assert metrics.cosine(a, b).item() == pytest.approx(0.5, abs=1e-7)
    assert metrics.unit_distance(a, b).item() == pytest.approx(1.0, abs=1e-7)
    assert metrics.tan2(metrics.cosine(a, b)).item() == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(7, 2, 3), (7, 1, 3), (3, 2, 0), (4, 3, 1), (2, 3, 0), (1, 1, 0)]
)
@pytest.mark.parametrize("size", [(13, 10), (12, 15)])
def test_patch_weight_is_the_sum_over_patches(kernel, stride, padding, size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x[1, :, :6, :6] = 0  # patches of zero norm
    height, width = size
    expected = torch.zeros(2, 1, *size, dtype=torch.float64)
    for i in range(2):
        for top in range(-padding, height + padding - kernel + 1, stride):
            for left in range(-padding, width + padding - kernel + 1, stride):
                rows = slice(max(top, 0), min(top + kernel, height))
                columns = slice(max(left, 0), min(left + kernel, width))
                norm = x[i, :, rows, columns].norm()
                if norm > 0:
                    expected[i, 0, rows, columns] += 1 / norm
    weight = metrics.patch_weight(x, kernel, stride, padding)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-14)
    covered = weight > 0
    map_ = weight * x
    assert metrics.cosine_weighted(map_, torch.where(covered, x, 0.0), weight).tolist() == pytest.approx([1, 1])


def test_ssim_is_scikit_images_after_min_max(pair):
    a, b = pair
    p, q = (((t[0] - t[0].min()) / (t[0].max() - t[0].min())).numpy() for t in (a, b))
    assert metrics.ssim(a, b)[0].item() == pytest.approx(structural_similarity(p, q, channel_axis=0, data_range=1))


def test_ssim_takes_a_window_and_a_range(pair):
    a, b = pair
    p, q = (((t[0] - t[0].min()) / (t[0].max() - t[0].min())).numpy() for t in (a, b))
    expected = structural_similarity(p, q, channel_axis=0, win_size=5, data_range=2)
    assert metrics.ssim(a, b, window=5, data_range=2.0)[0].item() == pytest.approx(expected)


def test_max_sensitivity_is_the_largest_change_of_a_linear_map():
    """explain = A x, so the change is A n, whatever the image; each image counts as it does alone."""
    torch.manual_seed(0)
    A, images = torch.randn(12, 12, dtype=torch.float64), torch.randn(3, 3, 2, 2, dtype=torch.float64)

    def explain(x: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ A.T).view_as(x)

    found = max_sensitivity(explain, images, radius=0.5, samples=7, seed=3)
    generator = torch.Generator().manual_seed(3)
    noise = [torch.rand(3, 2, 2, generator=generator, dtype=torch.float64) - 0.5 for _ in range(7)]
    largest = max((A @ n.flatten()).norm() for n in noise)
    assert torch.allclose(found, largest / explain(images).flatten(1).norm(dim=1))
    assert torch.allclose(max_sensitivity(explain, images[1:2], 0.5, 7, 3), found[1:2])
    assert max_sensitivity(lambda x: torch.ones_like(x), images).tolist() == [0, 0, 0]
