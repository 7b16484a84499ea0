"""Targets: which number a map explains."""

import numpy as np
import pytest
import torch

from vis.methods.target import Target, as_targets, score


@pytest.mark.parametrize(
    "targets",
    [
        3,
        np.int64(3),
        torch.tensor(3),
        Target(3),
        [3, 3],
        (3, Target(3)),
        torch.tensor([3, 3]),
        np.array([3, 3], dtype=np.uint8),
    ],
)
def test_one_target_counts_for_all_images_and_any_integer_is_a_unit(targets):
    assert as_targets(targets, 2) == [Target(3), Target(3)]


def test_no_target_is_the_largest_unit():
    assert as_targets(None, 2) == [Target(), Target()]
    assert as_targets([None, 1], 2) == [Target(), Target(1)]
    output = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -2.0]])
    assert score(output, [Target(), Target()]).tolist() == [3, 0]


def test_of_equal_units_the_first_alone_is_explained():
    output = torch.ones(1, 3, requires_grad=True)
    score(output, [Target()]).sum().backward()
    assert output.grad.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("targets", ["tabby", 1.5, [1, "cat"], torch.tensor([0.5, 1.0]), torch.ones(2, 2).long()])
def test_what_is_no_target_is_an_error(targets):
    with pytest.raises(TypeError, match=r"a target is an index or a vis\.methods\.target\.Target, not"):
        as_targets(targets, 2)


def test_a_wrong_count_is_an_error():
    with pytest.raises(ValueError, match="3 targets for 2 images"):
        as_targets([1, 2, 3], 2)
    with pytest.raises(ValueError, match="'logit' or 'prob', not 'odds'"):
        Target(1, output="odds")


def test_units_of_a_feature_map():
    output = torch.arange(24.0).reshape(1, 2, 3, 4).repeat(4, 1, 1, 1)
    units = [Target(1), Target((1, 2)), Target((1, 2, 3)), Target()]
    assert score(output, units).tolist() == [sum(range(12, 24)), 20 + 21 + 22 + 23, 23, 23]


def test_a_probability_is_a_softmax_over_the_units():
    output = torch.randn(2, 5, 3, 3)
    expected = output.softmax(1)[:, 2].sum((1, 2))
    assert torch.allclose(score(output, [Target(2, output="prob")] * 2), expected)


def test_units_of_many_images_and_their_gradients():
    output = torch.rand(5, 7, requires_grad=True)
    targets = [Target(unit) for unit in (3, 0, 6, 3, 3)]
    together, alone = score(output, targets), torch.stack([o[t.unit] for o, t in zip(output, targets, strict=True)])
    assert torch.equal(together, alone)
    slopes = [torch.autograd.grad(each.sum(), output, retain_graph=True)[0] for each in (together, alone)]
    assert torch.equal(*slopes)


@pytest.mark.parametrize("unit", [5, -1, (0, 3, 0), (0, 0, 0, 0)])
def test_a_unit_outside_the_layer_is_an_error(unit):
    with pytest.raises(IndexError, match=r"is not in a layer of shape \(5, 3, 3\)"):
        score(torch.zeros(1, 5, 3, 3), [Target(unit)])


def test_a_layer_without_a_row_for_each_image_is_an_error():
    with pytest.raises(ValueError, match=r"\(7, 2\) has no row for each of 2 images"):
        score(torch.zeros(7, 2), [Target(0), Target(0)])
