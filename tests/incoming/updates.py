"""Updates of every kind, and several instances of a bot that receive them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from typing import Any, Final

import pytest
import redis.asyncio as aioredis
from aiogram.enums import ContentType
from aiogram.types import TelegramObject, Update
from fakeredis import FakeAsyncRedis, FakeServer

from bot_ratelimit import Limiter, MemoryStorage, RateLimitMiddleware, RedisStorage, Rule, Subject
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import Clock

from .support import Instance, callback, chat, inline_query, message, user

DATE: Final = 1_767_225_600
GROUP: Final = chat(-100, "supergroup")
CHANNEL: Final = {"id": -200, "type": "channel", "title": "News"}
BUSINESS: Final = {"business_connection_id": "Bc"}

# Telegram's placeholder users, as its documentation lists them.
ANONYMOUS_ADMIN: Final = {"id": 1087968824, "is_bot": True, "first_name": "Group"}
CHANNEL_BOT: Final = {"id": 136817688, "is_bot": True, "first_name": "Channel"}
SERVICE_ACCOUNT: Final = {"id": 777000, "is_bot": False, "first_name": "Telegram"}

_numbers = count(1)

Event = dict[str, Any]


def content(**fields: Any) -> Event:
    """A message of user 42 in their private chat with this instead of a text."""
    event = message(**fields)
    return event if "text" in fields else without(event, "text")


def photo(**fields: Any) -> Event:
    return content(photo=[PHOTO], **fields)


def album(size: int = 10, media_group: str | None = None, **fields: Any) -> list[Event]:
    """The messages that an album arrives as."""
    media_group = media_group or f"group{next(_numbers)}"
    return [photo(media_group_id=media_group, **fields) for _ in range(size)]


def payment(**fields: Any) -> Event:
    return content(successful_payment=CONTENTS["successful_payment"], **fields)


def pre_checkout() -> Event:
    return {
        "id": str(next(_numbers)),
        "from": user(),
        "currency": "XTR",
        "total_amount": 5,
        "invoice_payload": "tea",
    }


def without(event: Event, *fields: str) -> Event:
    return {name: value for name, value in event.items() if name not in fields}


PHOTO: Final = {"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}
FILE: Final = {"file_id": "1", "file_unique_id": "1"}
CLIP: Final = {**PHOTO, "duration": 1}
POLL: Final = {
    "id": "1",
    "question": "Tea?",
    "options": [],
    "total_voter_count": 0,
    "is_closed": False,
    "is_anonymous": True,
    "type": "regular",
    "allows_multiple_answers": False,
    "allows_revoting": False,
    "members_only": False,
}
_PLACE: Final = {"latitude": 1.0, "longitude": 1.0}
_AMOUNT: Final = {"currency": "XTR", "total_amount": 5, "invoice_payload": "tea"}
_STICKER: Final = {
    **PHOTO,
    "type": "regular",
    "is_animated": False,
    "is_video": False,
}
_GIFT: Final = {"gift": {"id": "1", "sticker": _STICKER, "star_count": 1}}
_BACKDROP: Final = {"center_color": 1, "edge_color": 1, "symbol_color": 1, "text_color": 1}
_UNIQUE_GIFT: Final = {
    "origin": "upgrade",
    "gift": {
        "gift_id": "1",
        "base_name": "Tea",
        "name": "Tea-1",
        "number": 1,
        "model": {"name": "m", "sticker": _STICKER, "rarity_per_mille": 1},
        "symbol": {"name": "s", "sticker": _STICKER, "rarity_per_mille": 1},
        "backdrop": {"name": "b", "colors": _BACKDROP, "rarity_per_mille": 1},
    },
}
_PASSPORT: Final = {"data": [], "credentials": {"data": "", "hash": "", "secret": ""}}
_COMMUNITY: Final = {"community": {"id": 1, "name": "Tea lovers"}}
_OPTION: Final = {"option_persistent_id": "1", "option_text": "Tea"}
_FILL: Final = {"type": "solid", "color": 1}
_BACKGROUND: Final = {"type": {"type": "fill", "fill": _FILL, "dark_theme_dimming": 1}}
_WINNERS: Final = {
    "chat": CHANNEL,
    "giveaway_message_id": 1,
    "winners_selection_date": DATE,
    "winner_count": 0,
    "winners": [],
}

# The value of the field of each content type in a message.
CONTENTS: Final[dict[str, Any]] = {
    "text": "hello",
    "animation": CLIP,
    "audio": {**FILE, "duration": 1},
    "document": FILE,
    "live_photo": CLIP,
    "paid_media": {"star_count": 1, "paid_media": [{"type": "preview"}]},
    "photo": [PHOTO],
    "sticker": _STICKER,
    "story": {"chat": CHANNEL, "id": 1},
    "video": CLIP,
    "video_note": {**FILE, "length": 1, "duration": 1},
    "voice": {**FILE, "duration": 1},
    "checklist": {"title": "Shop", "tasks": [{"id": 1, "text": "Tea"}]},
    "contact": {"phone_number": "+1", "first_name": "Anna"},
    "dice": {"emoji": "🎲", "value": 6},
    "game": {"title": "G", "description": "G", "photo": [PHOTO]},
    "poll": POLL,
    "venue": {"location": _PLACE, "title": "Tea house", "address": "1"},
    "location": _PLACE,
    "new_chat_members": [user(43)],
    "left_chat_member": user(43),
    "chat_owner_left": {},
    "chat_owner_changed": {"new_owner": user(43)},
    "new_chat_title": "Tea",
    "new_chat_photo": [PHOTO],
    "delete_chat_photo": True,
    "group_chat_created": True,
    "supergroup_chat_created": True,
    "channel_chat_created": True,
    "message_auto_delete_timer_changed": {"message_auto_delete_time": 1},
    "migrate_to_chat_id": -101,
    "migrate_from_chat_id": -102,
    "pinned_message": message("pinned"),
    "invoice": {**_AMOUNT, "title": "T", "description": "T", "start_parameter": "t"},
    "successful_payment": {
        **_AMOUNT,
        "telegram_payment_charge_id": "1",
        "provider_payment_charge_id": "1",
    },
    "refunded_payment": {**_AMOUNT, "telegram_payment_charge_id": "1"},
    "users_shared": {"request_id": 1, "users": [{"user_id": 43}]},
    "chat_shared": {"request_id": 1, "chat_id": -100},
    "gift": _GIFT,
    "unique_gift": _UNIQUE_GIFT,
    "gift_upgrade_sent": _GIFT,
    "connected_website": "example.org",
    "write_access_allowed": {},
    "passport_data": _PASSPORT,
    "proximity_alert_triggered": {"traveler": user(42), "watcher": user(43), "distance": 1},
    "boost_added": {"boost_count": 1},
    "chat_background_set": _BACKGROUND,
    "checklist_tasks_done": {},
    "checklist_tasks_added": {"tasks": [{"id": 1, "text": "Tea"}]},
    "direct_message_price_changed": {"are_direct_messages_enabled": True},
    "forum_topic_created": {"name": "Tea", "icon_color": 1},
    "forum_topic_edited": {},
    "forum_topic_closed": {},
    "forum_topic_reopened": {},
    "general_forum_topic_hidden": {},
    "general_forum_topic_unhidden": {},
    "giveaway_created": {},
    "giveaway": {"chats": [CHANNEL], "winners_selection_date": DATE, "winner_count": 1},
    "giveaway_winners": _WINNERS,
    "giveaway_completed": {"winner_count": 1},
    "managed_bot_created": {"bot": {"id": 7, "is_bot": True, "first_name": "Bot"}},
    "paid_message_price_changed": {"paid_message_star_count": 1},
    "poll_option_added": _OPTION,
    "poll_option_deleted": _OPTION,
    "suggested_post_approved": {"send_date": DATE},
    "suggested_post_approval_failed": {"price": {"currency": "XTR", "amount": 5}},
    "suggested_post_declined": {},
    "suggested_post_paid": {"currency": "XTR"},
    "suggested_post_refunded": {"reason": "post_deleted"},
    "video_chat_scheduled": {"start_date": DATE},
    "video_chat_started": {},
    "video_chat_ended": {"duration": 1},
    "video_chat_participants_invited": {"users": [user(43)]},
    "web_app_data": {"data": "tea", "button_text": "Order"},
    "rich_message": {"blocks": [{"type": "divider"}]},
    "community_chat_added": _COMMUNITY,
    "community_chat_removed": {},
    "community_chat_joined": _COMMUNITY,
    "user_shared": {"request_id": 1, "user_id": 43},
}

_SPOT: Final = {"chat": GROUP, "message_id": 1, "date": DATE}
_MEMBERSHIP: Final = {
    "chat": GROUP,
    "from": user(),
    "date": DATE,
    "old_chat_member": {"status": "left", "user": user()},
    "new_chat_member": {"status": "member", "user": user()},
}
_PREMIUM: Final = {"source": "premium", "user": user()}
_BOOST: Final = {"boost_id": "1", "add_date": DATE, "expiration_date": DATE, "source": _PREMIUM}
_ADDRESS: Final = {
    "country_code": "GB",
    "state": "",
    "city": "London",
    "street_line1": "1",
    "street_line2": "",
    "post_code": "1",
}

REACTION: Final = _SPOT | {"user": user(), "old_reaction": [], "new_reaction": []}
VOTE: Final = {"poll_id": "1", "option_ids": [0], "option_persistent_ids": ["1"], "user": user()}
CHANNEL_POST: Final = without(message(chat=CHANNEL, sender_chat=CHANNEL), "from")

# An event of every type of update, as user 42 causes it if a user does.
UPDATES: Final[dict[str, Event]] = {
    "message": message(),
    "edited_message": message(edit_date=DATE),
    "channel_post": CHANNEL_POST,
    "edited_channel_post": CHANNEL_POST | {"edit_date": DATE},
    "business_connection": {
        "id": "Bc",
        "user": user(),
        "user_chat_id": 42,
        "date": DATE,
        "is_enabled": True,
    },
    "business_message": message(**BUSINESS),
    "edited_business_message": message(edit_date=DATE, **BUSINESS),
    "deleted_business_messages": {**BUSINESS, "chat": chat(42), "message_ids": [1]},
    "guest_message": message(guest_query_id="1", chat=GROUP),
    "message_reaction": REACTION,
    "message_reaction_count": _SPOT | {"reactions": []},
    "inline_query": inline_query(),
    "chosen_inline_result": {"result_id": "1", "query": "cat", "from": user()},
    "callback_query": callback(),
    "shipping_query": {
        "id": "1",
        "from": user(),
        "invoice_payload": "tea",
        "shipping_address": _ADDRESS,
    },
    "pre_checkout_query": pre_checkout(),
    "purchased_paid_media": {"from": user(), "paid_media_payload": "tea"},
    "poll": POLL,
    "poll_answer": VOTE,
    "my_chat_member": _MEMBERSHIP,
    "chat_member": _MEMBERSHIP,
    "chat_join_request": {"chat": GROUP, "from": user(), "user_chat_id": 42, "date": DATE},
    "chat_boost": {"chat": CHANNEL, "boost": _BOOST},
    "removed_chat_boost": {
        "chat": CHANNEL,
        "boost_id": "1",
        "remove_date": DATE,
        "source": _PREMIUM,
    },
    "managed_bot": {"user": user(), "bot": {"id": 7, "is_bot": True, "first_name": "Bot"}},
    "subscription": {"user": user(), "invoice_payload": "tea", "state": "active"},
    "stopped_message_generation": {"chat": chat(42), "draft_id": 1},
}

# Features that the oldest supported aiogram lacks, and the version that added them.
SINCE: Final = {
    **dict.fromkeys(("checklist", "checklist_tasks_added", "checklist_tasks_done"), "3.21"),
    "direct_message_price_changed": "3.21",
    **dict.fromkeys(("suggested_post_approval_failed", "suggested_post_approved"), "3.22"),
    **dict.fromkeys(("suggested_post_declined", "suggested_post_paid"), "3.22"),
    "suggested_post_refunded": "3.22",
    "gift_upgrade_sent": "3.24",
    **dict.fromkeys(("chat_owner_changed", "chat_owner_left"), "3.25"),
    **dict.fromkeys(("managed_bot", "managed_bot_created"), "3.27"),
    **dict.fromkeys(("poll_option_added", "poll_option_deleted"), "3.27"),
    **dict.fromkeys(("guest_message", "live_photo"), "3.28"),
    "rich_message": "3.29",
    **dict.fromkeys(("community_chat_added", "community_chat_removed", "subscription"), "3.30"),
    **dict.fromkeys(("community_chat_joined", "stopped_message_generation"), "3.31"),
}
MISSING: Final = {
    name
    for name in SINCE
    if name not in {*Update.model_fields, *(str(each.value) for each in ContentType)}
}


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Skip a test with a message if the installed aiogram lacks what it needs."""
    if name not in MISSING:
        return []
    return [pytest.mark.skip(reason=f"{name} needs aiogram {SINCE[name]}")]


def marked(names: Iterable[str]) -> list[Any]:
    """The names as parameters of a test, each with what it needs."""
    return [pytest.param(name, marks=needs(name)) for name in names]


def listen(bot: Instance, *observers: str, flags: dict[str, Any] | None = None) -> Instance:
    """Let the instance's handler handle these types of updates."""
    for name in observers:
        bot.dispatcher.observers[name].register(
            bot._handle, flags=None if flags is None else dict(flags)
        )
    return bot


class Fleet:
    """Three instances of a bot, each with its own connection to a shared storage."""

    def __init__(self, storages: list[Storage], client: aioredis.Redis | None) -> None:
        self.storages = storages
        self.client = client
        """For a look at the keys; None on memory."""

    def limiters(self, **options: Any) -> list[Limiter]:
        # The deadline is for a busy machine: what runs out in a test is not time.
        return [Limiter(storage, timeout=5, **options) for storage in self.storages]

    def start(
        self, *args: Any, observers: Iterable[str] = ("message",), **options: Any
    ) -> list[Instance]:
        """Start instances with a middleware of these arguments on these observers."""
        return [
            Instance(RateLimitMiddleware(*args, limiter=limiter, **options), observers)
            for limiter in self.limiters()
        ]

    def assemble(self, put: Callable[[Instance, Limiter], object]) -> list[Instance]:
        """Make instances with a function that gets a bare instance and its limiter."""
        bots = []
        for limiter in self.limiters():
            bot = bare()
            put(bot, limiter)
            bots.append(bot)
        return bots

    async def used(self, rule: Any = "1000/h", subject: Subject | None = None) -> int:
        """What the subject, user 42 by default, was charged under the rule."""
        rule = rule if isinstance(rule, Rule) else Rule(rule)
        decision = await self.limiters()[0].peek(rule, subject or Subject(user=42, chat=42))
        return int(rule.limit.capacity - decision.remaining)

    async def keys(self) -> set[str]:
        assert self.client is not None
        return {key.decode() async for key in self.client.scan_iter()}


class Through:
    """A middleware that only passes events on."""

    async def __call__(self, handler: Any, event: TelegramObject, data: dict[str, Any]) -> Any:
        return await handler(event, data)


def bare() -> Instance:
    """An instance without a limit and without handlers, for the test to complete."""
    return Instance(Through(), ())  # type: ignore[arg-type]  # with no observers, it goes nowhere


STORAGES: Final = ("memory", "redis")


@asynccontextmanager
async def fleet_on(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[Fleet]:
    """A fleet on one of `STORAGES`, empty; in `make quick`, Redis is fakeredis."""
    if kind == "memory":
        # Three dispatchers in one process, which is how far memory reaches.
        storage = MemoryStorage(clock=Clock())
        yield Fleet([storage] * 3, None)
        return
    async with AsyncExitStack() as stack:
        if request.config.getoption("quick"):
            server = FakeServer()
            clients: list[aioredis.Redis] = [FakeAsyncRedis(server=server) for _ in range(3)]
        else:
            port = request.getfixturevalue("redis_server").port
            clients = [aioredis.Redis(port=port) for _ in range(3)]
        for client in clients:
            await stack.enter_async_context(client)
        await clients[0].flushall()
        storages = [RedisStorage(client) for client in clients]
        for each in storages:
            stack.push_async_callback(each.close)
        yield Fleet(list(storages), clients[0])
