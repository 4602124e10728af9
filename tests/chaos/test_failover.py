"""Failovers under load: what all replicas acknowledged stays, and whatever else is lost is named, commit by commit.

An acknowledged commit is one whose append returned a receipt. `failover_table.py` measures the same with every setting
under every fault; here are the laws, each in its quickest form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from domain import Damaged, Delivery, Event, MusterError, OutcomeUnknown, Receipt, SessionLog, Unavailable
from domain.log import Connecting, connect, create_store, redis_streams
from tests.chaos.failover_table import CUT_OFF, KILLED, PARTITIONS, PAUSED, Fault, Setting, run
from tests.chaos.group import Group, Node
from tests.conftest import ENVIRONMENT
from tests.domain.log.logs import refused
from tests.domain.log.subscribing.deliveries import rest, seqs


class Place:
    """A group with a store, and logs on it."""

    def __init__(self, group: Group, closing: ExitStack) -> None:
        self.group = group
        self._closing = closing
        with connect(Connecting(direct(group.primary()))) as client:
            create_store(client, environment=ENVIRONMENT, partitions=PARTITIONS)
        group.wait_until_replicated()

    def open(
        self, url: str = "", *, durability: str = "memory", timeout_s: float = 1.0, retry_for_s: float = 10.0
    ) -> SessionLog:
        """A log over the Sentinels, or at an address."""
        connecting = Connecting(url or self.group.url, timeout_s=timeout_s, retry_for_s=retry_for_s)
        log = SessionLog.open(connecting, environment=ENVIRONMENT, durability=durability)
        return self._closing.enter_context(log)

    def lose_what_is_not_replicated(self, meanwhile: Callable[[], object]) -> None:
        """What is appended meanwhile reaches no replica, the primary dies with it, and another takes its place."""
        self.cut_off()
        meanwhile()
        self.fail_over()

    def cut_off(self) -> None:
        """From now on nothing reaches a replica."""
        self.group.wait_until_replicated()
        self.group.cut_off(self.group.replicas())

    def fail_over(self) -> None:
        """The primary dies, and one of the replicas, which come back, takes its place; the other follows it."""
        primary = self.group.primary()
        primary.kill()
        for node in self.group.servers:
            if node.is_paused:
                node.resume()
        self.group.wait_for_failover(primary)
        self.group.wait_until_settled()


@pytest.fixture
def make_place(tmp_path: Path) -> Iterator[Callable[..., Place]]:
    with ExitStack() as closing:

        def make(**options: Any) -> Place:
            return Place(closing.enter_context(Group(tmp_path / "group", **options)), closing)

        yield make


def direct(node: Node) -> str:
    return f"redis://{node.address}/0"


def did(id: str) -> Event:
    return Event.of("tool.called", actor="a", id=id)


def appended(log: SessionLog, session: str, who: str, count: int) -> list[Receipt]:
    return [log.append(session, did(f"{who}:{number}")) for number in range(count)]


@pytest.mark.parametrize(
    ("setting", "fault"),
    [
        (Setting("replicated(2)", "everysec", min_replicas=1, keeps_all=True), KILLED),
        (Setting("replicated(2)", "everysec", min_replicas=2, keeps_all=True), PAUSED),
        (Setting("replicated(2)", "everysec", keeps_all=True), CUT_OFF),
        (Setting("memory", "everysec"), CUT_OFF),
    ],
    ids=lambda value: value.words if isinstance(value, Fault) else f"{value.durability} min {value.min_replicas}",
)
def test_under_load_nothing_is_lost_that_all_replicas_have_and_nothing_else_in_silence(
    tmp_path: Path, setting: Setting, fault: Fault
) -> None:
    """Several producers append all the while. Nothing is there twice, the order is kept, what is lost is named."""
    outcome = run(setting, fault, tmp_path / "group", seed=1)

    assert outcome.broken == ()
    assert outcome.acknowledged > 0
    assert outcome.lost == outcome.named
    assert (
        outcome.lost == 0
    ) == setting.keeps_all  # CUT_OFF loses for certain: a test that loses nothing shows nothing


def test_a_lost_tail_is_named_to_the_commit(make_place: Callable[..., Place]) -> None:
    """The producer's next append raises, naming exactly what it was told and is not there, and where that begins."""
    place = make_place()
    log = place.open()
    sessions = {"kept": 0, "shortened": 4, "forked-short": 4, "forked-even": 4, "forked-long": 4}
    for session in sessions:
        appended(log, session, "kept", 3)
    gone: dict[str, list[Receipt]] = {}

    def meanwhile() -> None:
        gone.update({session: appended(log, session, "lost", count) for session, count in sessions.items()})

    place.lose_what_is_not_replicated(meanwhile)
    other = place.open()
    for session, count in {"forked-short": 2, "forked-even": 4, "forked-long": 7}.items():
        appended(other, session, "other", count)

    found = {}
    for session in sessions:
        try:
            log.append(session, did("next"))
        except Damaged as error:
            found[session] = (error.code, error.facts["first_bad_seq"], error.facts["lost"])

    assert found == {
        "shortened": ("TAIL_LOST", 4, gone["shortened"]),
        "forked-short": ("FORK", 4, gone["forked-short"]),
        "forked-even": ("FORK", 4, gone["forked-even"]),
        "forked-long": ("FORK", 4, gone["forked-long"]),
    }
    losses = {loss.session: (loss.code, loss.first_bad_seq, list(loss.receipts)) for loss in log.compare()}
    assert losses == found
    assert other.compare() == []
    assert [event.id for commit in other.read("shortened") for event in commit.events] == [
        f"kept:{n}" for n in range(3)
    ]


@pytest.mark.parametrize("session", ["s", None])
def test_a_subscriber_is_told_what_a_failover_took_from_it(
    make_place: Callable[..., Place], session: str | None
) -> None:
    """It goes on over the Sentinels, is told until it accepts, and then misses nothing and is given nothing twice."""
    place = make_place()
    log, other = place.open(), place.open()
    subscription = log.subscribe(session, after="beginning")
    appended(log, "s", "kept", 5)
    kept = rest(subscription)
    taken: list[Delivery] = []

    def meanwhile() -> None:
        appended(log, "s", "lost", 3)
        taken.extend(rest(subscription))

    place.lose_what_is_not_replicated(meanwhile)
    assert [delivery.seq for delivery in taken] == [6, 7, 8]

    error = refused(lambda: rest(subscription), Damaged, "TAIL_LOST")
    assert error.facts["lost"] == [("s", 6), ("s", 7), ("s", 8)]
    appended(other, "s", "since", 4)
    refused(lambda: rest(subscription), Damaged, "FORK")
    subscription.accept_loss()
    since = rest(subscription)
    assert seqs([*kept, *since]) == {"s": list(range(1, 10))}
    assert [delivery.event.id for delivery in since if delivery.event] == [f"since:{number}" for number in range(4)]


def test_a_commit_that_reached_too_few_is_appended_again_after_it_is_lost(make_place: Callable[..., Place]) -> None:
    """It was never acknowledged, so its loss is nobody's trouble: the repeat is a new commit, and others follow it."""
    place = make_place()
    log = place.open(durability="replicated(1)")
    before = [repeated(log, "s", did(f"before:{number}")) for number in range(3)]

    def meanwhile() -> None:
        with pytest.raises(OutcomeUnknown) as raised:
            log.append("s", did("again"))
        assert raised.value.code == "DURABILITY_SHORT"

    place.lose_what_is_not_replicated(meanwhile)
    receipts = [*before, repeated(log, "s", did("again")), repeated(log, "s", did("after"))]

    commits = list(log.read("s"))
    assert [event.id for commit in commits for event in commit.events] == [
        *(f"before:{n}" for n in range(3)),
        "again",
        "after",
    ]
    assert [(commit.last_seq, commit.digest) for commit in commits] == [(r.last_seq, r.digest) for r in receipts]
    assert log.compare() == []


def test_a_doubt_outlives_a_server_that_turns_its_repeat_away(make_place: Callable[..., Place]) -> None:
    """A commit is short of replicas; its repeat meets a server that refuses writes, and the session moves on
    before the next repeat: that one still finds it.
    """
    place = make_place()
    group, log = place.group, place.open(durability="replicated(2)", retry_for_s=0.2)
    primary, replicas = group.primary(), group.replicas()
    repeated(log, "s", did("first"))
    group.cut_off(replicas)
    with pytest.raises(OutcomeUnknown):
        log.append("s", did("second"))
    primary.ask("CONFIG", "SET", "min-replicas-to-write", "1")
    with pytest.raises(Unavailable) as raised:
        log.append("s", did("second"))
    assert raised.value.code == "SERVER_LACKS_REPLICAS"
    for replica in replicas:
        replica.resume()
    group.wait_until_settled()

    repeated(log, "s", did("third"))
    receipt = repeated(log, "s", did("second"))

    assert [event.id for commit in log.read("s") for event in commit.events] == ["first", "second", "third"]
    assert (receipt.first_seq, receipt.appended, receipt.duplicates) == (2, 0, 1)


def test_a_repeat_is_proved_by_the_server_that_has_it(
    make_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit is found again on one primary, and another is there when the replicas are asked for: what those have
    says nothing of a commit that it lacks.
    """
    place = make_place()
    log = place.open(durability="replicated(1)")
    repeated(log, "s", did("first"))
    sending: Callable[..., Any] = vars(redis_streams)["send"]
    failovers = [place.fail_over]

    def send(client: Any, commands: list[Any], *arguments: Any, **options: Any) -> Any:
        if any("muster_touch_1" in command for command in commands) and failovers:
            failovers.pop()()
        return sending(client, commands, *arguments, **options)

    place.cut_off()
    with pytest.raises(OutcomeUnknown):
        log.append("s", did("second"))
    monkeypatch.setattr(redis_streams, "send", send)

    receipt = repeated(log, "s", did("second"))

    assert not failovers, "the server was changed in between"
    assert [(commit.last_seq, commit.digest) for commit in log.read("s", after=1)] == [(2, receipt.digest)]


def test_a_zombie_primary_takes_nothing_back_that_was_acknowledged(make_place: Callable[..., Place]) -> None:
    """What a paused primary takes when it goes on is acknowledged to nobody who asked for replicas, and named to all
    others; what was acknowledged before and elsewhere stays.
    """
    place = make_place()
    zombie = place.group.primary()
    # Patient: each sends once, and what it sent waits in the zombie's socket until the zombie goes on.
    patience: dict[str, Any] = {"timeout_s": 60.0, "retry_for_s": 0.0}
    careful = place.open(direct(zombie), durability="replicated(2)", **patience)
    careless = place.open(direct(zombie), **patience)
    elsewhere = place.open()
    kept = [*appended(careful, "careful", "a", 3), *appended(careless, "careless", "a", 3)]
    place.group.wait_until_replicated()
    zombie.pause()
    with ThreadPoolExecutor(2) as threads:
        attempts = [
            threads.submit(log.append, session, did("late"))
            for log, session in ((careful, "careful"), (careless, "careless"))
        ]
        primary = place.group.wait_for_failover(zombie)
        kept += [*appended(elsewhere, "careful", "b", 3), *appended(elsewhere, "elsewhere", "b", 3)]
        zombie.resume()
        late = [attempt.exception() or attempt.result() for attempt in attempts]
    place.group.wait_until_settled()
    assert place.group.primary() is primary

    held = {
        (session, commit.last_seq, commit.digest)
        for session in elsewhere.sessions()
        for commit in elsewhere.read(session)
    }
    assert {(receipt.session, receipt.last_seq, receipt.digest) for receipt in kept} <= held
    assert isinstance(late[0], MusterError), "no replica has it"
    assert isinstance(late[1], Receipt), "nobody asked for replicas"
    assert [receipt for loss in careless.compare() for receipt in loss.receipts] == [late[1]]


def repeated(log: SessionLog, session: str, event: Event) -> Receipt:
    """Appends an event until it is acknowledged."""
    while True:
        try:
            return log.append(session, event)
        except Unavailable:
            continue
