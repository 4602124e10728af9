"""Thresholds of health that a machine that is only busy does not reach, nor one whose disk is nearly full."""

from __future__ import annotations

from typing import Any, Final

from msgspec import structs

from workers.settings import HealthSettings, Settings

UNHURRIED: Final = HealthSettings(
    timeout_s=60.0,
    lag_warning_s=3600.0,
    lag_critical_s=3600.0,
    disk_warning=1.0,
    disk_critical=1.0,
    latency_warning_s=60.0,
    latency_critical_s=60.0,
    clock_skew_s=60.0,
)


def unhurried(**health: Any) -> dict[str, str]:
    """What a command's environment has for them; others for these."""
    settings = Settings(health=structs.replace(UNHURRIED, **health))
    return {name: value for name, value in settings.environ().items() if name.startswith("MUSTER_HEALTH__")}
