"""For operators: inspect, forgive, ban, and change limits while the bot runs."""
