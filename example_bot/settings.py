"""BotSettings: the bot's token and addresses; the limits have their own settings."""

import hashlib
import re
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from aiogram.utils.token import TokenValidationError, validate_token
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from bot_ratelimit import ConfigError


def _is_token(value: SecretStr) -> SecretStr:
    try:
        validate_token(value.get_secret_value())
    except TokenValidationError:
        raise ValueError("expected the token as @BotFather gave it: digits, ':', letters") from None
    return value


def _ids(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    ids = value.replace(",", " ").split()
    if not all(re.fullmatch("[0-9]{1,19}", each) for each in ids):
        raise ValueError("expected ids of users, whole numbers such as '42, 43'")
    return frozenset(map(int, ids))


def _is_http(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or address
        return False


def _is_webhook_url(value: str) -> str:
    if not _is_http(value):
        raise ValueError("expected an address such as 'https://bot.example.org/webhook'")
    return value


def _is_api_url(value: str) -> str:
    if not _is_http(value):
        raise ValueError("expected an address such as 'http://localhost:8081'")
    parts = urlsplit(value)
    # aiogram adds /bot<token>/<method> itself, and the token is a setting of its own.
    if re.search(r"/bot(\d|/?$)", parts.path) or parts.query or parts.fragment:
        raise ValueError("expected only the server, such as 'http://localhost:8081'")
    return value


class BotSettings(BaseSettings):
    """The bot's own settings, from the environment and `.env`.

    An empty variable counts as unset, so that a copied `.env.example` works as it is.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    bot_token: Annotated[SecretStr, AfterValidator(_is_token)] | None = Field(
        default=None, description="Token from @BotFather."
    )
    webhook_url: Annotated[str, AfterValidator(_is_webhook_url)] | None = Field(
        default=None, description="Public address of the webhook; unset: long polling."
    )
    webhook_secret: SecretStr | None = Field(
        default=None,
        description="What Telegram shows with every update; unset: derived from the token.",
    )
    web_server_host: str = Field(default="127.0.0.1", description="Address the webhook listens on.")
    web_server_port: int = Field(default=8080, ge=1, le=65535, description="Port it listens on.")
    health_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="Port for /health, /ready, /metrics and /admin/ while the bot polls; "
        "unset: none.",
    )
    admin_ids: Annotated[frozenset[int], NoDecode, BeforeValidator(_ids)] = Field(
        default=frozenset(), description="Ids of the Telegram users who operate the bot."
    )
    bot_api_url: Annotated[str, AfterValidator(_is_api_url)] = Field(
        default="https://api.telegram.org", description="Bot API server, for example a local one."
    )

    @classmethod
    def load(cls) -> Self:
        """Read the environment and `.env`.

        Raises:
            ConfigError: A value is wrong; one line that names the variable and never its value.
        """
        try:
            return cls()
        except ValidationError as error:
            wrong = "; ".join(map(_explain, error.errors()))
        except UnicodeDecodeError as error:
            wrong = f".env is not UTF-8 (at byte {error.start}): save it as UTF-8"
        except OSError as error:
            wrong = f".env cannot be read: {error.strerror}; check its permissions"
        # Raised here, outside `except`, so that the error's context cannot show the token.
        raise ConfigError(wrong)

    @property
    def bot_api_host(self) -> str:
        """The address of the Bot API, without parts that may be secret."""
        parts = urlsplit(self.bot_api_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    @property
    def webhook_path(self) -> str:
        """The path of the webhook's URL, at which the server receives updates."""
        return urlsplit(self.webhook_url or "").path or "/"

    @property
    def secret_token(self) -> str:
        """The secret that distinguishes Telegram's requests from others.

        Every instance must expect the same, since they share one webhook. Derived from the
        token, it needs no setting, and gives nothing of the token away.
        """
        if self.webhook_secret is not None:
            return self.webhook_secret.get_secret_value()
        if self.bot_token is None:
            raise ConfigError("BOT_TOKEN is not set")
        token = self.bot_token.get_secret_value()
        return hashlib.sha256(f"webhook:{token}".encode()).hexdigest()


def _explain(error: Any) -> str:
    reason = error.get("ctx", {}).get("error", error["msg"])  # without pydantic's "Value error, "
    return f"{str(error['loc'][0]).upper()}: {reason}"
