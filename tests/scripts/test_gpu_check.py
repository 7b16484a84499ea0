"""`make gpu-check` on the emulated device: a page and exit code 0; what is wrong there is exit code 1 and its row."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulated_gpu import AVAILABLE

ROOT = Path(__file__).resolve().parents[2]
ITEMS = ("nie2018/theorem2", "taimeskhanov2024/figure2")
DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import emulated_gpu, gpu_check
from vis import methods
from vis.run import main as vis_run

codes = [gpu_check.main(["--device", "cuda:99", "--folder", "none"])]
emulated_gpu.install()
emulated_gpu.inherit(Path.cwd())
gpu_check.ITEMS = ("-m", "experiment=" + sys.argv[3], "preset=tiny")
gpu_check.CPU = Path("cpu.json")
assert vis_run([*gpu_check.ITEMS, "device=cpu", "outputs=cpu"]) == 0
codes.append(gpu_check.main(["--store", str(next(Path("cpu").glob("*/*")))]))
every = {row.what for row in gpu_check.Check("cuda", Path("rows")).rows()}
assert {f"{m}, {n}, float32" for m in gpu_check.options("method") for n in gpu_check.NETWORKS} <= every

gpu_check.NETWORKS = {"cnn_mnist": gpu_check.NETWORKS["cnn_mnist"]}
gpu_check.METHODS = ["saliency", "gradcam", "cam", "fem"]
gpu_check.BENCH = ("-c", "print('2 threads'); print('| work |'); print('|---|'); print('| a row |')")
small = "experiment.models.random"
gpu_check.FIGURE7 = ("experiment=nie2018/figure7", "preset=tiny", "seeds=1", "batch_size=2", f"~{small}.pool",
                     f"{small}._target_=vis.models.VGGSmall", f"{small}.input_size=32", f"{small}.num_classes=10")
gpu_check.PHOTOGRAPHS = 4
codes.append(gpu_check.main(["--folder", "right"]))

def scaled(right):
    return lambda self, forward, targets: right(self, forward, targets) * (1 + 0.02 * (forward.images.device.type != "cpu"))

def crash(self, forward, targets):
    assert forward.images.device.type == "cpu", "no kernel"
    return forward.images

methods.Saliency.explain, methods.FEM.explain = scaled(methods.Saliency.explain), crash
cpu = gpu_check.CPU.read_text()
gpu_check.CPU.write_text(cpu.replace('"holds"', '"fails"', 1).replace('"sketch": [', '"sketch": [9', 1))
gpu_check.BENCH = ("-c", "raise SystemExit('no peer')")
codes.append(gpu_check.main(["--folder", "wrong"]))
codes.append(gpu_check.main(["--folder", "late", "--seconds", "0"]))
print(codes)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_check")
    words = [sys.executable, "-c", DRIVER, ROOT / "tests" / "support", ROOT / "scripts", ",".join(ITEMS)]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


def page(folder):
    """Return each section of the page by the beginning of its title: its summary, and the cells of each row by its first one."""
    (file,) = folder.glob("*.md")
    sections = {}
    for section in file.read_text().split("\n## ")[1:]:
        title, summary, *lines = [line for line in section.splitlines() if line]
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
        sections[title.split()[0]] = summary.strip("*"), {row[0]: row[1:] for row in rows[1:]}, lines
    return sections


@pytest.mark.slow
@pytest.mark.skipif(not AVAILABLE, reason="this torch has no Python backends")
class TestGpuCheck:
    def test_exit_codes(self, ran):
        folder, done = ran
        assert done.stdout.splitlines()[-1] == "[2, 0, 0, 1, 0]"
        assert "gpu-check: device=cuda:99 is not there" in done.stderr
        assert not (folder / "none").exists()

    def test_what_is_right_is_within_tolerance(self, ran):
        sections = page(ran[0] / "right")
        summary, rows, _ = sections["Methods,"]
        alike = {row for row, cells in rows.items() if cells[0] == "alike"}
        assert alike == {f"cam, cnn_mnist, {precision}" for precision in ("float32", "tf32", "mixed")}
        assert {cells[0] for row, cells in rows.items() if row not in alike} == {"ok"}
        assert "engine, cnn_mnist, bfloat16" in rows
        assert summary.startswith(f"{len(rows) - 3} of {len(rows) - 3} rows within tolerance")
        summary, rows, _ = sections["Items"]
        assert summary.startswith("2 of 2 items agree with the CPU (9 of 9 verdicts equal)")
        assert {name: cells[0] for name, cells in rows.items()} == dict.fromkeys(ITEMS, "ok")
        assert all(cells[2] == "0.0e+00" for cells in rows.values())

    def test_speed_memory_and_many_images_are_on_the_page(self, ran):
        sections = page(ran[0] / "right")
        assert sections["Speed"][2] == ["| work |", "|---|", "| a row |"]
        assert sections["Peak"][0] == "2 of 2 items."
        assert all(float(megabytes) > 0 for megabytes, _ in sections["Peak"][1].values())
        summary, rows, _ = sections["Figure"]
        assert summary == "6 of 6 batches of 2 images."
        assert [name.partition(":")[0] for name in rows] == ["random", "trained", "control"]

    def test_what_is_wrong_is_a_row_and_not_the_end(self, ran):
        sections = page(ran[0] / "wrong")
        summary, rows, _ = sections["Methods,"]
        assert rows["saliency, cnn_mnist, float32"][:3] == ["wrong", "2.0e-02", "0.01"]
        assert rows["saliency, cnn_mnist, tf32"][0] == "ok"  # its tolerance is 0.3
        assert rows["fem, cnn_mnist, float32"][:2] == ["failed", "AssertionError: no kernel"]
        assert rows["gradcam, cnn_mnist, mixed"][0] == "ok"
        wrong = sum(cells[0] in ("wrong", "failed") for cells in rows.values())
        assert summary.startswith(f"{len(rows) - 3 - wrong} of {len(rows) - 3} rows within tolerance")
        assert sections["Items"][1][ITEMS[0]][:2] == ["wrong", "7 of 8 verdicts equal (not N-T2-a)"]
        assert sections["Items"][1][ITEMS[1]][0] == "ok"
        assert sections["Speed"][0] == "0 rows. Failed: no peer"

    def test_what_there_is_no_time_for_is_listed(self, ran):
        sections = page(ran[0] / "late")
        summary, rows, _ = sections["Methods,"]
        assert {cells[0] for cells in rows.values()} == {"not run (time)"}
        assert summary.endswith(f"not run (time): {len(rows)}.")
        assert {cells[0] for cells in sections["Items"][1].values()} == {"not run"}
        assert sections["Peak"][2][-1] == f"Not run (time): {', '.join(ITEMS)}."
        assert sections["Speed"][0] == sections["Figure"][0] == "Not run (time)."


class TestSketches:
    """What is stored of an item's maps estimates the relative l2 error of other maps, also that of a factor."""

    @pytest.mark.parametrize("error", [1e-6, 1e-3, 0.1])
    def test_distance(self, error):
        gpu_items, rng = imported("gpu_items"), np.random.default_rng(0)
        maps = {f"{i}": rng.standard_normal((3, 40 + i, 50)) for i in range(20)}
        noisy = {k: m + error * np.linalg.norm(m) / m.size**0.5 * rng.standard_normal(m.shape) for k, m in maps.items()}
        scaled = {name: map_ * (1 + error) for name, map_ in maps.items()}
        for other in (noisy, scaled):
            found = gpu_items.distance(gpu_items.sketch(maps), gpu_items.sketch(other))
            assert error / 2 < found < 2 * error

    def test_equal_maps_and_pictures(self):
        gpu_items = imported("gpu_items")
        maps = {"a": np.ones(3), "none": np.zeros(4), "undefined": np.array([np.nan, 1]), "b/pixels": np.ones(5)}
        one = gpu_items.sketch(maps)
        assert one["arrays"] == 3
        assert gpu_items.distance(one, gpu_items.sketch(maps | {"b/pixels": np.zeros(5)})) == 0
        with pytest.raises(ValueError, match="2 arrays on the device, 3 on the CPU"):
            gpu_items.distance(gpu_items.sketch({"a": np.ones(3), "c": np.ones(3)}), one)


def imported(name):
    """Return a module of scripts/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
