"""What verification found right, kept so that a later one need not read unchanged history again.

A proof says of a session: at this commit, log, view and newest checkpoint were what two readings of the log give.
Whoever goes on from that checkpoint looks first whether its bytes are still those, and whether the log still holds its
digest.
Proofs are derived: where one is missing or cannot be read, the session counts as never verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import Any, Final

import msgspec
from msgspec import Struct


class Proof(Struct, frozen=True, array_like=True):
    """Where a session was found right: seq and digest of its log there, the bytes of its view and of its newest
    checkpoint (seq 0: it had none), each by their digest.
    """

    seq: int
    digest: str
    view: bytes
    checkpoint_seq: int = 0
    checkpoint: bytes = b""

    def is_at(self, seq: int, digest: str) -> bool:
        """Whether this is where the session stands."""
        return (self.seq, self.digest) == (seq, digest)


#: Nothing is proved.
NO_PROOFS: Final[Mapping[str, Proof]] = {}

_PROOF = msgspec.msgpack.Decoder(Proof)


def fingerprint(stored: bytes | None) -> bytes:
    """What tells stored bytes from others; of nothing, too."""
    return sha1(b"" if stored is None else b"=" + stored).digest()[:10]


def proof_of(seq: int, digest: str, view: bytes | None, checkpoints: Mapping[int, bytes]) -> Proof:
    """The proof for what was found right."""
    newest = max(checkpoints, default=0)
    return Proof(seq, digest, fingerprint(view), newest, fingerprint(checkpoints[newest]) if newest else b"")


def read_proofs(client: Any, key: str, sessions: Sequence[str]) -> dict[str, Proof]:
    """The proofs that are kept of these sessions, and can be read."""
    found = {}
    for session, stored in zip(sessions, client.hmget(key, list(sessions)) if sessions else (), strict=True):
        try:
            if stored is not None:
                found[session] = _PROOF.decode(stored)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def packed(proof: Proof) -> bytes:
    """A proof as it is stored."""
    return msgspec.msgpack.encode(proof)
