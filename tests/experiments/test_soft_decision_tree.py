"""The soft decision tree: Eq. (1) and its loss against loops over nodes, and that it learns."""

import numpy as np
import pytest
import torch
from concluded import concluded
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.ayyar2021.soft_decision_tree import Penalty, SoftDecisionTree, ends, grow, loss, way_to_answer

RECIPE = {"steps": 240, "batch_size": 32, "lr": 0.3, "beta": 1.0, "penalty": 0.1}


def tree_of(depth: int, seed: int, beta: float = 1.0) -> SoftDecisionTree:
    torch.manual_seed(seed)
    return SoftDecisionTree(4, 3, depth, beta).double()


def naive_paths(tree: SoftDecisionTree, x: np.ndarray) -> dict[int, float]:
    """P^n(x) of every node, walked from the root, with Eq. (1)."""
    w, b = tree.filters.weight.detach().numpy(), tree.filters.bias.detach().numpy()
    found, todo = {}, [(0, 1.0)]
    while todo:
        i, P = todo.pop()
        found[i] = P
        if i < len(w):
            p = 1 / (1 + np.exp(-tree.beta * (x @ w[i] + b[i])))
            todo += [(2 * i + 1, P * (1 - p)), (2 * i + 2, P * p)]
    return found


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 99), st.floats(0.2, 5))
def test_paths_and_loss_are_those_of_a_walk_through_the_tree(depth, seed, beta):
    tree, x = tree_of(depth, seed, beta), torch.randn(3, 2, 2, dtype=torch.float64)
    P = tree.paths(x)[1]
    T = torch.rand(3, 3, dtype=torch.float64).softmax(1)
    leaves = 2**depth - 1
    Q = torch.softmax(tree.leaves, 1).detach().numpy()
    total = 0.0
    for n in range(3):
        walked = naive_paths(tree, x[n].flatten().numpy())
        np.testing.assert_allclose(P[n].detach(), [walked[i] for i in range(2 * leaves + 1)], atol=1e-12)
        total -= sum(walked[leaves + k] * (T[n].numpy() * np.log(Q[k])).sum() for k in range(leaves + 1))
        best = max(range(leaves + 1), key=lambda k: walked[leaves + k])
        np.testing.assert_allclose(tree(x)[n].exp().detach(), Q[best], atol=1e-12)
    assert loss(tree, P, T).item() == pytest.approx(total / 3, rel=1e-12)


def test_the_penalty_is_that_of_the_original_and_remembers_longer_where_it_is_deeper():
    tree, batches = tree_of(2, 0), torch.randn(3, 8, 4, dtype=torch.float64)
    penalty, sums = Penalty(2), np.zeros((2, 3))
    for number, x in enumerate(batches):
        p, P = tree.paths(x)
        found = penalty(p, P).item()
        now = np.array([(P[:, :3] * p).mean(0).tolist(), P[:, :3].mean(0).tolist()])
        window = np.array([1, 2, 2])
        sums = now if number == 0 else sums + (now - sums) / window
        alpha = sums[0] / sums[1]
        expected = -(0.5 / window * (np.log(alpha) + np.log(1 - alpha))).sum()
        assert found == pytest.approx(expected, rel=1e-12)
    even, one_sided = torch.full((4, 1), 0.5), torch.full((4, 1), 0.99)
    root = torch.ones(4, 3)
    assert Penalty(1)(even, root) < Penalty(1)(one_sided, root)


def test_a_tree_learns_what_a_tree_can_say_and_the_same_for_a_seed():
    x = torch.rand(256, 2, generator=torch.Generator().manual_seed(0))
    true = (x[:, 0] > 0.5).long() * 2 + (x[:, 1] > 0.5).long()
    T = torch.nn.functional.one_hot(true, 4).float()
    before = torch.get_rng_state()
    tree = grow(x, T, 2, RECIPE, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    assert (tree(x).argmax(1) == true).double().mean() > 0.9
    one, again = (grow(x, T, 2, RECIPE | {"steps": 20}, seed=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))


def test_the_ends_of_a_cut_tree_are_the_mean_of_their_leaves():
    Q, use = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8]]), np.array([1, 0.6, 0.4, 0.15, 0.45, 0.4, 0.0])
    np.testing.assert_allclose(ends(Q, use, 2), Q)
    np.testing.assert_allclose(ends(Q, use, 1), [[0.25, 0.75], [0.5, 0.5]])


def test_the_way_ends_at_the_most_probable_leaf_not_at_the_most_probable_child():
    assert way_to_answer(np.array([1, 0.55, 0.45, 0.28, 0.27, 0.45, 0])) == {0, 2, 5}
    assert way_to_answer(np.array([1, 0.4, 0.6])) == {0, 2}


def test_the_experiment_grows_each_tree_and_judges_the_deepest():
    results, claims = concluded(
        "experiment=ayyar2021/soft_decision_tree", "model.weights=null", "model.init=kaiming_normal", "dataset=digits",
        "dataset.limit=100", "experiment.depths=[2,3]", "experiment.recipe.steps=3", "seeds=2",
    )  # fmt: skip
    assert len(results.rows()) == 2 * 2 * 2
    assert results.arrays["filters"].shape == (3, 1, 28, 28)
    np.testing.assert_allclose(results.arrays["Q"].sum(1), 1, atol=1e-6)
    assert results.arrays["use"][[1, 2]].sum() == pytest.approx(1, abs=1e-6)
    assert claims["A-2.1-b"]["verdict"] == "holds"
    assert claims["soft_labels"]["verdict"] == "undecided", "two seeds decide nothing"
    deepest = {labels: [r["accuracy"] for r in results.rows(depth=3, labels=labels)] for labels in ("soft", "true")}
    assert claims["soft_labels"]["compared"][0]["values"] == [a - b for a, b in zip(*deepest.values(), strict=True)]
