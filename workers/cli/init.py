"""`muster init`: makes a store."""

from __future__ import annotations

import argparse

from domain.log import connect, create_store
from domain.log.keys import DEFAULT_PARTITIONS
from workers.cli import arguments, printing
from workers.settings import Settings


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    parser.add_argument("--partitions", type=int, help=f"how many partitions a new store gets ({DEFAULT_PARTITIONS})")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    client = connect(settings.connecting)
    try:
        identity, is_new = create_store(
            client,
            environment=settings.environment,
            namespace=settings.namespace,
            partitions=settings.partitions,
        )
    finally:
        client.close()
    printing.document(
        {
            "schema": "muster.store/1",
            "store": identity.store,
            "epoch": identity.epoch,
            "partitions": identity.partitions,
            "created": is_new,
        },
        options.output,
    )
    return 0
