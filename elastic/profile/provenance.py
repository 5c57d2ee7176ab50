"""Where a number came from: the device, the code and the versions that produced it. No torch, no ray."""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "timm", "numpy", "pyarrow")
_PACKAGE_DIR = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Device:
    """The hardware that a latency belongs to. Two devices are the same when every field is equal."""

    processor: str
    """Model name of the CPU or GPU, as the operating system or driver gives it."""
    num_cores: int
    """CPU cores of the machine, also for a GPU."""
    isa: str
    """Vector instructions that torch uses (AVX2, AVX512, ...), or `cuda`."""

    def __str__(self) -> str:
        return f"{self.processor}, {self.num_cores} cores, {self.isa}"

    def differences(self, other: "Device") -> list[str]:
        """The fields in which two devices differ, each as `name: mine != theirs`."""
        pairs = ((f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return [f"{name}: {mine!r} != {theirs!r}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """What a table needs beside its rows to be believed, or refused, later."""

    device: Device
    commit: str
    """Git revision of the code, `-dirty` appended when files differed; `unknown` outside a checkout."""
    command: str
    versions: dict[str, str] = field(default_factory=dict)
    """Python and the libraries that do the work."""

    def to_json(self) -> str:
        """One line of JSON that `from_json` reads back."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Provenance":
        """The value that `to_json` wrote."""
        values = json.loads(text)
        return cls(**values | {"device": Device(**values["device"])})


def collect(device: Device) -> Provenance:
    """The provenance of something measured now, by this process, on `device`."""
    found = {name: metadata.version(name) for name in _PACKAGES}
    program = Path(sys.argv[0]).name
    return Provenance(
        device=device,
        commit=git_commit(),
        command=" ".join(["elastic" if program == "__main__.py" else program, *sys.argv[1:]]),
        versions={"python": platform.python_version()} | found,
    )


def git_commit() -> str:
    """The git revision of this package's checkout, or `unknown` when it is installed without one."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        done = subprocess.run(command, cwd=_PACKAGE_DIR, capture_output=True, text=True, check=False, timeout=10)
    except OSError:  # no git on this machine
        return "unknown"
    return done.stdout.strip() or "unknown"
