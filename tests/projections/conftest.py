"""The world of tests of projections: a store with a few partitions, so that each holds several sessions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Store
from tests.projections.world import World


@pytest.fixture
def world(server_url: str, make_store: Callable[..., Store]) -> World:
    """A fresh store on the embedded server, with four partitions."""
    return World(make_store(server_url, partitions=4))
