"""The target of a command: from a reply or an id; and when it is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from tests.admin.telegram.operators import ANNA, GROUP, OperatedBot
from tests.incoming.support import chat, message, user
from tests.incoming.updates import ANONYMOUS_ADMIN, CHANNEL, CHANNEL_BOT, SERVICE_ACCOUNT

DATE = 1_767_225_600
TEA = {"id": -1002222, "type": "channel", "title": "Tea"}


def reply_to(**fields: Any) -> dict[str, Any]:
    """A reply in a group, to a message with these fields."""
    return {"chat": GROUP, "reply_to_message": message(**{"chat": GROUP} | fields)}


def forward(origin: dict[str, Any]) -> dict[str, Any]:
    """A reply, in the admin's private chat, to a message that the admin forwarded there."""
    forwarded = message(forward_origin={"date": DATE} | origin, **{"from": user(ANNA)})
    return {"reply_to_message": forwarded | {"chat": chat(ANNA)}}


TOPIC = {
    "chat": GROUP, "is_topic_message": True, "message_thread_id": 7,
    "reply_to_message": message(chat=GROUP, **{"from": user(42)})
    | {"forum_topic_created": {"name": "Tea", "icon_color": 1}},
}  # fmt: skip
BOB = user(43)
PHOTO = {"file_id": "1", "file_unique_id": "1", "width": 1, "height": 1}
OF_42 = {"type": "user", "date": DATE, "sender_user": user(42)}
ELSEWHERE = {"external_reply": {"origin": OF_42, "chat": GROUP, "message_id": 1}}
OWN = {"reply_to_message": message(**{"from": user(1), "chat": chat(ANNA)})}


@pytest.mark.parametrize(
    ("text", "fields", "meant"),
    [
        # An id: a user's, or a chat's if it is negative.
        ("/ban 42 1h", {}, "user 42"),
        ("/ban   42\n1h  spam and eggs", {}, "user 42"),
        ("/BAN 42 1h", {}, "user 42"),
        ("", {"photo": [PHOTO], "caption": "/ban 42 1h"}, "user 42"),
        ("/ban -100500 1h", {}, "chat -100500"),
        (f"/ban {2**52 - 1} 1h", {}, f"user {2**52 - 1}"),
        # In a group, a reply means the sender of that message, even if it was forwarded.
        ("/ban 1h spam", reply_to(**{"from": user(42)}), "user 42"),
        ("/ban 1h", reply_to(**{"from": user(42)}, forward_origin=OF_42 | {"sender_user": BOB}),
         "user 42"),
        # Users who write in the name of a chat are counted as that chat.
        ("/ban 1h", reply_to(**{"from": CHANNEL_BOT}, sender_chat=CHANNEL), "channel -200"),
        ("/ban 1h", reply_to(**{"from": ANONYMOUS_ADMIN}, sender_chat=GROUP), "channel -100500"),
        # In private, a reply to a forwarded message means its author.
        ("/ban 1h", forward(OF_42), "user 42"),
        ("/ban 1h", forward({"type": "chat", "sender_chat": GROUP}), "channel -100500"),
        ("/ban 1h", forward({"type": "channel", "chat": TEA, "message_id": 1}), "channel -1002222"),
        # A reply in the admin's private chat to a message of a group means its author.
        ("/ban 1h", ELSEWHERE, "user 42"),
        # In reply to a message of the bot itself, an id is used; a topic is no reply.
        ("/ban 42 1h", OWN, "user 42"),
        ("/ban 43 1h", TOPIC, "user 43"),
    ],
)  # fmt: skip
async def test_who_is_meant(
    bot: OperatedBot, text: str, fields: dict[str, Any], meant: str
) -> None:
    """By an id, a reply or a forwarded message: the question names the target."""
    kind, id_ = meant.split()
    assert f"<b>Ban {kind} <code>{id_}</code>" in await bot.says(text, **fields)


ODD_IDS = ("0", str(2**52), "-" + "9" * 5000, "٤٢", "1e5", "42abc", "--42", "@anna")
HIDDEN = forward({"type": "hidden_user", "sender_user_name": "Anna"})
AUTOMATIC = reply_to(**{"from": SERVICE_ACCOUNT}, sender_chat=CHANNEL, is_automatic_forward=True)


@pytest.mark.parametrize(
    ("text", "fields", "said"),
    [
        # Ids that many senders share are never limited.
        *((f"/ban {each['id']} 1h", {}, "all anonymous admins")
          for each in (ANONYMOUS_ADMIN, CHANNEL_BOT, SERVICE_ACCOUNT)),
        *(("/ban 1h", reply_to(**{"from": each}), "all anonymous admins")
          for each in (ANONYMOUS_ADMIN, CHANNEL_BOT, SERVICE_ACCOUNT)),
        ("/ban 1h", AUTOMATIC, "all anonymous admins"),
        ("/ban 1h", HIDDEN, "hides their name"),
        ("/ban 1h", OWN, "the bot's own"),
        ("/who", TOPIC, "Which user?"),
        # `/ban 1 hour` as a reply would ban user 1.
        ("/ban 1 hour", reply_to(), "do only one of the two"),
        ("/who", {}, "<code>/who 42</code>"),
        ("/ban", {}, "<code>/ban 42 1h spam</code>"),
        ("/ban 1h spam", {}, "<code>1h</code> is not the id"),
        # Telegram does not tell bots whose username it is.
        *((f"/ban {odd} 1h", {}, "is not the id of a user or a chat") for odd in ODD_IDS),
        *((f"/ban 42{rest}", {}, "For how long?") for rest in ("", " long", " 0s", " 99999999d")),
    ],
)  # fmt: skip
async def test_a_target_that_is_not_clear_is_asked_for(
    bot: OperatedBot, text: str, fields: dict[str, Any], said: str
) -> None:
    """Nobody, everybody, the bot itself, or two at once: the answer says what to do instead."""
    told = await bot.says(text, **fields)
    assert (said in told, len(told) < 1_000) == (True, True)
    assert bot.buttons == {}
