"""What docs/subscribing.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from domain import Event
from tests.conftest import Store

DOC = Path(__file__).parents[4] / "docs" / "subscribing.md"


def test_the_examples_in_the_document_work(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Both are given what they want, each event once."""
    examples = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert len(examples) == 2
    with store.open() as log:
        calls = [Event.of("tool.called", actor="a") for _ in range(3)]
        log.append("s", [Event.of("start", actor="a"), *calls])
        for example in examples:
            exec(example, {"log": log})

    first, second = ["s 2 tool.called", "s 3 tool.called", "s 4 tool.called"], ["s 2", "s 3", "s 4"]
    assert capsys.readouterr().out.splitlines() == [*first, *second]
