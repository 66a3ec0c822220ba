"""Which bound of `InFlight` refused an update."""

from __future__ import annotations

from typing import Any

import pytest

from .support import message
from .test_inflight import Busy
from .updates import GROUP


@pytest.mark.parametrize("bound", ["limit", "per_user", "per_chat"])
async def test_the_log_names_the_bound_that_refused(
    bound: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An operator knows which number to raise."""
    options: dict[str, Any] = {bound: 1}
    busy = Busy(on_busy=None, **options)
    running = await busy.start(message=message(chat=GROUP))
    assert await busy.bot.feed(message=message(chat=GROUP)) is None
    busy.release.set()
    await running
    expected = f"Updates refused: 1, the last one by {bound}=1 of InFlight; 1 are being handled"
    assert caplog.messages == [expected]
