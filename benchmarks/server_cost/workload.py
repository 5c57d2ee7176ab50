"""What every server in the comparison computes: an encoded image in, the normalised embedding of the largest submodel
out, with the package's own decoding, preprocessing and model call, on one torch thread.

Models are written as run directories, with a latency table measured here, so that `elastic serve` takes them as any
other run. Their qualities are invented: 1 for the largest submodel and less for the others, so that a request which
asks for a quality of 1 fixes the network.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.serving.claims import write_quality
from elastic.checkpoint import Manifest, load_model, resolve_run, save_model
from elastic.data.decode import decode
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.preprocess import CANVAS_SCALE
from elastic.profile.latency import LatencyConfig, measure
from elastic.profile.store import LATENCY
from elastic.serve.resident import ResidentModel

TOP_QUALITY, OTHER_QUALITY = 1.0, 0.5
PAUSE_MS = 5.0
"""Between two calls of the bare model that are to find the caches as a server's do: about what a call's way takes."""


@dataclass(frozen=True, slots=True)
class Model:
    """One network and how much of it is run."""

    name: str
    timm_name: str | None
    """A random model of this kind; None is the model inside the package."""
    pixels: int
    """Side of the images that are sent."""
    max_batch_size: int
    """Of every server, and of the bare loop."""
    calls: int
    """Requests of a round at concurrency 1."""
    requests: int
    """Requests of a round at each higher concurrency."""
    concurrencies: tuple[int, ...]
    """How many requests are under way when the server is saturated."""
    full_calls: tuple[int, ...]
    """The same when every call holds as many images as a batch."""


BUNDLED = Model("bundled", None, 64, 32, 200, 1200, (32, 64), (2, 4))
# A quarter of a second per image: 64 requests under way only wait longer in the same queue, for twice the time.
VIT_S = Model("ViT-S/16 at 224 px", "vit_small_patch16_224", 256, 8, 32, 32, (32,), (2, 4))
MODELS = (BUNDLED, VIT_S)


class Workload:
    """The call that every server makes: `prepare` for one image, `embed` for a batch of prepared ones."""

    def __init__(self, run: Path) -> None:
        torch.set_num_threads(1)
        self._model = ResidentModel.load(run)
        self._submodel = self._model.encoder.space.full

    def prepare(self, encoded: bytes) -> np.ndarray:
        """The canvas: what `elastic serve` does with an image before the model's turn."""
        return decode(encoded, CANVAS_SCALE * self._model.manifest.preprocess.image_size)

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Embeddings of canvases by the largest submodel, which resizes and normalises them first."""
        return self._model.compute("image", self._submodel, images)


def write_run(model: Model, run: Path) -> Path:
    """The run directory of a model: weights, manifest and both tables, image tower only."""
    torch.manual_seed(0)
    if model.timm_name is None:
        bundled, manifest, _ = load_model(resolve_run(None))
        config = EncoderConfig(
            vision=bundled.config.vision,
            ffn_fractions=bundled.config.ffn_fractions,
            embed_dims=bundled.config.embed_dims,
        )
        encoder = Encoder(config).eval()
        encoder.image.load_state_dict(bundled.image.state_dict())
        preprocess = manifest.preprocess
    else:
        config = EncoderConfig(vision=VisionConfig.from_timm(model.timm_name))
        encoder, preprocess = Encoder(config).eval(), Preprocess(image_size=config.vision.image_size)
    save_model(run, encoder, Manifest(encoder=config, preprocess=preprocess))
    _write_tables(model, encoder, run)
    return run


def _write_tables(model: Model, encoder: Encoder, run: Path) -> None:
    ends = [encoder.space.smallest, encoder.space.full]
    sizes = tuple(2**power for power in range(model.max_batch_size.bit_length()))
    config = LatencyConfig(batch_sizes=sizes, rounds=5, warmup_rounds=1, max_s=10.0)
    measure(encoder, config, submodels={"image": ends}).save(run / LATENCY)
    write_quality(run, encoder.space, dict(zip(ends, (OTHER_QUALITY, TOP_QUALITY), strict=True)))


def draw_images(pixels: int, count: int = 16) -> list[bytes]:
    """JPEG images with edges and texture, seeded."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        texture = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(texture).resize((pixels, pixels), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(image)
        for _ in range(6):
            left, top, width, height = (int(value) for value in rng.integers(0, pixels // 2, size=4))
            colour = tuple(int(value) for value in rng.integers(0, 256, size=3))
            draw.ellipse((left, top, left + width + 4, top + height + 4), fill=colour)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found
