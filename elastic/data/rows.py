"""How the rows of one execution are numbered: which step of which worker each row is."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from elastic.data.config import DataConfig

MIN_BLOCK_IMAGES, MAX_BLOCK_STEPS = 1024, 16
"""A block has a fixed cost in Ray, whatever it holds, so short steps share one."""
MAX_BLOCKS = 4096
"""Blocks of one execution. Ray plans them all before it hands on the first; the next execution then costs another
start-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows in blocks: each block is some consecutive steps of one worker, and blocks go round the workers.

    A group is the blocks of the same steps, one per worker. No group reaches into another segment: a block is handed
    on only when it is whole, so the weights of a segment may not hold up steps of the one before. What that leaves
    of the last group of a segment is padding.
    """

    start_step: int
    stop_step: int
    """The step after the last."""
    world: int
    block_steps: int
    segment_steps: int

    @classmethod
    def parts(cls, data: DataConfig, start_step: int, num_steps: int, world: int) -> Iterator["Rows"]:
        """The numbering of a range of steps, one execution after the other, with blocks worth their overhead."""
        block_steps = min(MAX_BLOCK_STEPS, -(-MIN_BLOCK_IMAGES // shard_images(data, world)), data.segment_steps)
        start, stop = start_step, start_step + num_steps
        while start < stop:
            rest = cls(
                start_step=start,
                stop_step=stop,
                world=world,
                block_steps=block_steps,
                segment_steps=data.segment_steps,
            )
            next_start = rest.first_step(rest.group(start) + max(1, MAX_BLOCKS // world))
            yield replace(rest, stop_step=min(stop, next_start))
            start = next_start

    @property
    def num_blocks(self) -> int:
        """Blocks of all workers together."""
        return (self.group(self.stop_step - 1) - self.group(self.start_step) + 1) * self.world

    def group(self, step: int) -> int:
        """The group that a step belongs to, counted from step 0 of the run."""
        segment, offset = divmod(step, self.segment_steps)
        return segment * self._segment_groups + offset // self.block_steps

    def first_step(self, group: int) -> int:
        """The first step of a group."""
        segment, offset = divmod(group, self._segment_groups)
        return segment * self.segment_steps + offset * self.block_steps

    def locate(self, row: int) -> tuple[int | None, int]:
        """Step and rank of a row; no step if the row is padding."""
        block, offset = divmod(row, self.block_steps)
        group, rank = divmod(block, self.world)
        group += self.group(self.start_step)
        step = self.first_step(group) + offset
        is_padding = self.group(step) != group or not self.start_step <= step < self.stop_step
        return None if is_padding else step, rank

    @property
    def _segment_groups(self) -> int:
        return -(-self.segment_steps // self.block_steps)


def shard_images(data: DataConfig, world: int) -> int:
    """Views that a worker gets in a step of the largest stream."""
    return max(stream.sampling.batch_size * stream.views_per_image for stream in data.streams) // world


def shard_bytes(data: DataConfig, world: int) -> int:
    """Bytes of those views."""
    return shard_images(data, world) * 3 * data.image_size**2
