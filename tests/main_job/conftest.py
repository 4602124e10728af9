"""A `muster dev` for the tests of a module that do not disturb each other, and one for each test that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import DATA, children
from tests.main_job.running import Dev


@pytest.fixture(scope="module")
def module_dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """A `muster dev` on an empty data directory, shared by the tests of a module."""
    scratch = tmp_path_factory.mktemp("dev")
    # The logs hold sessions that may idle for a minute and a half: on a busy machine they would be warned meanwhile.
    with Dev(scratch, scratch / "data", MUSTER_SESSIONS__EXPIRE="false") as dev:
        yield dev


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    """A `muster dev` of the test's own, on an empty data directory."""
    with Dev(tmp_path, tmp_path / "data") as dev:
        yield dev


@pytest.fixture
def start_dev(tmp_path: Path) -> Iterator[Callable[[Path], Dev]]:
    """Starts a `muster dev` on a data directory; the test may stop it, else it is stopped after the test."""
    with ExitStack() as running:
        yield lambda data_dir: running.enter_context(Dev(tmp_path, data_dir))


@pytest.fixture(scope="session")
def real_logs() -> None:
    """Skips a test where the real logs are not there."""
    if not DATA.is_dir():
        pytest.skip(f"there are no logs in {DATA}")


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """No process that a test started outlives it; the `dev` of its module, which was there before, may."""
    before = children()
    yield
    left = children() - before
    assert not left, f"the test left child processes behind: {sorted(left)}"
