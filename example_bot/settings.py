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
    ids = value.replace(",", " ").split() if isinstance(value, str) else value
    if not all(re.fullmatch("[0-9]{1,19}", str(each)) for each in ids):
        raise ValueError("expected ids of users, whole numbers such as '42, 43'")
    return frozenset(map(int, ids))


def _is_address(value: str) -> str:
    try:
        parts = urlsplit(value)
        right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an invalid port or address
        right = False
    if not right:
        raise ValueError("expected an address such as 'https://bot.example.org/webhook'")
    return value


def _is_server(value: str) -> str:
    parts = urlsplit(_is_address(value))
    # aiogram adds /bot<token>/<method> itself, and the token is a setting of its own.
    if re.search(r"/bot(\d|/?$)", parts.path) or parts.query or parts.fragment:
        raise ValueError("expected only the server, such as 'http://localhost:8081'")
    return value


_Port = Annotated[int, Field(ge=1, le=65535)]


class BotSettings(BaseSettings):
    """The bot's own settings, from the environment and `.env`; `.env.example` explains them.

    An empty variable counts as unset, so that a copied `.env.example` works as it is.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    bot_token: Annotated[SecretStr, AfterValidator(_is_token)] | None = None
    webhook_url: Annotated[str, AfterValidator(_is_address)] | None = None
    webhook_secret: SecretStr | None = None
    web_server_host: str = "127.0.0.1"
    web_server_port: _Port = 8080
    health_port: _Port | None = None
    admin_ids: Annotated[frozenset[int], NoDecode, BeforeValidator(_ids)] = frozenset()
    bot_api_url: Annotated[str, AfterValidator(_is_server)] = "https://api.telegram.org"

    @classmethod
    def load(cls) -> Self:
        """Read the environment and `.env`; an error names the variable, and never its value."""
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
    def token(self) -> str:
        """The bot's token."""
        if self.bot_token is None:
            raise ConfigError("BOT_TOKEN is not set")
        return self.bot_token.get_secret_value()

    @property
    def webhook_path(self) -> str:
        """The path of the webhook's URL, at which the server receives updates."""
        return urlsplit(self.webhook_url or "").path or "/"

    @property
    def secret_token(self) -> str:
        """What Telegram shows with every update; derived from the token, if it is not set."""
        if self.webhook_secret is not None:
            return self.webhook_secret.get_secret_value()
        return hashlib.sha256(f"webhook:{self.token}".encode()).hexdigest()


def _explain(error: Any) -> str:
    reason = error.get("ctx", {}).get("error", error["msg"])  # without pydantic's "Value error, "
    return f"{str(error['loc'][0]).upper()}: {reason}"
