"""Named limits that no handler has."""

from __future__ import annotations

import pytest

from .updates import limited


async def test_a_named_limit_that_no_flag_refers_to_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A typing error in the limits file leaves a limit without effect: the log says which."""
    named = {"reprot": "1/m", "report": "2/m", "support.Instance._handle#2": "3/m"}
    bot = limited(flag={"key": "report"}, named_limits=named)
    bot.dispatcher.edited_message.register(bot._handle, flags={"rate_limit": "5/m"})
    bot.dispatcher.poll.register(bot._handle, flags={"rate_limit": False})
    await bot.dispatcher.emit_startup()
    (line,) = (each for each in caplog.messages if "named limits" in each)
    assert line == (
        "RateLimitMiddleware: no flag refers to the named limits reprot; "
        "the flags of this bot have the names report, support.Instance._handle#2"
    )
