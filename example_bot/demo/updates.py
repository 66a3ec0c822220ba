"""Updates as Telegram sends them: plain JSON objects, for a webhook or `feed_raw_update`."""

import itertools
import time
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

# Telegram numbers updates and messages in ascending order; one sequence serves both here.
_numbers = itertools.count(1)

_PHOTO = {"file_id": "photo", "file_unique_id": "photo", "width": 640, "height": 480}
_STAR = {"currency": "XTR", "total_amount": 1, "invoice_payload": "donation"}


def user(user_id: int) -> Json:
    """A person who writes to the bot."""
    name = f"User {user_id}"
    return {"id": user_id, "is_bot": False, "first_name": name, "language_code": "en"}


def chat(user_id: int, group: int | None = None) -> Json:
    """The private chat with a user, or a group (a negative id) if one is given."""
    if group is None:
        return {"id": user_id, "type": "private", "first_name": f"User {user_id}"}
    return {"id": group, "type": "supergroup", "title": f"Group {group}"}


def message(
    user_id: int, text: str | None = None, *, group: int | None = None, **content: Any
) -> Json:
    """A user sends a message, to a group if one is given, else in private."""
    return {"update_id": next(_numbers), "message": _message(user_id, text, group, content)}


def album(user_id: int, photos: int, *, group: int | None = None) -> list[Json]:
    """A user sends photos as an album; each photo is an update of its own."""
    content: Json = {"photo": [_PHOTO], "media_group_id": str(next(_numbers))}
    return [message(user_id, group=group, **content) for _ in range(photos)]


def callback(user_id: int, data: str, *, group: int | None = None) -> Json:
    """A user presses an inline button under a message of the bot."""
    under = _message(user_id, "A message with a button", group, {})
    content = {"chat_instance": str(group or user_id), "message": under, "data": data}
    return _query("callback_query", user_id, content)


def pre_checkout(user_id: int) -> Json:
    """A user is about to pay one star; the payment goes on when the bot has answered."""
    return _query("pre_checkout_query", user_id, _STAR)


def payment(user_id: int) -> Json:
    """A user has paid one star."""
    charge = {"telegram_payment_charge_id": "1", "provider_payment_charge_id": "1"}
    return message(user_id, successful_payment={**_STAR, **charge})


def _query(kind: str, user_id: int, content: Json) -> Json:
    """A query whose id contains the user's id, since the bot's answer names only the query's id."""
    number = next(_numbers)
    query = {"id": f"{user_id}-{number}", "from": user(user_id), **content}
    return {"update_id": number, kind: query}


def _message(user_id: int, text: str | None, group: int | None, content: Json) -> Json:
    made: Json = {
        "message_id": next(_numbers),
        "date": int(time.time()),
        "chat": chat(user_id, group),
        "from": user(user_id),
        **content,
    }
    if text is not None:
        made["text"] = text
        if text.startswith("/"):
            length = len(text.split(maxsplit=1)[0])
            made["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
    return made
