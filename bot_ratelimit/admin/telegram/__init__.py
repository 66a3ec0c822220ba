"""In Telegram: a router with the operators' commands, for the bot itself."""

from bot_ratelimit.admin.telegram.router import admin_router

__all__ = ["admin_router"]
