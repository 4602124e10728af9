"""The users of compose/users.acl, on real servers with their own ACL file: each can do its work, and nothing else.

That nothing is missing shows in the server's own log of denials, which stays empty while everybody works.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
import redis

from domain import Damaged, Event, Misconfigured, MusterError, SessionLog
from domain.log import connect
from domain.log.connection import connection_error
from domain.log.keys import Keyspace
from domain.log.subscribing.durable import DurableSubscriptions
from projections.store import ProjectionStore
from projections.trim import trim_feeds
from tests.conftest import lasting
from tests.domain.log.logs import note, refused
from tests.domain.log.subscribing.deliveries import rest, some
from tests.own_server import OwnServer
from tests.projections.examples import EventsByType, spec
from tests.unhurried import unhurried
from tests.waiting import wait_until
from workers.child_process import start_child
from workers.cli import main
from workers.halting import HALTED_EXIT
from workers.settings import Settings, load

ROOT: Final = Path(__file__).parents[2]
ROLES: Final = (
    *(
        "deployer",
        "producer",
        "subscriber",
        "worker",
        "jobs",
        "archiver",
        "operator",
        "repairer",
        "restorer",
        "forker",
        "migrator",
        "reader",
        "monitor",
    ),
)
ENVIRONMENT, NAMESPACE = "prod", "main"


def password(user: str) -> str:
    return f"the-password-of-{user}"


class Ran(NamedTuple):
    """How a command of the CLI ended."""

    code: int
    rows: list[dict[str, Any]]
    err: str


class Guarding:
    """A server whose users are those of compose/users.acl, narrowed to one store, and one who may do everything."""

    def __init__(self, directory: Path, kind: str) -> None:
        secrets = directory / "secrets"
        secrets.mkdir()
        for role in ROLES:
            (secrets / role).write_text(password(role) + "\n")
        self.rules = rendered(secrets, ENVIRONMENT, NAMESPACE)
        (directory / "users.acl").write_text(f"{self.rules}user root on >{password('root')} ~* &* +@all\n")
        self.server = OwnServer(directory / "server", "--aclfile", directory / "users.acl", kind=kind)
        self.server.start()
        self.queues = OwnServer(directory / "queues", kind=kind)  # of jobs, which are no part of the store
        self.queues.start()

    def stop(self) -> None:
        self.server.stop()
        self.queues.stop()


class Guarded:
    """The server as each test finds it: empty, with the users as they stand in its file."""

    def __init__(self, guarding: Guarding, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rules, self.server, self.queues = guarding.rules, guarding.server, guarding.queues
        self.keyspace = Keyspace(ENVIRONMENT, NAMESPACE, 4)
        #: More settings.
        self.more: dict[str, str] = {}
        self.root: Any = self.client("root")
        self._monkeypatch = monkeypatch
        for line in self.rules.splitlines():
            self.root.execute_command("ACL", "SETUSER", *split(line)[1:])
        self.root.flushall()
        self.root.function_flush()
        self.root.acl_log_reset()
        with self.queues.client() as queues:
            queues.flushall()

    def settings(self, user: str) -> Settings:
        """The settings of a process that runs as this user."""
        environ = {
            "MUSTER_ENVIRONMENT": ENVIRONMENT,
            "MUSTER_NAMESPACE": NAMESPACE,
            "MUSTER_REDIS__URL": self.server.url,
            "MUSTER_REDIS__USERNAME": user,
            "MUSTER_REDIS__PASSWORD": password(user),
            "MUSTER_REDIS__RETRY_FOR_S": "0",
            "MUSTER_WORKER__LEASE_TTL_MS": "20000",
            "MUSTER_JOBS__URL": self.queues.url,
            **unhurried(),
            "MUSTER_PROJECTIONS": spec(EventsByType),
            **self.more,
        }
        return load(environ)

    def client(self, user: str) -> Any:
        return connect(self.settings(user).connecting)

    def open(self, user: str) -> SessionLog:
        settings = self.settings(user)
        archive = settings.archive.opened()
        return SessionLog.open(settings.connecting, environment=ENVIRONMENT, namespace=NAMESPACE, archive=archive)

    def run(self, user: str, *arguments: str) -> Ran:
        """Runs a command of the CLI as this user, in this process."""
        for name, value in self.settings(user).environ().items():
            self._monkeypatch.setenv(name, value)
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([*arguments, "-o", "jsonl"])
        return Ran(code, [json.loads(line) for line in out.getvalue().splitlines()], err.getvalue())

    def denials(self) -> list[tuple[str, str, str]]:
        """Who was denied what, and where, since this was last asked."""
        found = [(entry["username"], entry["object"], entry["context"]) for entry in self.root.acl_log()]
        self.root.acl_log_reset()
        return found

    def close(self) -> None:
        self.root.close()


def rendered(secrets: Path, *store: str) -> str:
    """The ACL file that compose/acl makes."""
    made = subprocess.run([ROOT / "compose/acl", secrets, *store], check=True, capture_output=True, text=True)
    assert made.stderr == ""
    return made.stdout


@pytest.fixture(scope="module", params=["redis7", "valkey"])
def guarding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarding]:
    with lasting():
        guarding = Guarding(tmp_path_factory.mktemp("guarding"), request.param)
    yield guarding
    guarding.stop()


@pytest.fixture
def guarded(guarding: Guarding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guarded]:
    monkeypatch.chdir(tmp_path)
    guarded = Guarded(guarding, monkeypatch)
    yield guarded
    guarded.close()


@pytest.fixture
def filled(guarded: Guarded) -> Guarded:
    """With a store that a deployer made, and sessions that a producer began."""
    assert guarded.run("deployer", "init", "--partitions", "4").code == 0
    with guarded.open("producer") as log:
        for number in range(12):
            log.append(f"s-{number}", [Event.of("start", actor="a"), note("1")])
    return guarded


def test_every_role_can_do_its_work(guarded: Guarded, tmp_path: Path) -> None:
    """From an empty server to a repaired store, each step by its own user, and nobody is denied anything."""
    # a deployer makes the store, and does so again with the next release
    assert guarded.run("deployer", "init", "--partitions", "4").rows[0]["created"] is True
    assert guarded.run("deployer", "init").rows[0]["created"] is False

    # a producer appends and reads, with and without a lease, by library and by command
    with guarded.open("producer") as log:
        log.append("s-0", Event.of("start", actor="a"), expected="new")
        log.append("s-0", note("1"), dedupe=True)
        log.set_policy("s-1", "strict")
        with log.lease("s-2", "a") as lease:
            lease.append(Event.of("start", actor="a"))
            lease.renew()
        with log.session("s-0", "gone", exclusive=False, silent_after_s=60):
            assert log.heartbeat("s-0", "lost", silent_after_s=0.001) is False
            log.session("s-0", "lost", exclusive=False).join()
        assert [commit.last_seq for commit in log.read("s-0")] == [1, 2, 3, 4, 5]
        assert list(log.sessions()) == ["s-0", "s-2"]
    with guarded.client("producer") as client:  # what it asks for the durability of its receipts
        assert client.wait(0, 1) == 0
        assert client.config_get("appendonly", "appendfsync") == {"appendonly": "no", "appendfsync": "everysec"}
    lines = tmp_path / "lines.ndjson"
    lines.write_text("".join(f'{{"session":"s-{n}","type":"start","actor":"b","id":"b-{n}"}}\n' for n in range(3, 20)))
    assert guarded.run("producer", "event", "import", str(lines)).code == 0
    assert guarded.run("producer", "event", "append", "s-3", "tool.called", "--actor", "b").code == 0
    assert len(guarded.run("producer", "event", "tail", "s-3").rows) == 2

    # a subscriber is told of it, under a name and without one
    with guarded.open("subscriber") as log:
        with log.subscribe(after="beginning") as everything, log.subscribe("s-0", after=0) as one:
            assert one.get(timeout_s=30) is not None
            assert everything.get(timeout_s=30) is not None
            guarded.root.xtrim(guarded.keyspace.of("s-0").feed, maxlen=0)
            rest(everything)
        with log.subscribe_as("audit", after="beginning") as member:
            some(member, 2)
            member.ack()
    assert guarded.run("monitor", "subscription", "ls").rows[0]["behind"] > 0
    assert guarded.run("monitor", "subscription", "show", "audit").code == 0

    # a worker projects it, while a monitor watches
    environ = {"PATH": "/usr/bin:/bin", **guarded.settings("worker").environ(), "MUSTER_WORKER__ABSENCE_GRACE_S": "0"}
    worker = start_child([sys.executable, "-m", "workers.process"], env=environ, cwd=ROOT)
    try:
        caught_up = guarded.run("monitor", "projection", "lag", "--wait", "--timeout", "60")
        assert caught_up.code == 0, (caught_up, guarded.denials())
        assert [row["pid"] for row in guarded.run("monitor", "worker", "ls").rows] == [worker.pid]
        seen = {row["component"]: row["status"] for row in guarded.run("monitor", "health").rows}
        assert dict.fromkeys(seen, "healthy") | {"verification": seen["verification"]} == seen
        # it states that an agent is gone
        beats = guarded.keyspace.of("s-0").beats
        wait_until(lambda: not guarded.root.exists(beats), message="the silent agent is reported")
        assert guarded.run("reader", "event", "tail", "s-0").rows[-1]["type"] == "muster.agent_gone"
        # and a projection of the user's own, until it is published
        wait_until(
            lambda: [row["published"] for row in guarded.run("monitor", "projection", "ls").rows] == [True, True],
            message="the projection is published",
        )
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    assert guarded.run("monitor", "worker", "ls").rows == []

    # an operator looks at everything at once, and makes an archive of it for whoever helps
    assert guarded.run("operator", "top").rows[0]["unseen"] == {}
    archive = tmp_path / "diagnostics.tar.gz"
    assert guarded.run("operator", "diagnostics", "--to", str(archive)).rows[0]["missing"] == []

    # an operator has the store take no appends for a while
    assert guarded.run("operator", "read-only", "on", "--why", "a look").code == 0
    assert guarded.run("monitor", "read-only", "show").rows[0]["read_only"] is True
    assert guarded.run("producer", "event", "append", "s-0", "joined", "--actor", "c").code == 5
    assert guarded.run("operator", "read-only", "off").code == 0

    # an operator stops the fleet, and takes that back
    worker = start_child([sys.executable, "-m", "workers.process"], env=environ, cwd=ROOT)
    wait_until(lambda: guarded.run("monitor", "worker", "ls").rows, timeout_s=60, message="a worker lives")
    stopped = guarded.run("operator", "stop", "--why", "a new release")
    assert (stopped.code, stopped.rows[0]["stopped"], worker.wait(60)) == (0, 1, HALTED_EXIT), stopped
    seen = {row["component"]: row["code"] for row in guarded.run("monitor", "health").rows}
    assert seen["workers"] == "FLEET_STOPPED"
    assert guarded.run("operator", "stop", "--cancel").code == 0
    with guarded.client("worker") as client:  # what it does every few seconds
        trim_feeds(ProjectionStore(client, guarded.keyspace), range(4), keep_s=-1)
    assert sum(guarded.root.xlen(keys.feed) for keys in guarded.keyspace.partitions) <= 4

    # a reader sees what came of it, and verifies
    assert len(guarded.run("reader", "session", "ls", "--all").rows) == 19
    assert guarded.run("reader", "session", "show", "s-3", "--at", "1").rows[0]["seq"] == 1
    agent, *others = (row["agent"] for row in guarded.run("reader", "agent", "ls").rows)
    assert len(others) == 4
    working = guarded.run(
        "reader", "session", "ls", "--state", "working", "--agent", agent, "--since", "1d", "--all"
    ).rows
    assert working
    assert guarded.run("reader", "session", "ls", "--state", "working", "--parked", "--count").code == 0
    context = f"session context {working[0]['session']}"
    for command in (
        *("session transitions", context, f"agent events {agent}", "entity ls", "stats --agents", "stats --by day"),
    ):
        assert guarded.run("reader", *command.split()).code == 0
    assert guarded.run("reader", "projection", "verify", "--all").code == 0
    assert guarded.run("reader", "parked", "ls") == Ran(0, [], "")
    assert guarded.run("reader", "projection", "show", "by_type", "start").rows[0]["state"] >= 18
    assert guarded.run("reader", "projection", "rebuild", "by_type", "--rehearse").code == 0

    # an operator forgets a subscription that nobody needs any more
    assert guarded.run("operator", "subscription", "drop", "audit").code == 0

    # an operator puts it down, takes it up, and builds it again
    for command in ("pause", "resume", "rebuild"):
        assert guarded.run("operator", "projection", command, "by_type").code == 0

    # what was damaged since, jobs and an operator repair
    for role, session in (("jobs", "s-3"), ("operator", "s-4")):
        damage(guarded, session)
        assert guarded.run("reader", "projection", "verify", "--all").code == 1
        assert guarded.run(role, "recover", "apply").code == 7  # one log is damaged, and quarantined
        assert guarded.run(role, "projection", "rebuild").code == 7
        assert guarded.run(role, "parked", "retry", "--all").code == 7

    # a skip that nobody is known to have written is left alone by jobs, and taken away by an operator
    skips = guarded.keyspace.of("s-5").skips
    guarded.root.hset(skips, "s-5", '[{"from_seq":1,"to_seq":1,"digest":"d","who":"w","why":"y","at":1}]')
    for role, left in (("jobs", 1), ("operator", 0)):
        assert guarded.run(role, "recover", "apply").code == 7
        assert guarded.root.hget(skips, "s-5").count(b"who") == left
        found = [row["code"] for row in guarded.run("reader", "projection", "verify", "--session", "s-5").rows]
        assert found == ["SKIP_FORGED"] * left

    # a commit that nobody can read is discarded by an operator
    with guarded.open("root") as log:
        poison(log, "poisoned")
        assert guarded.run("jobs", "projection", "rebuild").code == 7
    assert guarded.run("operator", "parked", "discard", "poisoned", "--why", "a bug").code == 0
    assert guarded.run("reader", "session", "show", "poisoned").rows[0]["seq"] == 1

    # a session is forked by a producer's program, or by a forker's command, which is audited
    with guarded.open("producer") as log:
        assert log.fork("s-5", 1, "of-a-producer").is_new
    assert guarded.run("forker", "session", "fork", "poisoned", "--at", "1").rows[0]["created"] is True
    assert guarded.run("reader", "session", "diff", "of-a-producer", "--parent").code == 0

    # jobs are asked for by an operator, done by whoever takes jobs, and watched by a monitor
    task = guarded.run("operator", "job", "run", "verify").rows[0]["task"]
    environ = {"PATH": "/usr/bin:/bin", **guarded.settings("jobs").environ()}
    worker = start_child([sys.executable, "-m", "workers.process"], env=environ, cwd=ROOT)
    try:
        assert guarded.run("monitor", "job", "wait", task, "--timeout", "60").code == 1
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    assert guarded.run("reader", "job", "ls").rows[0]["result"]["codes"]

    # a damaged log is completed from a backup by a repairer, whom nobody else can stand in for
    guarded.run("reader", "backup", "create", str(tmp_path / "before"))
    keys = guarded.keyspace.of("s-5")
    guarded.root.delete(keys.log("s-5"), keys.session_view("s-5"))
    completing = ("recover", "apply", "--from", str(tmp_path / "before"))
    assert guarded.run("operator", *completing).code == 3
    guarded.denials()
    completed = guarded.run("repairer", *completing).rows[0]
    assert [graft["session"] for graft in completed["grafted"]] == ["s-5"]
    assert "s-5" not in {finding["session"] for finding in completed["left"]}

    # the end of one is given up by a repairer too
    name, *_ = (row["session"] for row in guarded.run("reader", "session", "ls", "--quarantined").rows)
    denied = guarded.run("operator", "recover", "accept", name, "--why", "the disk of Monday")
    assert (denied.code, denied.err[:20]) == (3, "error: ACCESS_DENIED")
    guarded.denials()
    assert guarded.run("repairer", "recover", "accept", name, "--why", "the disk of Monday").code == 0
    assert guarded.run("reader", "event", "tail", name).rows[-1]["type"] == "muster.log_repaired"

    # what is due is verified by workers that take jobs, and a monitor reads how far they are
    environ["MUSTER_JOBS__VERIFY_EVERY_S"] = "1"
    worker = start_child([sys.executable, "-m", "workers.process"], env=environ, cwd=ROOT)
    try:
        wait_until(lambda: unread(guarded) == 0, timeout_s=60, message="everything was read once")
    finally:
        worker.terminate()
        assert worker.wait(60) == 0

    # a server that lost commits is reported by the producer that has receipts for them, and accepted by an operator
    with guarded.open("producer") as log:
        log.append("lost", note("1"))
        keys = guarded.keyspace.of("lost")
        guarded.root.delete(keys.log("lost"), keys.head("lost"))
        guarded.root.zrem(keys.sessions, "lost")
        refused(lambda: log.append("lost", note("2")), Damaged, "TAIL_LOST")
    assert guarded.run("operator", "epoch", "show").code == 1
    assert guarded.run("operator", "epoch", "accept").code == 0
    assert guarded.run("operator", "epoch", "show").code == 0

    # what a reader backed up is restored, after all is lost, by a restorer
    with guarded.open("subscriber") as log, log.subscribe_as("audit", after="beginning") as member:
        assert member.get(timeout_s=30) is not None
        member.ack()
    backed_up = guarded.run("reader", "backup", "create", str(tmp_path / "backup")).rows[0]
    guarded.root.flushall()
    assert (
        guarded.run("restorer", "backup", "restore", str(tmp_path / "backup")).rows[0]["events"] == backed_up["events"]
    )
    assert len(guarded.run("reader", "session", "ls", "--all").rows) == backed_up["sessions"]

    assert guarded.denials() == []


def unread(guarded: Guarded) -> int:
    """How many sessions scrubbing never read, as a monitor sees it."""
    told: int = guarded.run("monitor", "projection", "lag").rows[0]["verification"]["unread"]
    return told


def damage(guarded: Guarded, session: str) -> None:
    """A view, checkpoints, an agent's totals, a head, a total and a log are not what they should be."""
    keys = guarded.keyspace.of(session)
    guarded.root.set(keys.session_view(session), "nonsense")
    guarded.root.set(keys.checkpoints("s-6"), "nonsense")
    guarded.root.delete(keys.agent_view("b"))
    guarded.root.delete(keys.head(session))
    guarded.root.hset(keys.meta, "total", "0")
    other = f"{session.replace('s-', 's-1')}"
    guarded.root.xtrim(guarded.keyspace.of(other).log(other), maxlen=0)


def poison(log: SessionLog, session: str) -> None:
    """Appends a commit whose body nobody can read, as a producer without our library could."""
    keys, identity = log.keyspace.of(session), log.identity
    names = [keys.meta, keys.sessions, keys.feed, keys.log(session), keys.head(session), keys.hold(session)]
    arguments = [identity.store, str(identity.epoch), session, "any", "", "", "", "", "", ".", b"\xc1", ""]
    client: Any = log.client
    client.fcall("muster_append_1", len(names), *names, *arguments)


#: What no user may do, whoever it is.
NOBODY: Final = (
    "FLUSHALL",
    "FLUSHDB",
    "KEYS *",
    "CONFIG SET maxmemory 1",
    "CONFIG REWRITE",
    "SHUTDOWN NOSAVE",
    "SAVE",
    "BGREWRITEAOF",
    "REPLICAOF NO ONE",
    "EVAL return 0",
    "SCRIPT FLUSH",
    "FUNCTION DELETE muster_1",
    "FUNCTION FLUSH",
    "ACL LIST",
    "ACL SETUSER me on nopass",
    "CLIENT KILL TYPE normal",
    "CLIENT PAUSE 1",
    "MONITOR",
    "MIGRATE h 1 k 0 1",
    "SWAPDB 0 1",
    "DEL {log}",
    "XDEL {log} 1-1",
    "XSETID {log} 9-1",
    "EXPIRE {log} 1",
    "RENAME {log} {head}",
    "DUMP {log}",
    "DEL {head}",
    "DEL {sessions}",
    "ZREM {sessions} s-0",
    "DEL {meta}",
    "HDEL {meta} store",
    "DEL {feed}",
    "SET anything 1",
    "GET anything",
    "SET {other} 1",
    "HGETALL {other}",
    "PUBLISH news 1",
)
#: What nobody may do but whoever archives.
NOT_BUT_ARCHIVING: Final = ("UNLINK {log}", "XTRIM {log} MAXLEN 0")
_WRITES: Final = (
    "XADD {log} 99-1 b x",
    "SET {head} x",
    "ZADD {sessions} 0 x",
    "HSET {meta} total 9",
    "XADD {feed} 99-0 c x",
    "HSET {hold} code x",
    "SET {view} x",
    "DEL {view}",
    "HSET {checkpoints} 1 x",
    "HSET {cursor} position 1",
    "HSET {owner} token x",
    "HSET {lost} x y",
    "HSET {skips} s-0 []",
    "ZADD {workers} 0 x",
    "HSET {halt} who x",
    "FUNCTION LOAD x",
)
#: What one user may not do, beside that.
NOT: Final = {
    "deployer": (
        *(write for write in _WRITES if "{meta}" not in write and "FUNCTION" not in write),
        "GET {view}",
        "XRANGE {log} - +",
    ),
    "producer": (
        *(write for write in _WRITES if "{view}" in write),
        "FUNCTION LOAD x",
        "GET {view}",
        "HGETALL {owner}",
        "HSET {skips} s-0 []",
    ),
    "subscriber": (*_WRITES, "GET {view}", "HGETALL {owner}", "HGETALL {cursor}"),
    "worker": (
        "ZADD {sessions} 0 x",
        "XTRIM {log} MINID 99",
        "HSET {hold} code x",
        "HSET {skips} s-0 []",
        "FUNCTION LOAD x",
        "CONFIG GET save",
        "HSET {halt} who x",
        "DEL {halt}",
        "SHUTDOWN SAVE",
    ),
    "jobs": (
        "HSET {skips} s-0 []",
        "FUNCTION LOAD x",
        "FUNCTION KILL",
        "CONFIG GET save",
    ),
    "archiver": (
        "HSET {skips} s-0 []",
        "FUNCTION LOAD x",
        "FUNCTION KILL",
        "CONFIG GET save",
        "XDEL {log} 1-1",
        "UNLINK {head}",
    ),
    "repairer": (
        "RENAME {log} {view}",
        "DEL {head}",
        "DEL {log}",
        "XTRIM {log} MINID 99",
        "ZADD {workers} 0 x",
        "FUNCTION LOAD x",
        "FUNCTION KILL",
        "CONFIG GET save",
    ),
    "restorer": (
        *(
            write
            for write in _WRITES
            if any(f"{{{key}}}" in write for key in ("view", "cursor", "owner", "feed", "lost"))
        ),
        "FCALL muster_claim_1 1 {owner} w n 1 1",
    ),
    "forker": (
        *(write for write in _WRITES if "{view}" in write or "{owner}" in write or "{cursor}" in write),
        "DEL {log}",
        "RENAME {log} {view}",
        "HDEL {skips} s-0",
        "DEL {skips}",
        "FUNCTION LOAD x",
    ),
    "migrator": (
        "RENAME {log} {view}",
        "DEL {hold}",
        "HSET {lost} x y",
        "ZADD {workers} 0 x",
        "BLPOP {log} 1",
        "FUNCTION LOAD x",
    ),
    "operator": ("HDEL {skips} s-0", "DEL {skips}", "XADD {log} 99-1 b x", "FUNCTION LOAD x"),
    "reader": (*_WRITES, "SHUTDOWN SAVE", "FCALL muster_claim_1 1 {owner} w n 1 1", "CONFIG GET save"),
    "monitor": (
        *_WRITES,
        "DEL {halt}",
        "SHUTDOWN SAVE",
        "FCALL muster_claim_1 1 {owner} w n 1 1",
        "GET {view}",
        "XRANGE {log} - +",
        "GET {head}",
    ),
}


#: What one user may do all the same: who moves sessions takes what it brought out of the list again.
BUT: Final = {"migrator": ("ZREM {sessions} s-0",)}


@pytest.mark.parametrize("role", ROLES)
def test_no_role_can_do_more_than_its_work(filled: Guarded, role: str) -> None:
    """Each of these is refused by the server for lack of rights, and nothing is changed by any."""
    keys = filled.keyspace.of("s-0")
    names = {
        **{name: getattr(keys, name) for name in ("sessions", "meta", "feed", "lost", "skips")},
        **{name: getattr(keys, name)("s-0") for name in ("log", "head", "hold", "checkpoints")},
        **{"view": keys.session_view("s-0"), "cursor": keys.cursor("sessions", 2), "owner": keys.owner("sessions")},
        **{"halt": filled.keyspace.halt},
        **{"workers": filled.keyspace.workers, "other": "{prod:other:0}:meta"},
    }
    before = {key: filled.root.dump(key) for key in sorted(filled.root.keys())}
    allowed = []
    with filled.client(role) as client:
        others = (
            ("XTRIM {feed} MAXLEN 0", ("worker", "jobs", "archiver")),
            ("SCAN 0", ("jobs", "archiver", "operator", "repairer", "reader")),
            *((command, ("archiver",)) for command in NOT_BUT_ARCHIVING),
        )
        nobody = (command for command in NOBODY if command not in BUT.get(role, ()))
        for command in (*nobody, *NOT[role], *(word for word, roles in others if role not in roles)):
            try:
                client.execute_command(*(word.format(**names) for word in command.split(" ")))
            except redis.RedisError as error:
                code, text = connection_error(error).code, str(error)
                assert code == "ACCESS_DENIED", f"{command}: {text}"
            else:
                allowed.append(command)

    assert allowed == []
    assert {key: filled.root.dump(key) for key in sorted(filled.root.keys())} == before


def test_only_whoever_archives_makes_a_log_shorter(filled: Guarded, tmp_path: Path) -> None:
    """By hand, or in a worker process; who may not leaves every log as it was; all others read what is archived."""
    (tmp_path / "archive").mkdir()
    filled.more = {"MUSTER_ARCHIVE__URL": str(tmp_path / "archive"), "MUSTER_ARCHIVE__AFTER_END_S": "0"}
    with filled.open("producer") as log:
        for number in range(12):
            log.append(f"s-{number}", Event.of("completed", actor="a"))
    environ = {"PATH": "/usr/bin:/bin", **filled.settings("archiver").environ(), "MUSTER_ARCHIVE__WRITE": "false"}
    with working(environ):
        caught_up = lambda: all(row["events"] == 0 for row in filled.run("monitor", "projection", "lag").rows)  # noqa: E731
        wait_until(caught_up, message="the views have caught up")
    before = filled.run("reader", "event", "tail", "s-3").rows
    for role in ("worker", "jobs", "operator"):
        ran = filled.run(role, "archive", "run", "--all")
        assert (ran.code, ran.err[:20]) == (3, "error: ACCESS_DENIED"), ran.err
        assert filled.root.xlen(filled.keyspace.of("s-3").log("s-3")) == 2
    filled.denials()

    assert filled.run("archiver", "archive", "run").rows[0]["sessions"] == 12
    assert filled.root.xlen(filled.keyspace.of("s-3").log("s-3")) == 0
    with filled.open("producer") as log:
        log.append("s-3", Event.of("start", actor="a"))
        log.append("s-3", Event.of("completed", actor="a"))
    environ |= {"MUSTER_ARCHIVE__WRITE": "true", "MUSTER_ARCHIVE__EVERY_S": "1"}
    with working(environ):
        wait_until(lambda: not filled.root.exists(filled.keyspace.of("s-3").log("s-3")), message="it is archived again")
    assert filled.run("reader", "event", "tail", "s-3").rows[:3] == before
    assert filled.run("reader", "archive", "verify").code == 0
    with filled.open("subscriber") as log:
        told = [len(list(log.read(f"s-{number}"))) for number in range(12)]
    assert told == [2, 2, 2, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert filled.denials() == []


@contextmanager
def working(environ: dict[str, str]) -> Iterator[None]:
    """A worker process."""
    worker = start_child([sys.executable, "-m", "workers.process"], env=environ, cwd=ROOT)
    try:
        yield
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


def test_a_migrator_moves_sessions_and_brings_them_back(filled: Guarded) -> None:
    """Every step of it, on either end, in another namespace of the same server; and nobody is denied anything."""
    assert filled.run("deployer", "init", "--namespace", "other", "--partitions", "3").code == 3, "not its store"
    filled.denials()
    for line in filled.rules.replace(f":{NAMESPACE}:", ":other:").splitlines():
        if line.startswith(("user migrator ", "user deployer ")):
            name, rest = split(line)[1], split(line)[3:]
            words = [word for word in rest if word.startswith(("%", "("))]
            keys, selectors = [w for w in words if w[0] == "%"], [w for w in words if w[0] == "("]
            filled.root.execute_command("ACL", "SETUSER", name, *keys, *selectors)
    assert filled.run("deployer", "init", "--namespace", "other", "--partitions", "3").code == 0
    ends = ["--from", filled.server.url, "--to", filled.server.url, "--to-namespace", "other"]
    told: Ran
    with filled.open("subscriber") as log, log.subscribe_as("audit", after="beginning") as member:
        assert member.get(timeout_s=30) is not None
        member.ack()

    for command in ("plan", "copy", "verify", "cutover", "verify", "status"):
        told = filled.run("migrator", "migrate", command, *ends)
        assert told.code == 0, (command, told.err, filled.denials())
    assert told.rows[0]["moved"] == 12
    with SessionLog.open(filled.settings("root").connecting, environment=ENVIRONMENT, namespace="other") as log:
        log.append("s-1", note("2"))
    for command in ("rollback --carry-back", "copy", "cutover", "retire"):
        told = filled.run("migrator", "migrate", *command.split(" "), *ends)
        assert told.code == 0, (command, told.err, filled.denials())

    # and keeps a standby, which takes over
    with filled.open("producer") as log:
        log.append("for-the-standby", [note("1"), note("2")])
    assert filled.run("migrator", "migrate", "sync", "--once", *ends).code == 0
    told = filled.run("migrator", "failover", *ends[2:])
    assert (told.code, told.rows[0]["opened"], told.rows[0]["fenced"]) == (0, 1, True), (told, filled.denials())
    with SessionLog.open(filled.settings("root").connecting, environment=ENVIRONMENT, namespace="other") as log:
        assert log.drive(DurableSubscriptions(log.keyspace).show("audit")).moved_to is None
    assert filled.denials() == []


def test_commands_say_that_access_is_denied(filled: Guarded) -> None:
    """A command run as somebody who may not run it ends with ACCESS_DENIED, exit 3, and writes nothing."""
    before = {key: filled.root.dump(key) for key in sorted(filled.root.keys())}
    for role, *command in (
        ("producer", "init"),
        ("reader", "init"),
        ("reader", "event", "append", "s-0", "start", "--actor", "a"),
        ("monitor", "event", "append", "s-0", "start", "--actor", "a"),
        ("subscriber", "event", "append", "s-0", "start", "--actor", "a"),
        ("operator", "event", "append", "new", "start", "--actor", "a"),
        ("monitor", "session", "ls"),
        ("producer", "session", "ls"),
        ("producer", "projection", "rebuild"),
        ("reader", "projection", "rebuild"),
        ("nobody", "session", "ls"),
    ):
        ran = filled.run(role, *command)
        assert (ran.code, ran.err[:20]) == (3, "error: ACCESS_DENIED"), (role, command, ran.err)
        assert password(role) not in ran.err
    assert {key: filled.root.dump(key) for key in sorted(filled.root.keys())} == before


def test_in_production_a_worker_judges_the_server_by_what_it_may_see(filled: Guarded) -> None:
    """Its user reads no configuration and lists no functions; that the server forgets it sees all the same."""
    ran = filled.run("worker", "worker", "run", "--profile", "production")

    assert (ran.code, "SERVER_FORGETS" in ran.err, "ACCESS_DENIED" in ran.err) == (3, True, False)
    told = {row["code"] for row in filled.run("operator", "config", "check", "--live").rows}
    assert not told & {"SERVER_UNSEEN", "SERVER_UNGUARDED", "ACCESS_DENIED"}
    assert "SERVER_UNSEEN" in {row["code"] for row in filled.run("worker", "config", "check", "--live").rows}


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_ask_how_things_are(filled: Guarded, role: str) -> None:
    """Whatever the user may not see is said to be so: no part is down for it, and nothing falls over."""
    health = filled.run(role, "health")
    doctor = filled.run(role, "doctor")

    seen = {row["component"]: (row["status"], row["code"]) for row in health.rows}
    assert (seen["redis"][0], seen["workers"][0]) in {("healthy", "down"), ("healthy", "unknown")}
    assert {code for status, code in seen.values() if status == "down"} <= {"WORKERS_MISSING"}
    unseen = {(name, code) for name, (status, code) in seen.items() if status == "unknown"}
    assert {code for _, code in unseen - {("schedule", None)}} <= {"ACCESS_DENIED"}  # without workers nothing recurs
    assert (doctor.code, doctor.rows[0]["schema"]) == (1, "muster.diagnosis/1")
    assert health.err + doctor.err == ""


@pytest.mark.parametrize("taken", ["+xadd", "+set", "+zadd", "+hset", "+xrange", "+hmget", "+zscore"])
def test_a_producer_that_lacks_a_right_writes_nothing(filled: Guarded, taken: str) -> None:
    """Half an append would be damage; so would be calling it damage."""
    (rules,) = [line for line in filled.rules.splitlines() if line.startswith("user producer ")]
    without = rules.replace(f"{taken} ", "").replace("(%", "(+ping %")
    filled.root.execute_command("ACL", "SETUSER", "producer", "reset", *split(without)[2:])
    before = {key: filled.root.dump(key) for key in sorted(filled.root.keys())}

    def append(session: str, **options: Any) -> None:
        with filled.open("producer") as log:
            log.append(session, [note("x"), note("y")], **options)

    error = refused(lambda: append("new", expected="new"), Misconfigured, "ACCESS_DENIED")
    assert isinstance(error, MusterError)
    if taken not in ("+zscore", "+zadd"):  # an append to a session that is there asks for no place in the registry
        with pytest.raises(Misconfigured, match="ACCESS_DENIED"):
            append("s-0", expected=2)
    assert {key: filled.root.dump(key) for key in sorted(filled.root.keys())} == before


def split(rules: str) -> list[str]:
    """The words of a line of an ACL file; what stands in ( ) is one."""
    words: list[str] = []
    for word in rules.split():
        if words and words[-1].startswith("(") and not words[-1].endswith(")"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def test_a_repairer_that_lacks_a_right_writes_nothing(filled: Guarded) -> None:
    """Half a repair would leave a session without its log: all rights are asked for before anything is written."""
    keys = filled.keyspace.of("s-0")
    filled.root.xtrim(keys.log("s-0"), maxlen=0)
    assert filled.run("operator", "recover", "apply").code == 7
    log, damaged = "%RW~{*:*:[0-9]*}:log:*", "%RW~{*:*:[0-9]*}:damaged:*"
    filled.root.execute_command("ACL", "SETUSER", "repairer", "clearselectors", f"(+rename +xadd {log} {damaged})")
    before = {key: filled.root.dump(key) for key in sorted(filled.root.keys())}

    denied = filled.run("repairer", "recover", "accept", "s-0", "--why", "the disk of Monday")

    assert (denied.code, denied.err[:20]) == (3, "error: ACCESS_DENIED")
    assert {key: filled.root.dump(key) for key in sorted(filled.root.keys())} == before


_REPAIRER: Final = (
    *("+rename", "+set", "+hset", "+hdel", "+zadd", "+zrem", "+xadd", "+del", "+pexpire", "+persist"),
    *("%RW~{prod:main:[0-9]*}:log:*", "%RW~{prod:main:[0-9]*}:damaged:*", "%RW~{prod:main:[0-9]*}:graft:*"),
    *("%RW~{prod:main:[0-9]*}:audit", "%RW~{prod:main:[0-9]*}:lost", "%RW~{prod:main:[0-9]*}:feed"),
)


@pytest.mark.parametrize("taken", _REPAIRER)
def test_a_repairer_that_lacks_a_right_grafts_nothing(filled: Guarded, tmp_path: Path, taken: str) -> None:
    """Whichever it is; a log that is as it was cannot be half a graft."""
    assert filled.run("reader", "backup", "create", str(tmp_path / "b")).code == 0
    keys = filled.keyspace.of("s-0")
    filled.root.xtrim(keys.log("s-0"), maxlen=0)
    (rules,) = [line for line in filled.rules.splitlines() if line.startswith("user repairer ")]
    assert taken in rules
    without = rules.replace(f" {taken} ", " ").replace(f" {taken})", ")").replace(f"({taken} ", "(")
    assert taken not in split(without)
    filled.root.execute_command("ACL", "SETUSER", "repairer", "reset", *split(without.replace("(%", "(+ping %"))[2:])
    before = {key: filled.root.dump(key) for key in sorted(filled.root.keys())}

    denied = filled.run("repairer", "recover", "apply", "--from", str(tmp_path / "b"))

    assert (denied.code, "error: ACCESS_DENIED" in denied.err) == (3, True), denied
    assert {key: filled.root.dump(key) for key in sorted(filled.root.keys())} == before


def test_nobody_has_a_password_that_was_not_given(tmp_path: Path) -> None:
    """Without a secret a user is off; with one there is its hash alone; without a name nobody comes in."""
    (tmp_path / "reader").write_text(password("reader"))

    lines = rendered(tmp_path).splitlines()

    assert [line.split()[1] for line in lines] == ["default", *ROLES]
    for line in lines:
        words = line.split()
        assert words[2:4] == (["reset", "on"] if words[1] == "reader" else ["reset", "off"])
        assert not any(word.startswith((">", "<")) or word in ("nopass", "+@all", "allkeys", "~*") for word in words)
    assert password("reader") not in "".join(lines)
