"""`muster explain`: every code, and the texts of errors as people paste them."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import given
from redis._parsers import BaseParser

from domain import NotFound
from domain.errors import REGISTRY
from domain.log.protocol import SERVER_WORDS
from projections.findings import KINDS
from workers.cli import main
from workers.explaining import IN_OTHER_WORDS, markdown, recognised

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"

#: What is pasted, and the code it means.
PASTED = {
    "MOVED 3999 127.0.0.1:6381": "SLOT_MOVED",
    "ASK 3999 127.0.0.1:6381": "SLOT_MOVED",
    "CROSSSLOT Keys in request don't hash to the same slot": "SLOTS_CROSSED",
    "NOSCRIPT No matching script. Please use EVAL.": "SCRIPT_MISSING",
    "ERR Function not found": "FUNCTIONS_MISSING",
    "WRONGTYPE Operation against a key holding the wrong kind of value": "KEY_DAMAGED",
    "CLUSTERDOWN Hash slot not served": "CLUSTER_DOWN",
    "TRYAGAIN Multiple keys request during rehashing of slot": "SLOT_UNSTABLE",
    "OOM command not allowed when used memory > 'maxmemory'.": "SERVER_OUT_OF_MEMORY",
    "NOAUTH Authentication required.": "ACCESS_DENIED",
    "WRONGPASS invalid username-password pair or user is disabled.": "ACCESS_DENIED",
    "NOPERM User worker has no permissions to run the 'config|get' command": "ACCESS_DENIED",
    "LOADING Redis is loading the dataset in memory": "SERVER_LOADING",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist": "SERVER_CANNOT_PERSIST",
    "READONLY You can't write against a read only replica.": "SERVER_READ_ONLY",
    "NOREPLICAS Not enough good replicas to write.": "SERVER_LACKS_REPLICAS",
    "ERR max number of clients reached": "SERVER_FULL",
    "Error 111 connecting to 127.0.0.1:6379. Connection refused.": "UNREACHABLE",
    "Error -2 connecting to nowhere.invalid:6379. Name or service not known.": "NAME_UNRESOLVED",
    "Timeout reading from 127.0.0.1:6379": "SERVER_SILENT",
    "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: unable to get local issuer certificate": "TLS_FAILED",
    "error: SEQ_CONFLICT: the session s-1 stands at 7, not at 6": "SEQ_CONFLICT",
    "VIEW_DIFFERS  error  view  s-1": "VIEW_DIFFERS",
}


@pytest.mark.parametrize("text", PASTED)
@pytest.mark.parametrize("wrapped", ["{}", "(error) {}\n", 'Traceback:\n  x.py, line 3\nredis.exceptions.E: "{}"'])
def test_a_pasted_text_is_recognised(text: str, wrapped: str) -> None:
    """As it came from the server, from redis-cli, or at the end of a traceback."""
    assert recognised(wrapped.format(text)) == PASTED[text]


@pytest.mark.parametrize("text", [text for text in PASTED if text.split()[0].isupper() and text[0] != "["])
def test_what_redis_py_makes_of_a_reply_is_recognised_too(text: str) -> None:
    """It cuts the first word off, and says the rest by its class."""
    error = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    assert isinstance(error, redis.RedisError)

    assert recognised(f"redis.exceptions.{type(error).__name__}: {error}") == PASTED[text]


def test_every_word_of_the_server_leads_to_its_code() -> None:
    """The table by which errors are typed is the one by which texts are recognised; none of it leads to nothing."""
    for prefix, raised_as, code in SERVER_WORDS:
        assert REGISTRY[code].raised_as is raised_as
        assert recognised(f"(error) {prefix} and so on") == code
    assert {code for _, code in IN_OTHER_WORDS} <= REGISTRY.keys()


def test_of_several_the_first_counts() -> None:
    """A log is pasted from where it went wrong."""
    assert recognised("LOADING the dataset; before that: NOAUTH, MOVED 1 a:1, OOM") == "SERVER_LOADING"
    assert recognised("(error) OOM not allowed; then LOADING, READONLY") == "SERVER_OUT_OF_MEMORY"


def test_what_nobody_knows_is_not_guessed() -> None:
    """Exit 4, and the text in one line."""
    with pytest.raises(NotFound, match="CODE_UNKNOWN"):
        recognised("it does not work since lunch\nplease help")
    assert recognised("behind") == "BEHIND"
    assert main(["explain", "it", "does", "not", "work"]) == 4
    assert main(["explain"]) == 9


@given(st.text(max_size=200))
def test_whatever_is_pasted_is_known_or_not(text: str) -> None:
    """Never a traceback."""
    with suppress(NotFound):
        assert recognised(text) in REGISTRY.keys() | KINDS.keys()


def test_an_explanation_says_class_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    """Given as one argument or as many; and also where the settings are broken."""
    assert main(["explain", "MOVED", "3999", "127.0.0.1:6381", "-o", "json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert (told["code"], told["raised_as"], told["exit_code"]) == ("SLOT_MOVED", "Misconfigured", "3")
    assert told["remedy"] == REGISTRY["SLOT_MOVED"].remedy


def test_explain_works_whatever_is_wrong_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks up SETTING_INVALID has an invalid setting."""
    monkeypatch.setenv("MUSTER_NONSENSE", "1")

    assert main(["explain", "SETTING_INVALID"]) == 0


def test_the_page_of_errors_is_current() -> None:
    """`muster explain --all > docs/errors.md` makes it; every code of both registries is on it."""
    page = "\n".join(markdown()) + "\n"

    assert DOCS.read_text("utf-8") == page
    assert all(f"| {code} |" in page for code in REGISTRY.keys() | KINDS.keys())
