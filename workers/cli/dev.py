"""`muster dev`: an embedded server and workers in the foreground."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from projections.store import ProjectionStore
from workers.cli import printing
from workers.embedded import EmbeddedServer
from workers.fleet import until_stopped
from workers.reloading import InForce, Reloading, name_of_process
from workers.settings import Reading
from workers.stack import Stack
from workers.stopping import Stop
from workers.watching import Watch


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, help="keeps the data here (default: a temporary directory that goes)")
    parser.add_argument("--port", type=int, help="port of the server (default: a free one, kept with the data)")
    parser.add_argument(
        "--appendfsync",
        choices=("everysec", "always"),
        default="everysec",
        help="when the server's append-only file is synced: always, so that nothing acknowledged is lost (slower)",
    )
    parser.add_argument("--workers", type=int, help="how many worker processes (MUSTER_WORKER__PROCESSES)")
    parser.add_argument("--partitions", type=int, help="how many partitions a new store gets")
    parser.add_argument("--environment", help="environment of the store (MUSTER_ENVIRONMENT)")
    parser.add_argument("--namespace", help="namespace of the store (MUSTER_NAMESPACE)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, reading: Reading) -> int:
    stop, settings = Stop(), reading.loaded().valid()
    with ExitStack() as resources:
        # First: a signal that comes while the rest is being built must not leave half of it behind.
        impatient = resources.enter_context(until_stopped(stop))
        data_dir = options.data_dir
        if data_dir is None:
            data_dir = Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="muster-dev-")))
        server = EmbeddedServer(data_dir, port=options.port, appendfsync=options.appendfsync)
        stack = Stack(server, settings, log=say, workers=options.workers, server_ended=stop.set)
        resources.callback(stack.stop)
        stack.start()
        impatient(stack.kill_workers)
        print(f"ready {stack.url}", flush=True)
        log = resources.enter_context(stack.open_log())
        watch = Watch(ProjectionStore(log.client, log.keyspace), say, goes_on=stack.release_workers)
        watch.start()
        in_force = InForce(stack.settings)
        in_force.tell(stack.take)
        who = name_of_process("dev")
        with Reloading(reading, in_force, who=who, say=say, own=stack.own, hung_up=stop.set).running():
            stop.wait()
        watch.stop()
        say("stopping: workers drain, then the server writes out what it has")
        clean = stack.stop()
    return 0 if clean else 10


def say(line: str) -> None:
    """Says how it goes; its terminal may be gone."""
    with suppress(OSError):
        printing.say(line)
