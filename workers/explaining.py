"""What an error means: by its code, or recognised in a text that somebody pasted. Asks no server.

All that is said comes from the registry of errors and from that of findings; docs/errors.md is made of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from domain.errors import CAUSES, REGISTRY, MusterError, NotFound
from domain.log.protocol import SERVER_WORDS
from projections.findings import KINDS

#: What says the same as a code in other words: of redis-py, which cuts the server's first word off, of the system, of
#: TLS. The first that is found counts.
IN_OTHER_WORDS: Final[tuple[tuple[str, str], ...]] = (
    (r"Error -\d+ connecting to|Name or service not known|Temporary failure in name resolution", "NAME_UNRESOLVED"),
    (r"CERTIFICATE_VERIFY_FAILED|SSLError|SSL: |WRONG_VERSION_NUMBER", "TLS_FAILED"),
    (r"Timeout reading from", "SERVER_SILENT"),
    (r"Error \d+ connecting to|Connection refused|Timeout connecting to|Connection (reset|closed) by", "UNREACHABLE"),
    (r"No route to host|Network is unreachable|Broken pipe", "UNREACHABLE"),
    (r"max number of clients reached", "SERVER_FULL"),
    (r"Too many connections|MaxConnectionsError", "POOL_EXHAUSTED"),
    (r"invalid username-password pair|Authentication required|AuthenticationError", "ACCESS_DENIED"),
    (r"NoPermissionError|has no permissions to", "ACCESS_DENIED"),
    (r"OutOfMemoryError|used memory > 'maxmemory'", "SERVER_OUT_OF_MEMORY"),
    (r"No space left on device", "SERVER_CANNOT_PERSIST"),
    (r"MovedError|AskError", "SLOT_MOVED"),
    (r"ClusterCrossSlotError|Keys in request don't hash to the same slot", "SLOTS_CROSSED"),
    (r"ClusterDownError|Hash slot not served|The cluster is down", "CLUSTER_DOWN"),
    (r"TryAgainError|Multiple keys request during rehashing", "SLOT_UNSTABLE"),
    (r"NoScriptError|No matching script", "SCRIPT_MISSING"),
    (r"ReadOnlyError|against a read only replica", "SERVER_READ_ONLY"),
    (r"BusyLoadingError|loading the dataset in memory", "SERVER_LOADING"),
    (r"Function not found", "FUNCTIONS_MISSING"),
    (r"Operation against a key holding the wrong kind of value", "KEY_DAMAGED"),
    (r"unknown command", "SERVER_TOO_OLD"),
    (r"unable to persist to disk", "SERVER_CANNOT_PERSIST"),
    (r"Not enough good replicas", "SERVER_LACKS_REPLICAS"),
)


def explained(text: str) -> dict[str, Any]:
    """What is known of the code that the text is or holds. Raises NotFound (CODE_UNKNOWN)."""
    code = recognised(text)
    found: dict[str, Any] = {"schema": "muster.code/1", "code": code}
    if code in REGISTRY:
        entry = REGISTRY[code]
        found |= {
            "cause": CAUSES[code],
            "raised_as": entry.raised_as.__name__,
            "meaning": _sentence(entry.raised_as),
            "exit_code": str(entry.raised_as.exit_code),
            "remedy": entry.remedy,
        }
    if code in KINDS:
        kind = KINDS[code]
        found |= {"finding": kind.kind, "severity": kind.severity, "remedy_of_finding": kind.remedy}
    return found


def recognised(text: str) -> str:
    """The code that a text is, holds, or means. Raises NotFound (CODE_UNKNOWN)."""
    known = REGISTRY.keys() | KINDS.keys()
    if (whole := text.strip().upper()) in known:
        return whole
    for word in re.findall(r"\b[A-Z][A-Z_]+\b", text):
        if word in known:
            return str(word)
    # The server's own words, wherever a client put them: the earliest counts.
    found = [
        (match.start(), code)
        for prefix, _, code in SERVER_WORDS
        if (match := re.search(rf"(?<![A-Za-z]){re.escape(prefix)}(?![A-Za-z])", text))
    ]
    if found:
        return min(found)[1]
    for pattern, code in IN_OTHER_WORDS:
        if re.search(pattern, text):
            return code
    shown = text if len(text) <= 80 else f"{text[:80]}…"
    raise NotFound("CODE_UNKNOWN", f"there is no code in {shown!r}, nor words that Muster knows")


def markdown() -> Iterator[str]:
    """The lines of docs/errors.md."""
    yield "# Errors"
    yield ""
    yield "Made by `muster explain --all` from the registries of errors and findings; a test keeps it current."
    yield "`muster explain CODE` says the same, and `muster explain 'TEXT OF AN ERROR'` finds the code in a text."
    for kind in dict.fromkeys(entry.raised_as for entry in REGISTRY.values()):
        yield from ("", f"## {kind.__name__}: exit code {kind.exit_code}", "", _sentence(kind), "")
        yield from ("| code | what happened | what to do |", "| --- | --- | --- |")
        for code, entry in sorted(REGISTRY.items()):
            if entry.raised_as is kind:
                words = ", ".join(f"`{prefix.strip()}`" for prefix, _, meant in SERVER_WORDS if meant == code)
                heard = f" ({words})" if words else ""
                yield f"| {code} | {_cell(CAUSES[code])}{heard} | {_cell(entry.remedy)} |"
    yield from ("", "## Findings", "", "What `muster projection verify` and scrubbing may find.", "")
    yield from ("| code | of | severity | what to do |", "| --- | --- | --- | --- |")
    for code, finding in sorted(KINDS.items()):
        yield f"| {code} | {finding.kind} | {finding.severity} | {_cell(finding.remedy)} |"


def _sentence(kind: type[MusterError]) -> str:
    """What an error's class says of itself, in its first paragraph."""
    return " ".join((kind.__doc__ or "").strip().split("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
