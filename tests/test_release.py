"""`make release`: what it refuses, what it changes, and that a dry run changes nothing."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


SPEC = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
assert SPEC
assert SPEC.loader
release = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(release)


def git(repository: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.check_output(command, cwd=repository, text=True).strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with everything that a build needs, at version 0.1.0."""
    for name in ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL"):
        monkeypatch.setenv(f"GIT_{name}", "test@example.org")
    root = tmp_path / "repository"
    (root / "bot_ratelimit").mkdir(parents=True)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    (root / "bot_ratelimit/__init__.py").write_text('"""Doc."""\n\n__version__ = "0.1.0"\n')
    (root / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n- All.\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message", "All")
    return root


def state(root: Path) -> list[str]:
    commands = ("rev-parse HEAD", "tag", "status --porcelain --ignored")
    return [git(root, *command.split()) for command in commands]


def no_check(built: list[Path], scratch: Path) -> None:
    """In place of `twine check` and the trial in an empty environment, which CI runs."""
    assert {each.suffix for each in built} == {".whl", ".gz"}


@pytest.mark.slow
def test_a_dry_run_builds_the_version_and_changes_nothing(repository: Path) -> None:
    """The build has the new version; the repository has no new commit, tag or file.

    Nor has it one if the wheel fails the check.
    """
    before, versions = state(repository), []

    def fails(built: list[Path], scratch: Path) -> None:
        (wheel,) = (each for each in built if each.suffix == ".whl")
        with zipfile.ZipFile(wheel) as archive:
            versions.append(archive.read("bot_ratelimit/__init__.py").decode().split('"')[-2])
            assert "bot_ratelimit-0.2.0.dist-info/METADATA" in archive.namelist()
        raise RuntimeError("does not work")

    assert release.release(repository, "0.2.0", dry_run=True, check=no_check) == 0
    with pytest.raises(RuntimeError):
        release.release(repository, "0.2.0", dry_run=False, check=fails)
    assert versions == ["0.2.0"]
    assert state(repository) == before


@pytest.mark.slow
def test_a_release_is_a_commit_and_a_tag(repository: Path) -> None:
    """Version and changelog are in one commit with an annotated tag; the files are in dist/.

    Where version and changelog are ready, the release only tags them.
    """
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
    git(repository, "tag", "--delete", "v0.2.0")
    assert release.release(repository, "0.2.0", dry_run=False, check=no_check) == 0
    assert (repository / "CHANGELOG.md").read_text() == text
    assert git(repository, "describe") == "v0.2.0"


def test_what_is_refused(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error names the version, or what is not ready, and the fix; nothing happens.

    Without VERSION a dry run uses the untagged version, or else the next minor one.
    """
    assert release.next_version("1.4.2", set()) == "1.4.2"
    assert release.next_version("1.4.2", {"v1.4.2"}) == "1.5.0"
    git(repository, "tag", "v0.3.0")

    def refused(version: str) -> str:
        before = state(repository)
        assert release.release(repository, version, dry_run=False, check=no_check) == 1
        assert state(repository) == before
        return capsys.readouterr().out

    assert "below the current 0.1.0" in refused("0.0.9")
    assert "write it as 1" in refused("v1")
    assert "expected a version such as 1.2.3" in refused("next")
    assert "the tag v0.3.0 exists" in refused("0.3.0")
    (repository / "CHANGELOG.md").write_text("## [Unreleased]\n\n## [0.1.0] - 2026-01-01\n\n- All.")
    told = refused("0.2.0")
    assert "not committed" in told
    assert "says nothing under [Unreleased]" in told
