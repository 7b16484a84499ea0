"""Criteria, verdicts, and how a claim shows its numbers."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from vis.claims import (
    POSITIVE,
    Claim,
    above,
    below,
    departures,
    increasing,
    interval_above,
    interval_below,
    mean_and_spread,
    near_zero,
    paper_and_here,
    within,
)


def claim(criterion, values, **options):
    return Claim("name", "sentence", source="source", metric="metric", criterion=criterion, values=values, **options)


@pytest.mark.parametrize(
    ("criterion", "holds", "fails"),
    [
        (above(0.5), [0.4, 0.7], [0.4, 0.6]),  # exactly 0.5 is not above
        (above(0.5, each=True), [0.51, 0.7], [0.4, 0.9]),
        (below(0.5), [0.6, 0.3], [0.4, 0.6]),
        (below(0.5, each=True), [0.4, 0.49], [0.1, 0.6]),
        (near_zero(0.1), [-0.5, 0.5], [-0.5, 0.1]),
        (near_zero(0.1, each=True), [-0.09, 0.09], [-0.5, 0.5]),
        (within(10, 0.2), [8, 12], [8, 12.1]),
        (within(-10, 0.2), [-8, -12], [10]),
        (increasing(), [1, 2, 3], [1, 2, 2]),
    ],
)
def test_criteria(criterion, holds, fails):
    assert claim(criterion, holds).verdict == "holds"
    assert claim(criterion, fails).verdict == "fails"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_fails(bad):
    for values in ([1.0, bad], {"a": [0.1], "b": [1.0, bad]}):
        failed = claim(above(0), values)
        assert failed.verdict == "fails"
        json.dumps(failed.record())
        assert failed.measured


def test_over_settings_the_means_are_judged_in_their_order():
    grows = claim(increasing(), {"N = 8": [0.1, 0.4], "N = 16": [0.3, 0.3], "N = 32": [0.2, 0.6]})
    assert grows.verdict == "holds"  # 0.25, 0.3, 0.4, though single values fall
    assert grows.measured == "N = 8: 0.250 ± 0.212, N = 16: 0.300 ± 0.000, N = 32: 0.400 ± 0.283 (n = 2)"
    record = grows.record()
    assert record["values"]["N = 8"] == [0.1, 0.4]
    assert record["mean"]["N = 32"] == pytest.approx(0.4)


def test_a_criterion_with_an_interval_takes_two_values():
    alone = claim(POSITIVE, [1.0])
    assert (alone.verdict, alone.measured) == ("not measured", "the rule takes 2 values or more; here 1.00")
    assert claim(above(0.9), [1.0]).verdict == "holds"
    assert claim(POSITIVE, [1.0, 1.1]).verdict == "holds"
    assert claim(interval_below(0.05), [0.0, 0.001]).verdict == "holds"
    assert claim(interval_below(0.05), [0.0, 0.06]).verdict == "fails"
    assert claim(increasing(), {"N = 256": [0.5, 0.6]}).verdict == "not measured"  # an order of one


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_no_numbers_are_both_above_and_below_a_bound(values):
    verdicts = [claim(criterion(0.05), values).verdict for criterion in (interval_above, interval_below)]
    assert verdicts.count("holds") < 2


def test_a_claim_of_the_project_is_there_once_and_judged():
    """Whatever its sentence and its name say: `origin` decides."""
    theirs = replace(claim(above(0), [1.0]), name="a", sentence="Beyond the paper: as they say")
    ours = replace(theirs, name="here_b", sentence="more", origin="project")
    assert [(c.name, c.sentence, c.origin, c.verdict) for c in paper_and_here([theirs, ours], "other weights")] == [
        ("a", "Beyond the paper: as they say", "paper", "not measured"),
        ("here_a", "Here: Beyond the paper: as they say", "project", "holds"),
        ("here_b", "more", "project", "holds"),
    ]
    assert paper_and_here([theirs, ours], "") == [theirs, ours]
    assert [theirs.record()["origin"], ours.record()["origin"]] == ["paper", "project"]


def test_without_values_or_with_a_reason_there_is_no_verdict():
    assert claim(above(0), []).verdict == "not measured"
    assert claim(above(0), {}).verdict == "not measured"
    assert claim(above(0), {"a": [1.0], "b": []}).verdict == "not measured"
    assert claim(above(0), [], reason="no weights").measured == "no weights"
    shown = claim(above(0), [1.0, 2.0], reason="stride is 1")
    assert (shown.verdict, shown.measured) == ("not measured", "stride is 1; here 1.50 ± 0.71 (n = 2)")


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
    config = OmegaConf.create(
        {"filters": [8, 16], "models": {"cnn": {"stride": 2, "pool": None}, "fcn": {"hidden": 4096}}}
    )
    assert departures(config, paper) == ""
    config.models.cnn.stride, config.models.cnn.pool = 1, "9x9"
    config.models.fcn.hidden, config.filters = 10, [8]
    assert departures(config, paper) == (
        "filters is [8] (paper: [8, 16]), models.cnn.stride is 1 (paper: 2), models.cnn.pool is 9x9 (paper: None), "
        "models.fcn.hidden is 10 (paper: 4096)"
    )
