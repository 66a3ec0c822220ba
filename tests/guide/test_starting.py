"""A bot of the README or the guide that cannot start says why in one line, without a traceback."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiogram.exceptions import TelegramUnauthorizedError
from aiogram.methods import GetMe, SetWebhook
from aiogram.utils.token import TokenValidationError, validate_token

from .pages import DOCS, ROOT, Block, block, blocks_of
from .stage import Stage

README_BOT = next(blocks_of(ROOT / "README.md"))
FIRST_BOT = block("guide", "The first bot")
WEBHOOK_BOT = block("guide", "A webhook, three instances and a proxy")


def start(program: Block, directory: Path, **variables: str) -> str:
    """Run a program in a process of its own, which has to fail; return what it prints."""
    inherited = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, "-c", program.text],
        env={**inherited, **variables},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1, ran.stderr
    assert "Traceback" not in ran.stderr
    return ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("program", [README_BOT, FIRST_BOT, WEBHOOK_BOT], ids=str)
@pytest.mark.parametrize("token", ["", "not a token"])
def test_a_missing_or_malformed_token(program: Block, token: str, tmp_path: Path) -> None:
    """The last line names BOT_TOKEN, whether it is not set or has a wrong value."""
    url = "https://bot.example/webhook"
    told = start(program, tmp_path, WEBHOOK_URL=url, **({"BOT_TOKEN": token} if token else {}))
    assert re.fullmatch("BOT_TOKEN is (not set|.*malformed: copy the token from @BotFather)", told)


def test_no_address_for_the_webhook(tmp_path: Path) -> None:
    """A webhook needs its address, and the variable is named."""
    assert start(WEBHOOK_BOT, tmp_path, BOT_TOKEN="42:TEST") == "WEBHOOK_URL is not set"


def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    """The line names the port, and says that it is in use."""
    # Only Telegram's answers are replaced, in the process of the bot.
    no_telegram = (
        "from aiogram.client.session.aiohttp import AiohttpSession\n"
        "async def accept(*_, **__): return True\n"
        "AiohttpSession.make_request = accept\n"
    )
    program = Block("guide.md", 0, "", "python", no_telegram + WEBHOOK_BOT.text)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        told = start(
            program,
            tmp_path,
            BOT_TOKEN="42:TEST",
            WEBHOOK_URL="https://bot.example/webhook",
            WEB_SERVER_PORT=port,
        )
    assert told.startswith("The bot cannot start: ")
    assert port in told
    assert "address already in use" in told


def test_a_token_that_telegram_does_not_know(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """Neither polling nor a webhook ends in a traceback when Telegram refuses the token."""
    unknown = "Unauthorized"
    stage.errors["setWebhook"] = [TelegramUnauthorizedError(SetWebhook(url=""), unknown)]
    with pytest.raises(SystemExit, match="The bot cannot start: Telegram server says - Unauth"):
        stage.run(WEBHOOK_BOT)

    async def refuse(*_: object, **__: object) -> None:
        raise TelegramUnauthorizedError(GetMe(), unknown)

    environment.setattr("aiogram.Dispatcher.start_polling", refuse)
    with pytest.raises(SystemExit, match="BOT_TOKEN: Telegram does not know this token"):
        stage.run(FIRST_BOT)


def test_the_lines_in_the_table() -> None:
    """Troubleshooting quotes what these bots, aiogram and Python say."""
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## The bot does not start")[2].partition("\n## ")[0]
    with pytest.raises(TokenValidationError) as malformed:
        validate_token("token")
    with pytest.raises(KeyError) as missing:
        {}["BOT_TOKEN"]
    for line in (
        f"TokenValidationError: {malformed.value}",
        f"KeyError: {missing.value}",
        "BOT_TOKEN is missing or malformed",
        "BOT_TOKEN is not set",
        "address already in use",
    ):
        assert f"`{line}`" in table
