"""One embedding for all twelve icon domains, guided by a teacher head for each of them (UDON, arXiv 2406.08332)."""

from dataclasses import replace

from elastic.data.config import Shuffled, StreamConfig
from elastic.data.plan import weigh_by_size
from elastic.objectives.matryoshka import Matryoshka
from elastic.objectives.udon import Udon
from elastic.recipes.icons import icons
from elastic.train.balance import Balancing
from elastic.train.config import TrainConfig

DOMAINS = (
    "crypto",
    "emoji-activities",
    "emoji-animals-nature",
    "emoji-food-drink",
    "emoji-objects",
    "emoji-people-body",
    "emoji-smileys-emotion",
    "emoji-symbols",
    "emoji-travel-places",
    "flags",
    "logos",
    "weather",
)
"""A stream each, so that every batch shows one domain."""


def udon() -> TrainConfig:
    """Teachers of single domains guide one student, and the loss says how often each comes: `elastic train udon`.

    About 25 minutes on 2 cores of an AMD EPYC: 4000 x 128 images at 350 per second.

    The encoder is that of `icons` without its text tower, and learns from scratch at the full rate: the pretrained one
    of the package knows these very icons. From a checkpoint the reference learns the image tower at a hundredth of
    the rate after a fifth of the run:
    `--model.vision.checkpoint PATH --optim.encoder-rate 0.01 --optim.freeze-encoder 0.2`.

    Compare it with `udon_in_turns`, with `udon_by_size`, and with classification alone
    (`--objectives.udon.inner.logits-weight 0 --objectives.udon.inner.relations-weight 0`).
    """
    full = icons()
    streams = tuple(
        StreamConfig(name=domain, domains=(domain,), sampling=Shuffled(batch_size=128)) for domain in DOMAINS
    )
    return replace(
        full,
        name="udon",
        model=replace(full.model, text=None),
        data=replace(full.data, streams=streams, segment_steps=200),
        objectives={"udon": Matryoshka(inner=Udon(), embed_dims=full.model.embed_dims)},
        balancing=Balancing(),
    )


def udon_by_size() -> TrainConfig:
    """The same with every domain as frequent as it has images, whatever its loss: `elastic train udon_by_size`."""
    dynamic = udon()
    return replace(dynamic, name="udon_by_size", data=weigh_by_size(dynamic.data), balancing=None)


def udon_in_turns() -> TrainConfig:
    """The same with one domain after the other, whatever its size or loss: `elastic train udon_in_turns`."""
    dynamic = udon()
    return replace(dynamic, name="udon_in_turns", data=replace(dynamic.data, order="round_robin"), balancing=None)
