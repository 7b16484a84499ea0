"""A user's mistake is answered by one clear line and exit code 2; no file is left behind."""

import io
import json
import logging
import pickle
import sys
from pathlib import Path

import pytest
import torch
from conftest import SMALL

MISTAKES = {
    "unknown key": (["methd=gbp"], "unknown option 'methd'. Did you mean 'method'"),
    "unknown parameter": ([*SMALL, "model.num_filter=3"], "Did you mean 'model.num_filters'"),
    "unknown method": (["method=gbq"], "there is no method 'gbq'. Did you mean 'gbp'?"),
    "unknown method in a list": (["method=[gbp,gbq]"], "there is no method 'gbq'"),
    "unknown experiment": (["experiment=visualise"], "Did you mean 'visualize'?"),
    "unknown model": (["model=vgg16_randm"], "Did you mean 'vgg16_random'"),
    "a string for a number": ([*SMALL, "model.num_filters=abc"], "model.num_filters=abc is not an integer"),
    "fraction for a count": (["seed=1.5"], "seed=1.5 is not an integer"),
    "no seeds": (["seeds=0"], "seeds=0 is not 1 or more"),
    "no filters": ([*SMALL, "model.num_filters=0"], "num_filters"),
    "no input pixels": ([*SMALL, "model.input_size=0"], "input_size"),
    "no such device": ([*SMALL, "device=cuda:77"], "device=cuda:77 is not there"),
    "no device at all": (["device=gpu"], "device=gpu must be auto, cpu, cuda"),
    "an empty batch": (["batch_size=0"], "batch_size=0 must be auto or a positive integer"),
    "precision": (["precision=float16"], "precision=float16 must be one of float32"),
    "no such file": (["image=nope.png"], "there is no image file nope.png"),
    "not an image": ([*SMALL, "image=text.png"], "text.png is not a readable image"),
    "truncated image": ([*SMALL, "image=truncated.png"], "cannot read the image truncated.png"),
    "class out of range": ([*SMALL, "target=5000"], "target=5000: cnn3_random has the classes 0 to 9"),
    "no such class": ([*SMALL, "model.num_classes=1000", "target=tabbi"], "no class 'tabbi'. Did you mean 'tabby'?"),
    "class names unknown": ([*SMALL, "target=tabby"], "give an index"),
    "no weights": (["model=vgg16_masked"], "model vgg16_masked has no weights. Ways out: model.weights=FILE"),
    "no weights file": (["model=vgg16", "model.weights=nofile.pt"], "no weights file nofile.pt"),
    "weights that are text": (
        [*SMALL, "model.weights=text.pt"],
        "cannot load the weights text.pt: it is damaged or not a checkpoint",
    ),
    "weights that run code": (
        [*SMALL, "model.weights=evil.pt"],
        "cannot load the weights evil.pt",
    ),
    "weights of another shape": (
        [*SMALL, "model.weights=wrong.pt"],
        "conv1.weight is (8, 3, 7, 7) in the file and (4, 3, 7, 7) in the network",
    ),
    "weights of another network": (
        [*SMALL, "model.weights=other.pt"],
        "is not a checkpoint of CNN3: it is missing conv1.weight",
    ),
    "untrained layers of a random net": (["model.trained_up_to=conv5_1"], "need trained weights"),
    "no such architecture": (
        ["model=torchvision", "model.arch=alexnt", "model.weights=null", "model.init=default"],
        "no classifier 'alexnt'. Did you mean 'alexnet'?",
    ),
    "architecture missing": (["model=torchvision"], "model.arch is not given"),
    "no such initialisation": ([*SMALL, "model.init=gaussian"], "unknown model.init=gaussian: give default"),
    "own class missing": ([*SMALL, "+methods.mine._target_=mypackage.Mine"], "there is no module mypackage"),
    "class missing in a module": (
        [*SMALL, "+methods.mine._target_=vis.methods.Mine"],
        "module vis.methods has no Mine",
    ),
    "parameter that a method does not have": ([*SMALL, "+methods.gbp.steps=3"], "takes no parameter methods.gbp.steps"),
    "folder missing": ([*SMALL, "dataset=folder", "dataset.path=nix"], "dataset.path=nix is not a folder"),
    "folder not given": ([*SMALL, "dataset=folder"], "dataset.path is not given"),
    "folder without images": (
        [*SMALL, "dataset=folder", "dataset.path=empty"],
        "dataset.path=empty contains no images",
    ),
    "no such sample": ([*SMALL, "dataset.names=[taby]"], "no sample image 'taby'. Did you mean 'tabby'?"),
    "no image left": ([*SMALL, "dataset.limit=0"], "dataset.limit=0 is not an integer of 1 or more"),
    "a string for an optional count": (
        [*SMALL, "dataset.limit=abc"],
        "dataset.limit=abc is not an integer of 1 or more",
    ),
    "a size of 0": ([*SMALL, "dataset.resize=0"], "dataset.resize=0 is not an integer"),
    "a number for an image": (
        [*SMALL, "image=12"],
        "image=12 is not the name of a file (for a file named 12: image=./12)",
    ),
    "an empty list of images": ([*SMALL, "image=[]"], "image=[] is not the name of a file"),
    "an image and a dataset": ([*SMALL, "image=text.png", "dataset.limit=3"], "leave out dataset.limit="),
    "no outputs": ([*SMALL, "outputs=null"], "outputs=null is not the name of a folder"),
    "no target": ([*SMALL, "target=[]"], "target=[] must be max, random, an index"),
    "a target twice": ([*SMALL, "target=[3,'3']"], "target=[3,3] names 3 twice"),
    "boxes in pixels": (
        [*SMALL, "boxes={tabby: [10, 20, 200, 180]}"],
        "boxes={'tabby': [10, 20, 200, 180]} is not {image: [top, left, bottom, right]}, in shares of the sides from 0 to 1",
    ),
    "a box alone": ([*SMALL, "boxes=[0, 0, 1, 1]"], "is not {image: [top, left, bottom, right]}"),
    "a boolean for a target": ([*SMALL, "target=true"], "target=true must be max, random, an index"),
    "a negative seed": ([*SMALL, "seed=-1"], "seed=-1 is not between 0 and 4294967295"),
    "a seed too large": ([*SMALL, "seed=4294967295", "seeds=2"], "is not between 0 and 4294967294"),
    "a negative standard deviation": ([*SMALL, "model.std=-1"], "model.std=-1 is negative"),
    "a continuous range": (
        ["-m", *SMALL, "model.num_filters=interval(2,6)"],
        "is a continuous range: give values (2,4,8)",
    ),
    "a glob without matches": (["-m", *SMALL, "method=glob(xx*)"], "method=glob(xx*) matches no method"),
    "an option of a model that is not used": (
        ["experiment=nie2018/figure5", "model.num_filters=4"],
        "Did you mean 'experiment.models.cnn.num_filters'?",
    ),
    "an option of another method": (["methods.saliency.foo=1"], "There is: methods.gbp."),
    "an option of Hydra's": (["hydra.launcher.n_job=2"], "vis-run --cfg hydra"),
    "an override for --resume": (["--resume", "empty", "seed=3"], "take a run as it is: leave out seed=3"),
    "scaling": ([*SMALL, "experiment.scaling=foo"], "no scaling 'foo'"),
    "preprocessing": ([*SMALL, "dataset.preprocess=foo"], "unknown preprocessing 'foo'"),
    "sweep without -m": (
        [*SMALL, "model.num_filters=1,2"],
        "has several values: for a sweep, -m model.num_filters=1,2",
    ),
    "spaces around =": (["method", "=", "gbp"], "no spaces around '=': method=gbp"),
    "dashes before a choice": (["--method", "gbp"], "choices take no dashes: method=gbp"),
    "two images in one word": (["image=a,b.jpg"], "for several images, image=[a,b.jpg]"),
    "a folder as an image": (["image=."], "image=. is a folder: dataset=folder dataset.path=."),
    "a network of torchvision": (
        ["model=wide_resnet50_2"],
        "Torchvision has it: model=torchvision model.arch=wide_resnet50_2",
    ),
    "mistake in a sweep": (["-m", *SMALL, "model.num_filters=8,abc"], "model.num_filters=abc is not an integer"),
    "no override": (["gbp"], "cannot read 'gbp'"),
    "open bracket": (["method=[gbp,"], "cannot read 'method=[gbp,': a bracket is not closed"),
    "unknown option": (["--lst"], "unknown option --lst. Did you mean '--list' or"),
    "an option with one hyphen": (["-model=vgg16"], "choices take no dashes: model=vgg16"),
    "an abbreviated option": (["--resum", "empty"], "unknown option --resum. Did you mean '--resume'"),
    "an option without its folder": (["--resume"], "--resume: expected one argument"),
    "a word after --info": (["--info", "model=vgg16"], "--info/-i: invalid choice: 'model=vgg16'"),
    "a sweep of listings": (["-m", "--list"], "--multirun can only be combined with --dry-run, --continue"),
    "resume nothing": (["--resume", "nowhere"], "--resume: there is no folder 'nowhere'"),
    "resume another folder": (["--resume", "empty"], "is not the folder of a run"),
    "redraw another folder": (["--redraw", "empty"], "is not the folder of a run: it has no config.yaml"),
    "a config that is not YAML": (["experiment=mine", "--config-dir", "own"], "cannot read the config "),
    "outputs below a file": ([*SMALL, "outputs=text.png/x"], "cannot create a folder in outputs=text.png/x"),
    "a comment above the package": (
        ["experiment=above", "--config-dir", "above"],
        "experiment/above.yaml: `# @package NAME` must be the first line, with no comment above it; that line is '# Mine'",
    ),
    "a method without a package": (
        ["method=bare", "--config-dir", "own"],
        "own/method/bare.yaml: the first line must be `# @package methods.bare`",
    ),
    "a package without a name": (["model=mine", "--config-dir", "nameless"], "that line is '# @package'"),
    "a config that overrides a missing default": (
        ["experiment=nothing", "--config-dir", "own"],
        "In 'experiment/nothing': Could not override 'method@foo'",
    ),
    "an unknown package": (["model@foo=vgg16_random"], "unknown option 'model@foo'"),
    "circular configs": (["experiment=circle", "--config-dir", "own"], "circular configs"),
    "a collection that lists itself": (
        ["experiment=itself", "--config-dir", "own"],
        "experiment.all of itself lists itself",
    ),
    "a config without an experiment": (["experiment=nameless", "--config-dir", "own"], "experiment.name is missing"),
    "a config with a string for a count": (
        ["experiment=many", "--config-dir", "own"],
        "seeds=many is not an integer",
    ),
    "a config that is a list": (["method=list", "--config-dir", "own"], "list.yaml is not a YAML mapping (key: value)"),
    "a config in another encoding": (["method=latin", "--config-dir", "own"], "latin.yaml: 'utf-8' codec can't decode"),
    "no model": (["model=null"], "model=null: name one (see vis-run --list), or leave it out"),
    "no dataset": (["dataset=null"], "dataset=null: name one (see"),
    "no experiment": (["experiment=null"], "experiment=null: name one (see"),
    "no method": (["method=null"], "method=null: name one (see"),
    "no method in a list": (["method=[gbp,null]"], "method=[gbp,null]: name one (see"),
    "a method twice": (["method=[gbp,gbp]"], "method=[gbp,gbp] names gbp twice"),
    "two models": (["model=[vgg16,vgg16_random]"], "a run has one model; for a sweep over several, -m model=a,b"),
    "a deleted part": (["~experiment"], "experiment is missing: every run has one"),
    "a deleted dataset": ([*SMALL, "~dataset"], "this experiment needs images"),
    "Hydra's run folder": (
        [*SMALL, "hydra.run.dir=foo"],
        "hydra.run.dir=foo is not for this command: runs go to outputs=",
    ),
    "Hydra's sweep folder": (["-m", *SMALL, "hydra.sweep.dir=foo"], "runs go to outputs=FOLDER"),
    "Hydra's search path": ([*SMALL, "hydra.searchpath=[own]"], "add own configs with --config-dir FOLDER"),
    "a launcher for one run": ([*SMALL, "hydra/launcher=basic"], "it starts a sweep's jobs: add -m"),
    "a key that nothing reads": ([*SMALL, "++foo.bar=1"], "++foo.bar=1: nothing reads foo."),
    "a model that nothing reads": ([*SMALL, "+model@foo=vgg16"], "+model@foo=vgg16: nothing reads foo."),
    "--package without --cfg": (["-p", "model"], "say how --cfg shows a config: vis-run --cfg job --package model"),
    "an invalid choice of --cfg": (["--cfg", "jobb"], "--cfg/-c: invalid choice: 'jobb' (choose from"),
    "two commands at once": (
        ["--list", "--cfg", "job"],
        "--cfg/-c: not allowed with argument --list. See vis-run --help",
    ),
    "a list of nothing": (["--list", "model=vgg16"], "nothing has model=vgg16 in its name"),
    "a string for a method": ([*SMALL, "+methods.mine=gbp"], "methods.mine=gbp is not a mapping with a _target_"),
    "a method that is not a Method": (
        [*SMALL, "+methods.mine._target_=builtins.dict"],
        "made a dict, not a vis.methods.Method",
    ),
    "a dataset that is not a Dataset": (
        [*SMALL, "~dataset.names", "dataset._target_=builtins.dict"],
        "made a dict, not a vis.data",
    ),
    "a module that raises": (
        [*SMALL, "+methods.mine._target_=failing.Mine"],
        "methods.mine._target_=failing.Mine cannot be imported: ZeroDivisionError: division by zero (",
    ),
    "a module with a missing import": (
        [*SMALL, "+methods.mine._target_=importing.Mine"],
        "cannot be imported: ModuleNotFoundError: No module named 'nothere'",
    ),
    "a module that exits": ([*SMALL, "+methods.mine._target_=exiting.Mine"], "cannot be imported: SystemExit: 3"),
    "an experiment without its method": (
        ["experiment=ayyar2021/similarity", "preset=tiny", "method=gradcam"],
        "ayyar2021/similarity needs fem: give method=[fem,gradcam",
    ),
    "--package without a part": (["--cfg", "job", "-p"], "--package/-p: expected one argument. See vis-run --help"),
    "weights that are not a file, in a sweep": (["-m", *SMALL, "seed=0,1", "model.weights={}"], "no weights file {}"),
    "--cfg and --info": (["--cfg", "job", "--info"], "--info/-i: not allowed with argument --cfg/-c"),
    "an invalid verbosity": (
        [*SMALL, "hydra.verbose=null"],
        "hydra.verbose=null is not true, false or the name of a logger",
    ),
    "an unknown user": ([*SMALL, "outputs=~no.one/x"], "outputs=~no.one/x: there is no such user"),
    "a folder of an unknown user": (["--list", "--config-dir", "~no.one"], "there is no folder '~no.one'"),
    "a dataset that cannot be downloaded": (
        ["dataset=cifar10", "dataset.path=nix", *SMALL],
        "CIFAR10 can neither be read from dataset.path=nix nor downloaded",
    ),
}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("ran.txt", "w"))


@pytest.fixture
def _files(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("experiment: {name: [broken\n")
    above = "# Mine\n# @package _global_\ndefaults: [override /model: cnn3_random]\nexperiment: {name: above}\n"
    for name, text in {
        "above": above,
        "nothing": "# @package _global_\ndefaults: [override /method@foo: gbp]\nexperiment: {name: nothing}\n",
        "circle": "# @package _global_\ndefaults: [/experiment/circle]\n",
        "itself": "# @package _global_\nexperiment: {name: itself, all: [itself]}\n",
        "nameless": "# @package _global_\nexperiment: {bound: 3}\n",
        "many": "# @package _global_\nseeds: many\nexperiment: {name: many}\n",
    }.items():
        own = tmp_path / ("own" if name != "above" else "above") / "experiment" / f"{name}.yaml"
        own.parent.mkdir(parents=True, exist_ok=True)
        own.write_text(text)
    (tmp_path / "own" / "method").mkdir()
    (tmp_path / "own" / "method" / "list.yaml").write_text("[a, b]\n")
    (tmp_path / "own" / "method" / "bare.yaml").write_text("_target_: vis.methods.Saliency\n")
    (tmp_path / "own" / "method" / "latin.yaml").write_bytes("name: Kätzchen\n".encode("latin-1"))
    (tmp_path / "nameless" / "model").mkdir(parents=True)
    (tmp_path / "nameless" / "model" / "mine.yaml").write_text("# @package\nname: mine\n")
    (tmp_path / "failing.py").write_text("x = 1 / 0\n")
    (tmp_path / "importing.py").write_text("import nothere\n")
    (tmp_path / "exiting.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "text.pt").write_text("no checkpoint")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Evil()))
    from PIL import Image

    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "PNG")
    (tmp_path / "truncated.png").write_bytes(data.getvalue()[:1000])
    torch.save(
        {
            "conv1.weight": torch.zeros(8, 3, 7, 7),
            "conv1.bias": torch.zeros(4),
            "fc.weight": torch.zeros(10, 1024),
            "fc.bias": torch.zeros(10),
        },
        tmp_path / "wrong.pt",
    )
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")


@pytest.mark.usefixtures("_files")
@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_one_clear_line_and_nothing_left_behind(arguments, message, vis_run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    ran = vis_run(*arguments)
    assert ran.code == 2
    line = ran.err.strip().splitlines()[-1]
    assert line.startswith("vis-run: ")
    assert message in line
    assert "Traceback" not in ran.err
    assert ran.out == ""
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert [path for path in left if path.is_file()] == []
    assert not (tmp_path / "ran.txt").exists()


def test_pretrained_weights_without_a_network_name_the_ways_out(vis_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    ran = vis_run("model=vgg16")
    assert ran.code == 2
    message = ran.err.strip().splitlines()[-1]
    assert "could not be downloaded" in message
    for way in (str(tmp_path / "hub"), "model.weights=FILE", "model.init="):
        assert way in message


def test_the_process_itself_answers_without_a_traceback(command):
    done = command("method=gbq")
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0


OWN = """
import torch
from torch import nn
from vis.data import Dataset
from vis.runner.experiment import Experiment
from vis.methods import Method
from vis.store.run_folder import Output


class Returns(Method):
    def __init__(self, what):
        self.what = what

    def explain(self, forward, targets):
        x = forward.images
        return {
            "boom": lambda: 1 / 0,
            "index": lambda: [][3],
            "exit": lambda: exit(3),
            "small": lambda: x[:, :, :4, :4],
            "list": lambda: [x],
            "integers": lambda: x.long(),
            "infinite": lambda: x / 0,
        }[self.what]()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(7, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


def unreadable():
    return Dataset("unreadable", ["one"], [None], lambda i: 1 / 0)


class Figure(Experiment):
    def __init__(self, fails):
        self.fails = fails

    def _step(self, name, value):
        return 1 / 0 if self.fails == name else value

    def tasks(self, run):
        return self._step("tasks", [{}])

    def compute(self, run, unit):
        return self._step("compute", None if self.fails == "none" else Output(tables={"table": [{"a": 1}]}))

    def claims(self, results):
        return self._step("claims", [])

    def draw(self, results, claims):
        return self._step("draw", {})
"""
FIGURE = (
    "model=cnn3_random",
    "experiment._target_=own.Figure",
    "~experiment.scaling",
    "~experiment.clip",
    "~experiment.rows",
)
MINE = (*SMALL, "+methods.mine._target_=own.Returns")
OWN_CODE = {
    "a method": ([*MINE, "+methods.mine.what=boom"], 1, "methods.mine: ZeroDivisionError: division by zero (see "),
    "a method's index": ([*MINE, "+methods.mine.what=index"], 1, "methods.mine: IndexError: list index out of range (see "),
    "a method that ends Python": ([*MINE, "+methods.mine.what=exit"], 1, "methods.mine: RuntimeError: it called sys.exit(3)"),
    "a map of another size": (
        [*MINE, "+methods.mine.what=small"], 2, "methods.mine returned [1, 3, 4, 4], expected [1, 1 or 3, 32, 32]"
    ),
    "no map": ([*MINE, "+methods.mine.what=list"], 2, "methods.mine returned a list, expected [1, 1 or 3, 32, 32]"),
    "a map of integers": ([*MINE, "+methods.mine.what=integers"], 2, "methods.mine returned maps of torch.int64"),
    "a model": (
        ["model=custom", "model._target_=own.Net", "model.init=default", "model.input_size=32"], 1,
        "Net on images [1, 3, 32, 32]: RuntimeError: ",
    ),
    "a dataset": (
        [*SMALL, "~dataset.names", "dataset._target_=own.unreadable"], 1, "image one of the dataset: ZeroDivisionError: "
    ),
    **{
        f"an experiment's {step}": ([*FIGURE, f"+experiment.fails={step}"], 1, f"visualize, {step}: ZeroDivisionError: ")
        for step in ("tasks", "compute", "claims", "draw")
    },
    "an experiment without results": (
        [*FIGURE, "+experiment.fails=none"], 2, "visualize, compute: it returned a NoneType, expected a vis.store.run_folder."
    ),
}  # fmt: skip


@pytest.fixture
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own", raising=False)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize(("arguments", "code", "message"), OWN_CODE.values(), ids=OWN_CODE.keys())
def test_ones_own_code_that_fails_is_named(arguments, code, message, vis_run, tmp_path):
    ran = vis_run(*arguments)
    assert ran.code == code
    line = ran.err.strip().splitlines()[-1]
    assert line.startswith("vis-run: " + "the run failed: " * (code == 1))
    assert message in line
    if code == 1:  # the folder keeps the traceback, and --resume is advised if the run can be resumed
        (folder,) = tmp_path.glob("outputs/*/*")
        assert "Traceback" in (folder / "traceback.txt").read_text()
        assert ("--resume" in line) == (folder / "config.yaml").exists()
    else:
        assert not [path for path in tmp_path.glob("outputs/**/*") if path.is_file()]


@pytest.mark.usefixtures("_own")
def test_nan_and_infinite_maps_are_reported(vis_run):
    ran = vis_run(*MINE, "+methods.mine.what=infinite", "dataset.names=all", "batch_size=1")
    assert ran.err.count("methods.mine: a map holds NaN or infinite values") == 1


@pytest.mark.parametrize("item", ["figure7", "table1"])
def test_claims_about_methods_that_were_left_out_are_not_measured(item, vis_run):
    network = ("model=cnn_masked", "model.init=kaiming_normal", "model.weights=null", "dataset.limit=1")
    ran = vis_run(
        f"experiment=taimeskhanov2024/{item}",
        "preset=tiny",
        *network,
        "experiment.samples=1",
        "method=[gradcam,hirescam]",
    )
    claims = {claim["id"]: claim for claim in json.loads((ran.folder / "claims.json").read_text())}
    if item == "figure7":  # it draws what Table 1 judges
        assert claims == {}
        return
    assert claims["T-T1-hc"]["verdict"] == "holds"
    assert claims["T-3.3-a"]["verdict"] == "not measured"
    assert "GradCAM++: share of images" in claims["T-3.3-a"]["measured"]
    assert "no values" in claims["T-3.3-a"]["measured"]


def test_an_experiment_names_the_methods_that_it_needs(vis_run):
    ran = vis_run("experiment=nie2018/constants", "preset=tiny", "method=gbp", "--dry-run")
    assert (ran.code, ran.err) == (
        2,
        "vis-run: nie2018/constants needs saliency, deconvnet: give method=[gbp,saliency,deconvnet]\n",
    )


def test_the_log_of_a_failed_run_is_closed_with_it(vis_run):
    assert vis_run("model.weights=nowhere.pt").code == 2
    assert not any(isinstance(handler, logging.FileHandler) for handler in logging.root.handlers)
