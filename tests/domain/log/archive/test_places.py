"""The places of segments, folder and bucket, under one contract: kept for good, never changed, read back."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from domain import Damaged, Misconfigured, NotFound, Unavailable
from domain.codec import genesis
from domain.log.archive.folder import ABANDONED_S, Folder
from domain.log.archive.place import Archive, Keys, NotGiven, open_archive
from domain.log.archive.segment import folder_of, opened, seal
from tests.domain.log.archive.conftest import KEYS
from tests.domain.log.archive.test_segment import STORE, told
from tests.domain.log.logs import refused


def test_what_was_put_is_got_by_whoever_opens_the_archive(archive: Archive, archive_url: str) -> None:
    commits = told(50, "a/b:c@d.e+f")
    segment = seal(STORE, commits[0].session, genesis(commits[0].session), commits)
    archive.put(segment.name, segment.content)
    archive.put(segment.name, segment.content)
    again = open_archive(archive_url, KEYS)
    assert opened(segment.name, again.get(segment.name)) == commits
    assert list(again.names("")) == [segment.name]


def test_names_are_given_by_folder_in_order(archive: Archive) -> None:
    """Of one session, of a store, of all; a session whose id begins like another's is another one."""
    sessions = ["s", "s-1", "s/1", "s.1", "t", "/" * 101 + "a", "/" * 200]
    names = []
    for session in sessions:
        commits = told(6, session)
        for part, previous in ((commits[:3], genesis(session)), (commits[3:], commits[2].digest)):
            segment = seal(STORE, session, previous, part)
            archive.put(segment.name, segment.content)
            names.append(segment.name)
    for number, session in enumerate(sessions):
        assert list(archive.names(folder_of(STORE, session))) == names[2 * number : 2 * number + 2]
    assert list(archive.names(STORE)) == sorted(names)
    assert list(archive.names("another")) == []
    assert list(archive.names(names[0])) in ([], [names[0]])


def test_a_segment_that_is_not_there_is_missing(archive: Archive) -> None:
    refused(lambda: archive.get("a/b/c"), NotFound, "ARCHIVE_MISSING")
    assert list(archive.names("")) == []


def test_nothing_is_overwritten(archive: Archive) -> None:
    archive.put("a/b/c", b"one")
    refused(lambda: archive.put("a/b/c", b"two"), Damaged, "ARCHIVE_DAMAGED")
    assert archive.get("a/b/c") == b"one"


def test_many_put_the_same_at_the_same_time(archive: Archive) -> None:
    content = os.urandom(1 << 20)
    failed: list[BaseException] = []

    def put() -> None:
        try:
            for name in ("a/x", "a/y", "b/c/z"):
                archive.put(name, content)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert list(archive.names("")) == ["a/x", "a/y", "b/c/z"]
    assert {archive.get(name) for name in archive.names("")} == {content}


# -- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_not_there_is_no_archive(tmp_path: Path) -> None:
    """Nothing is made in its place: its disk may not be mounted."""
    archive = open_archive(str(tmp_path / "archive"))
    refused(lambda: archive.put("a/b", b"x"), Unavailable, "ARCHIVE_UNREACHABLE")
    refused(lambda: archive.get("a/b"), Unavailable, "ARCHIVE_UNREACHABLE")
    refused(lambda: list(archive.names("")), Unavailable, "ARCHIVE_UNREACHABLE")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Folder(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        refused(lambda: archive.put("a/b", b"x"), Unavailable, "ARCHIVE_FULL")
    assert list(archive.names("")) == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_without_rights_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = Folder(tmp_path)

    def denied(*_: object) -> None:
        raise OSError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", denied)
        refused(lambda: archive.put("a/b", b"x"), Misconfigured, "ARCHIVE_DENIED")


class Died(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("call", ["open", "mkdir", "fsync", "rename"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_writer_that_died_anywhere_leaves_no_half_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    """Who comes next finds it whole or not at all, and puts it."""
    archive, content, calls = Folder(tmp_path), os.urandom(100_000), [0]
    original: Callable[..., object] = getattr(os, call)

    def die(*args: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] >= nth:
            raise Died
        return original(*args, **options)

    with monkeypatch.context() as dying:
        dying.setattr(os, call, die)
        with contextlib.suppress(Died):
            archive.put("a/b/c", content)
    assert [archive.get(name) for name in archive.names("")] in ([], [content])
    archive.put("a/b/c", content)
    assert archive.get("a/b/c") == content
    assert list(archive.names("")) == ["a/b/c"]


def aged(path: Path, seconds: float) -> None:
    """Has a file last been written so long before now, by the clock of its file system."""
    now = path.parent.joinpath("now")
    now.touch()
    at = now.stat().st_mtime - seconds
    now.unlink()
    os.utime(path, (at, at))


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def left_by_a_dead_writer(archive: Folder, folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    def die(_: int) -> None:
        raise Died

    before = files(folder)
    with monkeypatch.context() as dying, contextlib.suppress(Died):
        dying.setattr(os, "fsync", die)
        archive.put(name, b"x")
    (left,) = files(folder) - before
    return left


def test_what_a_dead_writer_left_is_removed_by_who_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whichever session of the store; nothing that is whole, however old, and nothing that may still be written."""
    archive = Folder(tmp_path)
    dead = left_by_a_dead_writer(archive, tmp_path, "store/dead/x", monkeypatch)
    archive.put("store/before/x", b"x")
    assert dead in files(tmp_path)
    alive = left_by_a_dead_writer(archive, tmp_path, "store/alive/x", monkeypatch)
    aged(dead, ABANDONED_S + 60)
    aged(alive, ABANDONED_S - 60)
    aged(tmp_path / "store" / "before" / "x", 10 * ABANDONED_S)

    archive.put("another/session/x", b"x")
    assert dead in files(tmp_path), "another store's is not ours to judge"
    archive.put("store/next/x", b"x")

    whole = ["another/session/x", "store/before/x", "store/next/x"]
    assert files(tmp_path) == {alive, *(tmp_path / name for name in whole)}
    assert list(archive.names("")) == whole


def test_a_writer_that_was_held_up_for_too_long_is_told_and_puts_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is taken for abandoned, by somebody who writes meanwhile: it keeps nothing that is not whole."""
    archive, fsync = Folder(tmp_path), os.fsync

    def held_up(at: int) -> None:
        fsync(at)
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(os, "fsync", fsync)
            (mine,) = files(tmp_path)
            aged(mine, ABANDONED_S + 60)
            archive.put("store/another/x", b"x")
            assert mine not in files(tmp_path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", held_up)
        refused(lambda: archive.put("store/session/x", b"x"), Unavailable, "ARCHIVE_UNREACHABLE")
    assert list(archive.names("")) == ["store/another/x"]
    archive.put("store/session/x", b"x")
    assert archive.get("store/session/x") == b"x"


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", "."])
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "archive").mkdir()
    archive = Folder(tmp_path / "archive")
    refused(lambda: archive.get(name), NotFound, "ARCHIVE_MISSING")
    refused(lambda: archive.put(name, b"x"), NotFound, "ARCHIVE_MISSING")


# -- buckets ---------------------------------------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_cannot_be_reached(s3_url: str) -> None:
    archive = open_archive(f"s3://nowhere?region=us-east-1&endpoint={s3_url}", KEYS)
    refused(lambda: archive.put("a/b", b"x"), Unavailable, "ARCHIVE_UNREACHABLE")
    refused(lambda: list(archive.names("")), Unavailable, "ARCHIVE_UNREACHABLE")


def test_a_server_that_is_away_is_said_without_a_secret() -> None:
    archive = open_archive("s3://b/p?region=us-east-1&endpoint=http://127.0.0.1:1", KEYS)
    for call in (lambda: archive.get("a"), lambda: archive.put("a", b"x"), lambda: list(archive.names(""))):
        with pytest.raises(Unavailable, match="ARCHIVE_UNREACHABLE") as caught:
            call()
        assert KEYS.secret not in f"{caught.value} {archive.described()} {archive!r} {KEYS!r}"


def test_whoever_was_given_no_archive_is_told_so() -> None:
    archive: Archive = NotGiven()
    for call in (lambda: archive.get("a"), lambda: archive.put("a", b"x"), lambda: list(archive.names("a"))):
        refused(call, Misconfigured, "ARCHIVE_NOT_GIVEN")


# -- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "described"),
    [
        ("/var/archive", "folder /var/archive"),
        ("file:///var/my%20archive", "folder /var/my archive"),
        ("s3://b", "bucket s3://b"),
        ("s3://b/one/two/?region=eu-west-1", "bucket s3://b/one/two"),
        ("s3://b?endpoint=https://s3.example.org", "bucket s3://b at https://s3.example.org"),
    ],
)
def test_an_address_is_read(url: str, described: str) -> None:
    assert open_archive(url).described() == described


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file://host/path",
        "file:///",
        "s3://",
        "s3:///x",
        "s3://key:word@b",
        "s3://word@b",
        "s3://b?secret_access_key=word",
        "s3://b?region",
        "s3://b#word",
        "s3://b?endpoint=ftp://x",
        "s3://b?endpoint=https://key:word@x",
        "gs://b",
        "http://x/word",
    ],
)
def test_an_address_that_is_none_is_refused_and_not_repeated(url: str) -> None:
    """There may be a password in it."""
    with pytest.raises(Misconfigured, match="SETTING_INVALID") as caught:
        open_archive(url, Keys("k", "s"))
    assert "word" not in str(caught.value)
