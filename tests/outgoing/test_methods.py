"""What each method of the Bot API counts as."""

from __future__ import annotations

import re
from pathlib import Path

from aiogram import methods
from aiogram.methods import (
    CopyMessages,
    EditMessageText,
    SendMediaGroup,
    SendMessage,
    TelegramMethod,
)

from bot_ratelimit.outgoing.methods import TRAFFIC, Kind, chat_of, edit_of, kind_of, traffic_of

KNOWN = {
    name
    for name in methods.__all__
    if issubclass(getattr(methods, name), TelegramMethod) and name != "TelegramMethod"
}


ELSEWHERE = {"EditChatInviteLink", "EditChatSubscriptionInviteLink", "EditStory", "SendGift"}
ELSEWHERE |= {"EditUserStarSubscription"}
"""Methods with such names that change something other than the messages of a chat."""


def test_methods_that_write_into_a_chat_are_listed() -> None:
    """A method of a new aiogram that sends or edits messages must be added to the table."""
    writing = {
        name
        for name in KNOWN
        if name.startswith(("Send", "Forward", "Copy", "Edit", "Stop", "Set"))
        and "chat_id" in getattr(methods, name).model_fields
        and (not name.startswith("Set") or "Message" in str(getattr(methods, name).__returning__))
    }
    assert len(writing) > 30  # of aiogram 3.20; later ones have more
    assert writing - ELSEWHERE <= set(TRAFFIC)


def test_fields_in_the_table_exist() -> None:
    """The fields of items and messages in the table exist.

    Every method with `allow_paid_broadcast` takes a permit.
    """
    for name in KNOWN & set(TRAFFIC):
        traffic, fields = TRAFFIC[name], getattr(methods, name).model_fields
        assert {traffic.items, traffic.message} - {""} <= set(fields), name
        if traffic.kind in (Kind.MESSAGE, Kind.EDIT, Kind.DRAFT, Kind.ACTION):
            assert {"chat_id", "inline_message_id"} & set(fields), name
    paid = {n for n in KNOWN if "allow_paid_broadcast" in getattr(methods, n).model_fields}
    assert len(paid) >= 19  # of the oldest supported aiogram
    assert {TRAFFIC[name].kind for name in paid} == {Kind.MESSAGE}


def test_the_documented_table_is_right() -> None:
    """docs/outgoing.md lists exactly the methods of each kind, or their prefixes."""
    page = (Path(__file__).parents[2] / "docs" / "outgoing.md").read_text()
    table = page[page.index("## Which methods count") :]
    named = set(re.findall(r"`(\w+)`", table[: table.index("\n## ", 5)]))
    counted = {n for n, t in TRAFFIC.items() if t.kind not in (Kind.NEVER, Kind.METHOD)}
    assert {n[0].lower() + n[1:] for n in counted} <= named


def test_costs_chats_edits_and_kinds() -> None:
    """An album costs its items; a chat is its number, or its name in any case.

    Metrics name the kind: a subclass has that of its base, and an unknown method is a method.
    """
    album = SendMediaGroup.model_construct(chat_id=1, media=[1, 2, 3])
    copies = CopyMessages(chat_id="@News", from_chat_id=1, message_ids=[*range(7)])
    assert [traffic_of(type(m)).cost(m) for m in (album, copies)] == [3, 7]
    assert [chat_of(m) for m in (album, copies)] == [1, "@news"]
    assert chat_of(SendMessage(chat_id=" -100 ", text="x")) == -100
    inline = EditMessageText(inline_message_id="abc", text="x")
    assert (chat_of(inline), edit_of(inline, traffic_of(EditMessageText))) == ("inline:abc", "abc")
    names = ("SendMessage", "EditMessageText", "SendMessageDraft", "BanChatMember", "New")
    assert [kind_of(n) for n in names] == ["message", "edit", "draft", "method", "method"]
    assert {kind_of(each) for each in ("AnswerGuestQuery", "GetMe", "SetWebhook")} == {"never"}

    class Mine(SendMessage):
        pass

    assert traffic_of(Mine).kind is Kind.MESSAGE
