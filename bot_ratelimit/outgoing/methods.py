"""What each method of the Bot API counts as, decided by its type."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from functools import lru_cache
from typing import Any, Final, NamedTuple, TypeAlias

from aiogram import methods
from aiogram.methods import TelegramMethod

Method: TypeAlias = TelegramMethod[Any]


class Kind(Enum):
    """How a method is treated."""

    SEND = "send"
    """Takes a permit of its chat, and waits for it."""
    EDIT = "edit"
    """Like SEND; of several waiting edits of one message only the newest is sent."""
    ACTION = "action"
    """Takes a permit if one is free; otherwise it is dropped."""
    OTHER = "other"
    """Sent at once; only a 429 makes it wait, and it is sent again then."""
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


def traffic_of(method: type[Method]) -> Traffic:
    """What a method of this type, or of a type derived from it, counts as."""
    found = _TABLE.get(method)
    return _inherited(method) if found is None else found


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
    of them contains everything that its type can change.
    """
    message = getattr(method, traffic.message, None) if traffic.message else None
    return message or getattr(method, "inline_message_id", None)


def _named(names: str, traffic: Traffic) -> dict[str, Traffic]:
    return dict.fromkeys(names.split(), traffic)


# fmt: off
TRAFFIC: Final[dict[str, Traffic]] = {
    **_named(
        "SendMessage SendPhoto SendAudio SendDocument SendVideo SendAnimation SendVoice "
        "SendVideoNote SendLivePhoto SendPaidMedia SendLocation SendVenue SendContact SendPoll "
        "SendChecklist SendDice SendSticker SendInvoice SendGame SendRichMessage ForwardMessage "
        "CopyMessage", Traffic(Kind.SEND)),
    "SendMediaGroup": Traffic(Kind.SEND, items="media"),
    **_named("ForwardMessages CopyMessages", Traffic(Kind.SEND, items="message_ids")),
    **_named(
        "EditMessageText EditMessageCaption EditMessageMedia EditMessageLiveLocation "
        "EditMessageReplyMarkup EditMessageChecklist", Traffic(Kind.EDIT, message="message_id")),
    **_named(
        "EditEphemeralMessageText EditEphemeralMessageCaption EditEphemeralMessageMedia "
        "EditEphemeralMessageReplyMarkup", Traffic(Kind.EDIT, message="ephemeral_message_id")),
    **_named(
        "SendMessageDraft SendRichMessageDraft", Traffic(Kind.EDIT, message="draft_id")),
    # They end something or change a number, so none of them replaces another.
    **_named("StopMessageLiveLocation StopPoll SetGameScore", Traffic(Kind.EDIT)),
    "SendChatAction": Traffic(Kind.ACTION),
    # Users wait for these, or the bot cannot work without them.
    **_named(
        "GetUpdates SetWebhook DeleteWebhook GetWebhookInfo Close LogOut GetMe "
        "AnswerCallbackQuery AnswerInlineQuery AnswerPreCheckoutQuery AnswerShippingQuery "
        "AnswerWebAppQuery AnswerGuestQuery AnswerChatJoinRequestQuery SendChatJoinRequestWebApp",
        Traffic(Kind.NEVER)),
    **_named(
        "GetAvailableGifts GetBusinessAccountGifts GetBusinessAccountStarBalance "
        "GetBusinessConnection GetChat GetChatAdministrators GetChatGifts GetChatMember "
        "GetChatMemberCount GetChatMenuButton GetCustomEmojiStickers GetFile "
        "GetForumTopicIconStickers GetGameHighScores GetManagedBotAccessSettings "
        "GetManagedBotToken GetMyCommands GetMyDefaultAdministratorRights GetMyDescription "
        "GetMyName GetMyShortDescription GetMyStarBalance GetStarTransactions GetStickerSet "
        "GetUserChatBoosts GetUserGifts GetUserPersonalChatMessages GetUserProfileAudios "
        "GetUserProfilePhotos", Traffic(Kind.NEVER)),
    # The rest changes something other than the messages of a chat, or deletes messages.
    **_named(
        "AddStickerToSet ApproveChatJoinRequest ApproveSuggestedPost BanChatMember "
        "BanChatSenderChat CloseForumTopic CloseGeneralForumTopic ConvertGiftToStars "
        "CreateChatInviteLink CreateChatSubscriptionInviteLink CreateForumTopic CreateInvoiceLink "
        "CreateNewStickerSet DeclineChatJoinRequest DeclineSuggestedPost "
        "DeleteAllMessageReactions DeleteBusinessMessages DeleteChatPhoto DeleteChatStickerSet "
        "DeleteEphemeralMessage DeleteForumTopic DeleteMessage DeleteMessageReaction "
        "DeleteMessages DeleteMyCommands DeleteStickerFromSet DeleteStickerSet DeleteStory "
        "EditChatInviteLink EditChatSubscriptionInviteLink EditForumTopic EditGeneralForumTopic "
        "EditStory EditUserStarSubscription ExportChatInviteLink GiftPremiumSubscription "
        "HideGeneralForumTopic LeaveChat PinChatMessage PostStory PromoteChatMember "
        "ReadBusinessMessage RefundStarPayment RemoveBusinessAccountProfilePhoto "
        "RemoveChatVerification RemoveMyProfilePhoto RemoveUserVerification ReopenForumTopic "
        "ReopenGeneralForumTopic ReplaceManagedBotToken ReplaceStickerInSet RepostStory "
        "RestrictChatMember RevokeChatInviteLink SavePreparedInlineMessage "
        "SavePreparedKeyboardButton SendGift SetBusinessAccountBio SetBusinessAccountGiftSettings "
        "SetBusinessAccountName SetBusinessAccountProfilePhoto SetBusinessAccountUsername "
        "SetChatAdministratorCustomTitle SetChatDescription SetChatMemberTag SetChatMenuButton "
        "SetChatPermissions SetChatPhoto SetChatStickerSet SetChatTitle "
        "SetCustomEmojiStickerSetThumbnail SetManagedBotAccessSettings SetMessageReaction "
        "SetMyCommands SetMyDefaultAdministratorRights SetMyDescription SetMyName "
        "SetMyProfilePhoto SetMyShortDescription SetPassportDataErrors SetStickerEmojiList "
        "SetStickerKeywords SetStickerMaskPosition SetStickerPositionInSet SetStickerSetThumbnail "
        "SetStickerSetTitle SetUserEmojiStatus TransferBusinessAccountStars TransferGift "
        "UnbanChatMember UnbanChatSenderChat UnhideGeneralForumTopic UnpinAllChatMessages "
        "UnpinAllForumTopicMessages UnpinAllGeneralForumTopicMessages UnpinChatMessage "
        "UpgradeGift UploadStickerFile VerifyChat VerifyUser", Traffic(Kind.OTHER)),
}
# fmt: on
"""Every method by name; older versions of aiogram lack some of them."""


def table_of(names: Iterable[str]) -> dict[type[Method], Traffic]:
    """The part of the table that the installed aiogram has, by type."""
    find: Callable[[str], Any] = lambda name: getattr(methods, name, None)  # noqa: E731 - shorter
    return {found: TRAFFIC[name] for name in names if (found := find(name))}


_TABLE: Final = table_of(TRAFFIC)


@lru_cache(maxsize=256)
def _inherited(method: type[Method]) -> Traffic:
    """The traffic of a custom class: that of its base class; OTHER for an unknown class."""
    bases = (_TABLE[base] for base in method.__mro__ if base in _TABLE)
    return next(bases, Traffic(Kind.OTHER))
