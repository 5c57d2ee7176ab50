"""The house rules that a machine can check: sizes, names, mirrored tests, one word per concept."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "elastic"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if "_pb" not in path.parts)
SCRIPT_FOLDERS = ("tests", "benchmarks", "experiments", "docs")
SCRIPTS = sorted(path for folder in SCRIPT_FOLDERS for path in (ROOT / folder).rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

WITHOUT_OWN_TEST = {
    "elastic/__main__.py": "one call of cli.main; tests/test_cli.py runs it as a process",
    "elastic/objectives/base.py": "abstract classes only; every objective's test exercises them",
}
"""Modules that need no test file of their own name, and why."""

RIVAL_SPELLINGS = {
    r"nesting_list|mrl_sizes": "embed_dims",
    r"matformer_factor|mask_dims|ffn_ratio": "ffn_dim, ffn_fractions",
    r"[Ss]ub_?net(work)?s?\b": "Submodel",
    r"search_subnet|auto_config": "select",
    r"momentum_encoder": "teacher",
    r"bool_masked_pos|x_norm_1st_clstoken": "mask, cls_token",
    r"\bgallery": "index",
    r"matryososka|ModelCapabilites": "the right spelling",
}
"""Spellings that lost against a word of docs/glossary.md, with the word to use instead."""


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_every_module_has_a_test_file_of_its_own_name():
    missing = [
        relative(module)
        for module in MODULES
        if module.name != "__init__.py"
        and relative(module) not in WITHOUT_OWN_TEST
        and not (ROOT / "tests" / module.relative_to(PACKAGE).parent / f"test_{module.name}").exists()
    ]
    assert not missing


def test_every_test_file_belongs_to_a_module_or_to_the_repository():
    names = ("clusters", "contributing", "faults", "layout", "protos", "readme")
    about_the_repository = {f"test_{name}.py" for name in names}
    strays = [
        relative(path)
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.name not in about_the_repository
        and path.relative_to(ROOT / "tests").parts[0] not in {"benchmarks", "docs", "experiments"}
        and not (PACKAGE / path.relative_to(ROOT / "tests").parent / path.name.removeprefix("test_")).exists()
    ]
    assert not strays


def test_exempt_modules_exist_and_have_no_test():
    for name in WITHOUT_OWN_TEST:
        module = ROOT / name
        assert module.exists(), name
        assert not (ROOT / "tests" / module.relative_to(PACKAGE).parent / f"test_{module.name}").exists(), name


def test_no_file_is_longer_than_the_limit():
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES + SCRIPTS}
    assert not {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES}


def test_no_function_is_longer_than_the_limit():
    long = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in MODULES + SCRIPTS
        for node in functions(path)
        if (node.end_lineno or node.lineno) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_every_argument_and_return_of_the_package_is_annotated():
    bare = [
        f"{relative(path)}:{node.lineno} {node.name}"
        for path in MODULES
        for node in functions(path)
        if node.returns is None
        or any(
            arg.annotation is None and arg.arg not in {"self", "cls"}
            for arg in node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        )
    ]
    assert not bare


def test_no_module_has_a_name_that_says_nothing():
    assert not [relative(path) for path in MODULES + SCRIPTS if path.stem in VAGUE_NAMES]


@pytest.mark.parametrize("folder", ["elastic", "tests", "benchmarks", "protos", "clusters"])
def test_source_is_ascii(folder: str):
    sources = [path for suffix in ("py", "proto", "yaml") for path in (ROOT / folder).rglob(f"*.{suffix}")]
    assert not [relative(path) for path in sources if not path.read_bytes().isascii()]


def test_one_word_is_used_for_each_concept():
    found = [
        f"{relative(path)}: {match[0]!r}, use {word}"
        for path in MODULES
        for pattern, word in RIVAL_SPELLINGS.items()
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_no_source_holds_a_note_to_finish_later():
    pattern = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError")
    assert not [
        f"{relative(path)}: {match[0]}"
        for path in MODULES
        for match in pattern.finditer(path.read_text(encoding="utf-8"))
    ]


def test_every_flag_of_a_verb_explains_itself_in_the_help():
    modules = [path for path in MODULES if path.name == "command.py" or path.parent.name == "commands"]
    silent = [
        f"{relative(path)}:{field.lineno} {node.name}"
        for path in modules
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and is_verb(node)
        for field, follower in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign) and not is_docstring(follower) and not has_no_help(field)
    ]
    assert not silent


def is_verb(node: ast.ClassDef) -> bool:
    return any(isinstance(member, ast.FunctionDef) and member.name == "run" for member in node.body)


def has_no_help(field: ast.AnnAssign) -> bool:
    """Whether tyro shows the fields of its type in its place, or nothing."""
    annotation = ast.unparse(field.annotation)
    return "tyro.conf.arg(name='')" in annotation or "tyro.conf.Suppress" in annotation


def is_docstring(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
