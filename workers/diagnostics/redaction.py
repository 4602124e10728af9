"""Takes secrets out of a text: those that are known, wherever they stand, and what looks like one by where it stands.

The parts hold none by themselves; this is for what others wrote into them, such as errors and log files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from domain.errors import Misconfigured
from domain.log.address import parse_address
from workers.settings import ADDRESSES, PREFIX, SECRETS, Settings, values

MASK: Final = "***"
#: A known secret that is shorter would take half of the text with it.
SHORTEST: Final = 4
_BY_PLACE: Final = (
    (re.compile(r"([a-z][a-z0-9+.-]*://[^\s/@:\"']*):[^\s/@\"']+@", re.IGNORECASE), rf"\1:{MASK}@"),
    (re.compile(r"(\b(?:Bearer|Basic)\s+)[^\s\"',]+", re.IGNORECASE), rf"\1{MASK}"),
    # Rules of an ACL file: >password, <password, #hash, !hash.
    (re.compile(r"(?<![^\s\"'])[><][^\s\"'<>=]\S*"), MASK),
    (re.compile(r"(?<![^\s\"'])[#!][0-9a-f]{64}\b"), MASK),
    (
        re.compile(
            r"(?i)(\b(?:requirepass|masterauth|auth-pass|password|passwd|secret|token|api[_-]?key)\b"
            r"(?:[\"']?\s*[:=]\s*|\s+)[\"']?)(?!(?:null|None|true|false)\b)[^\s\"',}\]{\[(\\:=][^\s\"',}\]\\]*"
        ),
        rf"\1{MASK}",
    ),
    (re.compile(r"(?i)(\bAUTH\s+(?:\S+\s+)?)\S+"), rf"\1{MASK}"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), MASK),
)


class Redaction:
    """What is known to be secret in one process."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({one for one in secrets if len(one) >= SHORTEST}, key=len, reverse=True)

    def text(self, text: str, *, is_foreign: bool) -> str:
        """Without the secrets that are known; what others wrote without what looks like one, too."""
        for secret in self._secrets:
            text = text.replace(secret, MASK)
        if is_foreign:
            for pattern, instead in _BY_PLACE:
                text = pattern.sub(instead, text)
        return text

    def value(self, value: Any, *, is_foreign: bool) -> Any:
        """The same of all texts in a value that is to become JSON, which stays as it is otherwise."""
        if isinstance(value, str):
            return self.text(value, is_foreign=is_foreign)
        if isinstance(value, Mapping):
            return {
                self.text(str(name), is_foreign=is_foreign): self.value(one, is_foreign=is_foreign)
                for name, one in value.items()
            }
        if isinstance(value, list):
            return [self.value(one, is_foreign=is_foreign) for one in value]
        return value


def secrets_of(settings: Settings | None, environ: Mapping[str, str]) -> list[str]:
    """The secrets of settings: those that are, and the passwords in addresses; of an environment that gives no valid
    ones, what is meant to be.
    """
    variables = {PREFIX + name.upper().replace(".", "__") for name in SECRETS}
    found = [text for name, text in environ.items() if name in variables]
    if settings is None:
        return found
    given = values(settings)
    found += [str(given[name]) for name in SECRETS if given[name] is not None]
    for name in ADDRESSES:
        try:
            password = parse_address(given[name]).password if given[name] else None
        except Misconfigured:
            continue
        if password:
            found.append(password)
    return found
