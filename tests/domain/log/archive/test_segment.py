"""Segments: what was sealed comes back to the byte, and nothing else passes for it."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import string
import subprocess
from hashlib import sha256
from typing import Any

import hypothesis.strategies as st
import pytest
import zstandard
from hypothesis import given
from msgspec import structs

from domain import Commit, Damaged, Event
from domain.codec import chain, encode_body, genesis, parse_line
from domain.log.archive.segment import (
    COMMIT_BYTES,
    PORTION_BYTES,
    Segment,
    escaped,
    folder_of,
    label_of,
    name_of,
    opened,
    portions,
    seal,
)
from tests.conftest import DATA
from tests.domain.log.logs import refused
from tests.foreign import any_body

STORE = "0123456789abcdef0123456789abcdef"


def history(session: str, bodies: list[tuple[int, bytes]], *, after: int = 0, previous: str = "") -> list[Commit]:
    """Commits with these bodies (events, bytes), as a log would hold them."""
    seq, digest, commits = after, previous or genesis(session), list[Commit]()
    for number, (count, body) in enumerate(bodies):
        at_ms = 1_700_000_000_000 + number
        digest = chain(digest, session, seq + 1, count, at_ms, body)
        commits.append(Commit(session, seq + 1, seq + count, at_ms, digest, body, "00-1-2-01" if number % 3 else None))
        seq += count
    return commits


def told(count: int, session: str = "s") -> list[Commit]:
    """Commits of one to three events, as our library writes them."""
    chance = random.Random(count)
    bodies = []
    for number in range(count):
        events = [
            Event.of("tool.called", actor="a", id=f"{number}-{n}", data={"n": n, "ü": None})
            for n in range(chance.randrange(1, 4))
        ]
        bodies.append((len(events), encode_body(events)))
    return history(session, bodies)


def sealed(commits: list[Commit], previous: str | None = None) -> Segment:
    session = commits[0].session
    return seal(STORE, session, previous if previous is not None else genesis(session), commits)


def damage(name: str, content: bytes) -> Damaged:
    with pytest.raises(Damaged) as caught:
        opened(name, content)
    assert caught.value.code == "ARCHIVE_DAMAGED"
    assert name in caught.value.cause
    return caught.value


# -- to the byte -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=8), st.integers(0, 1000))
def test_any_commits_come_back_to_the_byte(seeds: list[int], after: int) -> None:
    """Of our library and of foreign producers, raw JSON, damaged bodies and noise; from the beginning or later."""
    previous = genesis("s") if after == 0 else "1" * 20
    bodies = [(1 + seed % 3, any_body(random.Random(seed))) for seed in seeds]
    commits = history("s", bodies, after=after, previous=previous)
    segment = sealed(commits, previous)
    assert opened(segment.name, segment.content) == commits


@pytest.mark.parametrize("name", ["coding_agents", "incidents", "receipt", "rules"])
def test_real_sessions_come_back_to_the_byte(name: str) -> None:
    """One commit an event, in portions whose digests chain from one to the next."""
    sessions: dict[str, list[tuple[int, bytes]]] = {}
    with gzip.open(DATA / f"{name}.ndjson.gz") as lines:
        for line in lines:
            session, event = parse_line(line.rstrip(b"\n"))
            sessions.setdefault(session, []).append((1, encode_body([event])))
    assert sessions
    for session, bodies in sessions.items():
        commits, previous, found = history(session, bodies), genesis(session), list[Commit]()
        for at in range(0, len(commits), 100):
            segment = sealed(commits[at : at + 100], previous)
            found += opened(segment.name, segment.content)
            previous = segment.facts.digest
        assert found == commits


def test_what_was_sealed_twice_is_the_same_segment() -> None:
    assert sealed(told(20)) == sealed(told(20))


def test_any_reader_of_ndjson_reads_it() -> None:
    """The manifest, then a line a commit with its events in plain JSON, by the zstd program too."""
    commits = told(5)
    segment = sealed(commits)
    program = shutil.which("zstdcat")
    text = (
        subprocess.run([program], input=segment.content, stdout=subprocess.PIPE, check=True).stdout
        if program is not None
        else zstandard.ZstdDecompressor().decompress(segment.content)
    )
    manifest, *lines = [json.loads(line) for line in text.splitlines()]
    assert manifest == {
        "schema": "muster.segment/1",
        "store": STORE,
        "session": "s",
        "from_seq": 1,
        "to_seq": commits[-1].last_seq,
        "previous": genesis("s"),
        "digest": commits[-1].digest,
        "commits": 5,
        "events": commits[-1].last_seq,
        "at_ms": commits[-1].at_ms,
        "sha256": sha256(text.partition(b"\n")[2]).hexdigest(),
    }
    assert [line["digest"] for line in lines] == [commit.digest for commit in commits]
    assert lines[0]["events"][0]["data"] == {"n": 0, "ü": None}


# -- damage ----------------------------------------------------------------------------------------------------------


def test_every_byte_that_flips_is_found() -> None:
    segment = sealed(told(3))
    good = segment.content
    for at in range(len(good)):
        damage(segment.name, good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])


def test_a_segment_cut_short_or_with_more_behind_is_found() -> None:
    segment = sealed(told(3))
    for at in range(len(segment.content)):
        damage(segment.name, segment.content[:at])
    damage(segment.name, segment.content + b"\0")
    damage(segment.name, segment.content * 2)


def test_every_character_of_a_name_counts() -> None:
    """A segment under a name that is not its own is another one's, or none's."""
    segment = sealed(told(3, "a/b.c"))
    for at, character in enumerate(segment.name):
        other = "1" if character == "0" else "0"
        damage(segment.name[:at] + other + segment.name[at + 1 :], segment.content)
        damage(segment.name[:at] + segment.name[at + 1 :], segment.content)


def test_swapped_segments_are_found() -> None:
    commits = told(6)
    one, two = sealed(commits[:3]), sealed(commits[3:], commits[2].digest)
    assert damage(one.name, two.content).facts["seq"] == 1
    assert damage(two.name, one.content).facts["seq"] == commits[3].first_seq


def forged(segment: Segment, manifest: Any, lines: list[bytes], **changed: Any) -> tuple[str, bytes]:
    """A segment with other content, and every checksum made to fit it."""
    body = b"".join(line + b"\n" for line in lines)
    content = zstandard.ZstdCompressor().compress(
        json.dumps({**manifest, "sha256": sha256(body).hexdigest(), **changed}).encode() + b"\n" + body
    )
    label = label_of(segment.name)
    assert label is not None
    return name_of(structs.replace(label, sha256=sha256(content).hexdigest())), content


def test_a_segment_forged_with_its_checksums_is_found_by_the_digests() -> None:
    """Commits missing, doubled, moved, altered, another session's; a manifest that says something else. The first seq
    that cannot be had is named.
    """
    commits = told(6)
    segment = sealed(commits)
    manifest, *lines = zstandard.ZstdDecompressor().decompress(segment.content).splitlines()
    facts = json.loads(manifest)
    name, content = forged(segment, facts, lines)
    assert opened(name, content) == commits
    seqs = [commit.first_seq for commit in commits]
    altered = lines[2].replace(b'"actor":"a"', b'"actor":"b"')
    other = lines[2].replace(b'"session":"s"', b'"session":"t"')
    assert lines[2] not in (altered, other)
    for first_bad, changed in [
        (seqs[2], [*lines[:2], *lines[3:]]),
        (seqs[3], [*lines[:3], lines[2], *lines[3:]]),
        (seqs[2], [*lines[:2], lines[3], lines[2], *lines[4:]]),
        (seqs[2], [*lines[:2], altered, *lines[3:]]),
        (seqs[2], [*lines[:2], other, *lines[3:]]),
        (seqs[5], lines[:5]),
        (seqs[2], [*lines[:2], b"{}", *lines[3:]]),
        (1, []),
    ]:
        assert damage(*forged(segment, facts, changed)).facts["seq"] == first_bad
    for changed_fact in (
        {"schema": "muster.segment/2"},
        {"store": "another"},
        {"session": "t"},
        {"from_seq": 2},
        {"to_seq": 7},
        {"previous": "0" * 20},
        {"digest": "0" * 20},
        {"commits": 5},
        {"sha256": "0" * 64},
        {"events": "many"},
    ):
        damage(*forged(segment, facts, lines, **changed_fact))


def test_a_segment_that_claims_to_be_huge_is_not_unpacked() -> None:
    segment = sealed(told(3))
    name, content = forged(segment, {}, [b"\0" * (300 * 1024 * 1024)])
    assert "more than any segment" in damage(name, content).cause


def test_commits_that_do_not_chain_are_not_sealed() -> None:
    commits = told(4)
    refused(lambda: sealed(commits, "0" * 20), Damaged, "LOG_ALTERED")
    refused(lambda: sealed([commits[0], *commits[2:]]), Damaged, "LOG_GAP")
    refused(lambda: seal(STORE, "t", genesis("t"), commits), Damaged, "LOG_GAP")
    refused(lambda: sealed([structs.replace(commits[0], at_ms=1)]), Damaged, "LOG_ALTERED")


# -- names and sizes -------------------------------------------------------------------------------------------------

IDS = st.text(string.ascii_letters + string.digits + "._:@/+-", min_size=1, max_size=200)
#: Ids that would be trouble as paths, more often than chance gives them.
ODD = st.text("./:@+-a", min_size=1, max_size=200)


@given(st.lists(IDS | ODD, min_size=2, max_size=2, unique=True))
def test_every_id_has_a_path_of_its_own_that_is_safe_anywhere(sessions: list[str]) -> None:
    """Reversible, no part of it special or too long, and none the beginning of another's."""
    folders = []
    for session in sessions:
        segment = sealed(told(1, session))
        label = label_of(segment.name)
        assert label is not None
        assert label.session == session
        folders.append(folder_of(STORE, session))
        assert segment.name.startswith(folders[-1] + "/")
        for part in segment.name.split("/"):
            assert 0 < len(part) <= 255
            assert set(part) <= {*string.ascii_letters, *string.digits, *"._=-"}
        assert "." not in folders[-1]
    assert folders[0] != folders[1]


def test_longest_ids_fit() -> None:
    assert [len(part) for part in escaped("/" * 200).split("/")] == [201, 200]
    assert label_of(sealed(told(1, "/" * 200)).name) is not None


def test_names_of_one_session_sort_by_seq() -> None:
    commits = told(1200)
    names = []
    previous = genesis("s")
    for at in range(0, 1200, 100):
        segment = sealed(commits[at : at + 100], previous)
        names.append(segment.name)
        previous = segment.facts.digest
    assert names == sorted(names)


def test_portions_hold_some_megabytes_or_one_commit() -> None:
    small, large = (1, b"x" * 1000), (1, b"x" * (PORTION_BYTES + 1))
    commits = history("s", [small] * 10_000 + [large] + [small])
    found = list(portions(commits))
    assert [commit for portion in found for commit in portion] == commits
    sizes = [sum(len(commit.body) + COMMIT_BYTES for commit in portion) for portion in found]
    assert [len(portion) for portion in found] == [3495, 3495, 3010, 1, 1]
    assert [size > PORTION_BYTES for size in sizes] == [False, False, False, True, False]
