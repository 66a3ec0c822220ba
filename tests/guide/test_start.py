"""The bots of README.md and docs/start.md do what is said there, and say why they do not start."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path

import pytest
from aiogram import Dispatcher
from aiogram.exceptions import (
    TelegramBadRequest,
    TelegramRetryAfter,
    TelegramUnauthorizedError,
)
from aiogram.methods import GetMe, SetWebhook
from aiogram.utils.token import TokenValidationError, validate_token
from aiohttp.web import run_app

from bot_ratelimit import Penalty, RateLimitMiddleware
from example_bot.demo.updates import message, payment

from .pages import DOCS, ROOT, Block, block, blocks_of, program, prose, readme_bot
from .stage import Stage

TOLD = "Too many requests"
FIRST_BOT, WEBHOOK_BOT = block("start", "The first bot"), program("webhook_bot.py")


def test_the_bot_of_the_readme(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The sixth message in ten seconds gets the notice that it quotes, the seventh nothing.

    Above the handler for everything, `/report` is reached, and has its own limit. With INFO
    switched on, the log says from the start where counts are kept.
    """
    caplog.set_level(logging.INFO, "bot_ratelimit")
    reports = [message(42, "/report") for _ in range(3)]
    stage.run(readme_bot(), *(message(42, text) for text in "abcdefg"), *reports)
    told, *_ = (text for text in stage.texts if text.startswith(TOLD))
    assert told.startswith("Too many requests. Please try again in ")
    assert [each for each in stage.texts if each != told] == [
        *"abcde",
        "Here is your report. 1 more this minute.",
        "Here is your report. 0 more this minute.",
    ]
    assert stage.texts[5] == told
    quoted = "RateLimitMiddleware: Using Redis for distributed rate limiting"
    assert any(record.getMessage().startswith(quoted) for record in caplog.records)


def test_the_arguments_in_the_readme_are_right() -> None:
    """Each line of code in the table makes a middleware, and shows the argument of its row."""
    rows = re.findall(r"(?m)^\| (?:`\w+`|a function of the event) \|.*", prose(ROOT / "README.md"))
    assert len(rows) == 7
    names = {"RateLimitMiddleware": RateLimitMiddleware, "Penalty": Penalty}
    for cells in (re.findall(r"`([^`]+)`", row) for row in rows):
        name, code = cells[0], cells[-1]
        assert isinstance(eval(code, names), RateLimitMiddleware)
        assert name in {"rate_limit", "redis_client", code} or f"{name}=" in code


def test_the_first_bot(
    stage: Stage, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without REDIS_URL it counts in memory, and says so; a payment is always answered.

    `report` in a file of limits is the limit of the flag with that key.
    """
    environment.delenv("REDIS_URL")
    environment.setenv("RATE_LIMIT", "5/10s")
    Path("limits.toml").write_text(block("limits", "Limits in a file", "toml").text)
    environment.setenv("RATE_LIMIT_FILE", "limits.toml")
    updates = [*(message(42, f"{n}") for n in range(7)), payment(42)]
    reports = [message(42, "/report") for _ in range(3)]
    stage.run(FIRST_BOT, *updates, *reports)
    answers = [text for text in stage.texts if TOLD not in text]
    assert answers == [*"01234", "What is this?", *["Here is your report."] * 2]
    assert stage.texts[5].startswith(TOLD)
    assert "Redis not provided" in caplog.text


def test_the_webhook(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """Updates come by the webhook, and a refused one is answered with 200, too.

    A 429 to setWebhook, as when instances start at once, is waited for. The answer is 200 although
    a handler raised, so it is not asked again.
    """
    environment.setenv("RATE_LIMIT", "2/10s")
    method = SetWebhook(url="https://bot.example/webhook")
    stage.errors["setWebhook"] = [TelegramRetryAfter(method, "Too Many Requests", 0)]
    stage.errors["sendMessage"] = [TelegramBadRequest(method, "Bad Request")]
    stage.run(WEBHOOK_BOT, *(message(42, "hi") for _ in range(3)))
    assert stage.replies == [200, 200, 200]
    assert stage.texts[:2] == ["hi", "hi"]
    assert stage.texts[2].startswith(TOLD)
    hooks = [each for each in stage.sent if isinstance(each, SetWebhook)]
    assert len(hooks) == 2
    assert hooks[1].secret_token == "secret"
    assert hooks[1].allowed_updates == ["message"]


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
    stage.errors["setWebhook"] = [TelegramUnauthorizedError(GetMe(), "Unauthorized")]
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
        raise TelegramUnauthorizedError(GetMe(), "Unauthorized")

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
