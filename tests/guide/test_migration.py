"""What docs/migration.md says of before and after is so."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from typing import Any

import redis
from aiogram import Bot, Dispatcher, F
from aiogram.types import Message

from example_bot.demo.updates import album, message, payment
from tests.servers import Server

from .pages import block
from .stage import TOKEN, Stage

BY_HAND, BY_HAND_IN_REDIS = "From a hand-written TTLCache", "From a hand-written INCR and EXPIRE"


def longer_limit(found: re.Match[str]) -> str:
    return "(60)" if found[0].startswith("(") else "60.0"


def handled(stage: Stage, heading: str, number: int, *updates: Any) -> list[str]:
    """What the handlers behind the middleware of a block are given."""
    program = block("migration", heading, number=number)
    # A busy machine may take longer than half a second for these updates, so it is a minute here.
    longer = replace(program, text=re.sub(r"\(0\.5\)|\b1\.0\b", longer_limit, program.text))
    dispatcher: Dispatcher = stage.run(longer)["dp"]
    seen: list[str] = []

    @dispatcher.message(F.successful_payment)
    async def paid(_: Message) -> None:
        seen.append("paid")

    @dispatcher.message()
    async def any_other(event: Message) -> None:
        seen.append(event.text or "photo")

    async def feed() -> None:
        for update in updates:
            await dispatcher.feed_raw_update(Bot(TOKEN), update)
        await dispatcher.emit_shutdown()

    asyncio.run(feed())
    return seen


def test_albums_and_payments(stage: Stage) -> None:
    """Before, one photo is handled and the payment is lost; after, neither happens."""
    updates = [*album(42, 10), payment(42), message(42, "too soon")]
    assert handled(stage, BY_HAND, 0, *updates) == ["photo"]
    assert handled(stage, BY_HAND, 1, *updates) == ["photo"] * 10 + ["paid"]
    assert handled(stage, BY_HAND_IN_REDIS, 0, *updates) == ["photo"] * 10 + ["paid"]


def test_the_members_of_a_group(stage: Stage) -> None:
    """A cache by chat lets one member of the group through; after, each has a count."""
    updates = [message(user, "hi", group=-100) for user in (1, 2, 3)]
    assert len(handled(stage, BY_HAND, 0, *updates)) == 1
    assert len(handled(stage, BY_HAND, 1, *updates)) == 3


def test_running_counts_are_taken_over(stage: Stage, redis_server: Server) -> None:
    """The key of INCR and EXPIRE is ours: what it counted holds, and it gets a TTL."""
    with redis.Redis(port=redis_server.port) as client:
        client.set("my_bot:ratelimit:42", 1)
        assert handled(stage, BY_HAND_IN_REDIS, 0, message(42, "hi")) == []
        assert 0 < client.pttl("my_bot:ratelimit:42") <= 60_000


def test_from_aiogram_2(stage: Stage) -> None:
    """Each command has its own limit, and the text of the refusal is the one given."""
    dispatcher: Dispatcher = stage.run(block("migration", "From aiogram 2", number=1))["dp"]

    async def feed() -> None:
        for text in ("/report", "/report", "/help"):
            await dispatcher.feed_raw_update(Bot(TOKEN), message(42, text))

    asyncio.run(feed())
    assert stage.texts == ["Here is your report.", "Too many requests!", "Here is the help."]
