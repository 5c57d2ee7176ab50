"""One number decides a run: every random choice is a pure function of (seed, purpose, step, rank).

Nothing random is carried from step to step, so a resumed run needs no generator state to continue exactly, and
any step can be recomputed alone.
"""

import zlib

import numpy as np


def derive_seed(seed: int, purpose: str, *counters: int) -> int:
    """A 63-bit seed that depends on every argument; different purposes and counters give unrelated streams."""
    entropy = (seed, zlib.crc32(purpose.encode()), len(counters), *counters)  # a SeedSequence ignores trailing zeros
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
