"""Where no connection lives as long as a page takes, a subscriber reads less at a time, and is given everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from domain import Append, AsyncSessionLog, Event, SessionLog
from domain.log import Connecting
from tests.chaos.cutting import CuttingProxy
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import Blocking
from tests.domain.log.subscribing.deliveries import everything, seqs, some

#: How many bytes a connection lives: more than its greeting and one commit, a small part of any page.
LIVES: Final = 16_384
SESSIONS: Final = 20


@pytest.fixture
def store(make_store: Callable[..., Store], server_url: str) -> Store:
    """A store with sessions of 25 commits, appended in few calls, and one of 200, appended in calls of 100."""
    store = make_store(server_url, partitions=4)
    with store.open() as log:
        for _ in range(5):
            log.append_many([_append(f"short-{number}") for number in range(SESSIONS) for _ in range(5)])
        for _ in range(2):
            log.append_many([_append("long") for _ in range(100)])
    return store


def _append(session: str) -> Append:
    return Append(session, (Event.of("note.made", actor="agent", data={"text": "x" * 200}),))


@pytest.fixture(params=["blocking", "asyncio"])
def log(request: pytest.FixtureRequest, store: Store) -> Iterator[Any]:
    """A log that would send the same again for as long as a delivery is waited for here."""
    host, _, port = store.url.removeprefix("redis://").partition("/")[0].partition(":")
    proxy = CuttingProxy(host, int(port), lambda: LIVES)
    options: Any = {"environment": ENVIRONMENT, "namespace": store.namespace}
    connecting = Connecting(proxy.url, retry_for_s=60.0)
    log: Any
    if request.param == "asyncio":
        log = Blocking(lambda: AsyncSessionLog.open(connecting, **options))
    else:
        log = SessionLog.open(connecting, **options)
    yield log
    log.close()
    proxy.close()
    assert proxy.cuts > 2


@pytest.mark.parametrize("has_feeds", [True, False])
def test_everything_is_given_though_no_page_comes_through(store: Store, log: Any, *, has_feeds: bool) -> None:
    """By the feed, and by registry and logs."""
    with store.open() as whole:
        expected = everything(whole)
    if not has_feeds:
        for keys in store.keyspace.partitions:
            store.client.delete(keys.feed)
    with log.subscribe(after="beginning") as subscription:
        assert seqs(some(subscription, sum(map(len, expected.values())))) == expected


def test_one_session_is_given_though_no_page_comes_through(log: Any) -> None:
    with log.subscribe("long", after=0) as subscription:
        assert seqs(some(subscription, 200)) == {"long": list(range(1, 201))}
