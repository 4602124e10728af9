"""What each setting loses under each fault, measured: acknowledged, lost and named commits, as a table.

    .venv/bin/python -m tests.chaos.failover_table [REPETITIONS] [SEED]

Producers append all the while to a group of a primary, two replicas and three Sentinels. A commit is acknowledged when
its append returned a receipt, lost when the log does not hold it after everything came back, and named when an error or
a comparison told a producer so. Exit 0 only if what is lost is what is named, commit by commit, in every run; and if
nothing is lost where every electable replica has what is acknowledged.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from msgspec import Struct

from domain import Misconfigured, SessionLog
from domain.log import Connecting, connect, create_store
from tests.chaos.group import Fsync, Group, Node
from tests.chaos.producing import Producers, disorder, lost, name, producing
from tests.conftest import ENVIRONMENT

REPETITIONS: Final = 3
PRODUCERS: Final = 4
#: Partitions of the store: few, because a store of a cell lives for seconds.
PARTITIONS: Final = 4


class Setting(Struct, frozen=True):
    """How producers and servers are set up. `keeps_all`: nothing acknowledged may be lost, whatever fault."""

    durability: str
    fsync: Fsync
    min_replicas: int = 0
    keeps_all: bool = False

    def __str__(self) -> str:
        file = "no AOF" if self.fsync == "off" else f"AOF {self.fsync}"
        least = f", min-replicas-to-write {self.min_replicas}" if self.min_replicas else ""
        return f"`{self.durability}`, {file}{least}"


class Fault(Struct, frozen=True):
    """Something that happens to a group under load. `befall` returns when the group has settled again."""

    words: str
    befall: Callable[[Group, Producers], None]


class Outcome(Struct):
    """What came of one run, or of several added up."""

    acknowledged: int = 0
    lost: int = 0
    named: int = 0
    errors: Counter[str] = Counter()
    #: Which laws were broken, in words.
    broken: tuple[str, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.named + other.named,
            self.errors + other.errors,
            self.broken + other.broken,
        )


# -- faults ----------------------------------------------------------------------------------------------------------


def killed(group: Group, producers: Producers) -> None:
    primary = group.primary()
    primary.kill()
    group.wait_for_failover(primary)
    producers.wait_for_answers(3)
    primary.start()
    group.wait_until_settled()


def killed_and_back_at_once(group: Group, producers: Producers) -> None:
    primary = group.primary()
    primary.kill()
    primary.start()
    group.wait_until_settled()


def paused(group: Group, producers: Producers) -> None:
    primary = group.primary()
    primary.pause()
    group.wait_for_failover(primary)
    producers.wait_for_answers(3)
    primary.resume()
    group.wait_until_settled()


def killed_while_cut_off(group: Group, producers: Producers) -> None:
    primary, replicas = group.primary(), group.replicas()
    group.cut_off(replicas)
    producers.wait_for_answers(4)
    primary.kill()
    _come_back(group, primary, replicas, [primary], producers)


def killed_with_the_replica_that_follows(group: Group, producers: Producers) -> None:
    primary, (follower, cut_off) = group.primary(), group.replicas()
    group.cut_off([cut_off])
    producers.wait_for_answers(4)
    primary.kill()
    follower.kill()
    _come_back(group, primary, [cut_off], [primary, follower], producers)


def _come_back(group: Group, old: Node, paused: list[Node], dead: list[Node], producers: Producers) -> None:
    for node in paused:
        node.resume()
    group.wait_for_failover(old)
    producers.wait_for_answers(3)
    for node in dead:
        node.start()
    group.wait_until_settled()


KILLED: Final = Fault("primary killed, back as a replica", killed)
PAUSED: Final = Fault("primary paused, back as a zombie", paused)
BACK_AT_ONCE: Final = Fault("primary killed, back at once", killed_and_back_at_once)
CUT_OFF: Final = Fault("both replicas lag, primary killed", killed_while_cut_off)
HALF_CUT_OFF: Final = Fault("one replica lags, the others killed", killed_with_the_replica_that_follows)
FAULTS: Final = (KILLED, PAUSED, BACK_AT_ONCE, CUT_OFF, HALF_CUT_OFF)

SETTINGS: Final = (
    Setting("memory", "off"),
    Setting("memory", "everysec"),
    Setting("local", "always"),
    Setting("replicated(1)", "everysec"),
    Setting("replicated(2)", "everysec", min_replicas=1, keeps_all=True),
    Setting("replicated(2)", "everysec", min_replicas=2, keeps_all=True),
)


# -- one run ---------------------------------------------------------------------------------------------------------


def run(setting: Setting, fault: Fault, directory: Path, *, seed: int) -> Outcome:
    """Lets a fault befall a group under load and judges what is left."""
    with Group(directory, fsync=setting.fsync, min_replicas=setting.min_replicas) as group:
        url = f"redis://{group.primary().address}/0"
        with connect(Connecting(url)) as client:
            create_store(client, environment=ENVIRONMENT, partitions=PARTITIONS)
        group.wait_until_replicated()
        with producing(group.url, PRODUCERS, seed=seed, durability=setting.durability) as producers:
            producers.wait_for(20)
            fault.befall(group, producers)
            producers.wait_for(10)
            producers.stop()
            producers.compare()
            return judge(setting, f"redis://{group.primary().address}/0", producers)


def judge(setting: Setting, url: str, producers: Producers) -> Outcome:
    """Holds what was acknowledged against the log, and what is missing there against what was named."""
    acknowledged, broken = producers.acknowledged(), producers.unexpected()
    try:
        with SessionLog.open(url, environment=ENVIRONMENT) as log:
            missing = lost(log, acknowledged)
            broken += disorder(log)
    except Misconfigured as error:
        if error.code != "STORE_MISSING":
            raise
        missing = set(map(name, acknowledged))
    named = producers.named()
    if len(set(map(name, acknowledged))) != len(acknowledged):
        broken.append("one commit was acknowledged as two")
    if missing - named:
        broken.append(f"lost and not named: {sorted(missing - named)}")
    if named - missing:
        broken.append(f"named and not lost: {sorted(named - missing)}")
    if setting.keeps_all and missing:
        broken.append(f"lost in spite of {setting}: {sorted(missing)}")
    return Outcome(len(acknowledged), len(missing), len(named), producers.errors(), tuple(broken))


# -- the table -------------------------------------------------------------------------------------------------------


def main(repetitions: int, seed: int) -> int:
    began, total = time.monotonic(), Outcome()
    print(f"seed {seed}, {repetitions} runs a row", flush=True)
    print(
        "| setting | fault | acknowledged | lost | named | errors |\n| --- | --- | --- | --- | --- | --- |", flush=True
    )
    for setting in SETTINGS:
        for fault in FAULTS:
            row = Outcome()
            for repetition in range(repetitions):
                with tempfile.TemporaryDirectory(prefix="muster-chaos-") as directory:
                    row += run(setting, fault, Path(directory) / "group", seed=seed + repetition)
            errors = ", ".join(f"{code} {count}" for code, count in sorted(row.errors.items())) or "none"
            figures = f"{row.acknowledged:,} | {row.lost:,} | {row.named:,}"
            print(f"| {setting} | {fault.words} | {figures} | {errors} |", flush=True)
            for words in row.broken:
                print(f"BROKEN: {words}", flush=True)
            total += row
    print(
        f"{len(SETTINGS) * len(FAULTS) * repetitions} failures in {time.monotonic() - began:.0f} s: "
        f"{total.acknowledged:,} commits acknowledged, {total.lost:,} lost, {total.named:,} named, "
        f"{len(total.broken)} laws broken"
    )
    return 1 if total.broken else 0


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(arguments + [REPETITIONS, random.randrange(1 << 30)][len(arguments) :])))
