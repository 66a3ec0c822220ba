"""What docs/start.md says about its bot is what happens."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from aiogram import Bot, Dispatcher
from aiogram.exceptions import TelegramRetryAfter
from aiogram.methods import SetWebhook

from example_bot.demo.updates import message, payment

from .pages import block, program
from .stage import TOKEN, Stage

TOLD = "Too many requests"


def test_the_first_bot(
    stage: Stage, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without Redis, five of seven are answered, one is told, and /report has its own limit."""
    environment.delenv("REDIS_URL")
    environment.setenv("RATE_LIMIT", "5/10s")
    messages = [message(42, f"hello {n}") for n in range(7)]
    reports = [message(42, "/report") for _ in range(3)]
    stage.run(block("start", "The first bot"), *messages, payment(42), *reports)
    answers = [text for text in stage.texts if TOLD not in text]
    assert answers == [
        *(f"hello {n}" for n in range(5)),
        "What is this?",
        *["Here is your report."] * 2,
    ]
    assert stage.texts[5].startswith(TOLD)
    assert stage.texts.count(stage.texts[5]) <= 2
    assert "Redis not provided" in caplog.text


def test_the_first_bot_with_redis(
    stage: Stage, environment: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With REDIS_URL the same program counts in Redis, and says so."""
    caplog.set_level(logging.INFO)
    environment.setenv("REDIS_KEY_PREFIX", "my_bot")
    stage.run(block("start", "The first bot"), message(42, "a"), message(42, "b"))
    assert (
        "Using Redis for distributed rate limiting (limit: 1/s per user; key prefix: my_bot)"
        in (caplog.text)
    )


def test_the_limits_of_the_file(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """`report` in the file is the limit of the flag with that key."""
    Path("limits.toml").write_text(block("limits", "Limits in a file", "toml").text)
    environment.setenv("RATE_LIMIT_FILE", "limits.toml")
    stage.run(block("start", "The first bot"), *(message(42, "/report") for _ in range(3)))
    assert stage.texts[:2] == ["Here is your report."] * 2
    assert stage.texts[2].startswith(TOLD)


def test_the_webhook(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """Updates come by the webhook, and a refused one is answered with 200, too."""
    environment.setenv("RATE_LIMIT", "2/10s")
    stage.run(program("webhook_bot.py"), *(message(42, "hi") for _ in range(3)))
    assert stage.replies == [200, 200, 200]
    assert stage.texts[:2] == ["hi", "hi"]
    assert stage.texts[2].startswith(TOLD)
    (hook,) = [each for each in stage.sent if isinstance(each, SetWebhook)]
    assert hook.secret_token == "secret"
    assert hook.allowed_updates == ["message"]


def test_instances_that_start_at_once_set_one_webhook(stage: Stage) -> None:
    """A 429 to setWebhook does not stop the start: it is set as soon as Telegram allows it."""
    method = SetWebhook(url="https://bot.example/webhook")
    stage.errors["setWebhook"] = [TelegramRetryAfter(method, "Too Many Requests", 0)]
    stage.run(program("webhook_bot.py"), message(42, "hi"))
    assert stage.replies == [200]
    assert len([each for each in stage.sent if isinstance(each, SetWebhook)]) == 2


def test_a_handler_that_fails_is_not_asked_again(stage: Stage) -> None:
    """The webhook answers 200 although the handler raised, and the log has the error."""
    stage.errors["sendMessage"] = [TelegramRetryAfter(SetWebhook(url=""), "Too Many Requests", 1)]
    stage.run(program("webhook_bot.py"), message(42, "hi"))
    assert stage.replies == [200]


def test_a_trial_refuses_nobody(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The shadow rule lets everything through, and the log tells what it would do."""
    caplog.set_level(logging.INFO)
    dispatcher: Dispatcher = stage.run(block("limits", "Choosing"))["dp"]
    handled: list[object] = []
    dispatcher.message.register(lambda message: handled.append(message))

    async def send() -> None:
        for _ in range(21):
            await dispatcher.feed_raw_update(Bot(TOKEN), message(42, "hi"))

    asyncio.run(send())
    assert len(handled) == 21
    assert "The shadow rule '20/minute per user 'trial'' would have refused" in caplog.text
