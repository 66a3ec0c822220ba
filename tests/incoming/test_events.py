"""Who is counted, and what always passes: every type of update, in every position."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiogram import Bot
from aiogram.enums import ContentType
from aiogram.types import Update
from fakeredis import FakeAsyncRedis

from bot_ratelimit import (
    NEVER_REFUSED,
    ConfigError,
    Limiter,
    MemoryStorage,
    Penalty,
    RateLimitMiddleware,
    Rule,
    Scope,
)
from bot_ratelimit.testing import FlakyStorage

from .support import HANDLED, Instance, callback, message, user
from .updates import (
    ANONYMOUS_ADMIN,
    BUSINESS,
    CHANNEL,
    CHANNEL_BOT,
    CHANNEL_POST,
    CONTENTS,
    DATE,
    GROUP,
    MISSING,
    REACTION,
    SERVICE_ACCOUNT,
    UPDATES,
    VOTE,
    Event,
    bare,
    content,
    listen,
    marked,
    needs,
    payment,
    pre_checkout,
    without,
)

PASSES = None
"""In place of a key: the event is always handled and never charged."""


class Case(NamedTuple):
    update: str
    what: str
    event: Event
    key: str | None
    """What follows `bot:ratelimit:`."""


def case(update: str, key: str | None, what: str = "", event: Event | None = None) -> Case:
    return Case(update, what, UPDATES[update] if event is None else event, key)


PRESSED = UPDATES["callback_query"]["message"]
TOPIC = {"chat": GROUP, "message_thread_id": 7, "is_topic_message": True}
AS_ADMIN = {"chat": GROUP, "from": ANONYMOUS_ADMIN, "sender_chat": GROUP}
AS_CHANNEL = {"chat": GROUP, "from": CHANNEL_BOT, "sender_chat": CHANNEL}
FORWARDED = {
    "chat": GROUP,
    "from": SERVICE_ACCOUNT,
    "sender_chat": CHANNEL,
    "is_automatic_forward": True,
}
THIS_BOT = user(1) | {"is_bot": True}
OTHER_BOT = user(77) | {"is_bot": True}
CALLED = {"guest_bot_caller_user": user(42), "from": OTHER_BOT, "chat": GROUP}
SPOT = {"location": {"latitude": 1.0, "longitude": 1.0, "live_period": 900}}
FORUM = GROUP | {"is_forum": True}
NEWS_BUTTON = CHANNEL_POST | {"reply_markup": {"inline_keyboard": []}}

CASES = [
    case("message", "42"),
    case("message", "42", "in a group", message(chat=GROUP)),
    case("message", "42", "in a topic", message(**TOPIC)),
    case("message", "42", "through an inline bot", message(via_bot=ANONYMOUS_ADMIN | {"id": 9})),
    case("message", PASSES, "of this bot", message(**{"from": THIS_BOT})),
    case("message", PASSES, "that its sender paid for", message(paid_star_count=5)),
    case("message", "-100", "of an anonymous admin", message(**AS_ADMIN)),
    case("message", "-200", "of a channel in a group", message(**AS_CHANNEL)),
    case("message", PASSES, "an automatic forward", message(**FORWARDED)),
    case("message", PASSES, "without a sender", without(message(chat=GROUP), "from")),
    case("message", PASSES, "GroupAnonymousBot", message(**{"from": ANONYMOUS_ADMIN})),
    case("message", PASSES, "Channel_Bot", message(**{"from": CHANNEL_BOT})),
    case("message", PASSES, "777000", message(**{"from": SERVICE_ACCOUNT})),
    case("edited_message", "42"),
    case("edited_message", PASSES, "by Telegram itself", message(chat=GROUP)),
    case("edited_message", PASSES, "a live location", content(edit_date=DATE, **SPOT)),
    case("edited_message", "-100", "anonymous admin", message(edit_date=DATE, **AS_ADMIN)),
    case("channel_post", PASSES),
    case("channel_post", PASSES, "signed", message(chat=CHANNEL, author_signature="Anna")),
    case("edited_channel_post", PASSES),
    case("business_connection", PASSES),
    case("business_message", "business:Bc:42"),
    case(
        "business_message", PASSES, "of the bot", message(sender_business_bot=THIS_BOT, **BUSINESS)
    ),
    case("business_message", PASSES, "a greeting", message(is_from_offline=True, **BUSINESS)),
    case("edited_business_message", "business:Bc:42"),
    case("deleted_business_messages", PASSES),
    case("guest_message", "42"),
    case("guest_message", "42", "of a guest bot", message(guest_query_id="1", **CALLED)),
    case("guest_message", "-200", "of a channel", message(guest_query_id="1", **AS_CHANNEL)),
    case("message_reaction", "42"),
    case(
        "message_reaction", "-200", "of a chat", without(REACTION, "user") | {"actor_chat": CHANNEL}
    ),
    case("message_reaction", PASSES, "of nobody", without(REACTION, "user")),
    case("message_reaction_count", PASSES),
    case("inline_query", "42"),
    case("chosen_inline_result", "42"),
    case("callback_query", "42"),
    case("callback_query", "42", "in a group", callback(message=PRESSED | {"chat": GROUP})),
    case("callback_query", "42", "under a post", callback(message=NEWS_BUTTON)),
    case("callback_query", "42", "inline", callback(message=None, inline_message_id="1")),
    case(
        "callback_query",
        "42",
        "under a message out of reach",
        callback(message={"chat": GROUP, "message_id": 1, "date": 0}),
    ),
    case(
        "callback_query",
        "business:Bc:42",
        "in a business chat",
        callback(message=PRESSED | BUSINESS),
    ),
    case("shipping_query", PASSES),
    case("pre_checkout_query", PASSES),
    case("purchased_paid_media", PASSES),
    case("poll", PASSES),
    case("poll_answer", "42"),
    # Telegram names a user here too, "for backward compatibility": Channel_Bot.
    case("poll_answer", "-200", "of a chat", VOTE | {"user": CHANNEL_BOT, "voter_chat": CHANNEL}),
    case("my_chat_member", PASSES),
    case("chat_member", PASSES),
    case("chat_join_request", PASSES),
    case("chat_boost", PASSES),
    case("removed_chat_boost", PASSES),
    case("managed_bot", PASSES),
    case("subscription", PASSES),
    case("stopped_message_generation", PASSES),
]


def seat_setup(bot: Instance, middleware: RateLimitMiddleware, name: str) -> None:
    middleware.setup(bot.dispatcher)


def seat_guard(bot: Instance, middleware: RateLimitMiddleware, name: str) -> None:
    middleware.setup(bot.dispatcher, guard=True)


def seat_outer(bot: Instance, middleware: RateLimitMiddleware, name: str) -> None:
    bot.dispatcher.observers[name].outer_middleware(middleware)


def seat_update(bot: Instance, middleware: RateLimitMiddleware, name: str) -> None:
    bot.dispatcher.update.middleware(middleware)


def seat_outer_update(bot: Instance, middleware: RateLimitMiddleware, name: str) -> None:
    bot.dispatcher.update.outer_middleware(middleware)


SEATS = [seat_setup, seat_guard, seat_outer]


async def keys(fake_client: FakeAsyncRedis) -> list[str]:
    return sorted(key.decode() for key in await fake_client.keys())


def test_every_update_type_is_tested() -> None:
    """A type of update that a new aiogram brings must be added to these tests."""
    kinds = set(Update.model_fields) - {"update_id"}
    assert {case.update for case in CASES} - MISSING == kinds
    assert set(UPDATES) - MISSING == kinds
    for kind in kinds:
        event = UPDATES[kind]
        assert Update.model_validate({"update_id": 1, kind: event}).event_type == kind


@pytest.mark.parametrize("seat", [seat_setup, seat_guard])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(each, marks=needs(each.update), id=f"{each.update} {each.what}".strip())
        for each in CASES
    ],
)
async def test_who_is_counted(case: Case, seat: Any, fake_client: FakeAsyncRedis) -> None:
    """The sender of an update is counted under this key, in every position of the middleware."""
    bot = bare()
    seat(bot, RateLimitMiddleware("1/m", fake_client, on_limited=None), case.update)
    listen(bot, case.update)
    results = [await bot.feed(**{case.update: case.event}) for _ in range(2)]
    if case.key is PASSES:
        assert results == [HANDLED, HANDLED]
        assert bot.decisions == [None, None]
        assert await keys(fake_client) == []
    else:
        assert results == [HANDLED, None]
        assert [d and d.remaining for d in bot.decisions] == [0]
        assert await keys(fake_client) == [f"bot:ratelimit:{case.key}"]


@pytest.mark.parametrize("name", marked([*CONTENTS, "unknown"]))
async def test_only_content_written_by_users_is_counted(
    name: str, fake_client: FakeAsyncRedis
) -> None:
    """Service messages are never refused and never charged; messages of users are."""
    bot = Instance(RateLimitMiddleware("1/m", fake_client, on_limited=None))
    event = content(**{name: CONTENTS[name]} if name in CONTENTS else {})
    results = [await bot.feed(message=event) for _ in range(3)]
    written = {
        *("text", "animation", "audio", "document", "live_photo", "paid_media", "photo"),
        *("sticker", "story", "video", "video_note", "voice", "checklist", "contact", "dice"),
        *("game", "poll", "venue", "location", "rich_message", "invoice", "giveaway"),
        "giveaway_winners",
    }
    assert results == ([HANDLED, None, None] if name in written else [HANDLED] * 3)
    charged = [each for each in await keys(fake_client) if "migrated" not in each]
    assert charged == (["bot:ratelimit:42"] if name in written else [])


@pytest.mark.parametrize("seat", SEATS)
async def test_users_over_the_limit_can_pay(seat: Any) -> None:
    """Pre-checkout queries and payments reach their handlers, however far over the limit."""
    bot = bare()
    middleware = RateLimitMiddleware(
        "1/m", penalty=Penalty("2/m", "1h"), on_limited=None, limiter=Limiter(MemoryStorage())
    )
    for name in ("message", "pre_checkout_query"):
        if (
            seat not in (seat_setup, seat_guard, seat_update, seat_outer_update)
            or name == "message"
        ):
            seat(bot, middleware, name)
    listen(bot, "message", "pre_checkout_query")
    assert await bot.send(*"abcdef") == [True] + [False] * 5
    for _ in range(2):
        assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
        assert await bot.feed(message=payment()) == HANDLED
    assert await bot.send("g") == [False]


@pytest.mark.parametrize("guard", [False, True])
async def test_payments_do_not_ask_redis(guard: bool) -> None:
    """With Redis down and `on_error="deny"` a payment is handled without waiting."""
    storage = FlakyStorage()
    storage.fail()
    bot = bare()
    limiter = Limiter(storage, on_error="deny")
    RateLimitMiddleware("1/m", limiter=limiter).setup(bot.dispatcher, guard=guard)
    listen(bot, "message", "pre_checkout_query")
    assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
    assert await bot.feed(message=payment()) == HANDLED
    assert storage.calls == 0
    assert await bot.send("hello") == [False]


def limited(never_refuse: Any, *observers: str) -> Instance:
    middleware = RateLimitMiddleware(
        "1/m", limiter=Limiter(MemoryStorage()), never_refuse=never_refuse, on_limited=None
    )
    return Instance(middleware, observers)


async def test_never_refuse_can_be_extended() -> None:
    """A bot may add updates and contents that always pass; everything else is unchanged."""
    bot = limited(
        NEVER_REFUSED | {"callback_query", "edited_message", ContentType.CONTACT},
        *("message", "edited_message", "callback_query", "pre_checkout_query"),
    )
    for _ in range(3):
        assert await bot.feed(callback_query=callback()) == HANDLED
        assert await bot.feed(edited_message=message(edit_date=DATE)) == HANDLED
        assert await bot.feed(message=content(contact=CONTENTS["contact"])) == HANDLED
        assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
    # An edited message is of the same class as a new one, and yet another type of update.
    assert await bot.send(*"ab") == [True, False]


async def test_never_refuse_can_be_reduced() -> None:
    """What is removed from the list is counted like everything else."""
    bot = limited(
        NEVER_REFUSED - {"my_chat_member", "new_chat_members"},
        *("my_chat_member", "chat_member", "message"),
    )
    joined = content(new_chat_members=CONTENTS["new_chat_members"], chat=GROUP)
    assert await bot.feed(my_chat_member=UPDATES["my_chat_member"]) == HANDLED
    assert await bot.feed(my_chat_member=UPDATES["my_chat_member"]) is None
    assert await bot.feed(message=joined) is None
    for _ in range(2):
        assert await bot.feed(chat_member=UPDATES["chat_member"]) == HANDLED
        assert await bot.feed(message=payment()) == HANDLED


@pytest.mark.parametrize(
    "never_refuse",
    [["payment"], {"chat_member", "Message"}, "payments", ["update"], [5], ["any"]],
)
def test_an_unknown_name_in_never_refuse_is_an_error(never_refuse: Any) -> None:
    """A misspelled name would refuse updates silently, so it is an error."""
    with pytest.raises(ConfigError) as error:
        RateLimitMiddleware(never_refuse=never_refuse)
    wrong = {"payments": "payments"}.get(never_refuse) if isinstance(never_refuse, str) else None
    assert repr(wrong or sorted(set(never_refuse) - NEVER_REFUSED, key=str)[0]) in str(error.value)


async def test_bots_on_one_prefix_share_or_not(fake_client: FakeAsyncRedis) -> None:
    """Two bots with one prefix share a user's count, or not, with `per_bot=True`."""
    for per_bot, expected in ((False, [True, False]), (True, [True, True])):
        await fake_client.flushall()
        bots = [
            Instance(
                RateLimitMiddleware("1/m", fake_client, per_bot=per_bot, on_limited=None),
                ["message", "business_message"],
            )
            for _ in range(2)
        ]
        bots[1].bot = Bot("2:TEST", session=bots[1].session)
        assert [(await bot.send("hello"))[0] for bot in bots] == expected
    assert await keys(fake_client) == ["bot:ratelimit:bot:1:42", "bot:ratelimit:bot:2:42"]
    await bots[0].feed(business_message=message(**BUSINESS))
    assert "bot:ratelimit:bot:1:business:Bc:42" in await keys(fake_client)


@pytest.mark.parametrize(
    ("scope", "event", "key"),
    [
        (Scope.CHAT, {"message": message(chat=GROUP)}, "chat:-100"),
        (Scope.CHAT, {"message": message(**AS_CHANNEL)}, "chat:-100"),
        (Scope.CHAT, {"callback_query": callback(message=PRESSED | {"chat": GROUP})}, "chat:-100"),
        (Scope.CHAT, {"message_reaction": REACTION}, "chat:-100"),
        (Scope.CHAT, {"business_message": message(**BUSINESS)}, "business:Bc:chat:42"),
        (Scope.CHAT, {"inline_query": UPDATES["inline_query"]}, None),
        (Scope.CHAT, {"poll_answer": VOTE}, None),
        (Scope.MEMBER, {"message": message(chat=GROUP)}, "member:-100:42"),
        (Scope.MEMBER, {"message": message(**AS_ADMIN)}, "member:-100:-100"),
        (Scope.TOPIC, {"message": message(**TOPIC)}, "topic:-100:7"),
        (Scope.TOPIC, {"callback_query": callback(message=PRESSED | TOPIC)}, "topic:-100:7"),
        (Scope.TOPIC, {"message": message(chat=GROUP)}, None),
        (Scope.TOPIC, {"message": message(chat=FORUM)}, "topic:-100:1"),
        (Scope.TOPIC, {"message": message(chat=FORUM, message_thread_id=9)}, "topic:-100:1"),
        (
            Scope.TOPIC,
            {"callback_query": callback(message=PRESSED | {"chat": FORUM})},
            "topic:-100:1",
        ),
        (Scope.TOPIC, {"message_reaction": REACTION | {"chat": FORUM}}, "topic:-100:1"),
        (Scope.TOPIC, {"message": message(direct_messages_topic={"topic_id": 5})}, "topic:42:5"),
        (Scope.GLOBAL, {"inline_query": UPDATES["inline_query"]}, "global"),
        (Scope.GLOBAL, {"channel_post": CHANNEL_POST}, None),
    ],
)
async def test_every_scope_finds_its_ids(
    scope: Scope, event: Event, key: str | None, fake_client: FakeAsyncRedis
) -> None:
    """A rule counts by the ids of the event; if one is missing, it does not apply."""
    bot = Instance(RateLimitMiddleware(Rule("1/m", scope), fake_client, on_limited=None), event)
    results = [await bot.feed(**event) for _ in range(2)]
    assert results == [HANDLED, HANDLED if key is None else None]
    assert await keys(fake_client) == ([] if key is None else [f"bot:ratelimit:{key}"])


@pytest.mark.parametrize("seat", [seat_setup, seat_guard, seat_update, seat_outer_update])
async def test_unknown_update_types_are_left_to_aiogram(seat: Any) -> None:
    """An exception would be a 500 on a webhook, and Telegram would repeat the update."""
    bot = bare()
    seat(bot, RateLimitMiddleware("1/m", limiter=Limiter(MemoryStorage())), "message")
    with pytest.warns(RuntimeWarning, match="unknown update type"):
        await bot.feed(telepathy={"from": user()})


DOC = Path(__file__).parents[2] / "docs" / "counted.md"


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of docs/counted.md, without backticks."""
    _, _, section = DOC.read_text("utf-8").partition(f"\n## {heading}\n")
    rows = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")] for row in rows[2:]]


def test_the_documented_update_types_are_right() -> None:
    """The lists in docs/counted.md equal the outcomes that are tested here."""
    _, _, section = DOC.read_text("utf-8").partition("\n## Every kind of update\n")
    told = {
        update: outcome
        for outcome, updates in re.findall(
            r"(?s)- (counted|passes|never refused):(.+?)\n(?=-|\n)", section
        )
        for update in re.findall(r"`(\w+)`", updates)
    }
    true = {
        case.update: "never refused"
        if case.update in NEVER_REFUSED
        else "passes"
        if case.key is PASSES
        else "counted"
        for case in reversed(CASES)  # the first of each update is the ordinary one
    }
    assert told == true


async def test_the_documented_keys_are_right(fake_client: FakeAsyncRedis) -> None:
    """The keys in docs/counted.md for each kind of sender are the real ones."""
    events = {
        "a person": {"message": message(chat=GROUP)},
        "an anonymous admin of the group": {"message": message(**AS_ADMIN)},
        "a channel that writes in the group": {"message": message(**AS_CHANNEL)},
        "the linked channel, by automatic forward": {"message": message(**FORWARDED)},
        "a person in a business chat": {"business_message": message(**BUSINESS)},
        "a person, by a reaction or a vote": {"message_reaction": REACTION},
        "a chat, by a reaction": {
            "message_reaction": without(REACTION, "user") | {"actor_chat": CHANNEL}
        },
        "a chat, by a vote": {"poll_answer": VOTE | {"user": CHANNEL_BOT, "voter_chat": CHANNEL}},
        "Telegram's placeholder accounts": {"message": message(**{"from": ANONYMOUS_ADMIN})},
    }
    shown = {who: key for who, _, key in table("Who is counted")}
    assert set(shown) == set(events)
    for who, event in events.items():
        await fake_client.flushall()
        await Instance(RateLimitMiddleware("1/m", fake_client), event).feed(**event)
        assert await keys(fake_client) == ([] if shown[who] == "–" else [shown[who]]), who
