"""The crowd: who writes how much, in which order, and what became of it."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from example_bot.bot import PONG
from example_bot.demo.botapi import BotApi
from example_bot.demo.methods import Call
from example_bot.demo.updates import message
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


def crowd(users: Iterable[int], flooders: Iterable[int]) -> list[Person]:
    """The same people every time; the numbers say how many messages each of them sends."""
    return [
        *(Person(1_000 + i, USERS, messages) for i, messages in enumerate(users)),
        *(Person(9_000 + i, FLOODERS, messages) for i, messages in enumerate(flooders)),
    ]


async def write(
    api: BotApi,
    people: list[Person],
    seconds: float,
    expected: Callable[[Person], int],
    advance: Callable[[], None],
) -> list[Outcome]:
    """Let everybody write, all mixed up, and see from outside what the bot did.

    Args:
        api: Delivers the messages, and sees the answers.
        people: Who writes.
        seconds: How long that takes, unless the machine is slower.
        expected: How many messages of a person ought to be handled.
        advance: Called after each message.
    """
    order = [person for person in people for _ in range(person.messages)]
    # Shuffled, so that nobody's messages meet always the same instance; seeded, so that every
    # run of the demo is the same.
    random.Random(1).shuffle(order)
    before = len(api.calls)
    deliveries: dict[int, list[Delivery]] = defaultdict(list)

    async def send(person: Person) -> None:
        deliveries[person.id].append(await api.deliver(message(person.id, "/ping")))
        advance()

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for number, person in enumerate(order):
            await asyncio.sleep(began + seconds * number / len(order) - loop.time())
            tasks.create_task(send(person))

    sent = [call for call in api.calls[before:] if call.method == "sendMessage"]
    handled = Counter(call.chat_id for call in sent if is_answer(call))
    told = Counter(call.chat_id for call in sent if not is_answer(call))
    return [
        Outcome(
            person=person.id,
            group=person.group,
            sent=person.messages,
            handled=handled[person.id],
            expected=expected(person),
            lost=sum(not each.ok for each in deliveries[person.id]),
            told=told[person.id],
            latencies=tuple(each.latency for each in deliveries[person.id]),
        )
        for person in people
    ]


def is_answer(call: Call) -> bool:
    """Whether this is a handler's answer to `/ping`, and not the notice of a refusal."""
    return call.method == "sendMessage" and call.text.startswith(PONG)
