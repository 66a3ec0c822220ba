"""What each method of the Bot API counts as, decided by its type."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from aiogram import methods
from aiogram.methods import TelegramMethod

Method: TypeAlias = TelegramMethod[Any]


class Kind(Enum):
    """How a method is treated. The values are the labels of metrics, and the keys of `max_wait`."""

    MESSAGE = "message"
    """Takes a permit of its chat, and waits for it."""
    EDIT = "edit"
    """Like MESSAGE; of several waiting edits of one message only the newest is sent."""
    SERVICE = "service"
    """Makes a service message: in a group like MESSAGE, elsewhere like METHOD."""
    DRAFT = "draft"
    """Has a budget of its own; the caller never waits for it, and only the newest text is kept."""
    ACTION = "action"
    """Has a budget of its own; it is sent now or dropped."""
    METHOD = "method"
    """Takes no permit; after a 429, all calls of this method wait."""
    NEVER = "never"
    """Not touched: it must not wait, or it waits by itself."""


class Traffic(NamedTuple):
    """What a method counts as."""

    kind: Kind
    items: str = ""
    """The field whose elements are counted, one permit each; empty if the request is one permit."""
    message: str = ""
    """The field that identifies the edited message."""

    def cost(self, method: Method) -> int:
        """How many messages Telegram counts for this request."""
        return max(1, len(getattr(method, self.items, None) or ())) if self.items else 1


def kind_of(name: str) -> str:
    """The kind of a method with this name, as a label: `kind_of("SendMessage") == "message"`."""
    return traffic_named(name).kind.value


def chat_of(method: Method) -> int | str | None:
    """The chat whose limit a request counts against: its id, `@channel`, or an inline message.

    A number given as text is the number, and user names are compared in lower case.
    """
    chat = getattr(method, "chat_id", None)
    if chat is None:
        inline = getattr(method, "inline_message_id", None)
        return None if inline is None else f"inline:{inline}"
    if isinstance(chat, int):
        return chat
    text = str(chat).strip().lower()
    try:
        return int(text)
    except ValueError:
        return text


def edit_of(method: Method, traffic: Traffic) -> Hashable | None:
    """Which message is edited; None if the request does not edit, or cannot be replaced.

    The value is unique within a chat. Two edits of the same type replace each other, because each
    of them contains everything that its type can change. The id of an ephemeral message is unique
    for its receiver only.
    """
    if not traffic.message:
        return None
    message = getattr(method, traffic.message, None)
    if message is None:
        return getattr(method, "inline_message_id", None)
    return message, getattr(method, "receiver_user_id", None)


def topic_of(method: Method) -> int | None:
    """The topic of a chat that a message or a draft is for; None outside of topics."""
    return getattr(method, "message_thread_id", None)


def draft_of(method: Method) -> tuple[int | None, int]:
    """Which draft of a chat this is. Two topics with one `draft_id` have two drafts."""
    return topic_of(method), int(getattr(method, "draft_id", 0))


def is_group(chat: int | str) -> bool:
    """Whether this is a group or channel. A user name always is: bots reach users only by id."""
    return chat < 0 if isinstance(chat, int) else chat.startswith("@")


def _named(names: str, traffic: Traffic) -> dict[str, Traffic]:
    return dict.fromkeys(names.split(), traffic)


# fmt: off
TRAFFIC: Final[dict[str, Traffic]] = {
    **_named(
        "SendMessage SendPhoto SendAudio SendDocument SendVideo SendAnimation SendVoice "
        "SendVideoNote SendLivePhoto SendPaidMedia SendLocation SendVenue SendContact SendPoll "
        "SendChecklist SendDice SendSticker SendInvoice SendGame SendRichMessage ForwardMessage "
        "CopyMessage", Traffic(Kind.MESSAGE)),
    "SendMediaGroup": Traffic(Kind.MESSAGE, items="media"),
    **_named("ForwardMessages CopyMessages", Traffic(Kind.MESSAGE, items="message_ids")),
    **_named(
        "EditMessageText EditMessageCaption EditMessageMedia EditMessageLiveLocation "
        "EditMessageReplyMarkup EditMessageChecklist", Traffic(Kind.EDIT, message="message_id")),
    **_named(
        "EditEphemeralMessageText EditEphemeralMessageCaption EditEphemeralMessageMedia "
        "EditEphemeralMessageReplyMarkup", Traffic(Kind.EDIT, message="ephemeral_message_id")),
    **_named("SendMessageDraft SendRichMessageDraft", Traffic(Kind.DRAFT)),
    # They end something or change a number, so none of them replaces another.
    **_named("StopMessageLiveLocation StopPoll SetGameScore", Traffic(Kind.EDIT)),
    "SendChatAction": Traffic(Kind.ACTION),
    # Telegram shows a service message in the chat for each of these.
    **_named(
        "CloseForumTopic CloseGeneralForumTopic CreateForumTopic DeleteChatPhoto EditForumTopic "
        "EditGeneralForumTopic HideGeneralForumTopic PinChatMessage ReopenForumTopic "
        "ReopenGeneralForumTopic SetChatPhoto SetChatTitle UnhideGeneralForumTopic",
        Traffic(Kind.SERVICE)),
    # A user waits for it, or the bot cannot work without it, as with all answers and getters.
    **_named("SetWebhook DeleteWebhook Close LogOut SendChatJoinRequestWebApp",
             Traffic(Kind.NEVER)),
}
# fmt: on
"""Methods by name; older versions of aiogram lack some of them. Those that are not here, except for
answers and getters, change something other than the messages of a chat, or delete messages."""


def traffic_named(name: str) -> Traffic:
    """What the method of this name counts as: `traffic_named("SendMessage")`."""
    is_read = name.startswith(("Answer", "Get"))
    return TRAFFIC.get(name) or Traffic(Kind.NEVER if is_read else Kind.METHOD)


@lru_cache(maxsize=512)
def traffic_of(method: type[Method]) -> Traffic:
    """What a method of this type, or of a type derived from it, counts as."""
    own = (each.__name__ for each in method.__mro__ if each.__name__ in methods.__all__)
    return traffic_named(next(own, method.__name__))
