"""The documentation: the link check of the site, and the format of the decisions."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .servers import PATIENCE

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("html", "told"),
    [
        ('<a id="b"></a><a href="page.html#b">b</a><a href="#b">b</a>', None),
        ('<a href="https://code.example/x">elsewhere</a>', None),
        ('<a href="gone.html">gone</a>', "no file for gone.html"),
        ('<a href="page.html#gone">gone</a>', "no anchor for page.html#gone"),
        ('<a href="#gone">gone</a>', "no anchor for #gone"),
        ('<script src="https://code.example/x.js"></script>', "<script> loads https://"),
        ('<img src="//code.example/x.png">', "<img> loads //code.example"),
    ],
)
def test_a_broken_link_of_the_site_is_an_error(tmp_path: Path, html: str, told: str | None) -> None:
    """Links and anchors must be valid, and nothing is loaded from another site."""
    (tmp_path / "page.html").write_text(html, "utf-8")
    command = [sys.executable, ROOT / "docs" / "site" / "links.py", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert ran.returncode == (0 if told is None else 1)
    assert told is None or f"page.html: {told}" in ran.stdout


def test_a_site_without_pages_is_an_error(tmp_path: Path) -> None:
    """A build without pages does not pass."""
    command = [sys.executable, ROOT / "docs" / "site" / "links.py", tmp_path]
    assert subprocess.run(command, capture_output=True, timeout=PATIENCE).returncode == 1


def test_decisions_are_numbered_once_in_order_and_short() -> None:
    """Each decision can be named by its number, and is read in a minute: at most ten lines."""
    text = (ROOT / "docs" / "project" / "decisions.md").read_text("utf-8")
    entries = re.split(r"(?m)^## ", text)[1:]
    numbers = [int(entry.split(".")[0]) for entry in entries]
    assert numbers == list(range(1, len(entries) + 1))
    assert {number for number, entry in zip(numbers, entries, strict=True) if long(entry)} == set()


def long(entry: str) -> bool:
    return len(entry.strip().splitlines()) > 10


def test_the_performance_page_has_the_prose_of_its_template() -> None:
    """performance.md says what benchmarks/page.md says: an edit of one is an edit of both."""
    page = (ROOT / "docs" / "project" / "performance.md").read_text("utf-8")
    template = (ROOT / "benchmarks" / "page.md").read_text("utf-8")
    for prose in re.split(r"<!-- \w+ -->", template):
        assert prose.strip() in page
