"""GridPG, DiFull and DiPart on a small random network, and disconnected cells for a user's own methods."""

import pytest
import yaml
from concluded import concluded

from vis.config.compose import compose_config, register
from vis.config.home import HOME
from vis.runner.execute import build_experiment
from vis.runner.experiment import Run

RANDOM = (
    "preset=tiny",
    "model.weights=null",
    "model.init=kaiming_normal",
    "experiment.least=0",
    "dataset.limit=100",
    "seed=7",
)
LEDGER = yaml.safe_load((HOME / "experiments/rao2022/ledger.yaml").read_text())
CORRECT = "experiment.correct=false"


@pytest.fixture(autouse=True)
def _registered():
    register()


def few(item: str, grids: int, *overrides: str):
    return concluded(f"experiment=rao2022/{item}", *RANDOM, CORRECT, f"experiment.grids={grids}", *overrides)


def test_difull_is_perfect_at_the_input_for_gradients_and_never_for_grad_cam(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results, claims = few(
        "figure4",
        2,
        "~methods.occlusion",
        "experiment.limits.integrated_gradients=1",
        "methods.integrated_gradients.steps=2",
    )
    for method in ("saliency", "gbp", "input_x_gradient", "integrated_gradients", "hirescam", "layercam"):
        assert {row["score"] for row in results.rows(setting="difull", layer="input", method=method)} == {1.0}
    assert all(row["score"] < 0.9 for row in results.rows(setting="difull", layer="final", method="gradcam"))
    assert len(results.rows(setting="gridpg", layer="input", method="saliency")) == 8
    assert len(results.rows(setting="gridpg", layer="input", method="integrated_gradients")) == 4, "one grid"
    flat = [row["score"] for row in results.rows(setting="gridpg", layer="final", method="saliency")]
    assert flat == pytest.approx([0.25] * 8), "behind global pooling the gradient is constant"
    assert {c["kind"] for id_, c in claims.items() if id_ in LEDGER} == {"replication"}
    assert {c["verdict"] for c in claims.values()} <= {"not measured", "holds", "undecided"}
    chance = [row["score"] for row in results.rows(method="random_map", layer="input")]
    assert sum(chance) / len(chance) == pytest.approx(0.25, abs=0.02)


def test_smoothing_leaks_out_of_a_disconnected_cell(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results, claims = few("figure5", 3, "methods.integrated_gradients.steps=2")
    for kernel, perfect in ((0, True), (9, False)):
        rows = results.rows(setting="difull", layer="input", method="input_x_gradient", kernel=kernel)
        assert all((row["score"] == 1) == perfect for row in rows)
    assert {"R-5.2-a", "R-5.2-b", "R-5.2-c", "R-5.3-a"} <= claims.keys()
    assert [row["method"] for row in results.rows("tables1_2")] == ["S-IxG", "S-IntGrad"]


def test_aggatt_bins_hold_all_maps_and_one_at_least(monkeypatch, tmp_path):
    from experiments.rao2022.figure6 import binned

    assert [len(each) for each in binned(100)] == [2, 3, 45, 45, 3, 2]
    assert [len(each) for each in binned(3)] == [1, 1, 2, 1, 1, 1]
    monkeypatch.chdir(tmp_path)
    results, claims = few("figure6", 2)
    assert set(claims) == {"R-5.3-b", "R-5.3-c"}
    assert {row["cell"] for row in results.rows()} == {"0,0"}


def test_without_biases_input_x_gradient_sums_to_the_logit(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results, claims = few("batch_norm", 2, "methods.integrated_gradients.steps=2")
    assert set(claims) == {"R-5.2-d", "R-5.2-e"}
    shares = [row["share"] for row in results.rows("sums", network="no batch norm")]
    assert shares == pytest.approx([1.0] * len(shares), abs=1e-3), "an initialised network has biases of 0"


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["experiment.settings=[gridpq]"], "experiment.settings=gridpq is none of gridpg, difull"),
        (["experiment.least=1"], "a grid takes 4"),
        (["experiment.layers.middle=conv9"], "conv9"),
    ],
)  # fmt: skip
def test_mistakes_have_one_line(vis_run, overrides, error):
    words = [w for w in RANDOM if w.partition("=")[0] not in overrides[0]]
    ran = vis_run("experiment=rao2022/figure6", *words, CORRECT, "experiment.grids=1", *overrides)
    assert (ran.code, ran.err.strip().count("\n")) == (2, 0), ran.err
    assert error in ran.err


def test_disconnected_cells_and_the_wall_tell_the_same_of_a_users_own_method(monkeypatch, tmp_path):
    (tmp_path / "everywhere.py").write_text(
        "import torch\nfrom vis.methods import Method\n\n\nclass Everywhere(Method):\n    title = 'Everywhere'\n\n"
        "    def explain(self, forward, targets):\n        return torch.ones_like(forward.images)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    results, claims = concluded(
        "experiment=disconnected",
        "preset=tiny",
        "method=[gradcam,hirescam,saliency]",
        "+methods.mine._target_=everywhere.Everywhere",
    )
    assert claims["disconnected"]["verdict"] == "holds"
    verdicts = {name: claims[name]["verdict"] for name in ("gradcam", "hirescam", "saliency", "mine")}
    assert verdicts == {"gradcam": "fails", "hirescam": "holds", "saliency": "holds", "mine": "fails"}
    assert [row["outside"] for row in results.rows(method="mine")] == pytest.approx([0.75] * 4)
    assert [row["mu over constant"] for row in results.rows(method="mine")] == pytest.approx([1] * 4)


def test_a_network_without_a_wall_is_measured_in_disconnected_cells_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    results, claims = concluded(
        "experiment=disconnected", "preset=tiny", "method=saliency", "model=cifar_resnet20", "model.depth=8",
        "model.init=kaiming_normal", "dataset=digits", "dataset.limit=4", "experiment.wall=null",
    )  # fmt: skip
    assert results.rows("network")[0]["rows"] is None
    assert claims["saliency"]["verdict"] == "holds"


def test_a_network_that_takes_no_larger_images_is_told_so(vis_run):
    ran = vis_run(
        "experiment=rao2022/figure6", "model=vgg_small", "model.weights=null", "model.init=kaiming_normal", "experiment.least=0",
        "dataset=samples", "dataset.names=all", "experiment.grids=1", "experiment.n=1",
    )  # fmt: skip
    assert ran.code == 2
    assert "n is 2 or more" in ran.err


def test_the_estimate_counts_the_grids_and_layers_of_expensive_methods():
    words = ["experiment=rao2022/figure4", "method=[saliency,occlusion]", "experiment.settings=[gridpg]"]
    run = Run(compose_config([*words, "experiment.limits={occlusion: 1}"]))
    experiment, each = build_experiment(run.config), run.explainer.passes_of
    first, second = (experiment.load(run, {"grids": [number]}).passes for number in (0, 1))
    cells, layers = 4, 1 + 2 / 3 + 1 / 3  # a third of the network less behind each layer
    assert second == pytest.approx(cells * layers * each["saliency"])
    assert first - second == pytest.approx(cells * each["occlusion"] / 3)  # at the final layer alone
