"""What docs/migration.md says of before and after is so."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import redis
from aiogram import Dispatcher, F
from aiogram.types import Message

from example_bot.demo.updates import album, message, payment

from .pages import block
from .stage import Stage

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

    stage.feed(dispatcher, *updates)
    return seen


def test_albums_payments_and_groups(stage: Stage) -> None:
    """Before, one photo is handled and the payment is lost; after, neither happens.

    A cache by chat lets one member of a group through; after, each has a count.
    """
    updates = [*album(42, 10), payment(42), message(42, "too soon")]
    assert handled(stage, BY_HAND, 0, *updates) == ["photo"]
    assert handled(stage, BY_HAND, 1, *updates) == ["photo"] * 10 + ["paid"]
    assert handled(stage, BY_HAND_IN_REDIS, 0, *updates) == ["photo"] * 10 + ["paid"]
    members = [message(user, "hi", group=-100) for user in (1, 2, 3)]
    assert len(handled(stage, BY_HAND, 0, *members)) == 1
    assert len(handled(stage, BY_HAND, 1, *members)) == 3


def test_running_counts_are_taken_over(stage: Stage) -> None:
    """The key of INCR and EXPIRE is ours: what it counted holds, and it gets a TTL."""
    with redis.Redis(port=stage.server.port) as client:
        client.set("my_bot:ratelimit:42", 1)
        assert handled(stage, BY_HAND_IN_REDIS, 0, message(42, "hi")) == []
        assert 0 < client.pttl("my_bot:ratelimit:42") <= 60_000


def test_from_aiogram_2(stage: Stage) -> None:
    """Each command has its own limit, and the text of the refusal is the one given."""
    dispatcher: Dispatcher = stage.run(block("migration", "From aiogram 2", number=1))["dp"]
    stage.feed(dispatcher, *(message(42, text) for text in ("/report", "/report", "/help")))
    assert stage.texts == ["Here is your report.", "Too many requests!", "Here is the help."]
