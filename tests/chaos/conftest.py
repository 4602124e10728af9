"""A server of a test's own, which loses nothing that it answered, and the store on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.chaos.proxy import Proxy, proxied
from tests.conftest import Servers, Store
from workers.embedded import EmbeddedServer


@pytest.fixture
def killable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that may be killed, and started again, at any moment: what it answered is on disk."""
    server = Servers.make(getattr(request, "param", "valkey"), tmp_path / "server", appendfsync="always")
    with server:
        yield server


@pytest.fixture
def killable_store(killable: EmbeddedServer, make_store: Callable[..., Store]) -> Store:
    return make_store(killable.url)


@pytest.fixture
def killable_proxy(killable: EmbeddedServer) -> Iterator[Proxy]:
    with proxied(killable.url) as proxy:
        yield proxy
