"""Runs that are ended at a bad moment, or whose files change before they are resumed."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL, Ran
from omegaconf import OmegaConf
from PIL import Image

from vis.config.compose import compose_config
from vis.errors import UserError
from vis.runner import execute
from vis.store import run_folder
from vis.store.run_folder import RunFolder, failure, load_run, reserve
from vis.system import files

FOLDER = (*SMALL, "dataset=folder", "dataset.path=photos", "batch_size=1")


def interrupt(*_):
    raise KeyboardInterrupt


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in "bcd":
        Image.effect_noise((32, 32), 80).convert("RGB").save(folder / f"{name}.png")
    return folder


@pytest.fixture
def stopped(photos: Path, tmp_path: Path, vis_run: Callable[..., Ran]) -> tuple[Path, Ran]:
    """A run that stopped at its third image, which was damaged, and what it said."""
    whole = (photos / "d.png").read_bytes()
    (photos / "d.png").write_bytes(whole[:100])
    ran = vis_run(*FOLDER)
    (photos / "d.png").write_bytes(whole)
    (folder,) = tmp_path.glob("outputs/*/*")
    return folder, ran


@pytest.mark.parametrize("last", ["_summary", "run_page"])
def test_an_interrupt_behind_the_last_task_loses_nothing(last, vis_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(execute, last, interrupt)
        assert vis_run(*SMALL).code == 130
    (folder,) = tmp_path.glob("outputs/*/*")
    before = (folder / "maps.npz").stat().st_mtime_ns
    ran = vis_run("--resume", str(folder))
    assert ran.folder == folder
    assert (folder / "maps.npz").stat().st_mtime_ns == before
    assert (folder / "index.html").is_file()
    assert not (folder / "parts").exists()


def test_a_mistake_after_some_tasks_says_how_to_go_on(stopped, vis_run):
    folder, ran = stopped
    assert ran.code == 2
    assert ran.err.splitlines()[-1].endswith(f"(the finished tasks are kept; go on with vis-run --resume {folder})")
    assert vis_run("--resume", str(folder)).folder == folder
    assert {row["image"] for row in load_run(folder).rows()} == {"b.png", "c.png", "d.png"}


def test_a_run_does_not_go_on_with_other_images(stopped, photos, vis_run):
    folder, _ = stopped
    shutil.copy(photos / "b.png", photos / "a.png")  # each image has another number now
    ran = vis_run("--resume", str(folder))
    assert ran.code == 2
    assert "the dataset has other images than when this run began: put those back" in ran.err
    (photos / "a.png").unlink()
    assert vis_run("--resume", str(folder)).folder == folder


def test_a_run_that_another_process_has_just_completed_is_not_computed_again(vis_run):
    run = RunFolder(vis_run(*SMALL).folder)
    before = (run.path / "maps.npz").stat().st_mtime_ns
    execute.execute(run.config(), run.path, "vis-run")
    assert (run.path / "maps.npz").stat().st_mtime_ns == before
    assert not (run.path / "parts").exists()


def test_a_finished_run_without_its_maps_is_one_line(vis_run):
    folder = vis_run(*SMALL).folder
    (folder / "maps.npz").unlink()
    ran = vis_run("--resume", str(folder))
    assert (ran.code, ran.err) == (2, f"vis-run: {folder / 'maps.npz'} is missing or damaged: start the run again\n")


def test_a_process_that_ends_between_the_config_and_its_checksum_leaves_a_readable_run(tmp_path, monkeypatch):
    run, config = RunFolder(tmp_path), compose_config([])
    run.begin(config)
    other = OmegaConf.merge(config, {"note": "changed"})
    write = run_folder.write_text

    def ended(path, text):
        write(path, text)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_folder, "write_text", ended)
    with pytest.raises(KeyboardInterrupt):
        run.replace_config(other)
    assert run.config().note == "changed"


def test_changes_in_another_encoding_do_not_end_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "HOME", tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "notes.txt").write_bytes("Kätzchen\n".encode("latin-1"))
    for words in (["init", "--quiet"], ["add", "notes.txt"], ["commit", "--quiet", "--message=notes"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "notes.txt").write_text("Kätzchen\n", encoding="utf-8")
    assert "+Kätzchen" in str(execute._git("diff", "HEAD"))


def test_what_cannot_be_opened_is_named(tmp_path, monkeypatch):
    error = PermissionError(13, "Permission denied", "/data/cat.jpg")
    assert failure(error, tmp_path) == "cannot open /data/cat.jpg: Permission denied"
    error.filename = str(tmp_path / "status.json")
    assert failure(error, tmp_path) == f"cannot write in {tmp_path}: Permission denied"

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        files.write_text(tmp_path / "sweep.json", "")
    assert caught.value.filename == str(tmp_path / "sweep.json")
    assert not list(tmp_path.iterdir())


def test_outputs_that_are_a_link_to_nothing(tmp_path):
    (tmp_path / "outputs").symlink_to("scratch")
    with pytest.raises(UserError, match="it is a link to a folder that is gone"):
        reserve(tmp_path / "outputs", "visualize")
    (tmp_path / "scratch").mkdir()
    assert reserve(tmp_path / "outputs", "visualize").is_relative_to(tmp_path / "scratch")


@pytest.mark.parametrize("name", ["it's mine", "a\\b", "josé (2), #1 & 2", "50% [x] {y}", "写真"])
def test_folders_may_have_any_name(name, vis_run, tmp_path):
    method = tmp_path / name / "method"
    method.mkdir(parents=True)
    (method / "mine.yaml").write_text("# @package methods.mine\n_target_: vis.methods.Saliency\n")
    ran = vis_run("--config-dir", name, *SMALL, "method=mine", f"outputs={name}")
    assert ran.folder.parent.parent == tmp_path / name
    assert json.loads((ran.folder / "status.json").read_text())["state"] == "done"
    assert vis_run("--config-dir", name, "-m", *SMALL, "method=mine", "seed=0,1", f"outputs={name}").code == 0
