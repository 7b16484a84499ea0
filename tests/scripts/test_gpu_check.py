"""`make gpu-check` on the emulated device: a page and exit code 0; what is wrong there is exit code 1 and its row."""

import subprocess
import sys
from pathlib import Path

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
    """The text, and the cells of each row by its first one."""
    (file,) = folder.glob("*.md")
    text = file.read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return text, {row[0]: row[1:] for row in rows[1:]}


@pytest.mark.skipif(not AVAILABLE, reason="this torch has no Python backends")
class TestGpuCheck:
    def test_exit_codes(self, ran):
        folder, done = ran
        assert done.stdout.splitlines()[-1] == "[2, 0, 1, 0]"
        assert "gpu-check: device=cuda:99 is not there" in done.stderr
        assert not (folder / "none").exists()

    def test_what_is_right_is_within_tolerance(self, ran):
        text, rows = page(ran[0] / "right")
        alike = {row for row, cells in rows.items() if cells[0] == "alike"}
        assert alike == {f"cam, cnn_mnist, {precision}" for precision in ("float32", "tf32", "mixed")}
        assert {cells[0] for row, cells in rows.items() if row not in alike} == {"ok"}
        assert {"engine, cnn_mnist, bfloat16", "taimeskhanov2024/figure2, preset=tiny"} < rows.keys()
        assert f"**{len(rows) - 3} of {len(rows) - 3} rows within tolerance" in text

    def test_what_is_wrong_is_a_row_and_not_the_end(self, ran):
        text, rows = page(ran[0] / "wrong")
        assert rows["saliency, cnn_mnist, float32"][:3] == ["wrong", "2.0e-02", "0.01"]
        assert rows["saliency, cnn_mnist, tf32"][0] == "ok"  # its tolerance is 0.3
        assert rows["fem, cnn_mnist, float32"][:2] == ["failed", "AssertionError: no kernel"]
        assert rows["gradcam, cnn_mnist, mixed"][0] == "ok"
        wrong = sum(cells[0] in ("wrong", "failed") for cells in rows.values())
        assert f"**{len(rows) - 3 - wrong} of {len(rows) - 3} rows within tolerance" in text

    def test_what_there_is_no_time_for_is_listed(self, ran):
        text, rows = page(ran[0] / "late")
        assert {cells[0] for cells in rows.values()} == {"not run (time)"}
        assert f"not run (time): {len(rows)}.**" in text
