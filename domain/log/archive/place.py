"""Where segments are kept: a folder or a bucket, by its URL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from domain.errors import Misconfigured
from domain.log.archive.folder import Folder


class Archive(Protocol):
    """Segments by name. What is in it is never changed; may be used by several threads at a time.

    All raise Unavailable (ARCHIVE_UNREACHABLE, ARCHIVE_FULL), Misconfigured (ARCHIVE_DENIED).
    """

    def put(self, name: str, content: bytes) -> None:
        """Keeps a segment; returns once it is there for good, and was read back. The same again is fine.

        Raises Damaged (ARCHIVE_DAMAGED) where something else is kept under this name, or was read back.
        """

    def get(self, name: str) -> bytes:
        """The content of a segment, as it is found: `opened` verifies it. Raises NotFound (ARCHIVE_MISSING)."""

    def names(self, folder: str) -> Iterator[str]:
        """The names of the segments in a folder and all beneath it, in order: those of one session by their seqs.

        A folder without a segment has none; "" is all of the archive.
        """

    def described(self) -> str:
        """Where it is, without any secret."""


def is_of_archive(code: str) -> bool:
    """Whether it is the archive that could not be read: then nothing is known of the log that lies in it."""
    return code.startswith("ARCHIVE_")


class NotGiven:
    """The archive of whoever was given none: what is asked of it says so (Misconfigured, ARCHIVE_NOT_GIVEN)."""

    def put(self, name: str, content: bytes) -> None:
        raise _not_given(name)

    def get(self, name: str) -> bytes:
        raise _not_given(name)

    def names(self, folder: str) -> Iterator[str]:
        raise _not_given(folder)

    def described(self) -> str:
        return "no archive"


def _not_given(wanted: str) -> Misconfigured:
    return Misconfigured("ARCHIVE_NOT_GIVEN", f"{wanted} is in the archive, and no archive was named")


class Keys(Struct, frozen=True):
    """What opens a bucket; no part of its URL. Without it the environment is asked, as by other clients of S3:
    AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, or the role of the machine.
    """

    key_id: str
    secret: str
    token: str | None = None

    def __repr__(self) -> str:
        return "Keys(…)"


def open_archive(url: str, keys: Keys | None = None) -> Archive:
    """The archive at a URL. Does no I/O. Raises Misconfigured (SETTING_INVALID), without a word of the URL.

    /path, file:///path                                        a folder, which must be there
    s3://bucket[/prefix][?region=…][&endpoint=https://host]    a bucket of S3, or of what speaks like it
    """
    scheme, separator, _ = url.partition("://")
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        if not separator and url:
            return Folder(Path(url))
        if scheme == "file" and not parts.netloc and len(parts.path) > 1 and not query and not parts.fragment:
            return Folder(Path(unquote(parts.path)))
        if scheme == "s3" and parts.netloc and not {"@", ":"} & {*parts.netloc} and not parts.fragment:
            endpoint, region = query.pop("endpoint", None), query.pop("region", None)
            if not query and _is_endpoint(endpoint):
                from domain.log.archive.bucket import Bucket  # here: its library is loaded by nobody else

                secrets = (keys.key_id, keys.secret, keys.token) if keys is not None else None
                return Bucket(
                    parts.netloc, unquote(parts.path).strip("/"), endpoint=endpoint, region=region, secrets=secrets
                )
    except ValueError:
        pass
    raise Misconfigured(
        "SETTING_INVALID",
        "an archive is /path, file:///path or s3://bucket/prefix?region=…&endpoint=https://host; "
        "what opens a bucket is no part of it",
    )


def _is_endpoint(url: str | None) -> bool:
    if url is None:
        return True
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc and not parts.query
