"""Methods x metrics x images."""

import pytest

from vis.store.run_folder import load_run

SMALL = (
    "model=cnn_masked",
    "model.init=kaiming_normal",
    "dataset=stacked_digits",
    "dataset.limit=2",
    "experiment.steps=4",
)


@pytest.fixture
def compared(vis_run):
    return vis_run("experiment=compare", *SMALL, "method=[saliency,gradcam,hirescam,cam]").folder


def test_every_pair_agrees_with_itself_and_what_does_not_apply_is_left_out(compared):
    run = load_run(compared)
    assert {row["method"] for row in run.rows()} == {"saliency", "gradcam", "hirescam"}
    assert {row["method"] for row in run.rows("left_out")} == {"cam"}, "it needs global average pooling"
    assert {(row["a"], row["b"]) for row in run.rows("agreement")} == {
        ("saliency", "gradcam"), ("saliency", "hirescam"), ("gradcam", "hirescam")
    }  # fmt: skip
    for row in run.rows():
        assert 0 <= row["deletion"] <= 1
        assert 0 <= row["insertion"] <= 1
        assert row["seconds"] > 0
    for row in run.rows("curves"):
        assert len(row["deletion"]) == 5
        assert row["deletion"][0] == pytest.approx(row["insertion"][-1], abs=1e-6), "the whole image at both ends"
        assert row["deletion"][-1] == pytest.approx(row["insertion"][0], abs=1e-6)
    lines = (compared / "agreement_matrix.csv").read_text().splitlines()
    assert lines[0] == "method,saliency,gradcam,hirescam"
    assert [float(line.split(",")[i + 1]) for i, line in enumerate(lines[1:])] == [1, 1, 1]
    for name in ("figure", "faithfulness", "maps"):
        assert (compared / f"{name}.png").exists()


def test_methods_that_learn_first_are_compared(vis_run):
    small = [f"methods.adversarial_generators.{each}=1" for each in ("steps", "width", "batch")]
    network = (
        "model=cnn_mnist",
        "model.weights=null",
        "model.init=kaiming_normal",
        "dataset=digits",
        "dataset.limit=2",
    )
    chosen = ("method=[gbp,adversarial_generators]", *small, "target=3", "experiment.steps=4")
    ran = vis_run("experiment=compare", *network, *chosen)
    assert ran.code == 0, ran.err
    assert {row["method"] for row in load_run(ran.folder).rows()} == {"gbp", "adversarial_generators"}
