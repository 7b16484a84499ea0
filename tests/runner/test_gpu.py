"""What would fail on a GPU, found without one: the same commands on an emulated device and on the CPU, with the same result."""

import subprocess
import sys
from pathlib import Path

import emulated_gpu
import numpy as np
import pytest
from emulated_gpu import AVAILABLE

from vis.config.options import options
from vis.store.run_folder import load_run

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="this torch has no Python backends")
DIGITS = ("dataset=digits", "dataset.limit=1", "model=vgg_small", "model.weights=null", "model.input_size=32")
VGG = (*DIGITS, "model.init=kaiming_normal")
METHODS = [name for name in options("method") if name not in ("cam", "adversarial_generators")]
SIZES = [
    *(f"methods.{name}.{key}" for name in ("pda", "pda_fast", "pda_gradient") for key in ("window=4", "patch=8")),
    *("methods.pda.stride=4", "methods.occlusion.window=4", "methods.occlusion.stride=4", "methods.lime.samples=50"),
    *("methods.opticam.iterations=3", "methods.meaningful_perturbation.iterations=5"),
]
COMMANDS = {
    "methods": (*VGG, f"method=[{','.join(METHODS)}]", *SIZES),
    "a_unit_of_a_layer": (*VGG, "method=[gbp,gradcam]", "target=[max,3]", "batch_size=1"),
    "a_wall": ("experiment=wall_check", "preset=tiny", "method=[hirescam,ablationcam,saliency]", "dataset.limit=2"),
    "compare": ("experiment=compare", *VGG, "method=[saliency,fem,lrp]", "preset=tiny"),
    "closed_forms": ("experiment=nie2018/lemma1", "preset=tiny", "seeds=1"),
    "training": ("experiment=train", *VGG[2:], "dataset=digits", "dataset.limit=64", "experiment.recipe.epochs=1"),
    "draws": ("experiment=zhou2018/figure16", "preset=tiny"),
    "attacks": ("experiment=ayyar2021/attacks", "preset=tiny", *VGG, "method=[fem,guided_gradcam]"),
}


LONG = ("a_wall", "compare", "draws", "attacks")


@pytest.mark.parametrize("what", [pytest.param(k, marks=pytest.mark.slow) if k in LONG else k for k in COMMANDS])
def test_the_device_makes_no_difference(what, vis_run, tmp_path):
    words = (*COMMANDS[what], "outputs=there")
    script = Path(emulated_gpu.__file__)
    ran = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    there, here = load_run(ran.stdout.split()[-1]), load_run(vis_run(*COMMANDS[what], "device=cpu").folder)
    assert list(there.arrays) == list(here.arrays)
    for name in here.arrays:
        a, b = there.arrays[name], here.arrays[name]
        if a.dtype.kind == "f":
            assert np.linalg.norm(a - b) <= 1e-2 * np.linalg.norm(b), name
    assert {table: len(rows) for table, rows in there.tables.items()} == {t: len(r) for t, r in here.tables.items()}
