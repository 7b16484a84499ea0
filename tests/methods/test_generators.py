"""Adversarial generators, ayyar2021 Eq. (27): the classes of their images, their cache, and the contract of methods."""

from pathlib import Path

import numpy as np
import pytest
import torch
from concluded import concluded
from torch import nn

from vis.config.compose import compose_config
from vis.errors import UserError
from vis.methods import AdversarialGenerators, NotApplicable, generators
from vis.methods.generators import Generators
from vis.runner.experiment import Run


class Halves(nn.Module):
    """Class 2 where the upper half of an 8x8 image is brighter, class 5 where the lower is; the others never."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 6)
        upper = torch.cat([torch.ones(32), -torch.ones(32)])
        self.fc.weight.data = torch.zeros(6, 64)
        self.fc.weight.data[2], self.fc.weight.data[5] = upper, -upper
        self.fc.bias.data = torch.tensor([-99.0, -99, 0, -99, -99, 0])
        self.drop = nn.Dropout(0.9)

    def forward(self, x):
        return self.drop(self.fc(x.flatten(1)))


def halves(count: int = 64, seed: int = 0) -> torch.Tensor:
    """Images with a bright square in one of the halves, at a random place, on noise."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.1 * torch.rand(count, 1, 8, 8, generator=generator)
    for i in range(count):
        row, column = (
            torch.randint(2, (1,), generator=generator) + 4 * (i % 2),
            torch.randint(6, (1,), generator=generator),
        )
        x[i, 0, row : row + 2, column : column + 2] += 0.8
    return x


SMALL = {"classes": (2, 5), "width": 8, "steps": 150, "batch": 16, "lr": 5e-3}


@pytest.fixture(scope="module")
def fitted() -> AdversarialGenerators:
    method = AdversarialGenerators(**SMALL)
    method.fit(Halves(), halves(), data="halves")
    return method


def test_the_similar_image_keeps_the_class_and_the_adversarial_one_has_the_other(fitted):
    net, x = Halves().eval(), halves(40, seed=1)
    similar, adversarial = fitted.generate(x)
    decided = fitted.decision(net(x))
    assert torch.equal(decided, torch.arange(40) % 2)  # as the images were made
    assert (fitted.decision(net(similar)) == decided).double().mean() > 0.9
    assert (fitted.decision(net(adversarial)) != decided).double().mean() > 0.9


def test_the_map_is_equation_27_and_the_model_is_left_as_it_was(fitted):
    net, x = Halves().train(), halves(4, seed=2)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    maps = fitted(net, x, [2, 5, 2, 5])
    similar, adversarial = fitted.generate(x)
    assert torch.equal(maps, (similar - adversarial).abs())
    assert maps.shape == x.shape
    assert maps.max() > 0.1
    torch.testing.assert_close(maps, torch.cat([fitted(net, x[i : i + 1], 2) for i in range(4)]), atol=1e-6, rtol=0)
    AdversarialGenerators(**SMALL | {"steps": 2}).fit(net, halves(8))
    assert torch.equal(before, torch.get_rng_state())
    assert net.training
    assert net.drop.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert fitted(net.double(), x.double(), 2).dtype == torch.float64


def test_closeness_keeps_the_two_generators_together():
    apart = []
    for closeness in (0.0, 1e4):
        method = AdversarialGenerators(**SMALL | {"steps": 40, "closeness": closeness})
        method.fit(Halves(), halves())
        assert method.learnt is not None
        a, b = (
            torch.cat([p.flatten() for p in g.parameters()]) for g in (method.learnt.similar, method.learnt.adversarial)
        )
        torch.testing.assert_close(method.learnt.apart(), (a - b).square().mean())
        apart.append(float(method.learnt.apart()))
    assert apart[1] < 0.1 * apart[0]


def test_a_single_generator_compares_with_the_image_itself():
    method = AdversarialGenerators(**SMALL | {"pair": False, "steps": 5})
    method.fit(Halves(), halves(8))
    x = halves(2)
    same, adversarial = method.generate(x)
    assert torch.equal(same, x)
    assert torch.equal(method(Halves(), x, 5), (x - adversarial).abs())


def test_what_was_learnt_is_kept_with_where_it_comes_from_and_a_seed_gives_the_same(tmp_path: Path):
    first, again = AdversarialGenerators(**SMALL | {"steps": 10}), AdversarialGenerators(**SMALL | {"steps": 10})
    for method in (first, again):
        method.fit(Halves(), halves(), data="halves")
    assert first.learnt is not None
    assert again.learnt is not None
    first.learnt.save(tmp_path / "g.pt")
    loaded = Generators.load(tmp_path / "g.pt")
    assert loaded.provenance == {"images": 64, "data": "halves"}
    x = halves(3)
    for a, b, c in zip(first.learnt(x), loaded(x), again.learnt(x), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    made = loaded.adversarial(x).detach()
    assert made.min() >= 0
    assert made.max() <= halves().max()
    (tmp_path / "bad.pt").write_bytes((tmp_path / "g.pt").read_bytes()[:99])
    with pytest.raises(UserError, match="no generators"):
        Generators.load(tmp_path / "bad.pt")


def test_a_training_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch):
    whole, parts = AdversarialGenerators(**SMALL | {"steps": 8}), AdversarialGenerators(**SMALL | {"steps": 8})
    whole.fit(Halves(), halves())
    monkeypatch.setattr(generators, "_SAVE_SECONDS", 0)
    written = []

    def killed(path: Path, what: object) -> None:
        keep(path, what)
        written.append(path)
        if len(written) == 5:
            raise KeyboardInterrupt

    keep = generators._write
    monkeypatch.setattr(generators, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        parts.fit(Halves(), halves(), tmp_path / "g.training")
    monkeypatch.setattr(generators, "_write", keep)
    assert parts.learnt is None
    assert torch.load(tmp_path / "g.training", weights_only=True)["step"] == 5
    parts.fit(Halves(), halves(), tmp_path / "g.training")
    x = halves(3)
    assert all(torch.equal(a, b) for a, b in zip(whole.generate(x), parts.generate(x), strict=True))


def test_a_damaged_state_of_a_training_is_named_and_the_training_begins_anew(tmp_path: Path, monkeypatch, caplog):
    whole, state = AdversarialGenerators(**SMALL | {"steps": 4}), tmp_path / "g.training"
    monkeypatch.setattr(generators, "_SAVE_SECONDS", 0)
    whole.fit(Halves(), halves(), state)
    monkeypatch.setattr(generators, "_SAVE_SECONDS", 99)
    data, x = state.read_bytes(), halves(3)
    wrong = len(data) // 2
    for damaged in (data[:wrong], b"", b"{}", data[:wrong] + bytes([data[wrong] ^ 0xFF]) + data[wrong + 1 :]):
        state.write_bytes(damaged)
        caplog.clear()
        again = AdversarialGenerators(**SMALL | {"steps": 4})
        again.fit(Halves(), halves(), state)
        assert "g.training is damaged" in caplog.text
        assert all(torch.equal(a, b) for a, b in zip(whole.generate(x), again.generate(x), strict=True))


def test_a_channel_that_is_constant_stays():
    x = torch.cat([halves(8), torch.full((8, 1, 8, 8), 0.3)], 1)
    net = nn.Sequential(nn.Conv2d(2, 1, 1, bias=False), Halves())
    net[0].weight.data = torch.tensor([1.0, 0]).view(1, 2, 1, 1)
    method = AdversarialGenerators(**SMALL | {"steps": 20})
    method.fit(net, x)
    for made in method.generate(x):
        assert made.isfinite().all()
        torch.testing.assert_close(made[:, 1], x[:, 1])
    assert method(net, x)[:, 0].max() > 0


def test_a_map_is_silent_where_the_image_is_of_neither_class_or_the_class_is_kept(fitted):
    class Neither(Halves):
        def forward(self, x):  # class 0 where the lower left corner is bright
            return super().forward(x) + 999 * torch.eye(6)[0] * (x[:, 0, 7, :1] > 0.5)

    net, x = Neither().train(), halves(6, seed=3)
    x[:, 0, 7, 0] = 0
    assert not fitted.silent(net, x).any()
    assert net.drop.training
    x[4, 0, 7, 0] = 0.6
    assert fitted.silent(net, x).tolist() == [False] * 4 + [True, False]
    same = AdversarialGenerators(**SMALL | {"steps": 1, "lr": 1e-9})  # generators begin as the identity
    same.fit(net, halves(8))
    assert same.silent(net, x).all()


def test_mistakes_are_named(fitted):
    with pytest.raises(NotApplicable, match="classes 2 and 5"):
        fitted(Halves(), halves(1), 0)
    with pytest.raises(UserError, match="fit"):
        AdversarialGenerators(**SMALL)(Halves(), halves(1), 2)
    for wrong in ((3, 3), ("a", "b"), (3, -1), (3,), (3.0, 8.0), 3, None):
        with pytest.raises(ValueError, match="two different"):
            AdversarialGenerators(classes=wrong)  # type: ignore[arg-type]  # what a config may hold
    with pytest.raises(UserError, match="classes 0 to 5"):
        AdversarialGenerators(classes=(2, 6)).fit(Halves(), halves(2))
    with pytest.raises(UserError, match="there is none"):
        AdversarialGenerators(**SMALL).fit(Halves(), halves(0))


def test_section_6_compares_the_pair_with_a_single_generator_of_the_same_parameters(tmp_path: Path):
    asked = (
        "experiment=ayyar2021/section6", "seeds=2", "model.weights=null", "model.init=kaiming_normal", "dataset=digits",
        f"outputs={tmp_path}", "experiment.images=6", "experiment.rows=1",
        "methods.adversarial_generators.steps=2", "methods.adversarial_generators.width=2",
    )  # fmt: skip
    results, claims = concluded(*asked)
    assert len(list(tmp_path.glob("generators/*.pt"))) == 2 * 3  # a pair, a single one and an untied pair of each seed
    pair, single = (results.rows(method=method) for method in ("adversarial_generators", "single"))
    assert len(pair) == len(single) == 2 * 6
    assert {row["stays"] for row in single} == {1.0}  # it is the image
    assert sum(name.endswith("/adversarial_generators") for name in results.arrays) == 1
    of_seed = [np.mean([r["area"] for r in each if r["seed"] == 1]) for each in (single, pair)]
    assert claims["A-6-e"]["compared"][0]["values"][1] == pytest.approx(of_seed[0] - of_seed[1])
    assert claims["A-6-e"]["verdict"] == "undecided", "two trainings"
    assert claims["A-6-c"]["differences"][0].endswith("instead of medical images")
    (training,) = results.rows("trainings", seed=0)
    assert claims["A-6-f"]["compared"][0]["values"][0] == training["adversarial_generators"] - training["untied"]
    with pytest.raises(UserError, match="both classes"):
        concluded(*asked, "dataset.limit=3")


def test_the_runner_trains_once_and_uses_the_file_again(vis_run):
    asked = (
        "method=adversarial_generators", "methods.adversarial_generators.steps=2", "methods.adversarial_generators.width=2",
        "model=cnn_mnist", "model.weights=null", "model.init=kaiming_normal", "dataset=digits", "dataset.limit=2", "target=8",
    )  # fmt: skip
    ran = vis_run(*asked, "dataset=samples")
    assert ran.code == 2
    assert "dataset=mnist" in ran.err
    folder = vis_run(*asked).folder
    (kept,) = folder.parents[1].glob("generators/*.pt")
    written = kept.stat().st_mtime_ns
    vis_run(*asked)
    assert [each.stat().st_mtime_ns for each in folder.parents[1].glob("generators/*.pt")] == [written]
    vis_run(*asked, "seed=1")  # another random network
    assert len(list(folder.parents[1].glob("generators/*.pt"))) == 2


RANDOM = ("model.weights=null", "model.init=kaiming_normal", "dataset=digits", "dataset.limit=2")
METHOD = tuple(f"methods.adversarial_generators.{each}=1" for each in ("steps", "width", "batch"))


class Slope(nn.Module):
    """A network whose slope is no parameter of its state, for images of any size."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope, self.conv = slope, nn.Conv2d(1, 10, 3)

    def forward(self, x):
        return nn.functional.leaky_relu(self.conv(x), self.slope).mean((2, 3))


def test_networks_with_the_same_parameters_have_generators_of_their_own(tmp_path: Path):
    run = Run(
        compose_config(["method=adversarial_generators", *METHOD, "model=cnn_mnist", *RANDOM, f"outputs={tmp_path}"])
    )
    for number, (slope, size) in enumerate(((0.1, 8), (0.1, 16), (0.5, 8), (0.1, 8)), 1):
        model = run.model(
            {
                "_target_": f"{__name__}.Slope",
                "slope": slope,
                "init": "default",
                "input_size": size,
                "preprocess": "unit_range",
            }
        )
        run.explainer.prepare("adversarial_generators", model, run.batch(model, [0]).x, [3])
        assert len(list(tmp_path.glob("generators/*.pt"))) == min(number, 3)


def test_targets_and_classes_are_checked_before_a_training(tmp_path: Path, vis_run):
    run = Run(
        compose_config(["method=adversarial_generators", *METHOD, "model=cnn_mnist", *RANDOM, f"outputs={tmp_path}"])
    )
    model, method = run.model(), run.methods["adversarial_generators"]
    x = run.batch(model, [0]).x
    largest = int(model.net(x).argmax())
    a, b = method.classes = [(largest + 1) % 10, (largest + 2) % 10]
    with pytest.raises(UserError, match=rf"a target is {largest}: give target={a} or target={b}, or .*classes="):
        run.explain(model, x, [None])
    method.classes = [3, 10]
    with pytest.raises(UserError, match="the network has the classes 0 to 9"):
        run.explain(model, x, [3])
    assert not list(tmp_path.glob("generators/*"))
    ran = vis_run(
        "method=adversarial_generators", "methods.adversarial_generators.classes=[a,b]", "model=cnn_mnist", *RANDOM
    )
    assert ran.code == 2
    assert "classes=['a', 'b']: give the numbers of two different classes" in ran.err


def test_images_of_which_a_map_says_nothing_are_named(vis_run):
    ran = vis_run("method=adversarial_generators", *METHOD, "model=cnn_mnist", *RANDOM, "target=3")
    assert ran.code == 0
    (line,) = [line for line in ran.err.splitlines() if "says nothing" in line]
    names = {str(name).split("/")[1] for name in np.load(ran.folder / "maps.npz")}
    assert all(name in line for name in names), "generators of one step keep the class"
