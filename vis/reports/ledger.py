"""The ledger page: every checkable sentence of the papers, the item that judges it, and its verdicts over all runs."""

from collections import Counter
from collections.abc import Iterable

from vis.claims import VERDICTS, ledger
from vis.reports.items import Item
from vis.store.stored import ClaimRecord
from vis.store.tables import markdown_text

HEAD = """# Ledger

Every checkable sentence of the papers, made by `vis-report` from stored runs. A *reproduction* is measured at the paper's
setting: its network, weights, data, sizes and parameters. A *replication* is the same sentence measured on something else, in
brackets. The two are counted apart. Where several runs judge a sentence, one at full sizes counts before one at
reduced sizes, then the newest.
"""

Judged = tuple[Item, ClaimRecord]


def judged_claims(items: Iterable[Item]) -> dict[tuple[str, str], Judged]:
    """Return the item and the claim that count for each (id, kind): the run of the highest rank that measured it.

    A finding belongs to its item: another item may have one with the same id, on another network.
    """
    judged: dict[tuple[str, str], Judged] = {}
    for item in sorted((i for i in items if i.state == "done"), key=lambda i: i.rank):
        for claim in item.claims:
            key = f"{item.name}: {claim.id}" if claim.kind == "finding" else claim.id, claim.kind
            if claim.verdict != "not measured" or key not in judged:
                judged[key] = item, claim
    return judged


def ledger_page(judged: dict[tuple[str, str], Judged]) -> str:
    """Return the page in Markdown, from what `judged_claims` returns."""
    text = [HEAD]
    papers: dict[str, list[str]] = {}
    for id_, row in ledger().items():
        papers.setdefault(row["paper"], []).append(id_)
    for paper, ids in papers.items():
        text += [f"## {paper}\n", f"{_counts(ids, judged)}\n", markdown_text([_row(id_, judged) for id_ in ids])]
    return "\n".join(text).replace("<", "\\<")


def _row(id_: str, judged: dict[tuple[str, str], Judged]) -> dict[str, str]:
    row = ledger()[id_]
    found = {kind: judged.get((id_, kind)) for kind in ("reproduction", "replication")}
    item, claim = next((each for each in found.values() if each), (None, None))
    where = {"id": id_, "sentence": f"{row['sentence']} ({row['where']})", "item": item.name if item else ""}
    where["measured as"] = (
        claim.metric if claim else f"not checkable: {row['not_checkable']}" if "not_checkable" in row else ""
    )
    return where | {kind: _verdict(each[1]) if each else "" for kind, each in found.items()}


def _verdict(claim: ClaimRecord) -> str:
    if claim.verdict == "not measured":
        return f"not measured: {claim.measured.partition('; here')[0]}"
    elsewhere = f" [{'; '.join(claim.differences)}]" if claim.differences else ""
    return f"**{claim.verdict}**: {claim.measured}{elsewhere}"


def _counts(ids: list[str], judged: dict[tuple[str, str], Judged]) -> str:
    """How many sentences have each verdict, reproductions and replications apart."""
    parts, plural = [], {"holds": "hold", "fails": "fail"}
    for kind in ("reproduction", "replication"):
        count = Counter(judged[id_, kind][1].verdict for id_ in ids if (id_, kind) in judged)
        counts = [f"{count[v]} {plural.get(v, v)}" for v in VERDICTS if count[v]]
        parts.append(f"{kind.capitalize()}: {', '.join(counts) or 'none'}")
    not_checkable = sum("not_checkable" in ledger()[id_] for id_ in ids)
    return ". ".join([f"{len(ids)} sentences", *parts, f"Not checkable: {not_checkable}"]) + "."
