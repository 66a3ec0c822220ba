"""The pages of the documentation, as headings and blocks of code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
ALONE = [
    DOCS / f"{name}.md"
    for name in ("start", "limits", "refused", "counted", "recipes", "migration", "troubleshooting")
]
"""Each of their Python blocks runs alone; those of the other pages one after the other."""
TRANSLATED = [*ALONE, *(DOCS / f"{name}.md" for name in ("paying", "bans", "outgoing"))]
"""These pages are there in Russian, too, with the same names in docs/ru."""

NOT_RUN = "# not run"
"""How a Python block begins that shows other people's code, which is not installed here."""

_FENCE = re.compile(r"^([ \t]*)```(\w*)[^\n]*\n(.*?)^\1```[ \t]*$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: str
    line: int
    heading: str
    """The heading above it."""
    language: str
    text: str

    @property
    def source(self) -> str:
        """The code, with as many lines before it as it has in the page: tracebacks fit."""
        return "\n" * self.line + self.text

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> Iterator[Block]:
    """The blocks of a page, from top to bottom."""
    text = path.read_text(encoding="utf-8")
    fences = [*_FENCE.finditer(text)]
    headings = [
        found
        for found in _HEADING.finditer(text)
        if not any(fence.start() < found.start() < fence.end() for fence in fences)
    ]
    for fence in fences:
        above = [each[2] for each in headings if each.start() < fence.start()]
        yield Block(
            path.name,
            text.count("\n", 0, fence.start(3)),
            above[-1] if above else "",
            fence[2],
            dedent(fence[3]),
        )


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[Block]:
    """All blocks of these pages in these languages."""
    found = [block for page in pages for block in blocks_of(page)]
    return [block for block in found if block.language in languages]


def program(name: str) -> Block:
    """A program that stands in a file of its own beside the pages."""
    return Block(name, 0, "", "python", (DOCS / name).read_text(encoding="utf-8"))


def block(page: str, heading: str, language: str = "python", number: int = 0) -> Block:
    """The block under a heading, by its number there."""
    found = [
        each
        for each in blocks_of(DOCS / f"{page}.md")
        if (each.heading, each.language) == (heading, language)
    ]
    return found[number]
