"""What a run would be, without starting it: its data, what each submodel costs, and the memory of a worker."""

from dataclasses import dataclass

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor, UntypedStorage

from elastic.batch import Batch, Captions
from elastic.data.catalog import Catalog
from elastic.data.config import StreamConfig
from elastic.model.config import IMAGE_CHANNELS
from elastic.profile.flops import count_image, count_text
from elastic.train.config import TrainConfig
from elastic.train.learner import Given
from elastic.train.masking import draw_masks
from elastic.train.preparation import carried_fields, check_data, dimensions, make_tokenizer
from elastic.train.state import TrainState

MEASURED_ROWS = 2
"""Images that the activations are measured on; they grow in proportion."""
_MIB = 1024**2
_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What one worker holds during a step, in bytes, beside torch and Ray themselves."""

    num_params: int
    """Trained parameters: both towers and the objectives."""
    num_encoder_params: int
    """Those of them that are averaged."""
    activation_bytes: int
    """Kept for the backward pass of one batch, or of a part of it, at the full submodel: all passes that its objectives
    read once each of them has started, without the objectives' own."""

    @property
    def state_bytes(self) -> int:
        """Weights, gradients, AdamW's two moments, and the averaged weights, all fp32."""
        return _FLOAT_BYTES * (4 * self.num_params + self.num_encoder_params)


def dry_run(config: TrainConfig) -> RenderableType:
    """The tables to show for a config that can be trained.

    Raises:
        ConfigError: an objective lacks what it needs, a stream feeds no objective, or the vocabulary is too small.
        DataError: the data cannot be used as configured.
    """
    catalog = check_data(config)
    make_tokenizer(config, catalog)
    return Group(_streams(config, catalog), _submodels(config), _summary(config, estimate_memory(config, catalog)))


def images_per_batch(stream: StreamConfig) -> int:
    """Images of one planned batch of a stream over all workers, all views counted."""
    return stream.sampling.batch_size * stream.views_per_image


def estimate_memory(config: TrainConfig, catalog: Catalog) -> Memory:
    """Parameters counted, activations measured on a few images and scaled to the largest batch of a worker."""
    state = TrainState(config, dimensions(config, catalog), torch.device("cpu"))
    streams = zip(config.data.streams, carried_fields(config, catalog), strict=True)
    activations = [
        _kept_bytes(state, _blank_batch(config, stream, present)) * images_per_batch(stream) // MEASURED_ROWS
        for stream, present in streams
    ]
    return Memory(
        num_params=sum(parameter.numel() for parameter in state.learner.parameters()),
        num_encoder_params=sum(parameter.numel() for parameter in state.average.parameters()),
        activation_bytes=max(activations) // (config.num_workers * config.micro_batches),
    )


def _kept_bytes(state: TrainState, batch: Batch) -> int:
    """What autograd keeps of one forward pass, weights left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in state.learner.parameters()}
    kept: dict[int, UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that its address is not given to another tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        state.learner.run(batch, state.space.full, Given(wanted=state.learner.objective.passes(batch.present, 1.0)))
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def _blank_batch(config: TrainConfig, stream: StreamConfig, present: frozenset[str]) -> Batch:
    """A few images with everything that the stream carries."""
    rows, size, text, crops = MEASURED_ROWS, config.model.vision.image_size, config.model.text, stream.local_crops
    captions = None
    if text is not None:
        tokens = torch.ones(rows, text.max_tokens, dtype=torch.int64)
        captions = Captions(tokens=tokens, mask=tokens.bool(), index=torch.arange(rows))
    numbers = torch.zeros(rows, dtype=torch.int64)
    return Batch(
        images=torch.zeros(rows, IMAGE_CHANNELS, size, size),
        row_ids=torch.arange(rows),
        domains=numbers,
        labels=numbers if "labels" in present else None,
        caption_ids=numbers if "caption_ids" in present else None,
        captions=captions if "captions" in present else None,
        synthetic_captions=captions if "synthetic_captions" in present else None,
        local_images=None
        if crops is None
        else torch.zeros(rows * crops.count, IMAGE_CHANNELS, crops.image_size, crops.image_size),
        mask=draw_masks(config.masking, rows, config.model.vision.shape.num_patches, seed=0),
    )


def _streams(config: TrainConfig, catalog: Catalog) -> Table:
    table = Table(
        title=f"data: split {config.data.split}, {len(catalog.domains)} domains, {catalog.num_classes} classes"
    )
    table.add_column("stream")
    for name in ("rows", "classes", "images per batch"):
        table.add_column(name, justify="right")
    table.add_column("feeds")
    for stream, rows, present in zip(
        config.data.streams, catalog.streams, carried_fields(config, catalog), strict=True
    ):
        fed = [name for name, objective in config.objectives.items() if objective.needs <= present]
        cells = (f"{len(rows):,}", f"{rows.num_classes:,}", f"{images_per_batch(stream):,}", ", ".join(fed))
        table.add_row(stream.name, *cells)
    return table


def _submodels(config: TrainConfig) -> Table:
    """A line per granularity: what one image and one caption cost it."""
    space, text_space = config.model.space, config.model.text_space
    table = Table(title=f"cost of one item; widths {', '.join(map(str, space.embed_dims))} of each")
    names = ["", "image", "params", "MFLOPs"]
    names += [] if text_space is None else ["caption", "params", "MFLOPs"]
    for name in names:
        table.add_column(name, justify="right" if name in ("params", "MFLOPs") else "left")
    for name, submodel in space.granularities.items():
        cost = count_image(config.model, submodel)
        cells = [str(submodel), f"{cost.params:,}", f"{cost.flops / 1e6:.2f}"]
        if text_space is not None:
            text_submodel = space.translate(submodel, text_space)
            cost = count_text(config.model, text_submodel)
            cells += [str(text_submodel), f"{cost.params:,}", f"{cost.flops / 1e6:.2f}"]
        table.add_row(name, *cells)
    return table


def _summary(config: TrainConfig, memory: Memory) -> Table:
    shares = [images_per_batch(stream) // config.num_workers for stream in config.data.streams]
    side = config.data.image_size
    parts = config.num_workers if config.parallel == "fsdp" else 1
    shared = f", {config.parallel}" if config.num_workers > 1 else ""
    batches = "1 batch" if config.accumulate == 1 else f"{config.accumulate} batches"
    sampling = config.submodels
    rows = {
        "updates": f"{config.steps:,} of {batches} each",
        "workers": f"{config.num_workers} ({config.device}, {config.precision}{shared})",
        "batch of a worker": ", ".join(f"{share} x {IMAGE_CHANNELS} x {side} x {side}" for share in shares),
        "submodels of a step": sampling.policy if sampling.policy == "all" else f"{sampling.policy}, k={sampling.k}",
        "trained parameters": f"{memory.num_params:,}",
        "weights, gradients, moments, average": f"{memory.state_bytes / parts / _MIB:,.1f} MiB a worker",
        "activations, estimated": f"{memory.activation_bytes / _MIB:,.1f} MiB a worker",
    }
    table = Table(title="run", show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    return table
