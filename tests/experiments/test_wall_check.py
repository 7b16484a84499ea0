"""Which methods see through a wall: the metric, the experiment on any method, and Table 1 of taimeskhanov2024."""

import csv
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.taimeskhanov2024.table1 import PAPER
from vis import metrics
from vis.methods import GradCAM, OptiCAM, ScoreCAM
from vis.models import MaskedCNN
from vis.store.run_folder import load_run

SMALL = ("model=cnn_masked", "model.init=kaiming_normal", "dataset=stacked_digits", "dataset.limit=3")
DEAD = (27, 55)  # of cnn_masked, proven in test_wall.py


@given(st.integers(2, 12), st.data())
def test_mu_of_a_constant_map_is_the_root_of_the_share_of_rows(height, data):
    first = data.draw(st.integers(0, height - 1))
    last = data.draw(st.integers(first, height - 1))
    mu = metrics.unseen_activity(torch.full((2, 1, height, 5), 3.0), (first, last))
    assert mu.tolist() == pytest.approx([math.sqrt((last - first + 1) / height)] * 2)


def test_mu_ignores_scale_and_sign_and_is_not_a_number_for_zeros():
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scaled = torch.cat([maps, -7 * maps, 0 * maps])
    mu = metrics.unseen_activity(scaled, (6, 7))
    assert mu[0] == pytest.approx(mu[1])
    assert mu[0] == pytest.approx(math.sqrt(maps[:, :, 6:].square().sum() / maps.square().sum()))
    assert torch.isnan(mu[2])


def test_average_drop():
    drop = metrics.average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.9]))
    assert drop.tolist() == pytest.approx([0.75, 0.0])


@pytest.mark.parametrize("method", [GradCAM, ScoreCAM, OptiCAM])
def test_a_shift_to_0_gives_the_mu_of_the_convention_of_table_1(method):
    """ScoreCAM differs by its masks (corners, 1e-8) too."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 6, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.LazyLinear(4)
    ).double()  # fmt: skip
    x = torch.rand(3, 1, 12, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net(x)
    plain, table = (method(convention=each)(net, x, None, lambda pixels: pixels) for each in ("paper", "table1"))
    shifted = plain - plain.amin((1, 2, 3), keepdim=True)
    ours, theirs = (metrics.unseen_activity(maps, (7, 11)) for maps in (shifted, table))
    assert torch.allclose(ours, theirs, atol=2e-2 if method is ScoreCAM else 1e-5)


def test_methods_and_a_users_own_get_their_rows(vis_run, tmp_path, monkeypatch):
    (tmp_path / "everywhere.py").write_text(
        "import torch\nfrom vis.methods import Method\n\n\nclass Everywhere(Method):\n    title = 'Everywhere'\n\n"
        "    def explain(self, forward, targets):\n        return torch.ones_like(forward.images)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = "+methods.mine._target_=everywhere.Everywhere"
    folder = vis_run("experiment=wall_check", *SMALL, "method=[gradcam,hirescam,saliency]", mine).folder
    run = load_run(folder)
    verdicts = {c["id"]: c["verdict"] for c in json.loads((folder / "claims.json").read_text())}
    assert verdicts["wall_gradient"] == verdicts["wall_blank"] == "holds"
    assert verdicts["hirescam_blind"] == verdicts["saliency_blind"] == "holds"
    assert verdicts["mine_blind"] == "fails"
    assert [row["mu"] for row in run.rows(method="mine")] == [pytest.approx(math.sqrt(29 / 56))] * 3
    assert all(row["live_gradient"] > 0 for row in run.rows("wall"))
    assert run.rows("network")[0]["rows"] == list(DEAD)
    with (folder / "summary.csv").open(newline="") as file:
        summary = {row["method"]: row for row in csv.DictReader(file)}
    assert list(summary) == ["GradCAM", "HiResCAM", "Saliency map", "Everywhere"]
    assert float(summary["Everywhere"]["mu x 100"]) == pytest.approx(100 * math.sqrt(29 / 56))
    assert summary["Saliency map"]["average drop"] == "", "a map with a sign masks nothing"
    assert (folder / "maps.png").exists()
    assert (folder / "figure.png").exists()


def test_a_network_without_a_wall_is_an_error_that_names_the_ways_out(vis_run, tmp_path):
    ran = vis_run("experiment=wall_check", *SMALL[1:], "model=cnn_unmasked", "method=gradcam")
    assert ran.code == 2
    assert "has no wall" in ran.err
    assert "model.wall.rows=" in ran.err
    assert not list((tmp_path / "outputs").glob("*/*"))


def test_table_1_lacks_weights_and_images_and_names_the_way_out(vis_run):
    ran = vis_run("experiment=taimeskhanov2024/table1")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "path is not given" in ran.err
    assert "preset=small" in ran.err


@pytest.fixture
def untrained_table(vis_run):
    """Table 1's code on the masked CNN with random weights in the stand-in's place."""
    weights = ("model.weights=null", "model.init=kaiming_normal")
    return vis_run("experiment=taimeskhanov2024/table1", "preset=small", "model=cnn_masked", *weights,
                   "dataset=stacked_digits", "dataset.limit=3", "methods.opticam.iterations=5").folder  # fmt: skip


def test_table_1_measures_nothing_of_the_paper_on_other_weights(untrained_table):
    claims = {c["id"]: c for c in json.loads((untrained_table / "claims.json").read_text())}
    assert {claims[name]["verdict"] for name in PAPER} == {"not measured"}
    assert claims["here_hirescam"]["verdict"] == "holds"
    assert claims["layercam"]["verdict"] == "holds"
    assert claims["here_gradcam"]["values"], "what was measured stands beside it"
    rows = load_run(untrained_table).rows(method="eigencam")
    flipped = load_run(untrained_table).rows(method="eigencam_flipped")
    assert [r["mu"] for r in rows] != [r["mu"] for r in flipped]


def test_diagrams_measure_their_sizes(vis_run):
    """Figure 2 on the one-layer network, Figure 4 on the small masked one, Figure 1 on random weights."""
    two = vis_run("experiment=taimeskhanov2024/figure2").folder
    assert [row["shape"] for row in load_run(two).rows()] == [
        [1, 29, 29],
        [256, 28, 28],
        [256, 28, 28],
        [256, 14, 14],
        [10],
    ]
    four = vis_run("experiment=taimeskhanov2024/figure4", *SMALL).folder
    rows = load_run(four).rows()
    assert rows[0] == {"layer": "image", "channels": 1, "rows": 56, "seen": DEAD[0]}
    assert (rows[-1]["rows"], rows[-1]["seen"]) == (14, 5)
    seen = [row["seen"] / row["rows"] for row in rows]
    assert seen == sorted(seen, reverse=True), "the dead zone grows from the image to the wall"
    claims = {c["id"]: c["verdict"] for c in json.loads((four / "claims.json").read_text())}
    assert claims == {"dead_zone": "not measured", "derived": "holds", "hirescam": "not measured"}
    one = vis_run("experiment=taimeskhanov2024/figure1", *SMALL, "model.weights=null").folder
    assert {name: a.shape for name, a in load_run(one).arrays.items()} == {
        "pixels": (1, 56, 28), "before": (1, 14, 7), "map": (1, 56, 28)
    }  # fmt: skip


def test_maps_that_do_not_depend_on_the_weights_fail_the_sanity_check(vis_run, tmp_path, monkeypatch):
    """GradCAM against a map of the input alone, on a network whose `trained` weights are a file of random ones."""
    (tmp_path / "blind.py").write_text(
        "from vis.methods import Method\n\n\nclass Blind(Method):\n    def explain(self, forward, targets):\n"
        "        return forward.images.detach().clone()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save(MaskedCNN().state_dict(), tmp_path / "weights.pt")
    model = ("model=cnn_masked", f"model.weights={tmp_path / 'weights.pt'}", "model.init=kaiming_normal")
    mine = "+methods.mine._target_=blind.Blind"
    data = ("dataset=stacked_digits", "dataset.limit=2")
    folder = vis_run("experiment=randomisation", *model, *data, "method=hirescam", mine).folder
    run = load_run(folder)
    assert {row["kind"] for row in run.rows()} == {"trained", "cascading", "independent"}
    assert len({row["variant"] for row in run.rows(kind="cascading")}) == 5
    assert all(row["pearson"] == pytest.approx(1) for row in run.rows(method="mine"))
    assert all(row["pearson"] == pytest.approx(1) for row in run.rows(method="hirescam", kind="trained"))
    assert all(row["pearson"] < 0.9 for row in run.rows(method="hirescam", variant="from features.0"))
    claims = {c["id"]: c["verdict"] for c in json.loads((folder / "claims.json").read_text())}
    assert claims["mine"] == "fails"
