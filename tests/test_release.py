"""`make release`: what it refuses, what it changes, and that a dry run changes nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


release = load()


def git(repository: Path, *arguments: str) -> str:
    me = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", *me, *arguments]
    return subprocess.run(
        command, cwd=repository, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with everything that a build needs, at version 0.1.0."""
    for role in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{role}_NAME", "Test")
        monkeypatch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / "bot_ratelimit").mkdir()
    (root / "bot_ratelimit/__init__.py").write_text('"""Doc."""\n\n__version__ = "0.1.0"\n')
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n- All.\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "All")
    return root


def state(repository: Path) -> tuple[str, ...]:
    commands = (("rev-parse", "HEAD"), ("tag",), ("status", "--porcelain", "--ignored"))
    return tuple(git(repository, *command) for command in commands)


def no_check(built: list[Path], scratch: Path) -> None:
    """Replaces `twine check` and the trial in an empty environment, which CI runs."""
    assert {each.suffix for each in built} == {".whl", ".gz"}


@pytest.mark.slow
def test_a_dry_run_builds_the_version_and_changes_nothing(repository: Path) -> None:
    """The build has the new version; the repository has no new commit, tag or file."""
    before, versions = state(repository), []

    def check(built: list[Path], scratch: Path) -> None:
        (wheel,) = (each for each in built if each.suffix == ".whl")
        with zipfile.ZipFile(wheel) as archive:
            versions.append(archive.read("bot_ratelimit/__init__.py").decode().split('"')[-2])
            assert f"bot_ratelimit-{versions[0]}.dist-info/METADATA" in archive.namelist()

    assert release.release(repository, "0.2.0", dry_run=True, check=check) == 0
    assert versions == ["0.2.0"]
    assert state(repository) == before


@pytest.mark.slow
def test_a_release_is_a_commit_and_a_tag(repository: Path) -> None:
    """Version and changelog are in one commit with an annotated tag; the files are in dist/."""
    assert release.release(repository, "0.2.0", dry_run=False, check=no_check) == 0
    assert release.current_version(repository) == "0.2.0"
    text = (repository / "CHANGELOG.md").read_text()
    assert "## [Unreleased]\n\n## [0.2.0] - 20" in text
    assert text.endswith("### Added\n\n- All.\n")
    assert git(repository, "describe") == "v0.2.0"
    assert git(repository, "status", "--porcelain") == ""
    changed = git(repository, "show", "--name-only", "--format=", "HEAD").split()
    assert changed == ["CHANGELOG.md", "bot_ratelimit/__init__.py"]
    assert len(list((repository / "dist").iterdir())) == 2


def test_an_entry_that_has_the_version_already_stays(repository: Path) -> None:
    """Where version and changelog are ready, the release only tags them."""
    entry = "# Changelog\n\n## [Unreleased]\n\n## [0.1.0] - 2026-11-30\n\n- All.\n"
    (repository / "CHANGELOG.md").write_text(entry)
    git(repository, "commit", "--quiet", "--all", "--message", "Ready")
    assert release.release(repository, "0.1.0", dry_run=False, check=no_check) == 0
    assert (repository / "CHANGELOG.md").read_text() == entry
    assert git(repository, "describe") == "v0.1.0"


def test_a_failed_check_ends_the_release(repository: Path) -> None:
    """If the wheel fails the check, nothing is committed or tagged."""
    before = state(repository)

    def fails(built: list[Path], scratch: Path) -> None:
        raise RuntimeError("does not work")

    with pytest.raises(RuntimeError):
        release.release(repository, "0.2.0", dry_run=False, check=fails)
    assert state(repository) == before


@pytest.mark.parametrize(
    ("version", "obstacle"),
    [
        ("0.0.9", "below the current 0.1.0"),
        ("v1", "write it as 1"),
        ("next", "expected a version such as 1.2.3"),
        ("0.3.0", "the tag v0.3.0 exists"),
    ],
)
def test_a_wrong_version_is_refused(
    version: str, obstacle: str, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the version and the fix, and nothing happens."""
    git(repository, "tag", "v0.3.0")
    before = state(repository)
    assert release.release(repository, version, dry_run=False, check=no_check) == 1
    assert obstacle in capsys.readouterr().out
    assert state(repository) == before


def test_an_unclean_repository_is_refused(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a changelog entry, or with changes that are not committed, there is no release."""
    (repository / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n\n- All.")
    assert release.release(repository, "0.2.0", dry_run=False, check=no_check) == 1
    out = capsys.readouterr().out
    assert "not committed" in out
    assert "says nothing under [Unreleased]" in out


def test_the_next_version_is_the_current_one_until_it_is_tagged() -> None:
    """Without VERSION a dry run uses the untagged version, or else the next minor one."""
    assert release.next_version("0.1.0", set()) == "0.1.0"
    assert release.next_version("0.1.0", {"v0.1.0"}) == "0.2.0"
    assert release.next_version("1.4.2", {"v1.4.2"}) == "1.5.0"
