"""Agreement metrics, deletion and insertion, checked against scipy, scikit-learn and hand-computed values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy, spearmanr
from torch import nn

from vis import metrics
from vis.metrics.deletion import curves


def maps(seed=0, shape=(3, 1, 6, 5)):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 1000))
def test_spearman_is_scipys_with_ties_too(seed):
    a, b = maps(seed).round(), maps(seed + 1).round()
    expected = [spearmanr(p.flatten(), q.flatten()).statistic for p, q in zip(a, b, strict=True)]
    assert metrics.spearman(a, b).tolist() == pytest.approx(expected)


def test_kl_is_scipys_entropy():
    a, b = maps(0).exp(), maps(1).exp()
    expected = [entropy(p.flatten(), q.flatten()) for p, q in zip(a, b, strict=True)]
    assert metrics.kl(a, b).tolist() == pytest.approx(expected, abs=1e-12)
    assert metrics.kl(a, a).abs().max() < 1e-12


def test_the_largest_pixels():
    mask = metrics.largest(torch.tensor([[[[1.0, 4.0], [3.0, 3.0]]]]), 0.5)
    assert mask.tolist() == [[[[False, True], [True, False]]]]


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.lists(st.booleans(), min_size=6, max_size=6))
def test_dice_and_iou_of_sets(a, b):
    p, q = (torch.tensor(v).view(1, 1, 2, 3) for v in (a, b))
    A, B = ({i for i, v in enumerate(each) if v} for each in (a, b))
    assert metrics.dice(p, q).item() == pytest.approx(2 * len(A & B) / (len(A) + len(B)) if A or B else 1)
    assert metrics.iou(p, q).item() == pytest.approx(len(A & B) / len(A | B) if A or B else 1)


def test_metrics_of_fixations():
    map_ = torch.tensor([[[[0.0, 1.0], [2.0, 5.0]]]])
    looked = torch.tensor([[[[False, False], [False, True]]]])
    assert metrics.pointing_game(map_, looked).item() == 1
    assert metrics.pointing_game(-map_, looked).item() == 0
    assert metrics.auc_judd(map_, looked).item() == 1
    assert metrics.auc_judd(-map_, looked).item() == 0
    assert metrics.nss(map_, looked).item() == pytest.approx((5 - 2) / np.std([0, 1, 2, 5]))
    assert torch.isnan(metrics.auc_judd(map_, ~looked & looked))


def test_participation_ratio_counts_pixels():
    one, half, all_ = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), -2.0)
    one[0, 1, 2, 2], half[:, :, :2] = 7, 3
    assert [metrics.participation_ratio(m).item() for m in (one, half, all_)] == pytest.approx([1 / 16, 0.5, 1])


class Sum(nn.Module):
    """A network of two classes; the first logit is a weighted sum of the pixels."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        score = (x * self.weight).sum((1, 2, 3))
        return torch.stack([score, torch.zeros_like(score)], 1)


def test_deletion_and_insertion_by_hand():
    weight = torch.tensor([[[3.0, 1.0], [2.0, 0.0]]], dtype=torch.float64)
    images, zeros = torch.ones(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    found = curves(Sum(weight), images, weight[None], 0, zeros, steps=4)
    left = torch.tensor(
        [6.0, 3.0, 1.0, 0.0, 0.0], dtype=torch.float64
    ).sigmoid()  # pixels 3, 2, 1, 0 are deleted in turn
    come = torch.tensor([0.0, 3.0, 5.0, 6.0, 6.0], dtype=torch.float64).sigmoid()
    torch.testing.assert_close(found.deletion, left[None])
    torch.testing.assert_close(found.insertion, come[None])
    assert found.deletion_auc.item() == pytest.approx(((left[:-1] + left[1:]) / 2).mean().item())


def test_the_best_order_has_the_smallest_deletion_and_the_largest_insertion_area():
    weight = maps(3, (1, 4, 4)).abs()
    images = torch.ones(2, 1, 4, 4, dtype=torch.float64)
    best = curves(Sum(weight), images[:1], weight[None], 0, torch.zeros(1), steps=16)
    for seed in range(5):
        other = curves(Sum(weight), images[:1], maps(seed, (1, 1, 4, 4)), 0, torch.zeros(1), steps=16)
        assert best.deletion_auc <= other.deletion_auc
        assert best.insertion_auc >= other.insertion_auc


def test_curves_do_not_depend_on_the_batch():
    weight, images, order = maps(1, (3, 4, 4)), maps(2, (3, 3, 4, 4)), maps(4, (3, 3, 4, 4))
    whole = curves(Sum(weight), images, order, [0, 1, 0], torch.zeros(1), steps=7, batch=3)
    for i, target in enumerate((0, 1, 0)):
        single = curves(Sum(weight), images[i : i + 1], order[i : i + 1], target, torch.zeros(1), steps=7)
        torch.testing.assert_close(single.deletion[0], whole.deletion[i])
        torch.testing.assert_close(single.insertion[0], whole.insertion[i])
