"""How a derived value is stored: a checksum over all its bytes, the projection's version, then the value.

The bytes are a function of the value alone: maps and sets are sorted. So two values are equal if their bytes are,
whoever built them and in whatever order.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Any, Final, TypeVar

import msgspec

from domain.errors import Damaged

T = TypeVar("T")

_CHECKSUM_BYTES: Final = 8
_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def seal(version: int, value: Any) -> bytes:
    """The stored bytes of a value built by this version of a projection."""
    body = _ENCODER.encode((version, value))
    return sha1(body).digest()[:_CHECKSUM_BYTES] + body


def version_of(stored: bytes) -> int | None:
    """By which version a whole value was built; None for bytes that were altered."""
    body = stored[_CHECKSUM_BYTES:]
    if sha1(body).digest()[:_CHECKSUM_BYTES] != stored[:_CHECKSUM_BYTES]:
        return None
    try:
        return _VERSIONED.decode(body)[0]
    except (msgspec.MsgspecError, IndexError):
        return None


_VERSIONED = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])


class Seal:
    """Reads values of one type, built by one version."""

    def __init__(self, version: int, type: type[Any]) -> None:
        self._version = version
        self._decoder = msgspec.msgpack.Decoder(tuple[int, type])  # type: ignore[valid-type]

    def open(self, stored: bytes) -> Any:
        """The value. Raises Damaged (VIEW_UNREADABLE) for bytes that were altered or come from another version."""
        body = stored[_CHECKSUM_BYTES:]
        if sha1(body).digest()[:_CHECKSUM_BYTES] != stored[:_CHECKSUM_BYTES]:
            raise Damaged("VIEW_UNREADABLE", "the checksum does not fit the bytes")
        try:
            version, value = self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise Damaged("VIEW_UNREADABLE", f"the value cannot be decoded: {error}") from None
        if version != self._version:
            raise Damaged("VIEW_UNREADABLE", f"the value is of version {version}, not {self._version}")
        return value
