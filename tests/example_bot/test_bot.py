"""What the example bot answers, and what each of it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bot_ratelimit import Decision, Limiter, MemoryStorage, RateLimitMiddleware, Subject
from bot_ratelimit.testing import FlakyStorage
from example_bot.bot import PONG, REPORT, THANKS, WORKING, build_dispatcher
from example_bot.demo.botapi import BotApi
from example_bot.demo.instances import serve
from example_bot.demo.updates import Json, album, callback, message, payment, pre_checkout


@asynccontextmanager
async def running(api: BotApi, middleware: RateLimitMiddleware) -> AsyncIterator[None]:
    runner = await serve(api, build_dispatcher(middleware))
    try:
        yield
    finally:
        await runner.cleanup()


async def answers(api: BotApi, *updates: Json) -> list[tuple[str, str]]:
    """What the bot does about updates that come at once."""
    before = len(api.calls)
    for delivery in await asyncio.gather(*map(api.deliver, updates)):
        assert delivery.ok
    return [(call.method, call.text) for call in api.calls[before:]]


async def test_everything_that_it_says_it_can_do(api: BotApi) -> None:
    """`/start` names what there is, and each of it is answered and counted."""
    async with running(api, RateLimitMiddleware("9/minute")):
        ((method, text),) = await answers(api, message(42, "/start"))
        assert method == "sendMessage"
        assert all(each in text for each in ("/ping", "/report", "/donate", "button", "photos"))
        assert await answers(api, message(42, "/ping")) == [("sendMessage", f"{PONG}, 7 left")]
        pressed = await answers(api, callback(42, "ping"))
        assert pressed == [("answerCallbackQuery", f"{PONG}, 6 left")]
        assert await answers(api, *album(42, 3)) == [("setMessageReaction", "")] * 3
        assert await answers(api, message(42, "/donate")) == [("sendInvoice", "")]
        assert await answers(api, message(42, "/ping")) == [("sendMessage", f"{PONG}, 3 left")]


async def test_while_redis_is_away_questions_are_answered_too(api: BotApi) -> None:
    """What cannot be charged or given back in an outage is answered all the same."""
    storage = FlakyStorage()
    storage.fail()
    async with running(api, RateLimitMiddleware("9/minute", limiter=Limiter(storage))):
        ((_, answer),) = await answers(api, message(42, "/ask why"))
        ((_, failure),) = await answers(api, message(42, "/ask"))
    assert answer.startswith("You want to know 'why'")
    assert failure.endswith("That was free.")


async def test_a_report_has_a_limit_of_its_own(api: BotApi) -> None:
    """Two reports a minute, whatever else is sent; and reports take nothing from the rest."""
    async with running(api, RateLimitMiddleware("1/minute")):
        reports = await answers(api, *(message(42, "/report") for _ in range(3)))
        pings = await answers(api, message(42, "/ping"))
    methods = [method for method, _ in reports]
    assert methods.count("editMessageText") == 2
    assert sum(text.startswith("Too many requests") for _, text in reports) == 1
    assert pings == [("sendMessage", f"{PONG}, 0 left")]


async def test_reports_are_made_one_at_a_time(api: BotApi) -> None:
    """Two users who want a report at once both get it, one after the other."""
    async with running(api, RateLimitMiddleware("9/minute")):
        said = await answers(api, message(42, "/report"), message(43, "/report"))
    assert [text for _, text in said] == [WORKING, REPORT] * 2


class Till(Limiter):
    """Writes down what is charged and refunded."""

    def __init__(self) -> None:
        super().__init__(MemoryStorage())
        self.booked: list[int] = []

    async def charge(self, rules: Any, subject: Subject, cost: int) -> Decision:
        self.booked.append(cost)
        return await self.peek(rules, subject)

    async def refund(
        self, rules: Any, subject: Subject, cost: int = 1, *, age: float | None = None
    ) -> Decision:
        self.booked.append(-cost)
        return await self.peek(rules, subject)


async def test_an_answer_is_paid_by_its_length(api: BotApi) -> None:
    """The question costs a point, the answer the rest of its length; what fails is given back."""
    till = Till()
    async with running(api, RateLimitMiddleware("9/minute", limiter=till)):
        ((_, answer),) = await answers(api, message(42, "/ask why"))
        assert till.booked == [len(answer) - 1]
        ((_, failure),) = await answers(api, message(42, "/ask"))
        assert failure.endswith("That was free.")
        assert till.booked[1:] == [-1]
        twice = await answers(api, message(42, "/ask a"), message(42, "/ask b"))
    assert sum(text == "Your last request is still running." for _, text in twice) == 1


async def test_who_is_over_the_limit_can_still_pay(api: BotApi) -> None:
    """The question before a payment is answered with yes, and the payment with thanks."""
    async with running(api, RateLimitMiddleware("1/minute")):
        await answers(api, message(42, "/ping"), message(42, "/ping"))
        assert await answers(api, pre_checkout(42)) == [("answerPreCheckoutQuery", "")]
        assert api.calls[-1].params["ok"] == "true"
        assert await answers(api, payment(42)) == [("sendMessage", THANKS)]


async def test_who_is_exempt_is_answered_too(api: BotApi) -> None:
    """Somebody without a limit hears of no number; RATE_LIMIT_EXEMPT must not break the bot."""
    async with running(api, RateLimitMiddleware("1/minute", exempt=[42])):
        for _ in range(2):
            assert await answers(api, message(42, "/ping")) == [("sendMessage", PONG)]
            assert await answers(api, callback(42, "ping")) == [("answerCallbackQuery", PONG)]


async def test_a_webhook_closes_nothing_that_a_handler_needs(api: BotApi) -> None:
    """The bot's other shutdown callbacks come after the answer to the update under way."""
    dispatcher = build_dispatcher(RateLimitMiddleware("5/minute"))
    done: list[str] = []
    dispatcher.shutdown.register(lambda: done.extend(call.method for call in api.calls))
    runner = await serve(api, dispatcher)
    report = asyncio.create_task(api.deliver(message(42, "/report")))
    await api.called("sendMessage")
    await runner.cleanup()
    assert (await report).ok
    assert done[-1] == "editMessageText"
