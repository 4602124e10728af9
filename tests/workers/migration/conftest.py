"""Scenes on real servers: from Valkey to Redis 7 and back, with different numbers of partitions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Servers, Store
from tests.workers.migration.scene import Scene


@pytest.fixture
def scene(servers: Servers, make_store: Callable[..., Store]) -> Scene:
    """From the embedded server to the distribution's."""
    return Scene(make_store(servers.url("valkey"), partitions=3), make_store(servers.url("redis7"), partitions=5))


@pytest.fixture(params=["valkey to redis7", "redis7 to valkey"])
def either_way(request: pytest.FixtureRequest, servers: Servers, make_store: Callable[..., Store]) -> Scene:
    """Each way in turn."""
    source, _, target = request.param.split()
    return Scene(make_store(servers.url(source), partitions=3), make_store(servers.url(target), partitions=7))
