"""The partitions a worker holds, as a state machine: one batch of each in flight, none after a lease is gone."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from workers.partitions import FIRST_REST_S, LONGEST_REST_S, HeldPartitions

PARTITIONS = st.integers(0, 4)
TOKENS = st.sampled_from(["1-a", "2-b", "3-c"])


class Holding(RuleBasedStateMachine):
    """Lease keeper, consumer and threads, in any order; beside them a model that is obviously right."""

    def __init__(self) -> None:
        super().__init__()
        self.held = HeldPartitions()
        self.tokens: dict[int, str] = {}
        self.busy: set[int] = set()
        self.leaving: set[int] = set()
        self.resting: set[int] = set()
        self.position: dict[int, int | None] = {}

    def _forget(self, partition: int) -> None:
        for known in (self.busy, self.leaving, self.resting):
            known.discard(partition)
        self.tokens.pop(partition, None)
        self.position.pop(partition, None)

    @rule(partition=PARTITIONS, token=TOKENS)
    def adopt(self, partition: int, token: str) -> None:
        self.held.adopt(partition, token)
        self._forget(partition)
        self.tokens[partition], self.position[partition] = token, None

    @rule(partition=PARTITIONS, token=TOKENS)
    def drop(self, partition: int, token: str) -> None:
        self.held.drop(partition, token)
        if self.tokens.get(partition) == token:
            self._forget(partition)

    @rule(count=st.integers(0, 6))
    def leave(self, count: int) -> None:
        self.leaving |= set(sorted(self.tokens, reverse=True)[:count])
        idle = {partition: self.tokens[partition] for partition in self.leaving - self.busy}
        assert self.held.leave(count) == idle
        for partition in idle:
            self._forget(partition)

    @rule()
    def stay(self) -> None:
        self.held.stay()
        self.leaving.clear()

    @rule(partition=PARTITIONS, token=TOKENS)
    def hand_out(self, partition: int, token: str) -> None:
        may = self.tokens.get(partition) == token and partition not in self.busy
        assert self.held.hand_out(partition, token) == may
        if may:
            self.busy.add(partition)

    @rule(partition=PARTITIONS, token=TOKENS, position=st.integers(0, 9))
    def finished(self, partition: int, token: str, position: int) -> None:
        self.held.finished(partition, token, position)
        if self.tokens.get(partition) == token:
            self.busy.discard(partition)
            self.position[partition] = position

    @rule(partition=PARTITIONS, token=TOKENS)
    def failed(self, partition: int, token: str) -> None:
        self.held.failed(partition, token)
        if self.tokens.get(partition) == token:
            self.busy.discard(partition)
            self.resting.add(partition)
            self.position[partition] = None

    @invariant()
    def is_as_the_model_says(self) -> None:
        assert self.held.tokens() == self.tokens
        assert self.held.is_any_busy() == bool(self.busy)
        ready = self.held.ready()
        may = self.tokens.keys() - self.busy - self.leaving
        assert may - self.resting <= ready.keys() <= may
        assert {partition: held.position for partition, held in ready.items()} == {
            partition: self.position[partition] for partition in ready
        }


Holding.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestHolding: Any = Holding.TestCase


def test_a_partition_rests_longer_after_every_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest doubles up to the longest; one batch that succeeds ends it."""
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    held = HeldPartitions()
    held.adopt(0, "1-a")
    rests = []
    for _ in range(9):
        assert held.hand_out(0, "1-a")
        held.failed(0, "1-a")
        assert held.ready() == {}
        rest = next(iter(held._held.values())).rest_s
        rests.append(rest)
        now += rest
        assert 0 in held.ready()

    assert rests[:3] == [FIRST_REST_S, 2 * FIRST_REST_S, 4 * FIRST_REST_S]
    assert rests[-1] == LONGEST_REST_S
    held.hand_out(0, "1-a")
    held.finished(0, "1-a", 7)
    held.hand_out(0, "1-a")
    held.failed(0, "1-a")
    assert next(iter(held._held.values())).rest_s == FIRST_REST_S
