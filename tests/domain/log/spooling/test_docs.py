"""What docs/spooling.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from domain import Event, SessionLog
from tests.conftest import ENVIRONMENT, Store
from tests.domain.log.logs import ids

DOC = Path(__file__).parents[4] / "docs" / "spooling.md"


def test_the_example_in_the_document_works(store: Store, tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    example = example.replace("/var/lib/agent", str(tmp_path)).replace("url, ", "url, **where, ")
    where = {"environment": ENVIRONMENT, "namespace": store.namespace}
    exec(example, {"SessionLog": SessionLog, "Event": Event, "url": store.url, "where": where})
    assert len(ids(store.open().read("s-1"))) == 1
