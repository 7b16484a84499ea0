"""Faults: runs killed at random moments, a full disk, damaged files, two processes in one folder.

Nothing is lost: what ends, ends with the bytes of a run that nothing happened to. Nothing is half-written: what cannot go on
says why in one line. Each test prints how many faults it tried. VIS_FAULT_SEED chooses others.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Ran
from PIL import Image

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("VIS_FAULT_SEED", "0"))
RESULTS = ("maps.npz", "tables.json", "table.csv", "claims.json", "figure.png", "figure.pdf")
RUNS = {
    "run": (*SMALL, "dataset.names=all", "batch_size=1", "seeds=2", "method=[saliency,gbp]"),
    "learns": (*SMALL, "dataset.names=all", "batch_size=1", "method=pda_fast", "methods.pda_fast.stride=8"),
    "generators": (
        "model=cnn_mnist",
        "model.weights=null",
        "model.init=kaiming_normal",
        "dataset=digits",
        "dataset.limit=2",
        "target=3",
        "batch_size=1",
        "method=adversarial_generators",
        "methods.adversarial_generators.steps=3",
    ),
    "sweep": ("-m", *SMALL[:1], *SMALL[2:], "model.num_filters=2,4", "dataset.names=all", "batch_size=2"),
}


@pytest.fixture
def tried(capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> Iterator[Callable[[str], None]]:
    """Counts faults by kind, and says so at the end."""
    counts: dict[str, int] = {}

    def count(kind: str) -> None:
        counts[kind] = counts.get(kind, 0) + 1

    yield count
    with capsys.disabled():
        print(f"\n{request.node.name}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items()))


def started(*words: str, folder: Path) -> subprocess.Popen[str]:
    """`vis-run` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vis.run", *words], cwd=folder, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def results(folder: Path) -> dict[str, bytes]:
    """The results of a run or of the jobs of a sweep, by file."""
    return {str(f.relative_to(folder)): f.read_bytes() for name in RESULTS for f in sorted(folder.rglob(name))}


def in_one_line(ran: Ran) -> bool:
    """A mistake or a damage that was understood."""
    return ran.code == 2 and ran.err.strip().splitlines()[-1].startswith("vis-run: ") and "Traceback" not in ran.err


@pytest.mark.parametrize("kind", RUNS)
def test_killed_at_random_moments(kind, tmp_path, tried):
    chance = random.Random(f"{SEED} {kind}")
    began = time.monotonic()
    whole = started(*RUNS[kind], "outputs=whole", folder=tmp_path)
    out, err = whole.communicate()
    assert whole.returncode == 0, err
    seconds, expected = time.monotonic() - began, results(Path(out.strip()))
    assert expected
    for trial in range(2 if kind == "generators" else 4):  # a start of those takes twice as long
        words = (*RUNS[kind], f"outputs=killed{trial}")
        for kills in range(5):
            process = started(*words, folder=tmp_path)
            try:
                out, err = process.communicate(timeout=None if kills == 4 else chance.uniform(0, seconds))
            except subprocess.TimeoutExpired:  # its moment has come
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                tried("kills")
                folders = [
                    f.parent
                    for name in ("config.yaml", "sweep.json")
                    for f in tmp_path.glob(f"killed{trial}/*/*/{name}")
                ]
                if folders:
                    words = ("--resume", str(min(folders, key=lambda f: len(f.parts))))
                continue
            break
        assert process.returncode == 0, err
        assert results(Path(out.strip())) == expected
        assert not list(Path(out.strip()).rglob("*.tmp"))
        assert not list(Path(out.strip()).rglob("parts"))


@pytest.fixture
def stopped(
    tmp_path: Path, vis_run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, bytes]]:
    """A run that was interrupted after four of its units, and the results that it must end with."""
    from experiments.visualize import Visualize

    whole = vis_run(*RUNS["run"], "outputs=whole").folder
    compute, calls = Visualize.compute, []

    def killed(self, run, unit):
        calls.append(unit)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(self, run, unit)

    with monkeypatch.context() as patch:
        patch.setattr(Visualize, "compute", killed)
        assert vis_run(*RUNS["run"], "outputs=stopped").code == 130
    (folder,) = tmp_path.glob("stopped/*/*")
    return folder, results(whole)


def damages(folder: Path) -> list[tuple[Path, str]]:
    """Each file of a folder with each way to damage it; a single wrong byte where there are checksums."""
    files = sorted(f.relative_to(folder) for f in folder.rglob("*") if f.is_file() and f.stat().st_size)
    return [
        (f, kind) for f in files for kind in ("cut", "empty", "flip") if kind != "flip" or f.suffix in {".npz", ".yaml"}
    ]


def damaged(path: Path, kind: str, chance: random.Random) -> None:
    data = path.read_bytes()
    at = chance.randrange(max(1, len(data)))
    path.write_bytes(
        {"cut": data[:at], "empty": b"", "flip": data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]}[kind]
    )


def test_damaged_files_of_a_stopped_run(stopped, tmp_path, vis_run, tried):
    folder, expected = stopped
    chance = random.Random(SEED)
    for file, kind in damages(folder):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        damaged(copy / file, kind, chance)
        tried(kind)
        ran = vis_run("--resume", str(copy))
        if file == Path("config.yaml"):
            assert in_one_line(ran), (file, kind, ran.err)
        else:
            assert ran.code == 0, (file, kind, ran.err)
            assert results(copy) == expected, (file, kind)
        shutil.rmtree(copy)


def test_damaged_files_of_a_finished_run(tmp_path, vis_run, tried):
    from vis.reports.report import main as report

    folder = vis_run(*RUNS["run"], "outputs=runs").folder
    expected = results(folder)
    chance = random.Random(SEED)
    for file, kind in damages(folder):
        copy = tmp_path / "copy" / "2026-01-01" / "damaged"
        shutil.copytree(folder, copy)
        damaged(copy / file, kind, chance)
        tried(kind)
        assert report([str(tmp_path / "copy")]) == 0, (file, kind)
        ran = vis_run("--redraw", str(copy))
        if file.name in {"config.yaml", "maps.npz", "tables.json"} and file.parent == Path():
            assert in_one_line(ran), (file, kind, ran.err)
        else:
            assert ran.code == 0, (file, kind, ran.err)
            assert results(copy) == expected, (file, kind)
        shutil.rmtree(copy)


def test_damaged_images(tmp_path, vis_run, tried):
    chance = random.Random(SEED)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "webp", "gif", "tiff"):
        whole = tmp_path / f"whole.{suffix}"
        Image.fromarray(pixels).save(whole)
        for trial in range(6):
            image = tmp_path / f"image{trial}.{suffix}"
            shutil.copy(whole, image)
            damaged(image, ("cut", "empty", "flip")[trial % 3], chance)
            tried(suffix)
            ran = vis_run(*SMALL, f"image={image}")
            assert ran.code == 0 or in_one_line(ran), (image, ran.err)
            assert ran.code == 0 or not list(tmp_path.glob("outputs/*/*")), image
            shutil.rmtree(tmp_path / "outputs", ignore_errors=True)


def test_damaged_checkpoints(tmp_path, vis_run, tried):
    from vis.config.compose import compose_config
    from vis.models import build_model

    chance = random.Random(SEED)
    node = compose_config(SMALL).model
    whole = tmp_path / "whole.pt"
    torch.save(build_model(node, 0, torch.device("cpu")).net.state_dict(), whole)
    (tmp_path / "outputs").mkdir()
    expected = results(vis_run(*SMALL, f"model.weights={whole}", "outputs=whole").folder)["maps.npz"]
    for trial in range(18):
        weights = tmp_path / f"weights{trial}.pt"
        shutil.copy(whole, weights)
        kind = ("cut", "empty", "flip")[trial % 3]
        damaged(weights, kind, chance)
        tried(kind)
        ran = vis_run(*SMALL, f"model.weights={weights}")
        if ran.code:
            assert in_one_line(ran), (trial, kind, ran.err)
            assert not list(tmp_path.glob("outputs/*/*"))
        else:  # bytes of a zip file that nobody reads
            assert results(ran.folder)["maps.npz"] == expected
            shutil.rmtree(tmp_path / "outputs")


def test_the_disk_is_full(tmp_path, tried):
    mount = tmp_path / "disk"
    mount.mkdir()
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    if subprocess.run([*inside, f"mount -t tmpfs tmpfs {mount}"], check=False, capture_output=True).returncode:
        pytest.skip("no file system of a chosen size can be mounted here")
    whole = started(*RUNS["run"], "outputs=whole", folder=tmp_path)
    expected = results(Path(whole.communicate()[0].strip()))
    vis = f"{sys.executable} -m vis.run"
    words = " ".join(f"'{word}'" for word in RUNS["run"])
    total = sum(map(len, expected.values()))
    chance, filled = random.Random(SEED), 0
    for trial in range(5):
        kilobytes = int(chance.uniform(0.02, 1) * total / 1024) + 8
        script = f"""
            mount -t tmpfs -o size={kilobytes}k tmpfs {mount}
            {vis} {words} outputs={mount} 2>err{trial} ; echo $? >code{trial}
            mount -o remount,size=64m {mount}
            folder=$(dirname $(ls {mount}/*/*/config.yaml)) && {vis} --resume $folder 2>again{trial} >/dev/null || exit 3
            cp -r $folder {tmp_path}/resumed{trial}
        """
        done = subprocess.run([*inside, script], cwd=tmp_path, check=False, capture_output=True, text=True)
        code, said = (tmp_path / f"code{trial}").read_text().strip(), (tmp_path / f"err{trial}").read_text()
        tried(f"disks of {kilobytes} kB")
        if code == "2":  # too small to begin at all
            assert "disk is full" in said or "No space left" in said, said
            continue
        assert done.returncode == 0, (kilobytes, said, done.stderr, (tmp_path / f"again{trial}").read_text())
        assert code == "0" or (code == "1" and "the disk is full" in said), said
        filled += code == "1"
        assert results(tmp_path / f"resumed{trial}") == expected
    assert filled, "no disk was too small"


def test_two_processes_in_one_folder(tmp_path, tried):
    first = started(*RUNS["run"], "outputs=one", folder=tmp_path)
    while not (found := list(tmp_path.glob("one/*/*/parts/*.npz"))):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.01)
    folder = found[0].parent.parent
    others = [started("--resume", str(folder), folder=tmp_path) for _ in range(3)]
    for other in others:
        _, err = other.communicate()
        tried("intruders")
        assert other.returncode == 0 or (other.returncode == 2 and "another process" in err), err
    first.communicate()
    assert first.returncode == 0
    whole = started(*RUNS["run"], "outputs=whole", folder=tmp_path)
    assert results(folder) == results(Path(whole.communicate()[0].strip()))
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
