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

from .pages import ALONE, ROOT, Block, blocks
from .stage import Stage

SHELL = [
    (block, line)
    for block in blocks("sh", "console")
    for line in block.text.splitlines()
    if block.language == "sh" or line.startswith("$ ")
]


@pytest.mark.parametrize("block", blocks("python", pages=ALONE), ids=str)
def test_a_program_runs_alone(block: Block, stage: Stage) -> None:
    """A Python block needs nothing of the blocks before it."""
    stage.run(block)


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_a_limits_file_is_right(block: Block, tmp_path: Path) -> None:
    """A TOML block is a limits file without mistakes."""
    assert tomllib.loads(block.text)
    (tmp_path / "limits.toml").write_text(block.text, encoding="utf-8")
    read_limits_file(str(tmp_path / "limits.toml"))


@pytest.mark.parametrize("block", blocks("ini"), ids=str)
def test_settings_are_right(block: Block, environment: pytest.MonkeyPatch) -> None:
    """Every line of an `.env` is a setting, and all are valid together."""
    Path(".env").write_text(block.text, encoding="utf-8")
    Settings()
    known = {name.upper() for name in (*Settings.model_fields, *BotSettings.model_fields)}
    assert set(re.findall(r"(?m)^(\w+)=", block.text)) <= known


@table("block", blocks("sh"))
def test_the_shell_understands_it(block: Block) -> None:
    """A shell block has no mistake that the shell itself would find."""
    subprocess.run(["/bin/sh", "-n"], input=block.text, text=True, check=True, timeout=10)


@table(("block", "line"), SHELL)
def test_a_command_exists(block: Block, line: str) -> None:
    """Commands of ours are given as the command takes them; others are well known."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    if not words:
        return
    if words[0] == "bot-ratelimit":
        commands: Any = typer.main.get_group(app).commands
        commands[words[1]].make_context(words[1], words[2:])
    elif words[:2] == ["pip", "install"]:
        for each in words[2:]:
            installable(each)
    else:
        known = {"export", "python", "redis-cli", "docker", "cd", "cp", "make", "cat", "curl"}
        assert words[0] in known, line


@table("block", blocks("text"))
def test_requirements_are_right(block: Block) -> None:
    """A line of a requirements file names this package, its version and extras that it has."""
    for line in block.text.splitlines():
        if line.startswith("bot_ratelimit["):
            installable(line)


def installable(text: str) -> None:
    found = Requirement(text.removeprefix("./"))  # with it, the directory of a clone
    assert found.name == "bot_ratelimit"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found.extras <= set(project["optional-dependencies"])
    assert found.url is None or found.url.startswith("git+https://git.example.org/")
    if found.specifier:
        assert found.specifier.contains(bot_ratelimit.__version__)


def test_the_command_is_there() -> None:
    """`bot-ratelimit` is installed beside Python, as docs/start.md says."""
    assert shutil.which("bot-ratelimit", path=str(Path(sys.executable).parent))
