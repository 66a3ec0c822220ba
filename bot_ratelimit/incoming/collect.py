"""Collect: several quick messages of a user become one call of the handler.

Every instance puts the messages that it gets into one list in Redis::

    bot:ratelimit:collect:2:1:chat.ask:42:42    the messages, the latest first

and looks at it when the user has been quiet for `wait`. The instance whose message is the latest
takes the whole list, which only one can do, and calls the handler. Instances whose messages are
still there after `longest` do the same, because the latest one may have died. The list then has the
ids of the messages that were taken, for the instances that they came to. The 2 is the format.

If the storage does not answer about a message in time, or has lost it, its instance withdraws the
message from the list and handles it alone. What was asked for must not run later: a list that is
taken too late stays for the other instances.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from aiogram import BaseMiddleware
from aiogram.types import Message, TelegramObject
from cachetools import TTLCache

from bot_ratelimit.errors import ConfigError, RateLimitError
from bot_ratelimit.incoming.admission import Handler
from bot_ratelimit.incoming.backlog import period_of
from bot_ratelimit.incoming.dispatch_state import DEADLINE, NEWEST, dispatch_state
from bot_ratelimit.incoming.events import NEVER_REFUSED, is_from_bot, is_one_of, is_paid, subject_of
from bot_ratelimit.incoming.handler_names import HandlerNames
from bot_ratelimit.limiter.limiter import Limiter
from bot_ratelimit.rules.checks import check_whole
from bot_ratelimit.rules.limit import Limit
from bot_ratelimit.storage.base import Count
from bot_ratelimit.storage.deadline import Deadline
from bot_ratelimit.storage.guarded import Guard, Missing
from bot_ratelimit.storage.loops import Tasks
from bot_ratelimit.storage.memory import MemoryStorage

T = TypeVar("T")

MESSAGES_KEY: Final = "messages"
"""The key of the collected messages in a handler's data."""

_KEPT: Final = 86_400
"""Seconds for which messages wait for the user's next one if every instance died."""
_MARKED: Final = 60
"""Seconds beyond `longest` for which it is known what was taken."""
_MOST: Final = 1_000
"""How many messages of a user are kept at most."""
_ANY: Final = Limit(1, 1.0)
_ALONE: Final = "each instance collects messages by itself"
_MAX_REMOVALS: Final = 1_000
"""How many removals of withdrawn messages are under way at most; further ones are dropped."""
_ATTEMPTS, _PAUSE = 600, 1.0
"""How often a removal is tried, and the seconds between two attempts."""


class Collect(BaseMiddleware):
    """Calls a handler once for several quick messages of a user.

    ::

        @dp.message(F.text)
        @flags.rate_limit(limit="20/hour", collect=Collect(wait="1.5s"))
        async def ask(message: Message, messages: list[Message]) -> None: ...

    The handler gets the first message, and all of them in `data["messages"]`, when the user has
    been quiet for `wait`. Albums come complete. The messages are charged as one. Each handler, chat
    and topic is collected separately. Service messages, payments, messages that their user paid
    for, edits and messages of other bots are handled at once.

    In a flag it uses the storage of the middleware, so several instances collect together. As a
    middleware of its own, it has to be registered before the limits::

        dp.message.middleware(Collect(limiter=limits.limiter))
        dp.message.middleware(limits)

    Args:
        wait: Seconds without a new message, or a text such as `"1.5s"`.
        longest: How long the first message waits at most.
        at_most: With this number of messages, the handler is called at once.
        limiter: Whose storage and prefix to use, as a middleware; this process only by default.

    Raises:
        ConfigError: An argument is invalid, or the limiter's storage keeps no lists.
    """

    def __init__(
        self,
        wait: float | str = 1.5,
        longest: float | str = 10.0,
        at_most: int = 20,
        *,
        limiter: Limiter | None = None,
    ) -> None:
        self.wait = period_of("wait", wait)
        self.longest = period_of("longest", longest)
        if self.longest < self.wait:
            raise ConfigError(f"longest={longest!r}: expected at least as long as wait={wait!r}")
        self.at_most = check_whole("at_most", at_most, 1, _MOST)
        self._limiter = Limiter(MemoryStorage()) if limiter is None else limiter
        self._limiter.storage.documents()
        self._names = HandlerNames()
        self._lists: WeakKeyDictionary[Limiter, _Lists] = WeakKeyDictionary()

    async def __call__(self, handler: Handler, event: TelegramObject, data: dict[str, Any]) -> Any:
        """Collect the event, or pass it on."""
        registered = data.get("handler")
        name = "all"
        if registered is not None:
            name = self._names.name_of(registered, data.get("event_router"))
        return await self.collected(handler, event, data, name, self._limiter)

    async def collected(
        self,
        handler: Handler,
        event: TelegramObject,
        data: dict[str, Any],
        name: str,
        limiter: Limiter,
    ) -> Any:
        """Handle the event with those that were collected, or leave it to another message."""
        state, done = dispatch_state(data), ("collected", id(data.get("handler")))
        subject = None if done in state or _is_single(event, data) else subject_of(event, data)
        if subject is None or not isinstance(event, Message):
            data.setdefault(MESSAGES_KEY, [event])
            return await handler(event, data)
        state[done] = True
        bot = event.bot.id if event.bot is not None else 0
        parts = (bot, name, subject.business, subject.chat, subject.topic, subject.user)
        names = ":".join(str(each) for each in parts if each is not None)
        key = f"{limiter.key_prefix}:ratelimit:collect:2:{names}"
        if limiter not in self._lists:
            self._lists[limiter] = _Lists(limiter, self.longest)
        deadline = state.setdefault(DEADLINE, Deadline(limiter.timeout))
        values = await self._wait(self._lists[limiter], key, event, deadline)
        messages = _messages_of(values, event)
        if not messages:
            return None
        data[MESSAGES_KEY], state[NEWEST] = messages, messages[-1]
        return await handler(messages[0], data)

    async def _wait(
        self, lists: _Lists, key: str, event: Message, deadline: Deadline
    ) -> list[bytes]:
        """Return what is to be handled now; empty if it is handled with another message."""
        value = f"{event.message_id} {event.model_dump_json(exclude_unset=True)}".encode()
        clock = asyncio.get_running_loop().time
        last_moment = clock() + self.longest
        try:
            count = await lists.add(key, value, deadline)
            # An album has no end marker, so it is never cut.
            if count >= self.at_most and event.media_group_id is None:
                return await lists.take(key, value, deadline)
            while True:
                await asyncio.sleep(min(self.wait, max(0.0, last_moment - clock())))
                deadline.renew()
                waiting = await lists.look(key, value, deadline)
                if value not in waiting:
                    return []
                if waiting[0] == value or clock() >= last_moment:
                    return await lists.take(key, value, deadline)
        finally:
            lists.forget(key, value)


class _Lists:
    """The lists of messages: those in the storage, and those of this process while it is away."""

    def __init__(self, limiter: Limiter, longest: float) -> None:
        self._marked = math.ceil(longest) + _MARKED
        self._documents = limiter.storage.documents()
        self._guard = Guard(limiter.storage, "collected messages", _ALONE)
        # The messages of this process that wait, the latest last. Of each, how many the storage had
        # with it, or why only this process has it; None while it is being added.
        self._own: dict[str, dict[bytes, int | Missing | None]] = {}
        # Messages that this process has handled alone, and that may still be in the list.
        self._handled: TTLCache[bytes, bool] = TTLCache(10_000, _KEPT, time.monotonic)
        self._removals = Tasks()

    async def add(self, key: str, value: bytes, deadline: Deadline) -> int:
        """Add a message; return how many wait now."""
        own = self._own.setdefault(key, {})
        own[value] = None
        push = partial(self._documents.push, key, value, _MOST, _KEPT)
        own[value] = count = await self._ask(key, deadline, push)
        if count is Missing.UNKNOWN:
            self._withdraw(key, value)
        return len(own) if isinstance(count, Missing) else count

    async def look(self, key: str, value: bytes, deadline: Deadline) -> list[bytes]:
        """Return the messages that wait, the latest first."""
        own = self._own.get(key, {})
        if isinstance(own.get(value), int):
            waiting = partial(self._documents.waiting, key, value)
            found = await self._ask(key, deadline, waiting)
            if isinstance(found, list):
                return found
            self._withdraw(key, value)
        return list(reversed(own))

    async def take(self, key: str, value: bytes, deadline: Deadline) -> list[bytes]:
        """Remove and return the messages that wait; only one caller of all instances gets them."""
        own = self._own.get(key, {})
        taken: list[bytes] = []
        if isinstance(own.get(value), int):
            found: list[bytes] | Missing | None = None
            now = await self._ask(key, deadline, partial(self._documents.now, key))
            if not isinstance(now, Missing):
                deadline.renew()  # in a burst the list would often be taken too late
                until = now + deadline.left()
                take = partial(self._documents.take_list, key, until, value, self._marked)
                found = await self._ask(key, deadline, take)
            if isinstance(found, list):
                taken = [each for each in reversed(found) if each not in self._handled]
            else:
                self._withdraw(key, value)
        alone = [each for each, answer in own.items() if isinstance(answer, Missing)]
        for each in (*taken, *alone):
            own.pop(each, None)
        self._handled.update(dict.fromkeys(alone, True))
        return [*taken, *alone]

    def _withdraw(self, key: str, value: bytes) -> None:
        """Let only this process handle a message, because the storage does not have it for sure."""
        own = self._own.get(key, {})
        if value in own:
            own[value] = Missing.UNKNOWN
            if len(self._removals) < _MAX_REMOVALS:
                self._removals.begin(self._remove(key, value))

    async def _remove(self, key: str, value: bytes) -> None:
        """Remove a message from the list of the storage.

        The storage is asked even if it is known not to answer: a server that hangs then removes the
        message before another instance can take it.
        """
        for _ in range(_ATTEMPTS):
            with suppress(RateLimitError):
                await self._documents.take_list(key, 0.0, value)
                return
            await asyncio.sleep(_PAUSE)

    def forget(self, key: str, value: bytes) -> None:
        """Forget a message of this process."""
        own = self._own.get(key)
        if own is not None:
            own.pop(value, None)
            if not own:
                del self._own[key]

    async def _ask(
        self, key: str, deadline: Deadline, call: Callable[..., Awaitable[T]]
    ) -> T | Missing:
        """The answer of the storage within what is left for this update, or why there is none."""
        return await self._guard.run([Count(key, _ANY)], call, deadline=deadline)


def collect_of(value: object) -> Collect | None:
    """Return what the flag `collect` says: a `Collect`, its `wait`, True, or nothing.

    Raises:
        ConfigError: It is something else.
    """
    if value is None or value is False:
        return None
    if value is True:
        return Collect()
    if isinstance(value, Collect):
        return value
    if isinstance(value, (str, int, float)):
        return Collect(value)
    raise ConfigError(f"collect={value!r}: expected Collect(...), its wait such as '1.5s', or True")


def _is_single(event: TelegramObject, data: dict[str, Any]) -> bool:
    """Whether an event is handled at once."""
    if not isinstance(event, Message) or event.edit_date is not None or is_paid(event):
        return True
    return is_one_of(NEVER_REFUSED, event, data.get("event_update")) or is_from_bot(event, data)


def _messages_of(values: list[bytes], event: Message) -> list[Message]:
    """The messages in the order in which they were sent, each once."""
    found = {}
    for value in values:
        _, _, text = value.partition(b" ")
        message = Message.model_validate_json(text, context={"bot": event.bot})
        found[message.message_id] = event if message.message_id == event.message_id else message
    return [found[number] for number in sorted(found)]
