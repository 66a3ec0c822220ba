"""The demo: a stand-in for Telegram, three instances of the bot, and four scenarios."""
