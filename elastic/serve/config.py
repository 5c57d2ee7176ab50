"""What a server is told when it starts."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elastic.errors import ConfigError
from elastic.profile.tables import Quantile
from elastic.serve.payloads.urls import AllowList
from elastic.serve.scaling.scaler import ScalingRules

METRICS_DIR_VARIABLE = "ELASTIC_METRICS_DIR"
"""Tells replicas where to write their metrics; unset, they count nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Settings of one served model."""

    run: Path
    """Directory of the model and its tables."""
    host: str = "127.0.0.1"
    """Interface to listen on."""
    port: int = 9000
    """gRPC port."""
    http_port: int | None = None
    """HTTP port; None is the one after the gRPC port."""
    api_keys: Path | None = None
    """Key file (`access.keys.load_keys`); None answers everybody."""
    tls_cert: Path | None = None
    """PEM certificate and its chain; with it the port talks TLS only."""
    tls_key: Path | None = None
    """PEM private key of `tls_cert`."""
    client_ca: Path | None = None
    """PEM certificates of the authorities of which clients must show a certificate (mutual TLS)."""
    insecure_public: bool = False
    """Listen beyond this machine without keys."""
    num_replicas: int = 1
    """Processes that answer, each with its own model thread and queue; with `scaling`, at the beginning."""
    scaling: ScalingRules | None = None
    """When the number of replicas changes; None: never."""
    num_threads: int = 1
    """Threads that torch uses inside one batch; the latency table must have been measured with as many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the model; the latency table must have been measured with it."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model computes; with `cuda` every replica takes a GPU of its own."""
    force_foreign_tables: bool = False
    """Serve with times that were measured on another device."""
    policy: str = "lookahead"
    """What decides which submodel and which batch run next; one of `policies.registry.POLICIES`."""
    quantile: Quantile = "p90"
    """Which measured time must fit a deadline."""
    max_batch_size: int = 32
    """Inputs that the model computes at once; at most the largest profiled batch."""
    max_items_per_call: int = 64
    """Inputs in one request."""
    max_waiting_items: int = 512
    """Inputs that may wait at one replica; more are refused at once."""
    max_sequences: int = 8
    """Texts that one replica of a language model generates at once; more are refused at once."""
    max_message_bytes: int = 32 * 2**20
    """Size of one request."""
    max_image_pixels: int = 32_000_000
    """Width times height that an image may declare; more is refused before decoding."""
    image_url_allow: tuple[str, ...] = ()
    """Hosts that images may be read from by URL; none means that URLs are refused (`elastic.serve.payloads.urls`)."""
    max_text_chars: int = 10_000
    """Length of one text."""
    max_stream_requests: int = 64
    """Requests of one stream that are worked on at once; reading pauses at this number."""
    default_latency_ms: float = 1_000.0
    """Budget of a request that names none."""
    reply_margin_ms: float = 1.0
    """Kept back from every budget for the way of the answer."""
    decode_threads: int = 2
    """Threads that decode images beside the model thread."""
    drain_s: float = 10.0
    """How long accepted requests may take to finish when the server stops."""
    stuck_after_s: float = 10.0
    """A batch that runs for longer than this, and than ten times its prediction, gets its replica replaced."""
    metrics_port: int | None = None
    """Prometheus metrics are shown there; None: nothing is counted."""
    log_requests: Path | None = None
    """Folder for one JSON line per request; None: none is written."""
    log_sample: float = 1.0
    """Share of the requests that are logged; faults of the server always are."""

    def __post_init__(self) -> None:
        positive = (
            "num_replicas num_threads max_batch_size max_items_per_call max_waiting_items max_sequences "
            "max_message_bytes max_image_pixels max_text_chars max_stream_requests default_latency_ms decode_threads "
            "drain_s stuck_after_s"
        )
        for name in positive.split():
            if getattr(self, name) <= 0:
                raise ConfigError(f"serve.{name}", getattr(self, name), "must be positive")
        if self.reply_margin_ms < 0:
            raise ConfigError("serve.reply_margin_ms", self.reply_margin_ms, "must not be negative")
        if not 0 <= self.log_sample <= 1:
            raise ConfigError("serve.log_sample", self.log_sample, "must be between 0 and 1")
        self._check_ports()
        AllowList.parse(self.image_url_allow)
        if self.max_items_per_call > self.max_waiting_items:
            raise ConfigError("serve.max_items_per_call", self.max_items_per_call, "must fit into max_waiting_items")
        self._check_security()

    @property
    def most_replicas(self) -> int:
        """How many processes there can be."""
        return self.num_replicas if self.scaling is None else self.scaling.max_replicas

    @property
    def port_of_http(self) -> int:
        """The HTTP port that is used."""
        return self.port + 1 if self.http_port is None else self.http_port

    def _check_ports(self) -> None:
        taken: dict[int, str] = {}
        for name, port in (("port", self.port), ("metrics_port", self.metrics_port), ("http_port", self.port_of_http)):
            if port is None:
                continue
            if not 0 < port < 65536:
                raise ConfigError(f"serve.{name}", port, "must be between 1 and 65535")
            if port in taken:
                raise ConfigError(f"serve.{name}", port, f"must not be {taken[port]}")
            taken[port] = name

    def _check_security(self) -> None:
        if not is_loopback(self.host) and self.api_keys is None and not self.insecure_public:
            rule = (
                "other machines could call without a key; make one (`elastic keys add NAME --file keys.json`) and pass "
                "--api-keys keys.json, or say --insecure-public if something else keeps strangers out"
            )
            raise ConfigError("serve.host", self.host, rule)
        if (self.tls_cert is None) is not (self.tls_key is None):
            missing = "tls_key" if self.tls_key is None else "tls_cert"
            raise ConfigError(f"serve.{missing}", None, "a certificate and its key go together: --tls-cert, --tls-key")
        if self.client_ca is not None and self.tls_cert is None:
            raise ConfigError("serve.client_ca", str(self.client_ca), "needs TLS: pass --tls-cert and --tls-key")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an interface; a name other than localhost may be anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
