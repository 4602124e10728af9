"""What is logged in detail, by topic, switched while the process runs.

The topic of a line is the first word of its action. It costs nothing while it is off: the loggers themselves do not
listen.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from typing import Final

from domain.errors import Misconfigured

#: Topic → the loggers that tell of it. Of two that a module is under, it is told of under the longer one.
TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "log": ("domain",),
    "spool": ("domain.log.spooling",),
    "subscription": ("domain.log.subscribing",),
    "projection": ("projections", "workers.following", "workers.telemetry.batches"),
    "feed": ("workers.feed",),
    "lease": ("workers.leasing",),
    "jobs": ("workers.jobs", "workers.schedule", "workers.migration"),
    "archive": ("workers.archiving",),
    "memory": ("workers.memory",),
    "sessions": ("workers.absence", "workers.expiry"),
    "worker": ("workers",),
    "library": ("dramatiq", "apscheduler", "opentelemetry", "urllib3"),
}
ALL: Final = tuple(TOPICS)


def parse_topics(text: str) -> tuple[str, ...]:
    """The topics of a text that separates them by commas. Raises Misconfigured (SETTING_INVALID)."""
    topics = tuple(part.strip() for part in text.split(",") if part.strip())
    for topic in topics:
        if topic not in TOPICS:
            nearest = difflib.get_close_matches(topic, TOPICS, n=1)
            hint = f"did you mean {nearest[0]!r}" if nearest else f"there are: {', '.join(TOPICS)}"
            raise Misconfigured("SETTING_INVALID", f"log.debug names {topic!r}; {hint}", key="log.debug")
    return topics


class _Chosen:
    """What was chosen last, and whether all is told instead for now."""

    topics: tuple[str, ...] = ()
    is_all = False


def set_debug_topics(topics: Iterable[str]) -> None:
    """Has these topics told in detail from now on, and no others. Any thread may call it."""
    _Chosen.topics, _Chosen.is_all = tuple(topics), False
    _listen(_Chosen.topics)


def switch_all() -> tuple[str, ...]:
    """Has all topics told in detail, or, where that was done before, those that were chosen; returns which."""
    _Chosen.is_all = not _Chosen.is_all
    topics = ALL if _Chosen.is_all else _Chosen.topics
    _listen(topics)
    return topics


def forget_topics() -> None:
    """Leaves it to the logger above again, what is listened to."""
    _Chosen.topics, _Chosen.is_all = (), False
    for names in TOPICS.values():
        for name in names:
            logging.getLogger(name).setLevel(logging.NOTSET)


def _listen(chosen: tuple[str, ...]) -> None:
    for topic, loggers in TOPICS.items():
        quiet = logging.WARNING if topic == "library" else logging.INFO
        for name in loggers:
            logging.getLogger(name).setLevel(logging.DEBUG if topic in chosen else quiet)


def topic_of(logger: str) -> str | None:
    """The topic that a logger tells of."""
    found = [
        (len(name), topic) for topic, names in TOPICS.items() for name in names if f"{logger}.".startswith(f"{name}.")
    ]
    return max(found)[1] if found else None
