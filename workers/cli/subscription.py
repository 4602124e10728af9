"""`muster subscription`: durable subscriptions, how far each is behind, and forgetting one."""

from __future__ import annotations

import argparse
from typing import Any, Final

import msgspec

from domain.log.subscribing.durable import Durable, DurableSubscriptions
from workers.cli import arguments, printing
from workers.settings import Settings
from workers.subscribed import behind, standing

SCHEMA: Final = "muster.subscription/1"
COLUMNS: Final = ("subscription", "behind", "unreadable", "members", "moved_to", "wants")


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    arguments.command(group, "ls", "list durable subscriptions, and how many events each is behind", run_ls)
    show = arguments.command(group, "show", "show one, partition by partition", run_show)
    show.add_argument("name")
    drop = arguments.command(group, "drop", "forget a subscription that has no members, its places too", run_drop)
    drop.add_argument("name")
    drop.add_argument("--dry-run", action="store_true", help="only say what would be forgotten")


def run_ls(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        made = DurableSubscriptions(log.keyspace)
        totals = standing(log)
        found = [row(log.drive(made.show(name)), totals) for name in log.drive(made.names())]
    printing.rows(found, options.output, columns=COLUMNS)
    return 0


def run_show(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        found = log.drive(DurableSubscriptions(log.keyspace).show(options.name))
        totals = standing(log)
    partitions = [
        {"partition": partition, "total": totals[partition], "behind": behind(found, partition, totals)}
        for partition in found.partitions
    ]
    printing.document({**row(found, totals), "partitions": partitions}, options.output)
    return 0


def run_drop(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        made = DurableSubscriptions(log.keyspace)
        found = row(log.drive(made.show(options.name)), standing(log))
        if options.dry_run:
            printing.say(f"dry run: would forget subscription {options.name}, {found['behind']} events behind")
            return 0
        log.drive(made.drop(options.name, arguments.who()))
    printing.document({**found, "dropped": True}, options.output)
    return 0


def row(found: Durable, totals: list[int]) -> dict[str, Any]:
    """A subscription as it is printed. What is behind is counted where the place is one in the feed."""
    known = [behind(found, partition, totals) for partition in found.partitions]
    return {
        "schema": SCHEMA,
        "subscription": found.name,
        "behind": sum(count for count in known if count is not None),
        "unreadable": [partition for partition, place in found.places.items() if place is None],
        "members": found.members,
        "moved_to": found.moved_to,
        "wants": {key: value for key, value in msgspec.to_builtins(found.wanted).items() if value is not None},
    }
