"""The router in a bot: who sees it, where it answers, and that admins are never limited."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from aiogram import Dispatcher, Router
from aiogram.exceptions import TelegramBadRequest, TelegramForbiddenError
from aiogram.methods import AnswerCallbackQuery, EditMessageText, SendMessage
from aiogram.types import Message, User
from aiogram.utils.callback_answer import CallbackAnswerMiddleware

from bot_ratelimit import (
    ConfigError,
    Limiter,
    MemoryStorage,
    RateLimitMiddleware,
    Rule,
    Scope,
    Subject,
)
from bot_ratelimit.admin import admin_router
from bot_ratelimit.admin.control import Control
from bot_ratelimit.storage.base import Storage
from tests.admin.telegram.operators import (
    ADMINS,
    ANNA,
    BORIS,
    GROUP,
    STRANGER,
    OperatedBot,
    middleware_on,
    operated_bot_on,
)
from tests.incoming.support import chat, message, user
from tests.incoming.updates import ANONYMOUS_ADMIN, CHANNEL, CHANNEL_BOT
from tests.tables import table


async def test_strangers_do_not_see_it(bot: OperatedBot) -> None:
    """Commands and buttons of everybody else reach the bot's own handlers, and nothing is sent.

    So does, also of admins, whatever is not the router's, or was not written in person: texts of a
    channel, of an anonymous admin, forwarded, or through another bot.
    """
    await bot.says("/ban 42 1h")
    data = bot.buttons["Ban"]
    before = len(bot.session.requests)
    assert await bot.is_handled("/limits", by=STRANGER)
    assert await bot.is_handled("/ban@some_bot 42 1h", by=STRANGER)
    assert await bot.presses(data, by=STRANGER) == ""
    assert await bot.is_handled("/start", by=ANNA)
    for data in ("rl:x", "rl::who:1:2:3", "menu", "rl::who:x:0:0:", "rl:other:limits:0:0:0:",
                 "rl::who:1:1:100:", f"rl::who:{2**60}:1:0:"):  # fmt: skip
        assert await bot.presses(data) == ""
    forwarded: dict[str, Any] = {"type": "user", "date": 1, "sender_user": user(STRANGER)}
    other_bot: dict[str, Any] = {"id": 9, "is_bot": True, "first_name": "Inline"}
    not_in_person: list[dict[str, Any]] = [
        {"from": ANONYMOUS_ADMIN, "sender_chat": GROUP, "chat": GROUP},
        {"from": CHANNEL_BOT, "sender_chat": CHANNEL, "chat": GROUP},
        {"from": user(ANNA), "sender_chat": GROUP, "chat": GROUP},
        {"forward_origin": forwarded},
        {"via_bot": other_bot},
    ]
    for fields in not_in_person:
        assert await bot.says("/ban 42 1h", **fields) == "", fields
    assert len(bot.handled) == 3 + 8 + 5
    assert len(bot.session.requests) == before


async def test_a_prefix_keeps_commands_apart() -> None:
    """With prefix="rl_" the commands are /rl_who and so on, and /who is the bot's own."""
    async with operated_bot_on(MemoryStorage(), prefix="rl_") as bot:
        assert await bot.is_handled("/who 42", by=ANNA)
        assert "<code>/rl_who 42</code>" in await bot.says("/rl_who")
        text = await bot.says("/rl_limits")
        assert "/rl_ban" in text
        assert "/ban" not in text
        assert "is banned" in await bot.asks("/rl_ban 42 1h spam", "Ban", by=BORIS)
        (entry,) = await Control.of(bot.middleware, by="x").audit()
        assert (entry.by, entry.what) == (f"Anna ({BORIS})", "ban user 42")
        assert entry.changed[0].endswith(f"by Anna ({BORIS}), spam")


GROUP_MESSAGE = {"chat": GROUP, "reply_to_message": message("spam", chat=GROUP)}


async def test_in_a_group_it_answers_in_private(bot: OperatedBot) -> None:
    """The question and all that is shown go to the admin's own chat; the group reads nothing.

    But an admin who never started the bot reads there how to.
    """
    await bot.says("/ban 1h spam", **GROUP_MESSAGE)
    await bot.says("/who", **GROUP_MESSAGE)
    await bot.says("/limits", chat=GROUP)
    bot.bot._me = User(id=1, is_bot=True, first_name="Bot", username="the_bot")
    await bot.says("/limits@the_bot", chat=GROUP)
    assert await bot.says("/limits@other_bot", chat=GROUP) == ""
    assert [each.chat_id for each in bot.shown] == [ANNA] * 4
    send = SendMessage(chat_id=1, text="")
    for error in (
        TelegramForbiddenError(send, "Forbidden: bot can't initiate conversation with a user"),
        TelegramBadRequest(send, "Bad Request: chat not found"),
    ):
        bot.session.errors["SendMessage"] = error
        await bot.says("/ban 1h spam", **GROUP_MESSAGE)
        asked, told = bot.shown[-2:]
        assert (asked.chat_id, told.chat_id) == (ANNA, GROUP["id"])
        assert told.text == "I answer in private: open a chat with me and press Start."


async def test_an_answer_that_cannot_be_edited_is_sent(bot: OperatedBot) -> None:
    """If the message with the button is gone, what was done is told in a new one.

    Beside CallbackAnswerMiddleware, too, a button's spinner ends with exactly one answer.
    """
    bot.dispatcher.callback_query.middleware(CallbackAnswerMiddleware())
    edit = EditMessageText(text="")
    await bot.says("/ban 42 1h")
    gone = TelegramBadRequest(edit, "Bad Request: message to edit not found")
    bot.session.errors["EditMessageText"] = gone
    await bot.presses("Ban")
    assert isinstance(bot.shown[-1], SendMessage)
    assert "is banned" in str(bot.shown[-1].text)
    await bot.says("/who 42")
    before = len(bot.shown)
    same = TelegramBadRequest(edit, "Bad Request: message is not modified: ...")
    bot.session.errors["EditMessageText"] = same
    await bot.presses("Refresh")
    assert len(bot.shown) == before + 1
    await bot.presses("Refresh", message={"chat": chat(ANNA), "message_id": 1, "date": 0})  # old
    assert isinstance(bot.shown[-1], SendMessage)
    answers = [each for each in bot.session.requests if isinstance(each, AnswerCallbackQuery)]
    assert len(answers) == 3


@pytest.mark.parametrize("guard", [False, True], ids=["inner", "guard"])
async def test_admins_are_never_limited(storage: Storage, guard: bool) -> None:
    """Even if every limit is full, or the admin is banned, commands work uncharged."""
    rules = [Rule("1/h"), Rule("1/h", Scope.CHAT), Rule("1/h", Scope.GLOBAL)]
    async with operated_bot_on(storage, *rules, guard=guard) as bot:
        assert [await bot.is_handled(chat=GROUP) for _ in range(2)] == [True, False]
        other = RateLimitMiddleware("1/h", limiter=Limiter(MemoryStorage()))
        other.setup(bot.dispatcher)  # knows no admins, and leaves the commands alone
        control = Control.of(bot.middleware, by="x")
        for each in (Subject(user=ANNA), Subject(chat=GROUP["id"])):
            await bot.middleware.limiter.ban(each)
        for _ in range(5):
            assert "<b>Limits</b>" in await bot.says("/limits")
            assert "<b>Limits</b>" in await bot.says("/limits", chat=GROUP)
            await bot.says("/who 42")
            assert "User" in await bot.presses("Refresh")
        assert await bot.is_handled("hi", by=ANNA)
        counts = {each.rule: each for each in (await control.show(Subject(user=ANNA))).counts}
        assert counts["user"].remaining == 1


async def test_an_operator_can_limit_an_admin_again(bot: OperatedBot) -> None:
    """`/exempt ID off` wins for what the admin sends to the bot; the commands stay free."""
    await bot.asks(f"/exempt {ANNA} off", "Limit again")
    assert [await bot.is_handled(by=ANNA) for _ in range(4)] == [True] * 3 + [False]
    assert "<b>Limits</b>" in await bot.says("/limits")


async def test_a_handler_that_hides_it_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """A catch-all on the dispatcher, or on a router before, is named in the log at the start."""

    async def echo(message: Message) -> None: ...

    async def warnings(before: Router, after: Router, hiding: bool = False) -> list[str]:
        dispatcher = Dispatcher()
        middleware = middleware_on(MemoryStorage()).setup(dispatcher)
        dispatcher.include_routers(before, admin_router(middleware, ADMINS), after)
        if hiding:
            dispatcher.message.register(echo)
        caplog.clear()
        await dispatcher.emit_startup()
        await dispatcher.emit_shutdown()
        return [r.getMessage() for r in caplog.records if "admin_router" in r.getMessage()]

    def catching() -> Router:
        router = Router(name="own")
        router.message.register(echo)
        return router

    caplog.set_level(logging.WARNING)
    private = catching()
    private.message.filter(lambda message: False)
    assert await warnings(Router(), Router()) == []
    assert await warnings(private, catching()) == []
    (told,) = await warnings(catching(), Router())
    assert "echo, on own, handles every message" in told
    (told,) = await warnings(Router(), Router(), hiding=True)
    assert "include admin_router before it" in told


@table(
    ("arguments", "told"),
    [
        ({"admins": []}, "admins is empty: pass at least one user id"),
        ({"admins": "42"}, "admins='42': expected ids of users, such as [42]"),
        ({"admins": 42}, "admins=42: expected ids of users"),
        ({"admins": ["42"]}, "admins: '42' is not the id of a user"),
        ({"admins": [True]}, "admins: True is not the id of a user"),
        ({"admins": [-100123]}, "admins: -100123 is the id of a chat"),
        ({"admins": [1087968824]}, "all channels, all anonymous admins or"),
        ({"prefix": "Ban "}, "prefix='Ban ': expected up to 6 of a-z"),
        ({"prefix": "far_too_long"}, "expected up to 6"),
        ({"middleware": 5}, "admin_router(5): expected the RateLimitMiddleware"),
    ],
)
def test_mistakes_are_told(arguments: dict[str, Any], told: str) -> None:
    """Each wrong argument is one ConfigError with the value and the fix."""
    standard = {"middleware": middleware_on(MemoryStorage()), "admins": [42]}
    with pytest.raises(ConfigError) as raised:
        admin_router(**standard | arguments)
    assert told in str(raised.value)
