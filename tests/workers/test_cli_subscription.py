"""`muster subscription`: how far each durable subscription is behind, and forgetting one."""

from __future__ import annotations

import json

import pytest

from tests.conftest import Store
from tests.domain.log.logs import note
from workers.cli import main


@pytest.fixture
def flags(store: Store) -> list[str]:
    return ["--url", store.url, "--environment", store.keyspace.environment, "--namespace", store.namespace]


def test_a_subscription_is_listed_shown_and_dropped(
    store: Store, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What is behind is what is not acknowledged; one with members is not dropped, and a dry run drops nothing."""

    def ran(*arguments: str) -> tuple[int, list[dict[str, object]]]:
        code = main(["subscription", *arguments, *flags, "-o", "jsonl"])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert ran("ls") == (0, [])
    with store.open() as log:
        with log.subscribe_as("audit", types="note.*", after="beginning") as member:
            for _ in range(5):
                log.append("s", note())
            assert [member.get(timeout_s=30) is not None for _ in range(2)] == [True, True]
            member.ack()
            code, (found,) = ran("ls")
            assert (code, found["subscription"], found["behind"]) == (0, "audit", 3)
            assert found["members"] == [member.member]
            assert found["wants"] == {"types": ["note.*"]}
            assert ran("drop", "audit")[0] == 9
        code, (shown,) = ran("show", "audit")
        assert (code, shown["members"]) == (0, [])
        assert isinstance(shown["partitions"], list)
        assert sum(part["behind"] for part in shown["partitions"]) == 3
    assert ran("drop", "audit", "--dry-run")[0] == 0
    assert ran("drop", "audit")[0] == 0
    assert ran("drop", "audit")[0] == 4
    assert ran("ls") == (0, [])
