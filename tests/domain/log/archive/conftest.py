"""Places for segments: a folder, and a bucket on a server that speaks S3, which runs as long as the tests do."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Final
from urllib.request import Request, urlopen

import pytest

from domain.log.archive.place import Archive, Keys, open_archive
from tests.conftest import lasting, missing

SERVER: Final = Path(__file__).parents[4] / ".venv-s3" / "bin" / "moto_server"
KEYS: Final = Keys("tests", "secret-of-the-tests")
_BUCKETS: Final = count(1)
_SIGNED: Final = "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Where a server that speaks S3 listens."""
    if not SERVER.exists():
        missing("there is no .venv-s3 (./scripts/s3 makes it)")
    with lasting():
        server = subprocess.Popen([SERVER, "-H", "127.0.0.1", "-p", "0"], stderr=subprocess.PIPE)
    with server:
        assert server.stderr is not None
        said = next(line for line in server.stderr if b"Running on" in line)
        # It says a line a request; nobody reads them, and a full pipe would hold it up.
        reading = threading.Thread(target=server.stderr.read, daemon=True)
        reading.start()
        yield said.split()[-1].decode()
        server.kill()
        reading.join()


@pytest.fixture
def make_bucket(s3_url: str) -> Callable[[], str]:
    """Makes buckets, each empty; the URL of an archive in it."""

    def make() -> str:
        name = f"segments-{next(_BUCKETS)}"
        with urlopen(Request(f"{s3_url}/{name}", method="PUT", headers={"Authorization": _SIGNED})):
            return f"s3://{name}/of/muster?region=us-east-1&endpoint={s3_url}"

    return make


@pytest.fixture(params=["folder", "bucket"])
def archive_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty archive of each kind."""
    if request.param == "folder":
        (tmp_path / "archive").mkdir()
        return f"file://{tmp_path}/archive"
    url: str = request.getfixturevalue("make_bucket")()
    return url


@pytest.fixture
def archive(archive_url: str) -> Archive:
    return open_archive(archive_url, KEYS)
