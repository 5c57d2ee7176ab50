"""What serving costs over the bare call, and what other servers cost that make the same call.

Everyone computes the same: decode, preprocess, and the largest submodel of the same weights, on one torch thread; for
two models, the one in the package and a random ViT-S/16 at 224 pixels. Compared, in the same run, in a new order each
round, on the same cores, one server up at a time:

- bare: the call in this process, one image after another (p50), and a loop over batches (images/s, the best size);
  also one at a time with a pause of 5 ms before each, since no call of a server follows the last at once;
- `elastic serve`: Ray Serve's HAProxy, one replica, its queue and policy, held to the largest submodel by min_quality;
- grpc.aio: a minimal batching gRPC server, one process (`peers/bare_grpc.py`);
- LitServe and infinity_emb, batching on, over HTTP, if an environment for them is given.

p50 is at concurrency 1, throughput at the concurrencies of `workload.MODELS`, closed loop, once with one image in a
call and once with as many as a batch has (LitServe takes one). Goals: p50 within 2.0 ms of bare; throughput at least
0.9 of the bare loop. Differences and ratios are taken within a round; shown are medians and the range over rounds. The
table of where the time goes is from the replies' own timings and a call that does nothing.

Every server shares the cores of this machine with the client, which costs a Python event loop. So CPU milliseconds per
request are given as well, of the server's whole process tree, what it does while idle included, and of the client; a
busy neighbour changes them least. It cannot show: a client on another machine, more cores, a GPU.

    python -m benchmarks.server_cost --peers-venv ~/peers       # about twenty minutes on two quiet cores
    python -m benchmarks.server_cost --quick                    # one short round of the small model; writes no results
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.progress import Progress

from benchmarks.server_cost import load, report, servers
from benchmarks.server_cost.environment import ensure_environment
from benchmarks.server_cost.workload import BUNDLED, MODELS, PAUSE_MS, Model, Workload, draw_images, write_run
from elastic._pb.elastic.v1 import embedding_pb2 as pb

WARM_UP, SETTLE_S = 20, 5.0
"""Requests before the clock starts, beside four of each caller; and rest before the first of them."""

Connect = Callable[[int, Sequence[bytes], int], AbstractAsyncContextManager[load.Ask]]
"""Port, images, and how many of them in a call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """Cost of the server over the bare call, and of other servers."""

    rounds: int = 5
    """Times that everyone is measured, in a new order each time."""
    peers_venv: Path | None = None
    """Virtual environment of LitServe and infinity_emb; made if it is not there. Left out, they are not measured."""
    quick: bool = False
    """Two short rounds of the small model, to see that it works; writes no results."""
    seed: int = 0
    """Of the order."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A server: what runs it and how it is called."""

    start: Callable[[], AbstractContextManager[servers.Server]]
    connect: Connect
    takes_several: bool = True
    """Whether a call may hold more than one image."""


def main(options: Options) -> None:
    """Measure, print, and write the results."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # killed or interrupted, it stops its servers
    models = MODELS
    if options.quick:
        options, models = replace(options, rounds=2), (replace(BUNDLED, calls=50, requests=200),)
    if options.peers_venv is not None:
        ensure_environment(options.peers_venv)
    console, load_before = Console(width=140), os.getloadavg()[0]
    found: dict[str, list[report.Round]] = {}
    with Progress(console=console) as progress:
        for model in models:
            found[model.name] = measure(model, options, progress)
    summary = {name: report.summarise(rounds) for name, rounds in found.items()}
    for name in found:
        console.print(report.compared(name, summary[name]), report.taken_apart(name, summary[name]))
    if not options.quick:
        busy = {"load_before": load_before, "load_after": os.getloadavg()[0]}
        shown = asdict(options) | {"peers_venv": options.peers_venv is not None}
        models_json = [asdict(model) for model in models]
        path = report.write({"options": shown, "models": models_json, "busy": busy, "summary": summary}, found)
        console.print(f"wrote {path}")


def measure(model: Model, options: Options, progress: Progress) -> list[report.Round]:
    """All rounds of one model."""
    with TemporaryDirectory(prefix="cost-") as folder:
        scratch = Path(folder)
        steps = progress.add_task(f"{model.name}: tables", total=None)
        run = write_run(model, scratch / "run")
        images, workload = draw_images(model.pixels), Workload(run)
        contenders = contenders_of(model, run, scratch, options.peers_venv)
        names = ["bare", *contenders]
        progress.update(steps, description=model.name, total=options.rounds * len(names), completed=0)
        rng = np.random.default_rng(options.seed)
        rounds: list[report.Round] = []
        for _ in range(options.rounds):
            results: report.Round = {}
            for name in (names[position] for position in rng.permutation(len(names))):
                if name == "bare":
                    results[name] = measure_bare(model, workload, images)
                else:
                    # Started anew each time: some servers take a core for themselves while they have nothing to do.
                    with contenders[name].start() as server:
                        time.sleep(SETTLE_S)
                        results[name] = asyncio.run(measure_server(model, server, contenders[name], images))
                progress.advance(steps)
            rounds.append({name: results[name] for name in names})
    return rounds


def contenders_of(model: Model, run: Path, scratch: Path, peers_venv: Path | None) -> dict[str, Contender]:
    """Every server, by its name in the table."""
    found = {
        "elastic serve": Contender(partial(servers.elastic_serve, model, run, scratch), load.grpc_embed),
        "grpc.aio": Contender(partial(servers.bare_grpc, model, run, scratch), load.grpc_embed),
    }
    if peers_venv is None:
        return found
    return found | {
        "LitServe": Contender(partial(servers.litserve, model, run, scratch, peers_venv), load.litserve_embed, False),
        "infinity": Contender(partial(servers.infinity, model, run, scratch, peers_venv), load.infinity_embed),
    }


def measure_bare(model: Model, workload: Workload, images: Sequence[bytes]) -> dict[str, Any]:
    """The call in this process: one at a time, and in batches."""
    latencies_ms, prepare_ms = [], []
    workload.embed([workload.prepare(images[0])])
    cpu_s = time.process_time()
    for number in range(model.calls):
        call_ms, before_ms = call(workload, images[number % len(images)])
        latencies_ms.append(call_ms)
        prepare_ms.append(before_ms)
    call_cpu_ms = 1e3 * (time.process_time() - cpu_s) / model.calls
    paused_ms = []
    for number in range(model.calls):
        time.sleep(PAUSE_MS / 1000)
        paused_ms.append(call(workload, images[number % len(images)])[0])
    return {
        "latencies_ms": latencies_ms,
        "prepare_ms": prepare_ms,
        "paused_ms": paused_ms,
        "cpu_ms": {"1": call_cpu_ms},
        "per_s": {str(size): loop(model, workload, images, size) for size in batch_sizes(model)},
    }


def call(workload: Workload, encoded: bytes) -> tuple[float, float]:
    """Milliseconds of one image in this process, and of its decoding."""
    start = time.perf_counter()
    image = workload.prepare(encoded)
    prepared = time.perf_counter()
    workload.embed([image])
    return 1e3 * (time.perf_counter() - start), 1e3 * (prepared - start)


def batch_sizes(model: Model) -> tuple[int, ...]:
    """Of the bare loop."""
    return (1, model.max_batch_size // 4, model.max_batch_size)


def loop(model: Model, workload: Workload, images: Sequence[bytes], batch_size: int) -> float:
    """Images per second of a loop over batches, half as many images as a server is asked for."""
    num_batches = max(1, model.requests // 2 // batch_size)
    start = time.perf_counter()
    for number in range(num_batches):
        chosen = (images[(number * batch_size + offset) % len(images)] for offset in range(batch_size))
        workload.embed([workload.prepare(image) for image in chosen])
    return num_batches * batch_size / (time.perf_counter() - start)


async def measure_server(
    model: Model, server: servers.Server, contender: Contender, images: Sequence[bytes]
) -> dict[str, Any]:
    """One server at concurrency 1 and saturated, with one image in a call and with as many as in a batch."""
    found: dict[str, Any] = {"per_s": {}, "cpu_ms": {}, "client_cpu_ms": {}}
    async with contender.connect(server.port, images, 1) as ask:
        for concurrency in (1, *model.concurrencies):
            await load.closed_loop(ask, min(WARM_UP + 4 * concurrency, model.requests // 3), concurrency)
            cpu_s, client_s = server.cpu_s(), time.process_time()
            num_requests = model.calls if concurrency == 1 else model.requests
            sent = await load.closed_loop(ask, num_requests, concurrency)
            found["cpu_ms"][str(concurrency)] = 1e3 * (server.cpu_s() - cpu_s) / num_requests
            found["client_cpu_ms"][str(concurrency)] = 1e3 * (time.process_time() - client_s) / num_requests
            if concurrency == 1:
                found["latencies_ms"] = sent.latencies_ms
                found |= explained(sent)
            else:
                found["per_s"][str(concurrency)] = sent.per_s
    if contender.takes_several:
        async with contender.connect(server.port, images, model.max_batch_size) as ask:
            found["full_calls_per_s"] = await full_calls(model, ask)
    if server.direct_port is not None:
        for name, port in (("nothing_ms", server.port), ("nothing_direct_ms", server.direct_port)):
            async with load.grpc_nothing(port) as ask:
                await load.closed_loop(ask, 10, 1)
                found[name] = (await load.closed_loop(ask, 100, 1)).latencies_ms
    return found


async def full_calls(model: Model, ask: load.Ask) -> dict[str, float]:
    """Images per second by the number of calls under way, each of as many images as a batch."""
    found = {}
    for concurrency in model.full_calls:
        await load.closed_loop(ask, concurrency, concurrency)
        sent = await load.closed_loop(ask, max(2 * concurrency, model.requests // model.max_batch_size), concurrency)
        found[str(concurrency)] = model.max_batch_size * sent.per_s
    return found


def explained(sent: load.Sent) -> dict[str, list[float]]:
    """The timings that the replies of `elastic serve` carry; nothing of other servers."""
    messages = [answer.message for answer in sent.answers]
    replies = [message for message in messages if isinstance(message, pb.EmbedReply) and message.model_version]
    whys = [reply.embeddings[0].explanation for reply in replies]
    if not whys:
        return {}
    return {
        "prepare_ms": [why.preprocess_ms for why in whys],
        "queue_ms": [why.queue_ms for why in whys],
        "compute_ms": [why.compute_ms for why in whys],
        "total_ms": [reply.total_ms for reply in replies],
    }


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
