"""What a worker process says, on stderr: a line a fact, for people or as JSON, each with a stable `action`.

All code logs with the standard library; structlog renders it, and what libraries log. Ids are told, never what events
say and no secret: the text of an error that is none of ours, nor the server's, may hold either, so its type and its
frames are told alone; what is known to be secret is masked wherever it stands.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Thread
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import redis
from structlog.stdlib import ExtraAdder, ProcessorFormatter

from domain.errors import Misconfigured, MusterError
from domain.log.address import parse_address
from workers.settings import ADDRESSES, SECRETS, Settings
from workers.topics import forget_topics, parse_topics, set_debug_topics, switch_all, topic_of

logger = logging.getLogger(__name__)

Fields: TypeAlias = Any  # what structlog calls an event dict, whichever of its types
#: What is shown instead of a secret.
MASK: Final = "***"
#: Errors whose text is told.
OURS: Final = (MusterError, redis.RedisError, OSError)
#: What stands in front of the fields of a line; fields of this name that a library gives are dropped.
_FIRST: Final = ("at", "level", "action", "message", "logger")
_OWN: Final = frozenset({*_FIRST, "event"})

_IN_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*://)[^\s/@]*@", re.IGNORECASE)
#: redis-py repeats the beginning of a command that failed in a pipeline: its key is an id, the rest may be anything.
_IN_PIPELINE: Final = re.compile(r"(Command # \d+ \(\S+ \S+).*?(\) of pipeline)", re.DOTALL)


@contextmanager
def logging_as(settings: Settings) -> Iterator[None]:
    """Has this process log as the settings say, meanwhile; each line tells its pid too."""
    handler, root = handler_for(settings, pid=os.getpid()), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    set_debug_topics(parse_topics(settings.log.debug))
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        forget_topics()


def handler_for(settings: Settings, **about: Any) -> logging.Handler:
    """Renders lines as the settings say; each tells what it is about too."""
    masked = _Mask(secrets_of(settings))
    is_json = settings.log.format == "json"
    formatter = ProcessorFormatter(
        foreign_pre_chain=[ExtraAdder()],
        processors=[_Ordered(about), _told_error, masked, _as_json if is_json else _as_text],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    return handler


def switch_on_signal(number: signal.Signals) -> None:
    """Has a signal switch all topics on, and the next one back to those that were chosen."""

    def handle(*_: object) -> None:
        topics = switch_all()
        # By a thread: this one may have been interrupted while it held the lock of what it was writing to.
        Thread(target=_say_topics, args=(topics,), name="topics", daemon=True).start()

    signal.signal(number, handle)


def saying(settings: Settings) -> Callable[[str], None]:
    """How a process that keeps others says what it does: in plain lines, or as they log."""
    return _log_line if settings.log.format == "json" else _print_line


def _log_line(line: str) -> None:
    logger.info("%s", line, extra={"action": "worker.supervision"})


def _print_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_topics(topics: Sequence[str]) -> None:
    about = {"action": "worker.topics", "topics": ",".join(topics)}
    logger.info("told in detail: %s", ", ".join(topics) or "nothing", extra=about)


def secrets_of(settings: Settings) -> set[str]:
    """Every text of the settings that is to be shown to nobody."""
    found: set[str] = set()
    for name in SECRETS | ADDRESSES:
        section, key = name.split(".")
        value = getattr(getattr(settings, section), key)
        if value is not None and name in ADDRESSES:
            try:
                value = parse_address(value).password
            except Misconfigured:  # it is told, without its text, by whoever needs it
                continue
        if value:
            found |= {value, unquote(value)}
    return found


class _Mask:
    """Takes secrets out of every text of a line."""

    def __init__(self, secrets: set[str]) -> None:
        self._secrets = sorted(secrets, key=len, reverse=True)  # the longer one first: one may hold another

    def __call__(self, _: Any, __: str, fields: Fields) -> Mapping[str, Any]:
        return {name: self._masked(value) for name, value in fields.items()}

    def _masked(self, value: Any) -> Any:
        if isinstance(value, (bool, int, float)) or value is None:
            return value
        text = str(value)
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        return _IN_PIPELINE.sub(r"\1 …\2", _IN_URL.sub(rf"\1{MASK}@", text))


class _Ordered:
    """A line's fields in their order: when, how bad, what, in words, who says it; then what it is about."""

    def __init__(self, about: Mapping[str, Any]) -> None:
        self._about = about

    def __call__(self, _: Any, __: str, fields: Fields) -> Mapping[str, Any]:
        record: logging.LogRecord = fields["_record"]
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        first = {
            "at": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "action": fields.get("action") or f"{topic_of(record.name) or 'library'}.other",
            "message": fields["event"],
            "logger": record.name,
        }
        given = {name: value for name, value in fields.items() if name not in _OWN and not name.startswith("_")}
        return {**first, **self._about, **given}


def _told_error(_: Any, __: str, fields: Fields) -> Mapping[str, Any]:
    """The error of a line as text: frames and types, and the text of errors that are known to hold ids alone."""
    told = dict(fields)
    given = told.pop("exc_info", None)
    if given:
        error = given if isinstance(given, BaseException) else (given[1] if isinstance(given, tuple) else None)
        error = error or sys.exception()
        if error is not None:
            told["error"] = error_text(error)
    return told


def error_text(error: BaseException) -> str:
    """A traceback, without the text of errors that may tell what events say."""
    parts = []
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        parts.append(f"{error_text(cause)}\n\n… and then:\n")
    parts.append("Traceback (most recent call last):\n")
    parts += traceback.format_tb(error.__traceback__)
    text = f": {error}" if isinstance(error, OURS) else ""
    return "".join(parts) + f"{type(error).__qualname__}{text}"


def _as_json(_: Any, __: str, fields: Fields) -> str:
    return json.dumps({**fields, "level": fields["level"].lower()}, ensure_ascii=False, default=str)


def _as_text(_: Any, __: str, fields: Fields) -> str:
    line = "{at} {level} {logger}: {message}".format_map(fields)
    more = {name: value for name, value in fields.items() if name not in _FIRST and name != "error"}
    about = " ".join([fields["action"], *(f"{name}={value}" for name, value in more.items())])
    error = f"\n{fields['error']}" if "error" in fields else ""
    return f"{line} [{about}]{error}"
