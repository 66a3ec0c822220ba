"""What operators can still do after something in Redis was lost, or is broken."""

from __future__ import annotations

from typing import Any

import pytest

from bot_ratelimit import Limiter, RateLimitMiddleware, Rule, StorageError
from bot_ratelimit.admin.control import Control
from tests.admin.telegram.operators import operated_bot_on
from tests.benches import Bench


async def test_a_version_that_did_not_reach_the_history_is_added_later(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If Redis goes away in the middle of a change, the next change completes the history."""
    limiter = Limiter(bench.storage, timeout=5)
    control = Control.of(RateLimitMiddleware("2/h", limiter=limiter), "anna", patience=0)
    await control.set_rule("user", "3/h")

    async def fail(*arguments: Any) -> int:
        raise StorageError("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(type(bench.storage.documents()), "push", fail)
        with pytest.raises(StorageError):
            await control.set_rule("user", "4/h")
    assert (await control.changes.current()).version == 2
    await control.set_rule("user", "5/h")
    history = await control.history()
    assert [each.live.version for each in history] == [3, 2, 1]
    assert history[0].changed == ("user: 4/hour -> 5/hour",)
    assert (await control.changes.preview_rollback()).target.version == 2
    await limiter.close()


async def test_a_broken_count_does_not_protect_its_user(bench: Bench) -> None:
    """A user whose count holds data of another program can be banned, and let through again."""
    async with operated_bot_on(bench.storage, Rule("3/h", name="messages")) as bot:
        if bench.client is not None:
            await bench.client.set("bot:ratelimit:messages:42", "x")
            assert "Redis cannot be reached" in await bot.says("/who 42")
        assert "is banned until" in await bot.asks("/ban 42 1h", "Ban")
        assert not await bot.is_handled()
        assert "is not banned any more" in await bot.asks("/unban 42", "Unban")
        assert await bot.is_handled()
