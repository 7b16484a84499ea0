"""A claim that cannot fail is a defect: true, false and control values, written into small runs, change the verdicts."""

import mutations
import pytest

from vis.config.options import options

ITEMS = [
    name
    for name in options("experiment")
    if "/" in name and "/finding" not in name and name.partition("/")[2] not in ("all", "_maps")
]


@pytest.mark.slow
@pytest.mark.parametrize("item", ITEMS)
def test_every_claim_can_fail(item, vis_run):
    ran = vis_run(f"experiment={item}", "preset=tiny")
    assert mutations.killed(ran.folder) == {}
