"""Scenario four: the bot answers, streams a text and broadcasts, with and without limits."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import product

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
ANSWERS = 3  # to each chat, from each instance
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

    @property
    def ok(self) -> bool:
        """Whether nothing was refused or lost; of the edits, only the last one has to arrive."""
        return not self.refused and (self.what == "edits" or self.arrived == self.asked)


async def scenario_four(context: DemoContext) -> None:
    """The same requests twice: Telegram refuses requests that come too fast."""
    context.display.scenario(
        "Scenario four: what the bot itself sends, without and with OutgoingLimits.",
        f"{INSTANCES} instances answer in {len(CHATS)} chats, edit one message {EDITS} times in "
        f"4 s, as a streamed answer does, and write to {len(SUBSCRIBERS)} subscribers. Telegram "
        "accepts about one message a second in a chat, and 30 a second of a broadcast.",
    )
    runs = _run(context, "4 without", limited=False), _run(context, "4 with", limited=True)
    without, told = await asyncio.gather(*runs)
    context.display.deliveries([*without, *told])
    context.check(
        "without OutgoingLimits Telegram refused, and messages were lost",
        any(each.refused and each.arrived < each.asked for each in without),
    )
    context.check(
        "with OutgoingLimits Telegram refused nothing, and every message arrived",
        all(each.ok for each in told),
    )


async def _run(context: DemoContext, title: str, *, limited: bool) -> list[Sending]:
    # Telegram is not exact either: it accepts one more than the budgets allow.
    floods = FloodControl(burst=6)
    async with BotApi(floods=floods) as api, _bots(context, api, limited) as bots:
        for chat in (*CHATS, STREAM):
            floods.wrote(message(chat)["message"]["chat"]["id"])
        began = time.monotonic()
        work = _answer([bot for bot, _ in bots]), _stream(bots[0][0]), _broadcast(*bots[1])
        ends = await asyncio.gather(*map(_timed, work))
    context.display.log(context.logs.records)
    if limited:
        _check_order(context, api)
    counted = {
        "answers": (CHATS, len(CHATS) * ANSWERS * INSTANCES),
        "edits": ((STREAM,), EDITS),
        "broadcast": (SUBSCRIBERS, len(SUBSCRIBERS)),
    }
    return [
        Sending(
            *(title, what, asked),
            sum(call.chat_id in chats for call in api.calls),
            sum(call.chat_id in chats for call in api.refused),
            ended - began,
        )
        for (what, (chats, asked)), ended in zip(counted.items(), ends, strict=True)
    ]


def _check_order(context: DemoContext, api: BotApi) -> None:
    answers = [(call.chat_id, call.text) for call in api.calls if "answer" in call.text]
    # Sorted by chat and instance, which begins the text; sorting keeps the order of equal ones.
    arrived = sorted(answers, key=lambda answer: (answer[0], answer[1][0]))
    context.check(
        "the answers of an instance in a chat arrived in the right order",
        arrived == sorted(answers),
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
                limits = OutgoingLimits(client, "four").setup(bot)
                stack.push_async_callback(limits.close)
            bots.append((bot, limits))
        yield bots


async def _answer(bots: list[Bot]) -> None:
    """Each instance answers several times in each chat."""
    answers = product(range(ANSWERS), enumerate(bots), CHATS)
    await asyncio.gather(
        *(_or_drop(bot.send_message(chat, f"{of} answer {n}")) for n, (of, bot), chat in answers)
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


async def _timed(work: Awaitable[None]) -> float:
    await work
    return time.monotonic()
