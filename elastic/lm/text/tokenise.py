"""A group of parts made into tokens: read, split by document, tokenized. One process's work, without Ray."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt
from tokenizers import Tokenizer

from elastic.lm.text.documents import Part, is_held_out, read_parts
from elastic.lm.text.store import token_dtype

DIGEST_BYTES = 16
"""Of a text's hash, which finds duplicates."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What every process needs to tokenize any part."""

    tokenizer: str
    """As JSON."""
    end_of_text: str
    text_field: str
    validation_fraction: float
    split_seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenised:
    """The documents of a group of parts, in order, ready to be moved between processes."""

    tokens: UInt[np.ndarray, " tokens"]
    """Of all documents, each with its end of text."""
    lengths: Int[np.ndarray, " documents"]
    """Tokens of each document."""
    num_bytes: Int[np.ndarray, " documents"]
    """UTF-8 of each document."""
    held_out: Bool[np.ndarray, " documents"]
    digests: list[bytes]
    """A hash of each text."""
    num_skipped: int


def tokenise(parts: Sequence[Part], job: Job) -> Tokenised:
    """Read some parts and tokenize them; special tokens that a text spells out are read as text.

    Raises:
        DataError: as `read_parts`.
    """
    # Ray spreads parts over the cores; threads of each process would only wait for each other.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = Tokenizer.from_str(job.tokenizer)
    tokenizer.encode_special_tokens = True
    end = tokenizer.token_to_id(job.end_of_text)
    reading = read_parts(parts, job.text_field)
    texts = [document.text for document in reading.documents]
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = [[*found.ids, end] for found in encoded]
    raw = [text.encode() for text in texts]
    held_out = [is_held_out(found.id, job.validation_fraction, job.split_seed) for found in reading.documents]
    return Tokenised(
        tokens=np.fromiter((token for row in ids for token in row), token_dtype(tokenizer.get_vocab_size())),
        lengths=np.array([len(row) for row in ids], np.int64),
        num_bytes=np.array([len(text) for text in raw], np.int64),
        held_out=np.array(held_out, bool),
        digests=[hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest() for text in raw],
        num_skipped=reading.num_skipped,
    )
