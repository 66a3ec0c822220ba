"""The three acts: what is done, and what ought to come of it."""

import asyncio
import time
from collections import Counter

from example_bot.bot import PONG, REPORT, WORKING
from example_bot.demo.botapi import BotApi
from example_bot.demo.crowd import FLOODERS, USERS, Part, Person, crowd, is_answer, writing
from example_bot.demo.stage import INSTANCES, LIMIT, Stage
from example_bot.demo.updates import album, callback, message, payment, pre_checkout
from example_bot.demo.verdict import Outcome

# Seconds after the return of Redis within which limits must hold again.
RECOVERY = 8.0
# The most that Telegram puts into an album.
PHOTOS = 10

# 40 people who stay within the limit, some of them just so, and 3 who do not.
CROWD = crowd(users=[i % LIMIT + 1 for i in range(40)], flooders=[60] * 3)
# They write three times in act three; over all of it ordinary people stay within the limit.
SMALL_CROWD = crowd(users=[i % 2 + 1 for i in range(40)], flooders=[20] * 3)


async def act_one(stage: Stage) -> None:
    """Every instance counts on its own, and a flooder finds three counters to fill."""
    stage.display.act(
        "Act one: no Redis, every instance counts in its own memory.",
        f"A flooder meets {INSTANCES} counters instead of one: {INSTANCES} times the limit "
        f"gets through, {LIMIT * INSTANCES} messages.",
    )
    async with stage.bot("one") as api:
        parts = writing(CROWD, lambda p: min(p.messages, LIMIT * INSTANCES))
        await stage.scene(api, "1 own memory", parts, 2.5)


async def act_two(stage: Stage) -> None:
    """The same crowd, one Redis for all instances."""
    stage.display.act(
        "Act two: the same crowd, and the instances share a Redis.",
        f"Whichever instance a message reaches, a flooder gets exactly {LIMIT} through.",
    )
    async with stage.bot("two", stage.backend.client) as api:
        parts = writing(CROWD, lambda p: min(p.messages, LIMIT))
        outcomes = await stage.scene(api, "2 shared Redis", parts, 2.5)
        outcomes += await _albums_buttons_payments(stage, api)
        await _reports(stage, api)
    told = Counter[int]()
    for outcome in outcomes:
        told[outcome.person] += outcome.told
    stage.claim(
        "every flooder was told once to slow down, not once for each refused message or photo",
        told == Counter(person.id for person in CROWD if person.group == FLOODERS),
    )


async def _albums_buttons_payments(stage: Stage, api: BotApi) -> tuple[Outcome, ...]:
    """What else people send in the same window, and flooders, who have used it up."""
    flooders = [person for person in CROWD if person.group == FLOODERS]
    users = [p for p in CROWD if p.group == USERS and p.messages == LIMIT - 2]
    stage.display.say(
        f"In the same minute {len(users)} of the users, who have written {LIMIT - 2} messages, "
        f"send an album of {PHOTOS} photos and press a button. An album counts as one message, so "
        "they just keep to the limit. The flooders send an album and press buttons, too, without "
        "success, but every button is answered. Then they pay, and a payment always gets through."
    )
    parts = [Part(each, album(each.id, PHOTOS), PHOTOS) for each in users]
    parts += [Part(each, album(each.id, PHOTOS), 0) for each in flooders]
    outcomes = await stage.scene(api, "2 albums", parts, 0.7, "photos")

    parts = [Part(each, [callback(each.id, "ping")], 1) for each in users]
    parts += [Part(p, [callback(p.id, "ping") for _ in range(20)], 0) for p in flooders]
    outcomes += await stage.scene(api, "2 buttons", parts, 0.7, "button presses")

    parts = [Part(each, [pre_checkout(each.id), payment(each.id)], 2) for each in flooders]
    outcomes += await stage.scene(api, "2 payments", parts, 0.3, "pre-checkouts and payments")

    pongs = [c.text for c in api.calls if c.method == "answerCallbackQuery" and is_answer(c)]
    stage.claim(
        f"an album of {PHOTOS} photos counted as one message: a button press was left, and no more",
        pongs == [f"{PONG}, 0 left"] * len(users),
    )
    stage.claim("every button press was answered, refused or not", not api.spinning)
    return outcomes


async def _reports(stage: Stage, api: BotApi) -> None:
    """Everybody wants the expensive thing at once, and every instance gets one of them."""
    stage.display.say(
        f"{INSTANCES} others ask for a report at the same moment, each another instance. The bot "
        "makes one report at a time: one instance runs it, the others wait for their turn."
    )
    before = len(api.calls)
    others = [Person(5_000 + number, USERS, 1) for number in range(INSTANCES)]
    parts = [Part(each, [message(each.id, "/report")], 1) for each in others]
    await stage.scene(api, "2 one at a time", parts, 0.0, "reports")
    steps = [c.text for c in api.calls[before:] if c.text in {WORKING, REPORT}]
    stage.claim(
        f"of {INSTANCES} instances one made a report at a time, and the others after it",
        steps == [WORKING, REPORT] * INSTANCES,
    )


async def act_three(stage: Stage) -> None:
    """Redis goes away in the middle, and comes back."""
    stage.display.act(
        "Act three: Redis goes away in the middle, and comes back.",
        "While nobody can count, the bot answers everybody rather than nobody. Once Redis is "
        "back, limits hold again, and what it had counted before still counts: a flooder "
        f"whose {LIMIT} were used up gets nothing more through in this minute.",
    )
    async with stage.bot("three", stage.backend.client) as api:
        parts = writing(SMALL_CROWD, lambda p: min(p.messages, LIMIT))
        await stage.scene(api, "3 Redis up", parts, 1.5)
        await stage.backend.cut()
        stage.display.say("  Redis is gone.")
        await stage.scene(api, "3 Redis gone", writing(SMALL_CROWD, lambda p: p.messages), 1.5)
        stage.claim("the outage was logged", stage.tape.has("Redis rate limit check failed"))
        await stage.backend.repair()
        stage.display.say("  Redis is back. An instance notices when it tries it again.")
        await _recovery(stage, api)
        await stage.scene(api, "3 Redis back", writing(SMALL_CROWD, _left_over), 1.5)


async def _recovery(stage: Stage, api: BotApi) -> None:
    """Let a flooder go on until every instance in turn has refused."""
    flooder = next(person.id for person in SMALL_CROWD if person.group == FLOODERS)
    began = time.monotonic()
    took, refused = 0.0, 0
    while refused < INSTANCES and took < RECOVERY:
        seen = len(api.calls)
        delivery = await api.deliver(message(flooder, "/ping"))
        handled = any(is_answer(call) for call in api.calls[seen:])
        refused = 0 if handled or not delivery.ok else refused + 1
        took = time.monotonic() - began
        await asyncio.sleep(0.05)
    holds = refused >= INSTANCES
    seen_after = f" (after {took:.1f} s)" if holds else ""
    stage.claim(f"limits held again within {RECOVERY:.0f} s of Redis' return{seen_after}", holds)


def _left_over(person: Person) -> int:
    """What the limit leaves to somebody who has written as much in the same window before."""
    return min(person.messages, max(0, LIMIT - person.messages))
