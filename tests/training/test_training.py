"""A training that is killed at any moment and resumed ends with the same losses and bits; a wall stays zero."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import ks_2samp
from torch import nn

import vis
import vis.data
from vis.errors import UserError
from vis.models import MaskedCNN, VGGSmall
from vis.models.initialise import initialise
from vis.models.wall import build_wall
from vis.training.images import Files, Images, augment, load_images, order, random_box, splits
from vis.training.loop import Training
from vis.training.recipe import Recipe

SGD = Recipe(epochs=3, batch_size=8, lr=0.05, crop=1, flip=True)
ADAMW = Recipe(epochs=3, batch_size=8, optimiser="adamw", lr=1e-3, schedule="step", step_epochs=1, crop=1)
BF16 = Recipe(epochs=3, batch_size=8, amp="bf16")


class Net(nn.Sequential):
    """A convolution, batch norm, dropout and a dense layer. `on_step` is called after each step of the optimiser."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3)
        )
        initialise(self, "kaiming_normal", 1.0, 0)
        self.steps = 0
        self.on_step = lambda step: None

    def apply_wall(self) -> None:
        self.steps += 1
        self.on_step(self.steps)


def images(count: int, size: tuple[int, int] = (8, 8), seed: int = 0) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, *size), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.randint(3, (count,), generator=generator), "noise", str(seed))


def training(folder: Path, recipe: Recipe = SGD, net: nn.Module | None = None, **options: Any) -> Training:
    data = images(20), images(9, seed=1)
    return Training(net or Net(), *data, recipe, lambda x: x - 0.5, 0, "cpu", folder, save_seconds=0, **options)


def outcome(done: Training) -> tuple[list, dict[str, torch.Tensor]]:
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in done]
    return rows, done.net.state_dict()


def assert_same(a: Training, b: Training) -> None:
    (rows_a, state_a), (rows_b, state_b) = outcome(a), outcome(b)
    assert rows_a == rows_b
    assert all(torch.equal(state_a[key], state_b[key]) for key in state_a)


class Stop(Exception):
    """Raised to stop a training."""


def stopped(folder: Path, step: int, recipe: Recipe = SGD) -> None:
    """Stop a training in the step of that number (an epoch has 3), after the weights changed."""

    def stop(number: int) -> None:
        if number == step:
            raise Stop

    net = Net()
    net.on_step = stop
    with pytest.raises(Stop):
        list(training(folder, recipe, net))


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_killed_within_an_epoch_and_resumed_it_ends_with_the_same_bits(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from test_training import *; net = Net()\n"
        "net.on_step = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 5 else None\n"
        "list(training(Path(sys.argv[1]), net=net))"
    )
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "killed")], cwd=Path(__file__).parent, check=False, timeout=120
    )
    assert killed.returncode == -signal.SIGKILL
    resumed = training(tmp_path / "killed")
    assert len(resumed.rows) == 1
    assert_same(resumed, training(tmp_path / "unbroken"))


@pytest.mark.parametrize("recipe", [SGD, ADAMW, BF16])
@pytest.mark.parametrize("step", [1, 3, 8])
def test_stopped_at_any_step(tmp_path, recipe, step):
    stopped(tmp_path / "stopped", step, recipe)
    assert_same(training(tmp_path / "stopped", recipe), training(tmp_path / "unbroken", recipe))


@pytest.mark.parametrize("damage", ["truncated", "one bit", "gone", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, damage, caplog):
    stopped(tmp_path / "stopped", 5)
    path = tmp_path / "stopped" / "checkpoint"
    whole = path.read_bytes()
    if damage == "gone":  # killed between the two renamings
        path.unlink()
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        path.write_bytes({"truncated": whole[:middle], "one bit": flipped, "empty": b""}[damage])
    resumed = training(tmp_path / "stopped")
    assert len(resumed.rows) == 1
    assert damage == "gone" or "is damaged" in caplog.text
    assert_same(resumed, training(tmp_path / "unbroken"))


def test_without_any_good_checkpoint_it_begins_again(tmp_path, caplog):
    stopped(tmp_path / "stopped", 5)
    for name in ("checkpoint", "checkpoint_before"):
        (tmp_path / "stopped" / name).write_bytes(b"nonsense")
    resumed = training(tmp_path / "stopped")
    assert resumed.rows == []
    assert_same(resumed, training(tmp_path / "unbroken"))


def test_the_checkpoint_of_another_training_is_refused(tmp_path):
    list(training(tmp_path))
    with pytest.raises(UserError, match="another training"):
        training(tmp_path, ADAMW)


def test_a_finished_training_only_tells_its_rows(tmp_path):
    done = outcome(training(tmp_path))[0]
    assert outcome(training(tmp_path))[0] == done
    assert (tmp_path / "log.csv").read_text().count("\n") == 1 + SGD.epochs


def test_training_leaves_the_callers_random_numbers_alone(tmp_path):
    made = training(tmp_path)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list(made)
    assert torch.equal(torch.rand(4), expected)


# --- what a step does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [SGD, ADAMW])
def test_the_wall_is_exactly_zero_after_training(tmp_path, recipe):
    net = MaskedCNN(num_classes=3)
    initialise(net, "kaiming_normal", 1.0, 0)
    build_wall(net, net.wall_rows, 1, (56, 28))
    first = net.classifier[0].weight
    before = first.detach().clone()
    data = images(16, (56, 28)), images(4, (56, 28), seed=1)
    list(Training(net, *data, recipe, lambda x: x, 0, "cpu", tmp_path))
    rows = first.detach().view(-1, 64, 14, 7)
    assert (rows[:, :, net.wall_rows :] == 0).all()
    assert not torch.equal(rows[:, :, : net.wall_rows], before.view_as(rows)[:, :, : net.wall_rows])


def test_a_network_learns_what_can_be_learnt(tmp_path):
    data = images(60)
    data.pixels //= 4
    for label in range(3):
        data.pixels[data.labels == label, :, 2 * label : 2 * label + 2] = 255
    recipe = Recipe(epochs=8, batch_size=10, lr=0.05)
    rows = list(Training(Net(), data, data, recipe, lambda x: x - 0.5, 0, "cpu", tmp_path))
    assert rows[-1]["val_top1"] == 1.0
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    assert rows[-1]["val_top5"] == 1.0  # of three classes


def test_a_diverging_training_says_so(tmp_path):
    with pytest.raises(UserError, match=r"diverged in epoch .* smaller lr"):
        list(training(tmp_path, Recipe(epochs=3, batch_size=8, lr=1e30, warmup=0.0)))


def test_a_crop_is_a_crop_and_belongs_to_its_image():
    pixels = images(6).pixels.expand(-1, 3, -1, -1)
    u = torch.rand(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cut = augment(pixels, u, crop=2, flip=True)
    for i in range(6):
        padded = nn.functional.pad(pixels[i], (2, 2, 2, 2))
        y, x = (int(v * 5) for v in u[i, :2])
        expected = padded[:, y : y + 8, x : x + 8]
        assert torch.equal(cut[i], expected.flip(2) if u[i, 2] >= 0.5 else expected)
    chosen = torch.tensor([4, 1])
    assert torch.equal(augment(pixels[chosen], u[chosen], 2, True), cut[chosen])
    assert augment(pixels, u, crop=0, flip=False) is pixels


def test_each_epoch_has_an_order_of_its_own_and_keeps_it():
    assert sorted(order(0, 0, 50).tolist()) == list(range(50))
    assert torch.equal(order(0, 0, 50), order(0, 0, 50))
    assert not torch.equal(order(0, 0, 50), order(0, 1, 50))
    assert not torch.equal(order(0, 0, 50), order(1, 0, 50))


def test_the_schedules():
    paper = Recipe(epochs=90, lr=0.03, schedule="step", warmup=0.0)  # taimeskhanov2024: StepLR(30, 0.1)
    weight = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.03)
    torchs = torch.optim.lr_scheduler.StepLR(weight, 30, 0.1)
    for epoch in range(90):
        assert paper.rate(epoch + 0.001) == paper.rate(epoch + 1) == pytest.approx(torchs.get_last_lr()[0])
        weight.step()
        torchs.step()
    cosine = Recipe(epochs=11, lr=2.0, warmup=1.0)
    assert [round(cosine.rate(epoch), 6) for epoch in (0.5, 1, 6, 11)] == [1.0, 2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "wrong",
    [{"optimiser": "sdg"}, {"epochs": 0}, {"amp": "fp8"}, {"lr": -1.0}, {"area": [0, 1]}, {"area": [0.5]},
     {"aspect": [2, 1]}, {"crop": 2, "area": [0.1, 1]}],
)  # fmt: skip
def test_what_is_no_recipe(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)


# --- pictures that are read while they are used -----------------------------------------------------------------------

STREAM = Recipe(epochs=2, batch_size=4, lr=0.05, flip=True, area=[0.3, 1.0], aspect=[0.8, 1.25])


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, object]:
    """The config node of a folder of small JPEGs of several sizes, in three classes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 5), ("test", 3)):
        for name in "abc":
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(256, size=(3, 4, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((20 + 7 * i, 30 - 2 * i), Image.Resampling.BICUBIC)
                image.save(tmp_path / "pictures" / split / name / f"{i}.jpg")
    return {"_target_": "vis.data.cifar10", "path": str(tmp_path / "pictures")}


def streaming(folder: Path, node: dict[str, object], net: nn.Module | None = None, **options: object) -> Training:
    train, val = (Files(part, (8, 8), 1, resize=10) for part in splits(node))
    return Training(net or Net(), train, val, STREAM, lambda x: x - 0.5, 0, "cpu", folder, save_seconds=0, **options)  # type: ignore[arg-type]  # any option


def test_a_training_from_files_stops_and_resumes_with_the_same_bits(tmp_path, pictures):
    net = Net()

    def stop(step: int) -> None:
        if step == 6:
            raise Stop

    net.on_step = stop
    with pytest.raises(Stop):
        list(streaming(tmp_path / "stopped", pictures, net))
    resumed = streaming(tmp_path / "stopped", pictures)
    assert (len(resumed.rows), resumed._step) == (1, 1)
    assert_same(resumed, streaming(tmp_path / "unbroken", pictures))


def test_files_are_cropped_as_drawn_and_validated_as_shown(pictures):
    data, _ = splits(pictures)
    files = Files(data, (8, 8), 3, resize=10)
    chosen = order(0, 1, len(data)).split(4)
    batches = list(files.batches(chosen, STREAM, seed=0, epoch=1))
    assert torch.equal(torch.cat([labels for _, labels in batches]), files.labels[torch.cat(chosen)])
    pixels = torch.cat([pixels for pixels, _ in batches])
    for i, found in zip(torch.cat(chosen).tolist(), pixels, strict=True):
        draws = np.random.default_rng([0, 1, 1, i])
        cut = data.read(i).crop(random_box(data.read(i).size, STREAM.area, STREAM.aspect, draws))
        cut = cut.resize((8, 8), Image.Resampling.BILINEAR)
        expected = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
        assert torch.equal(found, expected.flip(2) if draws.random() < 0.5 else expected)
    (again, _), *_ = files.batches([torch.tensor([7])], STREAM, seed=0, epoch=1)
    assert torch.equal(again[0], pixels[torch.cat(chosen).tolist().index(7)])  # a draw belongs to its image
    (shown, _), *_ = files.batches([torch.arange(5)])
    assert torch.equal(shown, load_images(data, (8, 8), 3, resize=10).pixels[:5])


def test_a_broken_picture_is_named(tmp_path, pictures):
    (tmp_path / "pictures" / "train" / "b" / "2.jpg").write_bytes(b"no picture")
    data, _ = splits(pictures)
    files = Files.__new__(Files)  # whose fingerprint would find it
    files.data, files.size, files.channels, files.resize, files.labels = data, (8, 8), 3, None, torch.zeros(15)
    with pytest.raises(UserError, match=r"b.2\.jpg"):
        list(files.batches(order(0, 0, 15).split(4), STREAM))


@given(
    size=st.tuples(st.integers(1, 600), st.integers(1, 600)),
    area=st.floats(0.01, 1).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 1))),
    aspect=st.floats(0.2, 3).flatmap(lambda low: st.tuples(st.just(low), st.floats(low, 4))),
    seed=st.integers(0, 2**32),
)
def test_a_crop_lies_in_the_picture_within_its_bounds(size, area, aspect, seed):
    left, top, right, bottom = random_box(size, area, aspect, np.random.default_rng(seed))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    w, h = right - left, bottom - top
    small, large = ((area[i] + (-1e-9, 1e-9)[i]) * size[0] * size[1] for i in (0, 1))
    drawn = (w + 0.5) * (h + 0.5) >= small and (w - 0.5) * (h - 0.5) <= large  # before its sides were rounded
    drawn = drawn and (w + 0.5) / (h - 0.5) >= aspect[0] - 1e-9 and (w - 0.5) / (h + 0.5) <= aspect[1] + 1e-9
    assert drawn or (abs(2 * left + w - size[0]) <= 1 and abs(2 * top + h - size[1]) <= 1)


def test_crops_are_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    for size in ((500, 375), (120, 400)):
        ours = torch.tensor([random_box(size, (0.1, 1.0), (0.8, 1.25), random) for _ in range(4000)]).double()
        blank = torch.empty(1, size[1], size[0])
        drawn = [RandomResizedCrop.get_params(blank, [0.1, 1.0], [0.8, 1.25]) for _ in range(4000)]
        theirs = torch.tensor([(left, top, left + w, top + h) for top, left, h, w in drawn]).double()
        for a, b in zip(ours.T, theirs.T, strict=True):
            for q in (0.1, 0.25, 0.5, 0.75, 0.9):
                assert abs(a.quantile(q) - b.quantile(q)) < 0.06 * max(size)
            assert ks_2samp(a, b).pvalue > 1e-4


# --- TensorBoard, torch.compile ---------------------------------------------------------------------------------------


def test_scalars_for_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")  # an extra
    stopping = Net()

    def stop(step: int) -> None:
        if step == 8:
            raise Stop

    stopping.on_step = stop
    with pytest.raises(Stop):
        list(training(tmp_path / "state", net=stopping, tensorboard=tmp_path / "board"))
    rows = list(training(tmp_path / "state", tensorboard=tmp_path / "board"))
    events = accumulator.EventAccumulator(str(tmp_path / "board")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("val_loss")]
    assert found == [(row["epoch"], pytest.approx(row["val_loss"], rel=1e-6)) for row in rows]


def test_tensorboard_that_is_not_installed_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        training(tmp_path, tensorboard=tmp_path)


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same(tmp_path):
    plain = Recipe(epochs=2, batch_size=8, lr=0.05)
    rows = [list(training(tmp_path / str(c), replace(plain, compile=c), net=dense())) for c in (False, True)]
    for row, expected in zip(rows[1], rows[0], strict=True):
        assert row["val_loss"] == pytest.approx(expected["val_loss"], rel=1e-4)


def dense() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    initialise(net, "kaiming_normal", 1.0, 0)
    return net


# --- data and networks ------------------------------------------------------------------------------------------------


def test_images_in_memory_are_the_datasets():
    data = vis.data.digits().first(20)
    loaded = load_images(data, (32, 32), 3)
    assert loaded.pixels.shape == (20, 3, 32, 32)
    assert torch.equal(loaded.pixels[7] / 255, vis.data.to_pixels(data.read(7), (32, 32), 3))
    assert loaded.labels.tolist() == list(data.labels)
    with pytest.raises(UserError, match="no labels"):
        load_images(vis.data.samples("astronaut"), (32, 32), 3)


def test_a_dataset_without_a_split_gives_every_fifth_image_to_validation():
    train, val = splits({"_target_": "vis.data.digits", "limit": None, "preprocess": "model"})
    assert (len(train), len(val)) == (1437, 360)
    assert not set(train.names) & set(val.names)
    assert train.labels[3] == vis.data.digits().labels[4]


def test_a_limit_leaves_all_classes_of_a_sorted_folder(tmp_path):
    for split in ("train", "test"):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                Image.new("L", (4, 4), i).save(tmp_path / split / name / f"{i}.png")
    train, val = splits({"_target_": "vis.data.cifar10", "path": str(tmp_path), "limit": 6})
    assert list(train.labels) == list(val.labels) == [0, 0, 1, 1, 2, 2]
    assert train.read(5).getpixel((0, 0)) == 2


def test_the_small_vgg_has_the_papers_layers():
    net = VGGSmall()
    assert list(net.layer_names)[:2] == ["conv1_1", "conv2_1"]
    assert {"conv1_1", "conv3_1", "conv5_1", "fc1", "fc3"} <= set(net.layer_names)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    with torch.device("meta"):
        full = VGGSmall(depth=16, width=1.0)
    assert list(full.layer_names) == list(vis.models.networks.vgg_layer_names())
    assert sum(p.numel() for p in full.parameters()) == pytest.approx(33.6e6, rel=0.01)
    assert VGGSmall(width=0.1, in_channels=1, input_size=64)(torch.zeros(1, 1, 64, 64)).shape == (1, 10)


# --- the experiment ---------------------------------------------------------------------------------------------------

TINY = (
    "experiment=train", "device=cpu", "dataset.limit=40", "batch_size=8", "model.width=0.02", "experiment.recipe.epochs=2",
)  # fmt: skip


def test_the_experiment_resumes_and_its_weights_load(vis_run, tmp_path, monkeypatch):
    unbroken = vis_run(*TINY).folder
    rows = vis.load_run(unbroken).rows()
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"train_loss", "val_top1", "val_top5"} <= set(rows[0])

    learn = Training._learn

    def stop(self: Training, pixels: torch.Tensor, labels: torch.Tensor, epoch: int, step: int, steps: int) -> None:
        if (epoch, step) == (1, 2):
            raise RuntimeError("stopped")
        learn(self, pixels, labels, epoch, step, steps)

    monkeypatch.setattr(Training, "_learn", stop)
    assert vis_run(*TINY, "outputs=stopped").code == 1
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (folder,) = (tmp_path / "stopped").glob("*/*_train")
    vis_run("--resume", str(folder))
    for name in ("table.csv", "weights.pt", "maps.npz", "figure.png"):
        assert (folder / name).read_bytes() == (unbroken / name).read_bytes(), name
    assert not (folder / "parts").exists()

    shown = vis_run(
        "model=vgg_small", "model.width=0.02", f"model.weights={folder / 'weights.pt'}", "device=cpu"
    ).folder
    assert vis.load_run(shown).rows()[0]["weights"].startswith("weights weights.pt (sha256 ")


def test_a_vgg_with_a_wall_is_trained_with_it(vis_run):
    run = vis.load_run(vis_run(*TINY, "dataset.limit=16", "model.input_size=[128,64]", "model.wall.rows=1").folder)
    first = torch.load(run.folder / "weights.pt")["classifier.0.weight"]
    live, *dead = first.view(len(first), -1, 4, 2).unbind(2)
    assert (live != 0).any()
    assert all((rows == 0).all() for rows in dead)


def test_an_interrupted_first_epoch_keeps_its_checkpoint(vis_run, tmp_path, monkeypatch):
    learn = Training._learn

    def interrupted(self: Training, *place: object) -> None:
        if self._step == 3:
            self.save()
            raise KeyboardInterrupt
        learn(self, *place)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(Training, "_learn", interrupted)
    ran = vis_run(*TINY)
    assert ran.code == 130
    assert "go on with vis-run --resume" in ran.err
    (folder,) = (tmp_path / "outputs").glob("*/*_train")
    assert (folder / "parts" / "training" / "checkpoint").is_file()
