"""`muster epoch`: what the store lost by the word of witnesses, and accepting it."""

from __future__ import annotations

import argparse
from typing import Any

from domain.log.epoch import Epochs, EpochState
from projections.session_view import rfc3339
from workers.cli import arguments, printing
from workers.settings import Settings

SCHEMA = "muster.epoch/1"


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)
    arguments.command(
        group, "show", "the epoch, the server, and what witnesses reported lost; exit 1 if anything", show
    )
    accept = arguments.command(
        group, "accept", "accept what was lost: raises the epoch, and producers go on", accept_loss
    )
    accept.add_argument("--dry-run", action="store_true", help="only say what would be accepted")


def show(options: argparse.Namespace, settings: Settings) -> int:
    """Exit 1 if something is lost and not accepted."""
    with arguments.opened_log(settings) as log:
        state = Epochs(log).show()
    printing.document(document(state), options.output)
    return 1 if state.reports else 0


def accept_loss(options: argparse.Namespace, settings: Settings) -> int:
    """Raises the epoch. NotFound if there is nothing to accept."""
    with arguments.opened_log(settings) as log:
        epochs = Epochs(log)
        if options.dry_run:
            reports = list(epochs.reports())
            printing.document(
                {"schema": SCHEMA, "epoch": log.identity.epoch, "would_accept": len(reports)}, options.output
            )
            return 0
        epoch, accepted = epochs.accept(arguments.who())
    printing.document({"schema": SCHEMA, "epoch": epoch, "accepted": accepted}, options.output)
    return 0


def document(state: EpochState) -> dict[str, Any]:
    """The state as it is printed: every lost commit that a witness has a receipt of is named."""
    return {
        "schema": SCHEMA,
        "store": state.store,
        "epoch": state.epoch,
        "run_id": state.run_id,
        "replication_id": state.replication_id,
        "at_risk_from": rfc3339(state.at_risk_from_ms or 0),
        "at_risk_to": rfc3339(state.at_risk_to_ms or 0),
        "lost": [
            {
                "session": report.loss.session,
                "code": report.loss.code,
                "first_bad_seq": report.loss.first_bad_seq,
                "last_seq": report.loss.last.seq,
                "digest": report.loss.last.digest,
                "witness": report.witness,
                "receipts": [
                    {
                        "first_seq": one.first_seq,
                        "last_seq": one.last_seq,
                        "digest": one.digest,
                        "at": rfc3339(one.at_ms),
                    }
                    for one in report.loss.receipts
                ],
            }
            for report in state.reports
        ],
    }
