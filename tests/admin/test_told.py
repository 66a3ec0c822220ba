"""What operators are told is what happens."""

from __future__ import annotations

from typing import Any

import pytest

from bot_ratelimit import Penalty
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import checked
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.wording import ENGLISH
from bot_ratelimit.admin.words import plain
from bot_ratelimit.storage.base import Storage

from .web import running_bot


async def asked(control: Control, name: str, **given: Any) -> list[str]:
    """What an operation asks first, in sentences."""
    operation = OPERATIONS[name]
    assert operation.ask is not None
    question = await operation.ask(control, ENGLISH, checked(operation.fields, given))
    return [plain(point) for point in question.points]


@pytest.mark.parametrize("penalty", [Penalty("2/h", "2h"), None])
async def test_a_penalty_that_is_given_is_in_force(
    storage: Storage, penalty: Penalty | None
) -> None:
    """Also after the penalty was switched off, and one that operators added was taken away."""
    async with running_bot(storage, rules=["1/h"], penalty=penalty) as site:
        control = site.control
        await control.changes.set_penalty("3/h", "1h")
        await site.obey()
        await control.set_rule("ban", off=True)
        await control.changes.set_penalty(None)
        await site.obey()
        views = {view.name: view for view in await control.limits()}
        assert ("ban" in views) == (penalty is not None)
        assert not any(view.off for view in views.values())
        assert (await asked(control, "penalty", after="2/h", ban="1h"))[0].endswith(
            "-> ban of 1 h after 2/hour"
        )
        await control.changes.set_penalty("2/h", "1h")
        await site.obey()
        await site.send(9)
        (ban,) = await control.bans()
        assert ban.by == "penalty"
