"""The virtual environment of the servers to compare with, apart from the project's own.

It sees the packages of the environment that runs the benchmark through a `.pth` file, so that torch is not stored twice
and every server runs the same one; what the peers need in other versions is installed in front of it. infinity_emb
pins numpy below 2, with which the shared pyarrow does not load; it runs with the shared one, so its own is removed.
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PEERS = ("litserve==0.2.19", "infinity-emb[torch,server]==0.0.78")


def ensure_environment(folder: Path) -> None:
    """Make the environment if it is not there; one that was left half-made is completed."""
    done = folder / "complete"
    if done.is_file():
        return
    venv.create(folder, with_pip=True)
    shared = sysconfig.get_paths()["purelib"]
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    assert str(site) != shared, "the peers' environment must not be the project's"
    python = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    print(f"installing {', '.join(PEERS)} into {folder}", file=sys.stderr)
    subprocess.run([*python, "install", "--quiet", "--no-input", *PEERS], check=True)
    subprocess.run([*python, "uninstall", "--quiet", "--yes", "numpy"], check=True)
    done.touch()
