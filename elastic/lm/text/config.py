"""What a language model trains on: which documents, how they become tokens, and how these fill a batch."""

from dataclasses import dataclass

from elastic.errors import ConfigError

MIN_VOCAB_SIZE = 257
"""Every byte and the end of a text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """Everything that decides which tokens a step shows, together with the run's seed."""

    source: tuple[str, ...] = ("bundled",)
    """Any of: `bundled`; a corpus by name (`elastic data fetch` lists them); .txt, .md, .jsonl or .parquet files, as a
    path, a folder, a glob or a URL. One folder that `prepare` wrote is used as it is."""
    tokenizer: str | None = None
    """A tokenizer.json, a folder with one, or an id of the Hugging Face hub. Left out, byte-level BPE is trained on the
    training documents."""
    vocab_size: int = 4096
    """Tokens of the BPE that is trained; at least 257."""
    block_size: int = 256
    """Tokens that the model reads at once; a block has one more, the last target."""
    batch_size: int = 32
    """Blocks of a step, over all workers together; must divide by their number."""
    validation_fraction: float = 0.05
    """Share of the documents that is held out, by a hash of their ids."""
    split_seed: int = 0
    """What that hash begins with. Apart from the run's seed, so that runs of several seeds compare on the same text."""
    text_field: str = "text"
    """Field of a .jsonl line, or column of a .parquet file, that holds the text."""

    def __post_init__(self) -> None:
        if not self.source:
            raise ConfigError("text.source", self.source, "needs at least one source; `bundled` needs no download")
        if self.vocab_size < MIN_VOCAB_SIZE:
            raise ConfigError("text.vocab_size", self.vocab_size, f"must be at least {MIN_VOCAB_SIZE}: all bytes fit")
        for name in ("block_size", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"text.{name}", getattr(self, name), "must be at least 1")
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError("text.validation_fraction", self.validation_fraction, "must be at least 0 and below 1")
