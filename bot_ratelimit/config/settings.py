"""Settings: reads the environment and `.env`, and makes objects of them."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from bot_ratelimit.config.limits_file import LimitsFile, read_limits_file
from bot_ratelimit.errors import ConfigError
from bot_ratelimit.limiter.arguments import check_timeout
from bot_ratelimit.limiter.decider import OnError
from bot_ratelimit.rules.rule import Rules, check_prefix, rules_of
from bot_ratelimit.storage.base import Storage
from bot_ratelimit.storage.memory import MemoryStorage
from bot_ratelimit.storage.redis.storage import RedisStorage

Origin: TypeAlias = Literal["code", "file", "environment", "live"]
"""Where a value comes from; later ones in this list win."""

_DIGITS: Final = re.compile(r"[0-9]{1,10}")
_NUMBER: Final = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_URL_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_QUOTES: Final = ("'", '"')
_MAYBE_URL: Final = re.compile("@|://")
_USER_NAME: Final = re.compile(r"@\w+")
_SERVICE_LINKS: Final = (
    " (Kubernetes sets REDIS_PORT for a service named redis: set enableServiceLinks to false)"
)
_MAX_DB: Final = 2**31 - 1


class Settings(BaseSettings):
    """What the environment says; an empty variable counts as unset.

    ::

        RateLimitMiddleware.from_settings(Settings(redis_url="redis://10.0.0.5/0"))

    RATE_LIMIT_FILE names a file with limits; what a variable says wins over the file.
    Redis is used when REDIS_ENABLED is true, or when it is unset and REDIS_URL or REDIS_HOST is
    set. Secrets appear in no repr, log or error, nor in an error's cause.

    Raises:
        ConfigError: A value is wrong, or `.env` cannot be read; the message names each such
            variable and the fix.
    """

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8-sig",  # UTF-8, also with the byte order mark that Notepad writes
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    redis_enabled: bool | None = Field(
        None, description="true or false; if unset, Redis is used if REDIS_URL or REDIS_HOST is set"
    )
    redis_url: SecretStr | None = Field(
        None,
        description="a redis://, rediss:// or unix:// URL, such as redis://:password@host:6379/0, "
        "with @ as %40, / as %2F, # as %23, ? as %3F and % as %25 in the password",
    )
    redis_host: str | None = Field(
        None, description="a host name or an address; a URL goes into REDIS_URL"
    )
    redis_port: int = Field(6379, ge=1, le=65535, description="a port, 1 to 65535")
    redis_db: int = Field(0, ge=0, le=_MAX_DB, description="the number of a database, 0 or more")
    redis_password: SecretStr | None = Field(None, description="a password")
    redis_key_prefix: str = Field(
        "bot", description="the beginning of every key, for example booking_bot:client1"
    )
    rate_limit: str = Field(
        "1/s", description="limits such as 5/10s or 1/s; 20/minute, or seconds for one event"
    )
    rate_limit_on_error: OnError = Field(
        "allow", description="allow, deny or memory: what happens when Redis fails"
    )
    rate_limit_timeout: float = Field(
        0.25, description="seconds that Redis gets for a decision, above 0"
    )

    rate_limit_memory_size: int = Field(
        10_000, ge=1, description="the maximum number of counts in this process, 1 or more"
    )

    rate_limit_exempt: Annotated[frozenset[int], NoDecode] = Field(
        frozenset(), description="ids of users and chats without a limit, such as 42, -100123"
    )
    rate_limit_file: str | None = Field(
        None, description="the path of a TOML file with limits, such as limits.toml"
    )
    rate_limit_admin_token: SecretStr | None = Field(
        None, description="what operators log in with, 16 characters or more; see `admin_app`"
    )
    _file: LimitsFile = PrivateAttr(default_factory=LimitsFile)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            wrong = "; ".join(map(_explain, error.errors()))
        except UnicodeDecodeError as error:
            wrong = f".env is not UTF-8 (at byte {error.start}): save it as UTF-8"
        except OSError as error:
            wrong = f".env cannot be read: {error.strerror}; check its permissions"
        else:
            if self.rate_limit_file is not None:
                self._file = read_limits_file(self.rate_limit_file)
            return
        # Raised here, so that no error that contains a secret becomes its context.
        raise ConfigError(wrong)

    @field_validator("rate_limit_exempt", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return value.replace(",", " ").split() if isinstance(value, str) else value

    # The last of several such validators runs first; this one needs the unchanged text.
    @field_validator("*", mode="before")
    @classmethod
    def _check_quotes(cls, value: object) -> object:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if isinstance(text, str) and len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES:
            raise ValueError(
                "the quotes are part of the value (docker's --env-file, for one, keeps them): "
                "remove them"
            )
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and (wrong := _wrong_with(value.get_secret_value())):
            raise ValueError(wrong)
        return value

    @field_validator("redis_host")
    @classmethod
    def _check_host(cls, value: str | None) -> str | None:
        if value is None or _HOST.fullmatch(value):
            return value
        address = value.removeprefix("[").removesuffix("]")
        if not _is_host(address):
            raise ValueError("neither a host name nor an address")
        return str(ip_address(address))

    @field_validator("redis_key_prefix")
    @classmethod
    def _check_prefix(cls, value: str) -> str:
        if "://" in value:  # the log shows the prefix
            raise ValueError("a URL is not a prefix")
        return check_prefix(value)

    @field_validator("rate_limit_file")
    @classmethod
    def _check_file(cls, value: str | None) -> str | None:
        if value is not None and "://" in value:  # errors show the path
            raise ValueError("a URL is not a path")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _check_limit(cls, value: str) -> str:
        _read_rules(value)
        return value

    @field_validator("rate_limit_timeout")
    @classmethod
    def _check_timeout(cls, value: float) -> float:
        return check_timeout(value)

    @property
    def uses_redis(self) -> bool:
        """Whether counts are kept in Redis."""
        if self.redis_enabled is None:
            return self.redis_url is not None or self.redis_host is not None
        return self.redis_enabled

    @property
    def file(self) -> LimitsFile:
        """The content of the limits file; empty without RATE_LIMIT_FILE."""
        return self._file

    def rules(self) -> Rules:
        """Return the rules of RATE_LIMIT; if it is unset, those of the limits file."""
        if self.origin("rate_limit") == "file" and self._file.rules is not None:
            return self._file.rules
        return _read_rules(self.rate_limit)

    def exempt(self) -> frozenset[int]:
        """Return the ids of RATE_LIMIT_EXEMPT; if it is unset, those of the limits file."""
        if self.origin("rate_limit_exempt") == "file":
            return self._file.exempt or frozenset()
        return self.rate_limit_exempt

    def origin(self, name: str) -> Origin:
        """Return where the value of a setting comes from."""
        in_file = {"rate_limit": self._file.rules, "rate_limit_exempt": self._file.exempt}
        if name in self.model_fields_set:
            return "environment"
        return "code" if in_file.get(name) is None else "file"

    def storage(self) -> Storage:
        """Make a storage for these settings; closing it closes its client."""
        client = self.redis_client()
        if client is None:
            return MemoryStorage(self.rate_limit_memory_size)
        return RedisStorage(client, close_client=True)

    def redis_client(self) -> Redis | None:
        """Make a client, which connects when it is first used; None if Redis is not used."""
        if not self.uses_redis:
            return None
        options: dict[str, Any] = {
            "db": self.redis_db,
            "password": self.redis_password and self.redis_password.get_secret_value(),
            # The limiter has a time-out of its own for every decision.
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": None,
            "socket_connect_timeout": None,
        }
        if self.redis_url is not None:
            # Options in the URL win over these.
            url = self.redis_url.get_secret_value()
            return Redis.from_pool(ConnectionPool.from_url(url, **options))
        host = self.redis_host or "localhost"
        return Redis.from_pool(ConnectionPool(host=host, port=self.redis_port, **options))


def _wrong_with(url: str) -> str | None:
    """Return what is wrong with the URL, without quoting it: any part may belong to the password.

    For example, redis-py itself reads `redis://:12/3@h` as a host without a name, a port and a
    database.
    """
    if not url.startswith(_URL_SCHEMES):
        return "unknown scheme"
    try:
        parts = urlsplit(url)
        if parts.fragment or "@" in parts.path or ("@" in parts.query and "@" not in parts.netloc):
            return "a character of the password or the path is not escaped"
        if parts.scheme != "unix":
            database = parts.path.removeprefix("/")
            if database and not (_DIGITS.fullmatch(database) and int(database) <= _MAX_DB):
                return "the path is not the number of a database"
            if parts.hostname is not None and not _is_host(parts.hostname):
                return "neither a host name nor an address before the port"
            if parts.port == 0:  # redis-py would take the default port
                return "the port is not between 1 and 65535"
        elif not parts.path:
            return "the path of the socket is missing, such as unix:///run/redis.sock"
        options = parse_qsl(parts.query, strict_parsing=True) if parts.query else []
        if any(name == "db" and not _DIGITS.fullmatch(value) for name, value in options):
            return "db is not the number of a database"
        pool: Any = ConnectionPool.from_url(url)
        pool.make_connection()  # connects to nothing yet, but checks every option
    except (ValueError, TypeError, AttributeError, RedisError):
        return "not a URL, or one with options that redis-py lacks"
    return None


def _is_host(text: str) -> bool:
    if _HOST.fullmatch(text):
        return True
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _read_rules(text: str) -> Rules:
    return rules_of(float(text) if _NUMBER.fullmatch(text) else text)


def _explain(error: Any) -> str:
    """Explain an invalid variable in one line: its name, its value if not secret, and the fix."""
    name = str(error["loc"][0]) if error["loc"] else "settings"
    field = Settings.model_fields.get(name)
    expected = field.description if field else "a known setting"
    reason = error.get("ctx", {}).get("error", error["msg"])
    value = error["input"]
    if name == "rate_limit_exempt" and isinstance(value, str) and _USER_NAME.fullmatch(value):
        return f"{name.upper()}: {value!r} is a user name, not an id; expected {expected}"
    if field is None or name == "redis_host" or "SecretStr" in str(field.annotation):
        shown = ""
    elif isinstance(value, str) and _MAYBE_URL.search(value):
        # Neither the value nor the reason, which repeats it, is shown: a URL may contain a
        # password.
        hint = _SERVICE_LINKS if name == "redis_port" else ""
        shown, reason = "", f"looks like a URL, which goes into REDIS_URL{hint}"
    else:
        shown = f"={value!r}"
    if isinstance(reason, ConfigError):  # it says what is expected, and may begin with the value
        return f"{name.upper()}{shown}: {str(reason).removeprefix(f'{value!r}: ')}"
    return f"{name.upper()}{shown}: {reason}; expected {expected}"
