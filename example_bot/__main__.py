"""`python -m example_bot`: long polling, or a webhook server if WEBHOOK_URL is set."""

import asyncio
import logging
import sys
from importlib.util import find_spec

from aiogram.exceptions import ClientDecodeError, TelegramAPIError, TelegramUnauthorizedError

from bot_ratelimit import (  # fmt: skip
    ConfigError,
    LogObserver,
    Observer,
    OutgoingLimits,
    RateLimitMiddleware,
    Settings,
)
from example_bot.bot import build_dispatcher
from example_bot.serve import build_admin, build_bot, build_webhook_app, run_polling, run_webhook
from example_bot.settings import BotSettings

NO_TOKEN = (
    "BOT_TOKEN is not set: put the token that @BotFather gave you into the environment or into "
    ".env; to see the bot at work without one, run 'make demo'."
)


def main() -> int:
    """Run the bot until it is stopped, and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = BotSettings.load()
        if settings.bot_token is None:
            return _complain(NO_TOKEN)
        run(settings)
    except ConfigError as error:
        return _complain(str(error))
    except TelegramUnauthorizedError:
        return _complain("BOT_TOKEN: Telegram does not know this token.")
    except (TelegramAPIError, ClientDecodeError) as error:
        return _complain(
            f"The Bot API refused, or none answers: {error.message}. Check the network, and "
            "BOT_API_URL: an address such as http://localhost:8081"
        )
    return 0


def run(settings: BotSettings) -> None:
    """Build the bot from its settings, and run it."""
    watching = [LogObserver(), *metrics()]
    # Operators change limits while the bot runs, and see who is refused how often.
    limits = Settings()
    rate_limit = RateLimitMiddleware.from_settings(
        limits, observer=watching, live=True, statistics=True
    )
    dispatcher = build_dispatcher(rate_limit, settings.admin_ids)
    bot = build_bot(settings)
    outgoing = OutgoingLimits.from_settings(limits, observer=watching, statistics=True)
    outgoing.setup(bot, dispatcher)
    admin = build_admin(settings, limits, rate_limit)
    if settings.webhook_url:
        app = build_webhook_app(settings, bot, dispatcher, rate_limit, admin)
        run_webhook(settings, app, dispatcher)
    else:
        asyncio.run(run_polling(settings, bot, dispatcher, rate_limit, admin))


def metrics() -> list[Observer]:
    """Metrics for Prometheus, if its client is installed; limits do not need it."""
    if find_spec("prometheus_client") is None:
        return []
    from bot_ratelimit.metrics import PrometheusMetrics

    return [PrometheusMetrics()]


def _complain(sentence: str) -> int:
    print(sentence.replace("\n", " "), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
