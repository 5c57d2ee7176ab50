"""`elastic demo`: the whole line in one command, with the verbs that anybody would type.

Every stage is the public command in a process of its own, shown before it runs; the requests go through
`elastic.client`. What this module adds is the choice of objectives, and a table of what was answered.
"""

import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from elastic.client import Client, Embedding
from elastic.data.icons import BUNDLED_ICONS
from elastic.data.sources import open_source
from elastic.errors import ElasticError, ServerUnavailable
from elastic.serve.app import wait_until_serving

NUM_LADDER = 4
"""Objectives between the fastest and the most accurate submodel."""
WARMUP_REQUESTS = 120
READY_TIMEOUT_S = 240.0
"""Starting Ray Serve takes about 20 s; measuring latencies first, where needed, half a minute more."""
STOP_TIMEOUT_S = 60.0
SETTLE_S = 2.0
"""How long each row is asked for before it counts: a server expects what came in the last half second to go on."""
FAR_TOO_TIGHT = 0.5
"""An objective of this share of the fastest submodel's compute time: shows what a refusal looks like."""

Send = Callable[["Ask", bytes], Embedding]


@dataclass(frozen=True, slots=True)
class Ask:
    """One row of the final table: what is asked for."""

    latency_ms: float
    embed_dim: int


@dataclass(frozen=True, slots=True)
class Answer:
    """One request of a row: what came back, and how long it took the caller."""

    embedding: Embedding
    wall_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """Train on the bundled icons, evaluate, profile, serve, and answer real gRPC requests at several objectives.

    Takes about ten minutes on two cores; most of it is training. Ends with a table: objective, chosen submodel and
    width, measured milliseconds, met or not.
    """

    recipe: str = "icons_demo"
    """Recipe to train."""
    run_dir: Path | None = None
    """Directory of the new run; left out, the first of runs/demo, runs/demo-2, ... that does not exist."""
    num_requests: int = 100
    """Requests per objective."""

    def run(self) -> None:
        """Run the five stages; stops at the first that fails, with its exit code."""
        console, begin_s = Console(), time.monotonic()
        run_dir = self.run_dir or unused(Path("runs/demo"))
        stages = (
            ("train one nested encoder", ("train", self.recipe, "--run-dir", str(run_dir))),
            ("evaluate every submodel and width", ("evaluate", str(run_dir))),
            ("profile every submodel on this machine", ("profile", str(run_dir))),
        )
        for number, (title, words) in enumerate(stages, start=1):
            with stage(console, f"{number}/5 {title}", words):
                run_verb(words)
        address = f"127.0.0.1:{free_port()}"
        words = ("serve", str(run_dir), "--port", address.rpartition(":")[2])
        with server(console, words, address, run_dir / "serve.log"), Client(address) as client:
            with stage(console, "5/5 send requests at several objectives"):
                table = ask_and_tabulate(client, test_images(), self.num_requests)
            console.print(table)
        minutes, seconds = divmod(round(time.monotonic() - begin_s), 60)
        console.print(f"demo finished in {minutes} min {seconds} s; everything it made is in [bold]{run_dir}[/bold]")
        console.print(f"  read   {run_dir}/report.md", f"  serve  elastic serve {run_dir}", sep="\n", soft_wrap=True)


def unused(path: Path) -> Path:
    """The path itself, or with the first number appended that gives a path which does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


@contextmanager
def stage(console: Console, title: str, words: Sequence[str] = ()) -> Iterator[None]:
    """Announce a stage and the command that it runs; say afterwards how long it took."""
    console.rule(f"[bold]{title}", align="left")
    if words:
        console.print(f"[dim]$ elastic {' '.join(words)}", soft_wrap=True, highlight=False)
    begin_s = time.monotonic()
    yield
    console.print(f"[dim]{title}: {time.monotonic() - begin_s:.0f} s", highlight=False)


def run_verb(words: Sequence[str]) -> None:
    """Run one verb in a process of its own, its output going where ours goes.

    Raises:
        SystemExit: it failed, and said why.
    """
    code = subprocess.run([sys.executable, "-m", "elastic", *words], check=False).returncode
    if code:
        raise SystemExit(code)


@contextmanager
def server(console: Console, words: Sequence[str], address: str, log: Path) -> Iterator[None]:
    """A server in a process of its own for the length of the block; its output goes to a log file.

    Raises:
        ServerUnavailable: it ended or stayed silent instead of answering.
    """
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "elastic", *words], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            with stage(console, "4/5 serve it", words):
                wait_for(process, address, log)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Return once the server answers.

    Raises:
        ServerUnavailable: its process ended, or it is not ready in time.
    """
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            last = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-5:])
            raise ServerUnavailable(address, f"the server ended with code {process.returncode}:\n{last}", f"see {log}")
        try:
            wait_until_serving(address, timeout_s=1.0)
            return
        except ServerUnavailable:
            pass  # still starting: look at the process again
    raise ServerUnavailable(address, f"not ready after {READY_TIMEOUT_S:.0f} s", f"see {log}")


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_images() -> list[bytes]:
    """Encoded test images of the bundled data set: classes that training has not seen."""
    source = open_source(str(BUNDLED_ICONS))
    rows = np.flatnonzero(np.asarray(source.metadata["split"]) == "test")
    return source.read_images(np.random.default_rng(0).permutation(rows)[:256])


def ask_and_tabulate(client: Client, images: Sequence[bytes], num_requests: int) -> Table:
    """Send every row's requests, one at a time, and tabulate the answers."""

    def send(ask: Ask, image: bytes) -> Embedding:
        (embedding,) = client.embed(images=[image], latency_slo_ms=ask.latency_ms, embed_dim=ask.embed_dim)
        return embedding

    anything = Ask(10_000.0, client.info().embed_dims[-1])
    answers = [timed(send, anything, images[i % len(images)]) for i in range(WARMUP_REQUESTS)]
    # The first answers of a fresh server are slow; the later half tells what a request costs besides the model.
    overhead_ms = quantile_ms([a.wall_ms - a.embedding.compute_ms for a in answers[WARMUP_REQUESTS // 2 :]], 0.75)
    info = client.info()  # after the warm-up, when predictions are those of the machine as it is now
    times_ms = [level.predicted_ms for level in info.submodels if level.modality == info.modalities[0]]
    outcomes = {}
    for ask in track(ladder(times_ms, overhead_ms, list(info.embed_dims)), "objectives", transient=True):
        settled_s = time.monotonic() + SETTLE_S
        while time.monotonic() < settled_s:
            collect(send, ask, images, num_requests=1)
        outcomes[ask] = collect(send, ask, images, num_requests)
    return render(outcomes, overhead_ms, info.device)


def ladder(times_ms: Sequence[float], overhead_ms: float, embed_dims: Sequence[int]) -> list[Ask]:
    """The rows: an impossible objective, a rising series of tight ones at full width, a loose one at every width.

    `times_ms` are what the submodels take; objectives are placed between them, so that every machine shows choices.
    """
    fastest, slowest, full = min(times_ms), max(times_ms), embed_dims[-1]
    steps = [fastest + (slowest - fastest) * i / (NUM_LADDER - 1) for i in range(NUM_LADDER)]
    loose = 10 * (overhead_ms + slowest)
    tight = [Ask(round(overhead_ms + 1.25 * step, 1), full) for step in steps]
    return [
        Ask(round(FAR_TOO_TIGHT * fastest, 2), full),
        *dict.fromkeys(tight),
        *(Ask(round(loose), embed_dim) for embed_dim in reversed(embed_dims)),
    ]


def collect(send: Send, ask: Ask, images: Sequence[bytes], num_requests: int) -> list[Answer | ElasticError]:
    """Every request of one row: its answer, or the error that it was refused with."""
    outcomes: list[Answer | ElasticError] = []
    for number in range(num_requests):
        try:
            outcomes.append(timed(send, ask, images[number % len(images)]))
        except ElasticError as error:
            outcomes.append(error)
    return outcomes


def timed(send: Send, ask: Ask, image: bytes) -> Answer:
    """One request, timed at the caller."""
    begin_s = time.perf_counter()
    embedding = send(ask, image)
    return Answer(embedding, (time.perf_counter() - begin_s) * 1000)


def quantile_ms(values_ms: Sequence[float], share: float) -> float:
    """The value that `share` of the values stay below."""
    return (
        quantiles(values_ms, n=100, method="inclusive")[round(share * 100) - 1] if len(values_ms) > 1 else values_ms[0]
    )


def render(outcomes: dict[Ask, list[Answer | ElasticError]], overhead_ms: float, device: str) -> Table:
    """Objective in, what was chosen for it out: one line per row, refusals explained."""
    table = Table(
        title="What each latency objective bought",
        caption=f"{device}. Measured at the client, request to answer; {overhead_ms:.1f} ms of it is not the model "
        "(75th percentile). R@1 is this run's, on classes it was not trained on. What was neither met nor refused was "
        "late.",
    )
    for column in ("SLO ms", "width", "submodel", "R@1", "predicted ms", "measured ms p50 / p95", "met", "refused"):
        table.add_column(column, justify="left" if column == "submodel" else "right", overflow="fold")
    for ask, found in outcomes.items():
        table.add_row(f"{ask.latency_ms:g}", str(ask.embed_dim), *cells(ask, found))
    return table


def cells(ask: Ask, found: Sequence[Answer | ElasticError]) -> tuple[str, str, str, str, str, str]:
    """Submodel, quality, predicted time, measured time, share met and number refused of one row.

    Late answers and refusals count as not met: every request is in the denominator.
    """
    answers = [outcome for outcome in found if isinstance(outcome, Answer)]
    met = sum(answer.wall_ms <= ask.latency_ms for answer in answers)
    share, refused = f"{met}/{len(found)}", str(len(found) - len(answers))
    if not answers:
        kinds = Counter(type(outcome).__name__ for outcome in found)
        return (f"refused: {kinds.most_common(1)[0][0]}", "-", "-", "-", share, refused)
    chosen = Counter(answer.embedding.granularity for answer in answers)
    names = ", ".join(f"{name} {count / len(answers):.0%}" for name, count in chosen.most_common(3))
    quality = median(answer.embedding.quality for answer in answers)
    predicted_ms = median(answer.embedding.predicted_ms for answer in answers)
    walls_ms = [answer.wall_ms for answer in answers]
    measured = f"{median(walls_ms):.1f} / {quantile_ms(walls_ms, 0.95):.1f}"
    return (names, f"{quality:.3f}", f"{predicted_ms:.2f}", measured, share, refused)
