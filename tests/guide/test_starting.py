"""docs/troubleshooting.md: why a bot does not start, and what a handler sees of its limit."""

from __future__ import annotations

import re
import socket
from typing import Any

import pytest
from aiogram import Dispatcher
from aiogram.exceptions import TelegramUnauthorizedError
from aiogram.methods import GetMe
from aiogram.utils.token import TokenValidationError, validate_token
from aiohttp.web import run_app
from redis.asyncio import Redis

from bot_ratelimit import Limiter, RateLimitMiddleware, Rule
from bot_ratelimit.testing import FlakyStorage
from example_bot.demo.updates import message

from .pages import DOCS, ROOT, Block, block, blocks_of, program
from .stage import Stage

FIRST_BOT = block("start", "The first bot")
WEBHOOK_BOT = program("webhook_bot.py")


def ended(stage: Stage, bot: Block) -> str:
    """Run a program that cannot start; returns the line that it ends with, status 1."""
    with pytest.raises(SystemExit) as end:
        stage.run(bot)
    assert isinstance(end.value.code, str)
    return end.value.code


def test_why_a_bot_does_not_start(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """One line names the token, missing, malformed or unknown, a port in use, or no address."""
    bots = (next(blocks_of(ROOT / "README.md")), FIRST_BOT, WEBHOOK_BOT)
    with environment.context() as patch:
        patch.setenv("BOT_TOKEN", "not a token")
        lines = [ended(stage, bot) for bot in bots]
        patch.delenv("BOT_TOKEN")
        lines += [ended(stage, bot) for bot in bots]
    wrong = "BOT_TOKEN is (not set|.*malformed: copy the token from @BotFather)"
    assert all(re.fullmatch(wrong, line) for line in lines), lines
    unknown = TelegramUnauthorizedError(GetMe(), "Unauthorized")
    stage.errors["setWebhook"] = [unknown]
    told = ended(stage, WEBHOOK_BOT)
    assert told.startswith("The bot cannot start: Telegram server says - Unauth")
    with socket.create_server(("127.0.0.1", 0)) as other, environment.context() as patch:
        port = str(other.getsockname()[1])
        patch.setenv("WEB_SERVER_PORT", port)
        patch.setattr("aiohttp.web.run_app", run_app)
        told = ended(stage, WEBHOOK_BOT)
    assert re.match(rf"The bot cannot start: .*{port}.*address already in use", told)
    environment.setenv("WEBHOOK_URL", "")
    assert ended(stage, WEBHOOK_BOT) == "WEBHOOK_URL is not set"

    async def refuse(*_: object, **__: object) -> None:
        raise unknown

    environment.setattr(Dispatcher, "start_polling", refuse)
    assert ended(stage, FIRST_BOT) == "BOT_TOKEN: Telegram does not know this token"
    # Troubleshooting quotes what these bots, aiogram and Python say.
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    table = page.partition("## The bot does not start")[2].partition("\n## ")[0]
    with pytest.raises(TokenValidationError) as malformed:
        validate_token("token")
    for line in (
        f"TokenValidationError: {malformed.value}",
        "KeyError: 'BOT_TOKEN'",
        "BOT_TOKEN is missing or malformed",
        "BOT_TOKEN is not set",
        "address already in use",
    ):
        assert f"`{line}`" in table


def test_what_the_decision_says(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """An exemption, an outage, memory, Redis, and no middleware look as the table says."""

    def seen(*given: Any, **options: Any) -> str:
        dispatcher = Dispatcher()
        why = stage.run(block("troubleshooting", "Everybody gets through"))["router"]
        dispatcher.include_router(why)
        if given:
            dispatcher.message.middleware(RateLimitMiddleware(*given, **options))
        stage.feed(dispatcher, message(42, "hi"))
        return capsys.readouterr().out

    assert seen("5/10s", exempt=[42]) == "None\n"
    storage = FlakyStorage()
    storage.fail()
    assert "source='policy'" in seen("5/10s", limiter=Limiter(storage))
    assert "source='memory'" in seen("5/10s")
    assert "source='redis'" in seen("5/10s", Redis(), timeout=5)
    assert "shadow=True" in seen(Rule("1/h", shadow=True), Redis(), timeout=5)
    with pytest.raises(TypeError, match="why\\(\\) missing 1 required positional argument"):
        seen()
