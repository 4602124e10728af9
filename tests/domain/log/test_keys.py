"""The table of keys: one slot a partition, a row for every key, and names that cannot break either."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from hashlib import sha1

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain import Misconfigured
from domain.log.keys import KEYS, Keyspace, PartitionKeys, partition_of
from tests.conftest import row_of
from tests.domain.log.logs import refused


@pytest.mark.parametrize(("session", "partitions", "expected"), [("s-1", 32, 20), ("s-1", 1, 0), ("a/b@c", 7, 5)])
def test_the_partition_is_the_one_written_down(session: str, partitions: int, expected: int) -> None:
    """Producers in any language compute the partition, so it never changes; these were computed with sha1sum."""
    assert partition_of(session, partitions) == expected


@given(st.text("abc019._:@/+-", min_size=1, max_size=20), st.integers(1, 4096))
def test_the_partition_is_the_first_32_bits_of_sha1(session: str, partitions: int) -> None:
    """The partition of a session is the first four bytes of its SHA-1, big-endian, modulo the count."""
    expected = int.from_bytes(sha1(session.encode()).digest()[:4], "big") % partitions

    assert partition_of(session, partitions) == Keyspace("e", "n", partitions).partition_of(session) == expected


def all_keys(keyspace: Keyspace) -> list[str]:
    """Every key that the module can build."""
    found = [keyspace.store_meta, keyspace.workers, keyspace.worker("host-1:77"), keyspace.projections, keyspace.audit]
    found += [keyspace.workers_of("tokens@1"), keyspace.projection("tokens")]
    found += [keyspace.tasks, keyspace.open_tasks, keyspace.task("t"), keyspace.task_owner("t")]
    found += [keyspace.subscriptions, keyspace.subscription("audit"), keyspace.members("audit")]
    found += [keyspace.task_cursor("t"), keyspace.tick("verify", 3)]
    found += [keyspace.halt, keyspace.halted, keyspace.ticked]
    found += [keyspace.migrations, keyspace.migration("t"), keyspace.moves("t"), keyspace.cursors("t")]
    for keys in keyspace.partitions:
        found += [value for name, value in vars(keys).items() if not name.startswith("_")]
        for name, method in inspect.getmembers(keys, inspect.ismethod):
            if not name.startswith("_"):
                found.append(_call(method))
    return found


def _call(method: Callable[..., str]) -> str:
    values = {"str": "x:y@1/z", "int": 3}
    return method(*[values[str(p.annotation)] for p in inspect.signature(method).parameters.values()])


def test_every_key_has_a_row() -> None:
    """Each key that can be built is described by a row of the table, and each row describes one that can be built."""
    keyspace = Keyspace("test", "n", 2)

    rows = {key: row_of(key) for key in all_keys(keyspace)}

    assert [key for key, row in rows.items() if row is None] == []
    assert {row.pattern for row in rows.values() if row} == {row.pattern for row in KEYS}
    assert len(rows) == 23 + 2 * (len(KEYS) - 23)


def test_a_key_is_described_by_one_row_alone() -> None:
    """Rows do not overlap in the word after the hash tag, so that a key's class is never in doubt."""
    heads = [row.pattern.split("<")[0] for row in KEYS]

    assert len(set(heads)) == len(heads)
    assert not [(a, b) for a in heads for b in heads if a != b and a.endswith(":") and b.startswith(a)]


def test_a_partition_is_one_slot() -> None:
    """All keys of a partition have the same hash tag, and no other partition has it."""
    keyspace = Keyspace("test", "n", 40)

    tags = [{key[: key.index("}") + 1] for key in _keys_of(keys)} for keys in keyspace.partitions]

    assert tags == [{f"{{test:n:{index}}}"} for index in range(40)]


def _keys_of(keys: PartitionKeys) -> list[str]:
    return [value for name, value in vars(keys).items() if not name.startswith("_")] + [
        keys.log("s"),
        keys.session_view("s"),
    ]


@pytest.mark.parametrize("part", ["", "a:b", "a{", "a}", "a b", "ü", "a\n", "x" * 65])
def test_a_part_that_would_break_the_tag_is_refused(part: str) -> None:
    """Environment and namespace hold no colon, brace or blank."""
    refused(lambda: Keyspace(part, "n", 1), Misconfigured, "SETTING_INVALID")
    refused(lambda: Keyspace("e", part, 1), Misconfigured, "SETTING_INVALID")


@pytest.mark.parametrize("partitions", [0, -1])
def test_a_store_has_at_least_one_partition(partitions: int) -> None:
    """A keyspace without partitions holds nothing."""
    refused(lambda: Keyspace("e", "n", partitions), Misconfigured, "SETTING_INVALID")
