"""`make release`: build a version, check it, try it out, then commit and tag it.

    make release                            a dry run of the next version: no commit, no tag
    make release VERSION=1.2.3              the release itself
    make release VERSION=1.2.3 DRY_RUN=1    a dry run of this version

Everything is built from a copy of the last commit. Nothing is published from here: pushing the tag
starts .github/workflows/release.yml, which publishes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from packaging.version import InvalidVersion, Version

ROOT: Final = Path(__file__).parents[1]
VERSION_FILE: Final = Path("bot_ratelimit/__init__.py")
CHANGELOG: Final = Path("CHANGELOG.md")

_VERSION = re.compile(r'(?m)^__version__ = "(.+)"$')
_UNRELEASED = re.compile(r"(?ms)^## \[Unreleased\]\n(.*?)(?=^## \[|\Z)")

# In an empty environment and an empty directory: the wheel with what it depends on, nothing else.
TRIAL: Final = """
import asyncio, bot_ratelimit as b
limiter = b.Limiter(b.MemoryStorage())
decisions = [asyncio.run(limiter.hit("1/m", b.Subject(user=42))) for _ in range(2)]
assert [d.allowed for d in decisions] == [True, False], decisions
print("tried out:", b.__version__)
"""

Check = Callable[[list[Path], Path], None]


def main(arguments: list[str]) -> int:
    """Release, and return the exit status."""
    parser = argparse.ArgumentParser(prog="release", description="See .ci/release.py.")
    parser.add_argument("version", nargs="?", help="without one: a dry run of the next version")
    parser.add_argument("--dry-run", action="store_true", help="no commit and no tag")
    given = parser.parse_args(arguments)
    dry_run = given.dry_run or given.version is None
    version = given.version or next_version(current_version(ROOT), tags(ROOT))
    return release(ROOT, version, dry_run=dry_run)


def release(root: Path, version: str, *, dry_run: bool, check: Check | None = None) -> int:
    """Make a version of the repository, and return the exit status.

    A dry run names what a release would be refused for, and goes on.
    """
    found = obstacles(root, version)
    for obstacle in found:
        print(f"{'a release would be refused' if dry_run else 'refused'}: {obstacle}")
    if found and not dry_run:
        return 1
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "copy"
        _copy_of_the_last_commit(root, copy)
        changed = new_texts(copy, version, datetime.now(UTC).date().isoformat())
        for name, text in changed.items():
            (copy / name).write_text(text, "utf-8")
        built = build(copy, Path(directory) / "dist")
        (check or check_and_try)(built, Path(directory))
        if dry_run:
            print(f"dry run of {version}: everything but the commit and the tag v{version}")
            return 0
        for name, text in changed.items():
            (root / name).write_text(text, "utf-8")
        (root / "dist").mkdir(exist_ok=True)
        for each in built:
            (root / "dist" / each.name).write_bytes(each.read_bytes())
    commit = ("commit", "--quiet", "--allow-empty", "--message", f"Version {version}")
    _git(root, *commit, "--", *map(str, changed))
    _git(root, "tag", "--annotate", f"v{version}", "--message", f"Version {version}")
    print(f"{version} is committed, tagged, and in dist/. To publish it: git push --follow-tags")
    return 0


def current_version(root: Path) -> str:
    """The version that the package says it has."""
    found = _VERSION.search((root / VERSION_FILE).read_text("utf-8"))
    assert found, f"{VERSION_FILE} has no line __version__ = ..."
    return found[1]


def next_version(current: str, tagged: set[str]) -> str:
    """The current version until it is tagged, then the next minor one."""
    if f"v{current}" not in tagged:
        return current
    return f"{Version(current).major}.{Version(current).minor + 1}.0"


def tags(root: Path) -> set[str]:
    """The tags of the repository."""
    return set(_git(root, "tag", "--list").split())


def obstacles(root: Path, version: str) -> list[str]:
    """What stands in the way of a release, each with what to do about it."""
    current, found = current_version(root), []
    try:
        if str(Version(version)) != version:
            found.append(f"VERSION={version}: write it as {Version(version)}")
        elif Version(version) < Version(current):
            found.append(f"VERSION={version} is below the current {current}: choose a higher one")
    except InvalidVersion:
        found.append(f"VERSION={version}: expected a version such as 1.2.3")
    if f"v{version}" in tags(root):
        found.append(f"the tag v{version} exists: choose a higher version")
    if _git(root, "status", "--porcelain").strip():
        found.append("there are changes that are not committed: commit them or put them away")
    changelog = (root / CHANGELOG).read_text("utf-8")
    unreleased = _UNRELEASED.search(changelog)
    if f"## [{version}]" not in changelog and not (unreleased and unreleased[1].strip()):
        found.append(f"{CHANGELOG} says nothing under [Unreleased]: say what has changed")
    return found


def new_texts(root: Path, version: str, date: str) -> dict[Path, str]:
    """The files that a release changes: the version, and the heading in the changelog."""
    source = (root / VERSION_FILE).read_text("utf-8")
    changelog = (root / CHANGELOG).read_text("utf-8")
    if f"## [{version}]" not in changelog:  # else its entry has been written already
        heading = f"## [Unreleased]\n\n## [{version}] - {date}\n"
        changelog = changelog.replace("## [Unreleased]\n", heading, 1)
    return {
        VERSION_FILE: _VERSION.sub(f'__version__ = "{version}"', source),
        CHANGELOG: changelog,
    }


def build(source: Path, target: Path) -> list[Path]:
    """The sdist, and the wheel."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(target)]
    subprocess.run(command, cwd=source, check=True)
    return sorted(target.iterdir())


def check_and_try(built: list[Path], scratch: Path) -> None:
    """`twine check`, then the wheel in an empty environment."""
    files = [str(each) for each in built]
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    (wheel,) = (each for each in built if each.suffix == ".whl")
    environment, empty = scratch / "environment", scratch / "empty"
    empty.mkdir()
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--prefer-binary", wheel], check=True)
    subprocess.run([python, "-W", "error", "-I", "-c", TRIAL], cwd=empty, check=True)


def _copy_of_the_last_commit(root: Path, target: Path) -> None:
    target.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=root, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=target, input=archive.stdout, check=True)


def _git(root: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
