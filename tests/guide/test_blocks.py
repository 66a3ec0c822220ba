"""Every block of the documentation works as it is written."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer.main
from packaging.requirements import Requirement

import bot_ratelimit
from bot_ratelimit import Settings
from bot_ratelimit.admin.cli import app
from bot_ratelimit.config.limits_file import read_limits_file
from example_bot.settings import BotSettings
from tests.tables import table

from .pages import ALONE, PAGES, ROOT, Block, blocks
from .stage import Stage

KNOWN = {"export", "python", "redis-cli", "docker", "cd", "cp", "make", "cat", "curl"}


PROGRAMS = [[block] for block in blocks("python", pages=ALONE)]
for path in sorted({*ROOT.glob("*.md"), *PAGES} - {*ALONE}):
    PROGRAMS += filter(None, [blocks("python", pages=[path])])


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: str(program[0]))
def test_the_code_in_the_documents_works(program: list[Block], stage: Stage) -> None:
    """Code that is copied runs: blocks of a page one after the other, of some pages each alone."""
    stage.run_all(program)


def test_the_readme_shows_a_bot() -> None:
    """It has under 150 lines; a complete bot of at most 15 lines of code is before line 30."""
    for name in ("README.md", "README.ru.md"):
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) < 150
    bot, *_ = blocks("python", pages=[ROOT / "README.md"])
    assert len([line for line in bot.text.splitlines() if line.strip()]) <= 15
    assert len(bot.source.splitlines()) < 30
    assert "RateLimitMiddleware" in bot.text


def test_limits_files_and_settings_are_right(environment: pytest.MonkeyPatch) -> None:
    """A TOML block is a limits file without mistakes; each line of an `.env` is a setting."""
    for block in blocks("toml"):
        assert tomllib.loads(block.text), block
        Path("limits.toml").write_text(block.text, encoding="utf-8")
        read_limits_file("limits.toml")
    known = {name.upper() for name in (*Settings.model_fields, *BotSettings.model_fields)}
    for block in blocks("ini"):
        Path(".env").write_text(block.text, encoding="utf-8")
        Settings()
        assert set(re.findall(r"(?m)^(\w+)=", block.text)) <= known, block


@table("block", blocks("sh", "console", "text"))
def test_commands_are_right(block: Block) -> None:
    """The shell understands them, ours are given as they are; others are well known."""
    lines = block.text.splitlines()
    if block.language == "text":  # also the lines of a requirements file
        lines = [f"$ pip install '{line}'" for line in lines if line.startswith("bot_ratelimit[")]
    if block.language == "sh":
        subprocess.run(["/bin/sh", "-n"], input=block.text, text=True, check=True, timeout=10)
        lines = [f"$ {line}" for line in lines]
    for line in lines:
        words = shlex.split(line, comments=True)[1:] if line.startswith("$ ") else []
        if words[:1] == ["bot-ratelimit"]:
            commands: Any = typer.main.get_group(app).commands
            commands[words[1]].make_context(words[1], words[2:])
        elif words[:2] == ["pip", "install"]:
            for each in words[2:]:
                assert_installable(each)
        else:
            assert {*words[:1]} <= KNOWN, line


def assert_installable(text: str) -> None:
    """It names this package, its version and extras that it has."""
    found = Requirement(text.removeprefix("./"))  # with it, the directory of a clone
    assert found.name == "bot_ratelimit"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found.extras <= set(project["optional-dependencies"])
    assert found.url is None or found.url.startswith("git+https://git.example.org/")
    assert not found.specifier or found.specifier.contains(bot_ratelimit.__version__)


def test_the_command_is_there() -> None:
    """`bot-ratelimit` is installed beside Python, as docs/start.md says."""
    assert shutil.which("bot-ratelimit", path=str(Path(sys.executable).parent))
