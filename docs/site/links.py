"""Checks a built site: `python docs/site/links.py build/docs`.

Every link leads to a file of the site, and every anchor to an element of its page; nothing is
loaded from elsewhere. Links to other sites are not followed, so that the check needs no network.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads by itself, as opposed to what a reader may click on.
LOADS = {"script", "img", "iframe", "link", "source", "video", "audio"}


class Page(HTMLParser):
    """The links and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors = {"", "top"}
        self.links: list[tuple[str, str]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element links to, and how it can be linked to."""
        found = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := found.get(name))}
        self.links += [(tag, value) for name in ("href", "src") if (value := found.get(name))]


def problems(root: Path) -> Iterator[str]:
    """What is wrong, a line for each."""
    pages = {path.resolve(): Page(path) for path in sorted(root.rglob("*.html"))}
    for page in pages.values():
        here = page.path.relative_to(root)
        for tag, link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if tag in LOADS and parts.scheme != "data":
                    yield f"{here}: <{tag}> loads {link}"
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else None
            other = pages.get(target or page.path.resolve())
            if target is not None and not target.is_file():
                yield f"{here}: no file for {link}"
            elif other is not None and unquote(parts.fragment) not in other.anchors:
                yield f"{here}: no anchor for {link}"


def main() -> int:
    """Print what is wrong; 1 if anything is, or if there is no site."""
    root = Path(sys.argv[1])
    pages = len(list(root.rglob("*.html")))
    found = list(problems(root))
    print(*found, f"{pages} pages, {len(found)} broken links", sep="\n")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main())
