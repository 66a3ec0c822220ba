"""What users are told when a rule fails closed."""

from __future__ import annotations

from aiogram.methods import AnswerCallbackQuery

from bot_ratelimit import Limiter
from bot_ratelimit.testing import FlakyStorage

from .support import callback
from .updates import limited


async def test_no_message_notices_for_a_rule_that_fails_closed() -> None:
    """Its users cannot know when the outage ends: only presses are answered."""
    storage = FlakyStorage()
    bot = limited(
        "9/m",
        ["message", "callback_query"],
        limiter=Limiter(storage, on_error="memory"),
        on_limited="Wait {wait}.",
        flag={"limit": "20/day", "key": "ask", "on_error": "deny"},
    )
    storage.source = "redis"
    storage.fail()
    assert await bot.send(*"abc") == [False] * 3
    await bot.feed(callback_query=callback())
    assert [type(each) for each in bot.session.requests] == [AnswerCallbackQuery]
