"""A PostgreSQL of a peer's own, where its programs are there: on loopback, with the settings it comes with."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.arena import wait_until
from tests.bench.row import Missing
from workers.embedded import free_port

#: It refuses to run as root: then it runs as this user, which its Debian package makes.
UNPRIVILEGED: Final = "postgres"
USER: Final = "bench"


class Place(NamedTuple):
    """Where it listens."""

    host: str
    port: int
    user: str


@contextmanager
def postgresql(folder: Path) -> Iterator[Place]:
    """Starts one on a new folder, and stops it. Raises Missing."""
    initdb, server = _program("initdb"), _program("postgres")
    as_user = _unprivileged() if os.geteuid() == 0 else None
    folder.mkdir()
    if as_user is not None:
        shutil.chown(folder, as_user)
        folder.parent.chmod(0o711)  # let through, not let read
    place = Place("127.0.0.1", free_port(), USER)
    data = folder / "data"
    made = subprocess.run(
        [initdb, "--pgdata", data, "--username", USER, "--auth", "trust", "--no-instructions"],
        cwd="/",
        user=as_user,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        raise Missing(f"initdb ended with {made.returncode}: {made.stderr.strip()[-200:]}")
    command = [server, "-D", str(data), "-h", place.host, "-p", str(place.port), "-k", str(folder)]
    with (folder.parent / "postgresql.log").open("ab") as words:
        process = subprocess.Popen(command, cwd="/", user=as_user, stdout=words, stderr=words)
    try:
        wait_until(lambda: process.poll() is not None or _listens(place), patience_s=30, every_s=0.05)
        if process.poll() is not None:
            raise Missing(f"postgres ended with {process.returncode}")
        yield place
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


def _program(name: str) -> str:
    """On the PATH, or where Debian keeps it."""
    places = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise Missing(f"there is no {name} (Debian: apt-get install postgresql)")
    return found


def _unprivileged() -> str:
    try:
        return pwd.getpwnam(UNPRIVILEGED).pw_name
    except KeyError:
        raise Missing(f"it does not run as root, and there is no user {UNPRIVILEGED}") from None


def _listens(place: Place) -> bool:
    with suppress(OSError), socket.create_connection((place.host, place.port), 1):
        return True
    return False
