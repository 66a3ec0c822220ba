"""Scenario four: the bot answers, streams a text and broadcasts, with and without limits."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

from aiogram import Bot
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.exceptions import TelegramRetryAfter

from bot_ratelimit import OutgoingLimits
from example_bot.demo.botapi import TOKEN, BotApi
from example_bot.demo.context import INSTANCES, DemoContext
from example_bot.demo.floods import FloodControl
from example_bot.demo.updates import message

CHATS = range(5_001, 5_007)
ANSWERS = 4
"""To each chat, from each instance."""
STREAM, EDITS = 5_100, 40
SUBSCRIBERS = range(6_001, 6_061)


@dataclass(frozen=True, slots=True)
class Sending:
    """What happened to one kind of requests."""

    title: str
    what: str
    asked: int
    arrived: int
    refused: int
    seconds: float


async def scenario_four(context: DemoContext) -> None:
    """The same requests twice: Telegram refuses requests that come too fast."""
    context.display.scenario(
        "Scenario four: what the bot itself sends, without and with OutgoingLimits.",
        f"{INSTANCES} instances answer in {len(CHATS)} chats, edit one message {EDITS} times in "
        f"4 s, as a streamed answer does, and write to {len(SUBSCRIBERS)} subscribers. Telegram "
        "accepts about one message a second in a chat, and 30 a second of a broadcast.",
    )
    without = await _run(context, "4 without", limited=False)
    told = await _run(context, "4 with", limited=True)
    context.display.deliveries([*without, *told])
    context.check(
        "without OutgoingLimits Telegram refused, and messages were lost",
        sum(each.refused for each in without) > 0 and _lost(without) > 0,
    )
    context.check(
        "with OutgoingLimits Telegram refused nothing, and every message arrived",
        not sum(each.refused for each in told) and not _lost(told),
    )


async def _run(context: DemoContext, title: str, *, limited: bool) -> list[Sending]:
    # Telegram is not exact either: it accepts one more than the budgets allow.
    floods = FloodControl(burst=6)
    async with BotApi(floods=floods) as api, _bots(context, api, limited) as bots:
        for chat in (*CHATS, STREAM):
            floods.wrote(message(chat)["message"]["chat"]["id"])
        began = time.monotonic()
        ends = dict(
            await asyncio.gather(
                _timed("answers", _answer([bot for bot, _ in bots]), began),
                _timed("edits", _stream(bots[0][0]), began),
                _timed("broadcast", _broadcast(*bots[1]), began),
            )
        )
    context.display.log(context.logs.take())
    if limited:
        _check_order(context, api)
    counted = {
        "answers": (CHATS, len(CHATS) * ANSWERS * INSTANCES),
        "edits": ((STREAM,), EDITS),
        "broadcast": (SUBSCRIBERS, len(SUBSCRIBERS)),
    }
    return [
        Sending(
            title,
            what,
            asked,
            sum(call.chat_id in chats for call in api.calls),
            sum(call.chat_id in chats for call in api.refused),
            ends[what],
        )
        for what, (chats, asked) in counted.items()
    ]


def _lost(found: Iterable[Sending]) -> int:
    """How many did not arrive. Edits do not count: only the last one has to arrive."""
    return sum(each.asked - each.arrived for each in found if each.what != "edits")


def _check_order(context: DemoContext, api: BotApi) -> None:
    orders = [
        [call.text for call in api.calls if call.chat_id == chat and call.text.startswith(name)]
        for chat in CHATS
        for name in map(str, range(INSTANCES))
    ]
    context.check(
        "the answers of an instance in a chat arrived in the right order",
        all(order == sorted(order) for order in orders),
    )
    edits = [call.text for call in api.calls if call.chat_id == STREAM]
    context.check(
        f"of {EDITS} edits only a few were sent, and the last text is shown",
        len(edits) < EDITS / 2 and edits[-1] == f"text {EDITS - 1}",
    )


@asynccontextmanager
async def _bots(
    context: DemoContext, api: BotApi, limited: bool
) -> AsyncIterator[list[tuple[Bot, OutgoingLimits | None]]]:
    """A bot for each instance, with its OutgoingLimits if it is limited."""
    async with AsyncExitStack() as stack:
        bots: list[tuple[Bot, OutgoingLimits | None]] = []
        for _ in range(INSTANCES):
            session = AiohttpSession(api=TelegramAPIServer.from_base(api.url))
            bot = await stack.enter_async_context(Bot(TOKEN, session))
            limits = None
            if limited:
                client = context.backend.client()
                stack.push_async_callback(client.aclose)
                limits = OutgoingLimits(client, f"{context.prefix}:four").setup(bot)
                stack.push_async_callback(limits.close)
            bots.append((bot, limits))
        yield bots


async def _answer(bots: list[Bot]) -> None:
    """Each instance answers several times in each chat."""
    await asyncio.gather(
        *(
            _or_drop(bot.send_message(chat, f"{name} answer {number}"))
            for number in range(ANSWERS)
            for name, bot in enumerate(bots)
            for chat in CHATS
        )
    )


async def _stream(bot: Bot) -> None:
    """An answer that grows, as a language model streams it."""
    edits = []
    for number in range(EDITS):
        edit = bot.edit_message_text(f"text {number}", chat_id=STREAM, message_id=1)
        edits.append(asyncio.create_task(_or_drop(edit)))
        await asyncio.sleep(0.1)
    await asyncio.gather(*edits)


async def _broadcast(bot: Bot, limits: OutgoingLimits | None) -> None:
    async def send(chat: int) -> None:
        await bot.send_message(chat, "news")

    if limits is None:
        await asyncio.gather(*(_or_drop(send(chat)) for chat in SUBSCRIBERS))
        return
    async for _ in limits.broadcast(SUBSCRIBERS, send):
        pass


async def _or_drop(request: Awaitable[object]) -> None:
    """Send; a message that gets a 429 is lost, as in a bot that does not handle it."""
    with suppress(TelegramRetryAfter):
        await request


async def _timed(what: str, work: Awaitable[None], began: float) -> tuple[str, float]:
    await work
    return what, time.monotonic() - began
