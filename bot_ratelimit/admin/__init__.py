"""Who operates the bot: health and metrics over HTTP."""
