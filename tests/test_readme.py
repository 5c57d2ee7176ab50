"""What the documents tell people to type is what the command line accepts, and what they link to exists."""

import re
import shlex
from pathlib import Path

import pytest

from elastic import cli

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("clusters/*.md")]

BLOCK = re.compile(r"^```[a-z]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?:^|&& |\$ )elastic ([a-z].*?)\s*(?:#.*|&|'|$)")
INLINE = re.compile(r"`elastic ([a-z][^`]*)`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def commands(document: Path) -> list[str]:
    """Everything after `elastic` in code blocks and inline code, without comments; placeholders are left out."""
    text = document.read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    found = [match[1] for line in lines for match in COMMAND.finditer(line)]
    return [words for words in found + INLINE.findall(text) if not re.search(r"[A-Z]{2,}|\.\.\.|\|", words)]


def cases() -> list[tuple[str, str]]:
    found = [(document.relative_to(ROOT).as_posix(), words) for document in DOCUMENTS for words in commands(document)]
    return list(dict.fromkeys(found + [("elastic --help", verb.example.partition(" ")[2]) for verb in cli.VERBS]))


def test_the_tour_is_found_at_all():
    assert len(commands(ROOT / "README.md")) >= 8


@pytest.mark.parametrize(("where", "words"), cases())
def test_a_command_in_the_documents_is_accepted(where: str, words: str):
    name, *flags = shlex.split(words)
    verbs = {verb.name: verb for verb in cli.VERBS}
    assert name in verbs, where
    if flags:
        verbs[name].parse(flags)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_between_documents_lead_somewhere(document: Path):
    links = LINK.findall(document.read_text(encoding="utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


def test_every_file_that_the_list_of_papers_names_exists():
    text = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_/]+\.py)`", text))
    assert len(named) > 10
    assert not [name for name in named if not (ROOT / name).exists() and not (ROOT / "elastic" / name).exists()]
