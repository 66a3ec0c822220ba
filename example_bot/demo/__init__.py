"""The demo: a stand-in for Telegram, three instances of the example bot, a crowd, four acts."""
