"""The pages of the documentation, as headings, links and blocks of code, as forges show them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
    end, heading = 0, ""
    for fence in _FENCE.finditer(text):
        *_, heading = heading, *re.findall(r"(?m)^#+ (.+)$", text[end : fence.start()])
        end = fence.end()
        line = text.count("\n", 0, fence.start(3))
        yield Block(path.name, line, heading, fence[2], dedent(fence[3]))


def blocks(*languages: str, pages: list[Path] = PAGES) -> list[Block]:
    """All blocks of these pages in these languages."""
    found = [block for page in pages for block in blocks_of(page)]
    return [block for block in found if block.language in languages]


def program(name: str) -> Block:
    """A program that stands in a file of its own beside the pages."""
    return Block(name, 0, "", "python", (DOCS / name).read_text(encoding="utf-8"))


def block(page: str, heading: str, language: str = "python", number: int = 0) -> Block:
    """The block under a heading, by its number there."""
    found = blocks(language, pages=[DOCS / f"{page}.md"])
    return [each for each in found if each.heading == heading][number]


def readme_bot() -> Block:
    """The README's first block, with the handler of the second one above its catch-all handler."""
    bot, report, *_ = blocks("python", pages=[ROOT / "README.md"])
    before, catch_all = bot.text.split("@dp.message()\n", 1)
    return replace(bot, text=f"{before}{report.text}\n\n@dp.message()\n{catch_all}")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """What the page links to, in order."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page)))


def anchors(page: Path) -> list[str]:
    """How each heading of the page is linked to, in order."""
    headings = re.findall(r"(?m)^#+ (.+)$", prose(page))
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", each).strip().lower() for each in headings)
    return [re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in plain]


def target(page: Path, link: str) -> tuple[Path | str, str]:
    """The file, or the address elsewhere, that a link of this page leads to, and the anchor."""
    if "://" in link or link.startswith("mailto:"):
        return link, ""
    path, _, anchor = link.partition("#")
    return (page.parent / path).resolve() if path else page, anchor
