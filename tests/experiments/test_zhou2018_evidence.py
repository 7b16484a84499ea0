"""zhou2018, Figures 9 to 19: each from command to verdict at a small size, and the numbers that claims compare by hand."""

import json
import math

import mutations
import numpy as np
import pytest
import torch
from concluded import concluded
from omegaconf import OmegaConf
from torch import nn

from experiments.zhou2018 import evidence, figure9, figure11, figure17, figure18, measures
from vis.config.compose import compose_config
from vis.config.options import options
from vis.methods import Target
from vis.runner.experiment import Run
from vis.store.run_folder import Results

# The MNIST network with random weights on digits, large windows far apart.
TINY = (
    "preset=tiny",
    "model=cnn_mnist",
    "model.weights=null",
    "model.init=kaiming_normal",
    "dataset=digits",
    "dataset.limit=2",
)
BOX = "[[0.3, 0.3, 0.6, 0.6]]"
EARS = "[[0.1, 0.1, 0.3, 0.3], [0.1, 0.7, 0.3, 0.9]]"


def tiny(*methods: str) -> tuple[str, ...]:
    return TINY + tuple(
        f"methods.{m}.{k}={v}" for m in methods for k, v in {"window": 6, "patch": 10, "stride": 5}.items()
    )


def with_parts(*parts: str) -> str:
    boxes = ", ".join(f"{part}: {EARS if part == 'ears' else BOX}" for part in parts)
    return f"+experiment.parts={{digit_0000: {{{boxes}}}, digit_0001: {{{boxes}}}}}"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- maps -------------------------------------------------------------------------------------------------------------


def test_a_map_is_the_methods_own_however_its_windows_are_cut():
    small = ("experiment=zhou2018/figure14", *tiny("pda", "pda_fast"), "precision=float64", "methods.pda.samples=2")
    one, _ = concluded(*small)
    cut, _ = concluded(*small, "experiment.windows=13")
    assert len(one.rows()) == 6  # two images, three methods
    assert len(cut.rows()) == 6 * 3  # 36 windows, with the last row and column
    run = Run(one.config)
    model = run.model()
    evidence.learn(run, model, own_images=True)
    for i, fact in enumerate(one.rows("images")):
        x = run.batch(model, [i]).x
        for name, method in run.methods.items():
            expected = method(model.net, x, Target(int(model.net(x).argmax())))[0].numpy()
            for results in (one, cut):
                np.testing.assert_allclose(evidence.map_of(results, fact["key"], name), expected, atol=1e-9)


def test_a_killed_run_goes_on_and_ends_with_equal_bytes(vis_run, monkeypatch):
    small = ("experiment=zhou2018/figure19", *tiny("pda_fast", "pda_gradient"), "experiment.windows=18")
    whole = vis_run(*small, "dataset.limit=1").folder
    compute, calls = evidence.EvidenceMaps.compute, []

    def killed(self, run, unit):
        calls.append(unit)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, run, unit)

    monkeypatch.setattr(evidence.EvidenceMaps, "compute", killed)
    before = set(whole.parent.iterdir())
    assert vis_run(*small, "dataset.limit=1").code != 0
    (stopped,) = set(whole.parent.iterdir()) - before
    assert vis_run("--resume", str(stopped)).folder == stopped
    assert len(calls) == 3 + 3 - 2
    for file in ("maps.npz", "claims.json", "figure.png"):
        assert (stopped / file).read_bytes() == (whole / file).read_bytes()


def test_without_weights_the_way_out_is_named(vis_run, tmp_path):
    for name in ("figure14", "figure11"):
        ran = vis_run(f"experiment=zhou2018/{name}", "model=vgg16")
        assert ran.code == 2
        assert "preset=tiny" in ran.err
    assert not list((tmp_path / "outputs").glob("*/*"))


# --- from command to verdict ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "methods", "extra"),
    [
        ("figure9", ["pda"], ["experiment.samples=20"]),
        ("figure11", ["pda_fast"], ["experiment.samples=20", "dataset.limit=20"]),
        (
            "figure13",
            [],
            ["methods.pda.samples=2", "methods.pda.stride=4", "dataset.limit=12", "experiment.sizes=[2,4]"],
        ),
        ("figure14", ["pda", "pda_fast"], ["methods.pda.samples=2"]),
        ("figure15", ["pda", "pda_fast"], ["methods.pda.samples=2"]),
        ("figure16", ["pda_fast"], ["experiment.samples=100", "experiment.draws=3"]),
        ("figure17", ["pda_fast"], ["dataset.limit=12"]),
        ("figure18", ["pda_fast"], []),
        ("figure19", ["pda_fast", "pda_gradient"], []),
    ],
)
def test_sentences_on_large_networks_are_not_judged_at_small_sizes(name, methods, extra):
    """They are replications, which say what differs; what has no value says how to give it."""
    _, found = concluded(f"experiment=zhou2018/{name}", *tiny(*methods), *extra)
    for id_, claim in found.items():
        assert claim["kind"] == "replication"
        assert "cnn_mnist, random weights" in claim["differences"][0] or name == "figure13"
        if id_ not in ("Z-3-q", "Z-F15-a"):  # the display, and the law of large numbers
            assert claim["verdict"] == "not measured"
            assert "preset=tiny" in claim["reason"] or "it takes" in claim["reason"] or "boxes" in claim["reason"]
            assert all(each["values"] for each in claim["compared"]), id_


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("figure14", ["ears", "nose", "forehead", "feather", "tail", "head", "wall", "chest", "back"]),
        ("figure15", ["wall", "sheet", "above_head", "chest"]),
        ("figure17", ["ears", "nose", "eyes", "chest"]),
        ("figure18", ["ears", "nose", "eyes"]),
    ],
)
def test_boxes_of_parts_make_their_sentences_measurable_and_they_can_fail(name, parts, vis_run):
    methods = ("pda", "pda_fast") if name in ("figure14", "figure15") else ("pda_fast",)
    few = ["methods.pda.samples=2"] if "pda" in methods else []
    ran = vis_run(f"experiment=zhou2018/{name}", *tiny(*methods), *few, with_parts(*parts))
    found = {claim["id"]: claim for claim in json.loads((ran.folder / "claims.json").read_text())}
    assert not [id_ for id_, claim in found.items() if "boxes" in claim["reason"]]
    apart = {"Z-F15-d", "Z-F17-c"}  # of images without a wall; of classes with several images
    assert {id_ for id_, claim in found.items() if not all(each["values"] for each in claim["compared"])} <= apart
    assert mutations.killed(ran.folder).keys() <= apart


def test_without_boxes_the_object_of_a_photograph_is_asked_for():
    small = (
        "experiment=zhou2018/figure19",
        *tiny("pda_fast", "pda_gradient"),
        "dataset=samples",
        "dataset.names=[cameraman]",
    )
    config = compose_config(small)
    rows = {"maps": [{"image": "cameraman", "view": "", "method": "pda_fast", "object": False}]}
    assert "boxes=" in evidence.on_objects(Results({}, rows, config, None))


def test_a_figures_differences_from_the_paper_are_in_words():
    config = compose_config(["experiment=zhou2018/figure14", "methods.pda.samples=3", "methods.pda_fast.patch=14"])
    OmegaConf.update(config, "model.sha256", "397923af" + "0" * 56, force_add=True)  # a run does this
    first = {"weights": "random weights", "learnt_from": "a folder", "learnt_images": 7}
    found = evidence.differences(Results({}, {}, config, None), "VGG-16", first)
    windows = [
        "samples = 3 instead of 10",
        "patch = 14 instead of 18",
        "windows learnt from a folder instead of the 50000 validation images of ILSVRC",
    ]
    assert found == windows
    assert (
        evidence.differences(Results({}, {}, config, None), "VGG-16", first | {"learnt_images": 50_000}) == windows[:2]
    )
    config.model.sha256 = "0" * 64
    found = evidence.differences(Results({}, {}, config, None), "VGG-16", first)
    assert found == ["vgg16, random weights, instead of VGG-16 with the paper's weights", *windows]


def test_figure_13_takes_a_digit_of_each_class_and_trains_once_for_each_seed():
    small = ("dataset.limit=40", "methods.pda.samples=2", "methods.pda.stride=4", "methods.pda_fast.stride=4")
    results, found = concluded("experiment=zhou2018/figure13", *TINY[:-1], *small, "experiment.sizes=[4]", "seeds=2")
    assert [row["label"] for row in results.rows("images")] == list(range(10))
    accuracies = [row["accuracy"] for row in results.rows("trainings")]
    assert found["Z-3-n"]["compared"][0]["values"] == accuracies
    assert len(set(accuracies)) == 2
    assert found["Z-3-q"]["verdict"] == "holds"


def test_all_views_of_an_image_are_explained_for_its_class():
    results, _ = concluded("experiment=zhou2018/figure18", *tiny("pda_fast"), with_parts("ears", "eyes"))
    rows = results.rows("images")
    assert [row["view"] for row in rows[:3]] == ["", "rotated", "flipped"]
    assert [row["view"] for row in rows[5:7]] == [figure18.EAR, figure18.ELSEWHERE]
    assert {row["unit"] for row in rows[:7]} == {rows[0]["unit"]}


def test_boxes_are_the_projects_own_or_the_users():
    words = ("dataset=samples", "dataset.names=[coffee,palace]", "+boxes={palace: [0, 0, 0.5, 0.5]}")
    run = Run(compose_config(["experiment=zhou2018/figure19", *TINY[:-2], *words]))
    parts = {"palace": {"roof": [[0, 0, 0.1, 0.1], [0.2, 0, 0.3, 0.1]]}}
    maps = evidence.EvidenceMaps("Figure", parts=parts)
    rows = [row for i in range(2) for row in maps.boxes(run, run.model(), i)]
    assert [(row["image"], row["part"]) for row in rows] == [
        ("coffee", ""), ("coffee", "coffee"), ("palace", ""), ("palace", "roof"), ("palace", "roof"),
    ]  # fmt: skip
    assert rows[2]["box"] == [0, 0, 0.5, 0.5]


def test_a_box_of_almost_the_whole_image_is_no_object():
    maps, pixels = evidence.EvidenceMaps("Figure"), np.zeros((3, 10, 10))
    assert maps.object_mask([[0, 0, 1, 1]], "", pixels) is None
    assert maps.object_mask([[0, 0, 0.5, 1]], "", pixels).sum() == 50
    assert maps.object_mask([[0, 0, 0.5, 1]], "flipped", pixels) is None


def test_where_no_layer_is_dense_the_last_relu_behind_a_convolution_is_measured():
    conv, relu, dense = nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Linear(1, 1)
    assert figure9.before_relus(nn.Sequential(conv, relu, nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Flatten())) == ["2"]
    assert figure9.before_relus(nn.Sequential(conv, relu, dense, nn.ReLU(), nn.Linear(1, 1))) == ["2"]
    assert figure9.before_relus(nn.Sequential(conv, nn.Sigmoid())) == []


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_concentration_of_a_map_by_hand():
    map_ = torch.tensor([[-6.0, 0.0], [1.0, 3.0]])
    assert measures.pixels_holding(map_) == 0.5  # 6 + 3 of 10
    assert measures.pixels_holding(map_, 0.5) == 0.25
    assert math.isnan(measures.pixels_holding(0 * map_))
    noise = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    assert measures.pixels_holding(noise) == pytest.approx(0.50, abs=0.01)


def test_where_evidence_lies_by_hand():
    map_ = torch.arange(100.0).view(10, 10).double() - 50
    top = measures.boxes_mask([(0, 0, 0.1, 1)], (10, 10))
    found = measures.of_part(map_, top, map_.flip(0))
    assert found["rank"] == pytest.approx(4.5 / 99)
    assert found["rank_other"] == pytest.approx(94.5 / 99)
    assert (found["hit"], found["top"], found["area"]) == (0, 0, 0.1)
    assert found["beyond"] == pytest.approx(1 - map_[0].abs().sum() / map_.abs().sum())
    bottom = measures.of_part(map_, ~top, None)
    assert (bottom["hit"], bottom["top"]) == (1, 1)
    inside = measures.of_map(map_, measures.boxes_mask([(0.4, 0, 0.6, 1)], (10, 10)))
    assert inside["outside"] > 3  # the middle of the map is near 0
    assert inside["outside_shuffled"] == pytest.approx(1, abs=0.2)


def test_what_draws_make_of_a_maps_variance_is_found():
    generator = torch.Generator().manual_seed(0)
    map_, *draws = (torch.randn(200, 200, generator=generator, dtype=torch.float64) for _ in range(3))
    a, b = (map_ + each / 2 for each in draws)
    found = measures.of_pair(a, b, draws[0], None)
    assert found["drawn"] == pytest.approx(0.25 / 1.25, abs=0.01)
    assert found["overlap_other"] < 0.4 < found["overlap"]
    assert measures.of_pair(a, 4 * a, None, torch.ones(200, 200, dtype=torch.bool)) == pytest.approx(
        {"pearson": 1, "log2_norms": 2, "drawn": 9 / 17, "overlap": 1, "signs_differ": 0}
    )


def test_the_order_of_a_histogram_is_seen_in_half_normal_errors_not_in_uniform_ones():
    random = np.random.default_rng(0)
    falling = [figure11.order(np.abs(random.standard_normal(20))) for _ in range(40)]
    flat = [figure11.order(random.random(20)) for _ in range(40)]
    assert np.mean(falling) < -0.3
    assert abs(np.mean(flat)) < 0.15


def test_neurons_that_hardly_move_exchange_relu_and_mean():
    random = np.random.default_rng(0)
    steady = figure9.judged(figure9.moments(5 + 0.1 * random.standard_normal((200, 50))), 5)
    loose = figure9.judged(figure9.moments(random.standard_normal((2000, 50))), 1)
    assert (steady["large"], steady["near_zero"]) == (1, 0)
    assert steady["error"] == pytest.approx(0, abs=1e-12)
    assert loose["error"] == pytest.approx(1 / math.sqrt(2 * math.pi), abs=0.02)  # Eq. 18
    assert figure9.judged(figure9.moments(1e-3 * random.standard_normal((200, 50))), 1)["near_zero"] == 1


def test_features_of_a_class_are_alike():
    facts = [{"unit": unit} for unit in (0, 0, 1, 1, 2)]
    base = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    found = figure17.alike([base[fact["unit"]] + 0.01 for fact in facts], facts)
    assert found[-1] is None  # the only one of its class
    assert min(found[:-1]) > 0.6
    features = torch.stack([torch.ones(4, 4), torch.arange(16.0).view(4, 4)])
    map_ = torch.zeros(1, 8, 8)
    map_[0, 6:, 6:] = 3.0
    assert figure17.signature(features, map_).tolist() == [1, 15]


def test_what_a_rotation_moves_is_put_back():
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    quarter = figure18._rotation(math.pi / 2)
    torch.testing.assert_close(figure18.moved(image, quarter), image.rot90(1, (2, 3)), atol=1e-6, rtol=0)
    figure = figure18.Figure18([20, -45], [0.25, 0.0, 0.75, 0.5], source="")
    torch.testing.assert_close(figure.view(image, "a", "flipped"), image.flip(3))
    assert figure.part([[0, 0, 0.5, 0.25]], "flipped", (8, 8)).nonzero().unique(dim=0).tolist() == [
        [row, column] for row in range(4) for column in (6, 7)
    ]
    enlarged = figure.view(image, "a", "cropped")
    assert enlarged[..., 0:2, 0:2].mean() == pytest.approx(float(image[..., 2, 0].mean()), abs=0.35)


# --- configs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("item", sorted(name for name in options("experiment") if name.startswith("zhou2018/figure")))
def test_at_small_sizes_a_network_of_digits_sees_digits(item):
    config = compose_config([f"experiment={item}", "preset=tiny"])
    assert (
        config.get("model") is None or config.model.name != "cnn_mnist" or config.dataset._target_ == "vis.data.mnist"
    )


def test_a_small_size_of_a_dataset_keeps_its_other_parameters():
    assert compose_config(["experiment=zhou2018/figure16", "preset=tiny"]).dataset.limit == 4
    chosen = compose_config(["experiment=zhou2018/figure16", "preset=tiny", "dataset=samples"]).dataset
    assert (chosen._target_, chosen.limit, "option" in chosen) == ("vis.data.samples", 4, False)
