"""Prediction difference analysis and occlusion against loops that read like the paper's algorithms, and captum."""

import itertools
import math

import networks
import numpy as np
import pytest
import torch
from checks import close, error
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from vis.errors import UserError
from vis.methods import PDA, NotApplicable, Occlusion, PDAFast, PDAGradient, Target
from vis.methods.base import explain_all
from vis.methods.perturbation import accumulate, log2_odds, windows_of
from vis.windows.gaussian import Marginal, PatchGaussian

SIDE, WINDOW = 5, 3


def pictures(count: int = 6, seed: int = 3) -> Tensor:
    """Images whose neighbouring pixels and channels are alike, [count, 2, 12, 12]."""
    noise = torch.randn(count, 2, 14, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    smooth = nn.functional.avg_pool2d(noise, 3, 1)
    return smooth + 0.5 * smooth.flip(1) + torch.tensor([1.0, -2.0]).view(2, 1, 1)


def fitted(joint: bool = False) -> PatchGaussian:
    return PatchGaussian.fit(pictures(), SIDE, patches=2000, joint=joint)


def outer(top: int, left: int, size: int = 12) -> tuple[int, int]:
    """The corner of the patch around a window: the window in its middle, shifted inside the image."""
    row, column = (min(max(at - (SIDE - WINDOW) // 2, 0), size - SIDE) for at in (top, left))
    return row, column


def conditional(gaussian: PatchGaussian, image: np.ndarray, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a window given the rest of its patch, by the textbook's formula, one vector of all channels."""
    row, column = outer(top, left)
    groups = [range(len(image))] if gaussian.joint else [[c] for c in range(len(image))]
    means, covariances = [], []
    for g, channels in enumerate(groups):
        inside = np.zeros((len(channels), SIDE, SIDE), bool)
        inside[:, top - row : top - row + WINDOW, left - column : left - column + WINDOW] = True
        one, two = inside.ravel(), ~inside.ravel()
        mu, S = gaussian.mean[g].numpy(), gaussian.covariance[g].numpy()
        S = S + gaussian.ridge * np.trace(S) / len(S) * np.eye(len(S))
        x = image[list(channels), row : row + SIDE, column : column + SIDE].ravel()
        S22 = S[np.ix_(two, two)]
        means.append(mu[one] + S[np.ix_(one, two)] @ np.linalg.inv(S22) @ (x[two] - mu[two]))
        covariances.append(S[np.ix_(one, one)] - S[np.ix_(one, two)] @ np.linalg.inv(S22) @ S[np.ix_(two, one)])
    covariance = np.zeros((sum(map(len, means)),) * 2)
    for i, each in enumerate(covariances):
        covariance[i * len(each) : (i + 1) * len(each), i * len(each) : (i + 1) * len(each)] = each
    return np.concatenate(means), covariance


# --- the Gaussian ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [False, True])
def test_conditional_means_follow_the_formula_also_at_the_border(joint):
    gaussian, image, windows = fitted(joint), pictures(1, seed=9)[0], windows_of((12, 12), WINDOW)
    means = gaussian.means(image, windows, WINDOW)
    wanted = [conditional(gaussian, image.numpy(), *window)[0] for window in windows.tolist()]
    assert error(means.flatten(1), torch.from_numpy(np.stack(wanted))) < 1e-9


def test_mean_and_covariance_are_those_of_patches_of_the_data():
    images = pictures(1)[:, :, :SIDE, :SIDE].repeat(2, 1, 1, 1)  # one patch for each image: these
    images[1] += torch.randn(2, SIDE, SIDE, dtype=torch.float64)
    gaussian = PatchGaussian.fit(images, SIDE, patches=3, seed=1)
    drawn = images[torch.randint(2, (3,), generator=torch.Generator().manual_seed(1)).sort()[0]]
    for c in range(2):
        assert close(gaussian.mean[c], drawn[:, c].flatten(1).mean(0))
        assert close(gaussian.covariance[c], torch.cov(drawn[:, c].flatten(1).T))


def test_samples_have_the_conditional_mean_and_covariance():
    gaussian, image = fitted(), pictures(1, seed=9)[0]
    gaussian.low, gaussian.high = gaussian.low - 100, gaussian.high + 100  # nothing is clipped
    window = torch.tensor([[0, 4]])
    draws = gaussian.samples(image, window, WINDOW, 20_000, seed=0)[0].flatten(1)
    mean, covariance = conditional(gaussian, image.numpy(), 0, 4)
    spread = math.sqrt(np.diag(covariance).max())
    assert (draws.mean(0) - torch.from_numpy(mean)).abs().max() < 5 * spread / math.sqrt(20_000)
    assert (draws.T.cov() - torch.from_numpy(covariance)).abs().max() < 0.05 * spread**2
    whitened = multivariate_normal(mean, covariance, allow_singular=True).logpdf(draws.numpy())
    assert np.isfinite(whitened).all()


def test_samples_are_clipped_to_the_range_of_the_data_and_depend_on_seed_and_place_alone():
    gaussian, image, windows = fitted(), pictures(1, seed=9)[0], windows_of((12, 12), WINDOW)
    draws = gaussian.samples(image, windows, WINDOW, 40, seed=0)
    for c in range(2):
        assert draws[:, :, c].min() == gaussian.low[c] == pictures()[:, c].min()
        assert draws[:, :, c].max() == gaussian.high[c] == pictures()[:, c].max()
    assert close(gaussian.samples(image, windows[[70, 3]], WINDOW, 40, seed=0), draws[[70, 3]])
    assert not close(gaussian.samples(image, windows, WINDOW, 40, seed=1), draws)
    assert not close(gaussian.samples(image, windows, WINDOW, 40, seed=0)[1], draws[0])


def test_it_is_saved_with_its_provenance(tmp_path):
    gaussian = PatchGaussian.fit(pictures(), SIDE, patches=100, provenance={"data": "pictures"})
    gaussian.save(tmp_path / "of" / "pictures.pt")
    again = PatchGaussian.load(tmp_path / "of" / "pictures.pt")
    assert again.fingerprint() == gaussian.fingerprint()
    assert again.provenance == {"data": "pictures", "images": 6, "patches": 100, "seed": 0}
    (tmp_path / "text.pt").write_text("text")
    for file, message in (("text.pt", "is not a Gaussian"), ("nothing.pt", "no Gaussian in")):
        with pytest.raises(UserError, match=message):
            PatchGaussian.load(tmp_path / file)


def test_images_it_cannot_serve_are_a_users_mistake():
    for image, k in ((pictures(1)[0, :1], WINDOW), (pictures(1)[0, :, :4], WINDOW), (pictures(1)[0], SIDE)):
        with pytest.raises(UserError):
            fitted().means(image, torch.zeros(1, 2, dtype=torch.long), k)
    with pytest.raises(UserError, match="use a smaller patch"):
        PatchGaussian.fit(pictures(), 13)


def test_marginal_contents_are_what_other_images_have_at_the_same_place():
    images, windows = pictures(), torch.tensor([[2, 5], [0, 9]])
    marginal = Marginal.fit(images)
    for at, mean, draws in zip(
        windows.tolist(),
        marginal.means(images[0], windows, 3),
        marginal.samples(images[0], windows, 3, 50, 0),
        strict=True,
    ):
        there = images[:, :, at[0] : at[0] + 3, at[1] : at[1] + 3]
        assert close(mean, there.mean(0))
        found = [[torch.equal(draw, each) for each in there] for draw in draws]
        assert all(map(any, found))
        assert np.any(found, axis=0).all()  # each image is drawn


# --- from windows to maps --------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 4), st.data())
def test_a_pixel_gets_the_mean_of_its_windows(height, width, k, stride, data):
    k = min(k, height, width)
    windows = windows_of((height, width), k, stride)
    kept = data.draw(st.lists(st.sampled_from(range(len(windows))), min_size=1, unique=True))
    windows = windows[kept]
    evidence = torch.randn(len(windows), 2, dtype=torch.float64)
    total, counts = torch.zeros(2, height, width, dtype=torch.float64), torch.zeros(height, width)
    for (top, left), values in zip(windows.tolist(), evidence, strict=True):
        total[:, top : top + k, left : left + k] += values[:, None, None]
        counts[top : top + k, left : left + k] += 1
    wanted = total / counts.clamp(min=1)
    assert torch.allclose(accumulate(evidence, windows, k, (height, width)), wanted, atol=1e-12)
    assert len(kept) < len(windows_of((height, width), k, stride)) or stride > k or counts.min() > 0


def test_the_laplace_correction_bounds_the_evidence():
    p = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    q = (p * 100_000 + 1) / (100_000 + 1000)
    assert torch.allclose(log2_odds(p, 1000), torch.log2(q / (1 - q)))
    assert log2_odds(p, 1000)[2].item() == pytest.approx(6.645, abs=1e-3)
    assert log2_odds(p, 1000, math.inf)[1].item() == pytest.approx(math.log2(3 / 7))


# --- the algorithms --------------------------------------------------------------------------------------------------


def algorithm(net: nn.Module, x: Tensor, unit: int, contents, laplace: float = 100_000) -> Tensor:
    """Algorithms 1 and 2 as they stand: contents(top, left) are the S patches that a window is replaced by."""

    def odds(images: Tensor) -> Tensor:
        p = net(images).softmax(1)[:, unit].mean()
        q = (p * laplace + 1) / (laplace + networks.CLASSES)
        return torch.log2(q / (1 - q))

    WE, counts = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64)
    for top, left in itertools.product(range(12 - WINDOW + 1), repeat=2):
        rows, columns = slice(top, top + WINDOW), slice(left, left + WINDOW)
        patches = contents(top, left)
        changed = x[None].repeat(len(patches), 1, 1, 1)
        changed[:, :, rows, columns] = patches
        WE[rows, columns] += odds(x[None]) - odds(changed)
        counts[rows, columns] += 1
    return (WE / counts)[None]


def contents_of(gaussian: PatchGaussian, x: Tensor, samples: int):
    """The conditional mean (samples = 0) or the draws of each window."""

    def contents(top: int, left: int) -> Tensor:
        window = torch.tensor([[top, left]])
        if samples:
            return gaussian.samples(x, window, WINDOW, samples, seed=0)[0]
        return torch.from_numpy(conditional(gaussian, x.numpy(), top, left)[0]).view(1, 2, WINDOW, WINDOW)

    return contents


SIZES = {"window": WINDOW, "patch": SIDE}
METHODS = {
    "pda": (PDA(**SIZES, samples=3), 3),
    "pda joint": (PDA(**SIZES, samples=2, joint=True), 2),
    "pda_fast": (PDAFast(**SIZES), 0),
    "pda_fast without correction": (PDAFast(**SIZES, laplace=1e30), 0),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("network", ["vgg_like", "residual", "functional"])
def test_it_is_the_papers_algorithm(network, name):
    method, samples = METHODS[name]
    net, x = networks.build(network), pictures(2, seed=5)
    method.fit(pictures())
    maps = method(net, x, [1, None])
    units = [1, int(net(x[1:]).argmax())]
    with torch.no_grad():
        for image, unit, map_ in zip(x, units, maps, strict=True):
            contents = contents_of(method.expected, image, samples)  # type: ignore[arg-type]  # fitted above
            assert error(map_, algorithm(net, image, unit, contents, method.laplace)) < 1e-9


def test_channels_one_at_a_time():
    net, x = networks.build("residual"), pictures(1, seed=5)
    method = PDAFast(**SIZES, per_channel=True)
    method.fit(pictures())
    gaussian = method.expected
    assert isinstance(gaussian, PatchGaussian)
    (map_,) = method(net, x, 1)
    assert map_.shape == (2, 12, 12)

    def only(channel):
        def contents(top: int, left: int) -> Tensor:
            patch = x[:, :, top : top + WINDOW, left : left + WINDOW].clone()
            patch[:, channel] = contents_of(gaussian, x[0], 0)(top, left)[:, channel]
            return patch

        return contents

    with torch.no_grad():
        for c in range(2):
            assert error(map_[c : c + 1], algorithm(net, x[0], 1, only(c))) < 1e-9


def test_logits_can_be_averaged_instead_of_probabilities():
    """Eq. 11-15: the normalised geometric mean of softmax outputs is the softmax of the mean logits."""
    net, x = networks.build("vgg_like"), pictures(1, seed=5)
    method = PDA(**SIZES, samples=4, average="logit")
    method.fit(pictures())
    window = torch.tensor([[2, 7]])
    images = x.repeat(4, 1, 1, 1)
    images[:, :, 2:5, 7:10] = method.expected.samples(x[0], window, WINDOW, 4, 0)[0]
    with torch.no_grad():
        geometric = net(images).softmax(1).log().mean(0).exp()
        wanted = log2_odds(net(x).softmax(1)[0, 1], 5) - log2_odds((geometric / geometric.sum())[1], 5)
    assert method.evidence(net, x[0], Target(1), window).item() == pytest.approx(wanted.item())


@pytest.mark.parametrize("network", ["vgg_like", "residual"])
def test_the_simplified_algorithm_is_the_gradient_times_the_change(network):
    net, x = networks.build(network), pictures(2, seed=5)
    method = PDAGradient(**SIZES)
    method.fit(pictures())
    maps = method(net, x, [1, 4])
    for image, unit, map_ in zip(x, [1, 4], maps, strict=True):
        leaf = image[None].clone().requires_grad_()
        (grad,) = torch.autograd.grad(net(leaf).softmax(1)[0, unit], leaf)
        WE, counts = torch.zeros(12, 12, dtype=torch.float64), torch.zeros(12, 12, dtype=torch.float64)
        for top, left in itertools.product(range(12 - WINDOW + 1), repeat=2):
            where = (..., slice(top, top + WINDOW), slice(left, left + WINDOW))
            expected = contents_of(method.expected, image, 0)(top, left)[0]  # type: ignore[arg-type]  # fitted above
            WE[where] += (grad[0][where] * (image[where] - expected)).sum()
            counts[where] += 1
        assert close(map_[0], WE / counts)


def test_the_first_order_change_is_what_small_changes_tend_to():
    """Eq. 38: P(c|x) - P(c|x') is g^T (x - x') up to second order."""
    net, x = networks.build("gelu"), pictures(1, seed=5)
    small, large = (PDAGradient(**SIZES), Occlusion(window=WINDOW, fill="zero"))
    small.fit(pictures())
    assert small(net, x, 1).shape == large(net, x, Target(1, output="prob")).shape
    differences = []
    for scale in (1e-2, 1e-3):
        near = lambda image, windows, preprocess=None, scale=scale: cut_towards(image, windows, scale)  # noqa: E731  # what one scale of the loop does
        small._contents = large._contents = near  # type: ignore[method-assign]  # in place of their own
        differences.append(error(small(net, x, 1), large(net, x, Target(1, output="prob"))))
    assert differences[1] < 0.2 * differences[0] < 0.02


def cut_towards(image: Tensor, windows: Tensor, scale: float) -> Tensor:
    from vis.methods.perturbation import cut

    return (cut(image, windows, WINDOW) * (1 - scale))[:, None]


@pytest.mark.parametrize("fill", ["gray", [0.25, 1.0]])
@pytest.mark.parametrize("output", ["logit", "prob"])
@pytest.mark.parametrize("network", ["vgg_like", "functional"])
def test_occlusion_equals_captum(network, output, fill):
    attr = pytest.importorskip("captum.attr")  # a dev dependency
    net, x = networks.build(network), networks.images(2)
    pixels = torch.tensor([0.5, 0.5] if fill == "gray" else fill, dtype=torch.float64).view(1, 2, 1, 1).expand_as(x)

    def f(images: Tensor) -> Tensor:
        return net(images).softmax(1) if output == "prob" else net(images)

    baselines, targets = networks.preprocess(pixels), [Target(1, output=output), Target(3, output=output)]
    theirs = attr.Occlusion(f).attribute(x, (2, 4, 4), baselines=baselines, target=torch.tensor([1, 3]))
    ours = Occlusion(window=4, fill=fill)(net, x, targets, networks.preprocess)
    assert error(ours.expand_as(theirs), theirs) < 1e-5  # captum adds in float32


def test_strides_cover_every_pixel_and_a_whole_image_can_be_cut_into_ranges():
    net, x = networks.build("residual"), networks.images(1)
    method = Occlusion(window=4, fill="zero", stride=3, evidence="odds")
    windows = method.windows(x)
    assert windows.tolist() == [list(pair) for pair in itertools.product([0, 3, 6, 8], repeat=2)]
    parts = [method.evidence(net, x[0], Target(1), some) for some in windows.split(5)]
    assert close(accumulate(torch.cat(parts), windows, 4, (12, 12)), method(net, x, 1)[0])


@pytest.mark.parametrize("make", [PDA, PDAFast, Occlusion])
def test_low_precision_changes_little_of_a_map(make):
    net, x = networks.build("residual"), networks.images(1)
    more = {"fill": "zero"} if make is Occlusion else {}
    exact, rounded = (make(WINDOW, precision=precision, **more) for precision in ("float32", "bfloat16"))
    for method in (exact, rounded):
        if make is not Occlusion:
            method.patch = SIDE
            method.learnt = fitted()
    assert 1e-5 < error(rounded(net, x, 1), exact(net, x, 1)) < 0.02


# --- mistakes --------------------------------------------------------------------------------------------------------


def test_what_was_not_fitted_says_so():
    net, x = networks.build("vgg_like"), networks.images(1)
    for method in (PDA(**SIZES), PDAFast(**SIZES), PDAGradient(**SIZES), PDAFast(**SIZES, conditional=False)):
        with pytest.raises(UserError, match="learns from images first"):
            method(net, x)


def test_a_file_with_another_gaussian_is_an_error(tmp_path):
    fitted().save(tmp_path / "g.pt")
    net, x = networks.build("vgg_like"), networks.images(1)
    assert PDAFast(**SIZES, gaussian=str(tmp_path / "g.pt"))(net, x).shape == (1, 1, 12, 12)
    with pytest.raises(UserError, match="patch=5 joint=False, not the requested patch=6 joint=True"):
        PDAFast(WINDOW, 6, joint=True, gaussian=str(tmp_path / "g.pt"))(net, x)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PDA(window=10, patch=10),
        lambda: PDA(samples=0),
        lambda: PDA(average="median"),
        lambda: PDAFast(laplace=0),
        lambda: Occlusion(stride=0),
        lambda: Occlusion(evidence="bits"),
        lambda: Occlusion(memory_gb=0),
        lambda: PDAFast(precision="float64"),
        lambda: PDAGradient(precision="bfloat16"),
    ],
)
def test_values_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError):  # noqa: PT011  # each has its own words
        wrong()


def test_layers_and_windows_that_do_not_fit_are_errors():
    net, x = networks.build("vgg_like"), networks.images(1)
    with pytest.raises(UserError, match="13x13 does not fit into an image of 12x12"):
        Occlusion(window=13)(net, x)
    with pytest.raises(UserError, match=r"^methods\.mine: a window of 13x13 does not fit"):
        explain_all({"mine": Occlusion(window=13)}, net, x, [0])
    with pytest.raises(NotApplicable, match="the network's output"):
        Occlusion(window=3, fill="zero")(net, x, Target(0, layer="0"))
