"""Links and headings of Markdown pages, as forges show them."""

from __future__ import annotations

import re
from pathlib import Path

_FENCE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def links(page: Path) -> list[str]:
    """What the page links to, in order."""
    return _LINK.findall(re.sub(r"`[^`\n]*`", "", _prose(page)))


def anchors(page: Path) -> list[str]:
    """How each heading of the page is linked to, in order."""
    headings = re.findall(r"(?m)^#+ (.+)$", _prose(page))
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", each).strip().lower() for each in headings)
    return [re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in plain]


def target(page: Path, link: str) -> tuple[Path | str, str]:
    """The file, or the address elsewhere, that a link of this page leads to, and the anchor."""
    if "://" in link or link.startswith("mailto:"):
        return link, ""
    path, _, anchor = link.partition("#")
    return (page.parent / path).resolve() if path else page, anchor
