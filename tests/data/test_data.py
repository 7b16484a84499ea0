"""Data: any image is read upright, in 8 bits and at the model's input size; preprocessing has an exact inverse."""

import gzip
import hashlib
import os
import struct
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vis.data import (
    PREPROCESSING,
    Dataset,
    cifar10,
    digits,
    files,
    folder,
    imagenet,
    imagenette,
    mnist,
    preprocessing,
    read_image,
    samples,
    to_pixels,
)
from vis.data.datasets import _IMAGENETTE
from vis.errors import Lacking, UserError
from vis.models import imagenet_classes


def picture(width: int = 40, height: int = 30, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Make an image without symmetry, smooth enough to survive JPEG."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def tree(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=i).save(root / name, format="PNG")
    return root


# --- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREPROCESSING)
@settings(max_examples=20, deadline=None)
@given(batch=st.integers(1, 3), channels=st.sampled_from([1, 3]), seed=st.integers(0, 1000), black=st.booleans())
def test_preprocessing_has_an_exact_inverse(name, batch, channels, seed, black):
    step = preprocessing(name)
    if len(step.mean) > channels:
        channels = 3
    pixels = torch.rand(batch, channels, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if black:
        pixels[0] = 0
    x = step(pixels)
    assert x.isfinite().all()
    torch.testing.assert_close(step.inverse(x, step.norm(pixels)), pixels, rtol=1e-12, atol=1e-12)


def test_preprocessing_is_what_the_papers_say():
    pixels = torch.rand(2, 3, 4, 4)
    mean = torch.tensor([123.68, 116.779, 103.939]).view(3, 1, 1)
    torch.testing.assert_close(preprocessing("mean_subtraction")(pixels), 255 * pixels - mean)
    x = preprocessing("unit_norm")(pixels)
    torch.testing.assert_close(x.flatten(1).norm(dim=1), torch.ones(2))
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(x.flatten(1), (255 * pixels - mean).flatten(1)), torch.ones(2)
    )
    from torchvision.transforms import Normalize

    torch.testing.assert_close(
        preprocessing("imagenet")(pixels), Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(pixels)
    )


def test_three_means_on_a_gray_image_are_an_error_not_three_channels():
    with pytest.raises(UserError, match="imagenet is for 3 channels, the images have 1"):
        preprocessing("imagenet")(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="Did you mean 'imagenet'"):
        preprocessing("imagnet")


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (224, 224), (100, 333), (97, 61)])
@pytest.mark.parametrize(("resize", "side"), [(256, 224), (224, 224), (60, 57), (None, 224), (None, 64)])
def test_resizing_and_cropping_agree_with_torchvision(size, resize, side):
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    image = picture(*size)
    expected = Compose([Resize(resize or side), CenterCrop(side), PILToTensor()])(image) / 255
    torch.testing.assert_close(to_pixels(image, (side, side), 3, resize), expected, rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    channels=st.sampled_from([1, 3]),
    resize=st.none() | st.integers(1, 80),
)
def test_every_size_is_reached_without_borders(width, height, size, channels, resize):
    white = Image.new("RGB", (width, height), "white")
    pixels = to_pixels(white, size, channels, resize)
    assert pixels.shape == (channels, *size)
    assert pixels.eq(1).all()  # a border or a crop beyond the edge would be black


def test_a_resize_smaller_than_the_input_keeps_the_aspect_ratio():
    image = picture(341, 256)
    assert torch.equal(to_pixels(image, (299, 299), 3, 256), to_pixels(image, (299, 299), 3))


# --- reading ----------------------------------------------------------------------------------------------------------

CORNERS = np.array([[255, 128], [64, 0]], dtype=np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "I;16", "I", "F", "1"])
def test_any_mode_is_read_as_eight_bits(tmp_path, mode):
    gray = Image.fromarray(CORNERS)
    image = {
        "I;16": lambda: Image.fromarray(CORNERS.astype(np.uint16) * 257),
        "I": lambda: Image.fromarray(CORNERS.astype(np.int32) * 257),
        "F": lambda: Image.fromarray(CORNERS.astype(np.float32) / 255),
        "1": lambda: Image.fromarray(CORNERS > 100),
    }.get(mode, lambda: gray.convert(mode))()
    assert image.mode == mode
    image.save(tmp_path / "x.tiff")
    read = read_image(tmp_path / "x.tiff")
    assert read.mode in ("L", "RGB")
    expected = CORNERS if mode != "1" else np.where(CORNERS > 100, 255, 0)
    np.testing.assert_allclose(np.asarray(read.convert("L")), expected, atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_becomes_white(tmp_path, mode):
    rgba = np.zeros((8, 8, 4), dtype=np.uint8)
    rgba[:4] = (10, 10, 10, 255)
    if mode in ("RGBA", "LA"):
        Image.fromarray(rgba).convert(mode).save(tmp_path / "x.png")
    else:  # one colour is transparent
        image = Image.fromarray(rgba[:, :, :3])
        image = image.quantize(2) if mode == "P" else image
        image.save(tmp_path / "x.png", transparency=image.getpixel((0, 7)))
    read = np.asarray(read_image(tmp_path / "x.png").convert("L"))
    assert (read[:4] == 10).all()
    assert (read[4:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_upright(tmp_path, orientation):
    upright = picture(48, 32)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "x.png")), np.asarray(upright))


def test_unreadable_images_are_named(tmp_path):
    picture().save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    for name, data in [("empty.jpg", b""), ("text.png", b"hello"), ("cut.jpg", content[: len(content) // 2])]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=name) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match=name):
            files(str(tmp_path / name)).read(0)
    picture().save(tmp_path / "whole.png")
    content = bytearray((tmp_path / "whole.png").read_bytes())
    content[60:80] = b"x" * 20
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png"):
        read_image(tmp_path / "broken.png")


# --- datasets ---------------------------------------------------------------------------------------------------------


def test_samples_are_bundled_photographs():
    all_of_them = samples("all")
    assert list(all_of_them.names)[:5] == ["tabby", "astronaut", "coffee", "rocket", "cameraman"]
    known = samples("known")
    assert set(known.names) < set(all_of_them.names)
    assert None not in known.labels
    assert all(known.drawn(i) for i in range(len(known))), "their objects have boxes"
    for i in range(len(all_of_them)):
        assert min(all_of_them.read(i).size) >= 300
    assert list(samples().names) == ["tabby"]
    assert list(samples(["coffee", "tabby", "coffee"]).names) == ["coffee", "tabby"]
    assert list(samples(["astronaut", "known"]).names) == ["astronaut", *known.names]
    for names, message in [("tabbi", "Did you mean 'tabby'"), ([], "dataset.names is empty")]:
        with pytest.raises(UserError, match=message):
            samples(names)


def test_image_files_of_the_user(tmp_path):
    tree(tmp_path, "cat.png", "a/dog.jpg", "b/dog.jpg")
    assert files(str(tmp_path / "cat.png")).names == ["cat"]
    two = files([str(tmp_path / "a/dog.jpg"), str(tmp_path / "b/dog.jpg")])
    assert len(set(two.names)) == 2
    with pytest.raises(UserError, match=r"no image file .*bird"):
        files(str(tmp_path / "bird.jpg"))
    with pytest.raises(UserError, match="dataset=folder"):
        files(str(tmp_path))


def test_a_folder_is_every_visible_image_in_it_in_order(tmp_path):
    tree(tmp_path, "b.PNG", "a/z.JPEG", "a/b/c.Tiff", "._b.png", ".thumbnails/b.png", "a/.x.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    data = folder(str(tmp_path))
    assert list(data.names) == ["a/b/c.Tiff", "a/z.JPEG", "b.PNG"]
    assert data.labels == [None] * 3
    np.testing.assert_array_equal(np.asarray(data.read(2)), np.asarray(picture(seed=0)))
    for path, message in [(tmp_path / "none", "is not a folder"), (tmp_path / "folder.png", "contains no images")]:
        with pytest.raises(UserError, match=message):
            folder(str(path))


def test_folders_that_are_linked_belong_to_a_folder(tmp_path):
    tree(tmp_path / "all", "cat/a.png", "dog/b.png")
    own = tmp_path / "own"
    own.mkdir()
    (own / "cat").symlink_to(tmp_path / "all" / "cat")
    (own / "circle").symlink_to(own)
    assert list(folder(str(own)).names) == ["cat/a.png"]


def test_the_figures_of_runs_are_no_images_of_the_folder(tmp_path):
    tree(tmp_path, "a.png", "outputs/run/figure.png", "outputs/sweep/figure.png")
    (tmp_path / "outputs/run/status.json").touch()
    (tmp_path / "outputs/sweep/sweep.json").touch()
    assert list(folder(str(tmp_path)).names) == ["a.png"]


def test_a_name_in_another_encoding_can_be_stored(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).mkdir()
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/a.png"))
    picture().save(path)
    for data in (folder(str(tmp_path)), files([str(path), str(path.parent / ".." / path.parent.name / "a.png")])):
        assert data.read(0).size == (40, 30)
        assert data.names[0].encode().endswith(b"caf\\udce9/a.png")


def test_an_image_twice_is_a_mistake(tmp_path):
    tree(tmp_path, "cat.png")
    with pytest.raises(UserError, match=r"image= names .*cat\.png twice"):
        files([str(tmp_path / "cat.png")] * 2)


def test_limit_and_fingerprint(tmp_path):
    data = folder(str(tree(tmp_path, "a.png", "b.png", "c.png")))
    assert list(data.first(2).names) == ["a.png", "b.png"]
    assert data.first(None) is data.first(7) is data
    with pytest.raises(UserError, match="limit=0"):
        data.first(0)
    before = data.fingerprint()
    assert before == folder(str(tmp_path)).fingerprint() != data.first(2).fingerprint()
    picture(seed=99).save(tmp_path / "b.png")
    assert data.fingerprint() != before


def test_imagenet_labels_are_ranks_among_a_thousand_classes_or_nothing(tmp_path):
    picture(4, 4).save(tmp_path / "one.png")
    content = (tmp_path / "one.png").read_bytes()
    for i in range(1000):
        (tmp_path / f"val/n{i * 7:08d}").mkdir(parents=True)
        (tmp_path / f"val/n{i * 7:08d}/x.JPEG").write_bytes(content)
    tree(tmp_path / "val", "stray.png", ".hidden/x.png")
    data = imagenet(str(tmp_path))
    assert list(data.labels) == list(range(1000))
    assert data.names[999] == "n00006993/x.JPEG"
    (tmp_path / "val/n00000000/x.JPEG").unlink()
    assert imagenet(str(tmp_path)).labels == [None] * 999
    with pytest.raises(UserError, match="no class folders"):
        imagenet(str(tree(tmp_path / "flat", "ILSVRC2012_val_00000001.JPEG")))


def test_cifar10_as_an_image_folder(tmp_path):
    tree(tmp_path, "test/cat/0.jpg", "test/cat/1.jpg", "test/airplane/0.jpg", "train/airplane/5.jpg")
    data = cifar10(str(tmp_path))
    assert (list(data.names), list(data.labels)) == (["airplane/0.jpg", "cat/0.jpg", "cat/1.jpg"], [0, 1, 1])
    assert data.classes == ["airplane", "cat"]
    assert list(cifar10(str(tmp_path), train=True).names) == ["airplane/5.jpg"]


@pytest.mark.parametrize("name", ["data.zip", "data.npz"])
def test_a_damaged_archive_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK cut off")
    with pytest.raises(UserError, match=rf"{name} is damaged"):
        cifar10(str(tmp_path / name))


def test_a_damaged_image_in_a_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("test/cat/0.png", b"no image")
        archive.writestr("test/cat/1.png", b"x" * 100)
    content = (tmp_path / "data.zip").read_bytes()
    (tmp_path / "data.zip").write_bytes(content.replace(b"x" * 100, b"y" * 100))
    data = cifar10(str(tmp_path / "data.zip"))
    for i in range(2):
        with pytest.raises(UserError, match=rf"data\.zip.*test/cat/{i}\.png"):
            data.read(i)


def test_imagenette_is_downloaded_checked_and_has_imagenets_labels(served, tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")
    folder, address = served
    tree(tmp_path / "imagenette2-320", "val/n03888257/b.JPEG", "val/n01440764/a.JPEG", "train/n01440764/c.JPEG")
    archive = folder / "imagenette2-320.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "imagenette2-320", "imagenette2-320")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    archives = {"320px": (f"{address}/{archive.name}", digest)}
    monkeypatch.setattr(torchvision.datasets.Imagenette, "_ARCHIVES", archives)
    data = imagenette(str(tmp_path / "data"))
    assert list(zip(data.names, data.labels, strict=True)) == [("n01440764/a.JPEG", 0), ("n03888257/b.JPEG", 701)]
    classes = {wnid: names[0] for wnid, names in torchvision.datasets.Imagenette._WNID_TO_CLASS.items()}
    assert {wnid: imagenet_classes()[label] for wnid, label in _IMAGENETTE.items()} == classes
    archive.unlink()
    assert len(imagenette(str(tmp_path / "data"))) == 2  # from the disk
    monkeypatch.setitem(archives, "320px", (f"{address}/{archive.name}", "0" * 32))
    archive.write_bytes(b"another file")
    with pytest.raises(Lacking, match=r"Imagenette can neither be read from .* nor downloaded to it"):
        imagenette(str(tmp_path / "other"))


def test_two_processes_do_not_download_the_same_at_once(tmp_path, monkeypatch):
    at_work, most = [], []

    class Slow:
        targets, classes = (), ()

        def __init__(self, *_, **__):
            at_work.append(1)
            most.append(len(at_work))
            time.sleep(0.1)
            at_work.pop()

    monkeypatch.setattr("torchvision.datasets.MNIST", Slow)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(mnist, [str(tmp_path / "data")] * 2))
    assert most == [1, 1]


def test_mnist_in_its_own_format(tmp_path, capsys):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        header = struct.pack(">iiii", 2051, 3, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">ii", 2049, 3) + bytes([7, 2, 1]))
        for kind in ("images-idx3", "labels-idx1"):  # torchvision may look for either
            plain = raw / f"{prefix}-{kind}-ubyte"
            (raw / f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    data = mnist(str(tmp_path))
    assert (list(data.labels), data.names[2]) == ([7, 2, 1], "test_00002")
    np.testing.assert_array_equal(np.asarray(data.read(1)), images[1])
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"\0" * 20)
    with pytest.raises(UserError, match=r"MNIST can neither be read from dataset\.path"):
        mnist(str(tmp_path))
    assert capsys.readouterr().out == ""  # stdout is for the path of the result


def test_digits_need_no_network():
    data = digits()
    assert (len(data), data.read(0).size, data.read(0).mode) == (1797, (8, 8), "L")
    assert data.labels[:3] == [0, 1, 2]
    assert np.asarray(data.read(0)).max() > 200


@pytest.mark.parametrize("dataset", [mnist, cifar10])
def test_a_failed_download_names_the_ways_out(tmp_path, monkeypatch, capsys, dataset):
    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(UserError, match=r"nor downloaded to it .* give another dataset\.path") as caught:
        dataset(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


# --- real data --------------------------------------------------------------------------------------------------------


def test_the_real_mnist(data):
    test = mnist(str(data / "mnist"))
    assert (len(test), test.labels[:5], test.read(0).size) == (10_000, [7, 2, 1, 0, 4], (28, 28))
    assert len(mnist(str(data / "mnist"), train=True)) == 60_000


def test_the_real_cifar10(data, tmp_path):
    with zipfile.ZipFile(data / "cifar10.zip") as archive:
        names = [name for name in archive.namelist() if "test/" in name and name.endswith(".jpg")]
        archive.extractall(tmp_path, names[:: len(names) // 200])
    root = next(path.parent for path in tmp_path.rglob("test") if path.is_dir())
    pictures = cifar10(str(root))
    assert len(pictures.classes) == 10
    assert set(pictures.labels) == set(range(10))
    assert pictures.read(0).size == (32, 32)


def test_real_photographs(data):
    photos = folder(str(data / "images"))
    assert len(photos) > 40
    for i in range(0, len(photos), 5):
        pixels = to_pixels(photos.read(i), (224, 224), 3, 256)
        assert pixels.std() > 0.05
    assert imagenet(str(data / "images")).labels == [None] * len(photos)


def empty() -> Dataset:
    return Dataset("mine", [], [], lambda i: None)


def test_an_empty_dataset_and_a_read_that_returns_no_image_are_errors(vis_run):
    ran = vis_run("dataset._target_=test_data.empty", "~dataset.names")
    assert (ran.code, "the dataset holds no image: mine" in ran.err) == (2, True)
    with pytest.raises(UserError, match="read int 5: expected an image"):
        to_pixels(5, (8, 8), 3)
