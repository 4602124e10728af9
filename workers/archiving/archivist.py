"""Takes the beginnings of logs out of the server's memory: seals them, keeps them, reads them back, and trims.

Theory of operation. Whatever dies in between leaves either a segment that nobody names yet, which the next round finds
there and names, or a log that is whole: the one step that trims (`muster_trim_1`) also names the segments, and refuses
if the log is not what was sealed. So any number of processes may archive the same session, and none needs a lease.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import chain

from msgspec import Struct

from domain.codec import Commit, genesis
from domain.errors import Damaged
from domain.log import SessionLog
from domain.log.archive.joining import recorded
from domain.log.archive.place import Archive
from domain.log.archive.segment import Label, label_of, opened, portions, seal
from projections.shortcut import holds
from projections.store import ProjectionStore
from workers.archiving.choosing import Candidate, Keeping, applied_before_ms, candidates

logger = logging.getLogger(__name__)


class Archived(Struct):
    """What was archived and trimmed."""

    sessions: int = 0
    commits: int = 0
    events: int = 0
    segments: int = 0
    #: Bytes of segments, as they are packed.
    bytes: int = 0
    #: Sessions that were not what was sealed any more, or do not verify: they stay as they are.
    left: int = 0


class Archivist:
    """Archives what may go of the sessions of partitions."""

    def __init__(
        self,
        log: SessionLog,
        store: ProjectionStore,
        archive: Archive,
        *,
        goes_on: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._log = log
        self._store = store
        self._archive = archive
        self._goes_on = goes_on
        self.done = Archived()
        #: Of which sessions it was said that they do not verify: once is enough.
        self._told: set[str] = set()

    def partition(self, partition: int, keeping: Keeping) -> None:
        """Archives what may go of a partition; `goes_on` is told of the events of each session.

        Raises what the archive says (ARCHIVE_UNREACHABLE, ARCHIVE_FULL, ARCHIVE_DENIED), Misconfigured (ACCESS_DENIED),
        redis-py's errors. What does not verify stays where it is, for the validator to find.
        """
        for candidate in candidates(self._store, partition, keeping):
            events = self.done.events
            try:
                self._session(partition, candidate)
            except Damaged as damaged:
                self.done.left += 1
                if candidate.session not in self._told:
                    self._told.add(candidate.session)
                    about = {"action": "archive.left", "session": candidate.session}
                    logger.error("session %s is not archived: %s", candidate.session, damaged, extra=about)
            self._goes_on(self.done.events - events)

    def _session(self, partition: int, candidate: Candidate) -> None:
        at = candidate.from_seq
        digest = candidate.since.digest if candidate.since is not None else genesis(candidate.session)
        labels, count, size, last = list[Label](), 0, 0, None
        for portion in portions(self._going(candidate)):
            segment = seal(self._log.identity.store, candidate.session, digest, portion)
            self._keep(segment.name, segment.content)
            label = label_of(segment.name)
            assert label is not None
            labels.append(label)
            count, size, last = count + len(portion), size + len(segment.content), portion[-1]
            digest = last.digest
        if last is None or last.at_ms >= applied_before_ms(self._store, partition):
            return
        if not holds(self._log, candidate.session, candidate.behind) or not self._trim(candidate, last, labels):
            self.done.left += 1
            return
        self.done.sessions += 1
        self.done.commits += count
        self.done.events += last.last_seq - at
        self.done.segments += len(labels)
        self.done.bytes += size

    def _going(self, candidate: Candidate) -> Iterator[Commit]:
        """The commits that go."""
        stretches = self._log.stretches(candidate.session, after=candidate.from_seq)
        for commit in chain.from_iterable(stretches):
            if commit.last_seq > candidate.up_to:
                return
            yield commit

    def _keep(self, name: str, content: bytes) -> None:
        """Puts a segment into the archive, and reads it back. Raises Damaged (ARCHIVE_DAMAGED) if it is another."""
        self._archive.put(name, content)
        opened(name, self._archive.get(name))

    def _trim(self, candidate: Candidate, last: Commit, labels: list[Label]) -> bool:
        """Drops what was archived, if the session is what was sealed."""
        session = candidate.session
        keys = self._log.keyspace.of(session)
        names = [keys.meta, keys.head(session), keys.hold(session), keys.log(session), keys.checkpoints(session)]
        identity = self._log.identity
        segments = "\n".join(map(recorded, labels))
        arguments = [session, candidate.from_seq, last.last_seq, last.digest, segments]
        reply = self._log.client.fcall(
            "muster_trim_1", len(names), *names, identity.store, str(identity.epoch), *map(str, arguments)
        )
        return bool(reply[0] == b"TRIMMED")
