"""The first three scenarios: what the users do, and what should happen."""

import asyncio
import time

from example_bot.bot import PONG, REPORT, WORKING
from example_bot.demo.botapi import BotApi
from example_bot.demo.context import INSTANCES, LIMIT, DemoContext
from example_bot.demo.crowd import FLOODERS, USERS, Activity, Person, crowd, is_answer, writing
from example_bot.demo.results import Outcome
from example_bot.demo.updates import album, callback, message, payment, pre_checkout

RECOVERY = 8.0
"""The maximum time in seconds until limits hold again after Redis is back."""
PHOTOS = 10

# 40 users who stay within the limit, some of them exactly at it, and 3 flooders.
CROWD = crowd(users=[i % LIMIT + 1 for i in range(40)], flooders=[60] * 3)
# They write three times in scenario three; in total, normal users still stay within the limit.
SMALL_CROWD = crowd(users=[i % 2 + 1 for i in range(40)], flooders=[20] * 3)


async def scenario_one(context: DemoContext) -> None:
    """Each instance counts on its own, so a flooder can use the limit once per instance."""
    context.display.scenario(
        "Scenario one: no Redis, each instance counts in its own memory.",
        f"There are {INSTANCES} counters instead of one: a flooder gets {INSTANCES} times the "
        f"limit through, {LIMIT * INSTANCES} messages.",
    )
    async with context.bot("one") as api:
        activities = writing(CROWD, lambda p: min(p.messages, LIMIT * INSTANCES))
        outcomes = await context.step(api, "1 own memory", activities, 2.5)
    # Telegram of the first flooder is in English, that of the second in Russian.
    told = [each.told[0] for each in outcomes if each.group == FLOODERS and each.told][:2]
    context.display.say("A flooder was told, in the language of their Telegram:")
    context.display.quote(*told)
    context.check(
        "refused users were told in the language of their Telegram",
        [text.isascii() for text in told] == [True, False],
    )


async def scenario_two(context: DemoContext) -> None:
    """The same users, with one Redis for all instances."""
    context.display.scenario(
        "Scenario two: the same users, and the instances share a Redis.",
        f"Whichever instance a message reaches, a flooder gets exactly {LIMIT} through.",
    )
    async with context.bot("two", context.backend.client) as api:
        activities = writing(CROWD, lambda p: min(p.messages, LIMIT))
        outcomes = await context.step(api, "2 shared Redis", activities, 2.5)
        outcomes = [*outcomes, *await _albums_buttons_payments(context, api)]
        await _reports(context, api)
    told = sorted(outcome.person for outcome in outcomes for _ in outcome.told)
    context.check(
        "every flooder was told once to slow down, not for each refused message or photo",
        told == [person.id for person in CROWD if person.group == FLOODERS],
    )


async def _albums_buttons_payments(context: DemoContext, api: BotApi) -> list[Outcome]:
    """Albums, button presses and payments in the same window, also from flooders."""
    flooders = [person for person in CROWD if person.group == FLOODERS]
    users = [p for p in CROWD if p.group == USERS and p.messages == LIMIT - 2]
    context.display.say(
        f"In the same minute, {len(users)} of the users, who have written {LIMIT - 2} messages, "
        f"send an album of {PHOTOS} photos and press a button. An album counts as one message, so "
        "they stay exactly within the limit. The flooders also send an album and press buttons: "
        "all of it is refused, but every button is answered. Then they pay, and payments always "
        "get through."
    )
    activities = [Activity(each, album(each.id, PHOTOS), PHOTOS) for each in users]
    activities += [Activity(each, album(each.id, PHOTOS), 0) for each in flooders]
    outcomes = await context.step(api, "2 albums", activities, 0.7, "photos")

    activities = [Activity(each, [callback(each.id, "ping")], 1) for each in users]
    activities += [Activity(p, [callback(p.id, "ping") for _ in range(20)], 0) for p in flooders]
    outcomes = [*outcomes, *await context.step(api, "2 buttons", activities, 0.7, "presses")]

    activities = [Activity(each, [pre_checkout(each.id), payment(each.id)], 2) for each in flooders]
    outcomes += await context.step(api, "2 payments", activities, 0.3, "payments")

    pongs = [c.text for c in api.calls if c.method == "answerCallbackQuery" and is_answer(c)]
    context.check(
        f"an album of {PHOTOS} photos counted as one message: one button press was left, no more",
        pongs == [f"{PONG}, 0 left"] * len(users),
    )
    context.check("every button press was answered, refused or not", not api.spinning)
    return outcomes


async def _reports(context: DemoContext, api: BotApi) -> None:
    """Several users ask for the expensive report at once, each on another instance."""
    context.display.say(
        f"{INSTANCES} other users ask for a report at the same moment, each on another instance. "
        "The bot makes one report at a time: one instance runs it, the others wait."
    )
    before = len(api.calls)
    others = (Person(5_000 + number, USERS, 1) for number in range(INSTANCES))
    activities = [Activity(each, [message(each.id, "/report")], 1) for each in others]
    await context.step(api, "2 one at a time", activities, 0.0, "reports")
    steps = [c.text for c in api.calls[before:] if c.text in {WORKING, REPORT}]
    context.check(
        f"the {INSTANCES} instances made their reports one after the other",
        steps == [WORKING, REPORT] * INSTANCES,
    )


async def scenario_three(context: DemoContext) -> None:
    """Redis becomes unreachable in the middle and comes back."""
    context.display.scenario(
        "Scenario three: Redis becomes unreachable in the middle and comes back.",
        "While nothing can be counted, the bot answers everybody rather than nobody. As soon as "
        "Redis is back, limits hold again, and what was counted before still counts: a flooder "
        f"who has used up {LIMIT} messages gets nothing more through in this minute.",
    )
    async with context.bot("three", context.backend.client) as api:
        activities = writing(SMALL_CROWD, lambda p: min(p.messages, LIMIT))
        await context.step(api, "3 Redis up", activities, 1.5)
        context.backend.cut()
        context.display.say("  Redis is unreachable.")
        await context.step(api, "3 Redis down", writing(SMALL_CROWD, lambda p: p.messages), 1.5)
        logged = "".join(record.getMessage() for record in context.logs.records)
        context.check("the outage was logged", "Redis rate limit check failed" in logged)
        context.backend.repair()
        context.display.say("  Redis is back. Each instance notices at its next attempt.")
        await _recovery(context, api)
        await context.step(api, "3 Redis back", writing(SMALL_CROWD, _left_over), 1.5)


async def _recovery(context: DemoContext, api: BotApi) -> None:
    """Let a flooder keep sending until each instance has refused once in a row."""
    flooder = next(person.id for person in SMALL_CROWD if person.group == FLOODERS)
    until, refused = time.monotonic() + RECOVERY, 0
    while refused < INSTANCES and time.monotonic() < until:
        seen = len(api.calls)
        delivery = await api.deliver(message(flooder, "/ping"))
        handled = any(is_answer(call) for call in api.calls[seen:])
        refused = 0 if handled or not delivery.ok else refused + 1
        await asyncio.sleep(0.05)
    sentence = f"limits held again within {RECOVERY:.0f} s after Redis came back"
    context.check(sentence, refused >= INSTANCES)


def _left_over(person: Person) -> int:
    """How many messages the limit still allows to a user who has sent the same number before."""
    return min(person.messages, max(0, LIMIT - person.messages))
