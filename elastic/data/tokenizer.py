"""Captions as token ids: a small byte-pair vocabulary trained on the run's own captions."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from tokenizers import Tokenizer as Engine
from tokenizers import models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from elastic.errors import DataError

PAD, UNKNOWN = "[PAD]", "[UNK]"
PAD_ID, UNKNOWN_ID = 0, 1


class Tokenizer:
    """Text to token ids, case and accents ignored. Ids are below `vocab_size`; 0 is padding."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding and unknown included."""
        return self._engine.get_vocab_size()

    def encode(
        self, texts: Sequence[str], max_tokens: int
    ) -> tuple[Int[Tensor, "texts length"], Bool[Tensor, "texts length"]]:
        """Token ids and which of them are tokens, as wide as the longest text; longer ones are cut at `max_tokens`.

        A text without any token reads as one unknown token, so that every row has something to pool.
        """
        ids = [found.ids[:max_tokens] or [UNKNOWN_ID] for found in self._engine.encode_batch(list(texts))]
        tokens = torch.full((len(ids), max(map(len, ids), default=1)), PAD_ID, dtype=torch.int64)
        for row, row_ids in enumerate(ids):
            tokens[row, : len(row_ids)] = torch.tensor(row_ids)
        lengths = torch.tensor([len(row_ids) for row_ids in ids], dtype=torch.int64)
        return tokens, torch.arange(tokens.shape[1])[None] < lengths[:, None]

    def to_json(self) -> str:
        """All of it as text, for `from_json`."""
        return self._engine.to_str()

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """The tokenizer that `to_json` described."""
        return cls(Engine.from_str(text))

    def save(self, path: Path) -> None:
        """Write `tokenizer.json`, which the `tokenizers` package reads as well."""
        path.write_text(self.to_json(), "utf-8")

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """Read `tokenizer.json`.

        Raises:
            DataError: missing, or not a tokenizer.
        """
        if not path.is_file():
            raise DataError(str(path), "does not exist", "train a model with a text tower, or copy its tokenizer")
        try:
            return cls.from_json(path.read_text("utf-8"))
        except Exception as error:  # the package raises bare Exception
            raise DataError(str(path), f"is not a tokenizer ({error})", "copy it anew") from error


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-pair tokenizer with at most `vocab_size` ids; the same captions give the same tokenizer."""
    engine = Engine(models.BPE(unk_token=UNKNOWN))
    engine.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()])
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[PAD, UNKNOWN], show_progress=False)
    engine.train_from_iterator(captions, trainer)
    return Tokenizer(engine)
