"""`muster backup`: the truth of a store in files, and back."""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from domain.errors import Refused
from domain.events import check_time
from domain.log import connect
from projections.session_view import rfc3339
from workers.backup import reading
from workers.backup.creating import Creating
from workers.backup.drill import drill
from workers.backup.folder import Manifest, chain_of
from workers.backup.restoring import Restored, Restoring
from workers.cli import arguments, printing
from workers.pacing import Pace
from workers.settings import Settings

SCHEMA = "muster.backup/1"


def configure(parser: argparse.ArgumentParser) -> None:
    group = arguments.commands(parser)

    create = arguments.command(group, "create", "back up a store while it is in use", run_create)
    create.add_argument(
        "folder", type=Path, help="a new folder; or one in which a backup was interrupted, to finish it"
    )
    create.add_argument("--base", type=Path, metavar="FOLDER", help="an earlier backup: only what came since is read")
    create.add_argument("--rate", type=float, metavar="N", help="read at most so many events a second")

    verify = arguments.command(group, "verify", "read a backup to the last byte", run_verify)
    verify.add_argument("folder", type=Path)

    restore = arguments.command(group, "restore", "make a store of a backup, where there is none", run_restore)
    restore.add_argument("folder", type=Path)
    restore.add_argument("--at", metavar="TIME", help="only what was appended until then (server time, RFC 3339)")
    restore.add_argument("--partitions", type=int, help="how many partitions the store gets (as many as it had)")
    restore.add_argument("--drill", action="store_true", help="into a server of its own, which is thrown away")
    restore.add_argument(
        "--dry-run", action="store_true", help="verify the backup, say how much it holds, write nothing"
    )


def run_create(options: argparse.Namespace, settings: Settings) -> int:
    began = time.monotonic()
    with arguments.opened_log(settings) as log:
        pace = Pace(printing.Progress(), verb="backed up", per_s=options.rate)
        manifest = Creating(log, options.folder, base=options.base, pace=pace).run()
    printing.document({**told(manifest), "seconds": round(time.monotonic() - began, 3)}, options.output)
    damaged = sum(cut.damaged for cut in manifest.cuts)
    if damaged:
        printing.say(f"{damaged} sessions do not verify: of these all is kept; up to where they do is restored")
    return 7 if damaged else 0


def run_verify(options: argparse.Namespace, settings: Settings) -> int:
    problems = reading.verify(options.folder, Pace(printing.Progress(), verb="verified"))
    manifest = chain_of(options.folder)[-1][1]
    found = [msgspec.to_builtins(problem) for problem in problems]
    printing.document({**told(manifest), "problems": found}, options.output)
    return 8 if problems else 0


def run_restore(options: argparse.Namespace, settings: Settings) -> int:
    until_ms = None if options.at is None else server_ms(options.at)
    pace = Pace(printing.Progress(), verb="restored")
    if options.drill:
        return shown(drill(options.folder, until_ms=until_ms, pace=pace, say=printing.say), options.output)
    if options.dry_run:
        code = run_verify(options, settings)
        printing.say(f"dry run: would restore this into {settings.environment}:{settings.namespace}")
        return code
    with closing(connect(settings.connecting)) as client:
        restoring = Restoring(
            client,
            options.folder,
            environment=settings.environment,
            namespace=settings.namespace,
            partitions=options.partitions,
            until_ms=until_ms,
            pace=pace,
        )
        return shown(restoring.run(), options.output)


def server_ms(text: str) -> int:
    """A time as the server counts it. Raises Refused (TIME_INVALID)."""
    check_time(text)
    try:
        return int(datetime.fromisoformat(text.upper().replace("Z", "+00:00")).timestamp() * 1000)
    except ValueError:
        raise Refused("TIME_INVALID", f"the time {text!r} is not RFC 3339") from None


def told(manifest: Manifest) -> dict[str, Any]:
    """A backup as it is printed."""
    return {
        "schema": SCHEMA,
        "backup": manifest.id,
        "base": manifest.base[0] if manifest.base is not None else None,
        "store": manifest.store,
        "epoch": manifest.epoch,
        "partitions": manifest.partitions,
        "sessions": manifest.sessions,
        "events": manifest.events,
        "subscriptions": len(manifest.subscriptions),
        "commits": sum(cut.commits for cut in manifest.cuts),
        "damaged": sum(cut.damaged for cut in manifest.cuts),
        "cut_from": rfc3339(min(cut.at_ms for cut in manifest.cuts)),
        "cut_to": rfc3339(max(cut.at_ms for cut in manifest.cuts)),
    }


def shown(restored: Restored, output: str) -> int:
    printing.document({"schema": "muster.restored/1", **msgspec.to_builtins(restored)}, output)
    return 7 if restored.quarantined else 0
