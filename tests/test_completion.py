"""Tab completion: what is offered, and the installation in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vis.config.completion import ALLOWED, PLACES


def offered(line: str, folder: Path) -> list[str]:
    """Ask as argcomplete's shell functions do: by the environment, with the answer in a file."""
    answer = folder / "answer"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "fish", "_ARGCOMPLETE_IFS": "\n",
             "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
             "_ARGCOMPLETE_STDOUT_FILENAME": str(answer)}  # fmt: skip
    subprocess.run([sys.executable, "-m", "vis.run"], env={**os.environ, **asked}, cwd=folder, check=True, timeout=60)
    return answer.read_text().split("\n")


def test_completion_offers_options_names_keys_values_and_files(tmp_path):
    (tmp_path / "cat.jpg").touch()
    cases = {
        "vis-run --l": ["--list"],
        "vis-run experiment=nie2018/theorem": ["experiment=nie2018/theorem1", "experiment=nie2018/theorem2"],
        "vis-run method=[gbp,sal": ["method=[gbp,saliency"],
        "vis-run model=cnn3_random model.num_f": ["model.num_filters="],
        "vis-run preset=": ["preset=paper", "preset=small", "preset=tiny"],
        "vis-run target=zeb": ["target=zebra"],
        "vis-run image=ca": ["image=cat.jpg"],
    }
    assert {line: offered(line, tmp_path) for line in cases} == cases
    assert not any("/_" in word for word in offered("vis-run experiment=", tmp_path))


def test_the_allowed_initialisations_are_those_of_the_library():
    from vis.models.random_weight import INITIALISATIONS

    assert list(ALLOWED["model.init"]) == ["default", *INITIALISATIONS, "permuted"]


def test_completion_is_installed_where_the_shells_look_for_it(vis_run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for shell, (place, _) in PLACES.items():
        ran = vis_run(f"--install-completion={shell}")
        assert (ran.code, str(tmp_path / place) in ran.out) == (0, True)
        assert "vis-run" in (tmp_path / place).read_text()
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    ran = vis_run("--install-completion")
    assert (ran.code, ran.err) == (2, "vis-run: --install-completion=tcsh: give bash, zsh, fish\n")


@pytest.mark.parametrize(
    ("shell", "code"),
    [
        ("bash", 'source "$HOME/{place}"; COMP_LINE="vis-run preset="; COMP_POINT=15; COMP_TYPE=9; '
                 'COMP_WORDS=(vis-run preset =); COMP_CWORD=2; _python_argcomplete vis-run; echo "${{COMPREPLY[@]}}"'),
        ("zsh", "fpath+=$HOME/.zfunc; autoload -Uz compinit && compinit -u; echo ${{_comps[vis-run]}} paper small tiny"),
        ("fish", 'complete -C "vis-run preset="'),
    ],
)  # fmt: skip
def test_a_real_shell_completes(shell, code, vis_run, tmp_path, monkeypatch):
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vis_run(f"--install-completion={shell}").code == 0
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "vis-run").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m vis.run "$@"\n')
    (tmp_path / "bin" / "vis-run").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    flags = ["-f"] if shell == "zsh" else []
    done = subprocess.run([shell, *flags, "-c", code.format(place=PLACES[shell][0])], env={**os.environ, "PATH": path},
                          capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)  # fmt: skip
    assert [word.removeprefix("preset=") for word in done.stdout.split()][-3:] == ["paper", "small", "tiny"]
    assert shell != "zsh" or done.stdout.startswith("_vis-run"), "zsh knows the function"
