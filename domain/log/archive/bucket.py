"""An archive in a bucket of S3, or of what speaks like it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final

import obstore
from obstore import exceptions
from obstore.store import S3Store

from domain.errors import Damaged, Misconfigured, NotFound, Unavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

_CONNECT: Final = timedelta(seconds=5)
#: A segment has a few MB.
_REQUEST: Final = timedelta(seconds=60)
_RETRIES: Final[RetryConfig] = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


class Bucket:
    """Segments as objects. What opens it is in no text that it gives."""

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        endpoint: str | None,
        region: str | None,
        secrets: tuple[str, str, str | None] | None,
    ) -> None:
        config: S3Config = {}
        if endpoint is not None:
            config["endpoint"] = endpoint
        if region is not None:
            config["region"] = region
        if secrets is not None:
            config["access_key_id"], config["secret_access_key"] = secrets[:2]
            if secrets[2] is not None:
                config["session_token"] = secrets[2]
        options: ClientConfig = {
            "connect_timeout": _CONNECT,
            "timeout": _REQUEST,
            "allow_http": endpoint is not None and endpoint.startswith("http:"),
        }
        self._store = S3Store(
            bucket, prefix=prefix or None, config=config, client_options=options, retry_config=_RETRIES
        )
        at = f" at {endpoint}" if endpoint is not None else ""
        self._described = f"bucket s3://{bucket}/{prefix}".rstrip("/") + at

    def put(self, name: str, content: bytes) -> None:
        # It may be there: by an earlier attempt, or by whoever sealed the same. It is read back all the same.
        with self._asked(), suppress(exceptions.AlreadyExistsError):
            obstore.put(self._store, name, content, mode="create", use_multipart=False)
        if self.get(name) != content:
            raise Damaged("ARCHIVE_DAMAGED", f"segment {name}: {self._described} holds something else", name=name)

    def get(self, name: str) -> bytes:
        with self._asked():
            try:
                return obstore.get(self._store, name).bytes().to_bytes()
            except (exceptions.NotFoundError, FileNotFoundError):
                raise NotFound("ARCHIVE_MISSING", f"{self._described} has no segment {name}", name=name) from None

    def names(self, folder: str) -> Iterator[str]:
        pages = obstore.list(self._store, folder, chunk_size=1000)
        while True:
            with self._asked():
                page = next(pages, None)
            if page is None:
                return
            yield from (found["path"] for found in page)

    def described(self) -> str:
        return self._described

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            raise Misconfigured("ARCHIVE_DENIED", f"{self._described} does not let this key in") from None
        except (exceptions.BaseError, OSError) as error:
            # What the library says goes on with the request itself, its headers among it, after the first line.
            said = str(error).partition("\n")[0]
            raise Unavailable("ARCHIVE_UNREACHABLE", f"{self._described}: {said}") from None
