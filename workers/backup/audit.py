"""The audit streams in a backup: who did what and why, and what bears out which commits were discarded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from domain.log.keys import Keyspace
from workers.backup.folder import AUDIT, packed, unpacked

#: How many entries are read, or written, at a time.
PAGE: Final = 500


class Entry(Struct, frozen=True):
    """One entry: its id in the stream, of which partition (None: of the whole store), and what it says."""

    id: str
    partition: int | None
    told: dict[str, str]

    @property
    def at(self) -> tuple[int, int]:
        """Its id, to be compared: server ms, and a number within that."""
        ms, _, number = self.id.partition("-")
        return int(ms), int(number)


def back_up(client: Any, keyspace: Keyspace, folder: Path) -> int:
    """Writes all streams into a file, in the order of time; returns how many entries there are."""
    streams = [_entries(client, keyspace.audit, None)]
    streams += [_entries(client, keys.audit, partition) for partition, keys in enumerate(keyspace.partitions)]
    count = 0
    with packed(folder / AUDIT) as line_to:
        for entry in merge(*streams, key=lambda entry: entry.at):
            line_to(msgspec.json.encode(entry))
            count += 1
    return count


def entries(folder: Path) -> Iterator[Entry]:
    """What a backup holds. Raises Damaged (BACKUP_DAMAGED)."""
    return unpacked(folder / AUDIT, msgspec.json.Decoder(Entry).decode)


def restore(client: Any, keyspace: Keyspace, found: Iterable[Entry], until_ms: int | None) -> int:
    """Writes entries into the streams of a store that nobody else writes to yet; returns how many there are.

    An entry about a session goes where the session is, at the time it had. May be done again: what is there stays.
    """
    wanted = (entry for entry in found if until_ms is None or entry.at[0] <= until_ms)
    written: dict[str, tuple[int, int]] = {}
    reached: dict[str, tuple[int, int]] = {}
    count = 0
    while page := list(islice(wanted, PAGE)):
        pipe = client.pipeline(transaction=False)
        for entry in page:
            key = _key_of(entry, keyspace)
            if key not in written:
                last = client.xrevrange(key, count=1)
                reached[key] = Entry(last[0][0].decode(), None, {}).at if last else (0, 0)
                written[key] = (0, 0)
            # Of entries of several partitions that come together here, some may have the same id.
            ms, number = written[key]
            written[key] = at = max(entry.at, (ms, number + 1))
            if at > reached[key]:
                pipe.xadd(key, entry.told, id=f"{at[0]}-{at[1]}")
        pipe.execute()
        count += len(page)
    return count


def _entries(client: Any, key: str, partition: int | None) -> Iterator[Entry]:
    after = "-"
    while page := client.xrange(key, after, "+", count=PAGE):
        for id, fields in page:
            told = {_text(name): _text(value) for name, value in fields.items()}
            yield Entry(id.decode(), partition, told)
        after = "(" + page[-1][0].decode()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _key_of(entry: Entry, keyspace: Keyspace) -> str:
    if entry.partition is None:
        return keyspace.audit
    session = entry.told.get("session")
    return (keyspace.partitions[entry.partition % keyspace.count] if session is None else keyspace.of(session)).audit
