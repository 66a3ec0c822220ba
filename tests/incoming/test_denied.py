"""What users are told when a rule fails closed."""

from __future__ import annotations

import pytest
from aiogram.methods import AnswerCallbackQuery

from bot_ratelimit import Limiter
from bot_ratelimit.testing import FlakyStorage

from .support import callback
from .updates import limited


@pytest.mark.parametrize("more", [{}, {"concurrent": 1}])
async def test_no_message_notices_for_a_rule_that_fails_closed(more: dict[str, int]) -> None:
    """Its users cannot know when the outage ends: only presses are answered.

    The answer says nothing of a running request, because none is known.
    """
    storage = FlakyStorage()
    bot = limited(
        "9/m",
        ["message", "callback_query"],
        limiter=Limiter(storage, on_error="memory"),
        on_limited="Wait {wait}.",
        flag={"limit": "20/day", "key": "ask", "on_error": "deny"} | more,
    )
    storage.source = "redis"
    storage.fail()
    assert await bot.send(*"abc") == [False] * 3
    await bot.feed(callback_query=callback())
    (answer,) = bot.session.requests
    assert isinstance(answer, AnswerCallbackQuery)
    assert answer.text == "Wait 1 s."
