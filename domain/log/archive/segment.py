"""A segment: the commits of one session from a seq to another, sealed. Does no I/O.

    <store>/<session>/<from seq>-<to seq>-<SHA-256 of the content>.ndjson.zst

The content is zstd-compressed NDJSON: the manifest, then a line a commit. The name says what is in it, to the last
byte: so one that changed is found whatever changed, the same name is the same content, and no segment can take the
place of another. Where a log was rewritten, the segments of what was given up stay beside those of what took its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Final

import msgspec
import zstandard
from msgspec import Struct

from domain.codec import Commit
from domain.errors import Damaged
from domain.invariants import is_chained, is_dense
from domain.log.lines import LineUnreadable, decode_line, encode_line

SCHEMA: Final = "muster.segment/1"
SUFFIX: Final = ".ndjson.zst"
#: What `portions` puts into one segment: bytes of bodies, and as many for each commit as its line has besides.
PORTION_BYTES: Final = 4 * 1024 * 1024
COMMIT_BYTES: Final = 200
#: More than the lines of any segment have, were every character of its largest commit escaped.
_LINES_BYTES: Final = 256 * 1024 * 1024
#: A part of a path has 255 bytes at most; an escaped id may have 400.
_PART: Final = 200
_ESCAPES: Final = {".": "=d", ":": "=c", "@": "=a", "/": "=s", "+": "=p"}
_PLAIN: Final = {escape: plain for plain, escape in _ESCAPES.items()}
_NAME: Final = re.compile(
    r"(?P<store>[A-Za-z0-9_-]+)/(?P<session>[A-Za-z0-9_=/-]+)/"
    r"(?P<from>[0-9]{16})-(?P<to>[0-9]{16})-(?P<sha>[0-9a-f]{64})" + re.escape(SUFFIX)
)


class Facts(Struct, frozen=True):
    """What a segment's manifest says of it. `previous` is the digest before its first commit, `digest` that after its
    last one, `at_ms` the server time of the last one, `sha256` the checksum of the lines that follow the manifest.
    """

    store: str
    session: str
    from_seq: int
    to_seq: int
    previous: str
    digest: str
    commits: int
    events: int
    at_ms: int
    sha256: str
    schema: str = SCHEMA


class Segment(Struct, frozen=True):
    """A sealed segment, to be put into an archive under its name."""

    name: str
    content: bytes
    facts: Facts


class Label(Struct, frozen=True):
    """What a segment's name says."""

    store: str
    session: str
    from_seq: int
    to_seq: int
    sha256: str


# -- names -----------------------------------------------------------------------------------------------------------


def folder_of(store: str, session: str) -> str:
    """Where the segments of a session are."""
    return f"{store}/{escaped(session)}"


def label_of(name: str) -> Label | None:
    """What a name says; None if it is not that of a segment."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    session = re.sub("=[a-z]", lambda found: _PLAIN.get(found[0], "="), match["session"].replace("=/", ""))
    label = Label(match["store"], session, int(match["from"]), int(match["to"]), match["sha"])
    return label if name_of(label) == name else None


def name_of(label: Label) -> str:
    """The name that says so."""
    folder = folder_of(label.store, label.session)
    return f"{folder}/{label.from_seq:016}-{label.to_seq:016}-{label.sha256}{SUFFIX}"


def escaped(session: str) -> str:
    """A session's id as a path that is safe in folders and buckets, and no other session's.

    Letters, digits, _ and - stand for themselves; an id that is too long for one part of a path goes on in the next,
    and the part that is not the last ends with =.
    """
    parts = [""]
    for character in session:
        if len(parts[-1]) >= _PART:
            parts[-1] += "="
            parts.append("")
        parts[-1] += _ESCAPES.get(character, character)
    return "/".join(parts)


# -- sealing ---------------------------------------------------------------------------------------------------------


def portions(commits: Iterable[Commit]) -> Iterator[list[Commit]]:
    """Commits in as many as one segment should hold: some 10 MB of lines at most, but one commit at least."""
    portion, size = list[Commit](), 0
    for commit in commits:
        more = len(commit.body) + COMMIT_BYTES
        if portion and size + more > PORTION_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(commit)
        size += more
    if portion:
        yield portion


def seal(store: str, session: str, previous_digest: str, commits: Sequence[Commit]) -> Segment:
    """The segment of these commits, of which the first follows on `previous_digest`.

    Raises Damaged (LOG_ALTERED, LOG_GAP) if they do not chain: what does not verify is not archived.
    """
    first, last = commits[0], commits[-1]
    seq, digest = first.first_seq - 1, previous_digest
    for commit in commits:
        if commit.session != session or not is_dense(seq, commit):
            raise Damaged("LOG_GAP", f"session {session} has no commit that begins at seq {seq + 1}", seq=seq + 1)
        if not is_chained(digest, commit):
            raise Damaged("LOG_ALTERED", f"the commit at seq {seq + 1} of session {session} does not fit", seq=seq + 1)
        seq, digest = commit.last_seq, commit.digest
    lines = b"".join(encode_line(commit) + b"\n" for commit in commits)
    facts = Facts(
        store, session, first.first_seq, seq, previous_digest, digest, len(commits), seq - first.first_seq + 1,
        last.at_ms, sha256(lines).hexdigest(),
    )  # fmt: skip
    content = zstandard.ZstdCompressor(level=6, write_checksum=True).compress(
        msgspec.json.encode(facts) + b"\n" + lines
    )
    label = Label(store, session, facts.from_seq, facts.to_seq, sha256(content).hexdigest())
    return Segment(name_of(label), content, facts)


# -- opening ---------------------------------------------------------------------------------------------------------


def opened(name: str, content: bytes) -> list[Commit]:
    """The commits of a segment, in order.

    Raises Damaged (ARCHIVE_DAMAGED) if one byte of it is not as it was sealed, or it is another one than its name says.
    The error's `seq` is the first one that cannot be had of it; those before it verify.
    """
    label = label_of(name)
    if label is None:
        raise damaged(name, "that is not the name of a segment", 0)
    commits, why = _read(label, content)
    if sha256(content).hexdigest() != label.sha256:
        why = "its checksum is not that in its name"
    if why is not None:
        raise damaged(name, why, commits[-1].last_seq + 1 if commits else label.from_seq)
    return commits


def damaged(name: str, why: str, seq: int) -> Damaged:
    """The error of a segment that is not as it was sealed, from a seq on."""
    return Damaged("ARCHIVE_DAMAGED", f"segment {name}, from seq {seq}: {why}", name=name, seq=seq)


def _read(label: Label, content: bytes) -> tuple[list[Commit], str | None]:
    """The commits up to the first that is not as it was sealed, and why not; None if all are."""
    commits: list[Commit] = []
    try:
        if zstandard.frame_content_size(content) > _LINES_BYTES:
            return [], "it holds more than any segment does"
        manifest, _, lines = zstandard.ZstdDecompressor().decompress(content).partition(b"\n")
        facts = msgspec.json.decode(manifest, type=Facts)
        seq, digest = facts.from_seq - 1, facts.previous
        if (facts.store, facts.session, facts.from_seq, facts.to_seq, facts.schema) != (
            label.store, label.session, label.from_seq, label.to_seq, SCHEMA,
        ):  # fmt: skip
            return [], f"it is that of session {facts.session}, seq {facts.from_seq} to {facts.to_seq}"
        for line in lines.split(b"\n")[:-1]:
            commit = decode_line(line)
            if commit.session != label.session or not is_dense(seq, commit) or not is_chained(digest, commit):
                return commits, f"the commit at seq {seq + 1} does not fit what comes before it"
            commits.append(commit)
            seq, digest = commit.last_seq, commit.digest
    except (zstandard.ZstdError, msgspec.MsgspecError, LineUnreadable) as error:
        return commits, str(error)
    known = (seq, digest, len(commits), sha256(lines).hexdigest())
    if known != (facts.to_seq, facts.digest, facts.commits, facts.sha256):
        return commits, "its lines are not those that its manifest names"
    return commits, None
