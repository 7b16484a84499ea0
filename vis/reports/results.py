"""results.md: what of each paper holds, fails or is undecided, on which network, with its best pictures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from vis.config.options import load_option
from vis.reports.items import Item, Section, opening
from vis.reports.ledger import Judged
from vis.store.stored import ClaimRecord
from vis.store.tables import markdown_text

HEAD = """# Results

What was measured of each paper, made by `vis-report` from stored runs. A *reproduction* is measured at the paper's setting.
A *replication* is the same sentence measured on another network or other data, which the last column names. A *finding* is a
sentence of this project. Verdicts follow rules that were fixed before the measurement ([guide.md](guide.md#verdicts)). Every
sentence of a paper stands with its numbers in [ledger.md](ledger.md).
"""
TITLES = {"holds": "Holds", "fails": "Fails", "undecided": "Undecided"}
_WIDTH = 1000  # pixels of a picture at most


def results_page(
    sections: Sequence[Section], judged: Mapping[tuple[str, str], Judged], files: Mapping[str, Path], folder: Path
) -> str:
    """Return the page in Markdown, and write its pictures to `folder/results/`.

    judged: the claims that count (`vis.reports.ledger.judged_claims`). files: the experiments' configs. A paper's pictures
    are those that its collection names under `pictures`: items, or ITEM:FIGURE for another one than an item's first.
    """
    text = [HEAD]
    for section in sections:
        paper = next((item.name.partition("/")[0] for item in section.items if "/" in item.name), "")
        if f"{paper}/all" not in files:
            continue
        claims = [(item, claim) for item, claim in judged.values() if item.name.partition("/")[0] == paper]
        counts = Counter((claim.kind, claim.verdict) for _, claim in claims)
        text += [f"## {section.title}\n", f"{opening(counts)}\n"]
        items = {item.name: item for item in section.items}
        for entry in load_option(files[f"{paper}/all"]).experiment.get("pictures", []):
            name, _, figure = str(entry).partition(":")
            text += _picture(items[name], figure, folder) if name in items else []
        for verdict, title in TITLES.items():
            rows = [_row(item, claim) for item, claim in claims if claim.verdict == verdict]
            text += [f"### {title}: {len(rows)}\n", markdown_text(rows)] if rows else []
    return "\n".join(text).replace("<", "\\<")


def _picture(item: Item, figure: str, folder: Path) -> list[str]:
    """Write a smaller copy of an item's figure; return it in Markdown, with the title and the command."""
    item = next((each for each in (item, *item.others) if _may_be_shown(each)), item)
    figure = figure or next(iter(item.stored.figures), "")
    if not _may_be_shown(item) or not (source := (item.folder or folder) / f"{figure}.png").is_file():
        return []
    (folder / "results").mkdir(exist_ok=True)
    name = f"{item.name.replace('/', '_')}_{figure}.jpg".replace("_figure.jpg", ".jpg")
    with Image.open(source) as image:
        small = image.convert("RGB")
    small.thumbnail((_WIDTH, 4 * _WIDTH))
    small.save(folder / "results" / name, "JPEG", quality=85, optimize=True)
    return [f"![{item.title}](results/{name})\n", f"*{item.title}.* `vis-run experiment={item.name}`\n"]


def _may_be_shown(item: Item) -> bool:
    """Return True for a finished run on images that the project may publish: bundled photographs, digits, or none."""
    if item.state != "done" or item.config.get("image"):
        return False
    data = item.config.get("dataset") or {}
    data = data.get("photographs", data) or {}  # those that a composed dataset is made of
    target = "" if isinstance(data, str) else str(data.get("_target_", "samples"))
    return target.rpartition(".")[2] in ("samples", "digits", "stacked_digits", "mnist")


def _row(item: Item, claim: ClaimRecord) -> dict[str, str]:
    measured = claim.measured if len(claim.measured) < 240 else f"{claim.measured[:230].rpartition(' ')[0]} ..."
    where = {"reproduction": "the paper's setting", "finding": "finding"}.get(claim.kind, "; ".join(claim.differences))
    source = f" ({claim.source})" if claim.source else ""
    return {"sentence": claim.sentence + source, "measured": measured, "item": item.name, "where": where}
