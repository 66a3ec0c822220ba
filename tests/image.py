"""`python -m tests.image`: what deploy/Dockerfile does, without Docker, then the health check.

Its steps run in an empty directory that stands for the root of the image: RUN as it is, COPY of
what Dockerfile.dockerignore lets through, and at the end CMD beside HEALTHCHECK. What it cannot
show: the base image, its Python version, and USER.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .guide.pages import ROOT, program
from .servers import free_port

DOCKERFILE: Final = ROOT / "deploy" / "Dockerfile"
IGNORED: Final = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()
NO_TELEGRAM: Final = """
from aiogram.client.session.aiohttp import AiohttpSession
async def accept(*_, **__): return True
AiohttpSession.make_request = accept
"""
"""Runs before the bot, in its process: Telegram accepts everything."""


def steps(dockerfile: str) -> list[tuple[str, str]]:
    """The instructions, each with its text, without comments, long lines joined."""
    lines = [line for line in dockerfile.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return re.findall(r"(?m)^(\w+) +(.+)$", joined)


def in_context(path: str, ignore: str) -> bool:
    """Whether .dockerignore includes this path of the repository in the build."""
    for rule in (line for line in ignore.splitlines() if line and not line.startswith("#")):
        assert not rule.startswith("!"), "an exception"
        parts = path.split("/") if rule.startswith("**/") else [path, path.split("/")[0]]
        if any(fnmatch.fnmatch(part, rule.removeprefix("**/")) for part in parts):
            return False
    return True


def copied(project: Path, source: str) -> Iterator[Path]:
    """The files of the project behind the source of a COPY."""
    found = project / source
    files = [found] if found.is_file() else [each for each in found.rglob("*") if each.is_file()]
    yield from (each for each in files if in_context(str(each.relative_to(project)), IGNORED))


def new_project(directory: Path) -> Path:
    """What a newcomer has: docs/webhook_bot.py, what it needs, and a copy of deploy/."""
    directory.mkdir()
    (directory / "bot.py").write_text(program("webhook_bot.py").text)
    (directory / "requirements.txt").write_text(
        f"--constraint {ROOT}/constraints.txt\nbot_ratelimit[all] @ file://{ROOT}\n"
    )
    (directory / ".env").write_text("SECRET=not-in-the-image\n")
    shutil.copytree(ROOT / "deploy", directory / "deploy")
    return directory


class Image:
    """A directory that stands for the root of an image."""

    def __init__(self, root: Path, project: Path) -> None:
        self.root = root
        self.project = project
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(root)}
        self.directory = root
        self.command: list[str] = []
        self.health: list[str] = []

    def apply(self, name: str, text: str) -> None:
        """Execute one instruction."""
        print(f"{name} {text}", flush=True)
        if name == "WORKDIR":
            self.directory = Path(self._placed(text))
            self.directory.mkdir(parents=True, exist_ok=True)
        elif name == "RUN":
            shell = ["sh", "-ec", self._placed(text)]
            subprocess.run(shell, cwd=self.directory, env=self.environment, check=True)
        elif name == "COPY" and not text.startswith("--from"):
            *sources, target = text.split()
            for file in (file for each in sources for file in copied(self.project, each)):
                place = self.directory / target / file.relative_to(self.project)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, place)
        elif name == "ENV":
            for each in text.split():
                variable, value = each.split("=", 1)
                value = self._placed(value).replace("$PATH", self.environment["PATH"])
                self.environment[variable] = value
        elif name == "HEALTHCHECK":
            self.health = json.loads(text[text.index("[") :])
        elif name == "CMD":
            self.command = json.loads(text)
        elif name not in {"FROM", "COPY", "USER", "EXPOSE"}:
            raise NotImplementedError(f"{name} in {DOCKERFILE.name}")

    def _placed(self, text: str) -> str:
        """The text with the absolute paths of the image inside of the directory."""
        return re.sub(r"(?<![\w.$])/(opt|app|src)\b", rf"{self.root}/\1", text)


def main() -> int:
    """Build, start, ask for its health, stop; return 0 if all of it worked."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        image = Image(home / "image", new_project(home / "project"))
        image.root.mkdir()
        for step in steps(DOCKERFILE.read_text()):
            image.apply(*step)
        (home / "sitecustomize.py").write_text(NO_TELEGRAM)
        return _try_out(image, {"PYTHONPATH": directory})


def _try_out(image: Image, telegram: dict[str, str]) -> int:
    files = {str(each.relative_to(image.directory)) for each in image.directory.rglob("*")}
    assert files == {"bot.py", "requirements.txt"}, files
    environment = image.environment | {
        "BOT_TOKEN": "42:IMAGE",
        "WEBHOOK_URL": "https://bot.example/webhook",
        "WEB_SERVER_HOST": "127.0.0.1",
        "WEB_SERVER_PORT": str(free_port()),
    }
    # Not from the search path of this process, but from that of the image.
    program = shutil.which(image.command[0], path=environment["PATH"])
    assert program, f"{image.command[0]} is not on the PATH of the image"
    assert Path(program).is_relative_to(image.root), "python is not that of the image"
    start, check = ([program, *words[1:]] for words in (image.command, image.health))
    healthy, deadline = False, time.monotonic() + 60
    with subprocess.Popen(start, cwd=image.directory, env=environment | telegram) as bot:
        while not healthy and time.monotonic() < deadline:
            time.sleep(0.5)
            ran = subprocess.run(check, cwd=image.directory, env=environment, capture_output=True)
            healthy = ran.returncode == 0
        bot.terminate()
    print(f"image: {'healthy' if healthy else ran.stderr.decode()}, exit status {bot.returncode}")
    return int(not healthy or bot.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
