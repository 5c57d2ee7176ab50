"""Documents as token ids in two flat files, which readers map into memory: the tokens, and where each text ends.

Every text is followed by one end-of-text token, its own. Tokens are little-endian unsigned integers, of 16 bits where
the vocabulary allows and of 32 otherwise; ends are 64-bit counts of tokens.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int, UInt

from elastic.errors import DataError

_ENDS = np.dtype("<i8")


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that tells this many tokens apart."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


class TokenStore:
    """The documents of one split, read in place."""

    def __init__(self, tokens: UInt[np.ndarray, " tokens"], ends: Int[np.ndarray, " documents"]) -> None:
        self.tokens = tokens
        self.ends = ends
        """Where each document ends in `tokens`, its end-of-text included."""

    @classmethod
    def load(cls, folder: Path, split: str, dtype: np.dtype[Any]) -> "TokenStore":
        """Map the files that `TokenWriter` wrote.

        Raises:
            DataError: one is missing or cut off.
        """
        store = cls(_map(_tokens_path(folder, split), dtype), np.array(_map(_ends_path(folder, split), _ENDS)))
        if store.num_tokens != len(store.tokens):
            problem = f"the {split} split has {len(store.tokens)} tokens, expected {store.num_tokens}"
            raise DataError(str(folder), problem, "delete the folder and prepare the text again")
        return store

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def __len__(self) -> int:
        return len(self.ends)


class TokenWriter:
    """Appends documents to the files of one split; a context manager."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._tokens, self._ends = _tokens_path(folder, split).open("wb"), _ends_path(folder, split).open("wb")
        self.num_tokens = self.num_documents = 0

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._tokens.close()
        self._ends.close()

    def append(self, tokens: UInt[np.ndarray, " tokens"], lengths: Int[np.ndarray, " documents"]) -> None:
        """Add whole documents: their tokens one after the other, and how many each has."""
        assert len(tokens) == lengths.sum(), (len(tokens), lengths)
        self._tokens.write(tokens.astype(self._dtype, copy=False).tobytes())
        self._ends.write((self.num_tokens + np.cumsum(lengths)).astype(_ENDS).tobytes())
        self.num_tokens += len(tokens)
        self.num_documents += len(lengths)


def _tokens_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.tokens"


def _ends_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.ends"


def _map(path: Path, dtype: np.dtype[Any]) -> np.ndarray:
    if not path.is_file():
        raise DataError(str(path), "does not exist", "prepare the text again, or copy the whole folder")
    # An empty file cannot be mapped.
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.empty(0, dtype)
