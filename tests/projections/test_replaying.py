"""A replay gives out what the log holds, event by event, in an order that can be kept and gone on from."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from threading import Thread
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import Event, MemoryLog, MusterError, Refused
from domain.log.protocol import TimeRequest
from projections import replaying, session_view
from projections.playing import MAX, Played, Player
from projections.queries import state_at
from projections.replaying import Replay, Replayed, ReplayPosition, Selection
from tests.projections.test_time_travel import append_all, real_histories
from tests.projections.world import World, did, foreign_append, raised_code

TYPES = ("modified", "tool.called", "tool.returned", "broke", "test_pass")
SESSIONS = ("a", "b", "c:1", "d")


def filled(seed: int, commits: int = 60, ms: int = 3) -> MemoryLog:
    """A log in memory: a few sessions, commits of one to three events, some in the same ms."""
    chance, now = Random(seed), [1_700_000_000_000]
    log = MemoryLog(clock_ms=lambda: now[0], partitions=3)
    for _ in range(commits):
        now[0] += chance.choice((0, 0, 1, ms))
        types = chance.choices(
            ("modified", "tool.called", "tool.returned", "broke", "test_pass"), k=chance.randint(1, 3)
        )
        log.append(chance.choice(SESSIONS), [did(type, chance.choice(("ann", "bob"))) for type in types])
    return log


def in_order(log: MemoryLog) -> list[tuple[int, str, int, Event]]:
    """Everything there is, by brute force."""
    return sorted(
        (commit.at_ms, session, seq, event)
        for session in log.sessions()
        for commit in log.read(session)
        for seq, event in enumerate(commit.events, commit.first_seq)
    )


def told(replayed: Replayed) -> tuple[int, str, int, Event | None]:
    return replayed.at_ms, replayed.session, replayed.seq, replayed.event


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_a_replay_is_the_log_event_by_event(seed: int) -> None:
    """All sessions, by server time, then session, then seq; nothing twice, nothing left out."""
    log = filled(seed)

    assert [told(one) for one in Replay(log, Selection())] == in_order(log)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_the_state_after_each_event_is_that_at_its_seq(seed: int) -> None:
    """With states, each is the document that is read at that seq, also where the replay begins in the middle."""
    log, chance = filled(seed), Random(seed)
    selection = Selection.of(from_seq=chance.choice((1, 2, 5)))

    for one in Replay(log, selection, with_state=True):
        state, is_end = state_at(log, session_view.initial(one.session), one.seq)
        assert one.state == session_view.document(state, digest=is_end)
        assert (one.digest is not None) == is_end


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_what_is_selected_is_what_brute_force_selects(seed: int) -> None:
    """By sessions, types, actors, times and seqs, together."""
    log, chance = filled(seed), Random(seed)
    everything = in_order(log)
    times = [at for at, *_ in everything]
    since, until = chance.choice((None, *times)), chance.choice((None, *times))
    sessions = chance.choice((None, sorted({session for _, session, *_ in everything})[:2]))
    types, actors = chance.choice((None, "tool.*", ["broke", "modified"])), chance.choice((None, "ann"))
    from_seq = chance.choice((1, 3))
    selection = Selection.of(sessions, types=types, actors=actors, since_ms=since, until_ms=until, from_seq=from_seq)

    def is_selected(at: int, session: str, seq: int, event: Event) -> bool:
        return (
            (since is None or at >= since)
            and (until is None or at <= until)
            and (sessions is None or session in sessions)
            and (types is None or event.type in types or (types == "tool.*" and event.type.startswith("tool.")))
            and (actors is None or event.actor == actors)
            and seq >= from_seq
        )

    assert [told(one) for one in Replay(log, selection)] == [row for row in everything if is_selected(*row)]


@settings(max_examples=60)
@given(st.integers(0, 10**6))
def test_it_goes_on_after_any_position(seed: int) -> None:
    """Broken off anywhere, and gone on with from the position as text: together they are the whole."""
    log, chance = filled(seed), Random(seed)
    whole = [told(one) for one in Replay(log, Selection())]
    replay = Replay(log, Selection())
    first = [next(replay) for _ in range(chance.randint(1, len(whole)))]
    position = ReplayPosition.parse(str(first[-1].position))

    rest = Replay(log, Selection.of(after=position))

    assert [told(one) for one in (*first, *rest)] == whole


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_what_is_written_meanwhile_comes_after_the_position(seed: int) -> None:
    """Whatever is appended between two events, and wherever it is broken off: all in all, each event once."""
    chance, now = Random(seed), [1_700_000_000_000]
    log = MemoryLog(clock_ms=lambda: now[0], partitions=3)

    def write() -> None:
        for _ in range(chance.randint(0, 3)):
            log.append(chance.choice(SESSIONS), did("modified"))
            now[0] += chance.choice((0, 0, 1))

    class Ticking(MemoryLog):
        """Time goes on while it is asked for."""

        def _answer(self, request: Any) -> Any:
            now[0] += isinstance(request, TimeRequest) and chance.random() < 0.5
            return super()._answer(request)

    log.__class__ = Ticking
    heard: list[tuple[int, str, int, Event | None]] = []
    position: ReplayPosition | None = None
    for _ in range(8):
        write()
        for one in Replay(log, Selection.of(after=position)):
            heard.append(told(one))
            position = one.position
            write()
            if chance.random() < 0.1:
                break
    now[0] += 1
    heard += [told(one) for one in Replay(log, Selection.of(after=position))]

    assert heard == in_order(log)


@settings(max_examples=40)
@given(st.integers(0, 10**6))
def test_few_sessions_held_open_change_nothing(seed: int) -> None:
    """A session that was let go is opened again where it was."""
    log = filled(seed)
    most, replaying.MOST_OPEN = replaying.MOST_OPEN, 1  # type: ignore[misc]
    try:
        found = [(told(one), one.state) for one in Replay(log, Selection(), with_state=True)]
    finally:
        replaying.MOST_OPEN = most  # type: ignore[misc]

    assert found == [(told(one), one.state) for one in Replay(log, Selection(), with_state=True)]


def test_it_seeks_forward_and_back() -> None:
    """To a time, and to a position; the selection still holds."""
    log = filled(7)
    everything = in_order(log)
    replay = Replay(log, Selection.of(until_ms=everything[-5][0]))
    next(replay)
    middle = everything[len(everything) // 2][0]

    replay.seek(middle)
    assert [told(one) for one in replay] == [row for row in everything if middle <= row[0] <= everything[-5][0]]
    replay.seek(ReplayPosition(*everything[3][:3]))
    assert told(next(replay)) == everything[4]
    replay.seek(0)
    assert told(next(replay)) == everything[0]


@pytest.mark.parametrize("text", ["", "1", "1.2", "x.1.s", "1.x.s", "1.2.not an id", "1.2."])
def test_what_is_no_position_is_refused(text: str) -> None:
    """Before anything is read."""
    with pytest.raises(Refused):
        ReplayPosition.parse(text)


@pytest.mark.parametrize("text", ["1.2.s", "1700000000000.3.a.b:c/1"])
def test_a_position_is_read_as_it_was_written(text: str) -> None:
    """Whatever is in the name of a session."""
    assert str(ReplayPosition.parse(text)) == text


def test_a_session_that_breaks_a_law_ends_there_and_the_others_go_on(world: World) -> None:
    """What comes before the damage is played; the damage is told once; a head that cannot be read hides nothing."""
    for number in range(4):
        for session in ("s", "t", "u"):
            world.log.append(session, did("modified", "ann", id=f"{session}{number}"))
    world.redis.xdel(world.keyspace.of("s").log("s"), "2-1")
    world.redis.set(world.keyspace.of("u").head("u"), "garbage")

    replay = Replay(world.log, Selection())
    played = [one.event.id for one in replay if one.event is not None]

    assert sorted(played) == ["s0", "t0", "t1", "t2", "t3", "u0", "u1", "u2", "u3"]
    assert [damage.code for damage in replay.damages] == ["LOG_GAP"]
    assert raised_code(lambda: list(Replay(world.log, Selection.of("none")))) == "SESSION_UNKNOWN"


def test_a_discarded_commit_is_played_as_such(world: World) -> None:
    """Its events cannot be read, and are told without; who asks for types is not given them."""
    world.log.append("s", did("start", "ann"))
    assert foreign_append(world.store, "s", ".", b"no body")[0] == "APPENDED"
    commit = list(world.log.read("s"))[1]
    skip = f'[{{"from_seq":2,"to_seq":2,"digest":"{commit.digest}","who":"w","why":"y","at":1}}]'
    world.redis.hset(world.keyspace.of("s").skips, "s", skip)

    assert [(one.seq, one.event is None, one.is_skipped) for one in Replay(world.log, Selection())] == [
        (1, False, False), (2, True, True),
    ]  # fmt: skip
    assert [one.seq for one in Replay(world.log, Selection.of(types="start"))] == [1]


@pytest.mark.parametrize("name", ["coding_agents", "rules", "receipt"])
def test_real_sessions_are_replayed_from_checkpoints_too(world: World, name: str) -> None:
    """Everything a real log holds, once; and with states from the middle of sessions on, by the views' checkpoints."""
    histories = real_histories(name)
    append_all(world, histories, Random(3))
    world.project()

    found: dict[str, list[Event | None]] = {}
    order = []
    for one in Replay(world.log, Selection()):
        found.setdefault(one.session, []).append(one.event)
        order.append(one.position)
    assert found == histories
    assert order == sorted(order)

    middle = order[len(order) // 2].at_ms
    replay = Replay(world.log, Selection.of(since_ms=middle), with_state=True, state_before=world.views.state_before)
    late = [position for position in order if position.at_ms >= middle]
    for number, one in enumerate(replay):
        assert one.position == late[number]
        if number % 50 == 0:
            assert one.state == {**world.views.session_at(one.session, one.seq), "quarantined": None}


# -- playing ----------------------------------------------------------------------------------------------------------


class Hall:
    """A clock that only waiting moves, and what is said to the player while it waits, at certain times."""

    def __init__(self, log: MemoryLog, speed: float, **options: Any) -> None:
        self.now = 100.0
        self.heard: list[tuple[float, int]] = []
        self.orders: dict[float, Callable[[Player], None]] = {}
        self.player = Player(Replay(log, Selection()), speed, clock=lambda: self.now, wait=self._wait, **options)

    def play(self) -> Played:
        return self.player.play(lambda one: self.heard.append((round(self.now - 100, 6), one.seq)))

    def _wait(self, seconds: float | None) -> Callable[[], None] | None:
        due = min(self.orders, default=None)
        if due is not None and (seconds is None or due <= self.now - 100 + seconds):
            self.now = max(self.now, 100 + due)
            self.orders.pop(due)(self.player)
            return self.player._told(0)
        assert seconds is not None, "nobody will ever resume it"
        self.now += seconds
        return None


@pytest.fixture
def music() -> MemoryLog:
    """Events at 0, 1, 2, 4, 10 and 100 seconds."""
    now = [0]
    log = MemoryLog(clock_ms=lambda: now[0])
    for second in (0, 1, 2, 4, 10, 100):
        now[0] = 1_700_000_000_000 + second * 1000
        log.append("s", did("modified"))
    return log


@pytest.mark.parametrize(
    ("speed", "longest", "due"),
    [
        (1, MAX, [0, 1, 2, 4, 10, 100]),
        (10, MAX, [0, 0.1, 0.2, 0.4, 1, 10]),
        (0.5, MAX, [0, 2, 4, 8, 20, 200]),
        (1, 5, [0, 1, 2, 4, 9, 14]),
        (MAX, MAX, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_events_come_as_far_apart_as_they_were_written(
    music: MemoryLog, speed: float, longest: float, due: list[float]
) -> None:
    """Divided by the speed; longer pauses may be cut."""
    hall = Hall(music, speed, longest_pause_s=longest)

    played = hall.play()

    assert hall.heard == [(at, seq) for seq, at in enumerate(due, 1)]
    assert (played.events, played.is_whole, played.position) == (6, True, ReplayPosition(1_700_000_100_000, "s", 6))


def test_a_pause_takes_no_time(music: MemoryLog) -> None:
    """What is due while it is paused comes after it, as far apart as ever."""
    hall = Hall(music, 1)
    hall.orders = {1.5: Player.pause, 31.5: Player.resume}

    hall.play()

    assert hall.heard == [(0, 1), (1, 2), (32, 3), (34, 4), (40, 5), (130, 6)]


def test_it_seeks_while_it_plays(music: MemoryLog) -> None:
    """The event it was waiting for is not played; the one it was sent to is, at once. Also while it is paused."""
    hall = Hall(music, 1)
    hall.orders = {
        1.5: lambda player: player.seek(1_700_000_003_000),
        3: Player.pause,
        5: lambda player: player.seek(1_700_000_000_000),
        6: Player.resume,
        6.5: Player.stop,
    }

    played = hall.play()

    assert hall.heard == [(0, 1), (1, 2), (1.5, 4), (6, 1)]
    assert (played.events, played.is_whole) == (4, False)


def test_a_callback_that_fails_ends_the_playing(music: MemoryLog) -> None:
    """With its own error; whoever goes on, goes on with the event that it was given."""
    heard: list[Replayed] = []

    def hear(one: Replayed) -> None:
        if one.seq == 3:
            raise ZeroDivisionError
        heard.append(one)

    with pytest.raises(ZeroDivisionError):
        Player(Replay(music, Selection())).play(hear)
    assert next(Replay(music, Selection.of(after=heard[-1].position))).seq == 3
    with pytest.raises(MusterError, match="FIELD_INVALID"):
        Player(Replay(music, Selection()), 0)


def test_it_is_told_by_another_thread(music: MemoryLog) -> None:
    """With the real clock: a thread pauses it, sends it back, resumes it, and stops it in the end."""
    heard: list[int] = []
    player = Player(Replay(music, Selection()), MAX)

    def direct() -> None:
        if len(heard) == 3:
            player.pause()
            player.seek(0)
            player.resume()
        elif len(heard) == 5:
            player.stop()

    def hear(one: Replayed) -> None:
        heard.append(one.seq)
        other = Thread(target=direct)
        other.start()
        other.join()

    assert player.play(hear).is_whole is False
    assert heard == [1, 2, 3, 1, 2]
