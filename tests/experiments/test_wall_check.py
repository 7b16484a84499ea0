"""Which methods see through a wall: the metric, the experiment on any method, and Table 1 of taimeskhanov2024."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.taimeskhanov2024.table1 import IDS, PAPER, Table1
from vis import metrics
from vis.config.compose import compose_config, register
from vis.methods import GradCAM, OptiCAM, ScoreCAM
from vis.models import MaskedCNN
from vis.store.run_folder import Results, load_run

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
    (claim,) = json.loads((folder / "claims.json").read_text())
    assert (claim["id"], claim["verdict"], claim["kind"]) == ("wall", "holds", "finding")
    assert [row["mu"] for row in run.rows(method="mine")] == [pytest.approx(math.sqrt(29 / 56))] * 3
    assert all(row["live_gradient"] > 0 for row in run.rows("wall"))
    assert run.rows("network")[0]["rows"] == list(DEAD)
    with (folder / "summary.csv").open(newline="") as file:
        summary = {row["method"]: row for row in csv.DictReader(file)}
    assert list(summary) == ["GradCAM", "HiResCAM", "Saliency map", "Everywhere"]
    answers = ["sees through", "blind", "blind", "sees through"]
    assert [row["answer"] for row in summary.values()] == answers
    assert all(row["mu_unwalled"] > 0 for row in run.rows(method="hirescam")), "the control: the same without the wall"
    assert float(summary["HiResCAM"]["constant map x 100"]) == pytest.approx(100 * math.sqrt(29 / 56))
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


def test_table_1_without_its_images_is_a_replication_or_names_the_way_out(vis_run):
    plan = vis_run("experiment=taimeskhanov2024/table1", "--dry-run")
    assert plan.code == 0
    assert "The run is then a replication:\nexperiment taimeskhanov2024/table1: " in plan.out
    ran = vis_run("experiment=taimeskhanov2024/table1", "model=vgg16_masked")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "path is not given" in ran.err
    assert "preset=tiny" in ran.err


@pytest.fixture
def untrained_table(vis_run):
    """Table 1's code on the masked CNN with random weights in the stand-in's place."""
    weights = ("model.weights=null", "model.init=kaiming_normal")
    return vis_run("experiment=taimeskhanov2024/table1", "preset=tiny", "model=cnn_masked", *weights, "dataset=stacked_digits",
                   "dataset.limit=12", "methods.opticam.iterations=5", "~methods.scorecam").folder  # fmt: skip


def test_table_1_elsewhere_is_a_replication_that_says_where(untrained_table):
    claims = {c["id"]: c for c in json.loads((untrained_table / "claims.json").read_text())}
    papers = {id_: c for id_, c in claims.items() if id_.startswith("T-")}
    assert {c["kind"] for c in papers.values()} == {"replication"}
    differences = claims["T-3.3-a"]["differences"]
    assert differences[0] == "cnn_masked instead of the masked VGG-16"
    assert any("instead of STACK-MIX and STACK-GEN" in each for each in differences)
    assert "methods.opticam" not in str(differences)
    assert "opticam.iterations = 5 instead of 50" in differences
    assert {claims[id_]["verdict"] for id_ in IDS.values()} == {"not measured"}, (
        "the paper's numbers belong to its network"
    )
    assert claims["T-3.3-a"]["verdict"] == "not measured", "a method is missing"
    assert claims["T-T1-hc"]["verdict"] == claims["layercam"]["verdict"] == claims["T-3.3-c"]["verdict"] == "holds"
    rows = load_run(untrained_table).rows(method="eigencam")
    flipped = load_run(untrained_table).rows(method="eigencam_flipped")
    assert [r["mu"] for r in rows] != [r["mu"] for r in flipped]
    with (untrained_table / "table1.csv").open(newline="") as file:
        (gradcam, *rest) = csv.DictReader(file)
    assert len(rest) == 7
    assert gradcam["STACK-MIX"] == "- | 22.7 ± 13.4"
    assert "±" in gradcam["these images"]


def results_of(mu: float, sets: int = 100, target: str = "vis.data.folder", correct: int = 665, **config) -> Results:
    """Stored results of Table 1 with the paper's network and the given images, every method at its paper's mu + `mu`."""
    register()
    words = ["experiment=taimeskhanov2024/table1", f"model.weights={__file__}"]
    words += ["experiment.datasets.mix.path=.", "experiment.datasets.gen.path=."]
    made = compose_config([*words, *(f"{key}={value}" for key, value in config.items())])
    for name in ("mix", "gen"):
        made.experiment.datasets[name]["_target_"] = target
    network = {
        "network": "vgg16_masked",
        "weights": "weights params",
        "trained": True,
        "standin": False,
        "rows": [170, 223],
    }
    network |= {"height": 224, "constant": 0.491, "images": sets}
    tables: dict = {"table": [], "wall": [], "network": [], "validation": [{"images": 1000, "correct": correct}]}
    for name in ("mix", "gen"):
        tables["network"].append(network | {"dataset": name, "data": name})
        for method, values in (PAPER | {"eigencam_flipped": PAPER["eigencam"]}).items():
            for i in range(40):
                value = (values[name][0] + mu + (6.5 if i % 2 else -6.5)) / 100 if method != "hirescam" else 0.0
                row = {
                    "dataset": name,
                    "image": i,
                    "method": method,
                    "mu": value,
                    "mu_minmax": value,
                    "mu_unwalled": 0.4,
                }
                row |= {
                    "over constant": value / 0.491,
                    "highlighted": float(value > 0.0491),
                    "unwalled over constant": 0.8,
                }
                tables["table"].append(row | {"drop": 0.5, "seed": 0})
    return Results({}, tables, made, Path())


def judged(results: Results) -> dict:
    experiment = Table1(samples=1)
    results.tables |= experiment.summaries(results)
    return {c.id: c for c in experiment.claims(results)}


def test_the_papers_network_and_images_reproduce_its_numbers():
    found = judged(results_of(0.0))
    assert {found[id_].verdict for id_ in [*IDS.values(), "T-T1-hc", "T-3.3-a", "T-3.3-b"]} == {"holds"}
    assert {c.kind for id_, c in found.items() if id_.startswith("T-")} == {"reproduction"}
    away = judged(results_of(2.0))
    assert {away[IDS[m]].verdict for m in IDS} == {"fails"}, "the same weights and images agree to rounding"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sets": 20}, "20 images of STACK-MIX instead of 100"),
        ({"target": "vis.data.stack_mix"}, "100 images of mix instead of STACK-MIX"),
        ({"correct": 500}, "top-1 accuracy 50.0% instead of 66.5%"),
        ({"methods.gradcam.convention": "paper"}, "gradcam.convention = paper instead of table1"),
    ],
)
def test_anything_else_is_a_replication(changes, words):
    found = judged(results_of(0.5, **changes))
    assert found["T-T1-gc"].kind == "replication"
    assert words in found["T-T1-gc"].differences
    assert found["T-T1-gc"].verdict == ("fails" if "methods.gradcam.convention" in changes else "holds"), (
        "within 3 points"
    )


def test_another_method_under_a_methods_name_has_no_verdict():
    found = judged(results_of(0.0, **{"methods.scorecam._target_": "vis.methods.GradCAM"}))
    assert (found["T-T1-sc"].verdict, found["T-T1-sc"].reason) == ("not measured", "methods.scorecam is not ScoreCAM")


def test_diagrams_measure_their_sizes(vis_run):
    """Figure 2, Figure 4 on the small masked network, Figure 1 on random weights."""
    two = vis_run("experiment=taimeskhanov2024/figure2").folder
    assert [row["shape"] for row in load_run(two).rows()] == [
        [28, 28],
        [8, 26, 26],
        [8, 26, 26],
        [8, 13, 13],
        [8],
        [8],
        [1],
    ]
    four = vis_run("experiment=taimeskhanov2024/figure4", *SMALL, "seeds=1").folder
    rows = load_run(four).rows()
    assert (rows[0]["layer"], rows[0]["rows"], rows[0]["seen"]) == ("image", 56, DEAD[0])
    assert (rows[-1]["rows"], rows[-1]["seen"]) == (14, 5)
    claims = {c["id"]: c for c in json.loads((four / "claims.json").read_text())}
    assert {claims[id_]["verdict"] for id_ in ("T-3-a", "T-F4-a", "T-3.3-d", "T-3.1-d", "derived")} == {"holds"}
    assert claims["T-3.1-c"]["verdict"] == "fails"
    assert claims["T-3.1-c"]["differences"] == ["cnn_masked instead of the masked VGG-16"]
    one = vis_run("experiment=taimeskhanov2024/figure1", *SMALL, "model.weights=null").folder
    assert {name: a.shape for name, a in load_run(one).arrays.items()} == {
        "pixels": (1, 56, 28), "before": (1, 14, 7), "map": (1, 56, 28)
    }  # fmt: skip
    (claim,) = json.loads((one / "claims.json").read_text())
    assert (claim["id"], claim["kind"]) == ("T-F1", "replication")


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
    data = ("dataset=stacked_digits", "dataset.limit=4")
    folder = vis_run("experiment=randomisation", *model, *data, "method=hirescam", mine).folder
    run = load_run(folder)
    assert {row["kind"] for row in run.rows()} == {"trained", "cascading", "independent", "floor", "other"}
    assert len({row["variant"] for row in run.rows(kind="cascading")}) == 5
    assert all(row["pearson"] == pytest.approx(1) for row in run.rows(method="mine") if row["kind"] != "other")
    assert all(row["pearson"] == pytest.approx(1) for row in run.rows(method="hirescam", kind="trained"))
    assert all(row["pearson"] < 0.9 for row in run.rows(method="hirescam", variant="from features.0"))
    claims = {c["id"]: c["verdict"] for c in json.loads((folder / "claims.json").read_text())}
    assert claims["mine"] == "fails"
