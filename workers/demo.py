"""The demo: the main job once, end to end, on a real server with real worker processes, and proofs of what it claims.

A fleet of producers appends (or a file is imported) while two worker processes project; one worker is killed in the
middle. Then stored state is damaged behind Muster's back: a view altered, a view deleted, a checkpoint deleted, a
commit deleted from a log. The validator must find exactly that, and recovery must repair all but the log, which it
quarantines. Every claim is checked against the producers' receipts and the bytes before the damage, and each check is
a row of the closing table.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from threading import Event as Flag
from typing import Any, Final, TypeAlias

from msgspec import Struct

from domain.errors import Damaged, DeadlineExceeded
from domain.events import Event
from domain.log import Receipt, SessionLog
from projections import session_view
from projections.drift import Validator
from projections.findings import Finding
from projections.lag import lag
from projections.store import ProjectionStore
from workers.importing import Importer, Report
from workers.leasing import living_workers
from workers.recovery import Recovery, plan_of

SESSIONS: Final = 300
PRODUCERS: Final = 6
AGENTS: Final = 24
SEED: Final = 7
WORKERS: Final = 2
#: How long the demo waits for anything before it calls that a failure, in seconds.
PATIENCE_S: Final = 60.0

Lines: TypeAlias = Callable[[], Iterator[tuple[int, bytes]]]


class Proof(Struct, frozen=True):
    """A row of the closing table: what was claimed, what was measured, and whether it held."""

    claim: str
    measured: str
    held: bool


class Damage(Struct, frozen=True):
    """What was damaged behind Muster's back: the finding that must come of it, and the bytes that must come back."""

    what: str
    kind: str
    session: str
    first_bad_seq: int
    before: bytes | None = None


class Demo:
    """One run on a store that workers project. `say` gets a line of progress now and then."""

    def __init__(self, log: SessionLog, *, say: Callable[[str], None]) -> None:
        self.proofs: list[Proof] = []
        self._log = log
        self._store = ProjectionStore(log.client, log.keyspace)
        self._say = say
        self._random = random.Random(SEED)

    def run(self, lines: Lines | None = None) -> bool:
        """Runs everything; True if every law held. `lines` gives the lines of a log to use instead of the fleet.

        Raises DeadlineExceeded (BEHIND) if something that must happen does not.
        """
        self._wait("the workers share the partitions", lambda: len(self._workers()) == WORKERS)
        if lines is None:
            self._fleet()
        else:
            self._import(lines)
        self._caught_up()
        self._clean()
        damages = self._damage()
        if damages:
            found = self._found(damages)
            self._recovered(damages, found)
        return all(proof.held for proof in self.proofs)

    # -- appending ---------------------------------------------------------------------------------------------------

    def _fleet(self) -> None:
        scripts = {f"session-{number:03}": script(self._random) for number in range(SESSIONS)}
        total = sum(len(commit) for commits in scripts.values() for commit in commits)
        self._say(f"{PRODUCERS} producers append {total} events of {AGENTS} agents to {SESSIONS} sessions")
        commits_in_all = sum(map(len, scripts.values()))
        receipts: list[Receipt] = []
        half = Flag()

        def produce(sessions: list[str]) -> None:
            pending = {session: iter(scripts[session]) for session in sessions}
            while pending:
                for session, commits in list(pending.items()):
                    commit = next(commits, None)
                    if commit is None:
                        del pending[session]
                        continue
                    receipts.append(self._log.append(session, commit))
                    if len(receipts) * 2 >= commits_in_all:
                        half.set()

        began = time.monotonic()
        with ThreadPoolExecutor(PRODUCERS) as pool:
            names = sorted(scripts)
            running = [pool.submit(produce, names[number::PRODUCERS]) for number in range(PRODUCERS)]
            while not half.wait(0.5) and not all(producer.done() for producer in running):
                self._say(f"  {lag(self._store).applied} of {total} events projected")
            self._kill_a_worker()
            for producer in running:
                producer.result()
        seconds = time.monotonic() - began
        self._prove("appended", f"{total} events in {SESSIONS} sessions, {total / seconds:,.0f}/s", True)
        self._acknowledged(total, receipts)

    def _acknowledged(self, total: int, receipts: list[Receipt]) -> None:
        """Every receipt must be found in the log: at its seq, with its digest."""
        digests = {
            session: {commit.last_seq: commit.digest for commit in self._log.read(session)}
            for session in {receipt.session for receipt in receipts}
        }
        acknowledged = sum(receipt.appended for receipt in receipts)
        lost = sum(
            receipt.appended for receipt in receipts if digests[receipt.session].get(receipt.last_seq) != receipt.digest
        )
        self._prove("acknowledged", f"{acknowledged} events in {len(receipts)} receipts", acknowledged == total)
        self._prove("lost", f"{lost} of the acknowledged events", lost == 0)

    def _import(self, lines: Lines) -> None:
        total = sum(1 for _ in lines())
        self._say(f"importing {total} lines")
        importer = Importer(self._log, reject=lambda _: None, progress=lambda _: None)
        source, share = lines(), max(32, total // 64)
        report, killed, began = Report(), False, time.monotonic()
        while part := list(islice(source, share)):
            report = importer.run(part)
            if not killed and report.lines * 2 >= total:
                killed = True
                self._kill_a_worker()
            elif report.lines // share % 8 == 0:
                self._say(f"  {report.lines} of {total} lines, {lag(self._store).applied} events projected")
        seconds = time.monotonic() - began
        sessions = list(self._log.sessions())
        kept = sum(head.seq for head in self._log.heads(sessions) if head is not None)
        accounted = report.appended + report.duplicates + report.refused == total
        self._prove(
            "appended",
            f"{report.appended} events in {len(sessions)} sessions, {report.lines / seconds:,.0f} lines/s; "
            f"{report.duplicates} lines were duplicates, {report.refused} refused",
            accounted,
        )
        self._prove("acknowledged", f"{report.appended} events", True)
        self._prove("lost", f"{report.appended - kept} of the acknowledged events", report.appended == kept)

    def _kill_a_worker(self) -> None:
        before = self._workers()
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        self._say(f"  worker {victim} was killed with -9")
        self._wait(
            "a killed worker is replaced",
            lambda: victim not in self._workers() and len(self._workers()) == WORKERS,
        )
        seconds = time.monotonic() - began
        (replacement,) = self._workers() - before
        self._prove("a worker killed with -9 is replaced", f"{victim} by {replacement} after {seconds:.1f} s", True)

    # -- projecting --------------------------------------------------------------------------------------------------

    def _workers(self) -> set[int]:
        """The pids of the living workers that hold partitions."""
        return {int(w["pid"]) for w in living_workers(self._log.client, self._log.keyspace) if w["partitions"]}

    def _caught_up(self) -> None:
        self._say("waiting until the views have caught up")
        began = time.monotonic()
        self._wait("the views catch up", lambda: lag(self._store).events == 0)
        seconds, found = time.monotonic() - began, lag(self._store)
        total = sum(part.total for part in found.partitions)
        self._prove("projected", f"{found.applied} events, {seconds:.1f} s after the last one", found.applied == total)

    def _clean(self) -> None:
        self._say("folding every log again and comparing")
        began = time.monotonic()
        validator = Validator(self._store, self._log)
        findings = list(validator.everything())
        rate = validator.read.events / (time.monotonic() - began)
        measured = f"{validator.read.events} events folded again, {rate:,.0f}/s: {len(findings)} findings"
        self._prove("views, checkpoints, totals equal the log", measured, not findings)

    # -- damage and recovery -----------------------------------------------------------------------------------------

    def _damage(self) -> list[Damage]:
        """Damages what a few sessions have stored, each in its own way; nothing where there is no session."""
        client: Any = self._log.client
        sessions = list(self._log.sessions())
        heads = dict(zip(sessions, self._log.heads(sessions), strict=True))
        seqs = {session: head.seq for session, head in heads.items() if head is not None}
        remaining = sorted(seqs, key=lambda session: (-seqs[session], session))
        damages: list[Damage] = []
        if not remaining:
            return damages

        session = remaining.pop(0)
        commits = list(self._log.read(session))
        commit = commits[len(commits) // 2]
        count = commit.last_seq - commit.first_seq + 1
        client.xdel(self._log.keyspace.of(session).log(session), f"{commit.last_seq}-{count}")
        damages.append(Damage("commit deleted", "log", session, commit.first_seq))

        with_checkpoints = [session for session in remaining if self._store.checkpoints(session)]
        for session in with_checkpoints[:1]:
            remaining.remove(session)
            seq, before = max(self._store.checkpoints(session).items())
            client.hdel(self._log.keyspace.of(session).checkpoints(session), str(seq))
            damages.append(Damage("checkpoint deleted", "checkpoint", session, seq, before))

        self._random.shuffle(remaining)
        for session, what in zip(remaining, ("view altered", "view deleted"), strict=False):
            key = self._log.keyspace.of(session).session_view(session)
            before = client.get(key)
            if what == "view altered":
                client.setrange(key, len(before) // 2, bytes([before[len(before) // 2] ^ 1]))
            else:
                client.delete(key)
            damages.append(Damage(what, "view", session, seqs[session], before))
        for damage in damages:
            self._say(f"  behind Muster's back: {damage.what} of {damage.session}")
        return damages

    def _found(self, damages: list[Damage]) -> list[Finding]:
        findings = list(Validator(self._store, self._log).everything())
        found = sorted((f.kind, f.session or "", f.first_bad_seq or 0) for f in findings)
        planted = sorted((d.kind, d.session, d.first_bad_seq) for d in damages)
        for finding in findings:
            self._say(f"  found: {finding.code} of {finding.session}, first wrong seq {finding.first_bad_seq}")
        measured = f"{len(planted)} planted, {len(findings)} found, each with its first wrong seq"
        self._prove("drift is found, and nothing else", measured, found == planted)
        return findings

    def _recovered(self, damages: list[Damage], findings: list[Finding]) -> None:
        recovery = Recovery(self._store, self._log, who="recovery:demo", progress=lambda _: None)
        left = recovery.apply(plan_of(self._log.identity.store, findings))
        repairable = [damage for damage in damages if damage.kind != "log"]
        equal = sum(self._stored(damage) == damage.before for damage in repairable)
        self._prove("drift is repaired", f"{equal} of {len(repairable)} equal to the byte", equal == len(repairable))

        (damage,) = (damage for damage in damages if damage.kind == "log")
        (view,) = self._store.views([damage.session])
        prefix = session_view.decode(view).seq if view is not None else -1
        refused = False
        try:
            self._log.append(damage.session, Event.of("start", actor="demo"))
        except Damaged as error:
            refused = error.code == "QUARANTINED"
        self._prove(
            "a damaged log is quarantined",
            f"{damage.session} is served to seq {prefix}, appends to it are refused",
            refused and prefix == damage.first_bad_seq - 1 and [f.session for f in left] == [damage.session],
        )
        self._all_others_go_on(damage.session)

    def _all_others_go_on(self, quarantined: str) -> None:
        """Every other session takes an event, the workers project it, and everything is still true."""
        others = [session for session in self._log.sessions() if session != quarantined]
        for session in others:
            self._log.append(session, Event.of("start", actor="demo"))
        self._wait("the views catch up", lambda: lag(self._store).events == 0)
        findings = list(Validator(self._store, self._log).everything())
        left = [finding for finding in findings if finding.session != quarantined]
        measured = f"{len(others)} sessions took one more event; {len(left)} findings in them"
        self._prove("all other sessions go on", measured, not left)

    def _stored(self, damage: Damage) -> bytes | None:
        if damage.kind == "checkpoint":
            return self._store.checkpoints(damage.session).get(damage.first_bad_seq)
        return self._store.views([damage.session])[0]

    # -- waiting and proving -----------------------------------------------------------------------------------------

    def _prove(self, claim: str, measured: str, held: bool) -> None:
        self.proofs.append(Proof(claim, measured, held))

    def _wait(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not is_so():
            if time.monotonic() > deadline:
                raise DeadlineExceeded("BEHIND", f"within {PATIENCE_S:g} s it did not happen that {what}")
            time.sleep(0.02)


def script(chance: random.Random) -> list[list[Event]]:
    """What a session's agents will do, as commits: work, break, repair, hand over, and complete in the end."""
    team = chance.sample(range(1, AGENTS + 1), chance.randint(1, 4))
    commits: list[list[Event]] = []
    number = 0

    def event(type: str, actor: int, **data: object) -> Event:
        nonlocal number
        number += 1
        return Event.of(type, actor=f"agent-{actor:02}", data=data, id=f"{number}")

    holder = team[0]
    commits.append([event("start", holder, metadata={"task": chance.choice(("fix", "feature", "refactor"))})])
    for _ in range(chance.randint(4, 24)):
        commit = []
        for _ in range(chance.randint(1, 6)):
            entity = f"module_{chance.randint(1, 40)}.py"
            change = {"element_type": "function", "entity_ids": [entity], "operation": "modified"}
            match chance.random():
                case dice if dice < 0.45:
                    commit.append(event("tool.called", holder, tool="edit", path=entity))
                case dice if dice < 0.75:
                    commit.append(event("modified", holder, change=change))
                case dice if dice < 0.85:
                    commit.append(event("broke", holder, impact={"severity": "high", "tests_failed": [entity]}))
                case dice if dice < 0.95:
                    commit.append(event("test_pass", holder))
                case _:
                    successor = chance.choice(team)
                    commit.append(event("handoff", holder, to=f"agent-{successor:02}"))
                    holder = successor
        commits.append(commit)
    if chance.random() < 0.7:
        commits.append([event("completed", holder, outcome="merged")])
    return commits
