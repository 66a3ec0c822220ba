"""The crowd: who does what, in which order, and what became of it."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from example_bot.bot import PONG, REPORT, THANKS, WORKING
from example_bot.demo.botapi import BotApi
from example_bot.demo.methods import Call
from example_bot.demo.updates import Json, message
from example_bot.demo.verdict import Outcome
from example_bot.demo.webhooks import Delivery

USERS, FLOODERS = "users", "flooders"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who writes to the bot, once or often.

    Args:
        id: Their Telegram id, and that of their private chat with the bot.
        group: `USERS` or `FLOODERS`.
        messages: How many they send.
    """

    id: int
    group: str
    messages: int


@dataclass(frozen=True, slots=True)
class Part:
    """What a person does in one scene.

    Args:
        person: Who does it.
        updates: What comes to the bot of it, in this order.
        expected: How many of these ought to be handled.
    """

    person: Person
    updates: Sequence[Json]
    expected: int


def crowd(users: Iterable[int], flooders: Iterable[int]) -> list[Person]:
    """The same people every time; the numbers say how many messages each of them sends."""
    return [
        *(Person(1_000 + i, USERS, messages) for i, messages in enumerate(users)),
        *(Person(9_000 + i, FLOODERS, messages) for i, messages in enumerate(flooders)),
    ]


def writing(people: Iterable[Person], expected: Callable[[Person], int]) -> list[Part]:
    """Everybody sends their messages."""
    return [
        Part(each, [message(each.id, "/ping") for _ in range(each.messages)], expected(each))
        for each in people
    ]


async def play(
    api: BotApi, parts: Sequence[Part], seconds: float, advance: Callable[[], None]
) -> list[Outcome]:
    """Let everybody do their part, all mixed up, and see from outside what the bot did.

    Args:
        api: Delivers the updates, and sees the answers.
        parts: Who does what.
        seconds: How long that takes, unless the machine is slower.
        advance: Called after each update.
    """
    order = [number for number, part in enumerate(parts) for _ in part.updates]
    # Shuffled, so that nobody's messages meet always the same instance; seeded, so that every
    # run of the demo is the same.
    random.Random(1).shuffle(order)
    updates = [iter(part.updates) for part in parts]
    before = len(api.calls)
    deliveries: dict[int, list[Delivery]] = defaultdict(list)

    async def send(number: int, update: Json) -> None:
        deliveries[number].append(await api.deliver(update))
        advance()

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for turn, number in enumerate(order):
            await asyncio.sleep(began + seconds * turn / len(order) - loop.time())
            tasks.create_task(send(number, next(updates[number])))

    calls = api.calls[before:]
    handled = Counter(call.user_id for call in calls if is_answer(call))
    told = Counter(call.user_id for call in calls if is_notice(call))
    return [
        Outcome(
            person=part.person.id,
            group=part.person.group,
            sent=len(part.updates),
            handled=handled[part.person.id],
            expected=part.expected,
            lost=sum(not each.ok for each in deliveries[number]),
            told=told[part.person.id],
            latencies=tuple(each.latency for each in deliveries[number]),
        )
        for number, part in enumerate(parts)
    ]


def is_answer(call: Call) -> bool:
    """Whether a handler did this, and not the middleware, which only speaks of refusals."""
    if call.method in {"setMessageReaction", "answerPreCheckoutQuery"}:
        return True
    if call.method == "editMessageText":
        return call.text == REPORT
    spoken = call.method in {"sendMessage", "answerCallbackQuery"}
    return spoken and call.text.startswith((PONG, THANKS))


def is_notice(call: Call) -> bool:
    """Whether this is a message that tells of a refusal."""
    return call.method == "sendMessage" and not is_answer(call) and call.text != WORKING
