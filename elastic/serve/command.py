"""The verb `elastic serve`: check the tables, measure if needed, start, wait for Ctrl-C."""

import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import tyro
from rich.console import Console

from elastic.checkpoint import load_model
from elastic.errors import ConfigError, ProfileError
from elastic.model.pretrained import BUNDLED_RUN
from elastic.model.storage import Kind, run_kind
from elastic.profile.device import check_device, device_fingerprint
from elastic.profile.latency import LatencyConfig, measure
from elastic.profile.store import latency_path, load_latency, load_quality
from elastic.profile.tables import Quantile
from elastic.serve.app import Server, serving
from elastic.serve.config import ServeConfig, is_loopback
from elastic.serve.scaling.scaler import ScalingRules
from elastic.serve.telemetry.tracing import exporter_name

QUICK = LatencyConfig(rounds=30, warmup_rounds=2, max_s=30.0)
"""Enough rounds to choose between submodels; `elastic profile` takes more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """Answer gRPC and HTTP requests, each with the best submodel and width that meet its latency objective.

    Of an image-text run it serves `elastic.v1.EmbeddingService` (Embed, EmbedStream, Info), `grpc.health.v1.Health`,
    reflection and, over HTTP, OpenAI's /v1/embeddings until Ctrl-C or SIGTERM. The choice is made from the run's
    measured tables; without a latency table of this machine it measures first, which takes about half a minute.

    Of a language-model run it serves `elastic.v1.GenerationService` and OpenAI's /v1/completions in their place; every
    replica times its submodels when it starts, and settings of images, batches and profiles mean nothing.

    Example: elastic serve runs/icons --port 9000
    """

    run_dir: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(name="run")] = None
    """Run directory; left out, the model inside the package."""
    host: str = "127.0.0.1"
    """Interface to listen on; 0.0.0.0 for all, which asks for --api-keys."""
    port: int = 9000
    """gRPC port."""
    http_port: int | None = None
    """Port of the HTTP API (OpenAI's /v1/embeddings); left out, the one after --port."""
    api_keys: Path | None = None
    """Answer only callers with a key of this file (`elastic keys add` makes it); changes to it count at once."""
    tls_cert: Path | None = None
    """Encrypt: certificate and chain (PEM). Files that are renewed are read anew."""
    tls_key: Path | None = None
    """Private key (PEM) of the certificate."""
    client_ca: Path | None = None
    """Answer only clients with a certificate of an authority in this PEM file; needs --tls-cert."""
    insecure_public: bool = False
    """Listen beyond this machine without keys: anybody who reaches the port may call."""
    profile: Literal["auto", "always", "never"] = "auto"
    """Measure latencies before serving: when there is no table of this machine (auto), always, or never."""
    force_foreign_tables: bool = False
    """Use times that were measured on another machine instead of measuring."""
    num_replicas: int = 1
    """Processes that answer, each with its own model thread; with --max-replicas, at the beginning."""
    min_replicas: int = 1
    """With --max-replicas: never fewer. 0 stops the last one when nothing is asked; the next call then waits for it."""
    max_replicas: int | None = None
    """Start more replicas, up to so many, when too much is refused or answered less accurately; left out, never."""
    target_attainment: float = 0.99
    """With --max-replicas: share of requests that must meet their objective."""
    max_quality_loss: float = 0.01
    """With --max-replicas: share of quality that answers may lose to load, against the best their budgets allow."""
    scale_down_after_s: float = 60.0
    """With --max-replicas: how long fewer replicas must suffice at full quality before some stop."""
    scale_to_zero_after_s: float = 300.0
    """With --min-replicas 0: how long nothing must be asked before the last replica stops."""
    num_threads: int = 1
    """torch threads of each replica's model; the latency table must have been measured with as many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model; the latency table must have been measured with it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model computes; with cuda every replica takes a GPU of its own."""
    policy: str = "lookahead"
    """What chooses submodel and batch: lookahead, or for comparisons slackfit, max_accuracy, max_batch,
    infaas_min_cost, static=LEVEL or clipper_aimd=LEVEL (a submodel of the front, smallest or largest)."""
    quantile: Quantile = "p90"
    """Which measured time must fit a deadline; p99 is more careful, p50 more daring."""
    max_batch_size: int = 32
    """Inputs computed at once; at most the largest profiled batch."""
    max_items_per_call: int = 64
    """Inputs in one request."""
    max_waiting_items: int = 512
    """Inputs that may wait at one replica; more are refused with a retry hint."""
    max_sequences: int = 8
    """Texts that one replica of a language model generates at once; more are refused with a retry hint."""
    max_message_bytes: int = 32 * 2**20
    """Size of one request in bytes."""
    max_image_pixels: int = 32_000_000
    """Pixels that an image may declare; more is refused before decoding."""
    image_url_allow: tuple[str, ...] = ()
    """Hosts that images may be read from by URL (host, host:port, *.host; networks such as 10.1.0.0/16 admit
    addresses that are not public). None: URLs are refused."""
    default_latency_ms: float = 1_000.0
    """Budget of a request that names none, in milliseconds."""
    reply_margin_ms: float = 1.0
    """Kept back from every budget for the way of the answer, in milliseconds: half a round trip to your clients, and
    more if the server shares its cores."""
    metrics_port: int | None = None
    """Show Prometheus metrics of all replicas at http://HOST:PORT/metrics; left out, nothing is counted."""
    drain_s: float = 10.0
    """How long accepted requests may take to finish after Ctrl-C or SIGTERM, in seconds."""
    log_requests: Path | None = None
    """Folder to write one JSON line per request to, without what it holds; left out, none is written."""
    log_sample: float = 1.0
    """Share of the requests that are logged; faults of the server always are."""

    def run(self) -> None:
        """Start, say how to call it, and wait for the end."""
        console = Console()
        check_device(self.device)
        kind = "encoder" if self.run_dir is None else run_kind(self.run_dir)
        config = self.config(BUNDLED_RUN if self.run_dir is None else self.run_dir)
        for warning in security_warnings(config):
            console.print(f"[bold yellow]warning[/bold yellow] {warning}")
        if kind == "encoder":
            load_quality(config.run)  # before anything slow: without it nothing can be chosen
            ensure_profiled(config, self.profile, console)
        else:
            check_generates(config, os.environ)
        console.print(f"starting [bold]{config.run.name}[/bold] on Ray Serve (about 20 s) ...")
        stop = threading.Event()
        with serving(config) as server:
            # After Ray has started, because it installs handlers of its own.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _setter(stop))
            console.print(ready_message(server, config, kind))
            stop.wait()
            console.print("stopping ...")
        console.print("stopped")

    def config(self, run: Path) -> ServeConfig:
        """The server's settings for a resolved run directory."""
        own = {f.name for f in fields(self)} & {f.name for f in fields(ServeConfig)} - {"log_requests"}
        # Replicas may run in another folder.
        log_requests = None if self.log_requests is None else self.log_requests.resolve()
        settings = {name: getattr(self, name) for name in own}
        return ServeConfig(run=run, log_requests=log_requests, scaling=self._scaling(), **settings)

    def _scaling(self) -> ScalingRules | None:
        if self.max_replicas is None:
            if self.min_replicas != 1:
                raise ConfigError("serve.min_replicas", self.min_replicas, "needs --max-replicas")
            return None
        return ScalingRules(
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            target_attainment=self.target_attainment,
            max_quality_loss=self.max_quality_loss,
            down_after_s=self.scale_down_after_s,
            zero_after_s=self.scale_to_zero_after_s,
        )


def ensure_profiled(config: ServeConfig, when: Literal["auto", "always", "never"], console: Console) -> None:
    """Measure the latency table if it is missing, foreign or for other settings, and `when` allows it.

    Raises:
        ProfileError: it is needed, but `when` is never.
    """
    problem = None if when == "always" else _profile_problem(config)
    if when != "always" and problem is None:
        return
    if when == "never" and problem is not None:
        raise problem
    path = latency_path(config.run)
    console.print(f"measuring this machine first{f' ({problem.problem})' if problem else ''}: about half a minute ...")
    encoder, _, _ = load_model(config.run)
    measure(encoder, _quick(config), device=config.device).save(path)
    console.print(f"wrote {path}; `elastic profile` measures more thoroughly")


def security_warnings(config: ServeConfig) -> list[str]:
    """What an operator should know about who can call, and who can listen."""
    if is_loopback(config.host):
        return []
    warnings = []
    if config.api_keys is None:
        warnings.append(f"anybody who reaches {config.host}:{config.port} may call: there are no API keys")
    if config.tls_cert is None:
        warnings.append("nothing is encrypted: images, embeddings and API keys cross the network in the clear")
    return warnings


def check_generates(config: ServeConfig, environment: Mapping[str, str]) -> None:
    """Accept settings that hold for language models, too.

    Raises:
        ConfigError: one does not.
    """
    if config.scaling is not None:
        rule = "a language model is served by a fixed number of replicas: use --num-replicas"
        raise ConfigError("serve.max_replicas", config.scaling.max_replicas, rule)
    if (exporter := exporter_name(environment)) is not None:
        rule = "requests of a language model are not traced; unset the OTEL_ variables for this server"
        raise ConfigError("OTEL_TRACES_EXPORTER", exporter, rule)


def ready_message(server: Server, config: ServeConfig, kind: Kind = "encoder") -> str:
    """What a person needs to know once the server answers."""
    address = server.address
    flag = "" if address == "127.0.0.1:9000" else f" --server {address}"
    flag += "" if config.tls_cert is None else " --tls-ca CA.pem"
    flag += "" if config.client_ca is None else " --tls-cert CLIENT.pem --tls-key CLIENT.key"
    key = "" if config.api_keys is None else "ELASTIC_API_KEY=... "
    grpcurl = "-plaintext" if config.tls_cert is None else "-cacert CA.pem"
    curl = "" if config.api_keys is None else '-H "authorization: Bearer $ELASTIC_API_KEY" '
    curl += "http://" if config.tls_cert is None else "--cacert CA.pem https://"
    metrics = "" if server.metrics_url is None else f"  watch  elastic top {server.metrics_url}\n"
    requests = "" if config.log_requests is None else f"         {config.log_requests}/requests-*.jsonl\n"
    size = f"{config.num_replicas}" if config.scaling is None else config.scaling.sizes
    attempt = f"{key}elastic embed IMAGE.png --latency-slo-ms 20{flag}"
    if kind == "decoder":
        body = '{"prompt": "Once", "max_tokens": 64, "stream": true}'
        attempt = f"curl -N {curl}{server.http_address}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
    return (
        f"[bold green]ready[/bold green] at {address}: {size} replica(s), model {config.run.name}\n"
        f"  try    {attempt}\n"
        f"  or     grpcurl {grpcurl} {address} list\n"
        f"  HTTP   curl {curl}{server.http_address}/v1/models\n"
        f"{metrics}"
        f"  logs   {server.log_dir}\n"
        f"{requests}"
        "  stop   Ctrl-C"
    )


def _profile_problem(config: ServeConfig) -> ProfileError | None:
    """Why the run's latency table cannot be used, if it cannot."""
    try:
        table = load_latency(config.run, device_fingerprint(config.device), any_device=config.force_foreign_tables)
    except ProfileError as error:
        return error
    if table.where(dtype=config.dtype, num_threads=config.num_threads).rows:
        return None
    problem = f"not measured with dtype {config.dtype} and {config.num_threads} thread(s)"
    return ProfileError("latency", problem, "run `elastic profile` with these settings")


def _quick(config: ServeConfig) -> LatencyConfig:
    return LatencyConfig(
        rounds=QUICK.rounds,
        warmup_rounds=QUICK.warmup_rounds,
        max_s=QUICK.max_s,
        num_threads=config.num_threads,
        dtype=config.dtype,
    )


def _setter(stop: threading.Event) -> "signal._HANDLER":
    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    return handle
