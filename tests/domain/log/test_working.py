"""An agent at work in a session: it joins, is alone while it holds the lease, says what it does, and leaves."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider

from domain import Append, Conflict, Event, NotFound, Refused
from domain.events import Change
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import MakeLog, RunnableLog, new_session, note, refused
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]


def types(log: RunnableLog, session: str) -> list[tuple[str, str]]:
    return [(event.type, event.actor) for commit in log.read(session) for event in commit.events]


def test_entering_joins_and_leaving_leaves(make_log: MakeLog) -> None:
    """Meanwhile nobody else may append; afterwards another agent may enter."""
    log, other = make_log(), make_log()
    session = new_session()
    with log.session(session, "a") as work:
        receipt = work.start()
        refused(lambda: other.append(session, note()), Refused, "LEASE_REQUIRED")
        refused(lambda: other.session(session, "b").__enter__(), Conflict, "LEASE_HELD")
        assert (receipt.last_seq, work.receipt, work.position) == (2, receipt, receipt.position)
    with other.session(session, "b") as work:
        work.completed("done")
    assert types(log, session) == [
        ("joined", "a"), ("start", "a"), ("left", "a"), ("joined", "b"), ("completed", "b"), ("left", "b"),
    ]  # fmt: skip


def test_what_an_agent_says_is_what_is_recorded(log: RunnableLog) -> None:
    """The known fields by name, others in `data`, structs and mappings alike."""
    session = new_session()
    with log.session(session, "a", exclusive=False) as work:
        work.modified(
            change=Change(element_type="function", entity_ids=["f"], operation="modified"),
            tags=["x"], priority="high", data={"mine": 1}, id="m-1", time="2026-01-01T00:00:00Z",
        )  # fmt: skip
        work.broke(impact={"severity": "low"}, metadata={"k": "v"})
        work.test_pass(transition={"from": "broken", "to": "working"})
        work.checkpoint()
        work.extended(600)
        work.event("tool.called", {"n": 1})
        work.append(note_by("a"), note_by("a"))
        work.completed(outcome="well")
    events = [event for commit in log.read(session) for event in commit.events]
    said = {event.type: event.payload() for event in events}
    assert said["modified"] == {
        "change": {"element_type": "function", "entity_ids": ["f"], "operation": "modified"},
        "tags": ["x"], "priority": "high", "mine": 1,
    }  # fmt: skip
    assert (events[1].id, events[1].time) == ("m-1", "2026-01-01T00:00:00Z")
    assert said["broke"] == {"impact": {"severity": "low"}, "metadata": {"k": "v"}}
    assert said["test_pass"] == {"transition": {"from": "broken", "to": "working"}}
    assert said["extended"] == {"ttl_s": 600}
    assert said["tool.called"] == {"n": 1}
    assert said["completed"] == {"outcome": "well"}


def note_by(actor: str) -> Event:
    return Event.of("note.made", actor=actor)


def test_what_breaks_a_rule_is_refused_before_it_is_sent(log: RunnableLog) -> None:
    session = new_session()
    with log.session(session, "a") as work:
        refused(lambda: work.modified(priority=cast("Any", "urgent")), Refused, "FIELD_INVALID")
        refused(lambda: work.extended(1), Refused, "FIELD_INVALID")
        refused(lambda: work.broke(tags=["x"], data={"tags": ["y"]}), Refused, "KEY_DUPLICATE")
        refused(lambda: work.append(note_by("b")), Refused, "ACTOR_INVALID")
    assert types(log, session) == [("joined", "a"), ("left", "a")]


def test_an_error_in_the_block_is_not_hidden_and_the_agent_leaves(make_log: MakeLog) -> None:
    log = make_log()
    session = new_session()
    with pytest.raises(ZeroDivisionError), log.session(session, "a"):
        raise ZeroDivisionError
    assert types(log, session) == [("joined", "a"), ("left", "a")]
    with make_log().session(session, "b"):
        pass


def test_handing_off_leaves_and_passes_the_lease_in_one_step(make_log: MakeLog) -> None:
    log, other = make_log(), make_log()
    session = new_session()
    with log.session(session, "a") as work:
        work.handoff("b", data={"why": "night"})
        refused(lambda: make_log().session(session, "c").__enter__(), Conflict, "LEASE_HELD")
        refused(work.checkpoint, Conflict, "LEASE_LOST")
    with other.session(session, "b") as work:
        work.start()
    assert types(log, session) == [
        ("joined", "a"), ("handoff", "a"), ("left", "a"), ("joined", "b"), ("start", "b"), ("left", "b"),
    ]  # fmt: skip
    assert next(e for c in log.read(session) for e in c.events if e.type == "handoff").payload() == {
        "why": "night", "to": "b",
    }  # fmt: skip


def test_a_lost_lease_is_told_by_the_next_append_and_not_by_leaving(make_log: MakeLog) -> None:
    """The agent took it anew elsewhere: who held it under its name before says nothing more."""
    log, other = make_log(), make_log()
    session = new_session()
    with log.session(session, "a") as work, other.session(session, "a") as again:
        refused(work.checkpoint, Conflict, "LEASE_LOST")
        again.checkpoint()
        again.handoff("z")
    assert [type for type, _ in types(log, session)] == ["joined", "joined", "checkpoint", "handoff", "left"]


def test_several_agents_may_be_at_work_without_a_lease(make_log: MakeLog) -> None:
    log, other = make_log(), make_log()
    session = new_session()
    with log.session(session, "a", exclusive=False) as a, other.session(session, "b", exclusive=False) as b:
        a.start()
        b.modified()
        a.test_pass()
    assert sorted(types(log, session)) == sorted(
        [(t, "a") for t in ("joined", "start", "test_pass", "left")]
        + [(t, "b") for t in ("joined", "modified", "left")]
    )


def test_the_lease_is_kept_while_the_agent_is_idle(store: Store) -> None:
    """Longer than its time to live; somebody else who waits for it does not get it."""
    hold = store.keyspace.of("s").hold("s")

    def deadline() -> int:
        return int(cast("bytes", store.client.hget(hold, "deadline")))

    with store.open() as log, store.open() as other, log.session("s", "a", ttl_ms=3000) as work:
        taken = deadline()
        # Moved by more than its whole time: so it was renewed before it was over, again and again.
        while deadline() < taken + 3000:
            refused(lambda: other.lease("s", "b"), Conflict, "LEASE_HELD")
            time.sleep(0.05)
        work.checkpoint()


def test_a_session_is_created_once_with_what_it_is_about(log: RunnableLog) -> None:
    """Tags, priority, metadata and how long it may idle, in its first commit; said again it is the same commit."""
    session = new_session()
    work = log.session(session, "a", exclusive=False)
    about: dict[str, Any] = {"tags": ["x"], "priority": "high", "metadata": {"k": "v"}, "ttl_s": 600}
    receipt = work.create(**about, id="c-1")

    again = log.session(session, "a", exclusive=False).create(**about, id="c-1")
    refused(lambda: log.session(session, "b", exclusive=False).create(), Conflict, "SEQ_CONFLICT")

    assert (receipt.first_seq, receipt.last_seq, receipt.appended) == (1, 2, 2)
    assert (again.digest, again.duplicates) == (receipt.digest, 2)
    said = {event.type: event.payload() for commit in log.read(session) for event in commit.events}
    assert said == {
        "start": {"tags": ["x"], "priority": "high", "metadata": {"k": "v"}}, "extended": {"ttl_s": 600},
    }  # fmt: skip


def test_the_example_of_the_docs_does_what_it_says(log: RunnableLog) -> None:
    text = (ROOT / "docs/coordination.md").read_text("utf-8")
    session = new_session()
    exec(text.partition("```python\n")[2].partition("```")[0].replace("s-1", session), {"log": log})
    said = ["start", "extended", "joined", "modified", "handoff", "left"]
    assert types(log, session) == [(type, "agent-7") for type in said]


def test_a_hundred_agents_join_at_a_time_and_all_are_kept(store: Store) -> None:
    """From threads of one log; each seq once, and every agent a member."""
    with store.open() as log:
        log.append("s", note())
        with ThreadPoolExecutor(20) as pool:
            joins = [pool.submit(log.session("s", f"a-{n}", exclusive=False).join) for n in range(100)]
            seqs = sorted(join.result().last_seq for join in joins)
        joined = [actor for type, actor in types(log, "s") if type == "joined"]
    assert seqs == list(range(2, 102))
    assert sorted(joined) == sorted(f"a-{n}" for n in range(100))


def test_a_sign_of_life_costs_no_event_and_says_whether_the_agent_was_known(log: RunnableLog) -> None:
    session = new_session()
    refused(lambda: log.heartbeat(session, "a"), NotFound, "SESSION_UNKNOWN")
    log.append(session, note())
    assert [log.heartbeat(session, "a") for _ in range(50)] == [False] + [True] * 49
    assert log.heartbeat(session, "b") is False
    assert log.heartbeat(session, "a", silent_after_s=0) is True
    assert log.heartbeat(session, "a") is False
    assert types(log, session) == [("note.made", "agent-1")]


@pytest.mark.parametrize("silence", [-1, 86_401, float("nan"), float("inf")])
def test_silence_without_bounds_is_refused(log: RunnableLog, silence: float) -> None:
    session = new_session()
    log.append(session, note())
    refused(lambda: log.heartbeat(session, "a", silent_after_s=silence), Refused, "FIELD_INVALID")


@pytest.mark.parametrize("exclusive", [True, False])
def test_an_agent_at_work_gives_signs_of_life_until_it_leaves(store: Store, exclusive: bool) -> None:
    """With a lease and without one, however idle it is."""
    key = store.keyspace.of("s").beats

    def silent_at() -> float:
        return cast("Any", store.client).zscore(key, "s a") or 0.0

    with store.open() as log, log.session("s", "a", exclusive=exclusive, silent_after_s=0.3):
        wait_until(silent_at)
        first = silent_at()
        wait_until(lambda: silent_at() > first + 300)
    assert silent_at() == 0.0


def test_the_lease_of_a_killed_agent_runs_out(store: Store) -> None:
    code = (
        "import sys, time\nfrom domain import SessionLog\n"
        "log = SessionLog.open(sys.argv[1], environment=sys.argv[2], namespace=sys.argv[3])\n"
        "log.session('s', 'a', ttl_ms=500).__enter__()\nprint('in', flush=True)\ntime.sleep(600)"
    )
    command = [sys.executable, "-c", code, store.url, ENVIRONMENT, store.namespace]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"in\n"
        agent.kill()
    with store.open() as log:
        while True:
            try:
                with log.session("s", "b") as work:
                    work.start()
                break
            except Conflict:
                time.sleep(0.05)
        assert types(log, "s")[:2] == [("joined", "a"), ("joined", "b")]


def test_the_trace_that_a_producer_is_in_travels_with_its_commits(store: Store) -> None:
    """One that is given wins; without a span nothing is written. Blocking and asyncio alike."""
    given = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"

    async def append_async() -> None:
        async with await store.open_async() as log:
            await log.append("s", note())

    with store.open() as log:
        log.append("s", note())
        with TracerProvider().get_tracer("test").start_as_current_span("work") as span:
            context = span.get_span_context()
            log.append("s", note())
            log.append("s", note("own-id"), dedupe=True)
            log.append_many([Append("s", (note(),))])
            asyncio.run(append_async())
            log.append("s", note(), traceparent=given)
        log.append("s", note())
        found = [commit.traceparent for commit in log.read("s")]
    current = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    assert found == [None, current, current, current, current, given, None]


FORKING = """
import os, sys
from domain import Event, SessionLog

log = SessionLog.open(sys.argv[1], environment=sys.argv[2], namespace=sys.argv[3])

def append(who):
    for number in range(40):
        log.append("s-" + who, Event.of("note.made", actor=who, id=f"{who}:{number}"))

append("before")
children = []
for n in range(4):
    child = os.fork()
    if child == 0:
        append(f"child{n}")
        os._exit(0)
    children.append(child)
append("parent")
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


def test_a_log_works_on_in_forked_children(store: Store) -> None:
    """As servers fork their workers after they opened it: no reply goes astray, nothing is lost or doubled."""
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKING, store.url, ENVIRONMENT, store.namespace],
        cwd=ROOT, check=True, timeout=60,
    )  # fmt: skip
    with store.open() as log:
        for who in ("before", "parent", *(f"child{n}" for n in range(4))):
            events = [event.id for commit in log.read(f"s-{who}") for event in commit.events]
            assert events == [f"{who}:{number}" for number in range(40)]
