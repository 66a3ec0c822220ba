"""Updates of every kind, and several instances of a bot that receive them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any, Final

import redis.asyncio as aioredis
from aiogram.types import Update

from bot_ratelimit import Limiter, MemoryStorage, RateLimitMiddleware, Rule, Subject
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
    charges = dict.fromkeys(("telegram_payment_charge_id", "provider_payment_charge_id"), "1")
    return content(successful_payment=_AMOUNT | charges, **fields)


def pre_checkout() -> Event:
    return {"id": str(next(_numbers)), "from": user(), **_AMOUNT}


def without(event: Event, *fields: str) -> Event:
    return {name: value for name, value in event.items() if name not in fields}


PHOTO: Final = {"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}
_SWITCHES: Final = ("is_closed", "is_anonymous", "members_only", "allows_revoting")
POLL: Final = {
    "id": "1",
    "question": "Tea?",
    "options": [],
    "total_voter_count": 0,
    "type": "regular",
    **dict.fromkeys((*_SWITCHES, "allows_multiple_answers"), False),
}
_AMOUNT: Final = {"currency": "XTR", "total_amount": 5, "invoice_payload": "tea"}
_SPOT: Final = {"chat": GROUP, "message_id": 1, "date": DATE}
_MEMBERSHIP: Final = {
    "chat": GROUP,
    "from": user(),
    "date": DATE,
    "old_chat_member": {"status": "left", "user": user()},
    "new_chat_member": {"status": "member", "user": user()},
}
_CONNECTION: Final = {"id": "Bc", "user": user(), "user_chat_id": 42, "is_enabled": True}
_PREMIUM: Final = {"source": "premium", "user": user()}
_BOOST: Final = {"boost_id": "1", "add_date": DATE, "expiration_date": DATE, "source": _PREMIUM}
_STREET: Final = ("state", "city", "street_line1", "street_line2", "post_code")
_ADDRESS: Final = {"country_code": "GB", **dict.fromkeys(_STREET, "1")}

REACTION: Final = _SPOT | {"user": user(), "old_reaction": [], "new_reaction": []}
VOTE: Final = {"poll_id": "1", "option_ids": [0], "option_persistent_ids": ["1"], "user": user()}
CHANNEL_POST: Final = without(message(chat=CHANNEL, sender_chat=CHANNEL), "from")

# An event of every type of update, as user 42 causes it if a user does.
UPDATES: Final[dict[str, Event]] = {
    "message": message(),
    "edited_message": message(edit_date=DATE),
    "channel_post": CHANNEL_POST,
    "edited_channel_post": CHANNEL_POST | {"edit_date": DATE},
    "business_connection": _CONNECTION | {"date": DATE},
    "business_message": message(**BUSINESS),
    "edited_business_message": message(edit_date=DATE, **BUSINESS),
    "deleted_business_messages": {**BUSINESS, "chat": chat(42), "message_ids": [1]},
    "guest_message": message(guest_query_id="1", chat=GROUP),
    "message_reaction": REACTION,
    "message_reaction_count": _SPOT | {"reactions": []},
    "inline_query": inline_query(),
    "chosen_inline_result": {"result_id": "1", "query": "cat", "from": user()},
    "callback_query": callback(),
    "shipping_query": pre_checkout() | {"shipping_address": _ADDRESS},
    "pre_checkout_query": pre_checkout(),
    "purchased_paid_media": {"from": user(), "paid_media_payload": "tea"},
    "poll": POLL,
    "poll_answer": VOTE,
    "my_chat_member": _MEMBERSHIP,
    "chat_member": _MEMBERSHIP,
    "chat_join_request": {"chat": GROUP, "from": user(), "user_chat_id": 42, "date": DATE},
    "chat_boost": {"chat": CHANNEL, "boost": _BOOST},
    "removed_chat_boost": {"chat": CHANNEL, "remove_date": DATE, **_BOOST},
    "managed_bot": {"user": user(), "bot": {"id": 7, "is_bot": True, "first_name": "Bot"}},
    "subscription": {"user": user(), "invoice_payload": "tea", "state": "active"},
    "stopped_message_generation": {"chat": chat(42), "draft_id": 1},
}

# Types of updates that the oldest supported aiogram lacks; they came with 3.27 to 3.31.
_NEWER: Final = {"managed_bot", "guest_message", "subscription", "stopped_message_generation"}
MISSING: Final = _NEWER - set(Update.model_fields)


def listen(bot: Instance, *observers: str, flags: dict[str, Any] | None = None) -> Instance:
    """Let the instance's handler handle these types of updates."""
    for name in observers:
        bot.dispatcher.observers[name].register(
            bot._handle, flags=None if flags is None else dict(flags)
        )
    return bot


def limited(
    rate_limit: Any = "1/m",
    observers: Iterable[str] = ("message",),
    *,
    guard: bool = False,
    flag: Any = None,
    **options: Any,
) -> Instance:
    """A bot with a middleware that is set up, and a handler with this flag; without notices."""
    options = {"limiter": Limiter(MemoryStorage(clock=Clock())), "on_limited": None} | options
    bot = bare()
    RateLimitMiddleware(rate_limit, **options).setup(bot.dispatcher, guard=guard)
    return listen(bot, *observers, flags=None if flag is None else {"rate_limit": flag})


async def keys_of(client: aioredis.Redis) -> set[str]:
    return {key.decode().removeprefix("bot:ratelimit:") for key in await client.keys()}


async def used(limiter: Limiter, rule: Any, subject: Subject | None = None) -> int:
    """What the subject, user 42 by default, was charged under the rule."""
    rule = rule if isinstance(rule, Rule) else Rule(rule)
    decision = await limiter.peek(rule, subject or Subject(user=42, chat=42))
    return int(rule.limit.capacity - decision.remaining)


class Fleet:
    """Three instances of a bot, each with its own connection to a shared storage."""

    def __init__(self, storages: list[Storage], client: aioredis.Redis | None) -> None:
        self.storages = storages
        self.client = client
        """For a look at the keys; None on memory."""

    def limiters(self) -> list[Limiter]:
        # The deadline is for a busy machine: what runs out in a test is not time.
        return [Limiter(storage, timeout=5) for storage in self.storages]

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
        return await used(self.limiters()[0], rule, subject)

    async def keys(self) -> set[str]:
        assert self.client is not None
        return await keys_of(self.client)


def bare() -> Instance:
    """An instance without a limit and without handlers, for the test to complete."""
    return Instance(None, ())
