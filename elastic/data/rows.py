"""How the rows of one execution are numbered: which step of which worker each row is."""

from collections.abc import Iterator
from dataclasses import dataclass

from elastic.data.config import DataConfig

MIN_BLOCK_IMAGES, MAX_BLOCK_STEPS = 1024, 16
"""A block costs Ray about 13 ms whatever it holds, so short steps share one."""
MAX_BLOCKS = 4096
"""Blocks of one execution. Ray plans them all before the first, in about 2 ms each; the next execution then costs a
few seconds of start-up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Rows in blocks: each block is some consecutive steps of one worker, and blocks go round the workers."""

    start_step: int
    num_steps: int
    world: int
    block_steps: int

    @classmethod
    def parts(cls, data: DataConfig, start_step: int, num_steps: int, world: int) -> Iterator["Rows"]:
        """The numbering of a range of steps, one execution after the other, with blocks worth their overhead."""
        block_steps = min(MAX_BLOCK_STEPS, -(-MIN_BLOCK_IMAGES // shard_images(data, world)))
        part_steps = max(1, MAX_BLOCKS // world) * block_steps
        stop = start_step + num_steps
        for start in range(start_step, stop, part_steps):
            num_part_steps = min(part_steps, stop - start)
            yield cls(start_step=start, num_steps=num_part_steps, world=world, block_steps=block_steps)

    @property
    def stop_step(self) -> int:
        """The step after the last."""
        return self.start_step + self.num_steps

    @property
    def num_blocks(self) -> int:
        """Blocks of all workers together; the last of each may reach beyond the last step."""
        return -(-self.num_steps // self.block_steps) * self.world

    def locate(self, row: int) -> tuple[int, int]:
        """Step and rank of a row."""
        block, offset = divmod(row, self.block_steps)
        group, rank = divmod(block, self.world)
        return self.start_step + group * self.block_steps + offset, rank

    def is_padding(self, step: int) -> bool:
        """Whether the step lies beyond the last."""
        return step >= self.stop_step


def shard_images(data: DataConfig, world: int) -> int:
    """Views that a worker gets in a step of the largest stream."""
    return max(stream.sampling.batch_size * stream.views_per_image for stream in data.streams) // world


def shard_bytes(data: DataConfig, world: int) -> int:
    """Bytes of those views."""
    return shard_images(data, world) * 3 * data.image_size**2
