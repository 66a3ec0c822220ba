"""The code that a newcomer copies from the README is one working bot."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from aiogram import Bot
from aiogram.methods import SendMessage
from aiogram.types import Update
from fakeredis import FakeAsyncRedis

from bot_ratelimit import ConfigError, Penalty, RateLimitMiddleware
from tests.tables import table

from .incoming.support import RecordingSession, message
from .readme import README, readme_bot


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The bot's names, as if it had been imported."""
    monkeypatch.setattr("redis.asyncio.Redis", FakeAsyncRedis)
    found: dict[str, Any] = {"__name__": "bot"}
    exec(compile(readme_bot(), "README.md", "exec"), found)
    return found


async def answers(namespace: dict[str, Any], *texts: str) -> list[str]:
    """What the bot sends to a user who writes these texts."""
    bot = Bot("42:TEST", session=RecordingSession())
    for number, text in enumerate(texts):
        update = Update.model_validate({"update_id": number, "message": message(text=text)})
        await namespace["dp"].feed_update(bot, update)
    requests = bot.session.requests  # type: ignore[attr-defined]  # of the session above
    return [request.text for request in requests if isinstance(request, SendMessage)]


async def test_the_first_bot_answers_five_messages_in_ten_seconds(
    namespace: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The sixth message gets the notice that the README quotes, the seventh nothing."""
    sent = await answers(namespace, *"abcdefg")
    assert sent[:5] == [*"abcde"]
    assert len(sent) == 6
    assert sent[5].startswith("Too many requests. Please try again in ")


async def test_the_second_block_fits_the_first(namespace: dict[str, Any]) -> None:
    """Above the handler for everything, `/report` is reached, and has its own limit."""
    sent = await answers(namespace, "/report", "/report", "/report", "hello")
    assert sent[0] == "Here is your report. 1 more this minute."
    assert sent[1] == "Here is your report. 0 more this minute."
    assert sent[2].startswith("Too many requests.")
    assert sent[3] == "hello"


ARGUMENTS = [
    re.findall(r"`([^`]+)`", row)
    for row in README.read_text("utf-8").splitlines()
    if re.match(r"\| (`\w+`|a function of the event) \|", row)
]


@table("cells", ARGUMENTS)
def test_the_usual_arguments_are_right(cells: list[str]) -> None:
    """Each line of code in the table makes a middleware, and shows the argument of its row."""
    names = {"RateLimitMiddleware": RateLimitMiddleware, "Penalty": Penalty}
    assert isinstance(eval(cells[-1], names), RateLimitMiddleware)
    assert cells[0] in {*("rate_limit", "redis_client"), cells[-1]} or f"{cells[0]}=" in cells[-1]


def test_the_table_has_the_seven_usual_arguments() -> None:
    """The table is found, and a wrong argument in it would be."""
    assert len(ARGUMENTS) == 7
    with pytest.raises(ConfigError):
        RateLimitMiddleware("5/10s", on_error="no")  # type: ignore[arg-type]  # a mistake


def test_the_log_says_where_counts_are_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With INFO switched on, the line that the README quotes is there from the start."""
    monkeypatch.setattr("redis.asyncio.Redis", FakeAsyncRedis)
    with caplog.at_level(logging.INFO, "bot_ratelimit"):
        exec(compile(readme_bot(), "README.md", "exec"), {"__name__": "bot"})
    told = "RateLimitMiddleware: Using Redis for distributed rate limiting"
    assert any(record.getMessage().startswith(told) for record in caplog.records)
