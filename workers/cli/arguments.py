"""What commands share: how the server is named, how a command is declared, how the store is opened."""

from __future__ import annotations

import argparse
import getpass
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from domain.errors import Refused
from domain.events import check_time, shortened
from domain.log import SessionLog, Spool
from projections.queries import Moment
from projections.store import ProjectionStore
from workers.settings import PROFILES, Reading, Settings

#: A command is given valid settings; one of the groups that must work without is given what to read them from.
Run: TypeAlias = Callable[[argparse.Namespace, Settings], int] | Callable[[argparse.Namespace, Reading], int]


def server(parser: argparse.ArgumentParser) -> None:
    """The options that say which store is meant."""
    parser.add_argument("--url", help="address of the server (MUSTER_REDIS__URL)")
    parser.add_argument("--environment", help="environment of the store (MUSTER_ENVIRONMENT)")
    parser.add_argument("--namespace", help="namespace of the store (MUSTER_NAMESPACE)")


def profile(parser: argparse.ArgumentParser) -> None:
    """The option that says which defaults hold, and how strictly all is judged."""
    parser.add_argument("--profile", choices=PROFILES, help="(MUSTER_PROFILE)")


def output(parser: argparse.ArgumentParser) -> None:
    """The option that says how data is printed."""
    parser.add_argument(
        "-o", "--output", choices=("table", "json", "jsonl"), default="table", help="how data is printed"
    )


def commands(parser: argparse.ArgumentParser) -> Any:
    """The subcommands of a group."""
    return parser.add_subparsers(required=True, metavar="COMMAND")


def command(group: Any, name: str, purpose: str, run: Run) -> argparse.ArgumentParser:
    """One subcommand that works on a store and prints data."""
    parser: argparse.ArgumentParser = group.add_parser(name, help=purpose, description=purpose)
    parser.set_defaults(run=run)
    server(parser)
    output(parser)
    return parser


def page(parser: argparse.ArgumentParser, after: str) -> None:
    """The options that say which page of a list is meant."""
    parser.add_argument("--all", action="store_true", help="all of them; else --limit")
    parser.add_argument("--limit", type=int, default=50, help="how many (50)")
    parser.add_argument("--after", metavar="CURSOR", help=after)


#: A whole number from here on is server ms (2001 and later); a smaller one is a seq.
_FIRST_MS: Final = 10**12
_EPOCH: Final = datetime.fromtimestamp(0, UTC)


def moment(text: str) -> Moment:
    """When in a session: a seq; or a time, as RFC 3339 or in ms since 1970. Raises Refused (TIME_INVALID)."""
    if not text.isdecimal():
        check_time(text)
        return msgspec.convert(text, datetime)
    try:
        return int(text) if int(text) < _FIRST_MS else _EPOCH + timedelta(milliseconds=int(text))
    except (OverflowError, ValueError):
        raise Refused("TIME_INVALID", f"{shortened(text)} is no seq, and no time in ms either") from None


@contextmanager
def opened_log(settings: Settings, spool: Spool | None = None) -> Iterator[SessionLog]:
    """The log of the store that the settings name."""
    with SessionLog.open(
        settings.connecting,
        environment=settings.environment,
        namespace=settings.namespace,
        partitions=settings.partitions,
        durability=settings.durability,
        spool=spool,
        archive=settings.archive.opened(),
    ) as log:
        yield log


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[SessionLog, ProjectionStore]]:
    """The log and the projections of the store that the settings name."""
    with opened_log(settings) as log:
        yield log, ProjectionStore(log.client, log.keyspace)


def who() -> str:
    """Who runs this command, for the audit stream."""
    return f"{getpass.getuser()}@{platform.node()}:{os.getpid()}"
