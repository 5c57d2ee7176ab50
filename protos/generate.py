"""Generate `elastic/_pb` from the .proto files: `python protos/generate.py [OUT]`.

protoc names Python modules by the proto path (`elastic.v1`), which would collide with this package, so the import line
between generated files is rewritten to where they live (`elastic._pb.elastic.v1`). Generated files are checked in; a
test regenerates them and compares.
"""

import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
DEFAULT_OUT = PROTOS.parent / "elastic" / "_pb"


def generate(out: Path) -> list[Path]:
    """Write the Python modules of every proto below `out`; returns the written files.

    Raises:
        SystemExit: protoc rejected a file (its message is on stderr).
    """
    sources = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    out.mkdir(parents=True, exist_ok=True)
    includes = [f"-I{PROTOS}", f"-I{files('grpc_tools') / '_proto'}"]
    outputs = [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}"]
    if protoc.main(["protoc", *includes, *outputs, *sources]):
        raise SystemExit("protoc failed")
    written = sorted(path for path in out.rglob("*_pb2*") if path.suffix in {".py", ".pyi"})
    for path in written:
        path.write_text(path.read_text().replace("from elastic.v1 import", "from elastic._pb.elastic.v1 import"))
    for folder in {parent for path in written for parent in path.relative_to(out).parents}:
        (out / folder / "__init__.py").write_text('"""Generated from protos/ by `make proto`; do not edit."""\n')
    return written


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT)
