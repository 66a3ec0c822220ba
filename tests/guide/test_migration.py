"""What docs/migration.md says of before and after is so."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from example_bot.demo.updates import album, message, payment

from .pages import block
from .stage import Stage

BY_HAND, BY_HAND_IN_REDIS = "From a hand-written TTLCache", "From a hand-written INCR and EXPIRE"


def handled(stage: Stage, heading: str, number: int, *updates: Any) -> int:
    """How many updates reach the handlers behind the middleware of a block."""
    program = block("migration", heading, number=number)
    # A busy machine may take longer than half a second for these updates, so it is a minute here.
    text = re.sub(r"\b1\.0\b", "60.0", program.text.replace("(0.5)", "(60)"))
    dispatcher = stage.run(replace(program, text=text))["dp"]
    seen: list[object] = []
    dispatcher.message.register(lambda message: seen.append(message))
    stage.feed(dispatcher, *updates)
    return len(seen)


def test_albums_payments_and_groups(stage: Stage) -> None:
    """Before, one photo is handled and the payment is lost; after, neither happens.

    A cache by chat lets one member of a group through; after, each has a count.
    """
    updates = [*album(42, 10), payment(42), message(42, "too soon")]
    members = [message(user, "hi", group=-100) for user in (1, 2, 3)]
    assert handled(stage, BY_HAND, 0, *updates, *members) == 1 + 1
    assert handled(stage, BY_HAND, 1, *updates, *members) == 10 + 1 + 3
    # The key of INCR and EXPIRE is ours, and what it has counted holds.
    assert handled(stage, BY_HAND_IN_REDIS, 0, *updates) == 10 + 1
    assert handled(stage, BY_HAND_IN_REDIS, 0, message(42, "again")) == 0


def test_from_aiogram_2(stage: Stage) -> None:
    """Each command has its own limit, and the text of the refusal is the one given."""
    dispatcher = stage.run(block("migration", "From aiogram 2", number=1))["dp"]
    stage.feed(dispatcher, *(message(42, text) for text in ("/report", "/report", "/help")))
    assert stage.texts == ["Here is your report.", "Too many requests!", "Here is the help."]
