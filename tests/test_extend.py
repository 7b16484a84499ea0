"""The files and commands of docs/extend.md and the cells of the notebook work as they are printed."""

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

import vis.data
from vis.reports.report import main as report_main
from vis.store.run_folder import load_run

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "extend.md").read_text(encoding="utf-8")
FILE = re.compile(r"^`([^`]+)`:[^\n]*\n\n```(?:python|yaml)\n(.*?)```", flags=re.S | re.M)


@pytest.fixture
def extend(vis_run, tmp_path, monkeypatch, capsys):
    """Run the commands under a heading of the page, with all files of the page; returns the folders they created."""
    for name, code in FILE.findall(TEXT):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(heading):
        section = next(part for part in TEXT.split("\n## ") if part.startswith(heading + "\n"))
        folders = []
        for line in re.findall(
            r"^    ((?:vis-run|vis-report|python) .*)$", re.sub(r"```.*?```", "", section, flags=re.S), flags=re.M
        ):
            program, *words = shlex.split(line)
            if program == "vis-run":
                folders.append(vis_run(*words).folder)
            elif program == "vis-report":
                assert report_main(words) == 0
                folders.append(Path(capsys.readouterr().out.strip()).parent)
            else:
                runpy.run_path(words[0], run_name="__main__")
        return folders

    return run


def test_every_block_of_the_page_names_its_file():
    assert len(FILE.findall(TEXT)) == TEXT.count("```") / 2 == 10


def test_a_method_of_ones_own(extend):
    run, walls = extend("A method")
    results = load_run(run)
    assert results.config.methods.squared.times_input is True
    assert any(name.endswith("/squared") for name in results.arrays)
    rows = load_run(walls).tables["table"]
    assert {"squared", "gradcam"} <= {row["method"] for row in rows}


LEARNS = '''
import torch
from vis.methods import Method


class FromMean(Method):
    """The difference from the mean training image."""

    def prepare(self, subject):
        images = subject.training_images()
        file = subject.cache("means", images.facts)
        if not file.is_file():
            torch.save(torch.stack([images[i] for i in range(len(images))]).mean(0), file)
        self.mean = torch.load(file)

    def explain(self, forward, targets):
        return forward.images.detach() - self.mean


class Broken(FromMean):
    def prepare(self, subject):
        raise RuntimeError("broken")
'''


def test_a_method_of_ones_own_that_learns_first(vis_run, tmp_path, monkeypatch):
    (tmp_path / "learns.py").write_text(LEARNS, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = (
        "method=saliency", "+methods.mine._target_=learns.FromMean", "model=cnn_mnist", "model.weights=null",
        "model.init=kaiming_normal", "dataset=digits", "dataset.limit=2",
    )  # fmt: skip
    first = vis_run(*asked).folder
    (kept,) = first.parents[1].glob("means/*.pt")
    maps = {key: values for key, values in load_run(first).arrays.items() if key.endswith("/mine")}
    mean, data = torch.load(kept), vis.data.digits().part([i for i in range(1797) if i % 5])
    expected = torch.stack([vis.data.to_pixels(data.read(i), mean.shape[1:], 1) for i in range(len(data))]).mean(0)
    assert len(maps) == 2
    pixels = next(values for key, values in load_run(first).arrays.items() if key.endswith("digit_0000/pixels"))
    found = next(values for key, values in maps.items() if "digit_0000" in key)
    np.testing.assert_allclose(found.squeeze(), pixels.squeeze() - expected[0].numpy(), atol=1e-5)
    torch.save(mean + 1, kept)
    for key, values in load_run(vis_run(*asked).folder).arrays.items():
        if key in maps:
            np.testing.assert_allclose(values, maps[key] - 1, atol=1e-5)  # the kept file is used again
    assert "methods.mine: RuntimeError: broken" in vis_run(*asked, "methods.mine._target_=learns.Broken").err


def test_a_class_activation_map_of_ones_own(extend):
    (run,) = map(load_run, extend("A class activation map"))
    maps = {key.rpartition("/")[2]: values for key, values in run.arrays.items() if "/max/" in key}
    assert set(maps) == {"gradcam", "hirescam", "mine"}
    assert (maps["mine"] >= maps["hirescam"]).all(), (
        "the sum of the positive parts is above the positive part of the sum"
    )
    assert (maps["mine"] > maps["hirescam"]).any()


def test_a_model_of_ones_own(extend):
    pytest.importorskip("timm")  # a dev dependency
    timm, own = map(load_run, extend("A model"))
    assert timm.config.model.model_name == "resnet18"
    assert own.config.model.name == "my_net"
    provenance = json.loads((own.folder / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["models"]["my_net seed 0"]["sha256"]


def test_data_of_ones_own(extend):
    (run,) = extend("A dataset")
    assert {row["image"] for row in load_run(run).tables["table"]} == {"disc 0", "square 1"}


def test_a_figure_of_ones_own(extend):
    run, collection, outputs = extend("A figure with claims")
    (claim,) = json.loads((run / "claims.json").read_text(encoding="utf-8"))
    assert (claim["id"], claim["kind"], len(claim["compared"][0]["values"])) == ("recovers", "finding", 4)
    assert (collection / "index.html").is_file()
    page = (outputs / "report.html").read_text(encoding="utf-8")
    assert "My paper" in page
    assert "Figure 1: what guided backpropagation shows of a random network" in page
    assert "Other runs of mine/figure1: 1" in page


def test_the_notebook(monkeypatch, tmp_path):
    cells = json.loads((DOCS / "methods.ipynb").read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for each in code:
        exec(each, names)
    assert names["maps"]["gbp"].shape == (1, 3, 224, 224)
    assert not list(tmp_path.iterdir())
