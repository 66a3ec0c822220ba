"""Everything that operators read in Telegram, in English and Russian.

Texts are HTML; `Words` escapes the fields, so that a reason or a name never becomes markup.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from bot_ratelimit.errors import printable
from bot_ratelimit.rules.duration import RUSSIAN_UNITS, UNITS, duration

TEXTS: Final[Mapping[str, Mapping[str, str]]] = {
    "en": {
        # --- what is shown
        "limits": "<b>Limits</b>",
        "no_limits": "No limits are known yet: no handler has run.",
        "rule": "<code>{name}</code>: {limit}\n{scope}, {where}, from {origin}",
        "rule_penalty": "ban of {ban} after {limit}",
        "rule_by_code": "decided by the bot's code",
        "rule_shadow": "shadow: refuses nobody",
        "rule_off": "off",
        "rule_otherwise": "without live changes: {limit}",
        "scope_user": "per user",
        "scope_chat": "per chat",
        "scope_member": "per user in a chat",
        "scope_topic": "per topic",
        "scope_global": "everybody together",
        "scope_custom": "counted by the bot's code",
        "everywhere": "every handler",
        "origin_code": "code",
        "origin_file": "file",
        "origin_environment": "environment",
        "origin_live": "live changes",
        "live_off": "Limits cannot be changed here: that needs <code>live=True</code> in the bot.",
        "live_none": "No live changes. Instances: {instances}.",
        "live": "Live version {version}: <code>{what}</code>. By <code>{by}</code>, {at}. "
        "It holds on {obeying} of {instances} instances.",
        "paused": "All limits are off until {until}.",
        "commands": "Commands: {commands}",
        "user": "user {id}",
        "chat": "chat {id}",
        "in_chat": "{who} in chat {id}",
        "verdict_allowed": "allowed",
        "verdict_exempt": "exempt: never limited",
        "verdict_refused": "refused, allowed again in {wait}",
        "verdict_banned": "banned",
        "who": "{Who}: <b>{verdict}</b>",
        "refused_today": "Refusals in 24 hours: {count}",
        "count": "<code>{rule}</code>: {left} of {capacity} left, {free}",
        "count_by_code": "<code>{rule}</code>: {free}",
        "free_now": "allowed now",
        "free_in": "allowed in {wait}",
        "ban_until": "until {until} ({left} left)",
        "ban_for_good": "forever",
        "ban": "Banned {until}, by <code>{by}</code>",
        "ban_reason": "Banned {until}, by <code>{by}</code>: <code>{reason}</code>",
        "bans": "<b>Bans</b>",
        "no_bans": "Nobody is banned.",
        "ban_line": "{Who}: {until}, by <code>{by}</code>",
        "ban_line_reason": "{Who}: {until}, by <code>{by}</code>: <code>{reason}</code>",
        "top": "<b>Refused most in 24 hours</b>",
        "no_top": "Nobody was refused in 24 hours.",
        "top_line": "{id}: {count}",
        "stats": "<b>Decisions by hour (UTC)</b>\nallowed / refused / banned",
        "no_stats": "Nothing was decided in 24 hours.",
        "stats_line": "{hour}  {allowed} / {refused} / {banned}",
        "history": "<b>Versions</b>",
        "no_history": "Nothing was changed yet.",
        "history_line": "<b>{version}</b>: <code>{what}</code>, by <code>{by}</code>, {at}",
        "well_memory": "Healthy, in this process alone: there is no Redis, so other instances "
        "count for themselves. Version {version}.",
        "well": "Healthy: Redis answered in {ms} ms. Instances: {instances}, "
        "behind version {version}: {behind}.",
        "not_well": "Unhealthy: <code>{problem}</code>",
        "try_free": "{Who}: an update would be <b>handled</b>; no limit applies.",
        "try_allowed": "{Who}: an update would be <b>handled</b>; "
        "<code>{rule}</code> has {left} left.",
        "try_refused": "{Who}: an update would be <b>refused</b> by <code>{rule}</code>, "
        "for {wait}.",
        "try_banned": "{Who}: an update would be <b>refused</b>, because of a ban.",
        # --- what is asked, and what was done
        "ask_forgive": "Forgive {who}? This deletes all counts and lifts bans by a penalty.",
        "ask_forgive_rules": "Forgive {who}? This deletes the counts of: <code>{rules}</code>",
        "ask_ban": "Ban {who} for {length}? Everything from this user or chat will be refused.",
        "ask_ban_for_good": "Ban {who} forever? Everything from this user or chat will be refused.",
        "reason": "Reason: <code>{reason}</code>",
        "ask_unban": "Unban {who}?",
        "ask_set": "Change <code>{name}</code>?\n{before} → <b>{after}</b>",
        "ask_penalty": "Change the ban for users who keep sending while they are refused?\n"
        "{before} → <b>{after}</b>",
        "no_penalty": "none",
        "penalty_default": "without live changes",
        "ask_exempt": "Exempt {who} from all limits and bans?",
        "ask_limit": "Limit {who} again, even if the bot's configuration exempts this id?",
        "ask_rollback": "Roll back to version {version}?\n<code>{changes}</code>",
        "ask_rollback_invalid": "The live limits cannot be read. Replace them with the last good "
        "version?",
        "no_changes": "no live changes",
        "ask_pause": "Switch <b>all limits</b> off for {length}?",
        "ask_resume": "Switch all limits on again?",
        "did_forgive": "{Who} is forgiven: <code>{rules}</code>",
        "did_forgive_nothing": "{Who}: there was nothing to forgive.",
        "did_ban": "{Who} is banned {until}.",
        "did_unban": "{Who} is not banned any more.",
        "did_unban_nothing": "{Who} was not banned.",
        "did_change": "Version {version}: <code>{what}</code>. "
        "It holds on {obeying} of {instances} instances.",
        "working": "One moment…",
        "cancelled": "Cancelled: nothing was changed.",
        # --- buttons
        "yes_forgive": "Forgive",
        "yes_ban": "Ban",
        "yes_unban": "Unban",
        "yes_set": "Change",
        "yes_penalty": "Change",
        "yes_exempt": "Exempt",
        "yes_limit": "Limit again",
        "yes_rollback": "Roll back",
        "yes_pause": "Switch off",
        "yes_resume": "Switch on",
        "no": "Cancel",
        "again": "Refresh",
        "ban_hour": "Ban 1 h",
        "ban_day": "Ban 1 d",
        # --- what goes wrong
        "gone": "This question was answered already, or is older than two minutes. Repeat the "
        "command.",
        "not_yours": "Only the admin who gave the command can answer this.",
        "away": "Redis cannot be reached. Try again later; for details: /{prefix}health",
        "conflict": "Somebody else has changed the limits in the meantime; nothing was changed. "
        "Look again, and repeat the command.",
        "wrong": "That did not work: <code>{error}</code>",
        "start_me": "I answer in private: open a chat with me and press Start.",
        "whom": "Which user? Reply to a message, or give an id: <code>/{command} 42{rest}</code>",
        "both": "You reply to a message and also name somebody: do only one of the two. "
        "Write a length as one word: <code>1h</code>",
        "bad_id": "<code>{value}</code> is not the id of a user or a chat. Reply to a message, or "
        "give an id: <code>/{command} 42{rest}</code>",
        "no_username": "Telegram does not tell bots which user <code>{name}</code> is. Reply to a "
        "message, choose the user from the list after @, or give the id.",
        "hidden": "That user hides their name in forwarded messages. Reply to the original "
        "message, or give the id.",
        "nobody": "That id belongs to no single user, but to all channels, all anonymous admins or "
        "Telegram's service account. It is never limited.",
        "myself": "That message is the bot's own. Reply to a message of the user, or give an id.",
        "is_admin": "{Who} is an admin of this bot, and admins are never limited.",
        "bad_length": "For how long? For example <code>/{command} 42 1h spam</code>, or "
        "<code>forever</code> instead of a period.",
        "usage_setlimit": "For example <code>/{command} NAME 2/minute</code>; instead of a limit "
        "also <code>off</code>, <code>on</code>, <code>shadow</code>, <code>enforce</code> or "
        "<code>default</code>. Names: <code>{names}</code>",
        "usage_penalty": "For example <code>/{command} 10/minute 15m</code>: a ban of 15 minutes "
        "after 10 refused messages in a minute. With <code>grows</code> at the end, 10 more "
        "refused messages during the ban double it. <code>/{command} default</code> undoes the "
        "change.",
        "usage_exempt": "For example <code>/{command} 42</code>, or "
        "<code>/{command} 42 off</code> to limit them again.",
        "usage_pause": "For how long? For example <code>/{command} 1h</code>, at most a day.",
        "usage_rollback": "To which version? Give a number from /{prefix}history, 0 to drop all "
        "changes, or nothing for the previous version.",
        "no_version": "There is no version {version} to roll back to: expected {versions}.",
        "needs_live": "That needs <code>RateLimitMiddleware(..., live=True)</code> in the bot.",
        "needs_statistics": "That needs <code>RateLimitMiddleware(..., statistics=True)</code> in "
        "the bot.",
    },
    "ru": {
        "limits": "<b>Лимиты</b>",
        "no_limits": "Лимиты пока неизвестны: ни один хендлер ещё не вызывался.",
        "rule": "<code>{name}</code>: {limit}\n{scope}, {where}, источник: {origin}",
        "rule_penalty": "бан на {ban} после {limit}",
        "rule_by_code": "решает код бота",
        "rule_shadow": "теневой: ничего не отклоняет",
        "rule_off": "выключен",
        "rule_otherwise": "без изменений на ходу: {limit}",
        "scope_user": "на пользователя",
        "scope_chat": "на чат",
        "scope_member": "на пользователя в чате",
        "scope_topic": "на тему",
        "scope_global": "на всех вместе",
        "scope_custom": "считает код бота",
        "everywhere": "все хендлеры",
        "origin_code": "код",
        "origin_file": "файл",
        "origin_environment": "окружение",
        "origin_live": "изменение на ходу",
        "live_off": "Здесь лимиты менять нельзя: для этого боту нужен <code>live=True</code>.",
        "live_none": "Изменений на ходу нет. Экземпляров: {instances}.",
        "live": "Версия {version}: <code>{what}</code>. Автор: <code>{by}</code>, {at}. "
        "Действует на экземплярах: {obeying} из {instances}.",
        "paused": "Все лимиты выключены до {until}.",
        "commands": "Команды: {commands}",
        "user": "пользователь {id}",
        "chat": "чат {id}",
        "in_chat": "{who} в чате {id}",
        "verdict_allowed": "апдейты проходят",
        "verdict_exempt": "в исключениях: лимиты не действуют",
        "verdict_refused": "апдейты отклоняются ещё {wait}",
        "verdict_banned": "забанен",
        "who": "{Who}: <b>{verdict}</b>",
        "refused_today": "Отказов за 24 часа: {count}",
        "count": "<code>{rule}</code>: осталось {left} из {capacity}, {free}",
        "count_by_code": "<code>{rule}</code>: {free}",
        "free_now": "можно сейчас",
        "free_in": "можно через {wait}",
        "ban_until": "до {until} (осталось {left})",
        "ban_for_good": "навсегда",
        "ban": "Бан {until}, выдал: <code>{by}</code>",
        "ban_reason": "Бан {until}, выдал: <code>{by}</code>, причина: <code>{reason}</code>",
        "bans": "<b>Баны</b>",
        "no_bans": "Никто не забанен.",
        "ban_line": "{Who}: {until}, выдал: <code>{by}</code>",
        "ban_line_reason": "{Who}: {until}, выдал: <code>{by}</code>, "
        "причина: <code>{reason}</code>",
        "top": "<b>Больше всего отказов за 24 часа</b>",
        "no_top": "За 24 часа отказов не было.",
        "top_line": "{id}: {count}",
        "stats": "<b>Решения по часам (UTC)</b>\nпрошло / отклонено / отклонено из-за бана",
        "no_stats": "За 24 часа решений не было.",
        "stats_line": "{hour}  {allowed} / {refused} / {banned}",
        "history": "<b>Версии</b>",
        "no_history": "Пока ничего не менялось.",
        "history_line": "<b>{version}</b>: <code>{what}</code>, автор: <code>{by}</code>, {at}",
        "well_memory": "Всё в порядке, но только в этом процессе: без Redis каждый экземпляр "
        "считает сам. Версия {version}.",
        "well": "Всё в порядке: Redis ответил за {ms} мс. Экземпляров: {instances}, "
        "отстают от версии {version}: {behind}.",
        "not_well": "Есть проблема: <code>{problem}</code>",
        "try_free": "{Who}: апдейт <b>прошёл бы</b>, ни один лимит не действует.",
        "try_allowed": "{Who}: апдейт <b>прошёл бы</b>, "
        "в лимите <code>{rule}</code> осталось {left}.",
        "try_refused": "{Who}: апдейт был бы <b>отклонён</b> лимитом <code>{rule}</code>, "
        "снова можно через {wait}.",
        "try_banned": "{Who}: апдейт был бы <b>отклонён</b> из-за бана.",
        "ask_forgive": "Простить: {who}? Все счётчики будут сброшены, автоматический бан — снят.",
        "ask_forgive_rules": "Простить: {who}? Будут сброшены счётчики: <code>{rules}</code>",
        "ask_ban": "Забанить на {length}: {who}? "
        "Бот будет отклонять всё от этого пользователя или чата.",
        "ask_ban_for_good": "Забанить навсегда: {who}? "
        "Бот будет отклонять всё от этого пользователя или чата.",
        "reason": "Причина: <code>{reason}</code>",
        "ask_unban": "Разбанить: {who}?",
        "ask_set": "Изменить <code>{name}</code>?\n{before} → <b>{after}</b>",
        "ask_penalty": "Изменить бан для тех, кто продолжает писать после отказа?\n"
        "{before} → <b>{after}</b>",
        "no_penalty": "нет",
        "penalty_default": "без изменений на ходу",
        "ask_exempt": "Добавить в исключения: {who}? Лимиты и баны на него действовать не будут.",
        "ask_limit": "Убрать из исключений: {who}? Лимиты и баны будут на него действовать, "
        "даже если этот id — исключение в настройках бота.",
        "ask_rollback": "Вернуть версию {version}?\n<code>{changes}</code>",
        "ask_rollback_invalid": "Изменения на ходу повреждены и не читаются. Заменить их последней "
        "исправной версией?",
        "no_changes": "без изменений",
        "ask_pause": "Выключить <b>все лимиты</b> на {length}?",
        "ask_resume": "Снова включить все лимиты?",
        "did_forgive": "{Who}: сброшены счётчики <code>{rules}</code>",
        "did_forgive_nothing": "{Who}: прощать было нечего.",
        "did_ban": "{Who}: бан {until}.",
        "did_unban": "{Who}: бан снят.",
        "did_unban_nothing": "{Who}: бана не было.",
        "did_change": "Версия {version}: <code>{what}</code>. "
        "Действует на экземплярах: {obeying} из {instances}.",
        "working": "Выполняется…",
        "cancelled": "Отменено: ничего не изменилось.",
        "yes_forgive": "Простить",
        "yes_ban": "Забанить",
        "yes_unban": "Разбанить",
        "yes_set": "Изменить",
        "yes_penalty": "Изменить",
        "yes_exempt": "В исключения",
        "yes_limit": "Убрать",
        "yes_rollback": "Вернуть",
        "yes_pause": "Выключить",
        "yes_resume": "Включить",
        "no": "Отмена",
        "again": "Обновить",
        "ban_hour": "Бан на 1 ч",
        "ban_day": "Бан на 1 день",
        "gone": "На этот вопрос уже ответили, или ему больше двух минут. Повторите команду.",
        "not_yours": "Ответить может только админ, который дал команду.",
        "away": "Redis недоступен. Попробуйте позже; подробнее: /{prefix}health",
        "conflict": "Лимиты тем временем изменил кто-то другой, поэтому команда не выполнена. "
        "Посмотрите ещё раз и повторите.",
        "wrong": "Не получилось: <code>{error}</code>",
        "start_me": "Я отвечаю в личном чате: откройте его и отправьте /start.",
        "whom": "Кого? Ответьте на сообщение или укажите id: <code>/{command} 42{rest}</code>",
        "both": "Вы и отвечаете на сообщение, и указываете, кого: нужно что-то одно. "
        "Срок пишется слитно: <code>1h</code>",
        "bad_id": "<code>{value}</code>: это не id пользователя или чата. Ответьте на сообщение "
        "или укажите id: <code>/{command} 42{rest}</code>",
        "no_username": "Telegram не сообщает ботам, кто такой <code>{name}</code>. Ответьте на "
        "сообщение, выберите пользователя из списка после @ или укажите id.",
        "hidden": "Этот пользователь скрывает своё имя при пересылке. Ответьте на исходное "
        "сообщение или укажите id.",
        "nobody": "Это не id одного пользователя: под ним пишут все каналы, все анонимные "
        "админы или служебный аккаунт Telegram. Лимиты на него не действуют.",
        "myself": "Это сообщение самого бота. Ответьте на сообщение пользователя или укажите id.",
        "is_admin": "{Who} — админ бота, а на админов лимиты не действуют.",
        "bad_length": "На какой срок? Например, <code>/{command} 42 1h спам</code>; "
        "<code>forever</code> вместо срока означает «навсегда».",
        "usage_setlimit": "Например, <code>/{command} ИМЯ 2/minute</code>; вместо лимита можно "
        "указать <code>off</code>, <code>on</code>, <code>shadow</code>, <code>enforce</code> или "
        "<code>default</code>. Имена: <code>{names}</code>",
        "usage_penalty": "Например, <code>/{command} 10/minute 15m</code>: бан на 15 минут после "
        "10 отказов за минуту. Если добавить <code>grows</code>, каждые следующие 10 отказов во "
        "время бана удваивают его. <code>/{command} default</code> отменяет изменение.",
        "usage_exempt": "Например, <code>/{command} 42</code>; <code>/{command} 42 off</code> "
        "снова включает для него лимиты.",
        "usage_pause": "На какой срок? Например, <code>/{command} 1h</code>, не больше суток.",
        "usage_rollback": "К какой версии? Укажите номер из /{prefix}history; 0 отменяет все "
        "изменения, без номера вернётся предыдущая версия.",
        "no_version": "Версии {version} нет. Можно вернуть: {versions}.",
        "needs_live": "Для этого нужен <code>RateLimitMiddleware(..., live=True)</code> в боте.",
        "needs_statistics": "Для этого нужен "
        "<code>RateLimitMiddleware(..., statistics=True)</code> в боте.",
    },
}

_LONGEST: Final = 500


class Html(str):
    """A text that is HTML already, so it is not escaped."""

    __slots__ = ()


class Words:
    """The texts in an operator's language.

    Args:
        language: The user's language code from Telegram; English if there are no texts for it.
        prefix: What the names of commands begin with.
    """

    def __init__(self, language: str | None, prefix: str = "") -> None:
        code = (language or "").lower().partition("-")[0]
        self._texts = TEXTS.get(code) or TEXTS["en"]
        self._prefix = prefix

    def __call__(self, key: str, **fields: object) -> Html:
        """A text with its fields, which are escaped, and shortened so that the message fits."""
        escaped = {name: self.escaped(value) for name, value in fields.items()}
        if "who" in escaped:  # at the beginning of a sentence
            escaped["Who"] = escaped["who"][:1].upper() + escaped["who"][1:]
        return Html(self._texts[key].format(prefix=self._prefix, **escaped))

    def duration(self, seconds: float) -> str:
        """`2 min 5 s`, in this language."""
        return duration(seconds, RUSSIAN_UNITS if self._texts is TEXTS["ru"] else UNITS)

    def moment(self, at: float | datetime) -> str:
        """A time in UTC: operators of one bot live in several time zones."""
        when = at if isinstance(at, datetime) else datetime.fromtimestamp(at, UTC)
        return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"

    @staticmethod
    def escaped(value: object) -> str:
        """A value as HTML."""
        return value if isinstance(value, Html) else html.escape(clipped(str(value)), quote=False)


def clipped(text: str, longest: int = _LONGEST) -> str:
    """The text in one line, without invisible characters, cut to at most `longest`."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 1] + "…"
