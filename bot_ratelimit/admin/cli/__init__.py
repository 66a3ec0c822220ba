"""The command `bot-ratelimit`: the operations for a shell; `--help` lists its exit statuses."""

from bot_ratelimit.admin.cli.application import app

__all__ = ["app"]
