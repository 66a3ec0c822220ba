"""The target of a command: from a reply, an id or a mention; and when it is unknown."""

from __future__ import annotations

from typing import Any

import pytest
from aiogram.exceptions import TelegramBadRequest
from aiogram.methods import GetChat, SendMessage
from aiogram.types import ChatFullInfo

from bot_ratelimit import MemoryStorage
from tests.admin.telegram.operators import ANNA, GROUP, OperatedBot, operated_bot_on
from tests.incoming.support import chat, message, user
from tests.incoming.updates import ANONYMOUS_ADMIN, CHANNEL, CHANNEL_BOT, SERVICE_ACCOUNT

DATE = 1_767_225_600
TEA = {"id": -1002222, "type": "channel", "title": "Tea"}
USER_42 = "user <code>42</code>"


@pytest.fixture
async def bot() -> Any:
    async with operated_bot_on(MemoryStorage()) as bot:
        yield bot


def reply_to(**fields: Any) -> dict[str, Any]:
    """A reply in a group, to a message with these fields."""
    return {"chat": GROUP, "reply_to_message": message(**{"chat": GROUP} | fields)}


def forward(origin: dict[str, Any]) -> dict[str, Any]:
    """A reply, in the admin's private chat, to a message that the admin forwarded there."""
    forwarded = message(forward_origin={"date": DATE} | origin, **{"from": user(ANNA)})
    return {"reply_to_message": forwarded | {"chat": chat(ANNA)}}


def mention(text: str, name: str, id_: int = 42) -> dict[str, Any]:
    """The entities of a text that mentions a user without a username."""
    offset = len(text[: text.index(name)].encode("utf-16-le")) // 2
    length = len(name.encode("utf-16-le")) // 2
    entity = {"type": "text_mention", "offset": offset, "length": length, "user": user(id_)}
    return {"entities": [entity]}


async def banned(bot: OperatedBot, text: str, **fields: Any) -> str:
    """The target that /ban names in its question, or the error; without markup."""
    said = await bot.says(text, **fields)
    return said.removeprefix("<b>Ban ").partition(" for 1 h?")[0]


async def test_an_id(bot: OperatedBot) -> None:
    """The first word is an id: a user's, or a chat's if it is negative."""
    assert await banned(bot, "/ban 42 1h") == USER_42
    assert await banned(bot, "/ban   42\n1h  spam and eggs") == USER_42
    assert await banned(bot, "/BAN 42 1h") == USER_42
    assert await banned(bot, f"/ban {2**52 - 1} 1h") == f"user <code>{2**52 - 1}</code>"


@pytest.mark.parametrize(
    "odd", ["0", "-0", str(2**52), "9" * 30, "-" + "9" * 5000, "٤٢", "1e5", "42abc", "4.2", "--42"]
)
async def test_an_odd_id_is_refused(bot: OperatedBot, odd: str) -> None:
    """A value that is not an id gets an error with an example, and no question."""
    for command in ("who", "ban", "forgive", "try"):
        text = await bot.says(f"/{command} {odd} 1h")
        assert "is not the id of a user or a chat" in text
        assert f"<code>/{command} 42" in text
        assert len(text) < 1_000
    assert bot.buttons == {}


@pytest.mark.parametrize("stand_in", [ANONYMOUS_ADMIN, CHANNEL_BOT, SERVICE_ACCOUNT])
async def test_stand_ins_are_nobody(bot: OperatedBot, stand_in: dict[str, Any]) -> None:
    """Ids that many senders share are never limited, so commands refuse them."""
    assert "belongs to no single" in await bot.says(f"/ban {stand_in['id']} 1h")
    assert "belongs to no single user" in await bot.says(
        "/ban 1h", **reply_to(**{"from": stand_in})
    )


async def test_a_reply(bot: OperatedBot) -> None:
    """In a group, a reply means the sender of that message, even if it was forwarded."""
    assert await banned(bot, "/ban 1h spam", **reply_to(**{"from": user(42)})) == USER_42
    origin = {"type": "user", "date": DATE, "sender_user": user(43)}
    spread = reply_to(**{"from": user(42)}, forward_origin=origin)
    assert await banned(bot, "/ban 1h", **spread) == USER_42


async def test_a_reply_to_a_channel_or_an_anonymous_admin(bot: OperatedBot) -> None:
    """Users who write in the name of a chat are counted as that chat, so it is the target."""
    as_channel = reply_to(**{"from": CHANNEL_BOT}, sender_chat=CHANNEL)
    assert await banned(bot, "/ban 1h", **as_channel) == "channel <code>-200</code>"
    anonymous = reply_to(**{"from": ANONYMOUS_ADMIN}, sender_chat=GROUP)
    assert await banned(bot, "/ban 1h", **anonymous) == "channel <code>-100500</code>"
    automatic = reply_to(
        **{"from": SERVICE_ACCOUNT}, sender_chat=CHANNEL, is_automatic_forward=True
    )
    assert "belongs to no single user" in await banned(bot, "/ban 1h", **automatic)


async def test_a_reply_to_a_forwarded_message(bot: OperatedBot) -> None:
    """In private, a reply to a forwarded message means its author, if Telegram names one."""
    known = forward({"type": "user", "sender_user": user(42)})
    assert await banned(bot, "/ban 1h", **known) == USER_42
    hidden = forward({"type": "hidden_user", "sender_user_name": "Anna"})
    assert "hides their name" in await banned(bot, "/ban 1h", **hidden)
    group = forward({"type": "chat", "sender_chat": GROUP})
    assert await banned(bot, "/ban 1h", **group) == "channel <code>-100500</code>"
    post = forward({"type": "channel", "chat": TEA, "message_id": 1})
    assert await banned(bot, "/ban 1h", **post) == "channel <code>-1002222</code>"


async def test_a_reply_to_another_chat(bot: OperatedBot) -> None:
    """A reply in the admin's private chat to a message of a group means its author."""
    origin = {"type": "user", "date": DATE, "sender_user": user(42)}
    elsewhere = {"external_reply": {"origin": origin, "chat": GROUP, "message_id": 1}}
    assert await banned(bot, "/ban 1h", **elsewhere) == USER_42


async def test_a_reply_to_the_bot_is_no_target(bot: OperatedBot) -> None:
    """In reply to a message of the bot itself, an id is needed, and it is used."""
    own = {"reply_to_message": message(**{"from": user(1), "chat": chat(ANNA)})}
    assert "the bot's own" in await bot.says("/ban 1h", **own)
    assert await banned(bot, "/ban 42 1h", **own) == USER_42
    assert "the bot's own" in await bot.says("/ban 1 1h")


async def test_a_topic_is_no_reply(bot: OperatedBot) -> None:
    """In a topic, every message replies to the one that opened it: that is no target."""
    opening = message(chat=GROUP, **{"from": user(42)}) | {
        "forum_topic_created": {"name": "Tea", "icon_color": 1}
    }
    topic = {"chat": GROUP, "reply_to_message": opening, "is_topic_message": True,
             "message_thread_id": 7}  # fmt: skip
    assert "Which user?" in await bot.says("/who", **topic)
    assert await banned(bot, "/ban 43 1h", **topic) == "user <code>43</code>"


async def test_a_reply_and_an_id_contradict_each_other(bot: OperatedBot) -> None:
    """`/ban 1 hour` as a reply would ban user 1, so it is refused."""
    assert "do only one of the two" in await bot.says("/ban 1 hour", **reply_to())


async def test_a_mention(bot: OperatedBot) -> None:
    """A user without a username is mentioned by a name, which may have spaces and emoji."""
    for text, name in (("/ban Anna Smith 1h spam", "Anna Smith"), ("/ban 😀 Б 1h", "😀 Б")):
        assert await banned(bot, text, **mention(text, name)) == USER_42
    text = "/ban 43 1h as Anna said"  # a mention in the reason means nobody
    assert await banned(bot, text, **mention(text, "Anna", 44)) == "user <code>43</code>"


async def test_a_username(bot: OperatedBot) -> None:
    """Telegram resolves names of public channels and groups for bots, but not of users."""
    bot.session.replies["GetChat"] = TelegramBadRequest(
        method=GetChat(chat_id="@anna"), message="Bad Request: chat not found"
    )
    told = await bot.says("/ban @anna 1h")
    assert "does not tell bots which user <code>@anna</code> is" in told
    for kind, id_, found in (
        ("channel", -1002222, "channel <code>-1002222</code>"),
        ("supergroup", -100500, "chat <code>-100500</code>"),
        ("private", 42, USER_42),
    ):
        bot.session.replies["GetChat"] = ChatFullInfo.model_construct(id=id_, type=kind)
        assert await banned(bot, "/ban @tea 1h") == found


async def test_nobody_is_meant(bot: OperatedBot) -> None:
    """Without a reply, an id or a mention, the bot asks for the user, with an example."""
    assert "<code>/who 42</code>" in await bot.says("/who")
    assert "<code>/ban 42 1h</code>" in await bot.says("/ban")
    assert "<code>1h</code> is not the id" in await bot.says("/ban 1h spam")
    for text in ("/ban 42", "/ban 42 long", "/ban 42 0s", "/ban 42 99999999d"):
        assert "For how long?" in await bot.says(text), text


async def test_a_caption_is_a_command_too(bot: OperatedBot) -> None:
    """A command below a photo is understood."""
    photo = {"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}
    sent = message(**{"from": user(ANNA), "chat": chat(ANNA)}, photo=[photo], caption="/who 42")
    del sent["text"]
    await bot.feed(message=sent)
    (shown,) = bot.session.requests
    assert isinstance(shown, SendMessage)
    assert "User <code>42</code>" in shown.text
