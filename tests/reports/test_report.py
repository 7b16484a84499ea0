"""vis-report: the page over all runs, report.md, claims.csv, runs side by side."""

import csv
import errno
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import SMALL
from omegaconf import OmegaConf
from PIL import Image

from vis.reports.html import TEMPLATES
from vis.reports.items import opening
from vis.reports.report import main
from vis.store.sweep_plan import begin
from vis.system.files import write_json, write_text

EVIL = """<script>alert(1)</script>"'><img src=x onerror=alert(2)> & | done"""


def claim(name="gbp", verdict="holds", measured="0.776 ± 0.018 (n = 8)", **changes):
    words = {"sentence": f"The paper says {name}", "source": "Figure 4", "metric": "pear", "rule": "mean > 0.65"}
    words |= {"kind": "reproduction", "differences": [], "control": "another image"}
    return {"id": name, "verdict": verdict, **words, "paper": 0.9, "measured": measured} | changes


def made(
    folder, name="nie2018/figure4", day=21, state="done", preset="paper", claims=(), caption="A caption", **changes
):
    """A run's folder as the runner leaves it."""
    folder.mkdir(parents=True)
    node = {"name": name, "models": {"cnn": {"stride": 2}}} | changes.pop("experiment", {})
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"preset": preset, "experiment": node})))
    status = {"state": state, "command": f"vis-run experiment={name} seeds=8", "seconds": 12.3, "peak_memory_gb": 1.0}
    write_json(folder / "status.json", status | changes.pop("status", {}))
    if state == "done":
        weights = changes.pop("weights", "random weights (normal, std 1.0, seed 0)")
        models = {"cnn seed 0": {"weights": weights, "sha256": None, "standin": changes.pop("standin", False)}}
        finished = f"2026-11-{day}T12:00:00+0000"
        write_json(folder / "provenance.json", {"version": "0.1.0", "models": models, "finished": finished})
        write_json(folder / "claims.json", list(claims or [claim()]))
        figure = changes.pop("figure", "figure")
        write_json(folder / "figures.json", {figure: caption})
        Image.new("RGB", (1300, 700), (20, 90, 200)).save(folder / f"{figure}.png")
        write_text(folder / "table.csv", "method,pear\ngbp,0.776123\n")
        write_text(folder / "index.html", "the run's page")
    assert not changes
    return folder


class Page(HTMLParser):
    """What a page is made of: (tag, attributes), and the text."""

    def __init__(self, path):
        super().__init__()
        self.folder, self.tags, self.text = path.parent, [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text += data

    def all(self, tag, attribute):
        return [attributes[attribute] for name, attributes in self.tags if name == tag and attribute in attributes]

    def check(self):
        """It loads nothing, every link leads somewhere, and it is marked up for those who listen to it."""
        assert all(source.startswith("data:image/webp;base64,") for source in self.all("img", "src"))
        assert not {tag for tag, _ in self.tags} & {"link", "iframe", "object"}
        assert [attributes for tag, attributes in self.tags if tag == "script"] == [{}], "one script, in the page"
        assert not [key for _, attributes in self.tags for key in attributes if key.startswith("on")]
        identities = Counter(attributes["id"] for _, attributes in self.tags if "id" in attributes)
        assert set(identities.values()) <= {1}
        for target in self.all("a", "href"):
            assert not re.match(r"\w+:", target), target
            if target.startswith("#"):
                assert target[1:] in identities
            else:
                assert (self.folder / unquote(urlsplit(target).path)).exists(), target
        assert all(attributes.get("alt") for tag, attributes in self.tags if tag == "img")
        assert all(attributes.get("scope") in ("col", "row") for tag, attributes in self.tags if tag == "th")
        regions = [attributes for _, attributes in self.tags if attributes.get("class") == "scroll"]
        assert all(
            region.get("role") == "group" and region.get("tabindex") == "0" and region.get("aria-label")
            for region in regions
        )
        levels = [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        return self


def reported(capsys, *words):
    """The page of a vis-report command."""
    assert main([str(word) for word in words]) == 0, capsys.readouterr().err
    return Path(capsys.readouterr().out.strip())


def rows(page):
    with page.with_name("claims.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_newest_finished_run_counts_and_the_others_stand_behind_it(tmp_path, capsys):
    old = made(tmp_path / "2026-11-20" / "old", day=20, claims=[claim(verdict="fails")])
    new = made(tmp_path / "2026-11-19" / "new", day=21)  # the folder's name does not count, the end of the run does
    made(tmp_path / "2026-11-22" / "running", state="running")
    page = reported(capsys, tmp_path)
    assert [(row["item"], row["verdict"], row["run"]) for row in rows(page)] == [
        ("nie2018/figure4", "holds", "2026-11-19/new")
    ]
    read = Page(page).check()
    assert "Other runs of nie2018/figure4: 2" in read.all("summary", "aria-label")
    assert f"vis-report {new} {old}" in read.text
    for other in ("2026-11-20/old/index.html", "2026-11-22/running/"):
        assert other in read.all("a", "href")


def test_a_run_at_the_papers_size_counts_before_newer_small_ones(tmp_path, capsys):
    for day, preset in enumerate(["paper", "small", "tiny"], 20):
        made(tmp_path / preset, day=day, preset=preset)
    for counts in ("paper", "small", "tiny"):
        page = reported(capsys, tmp_path)
        assert [row["run"] for row in rows(page)] == [counts]
        shutil.rmtree(tmp_path / counts)


def test_the_opening_sentences_keep_the_kinds_apart():
    def said(**verdicts):
        counts = {(kind, verdict.replace("_", " ")): n for kind, own in verdicts.items() for verdict, n in own.items()}
        return opening(Counter(counts))

    assert said() == "These runs make no claims."
    assert said(reproduction={"holds": 1, "fails": 2, "undecided": 1}) == (
        "At the paper's setting, 1 claim holds, 2 fail and 1 is undecided."
    )
    assert said(
        replication={"holds": 2, "undecided": 3, "not_measured": 4},
        finding={"fails": 1, "not_measured": 1},
        reproduction={"not_measured": 5},
    ) == (
        "At the paper's setting, nothing was measured. On other networks or data, 2 claims hold and 3 are undecided. "
        "Of this project's findings, 1 fails. Not measured: 5 at the paper's setting, 4 on other networks or data and "
        "1 of this project's findings."
    )


def test_claims_stand_under_their_kind_and_a_sentence_is_printed_once(tmp_path, capsys):
    here = {"kind": "replication", "differences": ["SqueezeNet 1.1 instead of VGG-16"]}
    claims = [
        claim("a", "not measured", "no weights; here pear: 0.3 (n = 2)", **here),
        claim("own", kind="finding", sentence="Ours"),
        claim("b", sentence="Said once"),
        claim("c", sentence="Said once", verdict="fails"),
    ]
    made(tmp_path / "run", claims=claims)
    text = Page(reported(capsys, tmp_path)).check().text
    for words in (
        "Reproduction holds Said once",
        "Replication with SqueezeNet 1.1 instead of VGG-16",
        "Finding holds Ours",
    ):
        assert words in text
    assert text.count("Said once") == 1
    assert "no weights" in text
    assert "pear: 0.3 (n = 2)" in text


def test_a_paper_shows_all_its_items_with_what_the_configs_say_and_how_to_run_them(tmp_path, capsys):
    made(tmp_path / "a", "taimeskhanov2024/table1")
    made(tmp_path / "b", "nie2018/figure4", claims=[claim("gbp_cnn_cosL")])
    made(tmp_path / "c", "visualize", claims=[])
    made(tmp_path / "d", "mine/figure1")
    made(tmp_path / "e", "../../x")
    (tmp_path / "configs" / "experiment" / "mine").mkdir(parents=True)
    write_text(tmp_path / "configs" / "experiment" / "mine" / "figure1.yaml", "# My paper, Figure 1: mine\n")
    page = reported(capsys, tmp_path, "--config-dir", tmp_path / "configs")
    read = Page(page).check()
    titles = ["My paper", "Nie et al. 2018", "Taimeskhanov et al. 2024", "Other experiments"]
    opening = "At the paper's setting, 1 claim holds."
    openings = [
        f"{title} {opening if title in titles[:3] else opening.replace('1 claim holds', '2 claims hold')}"
        for title in titles
    ]
    assert [read.text.index(each) for each in openings] == sorted(read.text.index(each) for each in openings)
    places = [read.text.rindex(title) for title in titles]
    assert places == sorted(places)
    assert "../../x" in read.text[places[-1] :], "a slash in a name makes no paper"
    assert (
        "Figure 4: guided backpropagation, DeconvNet and saliency map in a random three-layer CNN and FCN" in read.text
    )
    assert "vis-run experiment=nie2018/figure4 seeds=8" in read.text
    assert "not started vis-run experiment=nie2018/theorem1" in read.text
    assert "finding 3" in read.text
    text = page.with_name("report.md").read_text(encoding="utf-8")
    assert (
        "| nie2018/figure4 | The paper says gbp_cnn_cosL | reproduction | 0.9 | pear | 0.776 ± 0.018 (n = 8) | holds |"
        in text
    )
    assert f"## Nie et al. 2018\n\n{opening}\n" in text


@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({}, ""),
        ({"preset": "small"}, "reduced sizes"),
        ({"standin": True}, "on a stand-in"),
    ],
)
def test_runs_short_of_the_papers_setting_are_marked(tmp_path, capsys, changes, mark):
    made(tmp_path / "run", **changes)
    page = reported(capsys, tmp_path)
    assert [row["reduced"] for row in rows(page)] == [mark]
    marks = re.findall(r"<strong class=mark>(.*?)</strong>", page.read_text(encoding="utf-8"))
    assert marks == ([mark] if mark else [])
    assert (mark in page.with_name("report.md").read_text(encoding="utf-8")) or not mark


def test_a_job_of_a_collection_is_run_again_by_its_own_command(tmp_path, capsys):
    jobs = [["experiment=nie2018/figure1", "target=3"], ["experiment=nie2018/figure2", "target=3"]]
    made(tmp_path / "all" / "1_experiment=nie2018_figure2", "nie2018/figure2", preset="small")
    begin(
        tmp_path / "all",
        jobs,
        [Path("/my configs")],
        "vis-run experiment=nie2018/all target=3",
        collection="nie2018/all",
    )
    (row,) = rows(reported(capsys, tmp_path))
    assert row["again"] == "vis-run experiment=nie2018/figure2 target=3 '--config-dir=/my configs'"


def test_the_jobs_of_a_sweep_over_a_key_count_for_no_item(tmp_path, capsys):
    made(tmp_path / "sweep" / "0_stride=1")
    begin(tmp_path / "sweep", [["seed=1"], ["seed=2"]], [], "vis-run -m seed=1,2")
    page = reported(capsys, tmp_path)
    assert rows(page) == []
    assert "vis-run -m seed=1,2" in Page(page).check().text


def test_names_and_texts_are_escaped(tmp_path, capsys):
    evil = claim(EVIL, **dict.fromkeys(("verdict", "sentence", "source", "metric", "rule", "paper", "measured"), EVIL))
    status = {"command": EVIL, "error": EVIL}
    figure = """f"'><b>"""
    for number in range(2):
        made(
            tmp_path / f"r{number} #%<i>'\"",
            EVIL,
            claims=[evil],
            caption=EVIL,
            status=status,
            weights=EVIL,
            figure=figure,
        )
    made(tmp_path / "failed", EVIL + "2", state="failed", status=status)
    page = reported(capsys, tmp_path)
    beside = reported(capsys, *sorted(tmp_path.glob("r?*"))[:2])
    for each in (page, beside):
        read = Page(each).check()
        assert EVIL in read.text
        assert not {"b", "i"} & {tag for tag, _ in read.tags}
    assert "<script" not in page.with_name("report.md").read_text(encoding="utf-8").replace("\\<", "")
    assert rows(page)[0]["sentence"] == EVIL


DAMAGES = [
    ("claims.json", "[{"),
    ("claims.json", "[{}]"),
    ("claims.json", '{"a": 1}'),
    ("claims.json", json.dumps([claim(measured=3)])),
    ("figures.json", "[]"),
    ("figures.json", '{"figure": null}'),
    ("provenance.json", "3"),
    ("provenance.json", "[]"),
    ("provenance.json", '{"models": [1]}'),
    ("provenance.json", '{"models": {"cnn": 1}}'),
    ("provenance.json", '{"finished": "soon"}'),
    ("status.json", ""),
    ("status.json", '{"seconds": 1}'),
    ("status.json", '{"state": "done", "seconds": "abc"}'),
    ("status.json", '{"state": "done", "error": ["abc"]}'),
    ("table.csv", "\xff\xfe\0"),
    ("config.yaml", "a: ["),
    ("config.yaml", "experiment: [1]"),
]


def test_a_damaged_run_is_named_and_does_not_hide_the_others(tmp_path, capsys):
    good = made(tmp_path / "good")
    for number, (file, text) in enumerate(DAMAGES):
        bad = made(tmp_path / f"bad{number:02}")
        (bad / file).write_bytes(text.encode("latin-1"))
        assert main([str(good), str(bad)]) == 2
        error = capsys.readouterr().err
        assert f"{bad / file} is damaged" in error, (file, text)
        assert error.count("\n") == 1
    (tmp_path / "sweep").mkdir()
    write_text(tmp_path / "sweep" / "sweep.json", "{")
    shutil.copytree(made(tmp_path / "nofigure", "nie2018/figure5"), tmp_path / "nofigure2")
    (tmp_path / "nofigure" / "figure.png").unlink()
    (tmp_path / "nofigure2" / "figure.png").write_bytes(b"no picture")
    read = Page(reported(capsys, tmp_path)).check()
    behind = read.text[read.text.index("Folders that could not be read") :]
    for number, (file, _) in enumerate(DAMAGES):
        assert f"bad{number:02}/{file} is damaged" in behind
    assert "sweep/sweep.json is damaged: start the sweep again" in behind
    assert "missing or damaged" in read.text
    assert "Reproduction report: Nie et al. 2018" in read.text
    assert len(read.all("img", "src")) == 1


def test_a_page_is_drawn_without_what_is_damaged_and_says_so(vis_run):
    folder = vis_run(*SMALL).folder
    assert "run.log" in Page(folder / "index.html").all("a", "href"), "its first line comes after the page"
    write_json(folder / "status.json", {"state": "done", "seconds": "abc"})
    write_text(folder / "claims.json", "[{}]")
    ran = vis_run("--redraw", str(folder))
    assert ran.code == 0, ran.err
    assert "status.json is damaged: start the run again" in Page(folder / "index.html").text
    assert json.loads((folder / "claims.json").read_text(encoding="utf-8")) == []


def test_rows_with_other_keys_stand_in_their_columns():
    rows = [{"job": 0, "error": "none"}, {"job": 1, "r": "0.123456", "error": "some"}]
    html = TEMPLATES.get_template("parts.html").module.rows_table(rows, "Jobs")  # type: ignore[attr-defined]  # its macros
    assert re.findall(r"<th scope=col>(.*?)</th>", html) == ["job", "error", "r"]
    assert re.findall(r"<td>(.*?)</td>", html) == ["0", "none", "", "1", "some", "0.1235"]


def test_two_runs_side_by_side(tmp_path, capsys):
    first = made(tmp_path / "a", claims=[claim("gbp"), claim("saliency")])
    other = [claim("gbp", "fails", "0.1 (n = 2)"), claim("new")]
    second = made(tmp_path / "b", claims=other, experiment={"models": {"cnn": {"stride": 1}}}, preset="small")
    page = reported(capsys, first, second)
    assert page.parent == tmp_path
    read = Page(page).check()
    assert "experiment.models.cnn.stride 2 1" in read.text
    assert "preset paper small" in read.text
    assert "Claims, 1 of 3 with another verdict" in read.text
    assert "holds reproduction 0.776 ± 0.018 (n = 8)" in read.text
    assert "fails reproduction 0.1 (n = 2)" in read.text
    assert len(read.all("img", "src")) == 2
    third = made(tmp_path / "c", claims=[claim("gbp", "fails", "0.2 (n = 2)")], preset="tiny")
    read = Page(reported(capsys, first, second, third)).check()
    assert "preset paper small tiny" in read.text
    assert "fails reproduction 0.2 (n = 2)" in read.text
    assert len(read.all("img", "src")) == 3
    same = Page(reported(capsys, first, "--config-dir", tmp_path, first)).check()
    assert "What differs nothing" in same.text


def test_mistakes_of_the_command(tmp_path, capsys, monkeypatch):
    done, running = made(tmp_path / "done"), made(tmp_path / "running", state="running")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep").mkdir()
    begin(tmp_path / "sweep", [["seed=1"], ["seed=2"]], [], "vis-run -m seed=1,2")
    for words, message in {
        (tmp_path / "nowhere",): "there is no folder",
        (tmp_path / "empty",): "there are no runs in",
        (done,): "is a run",
        (done, running): "is not finished: go on with vis-run --resume",
        (done, tmp_path / "empty"): "is not the folder of a run",
        (done, tmp_path / "nowhere"): f"there is no folder {tmp_path / 'nowhere'}",
        (tmp_path / "sweep",): "is a sweep, its page is index.html",
        (tmp_path / "sweep", done): "is a sweep, its page is index.html: give two of its jobs",
        (done,) * 7: "7 folders: give one that holds runs, or two to six runs",
        ("--all",): "unrecognized arguments: --all (see vis-report --help)",
        ("--config", tmp_path): "unrecognized arguments: --config",
        ("--config-dir", "nowhere"): "argument --config-dir: there is no folder 'nowhere'",
        ("--config-dir",): "argument --config-dir: expected one argument",
        ("--config-dir=",): "argument --config-dir: there is no folder ''",
    }.items():
        assert main([str(word) for word in words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vis-report: ")
        assert message in error
        assert error.count("\n") == 1
    assert not list((tmp_path / "sweep").glob("report*"))
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out.startswith("vis-report - what has been reproduced")

    def refused(path, text):
        raise PermissionError(errno.EACCES, "Permission denied", str(path.with_name(f".{path.name}.7.tmp")))

    monkeypatch.setattr("vis.reports.html.write_text", refused)
    for words in ([tmp_path], [done, done]):
        assert main([str(word) for word in words]) == 2
        assert capsys.readouterr().err == f"vis-report: cannot read or write in {tmp_path}: Permission denied\n"


def test_the_ledger_has_both_verdicts_of_a_sentence_from_the_runs_that_count(tmp_path):
    here = {"kind": "replication", "differences": ["SqueezeNet 1.1 instead of VGG-16"]}
    full = [
        claim("N-1-a", "holds", "0 (n = 1)"),
        claim("N-2.2-a", "fails", "0.2 ± 0.1", **here),
        claim("own", kind="finding"),
    ]
    made(tmp_path / "full", day=19, claims=full)
    small = [claim("N-2.2-a", "holds", "0.9", **here), claim("N-1-b", "not measured", "no weights; here 3")]
    made(tmp_path / "small", name="nie2018/figure2", day=21, preset="small", claims=small)
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "ledger.md").read_text(encoding="utf-8")
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "| nie2018/figure4 |" in rows["N-1-a"]
    assert "| **holds**: 0 (n = 1) |  |" in rows["N-1-a"]
    assert "**fails**: 0.2 ± 0.1 [SqueezeNet 1.1 instead of VGG-16]" in rows["N-2.2-a"], (
        "full sizes count before small ones"
    )
    assert "not measured: no weights |" in rows["N-1-b"]
    assert "not checkable: " in rows["N-D-c"]
    assert "100 sentences. Reproduction: 1 hold, 1 not measured. Replication: 1 fail. Not checkable: 4." in page
    assert "own" not in rows


def test_findings_of_two_items_with_one_id_both_count(tmp_path):
    for network, verdict in (("vgg16", "fails"), ("cifar_resnet20", "holds")):
        made(
            tmp_path / network,
            name=f"sixt2020/{network}",
            claims=[claim("S2_gbp", verdict, kind="finding"), claim("S1")],
        )
    assert main([str(tmp_path)]) == 0
    page = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert [page.count(f"| sixt2020/{network} | finding |") for network in ("vgg16", "cifar_resnet20")] == [1, 1]
    assert page.count("| the paper's setting |") == 1  # a sentence of a paper has one verdict
