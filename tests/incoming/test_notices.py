"""Notices: refused users are notified once, in their language, without flooding."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot
from aiogram.client.default import DefaultBotProperties
from aiogram.exceptions import TelegramAPIError, TelegramForbiddenError, TelegramRetryAfter
from aiogram.methods import AnswerCallbackQuery, AnswerInlineQuery, SendMessage, TelegramMethod
from aiogram.types import CallbackQuery, InlineQuery, Message, TelegramObject
from aiogram.utils.callback_answer import CallbackAnswerMiddleware
from aiogram.utils.i18n import I18n, I18nMiddleware, gettext
from fakeredis import FakeAsyncRedis

from bot_ratelimit import ConfigError, Decision, Limiter, Notices, RateLimitMiddleware, Rule
from bot_ratelimit.testing import Clock, FlakyStorage
from tests.recorder import Recorder
from tests.tables import table

from .support import HANDLED, Instance, callback, inline_query, message, user
from .updates import BUSINESS, GROUP, MISSING, REACTION, UPDATES, VOTE, Fleet, bare, keys_of, listen

RUSSIAN = "Слишком много запросов. Попробуйте снова через 60 с."
ENGLISH = "Too many requests. Please try again in 60 s."


def requests(*bots: Instance) -> list[TelegramMethod[Any]]:
    return [each for bot in bots for each in bot.session.requests]


def texts(*bots: Instance) -> list[str | None]:
    return [getattr(each, "text", "") for each in requests(*bots)]


EVERYTHING = ("message", "edited_message", "business_message", "callback_query", "inline_query")
EVERYTHING += ("chosen_inline_result", "message_reaction", "poll_answer")
EVERYTHING += () if "guest_message" in MISSING else ("guest_message",)


def telling(rate_limit: Any = "1/m", **options: Any) -> Instance:
    return Instance(RateLimitMiddleware(rate_limit, **options), EVERYTHING)


async def test_button_presses_and_inline_queries(limiter: Limiter, clock: Clock) -> None:
    """Each is answered, with a text or an empty result, cached for the wait, at most 30 s.

    Wherever the button is, its spinner stops.
    """
    bot = telling(limiter=limiter)
    await bot.feed(callback_query=callback())
    clock.move(0.5)
    await bot.feed(callback_query=callback(id="7"))
    await bot.feed(inline_query=inline_query(id="8"))
    clock.move(59)
    await bot.feed(callback_query=callback(id="9"))
    empty = {"inline_query_id": "8", "results": [], "cache_time": 30, "is_personal": True}
    assert [
        each.model_dump(exclude_none=True, exclude_defaults=True) for each in requests(bot)
    ] == [
        {"callback_query_id": "7", "text": ENGLISH, "cache_time": 30},
        empty,
        {"callback_query_id": "9", "text": ENGLISH.replace("60", "1"), "cache_time": 1},
    ]
    for place in (
        {"message": None, "inline_message_id": "1"},
        {"message": {"chat": GROUP, "message_id": 1, "date": 0}},  # out of reach
        {"message": message(chat=GROUP)},
        {"message": message(**BUSINESS), "from": user(43)},
        {"message": message(**BUSINESS), "from": user(43)},
        {"data": None, "game_short_name": "chess"},
    ):
        await bot.feed(callback_query=callback(**place))
    assert [type(each) for each in requests(bot)[3:]] == [AnswerCallbackQuery] * 5


async def test_a_message_in_private(limiter: Limiter, clock: Clock) -> None:
    """Refused messages, also edited ones, get one notice per window.

    In a long wait there is one an hour: the bot does not seem dead to users who come back.
    """
    bot = telling(limiter=limiter)
    await bot.send(*"abcd")
    await bot.feed(edited_message=message())
    assert [(r.chat_id, r.text) for r in requests(bot)] == [(42, ENGLISH)]
    clock.move(60)
    await bot.send(*"abcd")
    assert texts(bot) == [ENGLISH, ENGLISH]
    bot = telling("1/day", limiter=limiter)
    for seconds in (0, 3_599, 1):
        clock.move(seconds)
        await bot.send(*"abc", **{"from": user(43)})
    assert [(text or "").split(" in ")[-1] for text in texts(bot)] == ["1 d.", "23 h."]


async def test_where_the_bot_cannot_or_should_not_answer() -> None:
    """Refused without a notice: the chat is of other users, or there is nothing to answer."""
    for name, event in (
        ("chosen_inline_result", UPDATES["chosen_inline_result"]),
        ("message_reaction", REACTION),
        ("poll_answer", VOTE),
        ("business_message", message(**BUSINESS)),
        ("guest_message", message(guest_query_id="1", chat=GROUP)),
        ("guest_message", message(guest_query_id="1", chat={"id": 43, "type": "private"})),
    ):
        if name not in MISSING:
            bot = telling(on_limited=Notices(in_groups=True))
            assert [await bot.feed(**{name: event}) for _ in range(3)] == [HANDLED, None, None]
            assert [each for each in requests(bot) if isinstance(each, SendMessage)] == [], name


async def test_a_flood(fleet: Fleet) -> None:
    """Three hundred messages and presses over three instances: one notice, all presses answered."""

    def put(bot: Instance, limiter: Limiter) -> None:
        bot.dispatcher.callback_query.middleware(CallbackAnswerMiddleware())
        RateLimitMiddleware("2/h", limiter=limiter).setup(bot.dispatcher, guard=True)
        listen(bot, "message", "callback_query")

    bots = fleet.assemble(put)
    presses = [bots[-i % 3].feed(callback_query=callback(id=str(i))) for i in range(300)]
    await asyncio.gather(*(bots[i % 3].feed(message=message()) for i in range(300)), *presses)
    sent = requests(*bots)
    assert sum(isinstance(each, SendMessage) for each in sent) == 1
    answered = [each.callback_query_id for each in sent if isinstance(each, AnswerCallbackQuery)]
    assert sorted(answered, key=int) == [str(i) for i in range(300)]
    assert sum(len(bot.handled) for bot in bots) == 2


@table(
    ("rule", "told"),
    [
        (Rule("1/m"), 2),
        (Rule("1/m", "member"), 2),
        (Rule("2/m", "chat"), 1),
        (Rule("2/m", "topic"), 1),
        (Rule("2/m", lambda subject: "all", name="mine"), 1),
    ],
)
async def test_recipients_in_a_group(rule: Rule, told: int) -> None:
    """With `in_groups=True` limits of users notify each user, limits of chats the chat.

    It replies to the refused message, also if that is deleted, so all see who is meant.
    """
    bot = telling(rule, on_limited=Notices(in_groups=True))
    topic = {"chat": GROUP, "message_thread_id": 7, "is_topic_message": True}
    for id_ in (42, 43):
        await bot.send(*"abc", **topic, **{"from": user(id_)})
    assert [(r.chat_id, r.message_thread_id) for r in requests(bot)] == [(-100, 7)] * told
    replies = [r.reply_parameters for r in requests(bot)]
    assert all(each.message_id and each.allow_sending_without_reply for each in replies)


@pytest.mark.parametrize("limit", ["10/s bucket", 0.02])
async def test_notices_do_not_flood(limit: Any, limiter: Limiter, clock: Clock) -> None:
    """However short the waits are, there is at most one notice a second in a chat."""
    bot = telling(limit, limiter=limiter)
    for _ in range(500):
        await bot.send("hello")
        clock.move(0.01)
    assert 1 <= len(requests(bot)) <= 6


@table(
    ("on_limited", "language", "text"),
    [
        (Notices(), "ru-RU", RUSSIAN),
        (Notices(), "pt-br", ENGLISH),
        ({"de": "Warte {seconds} s", "en": "Wait"}, "de-AT", "Warte 60 s"),
        ({"de": "Warte {seconds} s", "en": "Wait"}, "ru", "Warte 60 s"),
        ({"en": "Wait", "pt-br": "Espera"}, "pt", "Wait"),
        # Locales are written in several ways; Telegram writes pt-br.
        ({"en": "Wait", "pt-BR": "Espera"}, "pt-br", "Espera"),
        ("{{{seconds}}} %", None, "{60} %"),
        ("Подождите {wait}", "en", "Подождите 60 с"),
        ({"en": "Wait {wait}", "bg": "Чакай {wait}"}, "bg", "Чакай 60 s"),
        ({"ru": "Ждите {wait}", "en": "Wait {wait}"}, "de", "Ждите 60 с"),
    ],
)
async def test_texts(on_limited: Any, language: str | None, text: str) -> None:
    """In the user's language, or else in English; custom texts replace ours."""
    bot = telling(on_limited=on_limited)
    sender = {"from": user(language=language)}
    await bot.send(*"ab", **sender)
    await bot.feed(callback_query=callback(**sender))
    assert texts(bot) == [text, text]


@table(
    ("options", "error"),
    [
        *(({"texts": text}, None) for text in ("", "In {m}", "In {} s", {}, {"en": None})),
        ({"texts": {"pt_BR": "Espere"}}, None),
        ({"busy": 5}, "Notices: busy=5: expected a text"),
        ({"texts": ["Wait"]}, r"texts=\['Wait'\]"),
        ({"texts": "x" * 5_000}, "expected at most 4,096 characters"),
        ({"in_groups": "no"}, "in_groups='no': expected True or False"),
    ],
)
def test_invalid_arguments_are_named(options: dict[str, Any], error: str | None) -> None:
    """Also a text that could not be sent is an error when the bot is built."""
    with pytest.raises(ConfigError, match=error):
        Notices(**options)


async def test_what_telegram_would_reject_is_not_sent() -> None:
    """Answers to presses are cut, and in MarkdownV2 a full stop alone would be an error."""
    bot, default = telling(on_limited="w" * 300), DefaultBotProperties(parse_mode="MarkdownV2")
    bot.bot = Bot("1:TEST", session=bot.session, default=default)
    await bot.send(*"ab")
    await bot.feed(callback_query=callback())
    notice, answer = requests(bot)
    assert len(notice.text) == 300
    assert 0 < len(answer.text) <= 200
    assert bot.session.prepare_value(notice.parse_mode, bot.bot, files={}) is None


@pytest.mark.parametrize("guard", [False, True])
async def test_a_custom_function(guard: bool, limiter: Limiter) -> None:
    """It gets the event, the decision and the data of every refused event.

    It may call `Notices`, which decides how and how often to notify, and observers see it.
    """
    recorder, notices = Recorder(), Notices("Wait {seconds} s, please.")
    seen: list[tuple[TelegramObject, Decision, dict[str, Any]]] = []

    async def tell(event: TelegramObject, decision: Decision, data: dict[str, Any]) -> None:
        seen.append((event, decision, data))
        await notices(event, decision, data)

    observed, bot = Limiter(limiter.storage, observer=recorder), bare()
    middleware = RateLimitMiddleware("1/m", limiter=observed, on_limited=tell)
    middleware.setup(bot.dispatcher, guard=guard)
    listen(bot, "message", "callback_query", "inline_query").dispatcher["shop"] = "Tea"
    await bot.send(*"abc")
    await bot.feed(callback_query=callback())
    await bot.feed(inline_query=inline_query())
    await bot.send("d", chat=GROUP)
    bot.session.error = FAILURES[0]
    await bot.feed(callback_query=callback())
    kinds = [Message, Message, CallbackQuery, InlineQuery, Message, CallbackQuery]
    assert [type(event) for event, *_ in seen] == kinds
    assert {(d.allowed, d.retry_after, d.rule) for _, d, _ in seen} == {(False, 60.0, Rule("1/m"))}
    assert {(data["shop"], data["bot"]) for *_, data in seen} == {("Tea", bot.bot)}
    assert all(data["rate_limit"] is decision for _, decision, data in seen)
    assert [event[1:] for event in recorder.named("noticed")] == [
        *(("message", "sent"), ("message", "silent"), ("callback", "sent")),
        *(("inline", "sent"), ("message", "silent"), ("callback", "failed")),
    ]
    assert len(recorder.named("decided")) == 7  # not those about notices
    assert texts(bot)[0] == "Wait 60 s, please."
    with pytest.raises(ConfigError, match="call it in on_limited"):
        await notices(TelegramObject(), seen[0][1], {})


METHOD = SendMessage(chat_id=42, text="")
FAILURES = [
    TelegramForbiddenError(METHOD, "bot was blocked by the user"),
    TelegramRetryAfter(METHOD, "Too Many Requests", 30),
    ConnectionResetError("reset"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_a_failing_notice_breaks_nothing(
    error: Exception, fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    """The event is refused, the notice is not repeated, and there is one line a minute."""
    caplog.set_level(logging.WARNING, "bot_ratelimit")
    bots = fleet.start("1/m", observers=EVERYTHING)
    for bot in bots:
        bot.session.error = error
    assert [(await bot.send("a"))[0] for bot in bots * 2] == [True] + [False] * 5
    assert len(requests(*bots)) == 1
    told = [each for each in caplog.records if "Could not tell" in each.message]
    assert [each.message.partition("limit: ")[2] for each in told] == [repr(error)]
    assert (told[0].exc_info is None) == isinstance(error, TelegramAPIError)
    for _ in range(50):
        assert await bots[0].feed(callback_query=callback()) is None
    assert await bots[0].feed(inline_query=inline_query()) is None
    assert len(requests(*bots)) == 52
    assert sum("Could not tell" in each for each in caplog.messages) <= 2  # one of each instance


async def test_a_cancelled_notice_is_cancelled() -> None:
    """A cancellation, for example by a shutdown, is not swallowed."""
    waiting = asyncio.Event()

    async def tell(*_: object) -> None:
        waiting.set()
        await asyncio.Event().wait()

    bot = telling(on_limited=tell)
    task = asyncio.create_task(bot.send(*"ab"))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_users_are_told_whatever_the_storage_is_called() -> None:
    """With Memcached, MongoDB or a custom storage a refused user gets a notice, too."""
    storage = FlakyStorage()
    storage.source = "mongodb"
    bot = telling("1/m", limiter=Limiter(storage))
    assert await bot.send(*"abc") == [True, False, False]
    assert len(requests(bot)) == 1


async def test_no_message_notices_in_an_outage() -> None:
    """Messages are refused silently, as none could be told once; presses and queries are answered.

    The policy of the limit denies, that of the notices would allow each.
    """
    storage = FlakyStorage()
    storage.fail()
    bot = telling(Rule("1/m", on_error="deny"), limiter=Limiter(storage))
    assert await bot.send(*"abc") == [False] * 3
    await bot.feed(callback_query=callback())
    await bot.feed(inline_query=inline_query())
    assert [type(each) for each in requests(bot)] == [AnswerCallbackQuery, AnswerInlineQuery]
    assert all(each.cache_time >= 1 for each in requests(bot))


@pytest.mark.parametrize("pre", [False, True])
@pytest.mark.parametrize("order", ["callback answer first", "rate limit first", "guard"])
@pytest.mark.parametrize("own", [False, True])
async def test_beside_callback_answer_middleware(
    own: bool, order: str, pre: bool, limiter: Limiter, caplog: pytest.LogCaptureFixture
) -> None:
    """With aiogram's CallbackAnswerMiddleware every press is answered exactly once.

    A handler that answers presses itself does not run when refused, so we answer.
    """
    bot, first = bare(), order == "callback answer first"
    theirs = CallbackAnswerMiddleware(pre=pre, text="Done")
    if first:
        bot.dispatcher.callback_query.middleware(theirs)
    ours = RateLimitMiddleware("1/m", limiter=limiter)
    ours.setup(bot.dispatcher, guard=order == "guard")
    if not first:
        bot.dispatcher.callback_query.middleware(theirs)

    async def answer(event: CallbackQuery) -> None:
        if own:
            await event.answer("Done")

    flag = {"callback_answer": {"disabled": True}} if own else {}
    bot.dispatcher.callback_query.register(answer, flags=flag)
    for i in range(4):
        await bot.feed(callback_query=callback(id=str(i)))
    assert [each.callback_query_id for each in requests(bot)] == list("0123")
    answered_before_us = pre and first and not own
    assert texts(bot) == ["Done", *(["Done" if answered_before_us else ENGLISH] * 3)]
    assert "Could not tell" not in caplog.text


async def test_the_key_of_notices(fake_client: FakeAsyncRedis) -> None:
    """An operator can see who was notified, and how often the user tried since."""
    bot = telling(redis_client=fake_client, on_limited=Notices(in_groups=True))
    await bot.send(*"abc")
    await bot.send(*"ab", chat=GROUP)
    notices = {"notice:42", "notice:member:-100:42", "sliding:notice:group:-100"}
    assert await keys_of(fake_client) == {"42", *notices}
    assert await fake_client.get("bot:ratelimit:notice:42") == b"2"


class ByUser(I18nMiddleware):
    async def get_locale(self, event: TelegramObject, data: dict[str, Any]) -> str:
        return str(data["event_from_user"].language_code)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("first", [False, True])
async def test_translations_work_wherever_the_middleware_stands(
    guard: bool, first: bool, limiter: Limiter, tmp_path: Path
) -> None:
    """`gettext` in `on_limited` speaks the user's language, also before the I18nMiddleware."""
    bot, translations = bare(), I18n(path=tmp_path)
    translations.gettext = lambda *_: {"de": "Langsam!"}[translations.current_locale]  # type: ignore[method-assign]  # without files

    async def tell(event: Message, decision: Decision, data: dict[str, Any]) -> None:
        await event.answer(gettext("slow"))

    ours = RateLimitMiddleware("1/m", limiter=limiter, on_limited=tell)
    if first:
        bot.dispatcher.message.outer_middleware(ours)
    ByUser(translations).setup(bot.dispatcher)
    ours.setup(bot.dispatcher, guard=guard)
    listen(bot, "message")
    await bot.send(*"ab", **{"from": user(language="de")})
    assert texts(bot) == ["Langsam!"]
    assert I18n.get_current(no_error=True) is None
