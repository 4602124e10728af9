"""Law: whatever is done to the keys of a store, behind Muster's back, is found as what it is, and where it begins.

Real logs are appended in commits of any size and projected. Then each kind of damage is done at a place that chance
chooses; verification must report that, with its first wrong seq, and nothing else; recovery must put right what is
derived and quarantine what is truth. After each the store is put back as it was. MUSTER_CHAOS=full tries many places.
"""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import msgspec
import pytest

from domain import Append, Event, Receipt
from domain.codec import genesis, parse_line
from domain.log.archive.place import open_archive
from domain.log.archive.segment import seal
from domain.log.skips import Skip
from domain.session import Session
from projections import agent_view, session_view
from projections.drift import Validator
from projections.findings import KINDS, Finding
from projections.grafting import Grafting, Source
from tests.chaos.effort import FULL, seeded
from tests.conftest import DATA, Store
from tests.projections.world import World, folded
from workers.backup.creating import Creating
from workers.pacing import Pace
from workers.recovery import Recovery, mendable, plan_of, with_grafts
from workers.settings import ArchiveSettings
from workers.sources import open_source

PLACES: Final = 20 if FULL else 1
SESSIONS: Final = 400 if FULL else 120
#: Sessions shorter than this have too few places.
EVENTS: Final = 12

Entry = tuple[bytes, dict[bytes, bytes]]


class Found(NamedTuple):
    """What verification must say, and all it may say."""

    code: str
    first_bad_seq: int | None = None
    agent: str | None = None
    session: str | None = None


class Place:
    """A session and its partition, chosen by chance; what its keys held before, to be put back."""

    def __init__(self, world: World, chance: random.Random, sessions: Sequence[str]) -> None:
        self.world, self.redis, self.chance = world, world.redis, chance
        self.session = chance.choice(sessions)
        self.keys = world.keyspace.of(self.session)
        self.partition = world.keyspace.partition_of(self.session)
        neighbours = [name for name in sessions if world.keyspace.of(name) is self.keys and name != self.session]
        self.other = chance.choice(neighbours)
        self.log, self.head = self.keys.log(self.session), self.keys.head(self.session)
        self.view_key, self.checkpoints = self.keys.session_view(self.session), self.keys.checkpoints(self.session)
        self.entries: list[Entry] = self.redis.xrange(self.log)
        self.last_seq = int(self.entries[-1][0].partition(b"-")[0])
        self._before = self._dumped()

    def _dumped(self) -> dict[bytes, bytes]:
        names = list(self.redis.scan_iter(match=self.log.partition("}")[0] + "}:*", count=5000))
        pipe = self.redis.pipeline(transaction=False)
        for name in names:
            pipe.dump(name)
        return dict(zip(names, pipe.execute(), strict=True))

    def put_back(self) -> None:
        now = self._dumped()
        for name in now.keys() - self._before.keys():
            self.redis.delete(name)
        for name, content in self._before.items():
            if now.get(name) != content:
                self.redis.restore(name, 0, content, replace=True)

    def verify(self) -> list[Finding]:
        return list(Validator(self.world.projections, self.world.log).partition(self.partition))

    def at(self, low: int = 0, high: int | None = None) -> int:
        """The index of a commit, chosen by chance."""
        return self.chance.randrange(low, len(self.entries) if high is None else high)

    def first_seq(self, index: int) -> int:
        last, _, count = self.entries[index][0].partition(b"-")
        return int(last) - int(count) + 1

    def rewrite(self, index: int, **fields: bytes) -> Found:
        """Writes the log again with one commit changed."""
        self.redis.delete(self.log)
        for at, (entry_id, content) in enumerate(self.entries):
            changed = (
                {**content, **{name.encode(): value for name, value in fields.items()}} if at == index else content
            )
            self.redis.xadd(self.log, changed, id=entry_id)
        return Found("LOG_ALTERED", self.first_seq(index))

    def view(self) -> Session:
        return folded(self.world.log, self.session)

    def flipped(self, stored: bytes) -> bytes:
        """With one bit of one byte the other way round."""
        at = self.chance.randrange(len(stored))
        return stored[:at] + bytes([stored[at] ^ (1 << self.chance.randrange(8))]) + stored[at + 1 :]

    def agent(self) -> str:
        return self.chance.choice(sorted(self.view().agents))

    def checkpoint(self) -> bytes:
        return bytes(self.chance.choice(sorted(self.redis.hkeys(self.checkpoints))))


# -- truth -----------------------------------------------------------------------------------------------------------


def a_commit_deleted(place: Place) -> Found:
    at = place.at(high=-1 + len(place.entries))
    place.redis.xdel(place.log, place.entries[at][0])
    return Found("LOG_GAP" if at else "LOG_TRIMMED", place.first_seq(at))


def some_commits_deleted(place: Place) -> Found:
    low = place.at(high=len(place.entries) - 2)
    high = place.at(low + 1, len(place.entries) - 1)
    place.redis.xdel(place.log, *(entry_id for entry_id, _ in place.entries[low : high + 1]))
    return Found("LOG_GAP" if low else "LOG_TRIMMED", place.first_seq(low))


def the_tail_deleted(place: Place) -> Found:
    at = place.at(1)
    place.redis.xdel(place.log, *(entry_id for entry_id, _ in place.entries[at:]))
    return Found("TAIL_LOST", place.first_seq(at))


def the_log_deleted(place: Place) -> Found:
    place.redis.delete(place.log)
    return Found("TAIL_LOST", 1)


def the_log_trimmed(place: Place) -> Found:
    place.redis.xtrim(place.log, maxlen=place.at(1), approximate=False)
    return Found("LOG_TRIMMED", 1)


def a_byte_altered(place: Place) -> Found:
    at = place.at()
    return place.rewrite(at, b=place.flipped(place.entries[at][1][b"b"]))


def a_body_truncated(place: Place) -> Found:
    at = place.at()
    return place.rewrite(at, b=place.entries[at][1][b"b"][:-1])


def a_body_emptied(place: Place) -> Found:
    return place.rewrite(place.at(), b=b"")


def a_digest_altered(place: Place) -> Found:
    return place.rewrite(place.at(), d=b"0" * 20)


def a_time_altered(place: Place) -> Found:
    at = place.at()
    return place.rewrite(at, t=b"%d" % (int(place.entries[at][1][b"t"]) + 1))


def a_body_of_another_commit(place: Place) -> Found:
    at = place.at(1)
    return place.rewrite(at, b=place.entries[at - 1][1][b"b"])


def a_commit_replayed(place: Place) -> Found:
    """The whole content of the commit before stands in its place."""
    at = place.at(1)
    names = {name.decode(): value for name, value in place.entries[at - 1][1].items()}
    return place.rewrite(at, **names)


def the_log_of_another_session(place: Place) -> Found:
    place.redis.copy(place.keys.log(place.other), place.log, replace=True)
    return Found("LOG_ALTERED", 1)


def a_commit_forged(place: Place) -> Found:
    place.redis.xadd(place.log, {**place.entries[-1][1], b"d": b"f" * 20}, id=f"{place.last_seq + 1}-1")
    return Found("LOG_ALTERED", place.last_seq + 1)


def a_skip_forged(place: Place) -> Found:
    commit = place.world.log.read(place.session, after=place.first_seq(place.at()) - 1)
    skipped = next(commit)
    skip = Skip(skipped.first_seq, skipped.last_seq, skipped.digest, "nobody", "none", 1)
    place.redis.hset(place.keys.skips, place.session, msgspec.json.encode([skip]))
    return Found("SKIP_FORGED", skipped.first_seq)


def no_commit_at_all(place: Place) -> Found:
    place.redis.xadd(place.log, {"x": "y"}, id=f"{place.last_seq + 1}-1")
    return Found("LOG_ALTERED", place.last_seq + 1)


def unlisted(place: Place) -> Found:
    place.redis.zrem(place.keys.sessions, place.session)
    return Found("REGISTRY_DIFFERS")


# -- control ---------------------------------------------------------------------------------------------------------


def the_head_deleted(place: Place) -> Found:
    place.redis.delete(place.head)
    return Found("HEAD_MISSING", place.last_seq)


def the_head_garbled(place: Place) -> Found:
    place.redis.set(place.head, b"\x00" + place.redis.get(place.head))
    return Found("HEAD_DIFFERS", place.last_seq)


def the_head_rolled_back(place: Place) -> Found:
    at, packed = place.at(high=len(place.entries) - 1), place.redis.get(place.head).split()
    entry_id, fields = place.entries[at]
    place.redis.set(place.head, b" ".join([entry_id.partition(b"-")[0], fields[b"d"], *packed[2:]]))
    return Found("HEAD_DIFFERS", place.last_seq)


def the_head_of_another_gate(place: Place) -> Found:
    packed = place.redis.get(place.head).split()
    packed[2] = b"e" if packed[2] != b"e" else b"o"
    place.redis.set(place.head, b" ".join(packed))
    return Found("HEAD_DIFFERS", place.last_seq)


def the_feed_deleted(place: Place) -> Found:
    place.redis.delete(place.keys.feed)
    return Found("FEED_DIFFERS", session="")


def the_total_rolled_back(place: Place) -> Found:
    place.redis.hset(place.keys.meta, "total", place.chance.randrange(5))
    return Found("FEED_DIFFERS", session="")


# -- derived ---------------------------------------------------------------------------------------------------------


def the_cursor_ahead(place: Place) -> Found:
    place.redis.hincrby(place.keys.cursor("sessions", 2), "position", 1 + place.chance.randrange(99))
    return Found("CURSOR_AHEAD", session="")


def the_cursor_rolled_back(place: Place) -> Found:
    feed = place.redis.xrange(place.keys.feed)
    before = feed[place.chance.randrange(len(feed) - 1)][0].partition(b"-")[0]
    place.redis.hset(place.keys.cursor("sessions", 2), "position", before)
    return Found("CURSOR_BEHIND", session="")


def the_cursor_deleted(place: Place) -> Found:
    place.redis.delete(place.keys.cursor("sessions", 2))
    return Found("CURSOR_MISSING", session="")


def the_view_deleted(place: Place) -> Found:
    place.redis.delete(place.view_key)
    return Found("VIEW_MISSING", place.last_seq)


def the_view_flipped(place: Place) -> Found:
    place.redis.set(place.view_key, place.flipped(place.redis.get(place.view_key)))
    return Found("VIEW_UNREADABLE", place.last_seq)


def the_view_truncated(place: Place) -> Found:
    stored = place.redis.get(place.view_key)
    place.redis.set(place.view_key, stored[: place.chance.randrange(len(stored))])
    return Found("VIEW_UNREADABLE", place.last_seq)


def the_view_of_another_session(place: Place) -> Found:
    place.redis.copy(place.keys.session_view(place.other), place.view_key, replace=True)
    return Found("VIEW_DIFFERS", place.last_seq)


def the_view_of_another_type(place: Place) -> Found:
    place.redis.delete(place.view_key)
    place.redis.lpush(place.view_key, "x")
    return Found("VIEW_MISSING", place.last_seq)


def the_view_rolled_back(place: Place) -> Found:
    entry_id, _ = place.entries[place.at(high=len(place.entries) - 1)]
    older = folded(place.world.log, place.session, int(entry_id.partition(b"-")[0]))
    place.redis.set(place.view_key, session_view.encode(older))
    return Found("VIEW_BEHIND", place.last_seq)


def the_view_forged(place: Place) -> Found:
    view = place.view()
    view.state = "broken" if view.state != "broken" else "working"
    place.redis.set(place.view_key, session_view.encode(view))
    return Found("VIEW_DIFFERS", place.last_seq)


def an_event_lost_from_the_view(place: Place) -> Found:
    view = place.view()
    view.agents[place.chance.choice(sorted(view.agents))].events -= 1
    place.redis.set(place.view_key, session_view.encode(view))
    return Found("VIEW_DIFFERS", place.last_seq)


def a_checkpoint_deleted(place: Place) -> Found:
    seq = place.checkpoint()
    place.redis.hdel(place.checkpoints, seq)
    return Found("CHECKPOINT_MISSING", int(seq))


def a_checkpoint_flipped(place: Place) -> Found:
    seq = place.checkpoint()
    place.redis.hset(place.checkpoints, seq, place.flipped(place.redis.hget(place.checkpoints, seq)))
    return Found("CHECKPOINT_DIFFERS", int(seq))


def a_checkpoint_of_another_session(place: Place) -> Found:
    seq = place.checkpoint()
    place.redis.hset(place.checkpoints, seq, place.redis.get(place.keys.session_view(place.other)))
    return Found("CHECKPOINT_DIFFERS", int(seq))


def a_checkpoint_too_many(place: Place) -> Found:
    place.redis.hset(place.checkpoints, "1", session_view.encode(place.view()))
    return Found("CHECKPOINT_UNEXPECTED", 1)


def an_agents_totals_deleted(place: Place) -> Found:
    agent = place.agent()
    place.redis.delete(place.keys.agent_view(agent))
    return Found("AGENT_MISSING", agent=agent)


def an_agents_totals_flipped(place: Place) -> Found:
    agent = place.agent()
    key = place.keys.agent_view(agent)
    place.redis.set(key, place.flipped(place.redis.get(key)))
    return Found("AGENT_DIFFERS", agent=agent)


def an_agents_totals_applied_twice(place: Place) -> Found:
    agent = place.agent()
    key = place.keys.agent_view(agent)
    totals = agent_view.decode(agent, place.redis.get(key))
    place.redis.set(key, agent_view.encode(agent, totals + totals))
    return Found("AGENT_DIFFERS", agent=agent)


def totals_of_an_agent_that_never_was(place: Place) -> Found:
    agent = place.agent()
    totals = agent_view.decode(agent, place.redis.get(place.keys.agent_view(agent)))
    place.redis.set(place.keys.agent_view("nobody"), agent_view.encode("nobody", totals))
    return Found("AGENT_UNEXPECTED", agent="nobody")


def an_agent_unlisted(place: Place) -> Found:
    agent = place.agent()
    place.redis.zrem(place.keys.agents, agent)
    return Found("INDEX_DIFFERS", agent=agent)


def an_agent_listed_that_never_was(place: Place) -> Found:
    place.redis.zadd(place.keys.agents, {"nobody": 0})
    return Found("INDEX_DIFFERS", agent="nobody")


def a_view_of_no_session(place: Place) -> Found:
    place.redis.set(place.keys.session_view("ghost"), b"of nobody")
    return Found("ORPHAN", session="ghost")


TRUTH: Final[tuple[Callable[[Place], Found], ...]] = (
    a_commit_deleted, some_commits_deleted, the_tail_deleted, the_log_deleted, the_log_trimmed, a_byte_altered,
    a_body_truncated, a_body_emptied, a_digest_altered, a_time_altered, a_body_of_another_commit, a_commit_replayed,
    the_log_of_another_session, a_commit_forged, no_commit_at_all,
)  # fmt: skip
OTHER: Final[tuple[Callable[[Place], Found], ...]] = (
    a_skip_forged, unlisted, the_head_deleted, the_head_garbled, the_head_rolled_back, the_head_of_another_gate,
    the_feed_deleted,
    the_total_rolled_back, the_cursor_ahead, the_cursor_rolled_back, the_cursor_deleted, the_view_deleted,
    the_view_flipped, the_view_truncated,
    the_view_of_another_session, the_view_of_another_type, the_view_rolled_back, the_view_forged,
    an_event_lost_from_the_view, a_checkpoint_deleted, a_checkpoint_flipped, a_checkpoint_of_another_session,
    a_checkpoint_too_many, an_agents_totals_deleted, an_agents_totals_flipped, an_agents_totals_applied_twice,
    totals_of_an_agent_that_never_was, an_agent_unlisted, an_agent_listed_that_never_was, a_view_of_no_session,
)  # fmt: skip


@pytest.fixture(scope="module")
def real(server_url: str) -> Iterator[tuple[World, list[str]]]:
    """A store with real logs, in commits of one to four events, projected; and its sessions with checkpoints."""
    path = DATA / "incidents.ndjson.gz"
    if not path.exists():
        pytest.skip("the real logs are not there")
    events: dict[str, list[Event]] = {}
    with gzip.open(path) as file:
        for line in file:
            session, event = parse_line(line.rstrip(b"\n"))
            events.setdefault(session, []).append(event)
    chosen = [session for session, told in events.items() if len(told) >= EVENTS][:SESSIONS]
    store = Store(server_url, partitions=4)
    try:
        world, chance = World(store), random.Random(1)
        while left := [session for session in chosen if events[session]]:
            sizes = {session: chance.randint(1, 4) for session in left}
            appends = [Append(session, tuple(events[session][: sizes[session]])) for session in left]
            assert all(isinstance(done, Receipt) for done in world.log.append_many(appends))
            for session in left:
                del events[session][: sizes[session]]
        world.project()
        assert world.verify() == []
        yield world, [session for session in chosen if world.projections.checkpoints(session)]
    finally:
        store.close()


@pytest.fixture
def places(real: tuple[World, list[str]]) -> Iterator[Callable[[], Place]]:
    """Makes places; each is put back as it was."""
    world, sessions = real
    chance, made = seeded(), list[Place]()

    def make() -> Place:
        while made:
            made.pop().put_back()
        made.append(Place(world, chance, sessions))
        return made[-1]

    yield make
    while made:
        made.pop().put_back()


@pytest.mark.parametrize("damage", [*TRUTH, *OTHER], ids=lambda damage: damage.__name__)
def test_damage_anywhere_is_found_and_put_right_or_quarantined(
    places: Callable[[], Place], damage: Callable[[Place], Found]
) -> None:
    for _ in range(PLACES):
        place = places()
        should = damage(place)
        session = None if should.agent else place.session if should.session is None else should.session or None

        (found,) = place.verify()

        assert (found.code, found.first_bad_seq) == (should.code, should.first_bad_seq)
        assert (found.session, found.agent) == (session, should.agent)
        assert not found.quarantined
        left = place.world.recover()
        if damage in TRUTH:
            (quarantined,) = left
            assert (quarantined.code, quarantined.session) == (should.code, place.session)
            assert quarantined.quarantined
            assert KINDS[quarantined.code].kind == "log"
        else:
            assert left == []
        assert place.verify() == left


@pytest.fixture(scope="module")
def kept(real: tuple[World, list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """The real logs in a backup, and sealed in an archive."""
    world, sessions = real
    backup, folder = tmp_path_factory.mktemp("kept") / "backup", tmp_path_factory.mktemp("archive")
    Creating(world.log, backup, base=None, pace=Pace(lambda _: None, verb="did")).run()
    place, chance, store = open_archive(str(folder)), random.Random(2), world.log.identity.store
    for session in sessions:
        commits, previous = list(world.log.read(session)), genesis(session)
        while commits:
            size = chance.randint(1, 9)
            segment = seal(store, session, previous, commits[:size])
            place.put(segment.name, segment.content)
            commits, previous = commits[size:], segment.facts.digest
    return [open_source(str(where), store, archive=ArchiveSettings(), say=lambda _: None) for where in (backup, folder)]


@pytest.mark.parametrize("damage", TRUTH, ids=lambda damage: damage.__name__)
def test_damage_to_a_log_anywhere_is_made_good_from_a_backup_or_an_archive(
    places: Callable[[], Place], kept: list[Source], damage: Callable[[Place], Found]
) -> None:
    """To the byte, and nothing is found any more; whether it was quarantined before or not."""
    for source in kept if FULL else [seeded().choice(kept)]:
        for _ in range(PLACES):
            place = places()
            world, head = place.world, place.redis.get(place.head)
            views = world.projections.views([place.session])
            damage(place)
            if place.chance.random() < 0.5:
                world.recover()
            grafting = Grafting(world.projections, world.log, source, who="tester")
            plan = plan_of("store", place.verify())
            (planned,) = found = list(grafting.plan(mendable(plan)))

            (graft,) = grafting.apply([planned.session])

            assert graft == planned
            assert place.redis.xrange(place.log) == place.entries
            assert place.redis.get(place.head) == head
            recovery = Recovery(world.projections, world.log, who="tester", progress=lambda _: None)
            assert recovery.apply(with_grafts(plan, found, world.keyspace)) == []
            assert world.projections.views([place.session]) == views
