"""The command line finds verbs quickly, explains itself, and turns errors into one message and an exit code."""

import importlib
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from elastic import __version__, cli
from elastic.errors import ConfigError, DataError, ElasticError

FLAGS = {
    "train": "accumulate address checkpoint-every device dry-run keep-last log-every micro-batches name "
    "num-threads num-workers parallel precision resume run-dir seed steps teacher validate-every",
    "nest": "calibration ffn-dims",
    "extract": "submodel",
    "evaluate": "baselines batch-size device max-bad-fraction max-blocks out source split",
    "probe": "batch-size class-names dense-steps device domains max-images out source split tasks token untrained",
    "profile": "batch-sizes device dtype max-s num-threads out rounds seed warmup-rounds",
    "simulate": "autoscale dtype duration-s failures force-foreign-tables latency-slo-ms num-replicas num-threads out "
    "overhead-ms policies rate seeds shape start-delay-s trace",
    "select": "batch dtype embed-dim force-foreign-tables index isotonic latency-slo-ms max-embed-dim min-embed-dim "
    "min-quality modality num-threads quantile",
    "serve": "api-keys client-ca default-latency-ms device drain-s dtype force-foreign-tables host http-port "
    "image-url-allow insecure-public log-requests log-sample max-batch-size max-image-pixels max-items-per-call "
    "max-message-bytes max-quality-loss max-replicas max-sequences max-waiting-items metrics-port min-replicas "
    "num-replicas num-threads policy port profile quantile reply-margin-ms scale-down-after-s "
    "scale-to-zero-after-s target-attainment tls-cert tls-key",
    "deploy": "allow-narrower rollback server",
    "embed": "api-key embed-dim latency-slo-ms min-quality output server tls-ca tls-cert tls-key",
    "generate": "compare device draft draft-layers draft-vocabulary draft-vocabulary-text gamma max-new-tokens "
    "num-threads prompt prompt-file seed target temperature top-k top-p",
    "bench": "",
    "top": "once window-s",
    "keys": "",
    "data": "",
    "demo": "num-requests recipe run-dir",
}
"""What scripts rely on. A flag that is added, renamed or dropped shows up here, and in the changelog."""


class RemoteDataError(DataError):
    """Shaped like what Ray raises for an error of a task: the original as `cause`, a traceback as text."""

    def __init__(self, cause: DataError) -> None:
        super().__init__(*cause.args)
        self.cause = cause

    def __str__(self) -> str:
        return "ray::task() (pid=1, ip=127.0.0.1)\n  File ..."


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A verb for these tests."""

    fail_with: str = ""
    """What to raise."""

    def run(self) -> None:
        broken = DataError("photos/", "has no images", "point it at a folder that has some")
        errors = {
            "data": broken,
            "remote": RemoteDataError(broken),
            "interrupt": KeyboardInterrupt(),
            "bug": KeyError(),
        }
        if self.fail_with:
            raise errors[self.fail_with]
        print("tried")


@dataclass(frozen=True, slots=True)
class Echo:
    """A verb that reads its own arguments."""

    words: tuple[str, ...]

    @classmethod
    def parse(cls, arguments: Sequence[str], prog: str) -> "Echo":
        return cls((prog, *arguments))

    def run(self) -> None:
        print(*self.words)


@pytest.fixture
def trial(monkeypatch: pytest.MonkeyPatch) -> None:
    verb = cli.Verb(cli.START, "trial", "Test the command line", "elastic trial", f"{__name__}:Trial")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, sys.modules[Trial.__module__]))
    monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, verb))
    monkeypatch.delenv(cli.TRACEBACK_VARIABLE, raising=False)


def test_help_names_every_verb_with_an_example_that_uses_it(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["--help"]) == 0
    page = capsys.readouterr().out
    for verb in cli.VERBS:
        assert verb.summary in page
        assert f"$ {verb.example}" in page
        assert verb.example.startswith(f"elastic {verb.name}")


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]):
    assert cli.main([]) == 0
    assert capsys.readouterr().out.rstrip("\n") == cli.help_text()


def test_help_fits_a_terminal_of_a_hundred_and_ten_columns():
    assert max(map(len, cli.help_text().splitlines())) <= 110


def test_help_imports_nothing_heavy():
    script = "import sys; from elastic.cli import main; main(['--help']); print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = shown.splitlines()[-1].split()
    assert "elastic.cli" in loaded
    assert not {"torch", "ray", "timm", "tyro", "numpy", "rich"} & set(loaded)


def test_the_module_runs_as_the_command():
    run = subprocess.run([sys.executable, "-m", "elastic", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout == f"elastic {__version__}\n"


def test_a_misspelt_verb_is_answered_with_the_nearest_one(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["evalute"]) == cli.EXIT_USER_ERROR
    assert "no verb 'evalute': did you mean 'evaluate'?" in capsys.readouterr().err


def test_a_strange_verb_is_answered_with_all_of_them(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["zzz"]) == cli.EXIT_USER_ERROR
    shown = capsys.readouterr().err
    assert all(verb.name in shown for verb in cli.VERBS)


@pytest.mark.usefixtures("trial")
def test_a_verb_runs_and_exits_with_zero(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["trial"]) == 0
    assert capsys.readouterr().out == "tried\n"


def test_a_verb_that_reads_its_own_arguments_is_given_all_of_them(capsys: pytest.CaptureFixture[str]):
    verb = cli.Verb(cli.START, "echo", "Test the command line", "elastic echo", f"{__name__}:Echo")
    verb.parse(["a", "--unknown", "--help"]).run()
    assert capsys.readouterr().out == "elastic echo a --unknown --help\n"


@pytest.mark.usefixtures("trial")
@pytest.mark.parametrize("where", ["data", "remote"])
def test_a_user_error_is_one_message_without_a_traceback(where: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["trial", "--fail-with", where]) == cli.EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: photos/: has no images; point it at a folder that has some\n"


@pytest.mark.usefixtures("trial")
def test_traceback_shows_the_error_itself(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError):
        cli.main(["trial", "--traceback", "--fail-with", "data"])
    monkeypatch.setenv(cli.TRACEBACK_VARIABLE, "1")
    with pytest.raises(DataError):
        cli.main(["trial", "--fail-with", "data"])


@pytest.mark.usefixtures("trial")
def test_a_bug_keeps_its_traceback():
    with pytest.raises(KeyError):
        cli.main(["trial", "--fail-with", "bug"])


@pytest.mark.usefixtures("trial")
def test_an_interrupt_ends_quietly_with_the_shell_code(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["trial", "--fail-with", "interrupt"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.usefixtures("trial")
def test_an_unknown_flag_is_refused_with_the_nearest_one(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["trial", "--fail-wth", "data"])
    assert stopped.value.code == 2
    assert "--fail-with" in capsys.readouterr().err


def test_a_reader_that_leaves_early_causes_no_traceback():
    script = "import sys; from elastic import cli; cli.help_text = lambda: 'x' * 10**6; sys.exit(cli.main([]))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stderr is not None
        run.stdout.read(1)
        run.stdout.close()
        assert run.stderr.read() == b""
    assert run.returncode == cli.EXIT_BROKEN_PIPE


def test_messages_are_not_reflowed_or_read_as_markup(capsys: pytest.CaptureFixture[str]):
    message = str(ConfigError("sizes", "[bold]" * 40, "must be short"))
    cli.complain(message)
    assert capsys.readouterr().err == f"error: {message}\n"


def test_an_error_describes_itself_unless_ray_wrapped_it():
    assert cli.describe(ElasticError("plain")) == "plain"
    assert cli.describe(RemoteDataError(DataError("a", "b", "c"))) == "a: b; c"


@pytest.mark.parametrize("verb", cli.VERBS, ids=lambda verb: verb.name)
def test_the_help_of_every_verb_shows_exactly_the_pinned_flags(verb: cli.Verb, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb.name, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    assert f"elastic {verb.name}" in page
    # Fields of a recipe's parts are dotted (--optim.learning-rate) and change with the recipe.
    shown = re.findall(r"^[^\w\n-]*--(?!no-)([a-z][a-z0-9-]*)(?![a-z0-9.-])", page, re.MULTILINE)
    assert " ".join(sorted(set(shown))) == FLAGS[verb.name]


def test_every_verb_has_one_class_and_every_command_module_a_verb():
    package = Path(cli.__file__).parent
    modules = {verb.location.partition(":")[0] for verb in cli.VERBS}
    files = {*package.glob("*/command.py"), *package.glob("commands/*.py")} - {package / "commands" / "__init__.py"}
    assert {".".join(path.relative_to(package.parent).with_suffix("").parts) for path in files} == modules
    for verb in cli.VERBS:
        module, _, name = verb.location.partition(":")
        assert name in vars(importlib.import_module(module))
