"""What docs/start.md says about its bot is what happens."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
from aiogram.exceptions import TelegramBadRequest, TelegramRetryAfter
from aiogram.methods import SetWebhook

from bot_ratelimit import Penalty, RateLimitMiddleware
from example_bot.demo.updates import message, payment

from .pages import ROOT, block, program, prose, readme_bot
from .stage import Stage

TOLD = "Too many requests"


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
    """Five of seven are answered, one is told, and /report has its own limit.

    Without REDIS_URL it counts in memory; with it, in Redis; either is said. `report` in a file of
    limits is the limit of the flag with that key.
    """
    caplog.set_level(logging.INFO)
    environment.delenv("REDIS_URL")
    environment.setenv("RATE_LIMIT", "5/10s")
    messages = [message(42, f"hello {n}") for n in range(7)]
    reports = [message(42, "/report") for _ in range(3)]
    stage.run(block("start", "The first bot"), *messages, payment(42), *reports)
    answers = [text for text in stage.texts if TOLD not in text]
    expected = [*(f"hello {n}" for n in range(5)), "What is this?"]
    assert answers == [*expected, *["Here is your report."] * 2]
    assert stage.texts[5].startswith(TOLD)
    assert stage.texts.count(stage.texts[5]) <= 2
    assert "Redis not provided" in caplog.text
    environment.setenv("REDIS_URL", stage.server.url)
    environment.setenv("REDIS_KEY_PREFIX", "my_bot")
    Path("limits.toml").write_text(block("limits", "Limits in a file", "toml").text)
    environment.setenv("RATE_LIMIT_FILE", "limits.toml")
    stage.sent.clear()
    stage.run(block("start", "The first bot"), *reports)
    assert stage.texts[:2] == ["Here is your report."] * 2
    assert stage.texts[2].startswith(TOLD)
    assert "Using Redis for distributed rate limiting (limit: " in caplog.text
    assert "key prefix: my_bot)" in caplog.text


def test_the_webhook(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """Updates come by the webhook, and a refused one is answered with 200, too.

    A 429 to setWebhook, as when instances start at once, is waited for. The answer is 200 although
    a handler raised, so it is not asked again.
    """
    environment.setenv("RATE_LIMIT", "2/10s")
    method = SetWebhook(url="https://bot.example/webhook")
    stage.errors["setWebhook"] = [TelegramRetryAfter(method, "Too Many Requests", 0)]
    stage.errors["sendMessage"] = [TelegramBadRequest(method, "Bad Request")]
    stage.run(program("webhook_bot.py"), *(message(42, "hi") for _ in range(3)))
    assert stage.replies == [200, 200, 200]
    assert stage.texts[:2] == ["hi", "hi"]
    assert stage.texts[2].startswith(TOLD)
    hooks = [each for each in stage.sent if isinstance(each, SetWebhook)]
    assert len(hooks) == 2
    assert hooks[1].secret_token == "secret"
    assert hooks[1].allowed_updates == ["message"]


def test_a_trial_refuses_nobody(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The shadow rule lets everything through, and the log tells what it would do."""
    caplog.set_level(logging.INFO)
    dispatcher = stage.run(block("limits", "Choosing"))["dp"]
    handled: list[object] = []
    dispatcher.message.register(lambda message: handled.append(message))
    stage.feed(dispatcher, *(message(42, "hi") for _ in range(21)))
    assert len(handled) == 21
    assert "The shadow rule '20/minute per user 'trial'' would have refused" in caplog.text
