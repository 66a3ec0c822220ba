"""Where counts are kept: in this process, or in Redis for every instance of the bot."""
