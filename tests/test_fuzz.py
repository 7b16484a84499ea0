"""Try random command lines and config files: each ends in a result or in one line of error, never in a traceback.

VIS_FUZZ_EXAMPLES sets the number of examples of the slow test.
"""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import SMALL
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from vis.run import main

OWN = """
from vis.methods import Method


class Boom(Method):
    def explain(self, forward, targets):
        raise RuntimeError("boom")


def boom(**anything):
    raise RuntimeError("boom")
"""
TARGETS = (
    "vis.methods.GuidedBackprop",
    "own.Boom",
    "own.boom",
    "own.nothing",
    "nothing.at.all",
    "builtins.dict",
    "x",
    "3",
)
SCALARS = st.one_of(
    st.sampled_from(["null", "true", "[]", "{}", "''", "???", "${seed}", "${no.such}", "[1,a]", "{a: 1}", "abc", "-1", "0",
                     "1", "3", "1e400", ".nan", "2.5", "max", "cat.png", "nope.png", "cpu", "gpu", "~x", "a=b",
                     "ü", "1:2", "\\"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5),
)  # fmt: skip
CHOICES = {
    "experiment": [
        "visualize",
        "compare",
        "wall_check",
        "randomisation",
        "nie2018/figure4",
        "taimeskhanov2024/figure7",
        "mine",
    ],
    "model": ["cnn3_random", "fcn3_random", "cnn_mnist", "custom", "torchvision", "vgg16_masked", "mine"],
    "method": ["gbp", "saliency", "gradcam", "lrp", "pda", "mine"],
    "dataset": ["samples", "digits", "folder", "mine"],
}
KEYS = [
    "seed", "seeds", "target", "image", "device", "batch_size", "precision", "outputs", "preset", "model.num_filters",
    "model.input_size", "model.weights", "model.init", "model._target_", "model.wall.rows", "model.preprocess", "model.name",
    "dataset.names", "dataset.limit", "dataset.path", "dataset._target_", "dataset.preprocess", "dataset.resize", "methods",
    "methods.gbp", "methods.gbp._target_", "methods.mine._target_", "methods.mine.x", "experiment.name", "experiment.scaling",
    "experiment.rows", "experiment._target_", "experiment.all", "experiment.small", "experiment.claims", "experiment.models",
    "experiment", "model", "methods.gradcam.layer", "foo", "foo.bar", "hydra.run.dir", "hydra.verbose", "hydra/launcher",
    "model@foo", "method@methods", "dataset@experiment.datasets.a", "", "a b", "ü",
]  # fmt: skip


def misspelt(name: str) -> st.SearchStrategy[str]:
    return st.integers(0, len(name) - 1).map(lambda i: name[:i] + name[i + 1 :])


def choices(group: str) -> st.SearchStrategy[str]:
    name = st.sampled_from(CHOICES[group])
    listed = st.lists(name, max_size=3).map(lambda names: f"[{','.join(names)}]")
    several = st.lists(name, min_size=2, max_size=2).map(",".join)
    value = st.one_of(name, name, name, listed, several, name.flatmap(misspelt), SCALARS, st.just("glob(gb*)"))
    return st.tuples(st.sampled_from(["", "", "", "", "+", "~", "/"]), value).map(lambda t: f"{t[0]}{group}={t[1]}")


WORDS = st.one_of(
    *(choices(group) for group in CHOICES),
    st.tuples(st.sampled_from(["", "", "+", "++", "~"]), st.sampled_from(KEYS), SCALARS).map(lambda t: f"{t[0]}{t[1]}={t[2]}"),
    st.tuples(st.sampled_from(["", "+"]), st.sampled_from([k for k in KEYS if k.endswith("_target_")]), st.sampled_from(TARGETS))
    .map(lambda t: f"{t[0]}{t[1]}={t[2]}"),
    st.sampled_from(KEYS).map("~{}".format),
    SCALARS,
    st.sampled_from([
        "-m", "--list", "--help", "--version", "--continue", "--cfg", "--cfg=job", "--cfg=all", "-c", "-p", "--package=model",
        "--package=nope", "--resolve", "--info=config", "--info", "--info=defaults-tree", "--resume", "--redraw", "--resume=own",
        "--redraw=own", "--config-dir", "--config-dir=nowhere", "--lst", "-x", "-i", "-cjob", "--package=",
        "--", "-model=vgg16", "--hydra-help", "--install-completion",
        "preset=tiny", "model.num_filters=2,4", "seed=range(0,2)", "seed=interval(0,1)", "method=gbp,[gbp,saliency]",
    ]),
)  # fmt: skip

# --- configs of one's own ---------------------------------------------------------------------------------------------

HEADERS = ("", "", "# Mine\n", "# @package _global_\n", "# @package _global_\n# Mine\n", "# Mine\n# @package _global_\n",
           "# @package\n", "# @package a b\n", "# @package methods.mine\n", "# @package methods.mine\n", "#@package _global_\n",
           "# @package ü.ü\n", "# @package foo\n", "\n\n# @package _global_\n", "# @foo bar\n")  # fmt: skip
DEFAULTS = ("- override /model: cnn3_random", "- override /method: [gbp, saliency]", "- override /method: null",
            "- override /model: nope", "- /experiment/mine", "- mine", "- _self_", "- override /dataset: null",
            "- override /nope: gbp", "- /model@experiment.models.a: cnn3_random", "- 3", "- null", "- {a: {b: c}}", "- [a]",
            "- /experiment/visualize", "- optional /method: nope", "- /method/mine")  # fmt: skip
YAML_KEYS = ("_target_", "name", "x", "seed", "seeds", "model", "methods", "dataset", "experiment", "weights", "init", "all",
             "small", "claims", "models", "preset", "target", "image", "hydra", "outputs", "scaling", "rows")  # fmt: skip
NODES = st.recursive(
    st.one_of(SCALARS, st.sampled_from(TARGETS), st.just("mine")),
    lambda inner: st.dictionaries(st.sampled_from(YAML_KEYS), inner, max_size=4).map(
        lambda node: "{" + ", ".join(f"{key}: {value}" for key, value in node.items()) + "}"
    ),
    max_leaves=6,
)
BODIES = st.dictionaries(st.sampled_from(YAML_KEYS), NODES, max_size=4).map(
    lambda node: "".join(f"{key}: {value}\n" for key, value in node.items())
)
FIGURE = "experiment: {_target_: experiments.visualize.Visualize, name: mine, scaling: method, rows: 3}\n"
FILES = st.one_of(
    st.builds(
        lambda header, defaults, body: (header + "defaults:\n" * bool(defaults) + "".join(d + "\n" for d in defaults) + body)
        .encode(),
        st.sampled_from(HEADERS), st.lists(st.sampled_from(DEFAULTS), max_size=3), st.one_of(BODIES, st.just(FIGURE)),
    ),
    st.sampled_from([b"# @package methods.mine\n# Mine\n_target_: own.Boom\n", b"# Mine\n_target_: vis.methods.LRP\n"]),
    st.binary(max_size=20),
)  # fmt: skip
CONFIGS = st.dictionaries(st.sampled_from([f"{group}/mine.yaml" for group in CHOICES]), FILES, max_size=3)


def check(words: list[str], configs: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in an empty folder and check its exit code, its messages and its files."""
    with tempfile.TemporaryDirectory() as folder, monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.delitem(sys.modules, "own", raising=False)
        Path("own.py").write_text(OWN)
        for name, text in configs.items():
            file = Path("own", name)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([*words, *["--config-dir=own"] * bool(configs)])
        event(f"exit code {code}")
        lines = [line for line in err.getvalue().splitlines() if line.startswith("vis-run: ")]
        assert code in (0, 1, 2), err.getvalue()
        assert "Traceback" not in err.getvalue()
        assert len(lines) == (code != 0), err.getvalue()
        if code == 1:  # the only failures possible here
            assert "boom" in err.getvalue() or "of the sweep's jobs not done" in lines[0], err.getvalue()
        if code == 2:
            assert err.getvalue().strip().splitlines() == lines
            assert not [file for file in Path().glob("outputs/**/*") if file.is_file()]
        if code == 0 and Path("outputs").exists():
            assert Path(out.getvalue().strip().splitlines()[-1], "index.html").is_file()


PLANS = st.lists(WORDS, max_size=5).map(lambda words: [*SMALL, *words, "--dry-run"])
SHOWN = st.lists(WORDS, max_size=4).map(lambda words: ["--cfg", "job", *words])
RUNS = st.tuples(
    st.sampled_from([["method=[gbp,saliency]"], ["-m", "model.num_filters=2,4"], ["+methods.mine._target_=own.Boom"], []]),
    st.lists(
        st.one_of(
            st.tuples(
                st.sampled_from(["seed", "seeds", "target", "image", "batch_size", "precision", "model.weights", "model.init",
                                 "model.name", "model.preprocess", "model.wall.rows", "dataset.names", "dataset.limit",
                                 "dataset.resize", "experiment.scaling", "experiment.rows", "experiment.name",
                                 "experiment.claims",
                                 "+methods.mine._target_", "+methods.gbp.x", "hydra.verbose", "~dataset.names"]),
                st.sampled_from(["null", "true", "[]", "{}", "''", "${seed}", "[1,a]", "abc", "-1", "0", "1", "2.5", "max",
                                 "nope.png", "ü", "a/b", "own.boom", "builtins.dict"]),
            ).map("=".join),
            choices("method"),
        ),
        max_size=3,
    ),
).map(lambda t: [*SMALL, *t[0], *t[1]])  # fmt: skip
COMMANDS = st.one_of(PLANS, PLANS, PLANS, PLANS, PLANS, SHOWN, SHOWN, RUNS)
QUIET = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, derandomize=True, **QUIET)
@given(words=COMMANDS, configs=CONFIGS)
def test_no_command_line_ends_in_a_traceback(words, configs, monkeypatch):
    check(words, configs, monkeypatch)


@pytest.mark.slow
@settings(max_examples=int(os.environ.get("VIS_FUZZ_EXAMPLES", "2000")), print_blob=True, **QUIET)
@given(words=COMMANDS, configs=CONFIGS)
def test_no_command_line_of_many_ends_in_a_traceback(words, configs, monkeypatch):
    check(words, configs, monkeypatch)
