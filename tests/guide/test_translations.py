"""The Russian pages have the structure of the English ones: nothing is missing or left behind."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.tables import table

from .pages import DOCS, ROOT, TRANSLATED, Block, anchors, blocks_of, links, prose, target

CYRILLIC = re.compile("[а-яё]", re.IGNORECASE)
PAIRS = {page: DOCS / "ru" / page.name for page in TRANSLATED}
PAIRS[ROOT / "README.md"] = ROOT / "README.ru.md"
pairs = table(("english", "russian"), PAIRS.items())


def texts(tree: ast.AST) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node


def texts_of(page: Path) -> list[str]:
    programs = [block.text for block in blocks_of(page) if block.language == "python"]
    return [str(node.value) for program in programs for node in texts(ast.parse(program))]


# An English text is translated where the Russian page has another text in its place.
TRANSLATED_TEXTS = {
    ours
    for pair in PAIRS.items()
    for ours, theirs in zip(*map(texts_of, pair), strict=False)
    if CYRILLIC.search(theirs)
}


def code(block: Block) -> tuple[str, str]:
    """The language, and the block without its comments and without texts for people."""

    def shape(text: str) -> str:
        return "a text" if CYRILLIC.search(text) or text in TRANSLATED_TEXTS else text

    if block.language == "python":
        tree = ast.parse(block.text)
        for node in texts(tree):
            node.value = shape(str(node.value))
        return block.language, ast.unparse(tree)
    lines = re.sub(r"(?m)(?<!\S)#.*$", "", block.text).splitlines()
    return block.language, "\n".join(shape(line.rstrip()) for line in lines)


def structure(page: Path) -> list[str]:
    """The beginnings of headings and points of lists, and the cells of tables."""
    lines = re.findall(r"(?m)^#+ |^\s*(?:-|\d+\.) |^\s*\|.*$", prose(page))
    return [re.sub(r"\\\||[^|]", "", line) or line.strip() for line in lines]


@pairs
def test_a_translation_has_the_same_structure(english: Path, russian: Path) -> None:
    """As many headings, rows and columns of tables, and points of lists; no English paragraph.

    A heading may be a line of the log.
    """
    assert structure(russian) == structure(english)
    for paragraph in re.split(r"\n\s*\n", prose(russian)):
        words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", paragraph)
        if len(re.findall(r"[A-Za-z]{3,}", words)) > 3 and not paragraph.startswith("#"):
            assert CYRILLIC.search(words), paragraph


@pairs
def test_a_translation_has_the_same_code(english: Path, russian: Path) -> None:
    """Every block is the same but for comments and texts, which are in Russian."""
    assert [*map(code, blocks_of(russian))] == [*map(code, blocks_of(english))]
    for block in blocks_of(russian):
        if block.language == "python":
            compile(block.source, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for comment in re.findall(r"(?m)(?<!\S)# (.*)$", block.text):
            assert CYRILLIC.search(comment) or comment.startswith("not run"), comment


@pairs
def test_a_translation_has_the_same_links(english: Path, russian: Path) -> None:
    """Every link leads to the same place, or to its translation."""
    here = {page: dict(zip(anchors(page), anchors(PAIRS[page]), strict=True)) for page in PAIRS}
    found = [target(russian, link) for link in links(russian)]
    expected = [
        (PAIRS.get(place, place), here.get(place, {}).get(anchor, anchor))
        for place, anchor in (target(english, link) for link in links(english))
    ]
    between = (english, russian)  # the links from one language to the other
    assert [each for each in found if each[0] not in between] == [
        each for each in expected if each[0] not in between
    ]
