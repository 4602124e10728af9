"""Makes a bundle: all parts at once, each bounded, what is not there in time left out and said to be.

The archive is written beside and then moved into its place, for its owner's eyes only.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final, Literal

import msgspec
import redis
from msgspec import Struct

from domain.errors import MusterError
from domain.log.connection import connection_error
from workers.diagnostics.parts import PARTS, Part, Sources
from workers.diagnostics.redaction import Redaction

SCHEMA: Final = "muster.diagnostics/1"
#: How many bytes of a part are kept.
MOST: Final = 1024 * 1024


class Collected(Struct, frozen=True):
    """What became of a part. `content` is None where there is none."""

    file: str
    state: Literal["whole", "cut", "failed", "late"]
    took_s: float
    code: str | None = None
    why: str | None = None
    content: bytes | None = None

    def document(self) -> dict[str, Any]:
        size = None if self.content is None else len(self.content)
        told = {"file": self.file, "state": self.state, "took_s": round(self.took_s, 3), "bytes": size}
        return told | ({"code": self.code, "why": self.why} if self.why is not None else {})


def collect(
    sources: Sources, redaction: Redaction, *, timeout_s: float, most: int = MOST, parts: Sequence[Part] = PARTS
) -> list[Collected]:
    """All parts, in their order, within the time; what hangs is left behind with its thread."""
    answers: SimpleQueue[Collected] = SimpleQueue()
    began = time.monotonic()
    for part in parts:
        arguments = (part, sources, redaction, most, answers)
        Thread(target=_collect, args=arguments, name=f"collect-{part.file}", daemon=True).start()
    found: dict[str, Collected] = {}
    while len(found) < len(parts) and (left := began + timeout_s - time.monotonic()) > 0:
        try:
            one = answers.get(timeout=left)
        except Empty:
            break
        found[one.file] = one
    late = f"not there within {timeout_s:g} s"
    return [found.get(part.file) or Collected(part.file, "late", timeout_s, "SERVER_SILENT", late) for part in parts]


def write(collected: list[Collected], path: Path | None, redaction: Redaction) -> Path:
    """Writes the archive with a manifest; None: into the working directory, named by the time. Raises OSError."""
    now = datetime.now(UTC)
    name = f"muster-diagnostics-{now:%Y%m%dT%H%M%SZ}"
    target = path or Path(f"{name}.tar.gz")
    manifest = {
        "schema": SCHEMA,
        "made_at": now.isoformat(timespec="seconds"),
        "parts": [one.document() for one in collected],
    }
    files = [("manifest.json", _content(manifest, redaction, is_foreign=True))]
    files += [(one.file, one.content) for one in collected if one.content is not None]
    handle, beside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for file_name, content in files:
                entry = tarfile.TarInfo(f"{name}/{file_name}")
                entry.size, entry.mode, entry.mtime = len(content), 0o600, now.timestamp()
                archive.addfile(entry, io.BytesIO(content))
        Path(beside).rename(target)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    return target


def _collect(part: Part, sources: Sources, redaction: Redaction, most: int, answers: SimpleQueue[Collected]) -> None:
    began = time.monotonic()

    def failed(code: str, why: str) -> Collected:
        return Collected(part.file, "failed", time.monotonic() - began, code, redaction.text(why, is_foreign=True))

    try:
        made = part.make(sources)
        content = _content(made, redaction, is_foreign=part.is_foreign)
        state: Literal["whole", "cut"] = "whole" if len(content) <= most else "cut"
        found = Collected(part.file, state, time.monotonic() - began, content=content[:most])
    except MusterError as error:
        found = failed(error.code, error.cause)
    except (redis.RedisError, OSError) as error:
        typed = connection_error(error) if not isinstance(error, FileNotFoundError) else None
        found = failed(typed.code if typed is not None else "FILE_UNREADABLE", str(error))
    except Exception as error:  # a bug in a part keeps no other from being there
        found = failed("SERVER_ERROR", f"{type(error).__name__}: {error}")
    answers.put(found)


def _content(made: Any, redaction: Redaction, *, is_foreign: bool) -> bytes:
    if isinstance(made, str):
        return redaction.text(made, is_foreign=is_foreign).encode()
    clean = redaction.value(msgspec.to_builtins(made), is_foreign=is_foreign)
    return msgspec.json.format(msgspec.json.encode(clean), indent=1)
