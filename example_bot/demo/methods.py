"""The answers of the Bot API to each method: Telegram's own formats, for results and for errors."""

import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiohttp import web

from example_bot.demo.updates import Json, chat

Params: TypeAlias = dict[str, str]
"""The parameters of a call; values that are not text are JSON, as in a form."""

_message_ids = itertools.count(1_000_000)


@dataclass(frozen=True, slots=True)
class Call:
    """A request that a bot made."""

    method: str
    params: Params
    at: float  # when it arrived, in seconds of `time.perf_counter`

    @property
    def chat_id(self) -> int | None:
        """The chat that the call names, or None."""
        value = self.params.get("chat_id")
        return int(value) if value else None

    @property
    def query_id(self) -> str:
        """The query that the call answers, or an empty string."""
        names = ("callback_query_id", "pre_checkout_query_id", "inline_query_id")
        return next((self.params[name] for name in names if name in self.params), "")

    @property
    def user_id(self) -> int | None:
        """The user whom the call reaches: the user of the private chat, or of the query."""
        return int(self.query_id.partition("-")[0]) if self.query_id else self.chat_id

    @property
    def text(self) -> str:
        """The text of the call, or an empty string."""
        return self.params.get("text", "")


class ApiError(Exception):
    """An error answer: `{"ok": false, "error_code": …, "description": …}`."""

    def __init__(self, code: int, description: str, *, retry_after: int | None = None) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.retry_after = retry_after

    def response(self) -> web.Response:
        """The HTTP response; its status is the error code."""
        body: Json = {"ok": False, "error_code": self.code, "description": self.description}
        if self.retry_after is not None:
            body["parameters"] = {"retry_after": self.retry_after}
        return web.json_response(body, status=self.code)


async def read_params(request: web.Request) -> Params:
    """Read the parameters, which Telegram accepts in the query string, a form or JSON."""
    params = dict(request.query)
    if request.content_type == "application/json":
        body = await request.json()
        params |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in body.items()}
    else:
        form = await request.post()
        params |= {k: v for k, v in form.items() if isinstance(v, str)}
    return params


def get_me(params: Params) -> Json:
    """The bot itself."""
    return {"id": 1234567890, "is_bot": True, "first_name": "Example", "username": "example_bot"}


def send_message(params: Params) -> Json:
    """The message that was sent."""
    chat_id = params.get("chat_id")
    if not chat_id:
        raise ApiError(400, "Bad Request: chat_id is empty")
    if not params.get("text", "").strip():
        raise ApiError(400, "Bad Request: message text is empty")
    number = int(chat_id)
    return {
        "message_id": int(params.get("message_id") or next(_message_ids)),
        "date": int(time.time()),
        "chat": chat(number, number if number < 0 else None),
        "from": get_me({}),
        "text": params["text"],
    }


def send_invoice(params: Params) -> Json:
    """The message with the invoice."""
    try:
        total = sum(price["amount"] for price in json.loads(params["prices"]))
    except (LookupError, ValueError):
        raise ApiError(400, "Bad Request: can't parse prices") from None
    invoice = {name: params.get(name, "") for name in ("title", "description", "currency")}
    invoice |= {"start_parameter": "", "total_amount": total}
    return {**send_message({**params, "text": "an invoice"}), "text": None, "invoice": invoice}


DONE = (
    *("answercallbackquery", "answerinlinequery", "answerprecheckoutquery", "answershippingquery"),
    *("approvechatjoinrequest", "sendchataction", "setmessagereaction", "setmycommands"),
    *("deletemessage", "logout", "close"),
)
"""Methods that return nothing but success."""

STATELESS: dict[str, Callable[[Params], Any]] = {
    "getme": get_me,
    "sendmessage": send_message,
    "sendinvoice": send_invoice,
    "editmessagetext": send_message,
    **dict.fromkeys(DONE, lambda params: True),
}
"""By lower-case name, because Telegram ignores the case."""
