"""A bot of the documentation that cannot start says why in one line, without a traceback."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.exceptions import TelegramUnauthorizedError
from aiogram.methods import GetMe, SetWebhook
from aiogram.utils.token import TokenValidationError, validate_token

from .pages import DOCS, ROOT, Block, block, blocks_of, program
from .stage import Stage

README_BOT = next(blocks_of(ROOT / "README.md"))
FIRST_BOT = block("start", "The first bot")
WEBHOOK_BOT = program("webhook_bot.py")

Start = Callable[..., str]


@pytest.fixture
def start(environment: pytest.MonkeyPatch, no_metrics_yet: None) -> Start:
    """Runs a program that cannot start; returns the line that it ends with, status 1."""

    def run(program: Block, **variables: str) -> str:
        environment.delenv("BOT_TOKEN", raising=False)
        for name, value in variables.items():
            environment.setenv(name, value)
        code = compile(program.source, str(program), "exec", dont_inherit=True)
        with pytest.raises(SystemExit) as ended:
            exec(code, {"__name__": "__main__"})
        assert isinstance(ended.value.code, str)
        return ended.value.code

    return run


@pytest.mark.parametrize("program", [README_BOT, FIRST_BOT, WEBHOOK_BOT], ids=str)
@pytest.mark.parametrize("token", ["", "not a token"])
def test_a_missing_or_malformed_token(program: Block, token: str, start: Start) -> None:
    """The last line names BOT_TOKEN, whether it is not set or has a wrong value."""
    url = "https://bot.example/webhook"
    told = start(program, WEBHOOK_URL=url, **({"BOT_TOKEN": token} if token else {}))
    assert re.fullmatch("BOT_TOKEN is (not set|.*malformed: copy the token from @BotFather)", told)


def test_no_address_for_the_webhook(start: Start) -> None:
    """A webhook needs its address, and the variable is named."""
    assert start(WEBHOOK_BOT, BOT_TOKEN="42:TEST", WEBHOOK_URL="") == "WEBHOOK_URL is not set"


def test_a_port_that_is_in_use(start: Start, environment: pytest.MonkeyPatch) -> None:
    """The line names the port, and says that it is in use."""

    async def accept(*_: object, **__: object) -> bool:
        return True

    environment.setattr(AiohttpSession, "make_request", accept)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        url = "https://bot.example/webhook"
        told = start(WEBHOOK_BOT, BOT_TOKEN="42:TEST", WEBHOOK_URL=url, WEB_SERVER_PORT=port)
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
