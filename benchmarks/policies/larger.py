"""A model whose forward pass is what is scarce: a random ViT-S/16 at 96 pixels, nested as the bundled one.

The bundled model answers so fast that, on two cores, a live server runs out of processor around it first. Weights are
random, because no policy looks at an embedding; latencies are measured here; the qualities are those that the MatFormer
paper (arXiv 2310.07707) reports for a MatViT-B/16 of the same granularities.
"""

import itertools
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving.claims import write_quality
from elastic.checkpoint import Manifest, save_model
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.latency import LatencyConfig, measure
from elastic.profile.store import LATENCY
from elastic.submodel import Space, Submodel

TIMM_NAME, IMAGE_SIZE = "vit_small_patch16_224", 96
EMBED_DIM = 128

PAPER_RECALL = {0.125: 0.7172, 0.25: 0.7449, 0.5: 0.7641, 1.0: 0.7738}
"""1-NN accuracy on ImageNet by the share of feed-forward units (the paper's evaluation of adaptive retrieval)."""
MEASURED = LatencyConfig(batch_sizes=(1, 2, 4, 8, 16), rounds=30, warmup_rounds=2, max_s=60.0)


def write_run(folder: Path) -> Path:
    """Its run directory, profiled on this machine; takes about a minute."""
    torch.manual_seed(0)
    config = EncoderConfig(
        vision=VisionConfig.from_timm(TIMM_NAME, image_size=IMAGE_SIZE),
        ffn_fractions=tuple(PAPER_RECALL),
        embed_dims=(EMBED_DIM,),
    )
    encoder = Encoder(config).eval()
    save_model(folder, encoder, Manifest(encoder=config, preprocess=Preprocess(image_size=config.vision.image_size)))
    chosen = candidates(encoder.space)
    measure(encoder, MEASURED, submodels={"image": chosen}).save(folder / LATENCY)
    write_quality(folder, encoder.space, {submodel: recall(encoder.space, submodel) for submodel in chosen})
    return folder


def candidates(space: Space) -> list[Submodel]:
    """The granularities and, between each and the next, the mix that has the larger size in its last half."""
    uniform = sorted(space.granularities.values(), key=lambda submodel: submodel.ffn_dims)
    found = [uniform[0]]
    for smaller, larger in itertools.pairwise(uniform):
        half = smaller.depth // 2
        found += [Submodel(smaller.ffn_dims[:half] + larger.ffn_dims[half:]), larger]
    return found


def recall(space: Space, submodel: Submodel) -> float:
    """What is claimed of a submodel: the paper's granularities, and lines between them."""
    share = sum(submodel.ffn_dims) / sum(space.full.ffn_dims)
    return float(np.interp(share, list(PAPER_RECALL), list(PAPER_RECALL.values())))
