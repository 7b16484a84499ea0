"""The ledgers: quotes are verbatim, and each sentence is judged by one claim or says why it cannot be."""

import re
import unicodedata

import pytest
import yaml

from vis.config.home import CONF, HOME

LEDGERS = {file.parent.name: yaml.safe_load(file.read_text()) for file in HOME.glob("experiments/*/ledger.yaml")}


def letters(text: str) -> str:
    """Letters and digits alone: line breaks, hyphenation, punctuation and case do not count."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


@pytest.mark.parametrize("paper", LEDGERS)
def test_an_entry_says_what_where_and_of_which_network(paper):
    for id_, row in LEDGERS[paper].items():
        assert {"where", "scope"} < row.keys() <= {"quote", "statement", "where", "scope", "not_checkable"}, id_
        assert ("quote" in row) != ("statement" in row), id_


@pytest.mark.parametrize("paper", LEDGERS)
def test_quotes_are_verbatim(paper, shared):
    if paper == "rao2022":
        pytest.skip("its quotes come from arXiv 2205.10435, whose text is not among the stored papers")
    papers = sorted((shared / "papers").glob(f"{paper}*.txt")) or sorted((shared / "specs").glob("*.md"))
    text = letters("".join(file.read_text() for file in papers))  # specifications quote papers that cannot be had whole
    pieces = {
        (id_, piece)
        for id_, row in LEDGERS[paper].items()
        for piece in re.split(r"\.\.\.|…|\[[^\]]*\]", row.get("quote", ""))
    }
    assert [each for each in pieces if letters(each[1]) not in text] == []


@pytest.mark.parametrize("paper", LEDGERS)
def test_each_sentence_is_judged_once_or_says_why_it_is_not(paper):
    wrong: dict[str, int] = {}
    files = [*(HOME / "experiments" / paper).glob("*.py"), *(CONF / "experiment" / paper).glob("*.yaml")]
    texts = [file.read_text() for file in files]
    for id_, row in LEDGERS[paper].items():
        judges = sum(bool(re.search(rf"(?<![\w.-]){re.escape(id_)}(?![\w'-]|\.\w)", text)) for text in texts)
        wrong |= {id_: judges} if judges != ("not_checkable" not in row) else {}
    assert wrong == {}
