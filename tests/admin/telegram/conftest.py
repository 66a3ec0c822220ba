"""Fixtures: a bot whose operators use Telegram."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from bot_ratelimit import MemoryStorage
from bot_ratelimit.admin.control import Control
from tests.admin.telegram.operators import OperatedBot, operated_bot_on


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instances look for changes, and operators for lost documents, without waiting seconds."""
    monkeypatch.setattr("bot_ratelimit.config.live.EVERY", 0.02)
    defaults = Control.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "patience", 0.0)


@pytest.fixture
async def bot() -> AsyncIterator[OperatedBot]:
    """On memory: for what does not depend on a storage."""
    async with operated_bot_on(MemoryStorage()) as bot:
        yield bot
