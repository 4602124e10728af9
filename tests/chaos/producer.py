"""A producer with ids of its own, as a process to be killed.

    python -m tests.chaos.producer MODE URL ENVIRONMENT NAMESPACE NOTES

It appends BATCHES batches of events to the session "s", and notes each receipt in a file, one line each. Started again,
it reads its notes and goes on. What was in flight when it died it cannot know, so it appends that again: MODE says how
the log is to recognise it.

- `dedupe`: by the ids of its events, in batches of other sizes than before.
- `known`: as the same commit, looked for after the seq of the last receipt it noted.
- `doubts`: as `known`; an append without a reply is noted as a doubt, the process dies on the spot, and the next one
  settles the doubt before it does anything else.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import IO, Final, NoReturn

import msgspec
from msgspec import Struct

from domain import Event, OutcomeUnknown, Receipt, SessionLog
from domain.codec import decode_body
from domain.log import Connecting
from domain.log.contract import AppendRequest, Position

BATCHES: Final = 120
SESSION: Final = "s"


class Acknowledged(Struct):
    """One line of the notes: the events that a receipt was for, and where it says they stand."""

    ids: list[str]
    first_seq: int
    last_seq: int
    digest: str | None


def events_of(batch: int) -> list[Event]:
    """The events of a batch, the same in every life: one to three."""
    return [Event.of("tool.called", actor="a", id=f"e{batch}-{n}", data={"n": n}) for n in range(batch % 3 + 1)]


class Notes:
    """The file of receipts. A line counts when it is whole: a killed producer may leave half of one."""

    def __init__(self, path: Path) -> None:
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        self.lines = [msgspec.json.decode(line, type=Acknowledged) for line in whole.splitlines()]
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._file.truncate(len(whole))

    def add(self, events: list[Event], receipt: Receipt) -> None:
        ids = [event.id for event in events]
        line = Acknowledged(ids, receipt.first_seq, receipt.last_seq, receipt.digest)
        self._file.write(msgspec.json.encode(line) + b"\n")
        self.lines.append(line)

    @property
    def position(self) -> Position:
        """Where the session stood after the last receipt."""
        last = max(self.lines, key=lambda line: line.last_seq, default=None)
        return Position(0) if last is None else Position(last.last_seq, last.digest)

    @property
    def ids(self) -> set[str]:
        return {id for line in self.lines for id in line.ids}


def produce_deduped(log: SessionLog, notes: Notes) -> None:
    """Appends all events that are not noted, in batches of random sizes, wherever these begin."""
    noted = notes.ids
    events = [event for batch in range(BATCHES) for event in events_of(batch) if event.id not in noted]
    # Events that the last life appended without a note may stand beside new ones in one batch.
    while events:
        size = random.randint(1, 5)
        notes.add(events[:size], log.append(SESSION, events[:size], dedupe=True))
        events = events[size:]


def produce_known(log: SessionLog, notes: Notes) -> None:
    """Appends every batch that is not noted as the commit it is, after the seq that was noted last."""
    known = notes.position
    noted = notes.ids
    for events in map(events_of, range(BATCHES)):
        if events[0].id in noted:
            continue
        receipt = log.append(SESSION, events, known=known)
        notes.add(events, receipt)
        known = receipt.position


def produce_with_doubts(log: SessionLog, notes: Notes, saved: Path) -> None:
    """Settles the doubt that was saved; then as `known`, until the next doubt."""
    if saved.exists():
        doubt = msgspec.msgpack.decode(saved.read_bytes(), type=AppendRequest)
        found = log.resolve(doubt)
        if found is not None:
            notes.add(decode_body(doubt.body), found)  # again, if the last life died before it forgot the doubt
        saved.unlink()
    try:
        produce_known(log, notes)
    except OutcomeUnknown as unknown:
        (doubt,) = unknown.doubts
        beside = saved.with_suffix(".new")
        beside.write_bytes(msgspec.msgpack.encode(doubt))
        beside.replace(saved)
        die()


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def main(mode: str, url: str, environment: str, namespace: str, notes_path: str) -> None:
    path = Path(notes_path)
    notes = Notes(path)
    once = mode == "doubts"
    connecting = (
        Connecting(url, timeout_s=0.5, retry_for_s=0) if once else Connecting(url, timeout_s=30, retry_for_s=60)
    )
    with SessionLog.open(connecting, environment=environment, namespace=namespace) as log:
        match mode:
            case "dedupe":
                produce_deduped(log, notes)
            case "known":
                produce_known(log, notes)
            case _:
                produce_with_doubts(log, notes, path.with_suffix(".doubt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
