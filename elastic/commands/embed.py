"""The verb `elastic embed`: embed images or texts through a running server, and see what was chosen for each."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from elastic.channel import Tls
from elastic.client import DEFAULT_ADDRESS, Client, Embedding
from elastic.errors import ConfigError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Embed:
    """Embed images or texts through a running server, within a latency objective.

    An input that names an existing file is an image, everything else is a text. Prints what the server chose for each:
    submodel, width, predicted and measured time, and whether the objective was met.

    Example: elastic embed cat.png "a sleeping cat" --latency-slo-ms 10 --embed-dim 64 --output cat.npy
    """

    inputs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Image files and texts."""
    latency_slo_ms: float | None = None
    """Budget from request to answer; left out, the server's default."""
    embed_dim: int | None = None
    """Width of the embedding; left out, the full width."""
    min_quality: float | None = None
    """Least measured recall@1 that is good enough."""
    server: str = DEFAULT_ADDRESS
    """host:port of the server (`elastic serve` starts one)."""
    api_key: str | None = None
    """Key for a server that asks for one. Other users of this machine see arguments: prefer ELASTIC_API_KEY."""
    tls_ca: Path | None = None
    """Talk TLS, and trust the authorities whose certificates are in this PEM file."""
    tls_cert: Path | None = None
    """Certificate (PEM) to show to a server that asks its clients for one."""
    tls_key: Path | None = None
    """Private key (PEM) of that certificate."""
    output: Path | None = None
    """Write the embeddings here, as one float32 array with a row per input."""

    def run(self) -> None:
        """Send one request, print the table, write the file."""
        if not self.inputs:
            raise ConfigError("inputs", self.inputs, "name at least one image file or text")
        images = [Path(item) for item in self.inputs if is_image(item)]
        texts = [item for item in self.inputs if not is_image(item)]
        with Client(self.server, api_key=self.api_key, tls=self.tls()) as client:
            found = client.embed(
                images=images,
                texts=texts,
                latency_slo_ms=self.latency_slo_ms,
                embed_dim=self.embed_dim,
                min_quality=self.min_quality,
            )
        # The client answers images first; the user's order is restored.
        by_kind = {True: iter(found[: len(images)]), False: iter(found[len(images) :])}
        ordered = [next(by_kind[is_image(item)]) for item in self.inputs]
        console = Console()
        console.print(render(self.inputs, ordered))
        if self.output is not None:
            np.save(self.output, np.stack([embedding.values for embedding in ordered]))
            console.print(f"wrote [bold]{self.output}[/bold] ({len(ordered)} x {ordered[0].embed_dim} float32)")

    def tls(self) -> Tls | None:
        """How to talk TLS; None in the clear."""
        if self.tls_ca is None and self.tls_cert is None and self.tls_key is None:
            return None
        return Tls(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key)


def is_image(item: str) -> bool:
    """Whether an input names an image file.

    Raises:
        ConfigError: it looks like an image file's name, but there is no such file.
    """
    path = Path(item)
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_file():
        raise ConfigError("inputs", item, "no such file")
    return path.is_file()


def render(inputs: tuple[str, ...], embeddings: list[Embedding]) -> Table:
    """One line per input: what was chosen for it, and what it took."""
    first = embeddings[0]
    outcome = "met" if first.slo_met else "missed"
    table = Table(
        title=f"answered in {first.total_ms:.1f} ms at the server; objective {outcome}, slack {first.slack_ms:.1f} ms",
        caption=f"model {first.model_version}; quality = measured recall@1; compute = the whole batch",
    )
    for column in ("input", "submodel"):
        table.add_column(column, overflow="fold")
    for column in ("width", "quality", "predicted ms", "compute ms", "queue ms", "batch"):
        table.add_column(column, justify="right")
    table.add_column("limited by")
    for item, embedding in zip(inputs, embeddings, strict=True):
        table.add_row(
            item,
            embedding.granularity,
            str(embedding.embed_dim),
            f"{embedding.quality:.3f}",
            f"{embedding.predicted_ms:.2f}",
            f"{embedding.compute_ms:.2f}",
            f"{embedding.queue_ms:.2f}",
            str(embedding.batch_size),
            embedding.limited_by,
        )
    return table
