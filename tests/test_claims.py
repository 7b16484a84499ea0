"""Rules, verdicts, kinds, and how a claim shows its numbers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vis.claims import (
    Claim,
    Column,
    Compared,
    above,
    below,
    departures,
    each_above,
    exactly,
    interval,
    mean_and_spread,
    near,
    replicated,
    share_interval,
)


def column(values, **where):
    return Column([{"image": i, "value": value} | where for i, value in enumerate(values)], "value", "image")


def compared(values, rule, null=0.0):
    return Compared("metric", column(values), rule, null=null, control="no effect")


def claim(*each, **options):
    return Claim("finding", each, sentence="sentence", source="source", **options)


@pytest.mark.parametrize(
    ("rule", "holds", "fails", "undecided"),
    [
        (above(0.5), [0.6, 0.7, 0.6, 0.7], [0.1, 0.2, 0.1, 0.2], [0.4, 0.6, 0.4, 0.7]),
        (above(0.5, fails=0.1), [0.6, 0.7, 0.6, 0.7], [0.0, 0.05, 0.0, 0.05], [0.3, 0.31, 0.3, 0.31]),
        (below(0.5, fails=0.9), [0.1, 0.2, 0.1, 0.2], [1, 1.1, 1, 1.1], [0.6, 0.61, 0.6, 0.61]),
        (near(0, 0.1, fails=0.3), [0.01, 0.02, -0.01, 0.01], [-0.5, -0.5, -0.6, -0.5], [0.2, 0.2, 0.21, 0.2]),
        (near(1, 0.1), [1.01, 1.02, 0.99, 1.01], [1.5, 1.5, 1.6, 1.5], [1.0, 1.2, 1.0, 1.2]),
        (above(0.5, of="share"), [1] * 20, [0] * 20, [0, 1, 1, 1, 1]),
        (exactly(0, 1e-12), [1e-13], [0, 1e-3], None),
        (exactly(3), [3, 3], [3, 3.0001], None),
        (each_above(0), [1e-300, 1], [0, 1], None),
    ],
)
def test_a_rule_has_three_regions(rule, holds, fails, undecided):
    assert rule.verdict(holds) == "holds"
    assert rule.verdict(fails) == "fails"
    assert undecided is None or rule.verdict(undecided) == "undecided"
    assert rule.text


def test_few_values_decide_nothing():
    """A spread is possible, so one number, or three, are not enough."""
    assert above(0).verdict([1.0, 1.1, 0.9]) == "undecided"
    assert above(0).verdict([]) == "not measured"
    assert above(0, least=10).verdict([1.0] * 9) == "undecided"
    assert above(0, least=10).verdict([1.0, 1.1] * 5) == "holds"
    assert "10 values or more" in above(0, least=10).text


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_decides_nothing(bad):
    undecided = claim(compared([1.0, 1.1, 0.9, 1.0, bad], above(0)))
    assert undecided.verdict == "undecided"
    json.dumps(undecided.record())
    assert undecided.measured
    assert claim(compared([bad], exactly(0, 1))).verdict == "fails"


@given(st.lists(st.floats(-1, 1), min_size=4, max_size=9), st.floats(-1, 1))
def test_no_numbers_are_on_both_sides_of_a_bound(values, bound):
    verdicts = {above(bound).verdict(values), below(bound).verdict(values)}
    assert verdicts in ({"holds", "fails"}, {"undecided"})


def test_intervals_are_those_of_scipy():
    from scipy import stats

    values = [0.2, 0.5, 0.1, 0.9]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval(values) == pytest.approx((expected.low, expected.high))
    for k in range(6):
        exact = stats.binomtest(k, 5).proportion_ci(0.95, "exact")
        assert share_interval([1] * k + [0] * (5 - k)) == pytest.approx((exact.low, exact.high))


def test_a_column_has_one_number_for_each_unit():
    rows = [{"image": i, "seed": s, "a": 10 * i + s} for i in (1, 2) for s in (0, 2)] + [{"image": 3, "seed": 0}]
    assert Column(rows, "a", "image").values == [11, 21]
    assert Column(rows, "a", "seed").values == [15, 17]
    assert Column(rows, "a", ("image", "seed")).values == [10, 12, 20, 22]


def test_a_difference_is_paired_by_unit():
    a, b = column([1.0, 2.0, 3.0]), column([0.5, 0.5])
    assert (a - b).values == [0.5, 1.5]  # the third image has no partner
    assert (a - 1.0).values == [0, 1, 2]
    with pytest.raises(ValueError, match="a table of its own"):
        (a - b) - 1.0


def test_a_claim_of_several_comparisons():
    yes, no, open_ = ([1.0, 1.1, 0.9, 1.0], [-1.0, -1.1, -0.9, -1.0], [1.0, -1.0, 1.0, -1.0])
    all_of = [claim(*(compared(v, above(0)) for v in each)).verdict for each in ([yes, yes], [yes, no], [yes, open_])]
    assert all_of == ["holds", "fails", "undecided"]
    any_of = [
        claim(*(compared(v, above(0)) for v in each), needs=1).verdict for each in ([yes, no], [no, no], [no, open_])
    ]
    assert any_of == ["holds", "fails", "undecided"]
    assert claim(compared(yes, above(0)), compared([], above(0))).verdict == "not measured"
    assert claim().verdict == "not measured"


def test_many_intervals_have_one_chance_of_error_together():
    values = [0.1, 0.4, 0.2, 0.5]
    alone = claim(compared(values, above(0)))
    joint = claim(*(compared([v + i / 10 for v in values], above(0)) for i in range(10)), needs=1)
    assert (alone.confidence, joint.confidence) == (0.95, pytest.approx(0.995))
    assert joint.record()["compared"][0]["interval"] == pytest.approx(interval(values, 0.995))
    assert [claim(*[compared(values, above(0))] * m).verdict for m in (1, 10)] == ["holds", "undecided"]
    assert "intervals at 99.5 %" in joint.rule
    exact = claim(compared([0.0], exactly(0)), compared(values, above(0)))
    assert exact.confidence == 0.95  # an exact comparison has no chance of error


def test_a_claim_with_a_reason_has_no_verdict_but_shows_its_values():
    shown = claim(compared([1.0, 2.0], above(0)), reason="preset=small")
    assert shown.verdict == "not measured"
    assert shown.judged == "undecided"
    assert shown.measured.startswith("preset=small; here 1.50 ± 0.71 (95 %")


def test_the_kind_follows_from_the_sentence_and_the_setting():
    papers = Claim("N-1-a", [compared([0.0], exactly(0))])
    assert (papers.kind, papers.sentence) == (
        "reproduction",
        "both of them reduce to saliency map in a linear model",
    )
    ours = claim(compared([0.0], exactly(0)))
    elsewhere, still_ours = replicated([papers, ours], ["SqueezeNet 1.1 instead of VGG-16"], "preset=small")
    assert (elsewhere.kind, elsewhere.verdict) == ("replication", "not measured")
    assert elsewhere.record()["differences"] == ["SqueezeNet 1.1 instead of VGG-16"]
    assert (still_ours.kind, still_ours.verdict) == ("finding", "holds")
    with pytest.raises(KeyError):
        Claim("N-no-such-row", [])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0.75, 0.776], "0.763 ± 0.018"),
        ([-0.0001, 0.0002, 0.02], "0.007 ± 0.012"),
        ([-0.00001, -0.00004], "-2.50e-05 ± 2.12e-05"),
        ([0.0, 0.0], "0 ± 0"),
        ([114000.0, 115000.0], "1.14e+05 ± 7.07e+02"),
        ([21.3], "21.3"),
    ],
)
def test_numbers_are_shown_with_three_digits(values, text):
    assert mean_and_spread(values) == text


def test_departures_name_each_setting_that_is_not_the_papers():
    paper = {"filters": [8, 16], "models": {"cnn": {"stride": 2, "pool": None}, "fcn": {"hidden": 4096}}}
    config = OmegaConf.create(paper)
    assert departures(config, paper) == []
    config.models.cnn.stride, config.models.fcn.hidden, config.filters = 1, 10, [8]
    assert departures(config, paper) == [
        "filters = [8] instead of [8, 16]",
        "models.cnn.stride = 1 instead of 2",
        "models.fcn.hidden = 10 instead of 4096",
    ]


@pytest.mark.parametrize("precision", ["float32", "mixed"])
def test_mixed_precision_refuses_claims_about_exactness(precision):
    exact, statistical = claim(compared([0.0], exactly(0))), claim(compared([0.6, 0.7, 0.6, 0.7], above(0.5)))
    assert statistical.in_precision(precision).verdict == "holds"
    judged = exact.in_precision(precision)
    assert judged.verdict == ("not measured" if precision == "mixed" else "holds")
    assert ("precision=mixed rounds backward passes" in judged.measured) == (precision == "mixed")
