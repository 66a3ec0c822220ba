"""What docs/troubleshooting.md says that a handler sees is what it sees."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiogram import Bot, Dispatcher, Router
from redis.asyncio import Redis

from bot_ratelimit import Limiter, RateLimitMiddleware, Rule
from bot_ratelimit.testing import FlakyStorage
from example_bot.demo.updates import message

from .pages import block
from .stage import TOKEN, Stage


def seen(stage: Stage, capsys: pytest.CaptureFixture[str], *given: Any, **options: Any) -> str:
    """What the handler of the page prints, behind a middleware with these arguments."""
    router: Router = stage.run(block("troubleshooting", "Everybody gets through"))["router"]
    dispatcher = Dispatcher()
    dispatcher.include_router(router)
    if given or options:
        dispatcher.message.middleware(RateLimitMiddleware(*given, **options))
    asyncio.run(dispatcher.feed_raw_update(Bot(TOKEN), message(42, "hi")))
    asyncio.run(dispatcher.emit_shutdown())
    return capsys.readouterr().out


def test_what_the_decision_says(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """An exemption, an outage, memory and Redis look as the table says."""
    assert seen(stage, capsys, "5/10s", exempt=[42]) == "None\n"
    storage = FlakyStorage()
    storage.fail()
    assert "source='policy'" in seen(stage, capsys, "5/10s", limiter=Limiter(storage))
    assert "source='memory'" in seen(stage, capsys, "5/10s")
    assert "source='redis'" in seen(stage, capsys, "5/10s", Redis(), timeout=5)
    assert "shadow=True" in seen(stage, capsys, Rule("1/h", shadow=True), Redis(), timeout=5)


def test_without_the_middleware(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """A handler that the middleware does not reach fails with the error in the table."""
    with pytest.raises(TypeError, match="why\\(\\) missing 1 required positional argument"):
        seen(stage, capsys)
