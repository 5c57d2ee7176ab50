"""Prepared text: tokens in a folder, and the batches of any step on any worker. Needs no Ray.

`prepare` writes the folder; `PreparedText.load` opens it anywhere, as often as there are workers, since the tokens are
mapped and not read.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from elastic.errors import ConfigError, DataError
from elastic.lm.text.plan import BlockPlan
from elastic.lm.text.store import TokenStore, token_dtype
from elastic.lm.text.tokenizer import load_tokenizer

MANIFEST_FILE = "text.json"
FORMAT = 1
TRAIN, VALIDATION = "train", "validation"

# The order of held-out documents is one and the same for every run.
_VALIDATION_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TextManifest:
    """What a folder of prepared text says about itself: `text.json`."""

    format: int = FORMAT
    sources: tuple[str, ...]
    validation_fraction: float
    split_seed: int
    num_train_documents: int
    num_validation_documents: int
    num_train_tokens: int
    """Ends of text included; so in all counts of tokens."""
    num_validation_tokens: int
    num_train_bytes: int
    """Of text in UTF-8."""
    num_validation_bytes: int
    num_skipped: int
    """Lines, rows and files that held no readable text."""
    num_duplicates: int
    """Documents left out because their text was there already."""

    def save(self, folder: Path) -> None:
        """Write `text.json`."""
        (folder / MANIFEST_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", "ascii")

    @classmethod
    def load(cls, folder: Path) -> "TextManifest":
        """Read `text.json`.

        Raises:
            DataError: it is missing, damaged or of another format.
        """
        file = folder / MANIFEST_FILE
        if not file.is_file():
            problem = "is not a folder of prepared text on this machine"
            raise DataError(str(folder), problem, "copy the folder here, or put the cache on storage that all share")
        try:
            fields: dict[str, Any] = json.loads(file.read_text("ascii"))
            fields["sources"] = tuple(fields["sources"])
            manifest = cls(**fields)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(str(file), f"cannot be read ({error})", "prepare the text again") from error
        if manifest.format != FORMAT:
            raise DataError(str(file), f"has format {manifest.format}, expected {FORMAT}", "prepare the text again")
        return manifest


class PreparedText:
    """Batches of blocks from a folder of tokens, as a pure function of (seed, step).

    Pickles as the folder's path, so that it opens on the other side and moves no tokens.
    """

    def __init__(self, folder: Path, *, block_size: int, batch_size: int, seed: int) -> None:
        self.folder = folder
        self.manifest = TextManifest.load(folder)
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        self.tokenizer: Tokenizer
        self.tokenizer, self._end_of_text = load_tokenizer(str(folder))
        dtype = token_dtype(self.tokenizer.get_vocab_size())
        self._train = TokenStore.load(folder, TRAIN, dtype)
        self._validation = TokenStore.load(folder, VALIDATION, dtype)

    @classmethod
    def load(cls, folder: Path, *, block_size: int = 256, batch_size: int = 32, seed: int = 0) -> "PreparedText":
        """What `prepare` wrote, with a run's own batches; the folder fixes only documents, split and tokenizer.

        Raises:
            DataError: not such a folder, or a damaged one.
        """
        return cls(folder, block_size=block_size, batch_size=batch_size, seed=seed)

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        # The class and not its `load`: cloudpickle takes a class method apart instead of naming it.
        load = partial(PreparedText, block_size=self.block_size, batch_size=self.batch_size, seed=self.seed)
        return load, (self.folder,)

    @property
    def end_of_text(self) -> int:
        """Id of the token behind every document."""
        number = self.tokenizer.token_to_id(self._end_of_text)
        assert number is not None
        return number

    @property
    def num_train_tokens(self) -> int:
        """Tokens of one epoch."""
        return self.manifest.num_train_tokens

    @property
    def num_validation_tokens(self) -> int:
        """Tokens of the documents held out."""
        return self.manifest.num_validation_tokens

    @property
    def validation_bytes_per_token(self) -> float:
        """What turns a validation loss per token into one per byte, which compares between tokenizers."""
        return self.manifest.num_validation_bytes / max(1, self.num_validation_tokens)

    @property
    def tokens_per_step(self) -> int:
        """Targets of one batch over all workers; `step * tokens_per_step / num_train_tokens` is the epoch."""
        return self.batch_size * self.block_size

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Int[Tensor, "batch block"]:
        """This worker's blocks of a step, `batch_size / world` of `block_size + 1` tokens.

        Inputs are all but the last token of a block and targets all but the first. Ranks one after the other give the
        same batch for any number of workers, and any step can be asked for at any time.

        Raises:
            ConfigError: the batch does not divide among the workers.
        """
        if self.batch_size % world:
            raise ConfigError("text.batch_size", self.batch_size, f"must be a multiple of {world} workers")
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        return torch.from_numpy(self._plan.blocks(np.arange(first, first + share)))

    def validation(self, batch_size: int) -> Iterator[Int[Tensor, "batch block"]]:
        """The documents held out, in one fixed shuffled order, as whole blocks; the last batch may be smaller.

        Every token but the first is a target once, up to the end of the last whole block.

        Raises:
            DataError: the documents held out do not fill a block.
        """
        num_blocks = (self._validation.num_tokens - 1) // self.block_size
        if num_blocks < 1:
            problem = f"{self.num_validation_tokens} tokens are held out, fewer than a block of {self.block_size + 1}"
            raise DataError(str(self.folder), problem, "add documents, raise validation_fraction or lower block_size")
        return self._held_out(num_blocks, batch_size)

    def _held_out(self, num_blocks: int, batch_size: int) -> Iterator[Int[Tensor, "batch block"]]:
        plan = BlockPlan(self._validation, self.block_size, _VALIDATION_SEED)
        within = np.arange(self.block_size + 1)
        for first in range(0, num_blocks, batch_size):
            numbers = np.arange(first, min(first + batch_size, num_blocks))
            yield torch.from_numpy(plan.read(numbers[:, None] * self.block_size + within))

    @cached_property
    def _plan(self) -> BlockPlan:
        return BlockPlan(self._train, self.block_size, self.seed)
