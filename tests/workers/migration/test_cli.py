"""`muster migrate`: what people type, what they are told, and with which exit code."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from msgspec import structs

from domain.log import connect
from tests.conftest import ENVIRONMENT
from tests.workers.migration.scene import Scene, fill, history, note, refused
from workers.cli import main
from workers.jobs import JobQueue, JobRunner
from workers.migration.cursors import Cursors
from workers.settings import JobSettings, RedisSettings, Settings
from workers.tasks import DONE

JOBS_DB = 8


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    told: dict[str, Any]
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("MUSTER_ENVIRONMENT", ENVIRONMENT)

    def run(command: str, *arguments: str) -> Ran:
        flags = ["--from", scene.source.url, "--from-namespace", scene.source.namespace]
        flags += ["--to", scene.target.url, "--to-namespace", scene.target.namespace, "-o", "json"]
        capsys.readouterr()
        code = main(["migrate", command, *flags, *arguments])
        out, err = capsys.readouterr()
        return Ran(code, json.loads(out.splitlines()[-1]) if out else {}, err)

    return run


def test_sessions_are_planned_copied_verified_and_moved(scene: Scene, run: Run) -> None:
    """Each command says how the migration stands, in the words that are promised."""
    log = scene.source.open()
    fill(log, [f"s-{number}" for number in range(20)])

    plan = run("plan")
    assert (plan.code, plan.told["sessions"], plan.told["events"], plan.told["hindrances"]) == (0, 20, 120, [])
    copied = run("copy")
    assert (copied.code, copied.told["state"], copied.told["copied"], copied.told["lag_events"]) == (0, "copied", 20, 0)
    log.append("s-1", [note(), note()])
    assert run("status").told["lag_events"] == 2
    verified = run("verify")
    assert (verified.code, verified.told["sessions"], verified.told["problems"]) == (0, 20, [])
    moved = run("cutover")
    assert moved.code == 0

    told = run("status").told
    promised = ("task", "state", "sessions", "copied", "verified", "moved", "failed", "events", "lag_events")
    assert {name: told[name] for name in promised} == {
        "task": copied.told["task"], "state": "moved", "sessions": 20, "copied": 20, "verified": 20, "moved": 20,
        "failed": 0, "events": 122, "lag_events": 0,
    }  # fmt: skip
    assert told["seals"] == {"checked": 20, "lost": []}
    assert told["downtime_ms"]["p50"] > 0
    assert history(scene.target.open(), "s-1") == history(log, "s-1")


def test_a_dry_run_changes_nothing(scene: Scene, run: Run) -> None:
    """Of every command that would."""
    fill(scene.source.open(), ["a", "b"])
    run("copy")
    before = (scene.source.snapshot(), scene.target.snapshot())

    for command in ("copy", "cutover", "verify", "rollback", "cancel"):
        assert run(command, "--dry-run").code == 0

    assert (scene.source.snapshot(), scene.target.snapshot()) == before


def test_a_dry_run_says_what_it_would_do_and_how_things_stand(scene: Scene, run: Run) -> None:
    """On stderr and on stdout, as the command itself does."""
    fill(scene.source.open(), ["a", "b"])
    assert "dry run: would copy 12 events of 2 sessions\n" in run("copy", "--dry-run").err
    run("copy")
    would = {
        "cutover": "would move 2 sessions",
        "rollback": "would bring back 0 moved sessions, drop 2 copies",
        "cancel": "would drop 2 copies",
    }
    for command, words in would.items():
        dry = run(command, "--dry-run")
        assert f"dry run: {words}\n" in dry.err
        assert (dry.told["copied"], dry.told["moved"]) == (2, 0)
    run("cutover")
    dry = run("retire", "--dry-run")
    assert "dry run: would leave 2 sessions moved\n" in dry.err
    assert (dry.told["state"], dry.told["moved"]) == ("moved", 2)


def test_a_dry_run_is_about_the_sessions_that_are_named(scene: Scene, run: Run) -> None:
    """Those of which nothing was begun, that were copied, that are moved; of each once."""
    fill(scene.source.open(), ["a", "b", "c", "d"])
    run("copy")
    run("cutover", "--session", "a")
    run("rollback", "--session", "d")
    named = ("--session", "a", "--session", "b", "--session", "b", "--session", "d", "--dry-run")
    assert "dry run: would move 1 sessions\n" in run("cutover", *named).err
    assert "dry run: would bring back 1 moved sessions, drop 2 copies\n" in run("rollback", *named).err
    assert (
        "dry run: would bring back 0 moved sessions, drop 1 copies\n" in run("rollback", *named[2:4], "--dry-run").err
    )
    assert "dry run: would move 2 sessions\n" in run("cutover", "--dry-run").err


def test_what_stands_in_the_way_is_told_before_and_after(scene: Scene, run: Run) -> None:
    """A name that is taken: the plan exits 1, the copy 7, the status 1; all others are moved."""
    fill(scene.source.open(), ["mine", "taken"])
    fill(scene.target.open(), ["taken"], commits=1)

    plan = run("plan")
    copied = run("copy")
    moved = run("cutover")

    assert (plan.code, plan.told["hindrances"][0]["session"]) == (1, "taken")
    assert (copied.code, copied.told["failed"]) == (7, 1)
    assert (moved.code, moved.told["moved"], list(moved.told["errors"])) == (7, 1, ["taken"])
    assert run("status").code == 1


def test_a_migration_is_selective_and_goes_on_by_itself(scene: Scene, run: Run) -> None:
    """The same command finds the migration it began; what was named is copied, and nothing else."""
    fill(scene.source.open(), ["a", "b", "c"])

    first = run("copy", "--session", "a", "--session", "b")
    again = run("copy", "--session", "b", "--session", "a")

    assert first.told["task"] == again.told["task"]
    assert (again.told["sessions"], again.told["copied"]) == (2, 2)
    assert run("cutover").told["moved"] == 2
    assert sorted(scene.target.open().sessions()) == ["a", "b"]


def test_it_is_rolled_back_or_retired_and_then_over(scene: Scene, run: Run) -> None:
    """What moved cannot be cancelled; what is over is not gone on with."""
    log, target = scene.source.open(), scene.target.open()
    fill(log, ["a"])
    task = run("copy").told["task"]
    run("cutover")
    target.append("a", note())

    cancelled, refused = run("cancel"), run("rollback")
    assert (cancelled.code, "MIGRATION_UNFINISHED" in cancelled.err) == (6, True)
    assert (refused.code, "ROLLBACK_REFUSED" in refused.err, "a (seqs 7 to 7)" in refused.err) == (6, True, True)
    assert (run("status").code, run("status").told["state"]) == (0, "moved")
    back = run("rollback", "--carry-back")
    assert (back.code, back.told["state"], back.told["back"]) == (0, "rolled back", 1)
    assert log.append("a", note()).first_seq == 8
    over = run("cutover", "--task", task)
    assert (over.code, "MIGRATION_OVER" in over.err) == (6, True)

    again = run("copy").told["task"]
    run("cutover")
    assert run("retire").told["state"] == "retired"
    assert again != task
    assert run("cutover").code == 4
    assert [one["what"] for one in audit(scene)][-3:] == [
        "migration: copy", "migration: cutover", "migration: retire",
    ]  # fmt: skip


def audit(scene: Scene) -> list[dict[str, str]]:
    entries: Any = scene.target.client.xrange(scene.target.keyspace.audit)
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in entries]


def test_seals_are_asserted_again_until_the_source_is_retired(scene: Scene, run: Run) -> None:
    """A source that came back without one is found, closed, and right the next time."""
    log = scene.source.open()
    fill(log, ["a", "b"])
    run("copy")
    run("cutover")
    keys = scene.source.keyspace.of("a")
    packed: Any = scene.source.client.get(keys.head("a"))
    scene.source.client.set(keys.head("a"), packed.decode().replace(" m", " -"))
    lost = run("status")
    assert (lost.code, lost.told["seals"]["lost"]) == (1, ["a"])

    found, again = run("verify", "--seals"), run("verify", "--seals")

    assert (found.code, [one["session"] for one in found.told["problems"]], again.code) == (8, ["a"], 0)
    assert "critical: SEAL_LOST" in found.err
    with refused("MOVED_TO"):
        log.append("a", note())


def test_one_session_is_brought_back_and_moved_again(scene: Scene, run: Run) -> None:
    """The others stay moved; a cutover leaves it where it is, until it is copied again."""
    log = scene.source.open()
    fill(log, ["a", "b"])
    run("copy")
    run("cutover")

    back = run("rollback", "--session", "a")
    assert (back.code, back.told["state"], back.told["stuck"], back.told["back"]) == (0, "moved", False, 1)
    assert log.append("a", note()).first_seq == 7
    assert run("cutover").told["moved"] == 1

    again = run("copy")
    assert (again.code, again.told["copied"]) == (0, 2)
    assert run("cutover").told["moved"] == 2
    assert history(scene.target.open(), "a") == history(log, "a")


def test_a_cancelled_migration_leaves_nothing(scene: Scene, run: Run) -> None:
    """Its copies go; the sessions never left."""
    log = scene.source.open()
    fill(log, ["a", "b"])
    run("copy")

    cancelled = run("cancel")

    assert (cancelled.code, cancelled.told["state"]) == (0, "cancelled")
    assert not [key for key in scene.target.keys() if b"arriving" in key or b":hold:" in key]  # noqa: SIM118
    assert scene.target.open().append("a", note()).first_seq == 1  # its name is free
    assert log.append("a", note()).appended == 1


def test_damage_is_printed_and_exits_8(scene: Scene, run: Run) -> None:
    """By session and seq."""
    fill(scene.source.open(), ["a", "b"])
    run("copy")
    key = scene.target.keyspace.of("a").arriving("a")
    scene.target.client.xdel(key, "4-2")

    verified = run("verify")

    assert verified.code == 8
    assert [(one["session"], one["seq"], one["side"]) for one in verified.told["problems"]] == [("a", 3, "target")]
    assert "critical: LOG_GAP at seq 3" in verified.err


def test_a_proof_that_cannot_be_given_is_refused_before_anything_is_sealed(scene: Scene, run: Run) -> None:
    """A server that syncs every second does not prove that its disk holds a seal."""
    log = scene.source.open()
    fill(log, ["a"])
    run("copy")

    refused = run("cutover", "--proof", "local")

    assert (refused.code, "is wanted" in refused.err) == (9, True)
    assert (run("status").code, run("status").told["state"]) == (0, "copied")
    assert log.append("a", note()).appended == 1


@pytest.mark.parametrize("option", [("cutover", "--batch", "0"), ("copy", "--rate", "-1"), ("sync", "--every", "nan")])
def test_a_number_that_means_nothing_is_refused(run: Run, option: tuple[str, ...]) -> None:
    """Nothing is moved none at a time, or with no speed."""
    with pytest.raises(SystemExit) as ended:
        run(*option)

    assert ended.value.code == 2


def test_lines_of_a_moved_session_are_refused_with_where_it_went(
    scene: Scene, run: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """An import at the source says so of each such line, and takes all others."""
    fill(scene.source.open(), ["moved", "here"])
    run("copy", "--session", "moved")
    run("cutover")
    lines = tmp_path / "lines.ndjson"
    names = ("moved", "here", "moved")
    lines.write_text(
        "".join(f'{{"session":"{s}","type":"joined","actor":"b","id":"i-{n}"}}\n' for n, s in enumerate(names))
    )
    capsys.readouterr()

    code = main(["event", "import", str(lines), "--url", scene.source.url, "--namespace", scene.source.namespace])

    out, err = capsys.readouterr()
    assert (code, (out + err).count("MOVED_TO")) == (7, 2)
    assert len(history(scene.source.open(), "here")) == 4


def test_a_password_in_an_argument_is_refused(run: Run, scene: Scene) -> None:
    """Everybody on the host can read arguments."""
    url = scene.source.url.replace("redis://", "redis://ann:secret@")

    refused = run("plan", "--from", url)

    assert (refused.code, "MUSTER_MIGRATE__FROM_PASSWORD" in refused.err) == (3, True)
    assert "secret" not in refused.err


def test_the_same_store_is_no_target(run: Run, scene: Scene) -> None:
    """Nothing moves from a store to itself."""
    refused = run("plan", "--to", scene.source.url, "--to-namespace", scene.source.namespace)

    assert (refused.code, "the same store" in refused.err) == (9, True)


def test_nobody_at_work_is_reported_as_stuck(scene: Scene, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that died in the middle: the status says so, and exits 1, as long as nobody goes on."""
    fill(scene.source.open(), ["a"])
    with scene.ends() as ends:
        work = scene.moving(ends, scene.begun(ends))
        phase = work.phase("copying", "copied")
        phase.__enter__()
        assert run("status").told["holder"] is not None
        work._migrations.release(work.migration.id, work._token)

        stuck = run("status")

        assert (stuck.code, stuck.told["stuck"]) == (1, True)
        health = ["health", "--url", scene.target.url, "--namespace", scene.target.namespace, "-o", "jsonl"]
        capsys.readouterr()
        assert main(health) == 1
        rows = {row["component"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        assert (rows["migrations"]["status"], rows["migrations"]["code"]) == ("warning", "MIGRATION_STUCK")
        phase.__exit__(None, None, None)
    assert run("cutover").code == 0


@pytest.fixture
def jobs(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings of a worker of the target."""
    url = f"{scene.target.url.rpartition('/')[0]}/{JOBS_DB}"
    monkeypatch.setenv("MUSTER_JOBS__URL", url)
    made = Settings(environment=ENVIRONMENT, namespace=scene.target.namespace)
    yield structs.replace(made, redis=RedisSettings(url=scene.target.url), jobs=JobSettings(url))
    with connect(RedisSettings(url=url)) as client:
        client.flushdb()


def test_the_workers_of_the_target_do_it_as_a_job(scene: Scene, run: Run, jobs: Settings) -> None:
    """Partition by partition of the source, with a task that anybody can look at."""
    log = scene.source.open()
    fill(log, [f"s-{number}" for number in range(20)])
    queue, runner = JobQueue(jobs, scene.target.open()), JobRunner(jobs, scene.target.open(), [], "worker")

    for phase in ("copy", "verify", "cutover"):
        job = run(phase, "--job").told["job"]
        runner.run_task(job)
        done = queue.tasks.get(job)
        assert (done.state, done.result["sessions"], done.result["failed"]) == (DONE, 20, 0)

    told = run("status").told
    assert (told["state"], told["moved"], told["holder"]) == ("moved", 20, None)
    assert {one: history(log, one) for one in log.sessions()} == {
        one: history(scene.target.open(), one) for one in scene.target.open().sessions()
    }
    queue.close()
    runner.queue.close()


@pytest.mark.parametrize("then", ["cutover", "rollback"])
def test_cursors_that_were_not_brought_keep_a_migration_open(
    scene: Scene, run: Run, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """Of who was killed before he brought them, too."""
    with scene.source.open() as log:
        fill(log, ["s1", "s2"])
        with log.subscribe_as("audit"):
            pass
    assert run("copy").code == 0
    with monkeypatch.context() as patched:
        patched.setattr(Cursors, "bring", killed)
        run("cutover")
    assert run("status").told["cursors_waiting"] == 2
    refusal = run("retire")
    assert refusal.code == 6
    assert "2 cursors of subscriptions wait" in refusal.err
    assert run(then).code == 0
    told = run("retire" if then == "cutover" else "status").told
    assert told["cursors_waiting"] == 0


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt
