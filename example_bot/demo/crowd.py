"""The simulated users: what each of them sends, in which order, and how the bot reacts."""

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from example_bot.bot import PONG, REPORT, THANKS, WORKING
from example_bot.demo.botapi import BotApi
from example_bot.demo.methods import Call
from example_bot.demo.results import Outcome
from example_bot.demo.updates import Json, message
from example_bot.demo.webhooks import Delivery

USERS, FLOODERS = "users", "flooders"


@dataclass(frozen=True, slots=True)
class Person:
    """A user who writes to the bot, once or often."""

    id: int
    group: str
    messages: int

    @property
    def language(self) -> str:
        """Every other user has Telegram in Russian."""
        return "ru" if self.id % 2 else "en"


@dataclass(frozen=True, slots=True)
class Activity:
    """What a person does in one step."""

    person: Person
    updates: Sequence[Json]
    expected: int
    """How many of the updates should be handled."""


def crowd(users: Iterable[int], flooders: Iterable[int]) -> list[Person]:
    """The same users in every run; the numbers say how many messages each of them sends."""
    return [
        *(Person(1_000 + i, USERS, messages) for i, messages in enumerate(users)),
        *(Person(9_000 + i, FLOODERS, messages) for i, messages in enumerate(flooders)),
    ]


def writing(people: Iterable[Person], expected: Callable[[Person], int]) -> list[Activity]:
    """The activities of people who send their messages."""
    return [
        Activity(each, [_ping(each) for _ in range(each.messages)], expected(each))
        for each in people
    ]


def _ping(person: Person) -> Json:
    update = message(person.id, "/ping")
    update["message"]["from"]["language_code"] = person.language
    return update


async def play(api: BotApi, activities: Sequence[Activity], seconds: float) -> list[Outcome]:
    """Run all activities, mixed up, in this time, and observe what the bot does from outside."""
    order = [number for number, activity in enumerate(activities) for _ in activity.updates]
    # Shuffled, so that the messages of a user reach different instances; the same in every run.
    random.Random(1).shuffle(order)
    updates = [iter(activity.updates) for activity in activities]
    before = len(api.calls)
    deliveries: dict[int, list[Delivery]] = defaultdict(list)

    async def send(number: int, update: Json) -> None:
        deliveries[number].append(await api.deliver(update))

    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.TaskGroup() as tasks:
        for turn, number in enumerate(order):
            await asyncio.sleep(began + seconds * turn / len(order) - loop.time())
            tasks.create_task(send(number, next(updates[number])))

    calls = api.calls[before:]
    handled = Counter(call.user_id for call in calls if is_answer(call))
    return [
        Outcome(
            person=activity.person.id,
            group=activity.person.group,
            sent=len(activity.updates),
            handled=handled[activity.person.id],
            expected=activity.expected,
            lost=sum(not each.ok for each in deliveries[number]),
            told=[c.text for c in calls if c.user_id == activity.person.id and is_notice(c)],
            latencies=tuple(each.latency for each in deliveries[number]),
        )
        for number, activity in enumerate(activities)
    ]


def is_answer(call: Call) -> bool:
    """Whether a handler sent this, and not the middleware, which only sends notices of refusals."""
    if call.method in {"setMessageReaction", "answerPreCheckoutQuery"}:
        return True
    if call.method == "editMessageText":
        return call.text == REPORT
    spoken = call.method in {"sendMessage", "answerCallbackQuery"}
    return spoken and call.text.startswith((PONG, THANKS))


def is_notice(call: Call) -> bool:
    """Whether this is a notice of a refusal."""
    return call.method == "sendMessage" and not is_answer(call) and call.text != WORKING
