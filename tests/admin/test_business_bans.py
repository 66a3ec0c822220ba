"""Bans by a penalty in business chats, which are listed but which no command can name."""

from __future__ import annotations

import pytest

from bot_ratelimit import Limiter, Penalty, RateLimitMiddleware, Scope, Subject
from bot_ratelimit.admin.control import Control
from bot_ratelimit.admin.fields import Forgive, Target, checked
from bot_ratelimit.admin.operations import OPERATIONS
from bot_ratelimit.admin.wording import ENGLISH
from bot_ratelimit.admin.words import joined, plain
from tests.benches import Bench
from tests.incoming.support import HANDLED, Instance, message, user

LENT = {"business_connection_id": "Bc"}


@pytest.mark.parametrize(("name", "fields"), [("unban", Target), ("forgive", Forgive)])
@pytest.mark.parametrize("scope", [Scope.USER, Scope.CHAT, Scope.MEMBER])
async def test_a_ban_in_a_business_chat_is_shown_and_lifted(
    bench: Bench, scope: Scope, name: str, fields: type[Target]
) -> None:
    """Who is banned in a business chat is found, and let through again, by the user's id alone."""
    limiter = Limiter(bench.storage, timeout=5)
    limits = RateLimitMiddleware("5/h", limiter=limiter, penalty=Penalty("2/h", "1h", scope=scope))
    instance = Instance(limits, ("business_message",))

    async def handled(times: int) -> int:
        return sum(
            [await instance.feed(business_message=message(**LENT)) == HANDLED for _ in range(times)]
        )

    assert await handled(8) == 5
    control, sent = Control.of(limits, by="anna"), checked(fields, {"id": 42})
    where = "in a business chat (connection Bc)"
    listed = OPERATIONS["bans"].sheet(ENGLISH, await control.bans())
    assert where in plain(listed.rows[0][0])
    shown = await control.show(sent.subject)
    assert shown.allowed
    assert where in plain(joined(OPERATIONS["show"].sheet(ENGLISH, shown).lines))
    operation = OPERATIONS[name]
    assert operation.ask is not None
    question = await operation.ask(control, ENGLISH, sent)
    assert where in plain(question.points[0])
    found = await operation.done(control, sent)
    said = {"unban": " is not banned any more", "forgive": " is forgiven: user, ban"}[name]
    assert said in plain(operation.sheet(ENGLISH, found).lines[0])
    assert await control.bans() == []
    assert await handled(1) == (name == "forgive")
    await limiter.close()


async def test_a_ban_in_a_business_chat_is_of_one_of_its_two_users(bench: Bench) -> None:
    """`show` and `unban` of a customer leave the ban of the account's owner, who wrote to them."""
    limiter = Limiter(bench.storage, timeout=5)
    penalty = Penalty("2/h", "1h", scope=Scope.MEMBER)
    limits = RateLimitMiddleware("1/h", limiter=limiter, penalty=penalty, on_limited=None)
    instance = Instance(limits, ("business_message",))
    for _ in range(4):
        await instance.feed(business_message=message(**LENT | {"from": user(7)}))
    control, owner, customer = Control.of(limits, by="anna"), Subject(7, 7), Subject(42, 42)
    assert (await control.show(customer)).banned is None
    assert not await control.unban(customer)
    assert (await control.show(owner)).banned is not None
    assert await control.unban(owner)
    await limiter.close()
