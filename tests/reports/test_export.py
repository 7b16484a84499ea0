"""vis-report --export and --expect: LaTeX macros, JUnit XML, Process Run Crates, verdicts that flipped."""

import csv
import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from reports.test_report import claim, made

from vis.reports.export import _letter
from vis.reports.report import main
from vis.system.files import write_json

EVIL = 'worse than\n% 50 & <b>"_^~\\{}\x01'


def compared(values, metric="pear", **changes):
    return {"metric": metric, "verdict": "holds", "rule": "above 0.65", "measured": "", "values": values, "control": "",
            "control_values": [0.0], "interval": [0.5, None]} | changes  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """A folder with three items: a claim each that holds, fails, and is neither."""
    both = [compared([0.75, 0.79, 0.8]), compared([1.2e-6, 1.3e-6], "very small"), compared([], interval=None)]
    made(tmp_path / "a", claims=[claim("N-4.2-a", compared=both), claim("own_words", "undecided", kind="finding")])
    made(
        tmp_path / "b",
        "zhou2018/table1",
        claims=[claim("Z-1-a", "fails", EVIL, sentence=EVIL, compared=[compared([3])])],
    )
    made(tmp_path / "c", "alone", claims=[claim("only", "not measured", compared=[compared([float("nan"), 1.0])])])
    return tmp_path


def exported(capsys, *words):
    code = main([*map(str, words)])
    return code, capsys.readouterr()


def macros(file):
    """The macros of claims.tex; anything else in it must be a comment."""
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("%")]
    number = r"-?(?:\d+(?:\.\d+)?(?:\\times10\^\{-?\d+\})?|\\infty|\\mathrm\{undefined\})"
    value = rf"\\ensuremath\{{{number}(?: \\pm {number})?\}}|\d+|holds|fails|undecided|not measured"
    found = [re.fullmatch(rf"\\newcommand\{{\\([A-Za-z]+)\}}\{{({value})\}}", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    assert len({match[1] for match in found}) == len(found)
    return {match[1]: match[2] for match in found}


def test_latex_macros(root, capsys):
    code, output = exported(capsys, root, "--export", "tex")
    assert (code, output.out.strip()) == (0, str(root / "claims.tex"))
    assert not (root / "report.html").exists()
    found = macros(root / "claims.tex")
    assert found["NieFigureFourNFourTwoAVerdict"] == "holds"
    assert found["NieFigureFourNFourTwoAA"] == r"\ensuremath{0.780 \pm 0.026}"
    assert found["NieFigureFourNFourTwoAAValue"] == r"\ensuremath{0.780}"
    assert found["NieFigureFourNFourTwoAACount"] == "3"
    assert found["NieFigureFourNFourTwoAALow"] == r"\ensuremath{0.5}"
    assert "NieFigureFourNFourTwoAAHigh" not in found  # infinite
    assert found["NieFigureFourNFourTwoAB"] == r"\ensuremath{1.25\times10^{-6} \pm 7.07\times10^{-8}}"
    assert "NieFigureFourNFourTwoAC" not in found  # no values
    assert found["ZhouTableOneZOneA"] == found["ZhouTableOneZOneAValue"] == r"\ensuremath{3.00}"
    assert found["NieFigureFourOwnWordsVerdict"] == "undecided"
    comments = [line for line in (root / "claims.tex").read_text().splitlines() if line.startswith("%")]
    assert any("worse than % 50" in line and "[run b]" in line for line in comments)
    assert [_letter(n) for n in (0, 25, 26, 27, 52)] == ["A", "Z", "AA", "AB", "BA"]


def test_macros_of_alike_names(root, capsys):
    made(root / "d", "nie2019/figure4", claims=[claim("N-4.2-a")])
    assert exported(capsys, root, "--export", "tex")[0] == 0
    names = macros(root / "claims.tex")
    assert {"NieTwoZeroOneEightFigureFourNFourTwoAVerdict", "NieTwoZeroOneNineFigureFourNFourTwoAVerdict"} < set(names)
    made(root / "e", "alone/x", claims=[claim("1-1"), claim("11")])
    code, output = exported(capsys, root, "--export", "tex")
    assert code == 2
    assert r"both give the macro \AloneXOneOne" in output.err


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="there is no pdflatex")
def test_latex_reads_the_macros(root, capsys):
    assert exported(capsys, root, "--export", "tex")[0] == 0
    body = " ".join(f"\\{name}" + "{}" for name in macros(root / "claims.tex"))
    text = f"\\documentclass{{article}}\\input{{claims}}\\begin{{document}}{body}\\end{{document}}"
    (root / "paper.tex").write_text(text)
    subprocess.run(["pdflatex", "-halt-on-error", "paper"], cwd=root, check=True, capture_output=True)


def test_junit(root, capsys):
    code, output = exported(capsys, root, "--export", "junit", "--export", "tex")
    assert (code, output.out.split()) == (0, [str(root / "claims.junit.xml"), str(root / "claims.tex")])
    suites = ElementTree.parse(root / "claims.junit.xml").getroot()
    assert [suites.get(name) for name in ("tests", "failures", "skipped", "errors")] == ["4", "1", "2", "0"]
    assert {suite.get("name") for suite in suites} == {"nie2018/figure4", "zhou2018/table1", "alone"}
    cases = {case.get("name"): [child.tag for child in case] for case in suites.iter("testcase")}
    assert cases == {
        "N-4.2-a (reproduction)": [], "own_words (finding)": ["skipped"], "Z-1-a (reproduction)": ["failure"],
        "only (reproduction)": ["skipped"],
    }  # fmt: skip
    assert next(suites.iter("failure")).get("message").startswith("fails: worse than")


def edited(file, **verdicts):
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for row in rows:
        row["verdict"] = verdicts.get(row["item"].partition("/")[0], row["verdict"])
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_flipped_verdicts_turn_ci_red(root, capsys):
    assert main([str(root)]) == 0
    expected = root / "expected.csv"
    (root / "claims.csv").rename(expected)
    capsys.readouterr()
    assert exported(capsys, root, "--expect", expected)[0] == 0
    assert not (root / "claims.csv").exists()

    edited(expected, zhou2018="holds")
    code, output = exported(capsys, root, "--expect", expected, "--export", "junit")
    assert code == 1
    assert "zhou2018/table1 Z-1-a (reproduction): holds -> fails (worse than" in output.out
    assert "4 verdicts expected: 1 flipped, 0 missing; 0 new" in output.err
    suites = ElementTree.parse(root / "claims.junit.xml").getroot()
    assert [suites.get(name) for name in ("tests", "failures", "skipped")] == ["4", "1", "0"]
    assert "expected holds" in next(suites.iter("failure")).get("message")

    edited(expected, zhou2018="fails")
    made(root / "d", "later", claims=[claim("new one")])
    code, output = exported(capsys, root, "--expect", expected)
    assert (code, output.out) == (0, "later new one (reproduction) is new: holds\n")
    shutil.rmtree(root / "b")
    code, output = exported(capsys, root, "--expect", expected)
    assert code == 1
    assert output.out.startswith("zhou2018/table1 Z-1-a (reproduction) is missing, expected: fails\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--export", "pdf"], "invalid choice"),
        (["--expect", "none.csv"], "cannot read none.csv: No such file"),
        (["--expect", "a/config.yaml"], "has no columns item, id, kind, verdict"),
        (["a", "b", "--export", "tex"], "give one folder"),
        (["--expect", "a"], "cannot read a"),
    ],
)
def test_mistakes(words, message, root, capsys, monkeypatch):
    monkeypatch.chdir(root)
    words = words if words[0] == "a" else [".", *words]
    code, output = exported(capsys, *words)
    assert (code, output.out) == (2, "")
    assert message in output.err


def a_run(folder):
    """A finished run with all that a crate names."""
    made(folder, experiment={"note": 1}, claims=[claim()])
    np.savez(folder / "maps.npz", allow_pickle=False, pixels=np.zeros((3, 4, 4)))
    write_json(folder / "tables.json", {})
    facts = json.loads((folder / "provenance.json").read_text())
    facts |= {
        "command": "vis-run experiment=nie2018/figure4",
        "git_commit": "f0",
        "python": "3.11.7",
        "packages": {"torch": "2.5"},
    }
    facts["models"]["cnn seed 0"]["sha256"] = "ab"
    facts["datasets"] = [{"origin": "photographs", "images": 5, "fingerprint": "cd"}]
    write_json(folder / "provenance.json", facts)
    return folder


def test_a_run_is_a_crate(tmp_path, capsys):
    a_run(tmp_path / "a")
    made(tmp_path / "b", state="running")
    code, output = exported(capsys, tmp_path, "--export", "crate")
    assert (code, output.out.split()) == (0, [str(tmp_path / "a" / "ro-crate-metadata.json")])
    graph = {n["@id"]: n for n in json.loads((tmp_path / "a" / "ro-crate-metadata.json").read_text())["@graph"]}
    action = graph["#run"]
    assert graph[action["instrument"]["@id"]]["softwareVersion"] == "0.1.0"
    assert action["startTime"] == "2026-11-21T11:59:47+00:00"
    assert action["endTime"] == graph["./"]["datePublished"] == "2026-11-21T12:00:00+00:00"
    assert {"@id": "figure.png"} in action["result"]
    assert {"@id": "config.yaml"} in action["object"]
    assert graph["#weights-0"]["identifier"] == "sha256:ab"
    assert graph["#data-0"]["name"] == "photographs, 5 images"
    assert graph["figure.png"]["description"] == "A caption"
    refs = re.findall(r'\{"@id": "([^"]+)"\}', json.dumps(list(graph.values())))
    assert {ref for ref in refs if not ref.startswith("http")} < set(graph)
    assert exported(capsys, tmp_path / "a", "--export", "crate")[0] == 0  # a single run, again
    assert "ro-crate-metadata.json" not in {part["@id"] for part in graph["./"]["hasPart"]}


TERMS = [
    "about", "name", "description", "datePublished", "license", "hasPart", "mentions", "keywords", "version",
    "softwareVersion", "softwareRequirements", "instrument", "object", "result", "actionStatus", "startTime",
    "endTime", "value", "identifier", "encodingFormat", "contentSize", "url", "PropertyValue", "SoftwareApplication",
    "CreateAction", "Dataset", "CreativeWork",
]  # fmt: skip


def test_roc_validator_accepts_it_offline(tmp_path, capsys, monkeypatch):
    """The context, which the validator would download, holds the terms that a crate uses, as RO-Crate 1.1 defines them."""
    services = pytest.importorskip(
        "rocrate_validator.services", reason="pip install '.[crate]' into an environment of its own"
    )
    import requests
    from rocrate_validator import models
    from rocrate_validator.utils.http import HttpRequester

    terms = {term: f"http://schema.org/{term}" for term in TERMS}
    terms |= {"File": "http://schema.org/MediaObject", "conformsTo": "http://purl.org/dc/terms/conformsTo"}

    def get(self, url, **_):
        response = requests.Response()
        response.status_code = 200 if url == "https://w3id.org/ro/crate/1.1/context" else 404
        response.headers["Content-Type"] = "application/ld+json"
        response._content = json.dumps({"@context": terms}).encode()
        return response

    monkeypatch.setattr(HttpRequester, "get", get, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = a_run(tmp_path / "a")
    assert exported(capsys, folder, "--export", "crate")[0] == 0
    graph = json.loads((folder / "ro-crate-metadata.json").read_text())["@graph"]
    used = {key for node in graph for key in node} | {str(node["@type"]) for node in graph}
    assert used - {"@id", "@type"} <= set(terms)

    def issues():
        settings = models.ValidationSettings(
            rocrate_uri=str(folder),
            profile_identifier="process-run-crate-0.5",
            requirement_severity=models.Severity.REQUIRED,
            offline=True,
        )
        return [issue.message for issue in services.validate(settings).get_issues()]

    assert issues() == []
    (action,) = (node for node in graph if node["@id"] == "#run")
    del action["instrument"]
    write_json(
        folder / "ro-crate-metadata.json", {"@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph}
    )
    assert any("instrument" in message for message in issues()), "a crate without it is refused"
