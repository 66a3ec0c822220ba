"""Who is counted, and what always passes: every type of update, in every position."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot
from aiogram.enums import ContentType
from aiogram.types import Message, Update
from fakeredis import FakeAsyncRedis

from bot_ratelimit import NEVER_REFUSED, ConfigError, Limiter, Penalty, RateLimitMiddleware, Rule
from bot_ratelimit.testing import FlakyStorage
from tests.tables import table

from .support import HANDLED, Instance, callback, message, user
from .updates import (
    ANONYMOUS_ADMIN,
    BUSINESS,
    CHANNEL,
    CHANNEL_BOT,
    CHANNEL_POST,
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
    keys_of,
    limited,
    listen,
    payment,
    pre_checkout,
    without,
)

PASSES = None
"""In place of a key: the event is always handled and never charged."""


def case(update: str, key: str | None, what: str = "", event: Event | None = None) -> Any:
    """A type of update, what follows `bot:ratelimit:` in its key, and the event."""
    return update, key, f"{update} {what}", UPDATES[update] if event is None else event


PRESSED = UPDATES["callback_query"]["message"]
TOPIC = {"chat": GROUP, "message_thread_id": 7, "is_topic_message": True}
AS_ADMIN = {"chat": GROUP, "from": ANONYMOUS_ADMIN, "sender_chat": GROUP}
AS_CHANNEL = {"chat": GROUP, "from": CHANNEL_BOT, "sender_chat": CHANNEL}
FORWARDED = {"from": SERVICE_ACCOUNT, "is_automatic_forward": True}
FORWARDED |= {"chat": GROUP, "sender_chat": CHANNEL}
THIS_BOT = user(1) | {"is_bot": True}
OTHER_BOT = user(77) | {"is_bot": True}
CALLED = {"guest_bot_caller_user": user(42), "from": OTHER_BOT, "chat": GROUP}
SPOT = {"location": {"latitude": 1.0, "longitude": 1.0, "live_period": 900}}
FORUM = GROUP | {"is_forum": True}
OUT_OF_REACH = {"chat": GROUP, "message_id": 1, "date": 0}
NOBODYS = without(REACTION, "user")
NEWS_BUTTON = CHANNEL_POST | {"reply_markup": {"inline_keyboard": []}}

PASSING = [
    *("edited_channel_post", "business_connection", "deleted_business_messages"),
    *("message_reaction_count", "shipping_query", "pre_checkout_query"),
    *("purchased_paid_media", "poll", "my_chat_member", "chat_member", "chat_join_request"),
    *("chat_boost", "removed_chat_boost", "managed_bot", "subscription"),
    "stopped_message_generation",
]

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
    case("business_message", "business:Bc:42"),
    case("business_message", PASSES, "of the bot", message(sender_business_bot=THIS_BOT)),
    case("business_message", PASSES, "a greeting", message(is_from_offline=True, **BUSINESS)),
    case("edited_business_message", "business:Bc:42"),
    case("guest_message", "42"),
    case("guest_message", "42", "of a guest bot", message(guest_query_id="1", **CALLED)),
    case("guest_message", "-200", "of a channel", message(guest_query_id="1", **AS_CHANNEL)),
    case("message_reaction", "42"),
    case("message_reaction", "-200", "of a chat", NOBODYS | {"actor_chat": CHANNEL}),
    case("message_reaction", PASSES, "of nobody", NOBODYS),
    case("inline_query", "42"),
    case("chosen_inline_result", "42"),
    case("callback_query", "42"),
    case("callback_query", "42", "in a group", callback(message=PRESSED | {"chat": GROUP})),
    case("callback_query", "42", "under a post", callback(message=NEWS_BUTTON)),
    case("callback_query", "42", "inline", callback(message=None, inline_message_id="1")),
    case("callback_query", "42", "out of reach", callback(message=OUT_OF_REACH)),
    case("callback_query", "business:Bc:42", "business", callback(message=PRESSED | BUSINESS)),
    case("poll_answer", "42"),
    # Telegram names a user here too, "for backward compatibility": Channel_Bot.
    case("poll_answer", "-200", "of a chat", VOTE | {"user": CHANNEL_BOT, "voter_chat": CHANNEL}),
    *(case(update, PASSES) for update in PASSING),
]


def test_every_update_type_is_tested() -> None:
    """A type of update that a new aiogram brings must be added to these tests."""
    kinds = set(Update.model_fields) - {"update_id"}
    assert {update for update, *_ in CASES} - MISSING == set(UPDATES) - MISSING == kinds
    for kind in kinds:
        assert Update.model_validate({"update_id": 1, kind: UPDATES[kind]}).event_type == kind


@pytest.mark.parametrize("guard", [False, True])
async def test_who_is_counted(guard: bool, fake_client: FakeAsyncRedis) -> None:
    """The sender of an update is counted under this key, in every position of the middleware."""
    for update, key, what, event in CASES:
        if update in MISSING:
            continue
        await fake_client.flushall()
        bot = listen(bare(), update)
        middleware = RateLimitMiddleware("1/m", fake_client, on_limited=None)
        middleware.setup(bot.dispatcher, guard=guard)
        results = [await bot.feed(**{update: event}) for _ in range(2)]
        assert results == [HANDLED, HANDLED if key is PASSES else None], what
        remaining = [d and d.remaining for d in bot.decisions]
        assert remaining == ([None, None] if key is PASSES else [0]), what
        assert await keys_of(fake_client) == ({key} - {PASSES}), what


async def test_only_content_written_by_users_is_counted() -> None:
    """Service messages are never refused and never charged; messages of users are."""
    written = {
        *("text", "animation", "audio", "document", "live_photo", "paid_media", "photo"),
        *("sticker", "story", "video", "video_note", "voice", "checklist", "contact", "dice"),
        *("game", "poll", "venue", "location", "rich_message", "invoice", "giveaway"),
        "giveaway_winners",
    }
    empty = Message.model_validate(content())
    for name in {str(each.value) for each in ContentType} - {"any"}:
        bot = limited()
        event = empty.model_copy(update={} if name == "unknown" else {name: -101})
        update = Update(update_id=1, message=event).as_(bot.bot)
        results = [await bot.dispatcher.feed_update(bot.bot, update) for _ in range(3)]
        assert results == ([HANDLED, None, None] if name in written else [HANDLED] * 3), name
        assert (bot.decisions[0] is not None) == (name in written), name


@pytest.mark.parametrize("where", ["setup", "guard", "outer"])
async def test_users_over_the_limit_can_pay(where: str) -> None:
    """Their payments, and events without a sender, are handled, also while they are banned."""
    observers = ("message", "pre_checkout_query", "channel_post")
    middleware = RateLimitMiddleware("1/m", penalty=Penalty("2/m", "1h"), on_limited=None)
    bot = listen(bare(), *observers)
    if where == "outer":
        for name in observers:
            bot.dispatcher.observers[name].outer_middleware(middleware)
    else:
        middleware.setup(bot.dispatcher, guard=where == "guard")
    assert await bot.send(*"abcdef") == [True] + [False] * 5
    assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
    assert await bot.feed(message=payment()) == HANDLED
    assert await bot.feed(channel_post=CHANNEL_POST) == HANDLED
    assert await bot.send("g") == [False]


@pytest.mark.parametrize("guard", [False, True])
async def test_payments_do_not_ask_redis(guard: bool) -> None:
    """With Redis down and `on_error="deny"` a payment is handled without waiting."""
    storage = FlakyStorage()
    storage.fail()
    limiter = Limiter(storage, on_error="deny")
    bot = limited("1/m", ("message", "pre_checkout_query"), limiter=limiter, guard=guard)
    assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
    assert await bot.feed(message=payment()) == HANDLED
    assert storage.calls == 0
    assert await bot.send("hello") == [False]


async def test_never_refuse_can_be_changed() -> None:
    """A bot may add updates and contents that always pass, and remove others."""
    never = NEVER_REFUSED - {"my_chat_member", "new_chat_members"}
    observers = ("message", "edited_message", "pre_checkout_query", "my_chat_member")
    bot = limited("1/m", observers, never_refuse=never | {"edited_message", ContentType.CONTACT})
    contact = content(contact={"phone_number": "+1", "first_name": "Anna"})
    for _ in range(2):
        assert await bot.feed(edited_message=message(edit_date=DATE)) == HANDLED
        assert await bot.feed(message=contact) == HANDLED
        assert await bot.feed(pre_checkout_query=pre_checkout()) == HANDLED
    assert await bot.feed(my_chat_member=UPDATES["my_chat_member"]) == HANDLED
    assert await bot.feed(my_chat_member=UPDATES["my_chat_member"]) is None
    assert await bot.feed(message=content(new_chat_members=[user(43)], chat=GROUP)) is None
    # An edited message is of the same class as a new one, and yet another type of update.
    assert await bot.send("a") == [False]


@table("wrong", ["payments", ["payment"], ["update"], {"chat_member", "Message"}, [5], 5])
def test_an_unknown_name_in_never_refuse_is_an_error(wrong: Any) -> None:
    """A misspelled name would refuse updates silently, so it is an error."""
    name = min(wrong) if isinstance(wrong, (list, set)) else wrong
    with pytest.raises(ConfigError, match=f"never_refuse.*{name!r}"):
        RateLimitMiddleware(never_refuse=wrong)


async def test_bots_on_one_prefix_count_apart(fake_client: FakeAsyncRedis) -> None:
    """With `per_bot=True` two bots with one prefix do not share a user's count."""
    middleware = RateLimitMiddleware("1/m", fake_client, per_bot=True, on_limited=None)
    bots = [Instance(middleware) for _ in range(2)]
    bots[1].bot = Bot("2:TEST", session=bots[1].session)
    assert [await bot.send(*"ab") for bot in bots] == [[True, False]] * 2
    assert await keys_of(fake_client) == {"bot:1:42", "bot:2:42"}


@pytest.mark.parametrize(
    ("scope", "event", "key"),
    [
        ("chat", {"message": message(chat=GROUP)}, "chat:-100"),
        ("chat", {"message_reaction": REACTION}, "chat:-100"),
        ("chat", {"business_message": message(**BUSINESS)}, "business:Bc:chat:42"),
        ("chat", {"inline_query": UPDATES["inline_query"]}, None),
        ("member", {"message": message(**AS_ADMIN)}, "member:-100:-100"),
        ("topic", {"callback_query": callback(message=PRESSED | TOPIC)}, "topic:-100:7"),
        ("topic", {"message": message(chat=GROUP)}, None),
        ("topic", {"message": message(chat=FORUM)}, "topic:-100:1"),
        ("topic", {"message": message(chat=FORUM, message_thread_id=9)}, "topic:-100:1"),
        ("topic", {"message_reaction": REACTION | {"chat": FORUM}}, "topic:-100:1"),
        ("topic", {"message": message(direct_messages_topic={"topic_id": 5})}, "topic:42:5"),
        ("global", {"inline_query": UPDATES["inline_query"]}, "global"),
        ("global", {"channel_post": CHANNEL_POST}, None),
    ],
)
async def test_every_scope_finds_its_ids(
    scope: str, event: Event, key: str | None, fake_client: FakeAsyncRedis
) -> None:
    """A rule counts by the ids of the event; if one is missing, it does not apply."""
    bot = Instance(RateLimitMiddleware(Rule("1/m", scope), fake_client, on_limited=None), event)
    results = [await bot.feed(**event) for _ in range(2)]
    assert results == [HANDLED, HANDLED if key is None else None]
    assert await keys_of(fake_client) == ({key} - {None})


@pytest.mark.parametrize("guard", [False, True])
async def test_unknown_update_types_are_left_to_aiogram(guard: bool) -> None:
    """An exception would be a 500 on a webhook, and Telegram would repeat the update."""
    with pytest.warns(RuntimeWarning, match="unknown update type"):
        await limited("1/m", guard=guard).feed(telepathy={"from": user()})


DOC = (Path(__file__).parents[2] / "docs" / "counted.md").read_text("utf-8")


def test_the_documented_update_types_are_right() -> None:
    """The lists in docs/counted.md equal the outcomes that are tested here."""
    _, _, section = DOC.partition("\n## Every kind of update\n")
    lists = re.findall(r"(?s)- (counted|passes|never refused):(.+?)\n(?=-|\n)", section)
    told = {
        update: outcome for outcome, updates in lists for update in re.findall(r"`(\w+)`", updates)
    }
    true = {
        update: "never refused" if update in NEVER_REFUSED else "counted" if key else "passes"
        for update, key, *_ in reversed(CASES)  # the first of each update is the ordinary one
    }
    assert told == true


def test_the_documented_keys_are_right() -> None:
    """The keys in docs/counted.md for each kind of sender are the real ones."""
    events = {
        "a person": "message in a group",
        "an anonymous admin of the group": "message of an anonymous admin",
        "a channel that writes in the group": "message of a channel in a group",
        "the linked channel, by automatic forward": "message an automatic forward",
        "a person in a business chat": "business_message ",
        "a person, by a reaction or a vote": "message_reaction ",
        "a chat, by a reaction": "message_reaction of a chat",
        "a chat, by a vote": "poll_answer of a chat",
        "Telegram's placeholder accounts": "message GroupAnonymousBot",
    }
    true = {what: key for _, key, what, _ in CASES}
    _, _, section = DOC.partition("\n## Who is counted\n")
    rows = re.findall(r"(?m)^\| (.+?) \|.*\| `?([^`|]+?)`? \|$", section.partition("\n## ")[0])
    assert dict(rows[2:]) == {
        who: f"bot:ratelimit:{true[what]}" if true[what] else "–" for who, what in events.items()
    }
