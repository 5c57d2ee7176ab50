"""Starts and stops a server: a local Ray, Ray Serve behind its HAProxy ingress, one application.

Ray reads its settings from the environment when it is first imported and hands them to every process it starts, so
`serving` sets them before it imports Ray, and a process that uses Ray for something else cannot also serve.
"""

import io
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from elastic.errors import ConfigError, ServerUnavailable
from elastic.serve.config import METRICS_DIR_VARIABLE, ServeConfig
from elastic.serve.control import listening, socket_path
from elastic.serve.deploy import Deployer
from elastic.serve.exporter import exporting
from elastic.serve.follow import Following
from elastic.serve.logs import make_folder
from elastic.serve.release import Releases
from elastic.serve.tracing import find_exporter

logger = logging.getLogger(__name__)

APP_NAME, DEPLOYMENT_NAME = "elastic", "encoder"
READY_TIMEOUT_S = 120.0
DEREGISTER_S = 1.0
"""How long a replica that stops stays reachable, for HAProxy to hear of it."""
SERVICER_FUNCTIONS = (
    "elastic._pb.elastic.v1.embedding_pb2_grpc.add_EmbeddingServiceServicer_to_server",
    "grpc_health.v1.health_pb2_grpc.add_HealthServicer_to_server",
)
OBJECT_STORE_BYTES = 128 * 2**20
"""Requests never pass through the object store; this is close to the least that Ray accepts."""


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
        ConfigError: a port is taken, the log cannot be written, traces not exported, or Ray was imported before.
        CheckpointError, ProfileError: the model cannot be served.
        ServerUnavailable: it did not become ready.
    """
    _check_port(config.host, config.port, "port")
    _check_port(config.host, config.port_of_http, "http_port")
    control = socket_path(config.port)
    find_exporter(os.environ)
    if config.log_requests is not None:
        make_folder(config.log_requests)
    with ExitStack() as opened:
        scratch = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="elastic-", ignore_cleanup_errors=True)))
        releases = Releases(scratch)
        # Tries the model out here, because a replica that cannot start is started again and again.
        deployer = Deployer(config, releases, _follow_all)
        _set_environment(environment(config, scratch))
        metrics_url = None
        if config.metrics_port is not None:
            metrics_dir = Path(os.environ[METRICS_DIR_VARIABLE])
            metrics_dir.mkdir(exist_ok=True)
            metrics_url = opened.enter_context(exporting(metrics_dir, config.host, config.metrics_port))
        opened.callback(_stop)
        server = _start(config, releases, metrics_url)
        opened.callback(_drain, config)
        opened.enter_context(listening(control, deployer.handle))
        yield server


def environment(config: ServeConfig, scratch: Path) -> dict[str, str]:
    """What every Ray process must find in its environment; a variable that the user has set stands."""
    own = {} if config.metrics_port is None else {METRICS_DIR_VARIABLE: str(scratch / "metrics")}
    return own | {
        "RAY_USAGE_STATS_ENABLED": "0",
        # HAProxy in front of the replicas: unlike Serve's own proxy it runs no Python, and it binds `host`.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One event loop per replica is enough: the model and decoding have threads of their own.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(config.max_message_bytes),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DEREGISTER_S),
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": str(DEREGISTER_S),
        # Its files and side ports are per machine by default; several servers may run here.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port(config.host)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port(config.host)),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(max(1, round(config.drain_s))),
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


def _start(config: ServeConfig, releases: Releases, metrics_url: str | None) -> Server:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions

    from elastic.serve.encoder import EncoderReplica

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    num_cpus = max(os.cpu_count() or 1, config.num_replicas * config.num_threads)
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
        grpc_options=gRPCOptions(port=config.port, grpc_servicer_functions=list(SERVICER_FUNCTIONS)),
    )
    # Serve's own limit counts requests and answers without a hint, so the engine's limit on inputs comes first.
    deployment = serve.deployment(
        name=DEPLOYMENT_NAME,
        num_replicas=config.num_replicas,
        max_ongoing_requests=2 * config.max_waiting_items,
        ray_actor_options={"num_cpus": config.num_threads},
        graceful_shutdown_timeout_s=config.drain_s,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=1.0,
        logging_config={"enable_access_log": False},
    )(serve.ingress()(EncoderReplica))
    serve.run(deployment.bind(config, releases.folder), name=APP_NAME, route_prefix="/")
    session_dir = context.address_info["session_dir"]  # pyright: ignore[reportAttributeAccessIssue]
    server = Server(
        address=f"{config.host}:{config.port}",
        http_address=f"{config.host}:{config.port_of_http}",
        log_dir=Path(session_dir) / "logs",
        metrics_url=metrics_url,
    )
    wait_until_serving(server.address)
    return server


def _follow_all(timeout_s: float) -> list[Following]:
    from elastic.serve.replicas import follow_all

    return follow_all(APP_NAME, DEPLOYMENT_NAME, timeout_s)


def _drain(config: ServeConfig) -> None:
    """Let what was accepted end before anything is taken down, because Serve stops its ingress and replicas at once."""
    from elastic.serve.replicas import drain_all

    num_lost = drain_all(APP_NAME, config.drain_s)
    if num_lost:
        logger.warning("%d calls did not end within %g s and are lost", num_lost, config.drain_s)


def _stop() -> None:
    import ray
    from ray import serve

    if not ray.is_initialized():  # it failed to start, and serve.shutdown would start it again
        return
    # Ray prints here that the Serve controller was killed, which is how Serve stops it.
    with redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()


def _check_port(host: str, port: int, name: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            flag = name.replace("_", "-")
            rule = f"cannot be bound on {host} ({error.strerror}); choose another with --{flag}"
            raise ConfigError(f"serve.{name}", port, rule) from error


def _free_port(host: str) -> int:
    """A port that nothing listens on, and that no outgoing connection will be given before HAProxy binds it.

    The kernel gives those numbers from 32768 on by default, Ray's workers ask for some below 20000, and many of both
    are taken while Ray starts.
    """
    for port in random.sample(range(20_000, 32_768), 100):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError("serve.host", host, "no port from 20000 to 32767 can be bound on it")
