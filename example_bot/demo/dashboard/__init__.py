"""The page for operators beside a busy bot: `python -m example_bot.demo.dashboard`."""
