"""The Russian pages have the structure of the English ones: nothing is missing or left behind."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.tables import table

from .links import anchors, links, target
from .pages import DOCS, ROOT, TRANSLATED, Block, blocks_of

FENCE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
CYRILLIC = re.compile("[а-яё]", re.IGNORECASE)

PAIRS = {page: DOCS / "ru" / page.name for page in TRANSLATED}
PAIRS[ROOT / "README.md"] = ROOT / "README.ru.md"
pairs = table(("english", "russian"), PAIRS.items())


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return re.findall(r"(?m)^(#+) ", prose(page))


def tables(page: Path) -> list[int]:
    """The number of cells of each row of a table."""
    rows = re.findall(r"(?m)^\s*\|.*$", prose(page))
    return [len(re.findall(r"(?<!\\)\|", row)) - 1 for row in rows]


def code(block: Block) -> str:
    """A block without its comments, and without texts for people."""
    if block.language == "python":
        tree = ast.parse(block.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = shape(node.value)
        return ast.unparse(tree)
    lines = re.sub(r"(?m)(?<!\S)#.*$", "", block.text).splitlines()
    return "\n".join(shape(line.rstrip()) for line in lines)


def shape(text: str) -> str:
    """Whether a text is for people: such a text has a word, and is translated as a whole."""
    return "a text" if CYRILLIC.search(text) or text in TRANSLATED_TEXTS else text


def texts(page: Path) -> list[str]:
    return [
        node.value
        for block in blocks_of(page)
        if block.language == "python"
        for node in ast.walk(ast.parse(block.text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


# An English text is translated where the Russian page has another text in its place.
TRANSLATED_TEXTS = {
    ours
    for english, russian in PAIRS.items()
    if russian.exists()
    for ours, theirs in zip(texts(english), texts(russian), strict=False)
    if CYRILLIC.search(theirs)
}


@pairs
def test_a_translation_has_the_same_headings(english: Path, russian: Path) -> None:
    """As many headings, of the same levels, in the same order."""
    assert headings(russian) == headings(english)


@pairs
def test_a_translation_has_the_same_code(english: Path, russian: Path) -> None:
    """Every block of code is the same but for comments and texts, so what is tested is shown."""
    found = [(each.language, code(each)) for each in blocks_of(russian)]
    assert found == [(each.language, code(each)) for each in blocks_of(english)]


@pairs
def test_the_code_of_a_translation_is_right(english: Path, russian: Path) -> None:
    """Python in Russian compiles, and has no comment in English."""
    for block in blocks_of(russian):
        if block.language == "python":
            compile(block.source, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        for comment in re.findall(r"(?m)(?<!\S)# (.*)$", block.text):
            assert CYRILLIC.search(comment) or comment.startswith("not run"), comment


@pairs
def test_a_translation_has_the_same_links(english: Path, russian: Path) -> None:
    """Every link leads to the same place, or to its translation."""
    here = {page: dict(zip(anchors(page), anchors(PAIRS[page]), strict=True)) for page in PAIRS}

    def translated(page: Path, link: str) -> tuple[Path | str, str]:
        place, anchor = target(page, link)
        if place not in here:
            return place, anchor
        return PAIRS[place], here[place].get(anchor, anchor)

    expected = [translated(english, link) for link in links(english)]
    between = (english, russian)  # the links from one language to the other
    assert [
        target(russian, link) for link in links(russian) if target(russian, link)[0] not in between
    ] == [each for each in expected if each[0] not in between]


@pairs
def test_a_translation_has_the_same_tables(english: Path, russian: Path) -> None:
    """As many rows of tables, with as many columns."""
    assert tables(russian) == tables(english)


@pairs
def test_a_translation_has_the_same_lists(english: Path, russian: Path) -> None:
    """As many points in lists."""
    point = re.compile(r"(?m)^\s*(?:-|\d+\.) ")
    assert len(point.findall(prose(russian))) == len(point.findall(prose(english)))


@pairs
def test_a_translation_is_in_russian(english: Path, russian: Path) -> None:
    """No paragraph was left in English; a heading may be a line of the log."""
    for paragraph in re.split(r"\n\s*\n", prose(russian)):
        words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", paragraph)
        if len(re.findall(r"[A-Za-z]{3,}", words)) > 3 and not paragraph.startswith("#"):
            assert CYRILLIC.search(words), paragraph
