"""The bots of docs/recipes.md do what the page says, on a real Redis."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import redis
from aiogram import Dispatcher
from aiogram.methods import (
    AnswerPreCheckoutQuery,
    DeleteMessage,
    RestrictChatMember,
    SendInvoice,
    SendMessage,
)

from bot_ratelimit import RateLimitMiddleware, Settings
from example_bot.demo.updates import callback, message, payment, pre_checkout
from tests.servers import Server

from .pages import block
from .stage import Stage

GROUP = -100123
TOLD = "Too many requests"


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


def test_an_ai_bot(stage: Stage, redis_server: Server) -> None:
    """Each answer costs its 1,200 tokens, and the waiting text becomes the answer."""
    stage.run(block("recipes", "An AI bot"), *(message(42, f"why {n}") for n in range(2)))
    assert stage.texts == [text for n in range(2) for text in ("Thinking …", f"You asked: why {n}")]
    with redis.Redis(port=redis_server.port) as client:
        assert client.get("bot:ratelimit:tokens:42") == b"2400"


def test_the_last_answer_may_cost_more_than_is_left(stage: Stage, redis_server: Server) -> None:
    """The last question is answered, the next one is refused until the user buys more tokens."""
    with redis.Redis(port=redis_server.port) as client:
        client.set("bot:ratelimit:tokens:42", 4799, px=60_000)
    ask = message(42, "why")
    stage.run(
        block("recipes", "An AI bot"), ask, message(42, "and"), payment(42), message(42, "so")
    )
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
    """Of a hundred newcomers thirty are welcomed; of a hundred messages in a group sixty count."""
    updates = [message(1_000 + n, "/start") for n in range(100)]
    stage.run(block("recipes", "A raid"), *updates)
    assert sum(len(answers(stage, 1_000 + n)) for n in range(100)) == 30


def test_a_raid_by_the_names_of_its_rules(stage: Stage) -> None:
    """The rules are called as the commands of the recipe call them."""
    dispatcher: Dispatcher = stage.run(block("recipes", "A raid"))["dp"]
    (limits,) = {
        each for each in dispatcher.message.middleware if isinstance(each, RateLimitMiddleware)
    }
    names = {rule["name"] for rule in limits.inventory()["rules"]}
    commands = block("recipes", "A raid", "sh").text
    assert set(re.findall(r"set (\S+) ", commands)) == {"start:global", "chat"} <= names


def test_a_raid_with_the_file(stage: Stage, environment: pytest.MonkeyPatch) -> None:
    """The limits file of the recipe says the same as the code."""
    Path("limits.toml").write_text(block("recipes", "A raid", "toml").text)
    environment.setenv("RATE_LIMIT_FILE", "limits.toml")
    (start,) = Settings().file.limits.values()
    assert "30/minute" in str(start)


def test_a_group_locks_itself_once(stage: Stage) -> None:
    """The 21st join of a minute locks the group, and further ones do not lock it again."""
    joins = [joined(user, GROUP) for user in range(100, 125)]
    stage.run(block("recipes", "A raid", number=1), *joins)
    assert [type(each).__name__ for each in stage.sent].count("SetChatPermissions") == 1
    assert stage.texts == ["Too many join at once: the group is locked."]


def joined(user: int, group: int) -> dict[str, Any]:
    """An update about a user who joins a group."""
    person = {"id": user, "is_bot": False, "first_name": "A"}
    member = {
        "chat": {"id": group, "type": "supergroup", "title": "G"},
        "from": person,
        "date": 1,
        "old_chat_member": {"status": "left", "user": person},
        "new_chat_member": {"status": "member", "user": person},
    }
    return {"update_id": user, "chat_member": member}


def test_a_broadcast(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody gets it once, also when the program is started again."""
    program = block("recipes", "A broadcast")
    stage.run(program)
    stage.run(program)
    assert [answers(stage, user) for user in (42, 43, 44)] == [["News!"]] * 3
    assert capsys.readouterr().out == "0 users are gone\n" * 2


def test_a_shop(stage: Stage) -> None:
    """After a flood the catalogue still turns pages, and a payment passes."""
    flood = [message(42, "/buy") for _ in range(5)]
    pages = [callback(42, "page:1") for _ in range(20)]
    stage.run(block("recipes", "A shop"), *flood, *pages, pre_checkout(42), payment(42))
    assert len([each for each in stage.sent if isinstance(each, SendInvoice)]) == 3
    assert [each for each in stage.sent if isinstance(each, AnswerPreCheckoutQuery)]
    assert answers(stage, 42)[-1] == "Thank you!"


def test_several_bots(stage: Stage) -> None:
    """A user has two messages with each bot."""
    updates = [(number, message(42, "hi")) for number in (0, 1) for _ in range(3)]
    stage.run(block("recipes", "Several bots in one process"), *updates)
    assert answers(stage, 42) == ["I am 42."] * 2 + ["I am 43."] * 2
