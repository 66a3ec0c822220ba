"""The Russian pages have the structure of the English ones: nothing is missing or left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .pages import PAGES, ROOT, TRANSLATIONS, blocks_of

FENCE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
CYRILLIC = re.compile("[а-яё]", re.IGNORECASE)

PAIRS = [
    *zip(PAGES, TRANSLATIONS, strict=True),
    (ROOT / "README.md", ROOT / "README.ru.md"),
]
pairs = pytest.mark.parametrize(
    ("english", "russian"),
    [pair for pair in PAIRS if pair[1].exists()],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def headings(page: Path) -> list[str]:
    return re.findall(r"(?m)^(#+) ", prose(page))


def tables(page: Path) -> list[list[int]]:
    """For each table, the number of cells of each row."""
    found: list[list[int]] = []
    last = -2
    for number, line in enumerate(prose(page).splitlines()):
        if line.lstrip().startswith("|"):
            if number != last + 1:
                found.append([])
            found[-1].append(len(re.findall(r"(?<!\\)\|", line)) - 1)
            last = number
    return found


@pairs
def test_a_translation_has_the_same_headings(english: Path, russian: Path) -> None:
    """As many headings, of the same levels, in the same order."""
    assert headings(russian) == headings(english)


@pairs
def test_a_translation_has_the_same_code(english: Path, russian: Path) -> None:
    """Every block of code is the same, letter for letter, so what is tested is what is shown."""
    expected = [(each.language, each.text) for each in blocks_of(english)]
    assert [(each.language, each.text) for each in blocks_of(russian)] == expected


@pairs
def test_a_translation_has_the_same_tables(english: Path, russian: Path) -> None:
    """As many tables, with as many rows and columns."""
    assert tables(russian) == tables(english)


@pairs
def test_a_translation_has_the_same_lists(english: Path, russian: Path) -> None:
    """As many points in lists."""
    point = re.compile(r"(?m)^\s*(?:-|\d+\.) ")
    assert len(point.findall(prose(russian))) == len(point.findall(prose(english)))


@pairs
def test_a_translation_has_the_same_pictures(english: Path, russian: Path) -> None:
    """Every picture is there, in its place among the others."""
    picture = re.compile(r"!\[[^]]*\]\((?:\.\./)*([^)]*)\)")
    assert picture.findall(prose(russian)) == picture.findall(prose(english))


@pairs
def test_a_translation_is_in_russian(english: Path, russian: Path) -> None:
    """No paragraph was left in English; a heading may be a line of the log."""
    for paragraph in re.split(r"\n\s*\n", prose(russian)):
        words = re.sub(r"`[^`]*`|\]\([^)]*\)", "", paragraph)
        if len(re.findall(r"[A-Za-z]{3,}", words)) > 3 and not paragraph.startswith("#"):
            assert CYRILLIC.search(words), paragraph
