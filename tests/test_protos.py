"""The checked-in generated code is what the .proto files say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))


def test_regenerated_code_equals_the_checked_in_code(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(ROOT / "protos" / "generate.py"), str(tmp_path)], check=True, timeout=120)
    fresh = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.py*")}
    package = ROOT / "elastic" / "_pb"
    kept = {path.relative_to(package): path.read_text() for path in package.rglob("*.py*") if path.suffix != ".pyc"}
    assert fresh == kept


def test_every_enum_starts_at_unspecified() -> None:
    for proto in PROTOS:
        for name, body in re.findall(r"enum (\w+) \{(.*?)\}", proto.read_text(), re.DOTALL):
            first = re.search(r"(\w+) = 0;", body)
            assert first is not None and first[1].endswith("_UNSPECIFIED"), name


def test_every_time_and_size_has_its_unit_in_its_name() -> None:
    quantities = ("latency", "queue", "compute", "total", "slack", "predicted", "preprocess", "message", "budget")
    for proto in PROTOS:
        numbers = re.findall(r"(?:double|float|uint32|uint64|int32) (\w+) = \d+;", proto.read_text())
        bare = [
            name
            for name in numbers
            if any(word in name for word in quantities) and not re.search(r"_(ms|bytes)$", name)
        ]
        assert not bare
