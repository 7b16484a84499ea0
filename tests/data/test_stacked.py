"""Stacked datasets: exactly Eq. (6) of taimeskhanov2024, two images of one class, reproducible, each used once."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from vis.data import Dataset, mnist, stack_mix, stacked_cifar10, stacked_digits, stacked_mnist, to_pixels
from vis.data.stacked import stacked
from vis.errors import UserError
from vis.training.images import splits


@pytest.fixture
def imagenet(tmp_path):
    """Write five classes with three images of different sizes each, and one class with a single image."""
    random = np.random.default_rng(0)
    for c in range(6):
        folder = tmp_path / "val" / f"n{c:08d}"
        folder.mkdir(parents=True)
        for i in range(3 if c < 5 else 1):
            size = (int(random.integers(180, 300)), int(random.integers(180, 300)), 3)
            Image.fromarray(random.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path


def test_stack_mix_is_eq_6(imagenet):
    data = stack_mix(str(imagenet), count=4)
    assert len(data) == len(set(data.names)) == 4
    for i, (first, second) in enumerate(data.sources):
        assert first != second
        assert first.split("/")[0] == second.split("/")[0] == data.names[i]
        above, below = (to_pixels(Image.open(imagenet / "val" / name), (224, 224), 3) for name in (first, second))
        assert data.read(i).size == (224, 224)
        assert torch.equal(to_pixels(data.read(i), (224, 224), 3), torch.cat([above[:, :170], below[:, 170:]], dim=1))


def test_stack_mix_depends_only_on_its_seed(imagenet):
    one, again, other = (stack_mix(str(imagenet), count=4, seed=seed) for seed in (1, 1, 2))
    assert one.sources == again.sources != other.sources
    assert one.fingerprint() == again.fingerprint() != other.fingerprint()


def test_stack_mix_of_fewer_classes_says_so(imagenet, caplog):
    data = stack_mix(str(imagenet))
    assert len(data) == 5  # the class with a single image is left out
    assert "only 5 classes" in caplog.text
    assert "100 of the first 398" in caplog.text
    assert "STACK-MIX of 5 classes" in data.origin
    assert set(stack_mix(str(imagenet), classes=2).names) == {"n00000000", "n00000001"}
    for file in imagenet.glob("val/*/[12].png"):
        file.unlink()
    with pytest.raises(UserError, match="no class with two images"):
        stack_mix(str(imagenet))


def test_each_image_is_once_on_top_of_and_once_below_one_of_its_class():
    data = stacked_digits(train=True)
    label = dict(zip(data.names, data.labels, strict=True))
    uppers, lowers = zip(*data.sources, strict=True)
    assert sorted(uppers) == sorted(lowers) == sorted(data.names)
    assert all(upper != lower and label[upper] == label[lower] for upper, lower in data.sources)
    assert not set(data.names) & set(stacked_digits(train=False).names)  # no test image is a training image
    assert stacked_digits(train=True, seed=1).sources != data.sources == stacked_digits(train=True).sources


def test_the_halves_are_the_original_images():
    pictures = [Image.fromarray(np.full((28, 28), 40 * i, dtype=np.uint8)) for i in range(4)]
    source = Dataset("four", list("abcd"), [0, 1, 0, 1], lambda i: pictures[i])
    data = stacked(source, seed=0, side=28)
    assert data.sources == [("a", "c"), ("b", "d"), ("c", "a"), ("d", "b")]
    both = np.asarray(data.read(1))
    assert both.shape == (56, 28)
    assert (both[:28] == 40).all()
    assert (both[28:] == 120).all()
    with pytest.raises(UserError, match="a class with a single image"):
        stacked(Dataset("three", list("abc"), [0, 1, 0], lambda i: pictures[i]), seed=0, side=28)


def test_parts_and_limits_keep_the_sources_beside_their_images():
    data = stacked_digits()
    part = data.part([5, 2])
    assert part.sources == [data.sources[5], data.sources[2]]
    assert part.names == [data.names[5], data.names[2]]
    assert part.read(0).tobytes() == data.read(5).tobytes()
    assert data.first(3).sources == data.sources[:3]


def test_training_uses_the_datasets_own_split():
    train, val = splits({"_target_": "vis.data.stacked_digits", "seed": 0, "limit": None})
    assert (len(train), len(val)) == (1437, 360)


def test_a_run_writes_what_its_images_are_made_of(vis_run):
    folder = vis_run(
        "dataset=stacked_digits", "dataset.limit=2", "model=cnn_masked", "model.init=kaiming_normal", "method=saliency"
    ).folder
    rows = list(csv.DictReader((folder / "manifest.csv").open(encoding="utf-8")))
    data = stacked_digits()
    assert [(row["source_1"], row["source_2"]) for row in rows] == data.sources[:2]
    assert [int(row["label"]) for row in rows] == data.labels[:2]


def test_the_real_mnist_and_cifar10(data, tmp_path):
    digits = stacked_mnist(str(data / "mnist"))
    assert len(digits) == 10_000
    assert digits.read(0).size == (28, 56)
    assert digits.read(0).crop((0, 0, 28, 28)).tobytes() == mnist(str(data / "mnist")).read(0).tobytes()
    for i in range(20):
        folder = tmp_path / "test" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"{i:02d}.png")
    assert stacked_cifar10(str(tmp_path)).read(0).size == (32, 64)
