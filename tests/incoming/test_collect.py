"""Several quick messages as one: `Collect` as a flag and as a middleware."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from aiogram import F, Router
from aiogram.types import Message

from bot_ratelimit import Collect, ConfigError, Limiter, RateLimitMiddleware, StorageError
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.testing import FlakyStorage
from tests.benches import Pauses, eventually

from .support import HANDLED, Instance, message, user
from .updates import CHANNEL_BOT, GROUP, Fleet, album, bare, limited, payment, photo

QUICK = Collect(wait=0.3, longest=2.0, at_most=20)


class Calls:
    """The calls of the handlers of all instances."""

    def __init__(self) -> None:
        self.texts: list[list[str | None]] = []
        self.firsts: list[Message] = []

    async def handle(self, event: Message, messages: list[Message]) -> str:
        self.texts.append([each.text for each in messages])
        self.firsts.append(event)
        return HANDLED


def collecting(limiter: Limiter, calls: Calls, collect: Any = QUICK) -> Instance:
    bot = limited("9/h", (), limiter=limiter)
    bot.dispatcher.message.register(calls.handle, flags={"rate_limit": {"collect": collect}})
    return bot


class Late(FlakyStorage):
    """A storage that hangs from the first call of a method of its documents until `go` is set.

    Like a server that hangs, it then does what it was asked, in order, also for callers that have
    given up.
    """

    def __init__(self, storage: Storage, method: str) -> None:
        super().__init__(storage)
        self.method, self.go, self.in_order = method, asyncio.Event(), asyncio.Lock()
        self.go.set()

    def documents(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any, timeout: float = 2.0) -> Any:
            if name == self.method:
                self.method = ""
                self.go.clear()
            answer = asyncio.ensure_future(later(*arguments))
            with suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(answer), timeout)
            raise StorageError(f"no answer within {timeout:g} s")

        async def later(*arguments: Any) -> Any:
            async with self.in_order:
                await self.go.wait()
                return await getattr(self.storage.documents(), name)(*arguments)

        return call


def say(bot: Instance, text: str, **fields: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(bot.feed(message=message(text, **fields)))


async def test_quick_messages_to_any_instance_are_one_call(fleet: Fleet) -> None:
    """The handler is called once, with the first message as it was sent, and charged as one.

    Another user, another chat, and what comes after the pause are other calls.
    """
    calls = Calls()
    bots = [collecting(limiter, calls) for limiter in fleet.limiters()]
    first = photo(caption="tea", caption_entities=[{"type": "bold", "offset": 0, "length": 3}])
    tasks = [asyncio.create_task(bots[0].feed(message=first))]
    for text, bot in zip("bcdef", [*bots[1:], *bots], strict=True):
        await asyncio.sleep(0.02)
        tasks.append(say(bot, text))
    assert await asyncio.gather(*tasks) == [None] * 5 + [HANDLED]
    assert calls.texts == [[None, *"bcdef"]]
    assert calls.firsts[0].model_dump() == Message.model_validate(first).model_dump()
    assert calls.firsts[0].bot is bots[2].bot
    assert await fleet.used("9/h") == 1
    others: list[dict[str, Any]] = [{}, {"from": user(43)}, {"chat": GROUP}]
    tasks = [say(bot, "g", **other) for bot, other in zip(bots, others, strict=True)]
    assert await asyncio.gather(*tasks) == [HANDLED] * 3
    assert calls.texts[1:] == [["g"]] * 3


async def test_at_most_ends_the_collection_but_cuts_no_album(fleet: Fleet) -> None:
    """The last of `at_most` messages is handled at once; an album comes complete."""
    calls, many = Calls(), Collect(0.6, 5.0, at_most=3)
    bots = [collecting(limiter, calls, many) for limiter in fleet.limiters()]
    tasks = []
    for text, bot in zip("abc", bots, strict=True):
        tasks.append(say(bot, text))
        await asyncio.sleep(0.03)
    assert await tasks[-1] == HANDLED
    for n, each in enumerate(album(7)):
        tasks.append(asyncio.create_task(bots[n % 3].feed(message=each)))
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    assert [len(texts) for texts in calls.texts] == [3, 7]


@pytest.mark.parametrize("next_one", [True, False])
async def test_what_an_instance_leaves_is_handled_by_another(fleet: Fleet, next_one: bool) -> None:
    """Messages of an instance that died come with the user's next one, or after `longest`."""
    calls = Calls()
    bots = [collecting(limiter, calls, Collect(0.6, 1.8)) for limiter in fleet.limiters()]
    first = say(bots[0], "a")
    await asyncio.sleep(0.1)
    last = say(bots[1], "b")
    await asyncio.sleep(0.2)
    if fleet.client is not None:
        (key,) = await fleet.client.keys("bot:ratelimit:collect:*")
        assert 0 < await fleet.client.ttl(key) <= 86_400
    (first if next_one else last).cancel()
    assert await (last if next_one else first) == HANDLED
    assert calls.texts == [["a", "b"]]


async def test_each_instance_collects_by_itself_while_redis_is_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost or handled twice on an instance, before, during and after an outage."""
    monkeypatch.setattr("bot_ratelimit.incoming.collect._PAUSE", 30.0)  # before they are removed
    calls, storage = Calls(), FlakyStorage()
    bot = collecting(Limiter(storage), calls)
    tasks = [say(bot, "a"), say(bot, "b")]
    await asyncio.sleep(0.05)
    storage.fail()  # what was put into Redis is out of reach now
    assert await asyncio.gather(*tasks) == [None, HANDLED]
    assert await asyncio.gather(say(bot, "c"), say(bot, "d")) == [None, HANDLED]
    storage.heal()
    await asyncio.sleep(0.6)  # its circuit is open for half a second
    assert await say(bot, "e") == HANDLED
    assert calls.texts == [["a", "b"], ["c", "d"], ["e"]]
    assert sum("by itself" in each for each in caplog.messages) == 1


async def test_messages_of_others_survive_a_list_that_is_taken_too_late(fleet: Fleet) -> None:
    """An instance that gets no answer handles its own messages; the other one handles the rest."""
    calls, late, many = Calls(), Late(fleet.storages[0], "take_list"), Collect(0.3, 30.0)
    hanging = collecting(Limiter(late, timeout=1), calls, many)
    other = collecting(fleet.limiters()[1], calls, many)
    waits = say(other, "a")
    await asyncio.sleep(0.1)
    assert await say(hanging, "b") == HANDLED
    late.go.set()
    assert await waits == HANDLED
    assert calls.texts == [["b"], ["a"]]


async def test_a_message_that_is_stored_too_late_is_handled_once(fleet: Fleet) -> None:
    """What an instance has handled by itself is removed from the list that others take."""
    calls, late = Calls(), Late(fleet.storages[0], "push")
    hanging = collecting(Limiter(late, timeout=0.3), calls)
    other = collecting(fleet.limiters()[1], calls)
    assert await say(hanging, "a") == HANDLED
    late.go.set()
    await asyncio.sleep(0.1)
    assert await say(other, "b") == HANDLED
    assert calls.texts == [["a"], ["b"]]


async def test_what_was_handled_in_an_outage_is_removed_after_it(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The removal is tried until the storage answers again."""
    monkeypatch.setattr("bot_ratelimit.incoming.collect._PAUSE", 0.02)
    calls, storage, many = Calls(), FlakyStorage(fleet.storages[0]), Collect(0.3, 2.0)
    limiter = Limiter(storage, timeout=5)
    away = collecting(limiter, calls, many)
    waits = say(away, "a")
    await asyncio.sleep(0.1)
    storage.fail()
    assert await waits == HANDLED
    await asyncio.sleep(0.1)
    storage.heal()
    await eventually(lambda: not many._lists[limiter]._removals)
    assert await say(collecting(fleet.limiters()[1], calls), "b") == HANDLED
    assert calls.texts == [["a"], ["b"]]


async def test_a_message_that_arrives_meanwhile_is_handled_once(fleet: Fleet) -> None:
    """It comes after the list was taken, so it is the first of the next one."""
    calls, late = Calls(), Late(fleet.storages[0], "take_list")
    bot = collecting(Limiter(late, timeout=5), calls)
    other = collecting(fleet.limiters()[1], calls)
    first = say(bot, "a")
    await eventually(lambda: not late.go.is_set())
    second = say(bot, "b")
    await asyncio.sleep(0.05)
    late.go.set()
    assert await asyncio.gather(first, second) == [HANDLED] * 2
    assert await say(other, "c") == HANDLED
    assert calls.texts == [["a"], ["b"], ["c"]]


async def test_a_redis_that_hangs_delays_an_update_by_one_timeout() -> None:
    """Adding, looking, taking and charging together wait for no longer than `timeout`."""
    calls, storage = Calls(), FlakyStorage()
    bot = collecting(Limiter(storage, timeout=0.3), calls, Collect(0.1, 0.2))
    storage.hang()
    with Pauses() as pauses:
        began = time.monotonic()
        assert await say(bot, "a") == HANDLED
        took = time.monotonic() - began
    assert 0.3 <= took < 0.5 + 3 * pauses.longest


async def test_a_message_has_the_whole_timeout_after_the_pause() -> None:
    """In a burst adding takes a while; looking then has its own time, and so has taking."""
    given = list[float]()

    class Busy(FlakyStorage):
        async def misbehave(self, timeout: float, *, counts: bool = True) -> None:
            given.append(timeout)
            time.sleep(0.2)  # noqa: ASYNC251 - a bot that is busy with others

    bot = collecting(Limiter(Busy(), timeout=0.3), Calls(), Collect(0.1))
    assert await say(bot, "a") == HANDLED
    assert given[:4] == [0.3, 0.3, pytest.approx(0.1, abs=0.02), 0.3]


async def test_other_updates_and_handlers_are_not_collected(limiter: Limiter) -> None:
    """Payments, paid messages, edits, other bots and messages for other handlers do not wait."""
    calls, bot = Calls(), limited("9/h", (), limiter=limiter)
    bot.dispatcher.message.register(bot._handle, F.text.startswith("/"))
    for observer in (bot.dispatcher.message, bot.dispatcher.edited_message):
        observer.register(calls.handle, flags={"rate_limit": {"collect": "5s"}})
    async with asyncio.timeout(2):
        assert await bot.feed(message=payment()) == HANDLED
        assert await bot.feed(edited_message=message("b", edit_date=1)) == HANDLED
        assert await bot.send("/stop") == [True]
        assert await bot.send("c", paid_star_count=5) == [True]
        assert await bot.send("d", chat=GROUP, **{"from": CHANNEL_BOT | {"id": 7}}) == [True]
    assert calls.texts == [[None], ["b"], ["c"], ["d"]]


async def test_as_a_middleware_before_the_limits(fleet: Fleet) -> None:
    """Registered before the limits, it collects for every handler, and they charge once."""
    calls, bots = Calls(), []
    for limiter in fleet.limiters():
        bot, router = bare(), Router()
        bot.dispatcher.message.middleware(Collect(0.15, 1.0, limiter=limiter))
        bot.dispatcher.message.middleware(RateLimitMiddleware("9/h", limiter=limiter))
        router.message.middleware(RateLimitMiddleware("9/h", limiter=limiter))
        router.message.register(calls.handle, F.text == "a")
        router.message.register(partial(calls.handle), F.text)
        bot.dispatcher.include_router(router)
        bots.append(bot)
    tasks = [say(bot, text) for bot, text in zip(bots * 2, "abcbca", strict=True)]
    await asyncio.gather(*tasks)
    assert sorted(map(sorted, calls.texts)) == [["a", "a"], ["b", "b", "c", "c"]]
    assert await fleet.used("9/h") == 2
    away = FlakyStorage()
    away.documents = partial(Storage.documents, away)  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="does not support"):
        Collect(limiter=Limiter(away))
