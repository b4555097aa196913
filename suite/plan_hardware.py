"""What a machine is, for plans: one YAML file of `sweeps/hardware/`. No part of a run's identity.

A null in the file means "this machine": cores, and memory over cores.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from suite.config import ConfigError, build
from suite.launch import default_ranks

DEVICES = ("cpu", "cuda")
PEAKS = ("fp32", "bf16")


@dataclass(frozen=True)
class Hardware:
    """One machine or allocation.

    Attributes:
        ranks: ranks that a run gets; None: one a device.
        device: "cpu" (a device is a core) or "cuda".
        devices: how many.
        memory_bytes: bytes of one device; of a core: its share of the machine.
        peak_flops: dense operations a second of one device, by precision.
        utilisation: share of the peak that training reaches, recomputation included.
        usable: share of the memory that may be planned with.
        price_per_device_hour: in any currency; None where no cost is wanted.
    """

    ranks: int | None
    device: str
    devices: int | None
    memory_bytes: float | None
    peak_flops: Mapping[str, Any]
    utilisation: float
    usable: float
    price_per_device_hour: float | None

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise ConfigError(
                f"hardware.device={self.device!r} is not known; allowed: {', '.join(DEVICES)}"
            )
        if sorted(self.peak_flops) != sorted(PEAKS):
            raise ConfigError(
                f"hardware.peak_flops: expected the keys {', '.join(PEAKS)}, found "
                f"{', '.join(sorted(self.peak_flops))}"
            )
        for key in ("utilisation", "usable"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise ConfigError(f"hardware.{key}={getattr(self, key)!r}: expected a share (0, 1]")
        if self.device == "cuda" and (self.devices is None or self.memory_bytes is None):
            raise ConfigError("hardware: device=cuda needs devices and memory_bytes")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Hardware:
        """Builds it, and fills in what this machine has where the file says null.

        Raises:
            ConfigError: an unknown or missing key, or a value that cannot be.
        """
        stated = build(cls, mapping, "hardware")
        assert isinstance(stated, cls)
        devices = stated.devices or default_ranks()
        memory = stated.memory_bytes or machine_memory() / devices
        return dataclasses.replace(stated, devices=devices, memory_bytes=memory)

    @property
    def count(self) -> int:
        """Devices that a run gets."""
        assert self.devices is not None
        return min(self.devices, self.ranks or self.devices)

    @property
    def budget(self) -> float:
        """Bytes of one device that a plan may use."""
        assert self.memory_bytes is not None
        return self.memory_bytes * self.usable

    def rate(self, precision: str) -> float:
        """Operations a second of one device, as training reaches them."""
        return float(self.peak_flops["fp32" if precision == "fp32" else "bf16"]) * self.utilisation


def machine_memory() -> float:
    """Bytes of main memory here."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
