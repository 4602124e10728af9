"""The options that say which sessions are meant, and the filter they make."""

from __future__ import annotations

import argparse
import re
import time
from datetime import datetime
from typing import Any, Final

from domain.errors import Refused
from domain.events import check_time
from projections.searching import Filter

#: Fields of a filter that may be given more than once: any of the values.
_VALUES: Final = {
    "state": "working, broken, coordinating, completed or expired",
    "agent": "that this agent took part in",
    "entity": "that changed this entity",
    "tag": "with this tag",
    "priority": "low, normal or high",
    "outcome": "completed with this outcome",
    "transition": "that went from one state to another (working>broken), or from test_pass>broke and the like",
    "severity": "with an impact that is low, medium, high or critical",
}
_SPAN: Final = re.compile(r"(\d+)(s|m|h|d)\Z")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TIMES: Final = {
    "since": ("last_after", "appended to at this time or later"),
    "until": ("last_before", "last appended to before this time"),
    "started-since": ("started_after", "begun at this time or later"),
    "started-until": ("started_before", "begun before this time"),
    "completed-since": ("completed_after", "completed at this time or later"),
    "completed-until": ("completed_before", "completed before this time"),
}


_OF_EVENTS: Final = {"since": "events of this time or later", "until": "events before this time"}


def options(parser: argparse.ArgumentParser, *, of_events: bool = False) -> None:
    """The options of a filter. With `of_events` it chooses events: then `--since` and `--until` are their times."""
    group = parser.add_argument_group(
        "filter", "sessions that meet all of these; an option given more than once: any of its values"
    )
    for field, what in _VALUES.items():
        group.add_argument(f"--{field}", action="append", default=[], metavar=field.upper(), help=what)
    for name, (_, what) in _TIMES.items():
        what = _OF_EVENTS.get(name, what) if of_events else what
        group.add_argument(
            f"--{name}", type=_moment, metavar="TIME", help=f"{what}: RFC 3339, or so long ago (90s, 15m, 2h, 7d)"
        )
    group.add_argument("--perf-below", type=float, metavar="NUMBER", help="with a perf_delta below this")
    group.add_argument("--quarantined", action="store_true", help="whose log is damaged, so that they are closed")
    group.add_argument("--parked", action="store_true", help="that wait at a commit that breaks a law")


def times(parser: argparse.ArgumentParser) -> None:
    """The options that say of which times events are meant."""
    for name, what in _OF_EVENTS.items():
        parser.add_argument(
            f"--{name}", type=_moment, metavar="TIME", help=f"{what}: RFC 3339, or so long ago (90s, 15m, 2h, 7d)"
        )


def filter_of(options: argparse.Namespace) -> Filter:
    """The filter that the options make; the one of all sessions if none was given."""
    given: dict[str, Any] = {field: tuple(getattr(options, field)) for field in _VALUES}
    given |= {field: getattr(options, name.replace("-", "_")) for name, (field, _) in _TIMES.items()}
    return Filter(
        **given,
        quarantined=options.quarantined,
        parked=options.parked,
        perf_below=options.perf_below,
    )


def _moment(text: str) -> int:
    """A time in ms: a moment, or a span before now by this host's clock."""
    if match := _SPAN.match(text):
        return int((time.time() - int(match[1]) * _SECONDS[match[2]]) * 1000)
    try:
        check_time(text)
    except Refused as refused:
        raise argparse.ArgumentTypeError(f"{refused.cause}; nor is it so long ago as 90s, 15m, 2h or 7d") from None
    return int(datetime.fromisoformat(text).timestamp() * 1000)
