"""Styles: sizes, fonts, colours and captions of figures; --redraw in another style."""

import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL
from matplotlib import colormaps
from PIL import Image

from vis.config.compose import compose_config
from vis.config.home import provide_experiments
from vis.errors import UserError
from vis.figures import display, style
from vis.figures.layout import PAGE_WIDTH, Panel, PanelRow, panel_grid, plot, save, styled
from vis.store.run_folder import RunFolder


@pytest.fixture(autouse=True)
def _default_style():
    yield
    style.use({})


def box(pdf):
    """The width and height of a PDF's page in millimetres."""
    (text,) = re.findall(rb"/MediaBox \[([^\]]+)\]", pdf.read_bytes())
    return [round(float(v) / 72 * 25.4, 1) for v in text.split()[2:]]


def drawn(**values):
    """The full-width plot and the panels of a style."""
    style.use({"figure": values})
    with styled():
        curves, axes = plot(PAGE_WIDTH, 2.0, ["A caption that says it."], columns=3)
        for ax in axes:
            ax.plot([0, 1], [1, 0], label="line")
            ax.set(xlabel="an axis", ylabel="another")
    panels = panel_grid(
        [PanelRow([Panel(np.zeros((8, 8, 3)), "Guided backprop", "r = 0.12")] * 6, "max")], ["Caption."]
    )
    return curves, panels


@pytest.mark.parametrize("name", ["notebook", "paper", "talk"])
def test_a_figure_has_the_width_of_its_style(name, tmp_path):
    figure = compose_config([f"figure={name}"]).figure
    for each, stem in zip(drawn(**figure), ("curves", "panels"), strict=True):
        save(each, tmp_path / stem)
        wide, high = box(tmp_path / f"{stem}.pdf")
        assert wide == pytest.approx(float(figure.width.removesuffix("mm")), abs=0.5)
        with Image.open(tmp_path / f"{stem}.png") as image:
            assert image.info["dpi"][0] == pytest.approx(figure.dpi, abs=0.1)
            assert image.width == pytest.approx(wide / 25.4 * figure.dpi, abs=3)
            assert image.height == pytest.approx(high / 25.4 * figure.dpi, abs=3)


def test_a_narrow_page_stacks_the_axes():
    curves, _ = drawn(width="85mm")
    assert len({round(ax.get_position().x0, 3) for ax in curves.axes}) == 1
    assert curves.get_size_inches()[1] > 3 * 2.0
    wide, _ = drawn(width="175mm")
    assert len({round(ax.get_position().y0, 3) for ax in wide.axes}) == 1
    two, _ = drawn(width="120mm")
    assert len(two.axes) == 3


def test_titles_get_smaller_before_their_words_are_cut():
    rows = [PanelRow([Panel(np.zeros((8, 8, 3)), "AblationCAM")] * 10)]
    for width, cut in {"175mm": False, "150mm": False, "60mm": True}.items():
        style.use({"figure": {"width": width}})
        title = panel_grid(rows, []).axes[0].title
        assert ("\n" in title.get_text()) == cut
        assert title.get_fontsize() >= 5


def test_the_text_of_a_pdf_is_text(tmp_path):
    for name, values in {"same": {}, "large": {"font": 16, "width": "300mm"}}.items():
        _, panels = drawn(**values)
        save(panels, tmp_path / name)
        pdf = (tmp_path / f"{name}.pdf").read_bytes()
        assert b"/Subtype /Type0" in pdf
        assert b"/Subtype /Type3" not in pdf
    pypdf = pytest.importorskip("pypdf")
    text = pypdf.PdfReader(tmp_path / "large.pdf").pages[0].extract_text()
    assert "Guided backprop" in " ".join(text.split())
    assert "Caption." in text


def test_without_a_caption_the_figure_is_lower_and_keeps_its_words():
    with_caption, without = drawn()[1], drawn(caption=False)[1]
    assert without.get_size_inches()[1] < with_caption.get_size_inches()[1]
    assert without.caption == with_caption.caption == "Caption."


def test_colours_are_the_styles_and_captions_name_them():
    map_ = np.linspace(-1, 1, 12, dtype=np.float32).reshape(1, 3, 4)
    assert display.scaling("overlay")[1].startswith("viridis colours from 0")
    assert np.allclose(display.heat(map_)[-1, -1], colormaps["viridis"](1.0)[:3])
    assert "red positive, blue negative" in display.scaling("diverging")[1]
    style.use({"figure": {"heat": "jet", "diverging": "PiYG"}})
    assert display.scaling("overlay")[1].startswith("jet colours from 0")
    assert np.allclose(display.heat(map_)[-1, -1], colormaps["jet"](1.0)[:3])
    assert "PiYG colours" in display.scaling("diverging")[1]
    assert compose_config(["experiment=ayyar2021/figure4", "figure=talk"]).figure.heat == "jet", "as its sentence says"


def _lab(rgb, vision):
    """The CIELAB coordinates of a colour as seen with a colour vision deficiency (Machado et al. 2009, severity 1)."""
    rgb = np.asarray(rgb, dtype=float)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(xyz @ np.clip(vision @ linear, 1e-9, 1) / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


VISIONS = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("vision", VISIONS)
def test_colour_blind_readers_tell_lines_and_signs_apart(vision):
    from matplotlib.colors import to_rgb

    seen = [_lab(to_rgb(colour), np.array(VISIONS[vision])) for colour in style.COLOURS[:7]]
    apart = min(float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[:i])
    assert apart > 15
    ends = [_lab(colormaps[style.current().diverging](v)[:3], np.array(VISIONS[vision])) for v in (0.0, 1.0)]
    assert np.linalg.norm(ends[0] - ends[1]) > 100
    lightness = [
        _lab(colormaps[style.current().heat](v)[:3], np.array(VISIONS[vision]))[0] for v in np.linspace(0, 1, 20)
    ]
    assert (np.diff(lightness) > 0).all(), "larger is lighter"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": "85"}, "figure.width=85 is not a length: 85mm"),
        ({"width": "3mm"}, "not a length from 13mm"),
        ({"font": 0}, "figure.font=0 is not from 3"),
        ({"heat": "virdis"}, "Did you mean 'viridis'"),
        ({"family": "No Such Font"}, "the font 'No Such Font' is not installed"),
        ({"scaling": "absolut"}, "no scaling 'absolut' (figure.scaling). Did you mean 'absolute'?"),
        ({"colour": "red"}, "figures have no option figure.colour"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(UserError, match=re.escape(message)):
        style.use({"figure": values})


def test_an_unusable_style_is_refused_before_the_run(vis_run, tmp_path):
    ran = vis_run(*SMALL, "figure.heat=virdis")
    assert ran.code == 2
    assert "virdis" in ran.err
    assert not list(tmp_path.glob("outputs/*/*"))
    ran = vis_run(*SMALL, "figure=papre")
    assert "there is no figure 'papre'. Did you mean 'paper'?" in ran.err


def test_redraw_restyles_and_the_run_keeps_it(vis_run):
    folder = vis_run(*SMALL, "method=[saliency,gbp]").folder
    before = json.loads((folder / "figures.json").read_text())["figure"]
    assert "Saliency map: in RGB" in before or "Maps: in RGB" in before
    maps, narrow = (folder / "maps.npz").read_bytes(), ("figure=paper", "figure.width=60mm")
    assert vis_run("--redraw", str(folder), *narrow, "experiment.scaling=absolute", "note=for the paper").code == 0
    assert box(folder / "figure.pdf")[0] == pytest.approx(60, abs=0.5)
    assert "Maps: largest absolute value" in json.loads((folder / "figures.json").read_text())["figure"]
    assert (folder / "maps.npz").read_bytes() == maps
    assert vis_run("--redraw", str(folder)).code == 0
    assert box(folder / "figure.pdf")[0] == pytest.approx(60, abs=0.5)
    config = RunFolder(folder).config()
    assert (config.figure.dpi, config.figure.width, config.experiment.scaling) == (300, "60mm", "absolute")
    assert config.note == "for the paper"
    page = (folder / "index.html").read_text()
    assert "<p class=small>note: for the paper" in page
    assert "<figcaption>" in page
    assert "Maps: largest absolute value" in re.sub('alt="[^"]*"', "", page), "the caption is no longer in the picture"
    assert vis_run("--redraw", str(folder), "figure=notebook").code == 0
    assert RunFolder(folder).config().figure.width == "175mm"

    for words, message in {
        (
            "seed=3",
        ): "seed=3: the run's results depend on seed; --redraw takes figure=, figure.<key>=, name=, note=, tags=, "
        "experiment.scaling=, experiment.clip=, experiment.rows=",
        ("experiment.scaling=absolut",): "there is no scaling 'absolut'. Did you mean 'absolute'",
        ("figure.widht=85mm",): "the run has no figure.widht. Did you mean 'figure.width'",
        ("figure=papre",): "there is no figure 'papre'",
        ("figure.dpi=high",): "figure.dpi=high is not an integer",
        ("figure.width=85",): "figure.width=85 is not a string",
        ("figure.dpi=100,200",): "--redraw takes one value",
        ("+figure.new=1",): "--redraw takes one value for a key that the run has",
        ("tags=draft",): "tags=draft is not a list",
    }.items():
        ran = vis_run("--redraw", str(folder), *words)
        assert ran.code == 2
        assert message in ran.err
    assert RunFolder(folder).config().figure.width == "175mm"
    assert vis_run("--redraw", str(folder), "figure.scaling=diverging", "experiment.scaling=method").code == 0
    assert "red positive, blue negative" in json.loads((folder / "figures.json").read_text())["figure"]


def test_a_run_from_before_styles_is_restyled(vis_run):
    folder = vis_run(*SMALL).folder
    run = RunFolder(folder)
    config = run.config()
    for key in ("figure", "name", "note", "tags"):
        del config[key]
    run.replace_config(config)
    assert vis_run("--redraw", str(folder), "figure=talk", "tags=[old]").code == 0
    assert list(run.config().tags) == ["old"]
    assert run.config().figure.font == 16


def test_a_style_of_ones_own(vis_run, tmp_path):
    (tmp_path / "own" / "figure").mkdir(parents=True)
    (tmp_path / "own" / "figure" / "mine.yaml").write_text("# Mine\ndefaults: [_base]\n\nwidth: 50mm\nheat: magma\n")
    folder = vis_run(*SMALL, "method=gradcam", "figure=mine", "--config-dir", "own").folder
    assert box(folder / "figure.pdf")[0] == pytest.approx(50, abs=0.5)
    assert "magma colours" in json.loads((folder / "figures.json").read_text())["figure"]
    assert vis_run("--redraw", str(folder), "figure=talk").code == 0
    assert RunFolder(folder).config().figure.heat == "magma"
    assert vis_run("--redraw", str(folder), "figure=mine", "--config-dir", "own").code == 0
    assert RunFolder(folder).config().figure.width == "50mm"


def test_a_sweep_is_restyled(vis_run):
    folder = vis_run("-m", *SMALL, "model.num_filters=2,4").folder
    assert vis_run("--redraw", str(folder), "figure=talk", "figure.width=200mm").code == 0
    assert box(folder / "figure.pdf")[0] == pytest.approx(200, abs=0.5)


def test_only_drawing_reads_what_redraw_may_change():
    """`compute`, `claims` and the like must not depend on the values that --redraw changes."""
    provide_experiments()
    from experiments.visualize import Visualize

    assert {*Visualize.drawn, "maps"} == set(inspect.signature(Visualize).parameters)
    for name, method in vars(Visualize).items():
        if inspect.isfunction(method) and name not in ("__init__", "draw", "_words", "_scaling"):
            assert not set(Visualize.drawn) & set(method.__code__.co_names), name


def test_the_guides_table_is_what_the_configs_say():
    text = (Path(__file__).resolve().parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `figure=(\w+)`.*?\| (\d+) mm \| (\d+) pt \| (\d+) \| (yes|no) \|$", text, flags=re.M)
    assert {name for name, *_ in rows} == {"notebook", "paper", "talk"}
    for name, *values in rows:
        figure = compose_config([f"figure={name}"]).figure
        caption = "yes" if figure.caption else "no"
        assert values == [figure.width.removesuffix("mm"), str(figure.font), str(figure.dpi), caption]


def test_the_names_of_scalings_are_those_that_figures_know():
    assert sorted(style.SCALINGS) == sorted(display.SCALINGS)
