"""`muster stop`: stops all workers of a store, on every host, and says who has not stopped; takes the stop back."""

from __future__ import annotations

import argparse
import time
from typing import Any, Final

import msgspec

from domain.errors import DeadlineExceeded
from domain.log import SessionLog
from workers.cli import arguments, printing
from workers.draining import Draining, Fleet, Working
from workers.halting import Halt, Halting
from workers.server_end import end_server
from workers.settings import Settings

#: How often it is looked who works still, in seconds.
LOOK_EVERY_S: Final = 0.2
#: What is waited for beyond the time that workers have to drain, in seconds.
BEYOND_DRAIN_S: Final = 10.0
#: How many that did not stop an error names.
NAMED: Final = 5


def configure(parser: argparse.ArgumentParser) -> None:
    arguments.server(parser)
    arguments.output(parser)
    parser.add_argument("--why", default="", help="what the others are told")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="wait so many seconds (worker.drain_s and ten); then exit 10"
    )
    parser.add_argument("--server", action="store_true", help="then end the server too, once it has saved")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--dry-run", action="store_true", help="only say who would be stopped")
    which.add_argument("--cancel", action="store_true", help="take the stop back: workers go on by themselves")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace, settings: Settings) -> int:
    with arguments.opened_log(settings) as log:
        halting = Halting(log.client, log.keyspace)
        if options.cancel:
            return _cancel(halting, options.output)
        draining = Draining(log, halting)
        if options.dry_run:
            return _rehearse(draining.look(), halting.standing(), options.output)
        return _stop(options, settings, log, halting, draining)


def _cancel(halting: Halting, output: str) -> int:
    halt = halting.lift(arguments.who())
    printing.document({"schema": "muster.stop/1", "cancelled": msgspec.to_builtins(halt)}, output)
    return 0


def _rehearse(fleet: Fleet, halt: Halt | None, output: str) -> int:
    printing.document(_document(fleet, halt) | {"dry_run": True}, output)
    return 0


def _stop(
    options: argparse.Namespace, settings: Settings, log: SessionLog, halting: Halting, draining: Draining
) -> int:
    timeout_s = settings.worker.drain_s + BEYOND_DRAIN_S if options.timeout is None else options.timeout
    deadline = time.monotonic() + timeout_s
    fleet = draining.look()
    halt = halting.order(arguments.who(), options.why)
    printing.say(f"announced: {halt.told}; {len(fleet.working)} work")
    fleet = _drained(draining, fleet, deadline)
    server = None
    if not fleet.working:
        printing.say(f"stopped: {fleet.stopped} processes; nothing is in flight, no partition is held, no job runs")
        if options.server:
            server = end_server(settings, timeout_s=max(0.0, deadline - time.monotonic()), say=printing.say)
    printing.document(_document(fleet, halt) | {"server_ended": server}, options.output)
    if fleet.working:
        raise _unfinished(fleet.working, timeout_s)
    return 0


def _drained(draining: Draining, fleet: Fleet, deadline: float) -> Fleet:
    """The fleet when it has stopped, or when the time is over; says who is waited for whenever that changes."""
    told: list[str] = []
    while True:
        lines = [f"{_name(one)} {one.why}" for one in fleet.working]
        for line in lines:
            if line not in told:
                printing.say(f"draining: {line}")
        if not fleet.working or time.monotonic() >= deadline:
            return fleet
        told = lines
        time.sleep(LOOK_EVERY_S)
        fleet = draining.look()
        if len(fleet.working) < len(told):
            printing.say(f"draining: {fleet.stopped} processes have stopped, {len(fleet.working)} work still")


def _unfinished(working: list[Working], timeout_s: float) -> DeadlineExceeded:
    named = "; ".join(f"{_name(one)} {one.why}" for one in working[:NAMED])
    more = f"; and {len(working) - NAMED} more" if len(working) > NAMED else ""
    return DeadlineExceeded("STOP_UNFINISHED", f"not stopped within {timeout_s:g} s: {named}{more}")


def _name(one: Working) -> str:
    return one.who if one.pid is None else f"process {one.pid} on {one.host}"


def _document(fleet: Fleet, halt: Halt | None) -> dict[str, Any]:
    return {
        "schema": "muster.stop/1",
        "stop": msgspec.to_builtins(halt),
        "stopped": fleet.stopped,
        "forced": fleet.forced,
        "working": msgspec.to_builtins(fleet.working),
    }
