"""What the kernel says of a process and everything below it (Linux)."""

import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

MIB = 2**20
REPLICA = "ServeReplica"
HAPROXY = "haproxy"


@dataclass(frozen=True, slots=True)
class Process:
    """One that lives, or lived a moment ago."""

    pid: int
    role: str
    """What it is for: Ray's name of an actor, else the program or script that it runs."""
    command: tuple[str, ...]


def tree(pid: int) -> list[Process]:
    """A process and all its descendants that live, the ancestor first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents.setdefault(int(_fields(stat)[1]), []).append(int(stat.parent.name))
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        with suppress(FileNotFoundError, ProcessLookupError):
            command = tuple(Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").strip("\0").split("\0"))
            if command != ("",):  # it has ended and waits for its parent
                found.append(Process(pid, role(command), command))
        todo += parents.get(pid, [])
    return found


def role(command: tuple[str, ...]) -> str:
    """What a command line is for."""
    if command[0].startswith("ray::"):
        # Behind the class stand the deployment, or the method that runs now.
        return re.split(r"[:.\s]", command[0].removeprefix("ray::"))[0]
    program = os.path.basename(command[0])
    if not program.startswith("python"):
        return program
    if "-m" in command:
        return " ".join(command[command.index("-m") + 1 :][:2])
    return next((os.path.basename(word) for word in command if word.endswith(".py")), program)


def replicas(pid: int) -> list[int]:
    """The replicas of the server that this process started."""
    return sorted(process.pid for process in tree(pid) if process.role == REPLICA)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process and all its descendants that live."""
    ticks = 0
    for process in tree(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            # Behind the name come state, parent, ..., user and system time.
            fields = _fields(Path(f"/proc/{process.pid}/stat"))
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_mib(pid: int) -> float:
    """Resident memory of one process; 0 when it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    return 0.0


def rss_by_role(pid: int) -> dict[str, float]:
    """Resident MiB of a process and its descendants; of several with one role, their sum."""
    found: dict[str, float] = {}
    for process in tree(pid):
        found[process.role] = found.get(process.role, 0.0) + rss_mib(process.pid)
    return found


class Sampler:
    """Reads memory again and again, in a thread, until the block ends."""

    def __init__(self, pid: int, every_s: float, read: Callable[[int], Mapping[str, float]] = rss_by_role) -> None:
        self.at_s: list[float] = []
        self.samples: list[Mapping[str, float]] = []
        self._pid, self._every_s, self._read = pid, every_s, read
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def of(self, role: str) -> list[float]:
        """What one role used, sample by sample."""
        return [sample.get(role, 0.0) for sample in self.samples]

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        began_s = time.monotonic()
        while True:
            self.samples.append(self._read(self._pid))
            self.at_s.append(time.monotonic() - began_s)
            if self._ended.wait(self._every_s):
                return


def _fields(stat: Path) -> list[str]:
    """Of /proc/PID/stat, from behind the name, which may hold spaces."""
    return stat.read_text().rpartition(")")[2].split()
