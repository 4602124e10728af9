"""Where a server is: the forms of its URL, each read strictly. Does no I/O.

    redis://[user:password@]host[:port][/db]                                  plain
    rediss://…                                                                the same over TLS
    unix://[user:password@]/path/of/the.sock[?db=N]                           a socket on this host
    redis+sentinel://[user:password@]host[:port],host[:port],…/service[/db]   whoever the Sentinels call primary
    rediss+sentinel://…                                                       the same, all of it over TLS

A URL that is read otherwise than it was meant connects to another server, or shows a password as a host name: so what
does not fit is refused, and no error repeats any part of a URL.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

from domain.errors import Misconfigured

DEFAULT_PORT = 6379
DEFAULT_SENTINEL_PORT = 26379
_SCHEMES = frozenset({"redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"})


class Address(Struct, frozen=True):
    """A URL, read. `hosts` is empty for a socket; with a `service`, they are its Sentinels."""

    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False

    def __repr__(self) -> str:
        return f"Address({','.join(f'{host}:{port}' for host, port in self.hosts) or self.path}, {self.service!r})"


def parse_address(url: str) -> Address:
    """Reads a URL. Raises Misconfigured (SETTING_INVALID), without a word of what may be a password."""
    try:
        # Who and where are read here: what urlsplit makes of several hosts differs from one Python to the next.
        scheme, _, rest = url.partition("://")
        authority = re.split("[/?#]", rest, maxsplit=1)[0]
        return _parsed(urlsplit(f"{scheme}://{rest[len(authority) :]}"), authority)
    except ValueError:
        raise Misconfigured(
            "SETTING_INVALID",
            "redis.url is no address such as redis://user:password@host:6379/0, rediss://…, unix:///path?db=0 or "
            "redis+sentinel://host:26379,host:26379/service/0; "
            "in a password, / is written %2F, # %23, ? %3F, @ %40, [ %5B, ] %5D",
        ) from None


def without_password(url: str) -> str:
    """A URL as it may be shown: whatever stands between the user and the last @ is left out, also where it is wrong,
    and so is the query, where others put passwords.
    """
    scheme, separator, rest = url.partition("://")
    user, at, address = rest.rpartition("@")
    shown = f"{user.partition(':')[0]}:***@{address}" if at else rest
    return f"{scheme}{separator}{shown.partition('?')[0].partition('#')[0]}"


def _parsed(parts: SplitResult, authority: str) -> Address:
    """Raises ValueError for what is no address, or not surely the one that was meant."""
    scheme = parts.scheme
    user, _, hosts = authority.rpartition("@")
    # A password with a character that ends it early makes another address of the rest.
    _require(scheme in _SCHEMES and not parts.fragment and "@" not in hosts + parts.path + parts.query)
    _require(not set("[] \t\r\n") & set(user))
    username, _, password = user.partition(":")
    query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
    _require(query.keys() <= {"db"})
    path = service = ""
    names = [unquote(name) for name in parts.path.split("/")[1:]]
    found: tuple[tuple[str, int], ...] = ()
    if scheme == "unix":
        _require(not hosts and len(parts.path) > 1)
        path, names = unquote(parts.path), []
    elif "sentinel" in scheme:
        service, *names = names or [""]
        _require(service != "")
        found = tuple(_host(host, DEFAULT_SENTINEL_PORT) for host in hosts.split(","))
    else:
        found = (_host(hosts or "localhost", DEFAULT_PORT),)
    _require(len(names) < 2 and not ("db" in query and any(names)))
    return Address(
        found,
        path,
        service,
        _db(query.get("db", "") or "".join(names)),
        unquote(username) or None,
        unquote(password) or None,
        scheme.startswith("rediss"),
    )


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _host(host: str, default_port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{host}")
    _require(parts.hostname is not None and parts.netloc == host and "," not in host and parts.port != 0)
    return unquote(parts.hostname or ""), parts.port or default_port


def _db(text: str) -> int:
    _require(text == "" or (text.isascii() and text.isdigit()))
    return int(text or 0)
