"""Which hardware this process computes on: the fingerprint that latency tables carry."""

import os
import platform
from pathlib import Path

import torch

from elastic.errors import ConfigError
from elastic.profile.provenance import Device

_CPU_INFO = Path("/proc/cpuinfo")


def device_fingerprint(device: torch.device | str = "cpu") -> Device:
    """The hardware behind a torch device, as far as it decides latency."""
    device = torch.device(device)
    cores = os.cpu_count() or 1
    if device.type == "cuda":
        return Device(torch.cuda.get_device_name(device), cores, "cuda")
    return Device(_cpu_name(), cores, torch.backends.cpu.get_cpu_capability())


def check_device(device: torch.device | str) -> None:
    """Accept a torch device that is there. There is no fallback: who asks for a GPU is told if there is none.

    Raises:
        ConfigError: torch sees no CUDA device.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device", str(device), "torch sees no CUDA device here; use cpu")


def _cpu_name() -> str:
    """The CPU's model name; Python's own answer is empty or generic on Linux."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
