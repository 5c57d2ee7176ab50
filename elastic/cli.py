"""The `elastic` command: one verb per thing a person wants done.

Every verb is a frozen dataclass with a `run` method, beside the code it drives; its fields are its flags and
their docstrings its help. This module finds the verb, lets tyro fill the dataclass, runs it, and turns what went
wrong into one message and an exit code. Nothing heavy is imported before the verb is known, so help is instant.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, runtime_checkable

from elastic import __version__
from elastic.errors import ElasticError

EXIT_USER_ERROR = 2
"""The request, the data or the machine did not allow it; the message says what to change."""
EXIT_INTERRUPTED = 130
"""Ctrl-C: 128 + SIGINT, as shells expect."""
EXIT_BROKEN_PIPE = 141
"""Whoever read the output has gone: 128 + SIGPIPE."""
TRACEBACK_VARIABLE = "ELASTIC_TRACEBACK"
"""Set to 1 to see where an error was raised, like `--traceback`."""


@runtime_checkable
class Command(Protocol):
    """What a verb's class offers once its flags are filled in."""

    def run(self) -> None:
        """Do it; raise an `ElasticError` for what the user can mend."""


@runtime_checkable
class ReadsArguments(Protocol):
    """A verb's class whose flags depend on its first word (`train RECIPE`), so that it reads its arguments itself."""

    def parse(self, arguments: Sequence[str], prog: str) -> Command:
        """The command that `arguments` ask for; `prog` is what they follow, for the help."""
        ...


@dataclass(frozen=True, slots=True)
class Verb:
    """One line of `elastic --help`, and where to find the class behind it."""

    group: str
    name: str
    summary: str
    example: str
    location: str
    """`module:Class`; imported only when the verb is used."""

    def parse(self, arguments: Sequence[str]) -> Command:
        """The verb's command with its flags filled from `arguments`; exits on `--help` and wrong flags."""
        import tyro

        module, _, name = self.location.partition(":")
        kind = getattr(importlib.import_module(module), name)
        prog = f"elastic {self.name}"
        if isinstance(kind, ReadsArguments):
            command = kind.parse(arguments, prog)
        else:
            # DisallowNone: an optional flag is left out, not set to the word None.
            command = tyro.cli(kind, prog=prog, args=arguments, config=(tyro.conf.DisallowNone,))
        assert isinstance(command, Command), f"{self.location} has no run()"
        return command


MAKE, MEASURE, USE, START = "Make a model", "Measure it", "Use it", "Data and first steps"

VERBS = (
    Verb(MAKE, "train", "Train a nested model", "elastic train icons --steps 2000", "elastic.train.command:Train"),
    Verb(
        MAKE,
        "nest",
        "A Llama checkpoint as a nested language model",
        "elastic nest llama/ runs/llama",
        "elastic.commands.nest:Nest",
    ),
    Verb(
        MAKE,
        "extract",
        "Cut one submodel out as a plain model",
        "elastic extract runs/icons small/ --submodel S",
        "elastic.commands.extract:Extract",
    ),
    Verb(
        MEASURE,
        "evaluate",
        "Quality of every submodel and width",
        "elastic evaluate runs/icons",
        "elastic.evaluate.command:Evaluate",
    ),
    Verb(
        MEASURE,
        "probe",
        "Zero-shot, captions, neighbours, dense probes",
        "elastic probe runs/joint --source scenes",
        "elastic.commands.probe:Probe",
    ),
    Verb(
        MEASURE,
        "profile",
        "Latency of every submodel on this machine",
        "elastic profile runs/icons",
        "elastic.profile.command:Profile",
    ),
    Verb(
        MEASURE,
        "select",
        "The best submodel for a latency objective",
        "elastic select --latency-slo-ms 5",
        "elastic.commands.select:Select",
    ),
    Verb(
        MEASURE,
        "simulate",
        "Serving policies on simulated replicas",
        "elastic simulate --shape bursty",
        "elastic.simulate.command:Simulate",
    ),
    Verb(USE, "serve", "Answer gRPC requests at every budget", "elastic serve", "elastic.serve.command:Serve"),
    Verb(
        USE,
        "deploy",
        "Put another run into a running server",
        "elastic deploy runs/icons",
        "elastic.commands.deploy:Deploy",
    ),
    Verb(
        USE,
        "embed",
        "Embed images or texts through a server",
        "elastic embed cat.png --latency-slo-ms 10",
        "elastic.commands.embed:Embed",
    ),
    Verb(
        USE,
        "generate",
        "Continue a text, drafted by a smaller slice",
        'elastic generate runs/matlm --prompt "The"',
        "elastic.lm.command:Generate",
    ),
    Verb(
        USE,
        "bench",
        "Put a running server under load",
        "elastic bench serve --rate 100",
        "elastic.bench.command:Bench",
    ),
    Verb(USE, "top", "Watch a running server in the terminal", "elastic top", "elastic.commands.top:Top"),
    Verb(
        USE,
        "keys",
        "API keys of a server and their limits",
        "elastic keys add mobile --rate 20",
        "elastic.commands.keys:Keys",
    ),
    Verb(START, "data", "List, check or rebuild data sets", "elastic data ls", "elastic.data.command:Data"),
    Verb(START, "demo", "All of the above in ten minutes", "elastic demo", "elastic.commands.demo:Demo"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the process's exit code: 0 done, 2 user error, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in words or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")
    words = [word for word in words if word != "--traceback"]
    try:
        return dispatch(words)
    except ElasticError as error:
        if show_traceback:
            raise
        complain(describe(error))
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        if show_traceback:
            raise
        complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def dispatch(words: Sequence[str]) -> int:
    """Run the verb that `words` begins with, or show the help or version it asks for."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        print(f"elastic {__version__}")
        return 0
    verbs = {verb.name: verb for verb in VERBS}
    verb = verbs.get(words[0])
    if verb is None:
        near = difflib.get_close_matches(words[0], verbs, n=1)
        guess = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(verbs)}"
        complain(f"no verb {words[0]!r}: {guess} ('elastic --help' explains each)")
        return EXIT_USER_ERROR
    verb.parse(words[1:]).run()
    return 0


def help_text() -> str:
    """The page that `elastic --help` prints: every verb by purpose, each with one example."""
    name_width = max(len(verb.name) for verb in VERBS)
    summary_width = max(len(verb.summary) for verb in VERBS)
    lines = [
        f"elastic {__version__}: train one nested image-text encoder, serve it at every latency budget.",
        "",
        "usage: elastic VERB [options]      elastic VERB --help explains the verb and its options",
    ]
    for group, verbs in groupby(VERBS, key=lambda verb: verb.group):
        lines += ["", group]
        lines += [f"  {verb.name:<{name_width}}  {verb.summary:<{summary_width}}  $ {verb.example}" for verb in verbs]
    lines += [
        "",
        "A run is a directory (runs/NAME). Leave it out and a verb uses the trained model inside the package.",
        f"--traceback (or {TRACEBACK_VARIABLE}=1) shows where an error was raised. Exit codes: 0 done, 2 to be",
        "mended by you, 130 interrupted.",
    ]
    return "\n".join(lines)


def describe(error: ElasticError) -> str:
    """The message of an error, without the remote traceback that Ray puts around one from another process."""
    cause = getattr(error, "cause", None)
    return str(cause if isinstance(cause, ElasticError) else error)


def complain(message: str) -> None:
    """Print one error on standard error, red where that is a terminal."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), (message, "red")))
