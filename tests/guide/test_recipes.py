"""The bots of docs/recipes.md and docs/migration.md do what the pages say, on a real Redis."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from aiogram.methods import DeleteMessage, RestrictChatMember, SendMessage

from bot_ratelimit import RateLimitMiddleware
from example_bot.demo.updates import album, message, payment

from .pages import DOCS, ROOT, block, blocks_of
from .stage import Stage

GROUP = -100123
TOLD = "Too many requests"
TOKENS = "bot:ratelimit:tokens:42"


def answers(stage: Stage, chat: int) -> list[str]:
    """What the bot wrote to a chat, but for notices."""
    sent = [each for each in stage.sent if isinstance(each, SendMessage)]
    return [each.text for each in sent if each.chat_id == chat and TOLD not in each.text]


def test_premium_users(stage: Stage) -> None:
    """Five for everybody, thirty for who has paid, and no limit for administrators."""
    users = (1, 42, 7)
    updates = [message(user, "hi") for user in users for _ in range(32)]
    stage.run(block("recipes", "Premium users"), *updates)
    assert [len(answers(stage, user)) for user in users] == [5, 30, 32]


def test_an_ai_bot(stage: Stage) -> None:
    """Each answer costs its 1,200 tokens, and the waiting text becomes the answer.

    The last one may cost more than is left; the next is refused until the user buys more tokens.
    """
    bot = block("recipes", "An AI bot")
    with redis.Redis(port=stage.server.port) as client:
        stage.run(bot, *(message(42, f"why {n}") for n in range(2)))
        asked = ["Thinking …", "You asked: why 0", "Thinking …", "You asked: why 1"]
        assert stage.texts == asked
        assert client.get(TOKENS) == b"2400"
        client.set(TOKENS, 4799, px=60_000)
    stage.sent.clear()
    stage.run(bot, message(42, "why"), message(42, "and"), payment(42), message(42, "so"))
    assert stage.texts[:2] == ["Thinking …", "You asked: why"]
    assert stage.texts[2].startswith(TOLD)
    assert stage.texts[3] == "20,000 tokens more until midnight."
    assert stage.texts[4:] == ["Thinking …", "You asked: so"]


def test_moderating_a_group(stage: Stage) -> None:
    """Messages over the limit are deleted, and members who keep sending are muted."""
    flood = [message(42, "spam", group=GROUP) for _ in range(12)]
    stage.run(block("recipes", "Moderating a group"), *flood, message(43, "/rules", group=GROUP))
    deleted = [each for each in stage.sent if isinstance(each, DeleteMessage)]
    muted = [each for each in stage.sent if isinstance(each, RestrictChatMember)]
    assert len(deleted) == 7
    assert {each.user_id for each in muted} == {42}
    assert len(answers(stage, GROUP)) == 1


def test_a_raid(stage: Stage) -> None:
    """Of a hundred newcomers thirty are welcomed; its commands call the rules as they are."""
    updates = [message(1_000 + n, "/start") for n in range(100)]
    names = stage.run(block("recipes", "A raid"), *updates)
    assert sum(len(answers(stage, 1_000 + n)) for n in range(100)) == 30
    middlewares = {*names["dp"].message.middleware}
    (limits,) = (each for each in middlewares if isinstance(each, RateLimitMiddleware))
    rules = {rule["name"] for rule in limits.inventory()["rules"]}
    commands = block("recipes", "A raid", "sh").text
    assert set(re.findall(r"set (\S+) ", commands)) == {"start:global", "chat"} <= rules


def test_a_broadcast(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody gets it once, also when the program of docs/outgoing.md is started again."""
    first, *page = blocks_of(DOCS / "outgoing.md")
    (broadcast,) = (each for each in page if "async def broadcast" in each.text)
    # The program has ended its polling, and with it a broadcast could not begin.
    run = "await outgoing.open()\nawait broadcast([42, 43, 44], 7)\nawait outgoing.close()"
    for _ in range(2):
        stage.run_all([first, broadcast, replace(broadcast, text=run)])
    assert [answers(stage, user) for user in (42, 43, 44)] == [["News!"]] * 3
    assert capsys.readouterr().out == ""


def test_the_tests_of_a_bot_pass(tmp_path: Path) -> None:
    """The recipe's tests pass with pytest-asyncio as it is without any configuration."""
    tests = block("recipes", "Testing your own bot").text
    (tmp_path / "test_bot.py").write_text(tests, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(tmp_path), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environment).stdout
    assert b"2 passed" in told


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
