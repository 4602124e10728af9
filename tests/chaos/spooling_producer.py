"""A producer with an outage spool, as a process to be killed.

    python -m tests.chaos.spooling_producer URL ENVIRONMENT NAMESPACE SPOOL NOTES NAME PAUSE_S

It appends events with numbers for ids to the sessions NAME-0 to NAME-3, in turn, and notes each one in a file when it
has a receipt. Started again, it goes on after the last number it noted: the one it may have appended without a note it
appends with `dedupe`, all others without. It ends at SIGTERM, when its spool is empty.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Final

from domain import Event, SessionLog
from domain.log import Connecting

SESSIONS: Final = 4


def noted(path: Path) -> int:
    """How many numbers were noted. A line counts when it is whole: a killed producer may leave half of one."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main(url: str, environment: str, namespace: str, spool: str, notes: str, name: str, pause_s: str) -> None:
    stopping: list[int] = []  # an Event could not be set by a handler that interrupts its own `wait`
    signal.signal(signal.SIGTERM, lambda signal, _: stopping.append(signal))
    path = Path(notes)
    number = noted(path)
    is_doubtful = number > 0
    connecting = Connecting(url, timeout_s=1.0, retry_for_s=0.2)
    with (
        SessionLog.open(connecting, environment=environment, namespace=namespace, spool=spool) as log,
        path.open("ab", buffering=0) as file,
    ):
        while not stopping:
            event = Event.of("note.made", actor="a", id=f"{name}:{number}", data={"n": number})
            receipt = log.append(f"{name}-{number % SESSIONS}", event, dedupe=is_doubtful)
            is_doubtful = False
            file.write(b"spooled\n" if receipt.is_spooled else b"stored\n")
            number += 1
            time.sleep(float(pause_s))
        log.drained()


if __name__ == "__main__":
    main(*sys.argv[1:])
