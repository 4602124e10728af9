"""The forms of a server's URL: what each means, and that nothing of one that is wrong is ever shown."""

from __future__ import annotations

import pytest

from domain import Misconfigured, SessionLog
from domain.log import Connecting
from domain.log.address import Address, parse_address, without_password
from tests.domain.log.logs import refused

SECRET = "s3cr3t-pa55"

FORMS = {
    "redis://": Address((("localhost", 6379),)),
    "redis://h": Address((("h", 6379),)),
    "redis://h:1/2": Address((("h", 1),), db=2),
    "redis://h:1?db=2": Address((("h", 1),), db=2),
    "redis://[::1]:1": Address((("::1", 1),)),
    "redis://ada:pa%2F%40ss@h": Address((("h", 6379),), username="ada", password="pa/@ss"),
    "redis://:pass@h": Address((("h", 6379),), password="pass"),
    "rediss://h:1": Address((("h", 1),), tls=True),
    "unix:///run/the.sock": Address(path="/run/the.sock"),
    "unix://ada:pass@/run/the.sock?db=3": Address(path="/run/the.sock", db=3, username="ada", password="pass"),
    "redis+sentinel://a:1,b,[::1]:3/main": Address((("a", 1), ("b", 26379), ("::1", 3)), service="main"),
    "redis+sentinel://ada:pass@a:1/main/4": Address((("a", 1),), service="main", db=4, username="ada", password="pass"),
    "rediss+sentinel://a/main": Address((("a", 26379),), service="main", tls=True),
}

WRONG = (
    "",
    "h:1",
    f"http://:{SECRET}@h",
    f"redis://:{SECRET}@h:0",
    f"redis://:{SECRET}@h:port",
    f"redis://:{SECRET}@h:99999",
    f"redis://:{SECRET}@h/zero",
    f"redis://:{SECRET}@h/0/1",
    f"redis://:{SECRET}@h/1?db=2",
    f"redis://:{SECRET}@a,b",
    f"redis://:x/{SECRET}@h",
    f"redis://:x#{SECRET}@h",
    f"redis://:x?{SECRET}@h",
    f"redis://h?password={SECRET}",
    f"redis://h?socket_timeout={SECRET}",
    f"redis://user:[{SECRET}@h",
    f"unix://{SECRET}/the.sock",
    "unix://",
    f"redis+sentinel://:{SECRET}@a:1",
    f"redis+sentinel://:{SECRET}@a:1,/main",
    f"redis+sentinel://:{SECRET}@/main",
    f"redis+sentinel://:{SECRET}@a:1/main/zero",
)


@pytest.mark.parametrize("url", FORMS)
def test_a_url_is_read_as_it_is_meant(url: str) -> None:
    """Every form of address, with its defaults."""
    assert parse_address(url) == FORMS[url]


@pytest.mark.parametrize("url", WRONG)
def test_a_url_that_is_none_is_refused_without_being_shown(url: str) -> None:
    """Also where a password with a character that ends it early makes an address of the rest."""
    error = refused(lambda: parse_address(url), Misconfigured, "SETTING_INVALID")
    again = refused(lambda: SessionLog.open(url), Misconfigured, "SETTING_INVALID")

    assert SECRET not in f"{error} {error!r} {again} {again!r}"


@pytest.mark.parametrize("url", [*FORMS, *WRONG])
def test_nothing_that_is_shown_of_how_to_connect_holds_a_password(url: str) -> None:
    """Neither of a URL, right or wrong, nor of what is given beside it."""
    connecting = Connecting(url, username="ada", password=SECRET, sentinel_username="s", sentinel_password=SECRET)
    shown = f"{connecting} {connecting!r} {connecting.__repr__()} {without_password(url)}"

    assert "username='ada'" in shown
    assert "password='***'" in shown
    if SECRET not in without_password(url).partition("@")[0]:  # unix://SECRET/the.sock, where it is a directory's name
        assert SECRET not in shown
    assert "pass@" not in shown
    if url in FORMS:
        assert "pass" not in repr(parse_address(url))
