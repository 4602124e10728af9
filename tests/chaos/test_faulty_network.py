"""Appends over a network that loses, cuts and delays: one copy of each, in order, and every doubt settled rightly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from domain import Append, Event, OutcomeUnknown, Receipt, SessionLog
from domain.log import Connecting
from domain.log.contract import Expected
from tests.chaos.effort import FULL, seeded
from tests.chaos.proxy import Fault, Proxy, proxied
from tests.conftest import ENVIRONMENT, Store

APPENDS = 2000 if FULL else 200
FAULTS = [fault for fault in Fault if fault is not Fault.NONE]


@pytest.fixture
def proxy(store: Store) -> Iterator[Proxy]:
    with proxied(store.url) as proxy:
        yield proxy


@pytest.fixture
def open_log(store: Store, proxy: Proxy) -> Iterator[Callable[..., SessionLog]]:
    """Opens logs whose way to the server leads through the proxy."""
    logs: list[SessionLog] = []

    def open_log(*, timeout_s: float = 30.0, retry_for_s: float = 60.0) -> SessionLog:
        connecting = Connecting(proxy.url, timeout_s=timeout_s, retry_for_s=retry_for_s)
        logs.append(SessionLog.open(connecting, environment=ENVIRONMENT, namespace=store.namespace))
        return logs[-1]

    yield open_log
    for log in logs:
        log.close()


def step(number: int) -> Event:
    return Event.of("tool.called", actor="a", id=f"e{number}")


def holds_each_once(store: Store, session: str, receipts: list[Receipt]) -> None:
    """The session holds what was acknowledged, once, in order, where the receipts say."""
    commits = list(store.open().read(session))
    assert [event.id for commit in commits for event in commit.events] == [f"e{n}" for n in range(len(receipts))]
    assert [(commit.last_seq, commit.digest) for commit in commits] == [(r.last_seq, r.digest) for r in receipts]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("expected", ["any", "exact"])
def test_a_fault_at_every_append_leaves_one_copy_of_each(
    store: Store, proxy: Proxy, open_log: Callable[..., SessionLog], fault: Fault, expected: str
) -> None:
    """Whatever befalls the first attempt of each of hundreds of appends, the log ends up as if nothing had."""
    # Only a reply that comes too late takes time: that of the client's patience.
    appends = 10 if fault is Fault.REPLY_LATE else APPENDS
    log = open_log(timeout_s=0.3 if fault is Fault.REPLY_LATE else 30.0)
    receipts = []
    for number in range(appends):
        at: Expected = "any" if expected == "any" else number
        proxy.plan.append(fault)
        receipts.append(log.append("s", step(number), expected=at))

    proxy.deliver_late_requests()
    holds_each_once(store, "s", receipts)
    if fault is Fault.REQUEST_LATE:
        assert proxy.delivered_late == appends


def test_faults_at_random_leave_one_copy_of_each(
    store: Store, proxy: Proxy, open_log: Callable[..., SessionLog]
) -> None:
    """Several faults in a row for one append, of any kind, and attempts of one append that overtake each other."""
    chance = seeded()
    quick = [fault for fault in FAULTS if fault is not Fault.REPLY_LATE]
    log = open_log()
    receipts = []
    for number in range(APPENDS):
        proxy.plan.extend(chance.choices(quick, k=chance.randrange(4)))
        receipts.append(log.append("s", step(number)))
        proxy.plan.clear()

    proxy.deliver_late_requests()
    holds_each_once(store, "s", receipts)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.lower())
@pytest.mark.parametrize("expected", ["any", "new"])
def test_a_doubt_is_settled_rightly(
    store: Store, proxy: Proxy, open_log: Callable[..., SessionLog], fault: Fault, expected: Expected
) -> None:
    """Without a retry the outcome is unknown; `resolve` says what it is, and so it stays, whatever arrives later."""
    log = open_log(timeout_s=1.0, retry_for_s=0)
    proxy.plan.append(fault)

    with pytest.raises(OutcomeUnknown) as raised:
        log.append("s", step(0), expected=expected)
    (doubt,) = raised.value.doubts
    found = log.resolve(doubt)

    assert (found is None) == (fault in (Fault.REQUEST_LOST, Fault.REQUEST_LATE))
    proxy.deliver_late_requests()
    holds_each_once(store, "s", [] if found is None else [found])


def test_a_doubt_is_settled_among_many_later_commits(
    store: Store, proxy: Proxy, open_log: Callable[..., SessionLog]
) -> None:
    """Others append hundreds of commits in between; the commit in doubt is still found."""
    log = open_log(timeout_s=30.0, retry_for_s=0)
    proxy.plan.append(Fault.REPLY_LOST)
    with pytest.raises(OutcomeUnknown) as raised:
        log.append("s", step(0))
    others = store.open()
    for number in range(1, 400):
        others.append("s", step(number))

    found = log.resolve(raised.value.doubts[0])

    assert found is not None
    assert (found.first_seq, found.appended, found.duplicates) == (1, 0, 1)


def test_a_lost_group_leaves_each_of_its_callers_its_own_doubt(
    store: Store, proxy: Proxy, open_log: Callable[..., SessionLog]
) -> None:
    """`append_many` whose reply is lost raises with a doubt for each commit, and each is settled by itself."""
    log = open_log(retry_for_s=0)
    appends = [Append("s", (step(0),), 0), Append("t", (step(0),), 0), Append("s", (step(1),), 1)]
    proxy.plan.extend([Fault.REPLY_LOST] * 2)

    with pytest.raises(OutcomeUnknown) as raised:
        log.append_many(appends)
    doubts = sorted(raised.value.doubts, key=lambda doubt: (doubt.session, doubt.expected))

    assert [(doubt.session, doubt.expected) for doubt in doubts] == [("s", 0), ("s", 1), ("t", 0)]
    for doubt in doubts:
        found = log.resolve(doubt)
        stored = [commit.first_seq for commit in store.open().read(doubt.session)]
        assert (found is not None) == (int(doubt.expected) + 1 in stored)


def test_a_server_clock_that_jumps_refuses_nothing_that_is_in_time(
    store: Store, open_log: Callable[..., SessionLog]
) -> None:
    """A log that thinks it is long ago sends commits that look late; they are given the right time and taken."""
    log = open_log()
    log.clock.learn(1_000_000)

    receipt = log.append("s", step(0))

    assert receipt.appended == 1
    assert abs(log.clock.now() - receipt.at_ms) < 60_000
    holds_each_once(store, "s", [receipt])
