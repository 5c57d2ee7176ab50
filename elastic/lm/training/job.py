"""A MatLM run as those see it who start it: on Ray, from the command line, or by hand.

    job = MatlmJob(config, PreparedText.load(folder, block_size=256, batch_size=32, seed=0))
    job.start(run_dir, Origin())
    job.work(run_dir, torch.device("cuda"))

trains in this process and needs no Ray.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import RenderableType

from elastic.errors import ConfigError
from elastic.lm.text.prepare import prepare
from elastic.lm.text.prepared import PreparedText
from elastic.lm.training.config import MatlmConfig
from elastic.lm.training.dry_run import dry_run
from elastic.lm.training.loop import run
from elastic.profile.device import device_fingerprint
from elastic.profile.provenance import collect
from elastic.train.record import Origin, check_unchanged, write_record


@dataclass(frozen=True, slots=True)
class MatlmJob:
    """The training of a nested decoder."""

    config: MatlmConfig
    text: PreparedText | None = None
    """What is trained on, once it is prepared."""

    @property
    def granularities(self) -> tuple[str, ...]:
        """Names in the records that stand for submodels, ascending in size."""
        return tuple(self.config.decoder.space.granularities)

    @property
    def data_cores(self) -> int:
        """None: text is tokenised before the run, and a step reads its blocks from a mapped file."""
        return 0

    @property
    def data_workers(self) -> int:
        """None, for the same reason."""
        return 0

    @property
    def held_bytes(self) -> int:
        """Nothing in Ray's object store."""
        return 0

    def describe(self) -> RenderableType:
        """The tables of `dry_run`."""
        return dry_run(self.config)

    def start(self, run_dir: Path, origin: Origin) -> None:
        """Write the record of a new run."""
        write_record(run_dir, self.config, origin, collect(device_fingerprint()))

    def resume(self, run_dir: Path) -> None:
        """Check that a run may go on."""
        check_unchanged(run_dir, self.config)

    def prepare(self) -> "MatlmJob":
        """The job with its text, tokenized by Ray Data if that was not done before.

        Raises:
            ConfigError: the tokenizer has more tokens than the decoder.
            DataError: the text cannot be used.
        """
        text = prepare(self.config.text, self.config.seed)
        found, room = text.tokenizer.get_vocab_size(), self.config.decoder.vocab_size
        if found > room:
            raise ConfigError("decoder.vocab_size", room, f"must be at least {found}, the tokens of the tokenizer")
        return replace(self, text=text)

    def work(self, run_dir: Path, device: torch.device) -> int:
        """Train on one worker."""
        assert self.text is not None, "text is prepared before workers start"
        return run(self.config, self.text, run_dir, device)
