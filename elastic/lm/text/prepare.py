"""From a configuration to prepared text: tokenizer, tokens and split, made once and kept in the cache."""

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer

from elastic.data.filesystem import cache_dir
from elastic.errors import DataError
from elastic.lm.text.config import TextConfig
from elastic.lm.text.corpora import locate_source
from elastic.lm.text.documents import Part, find_parts, fingerprint, group_parts, is_held_out, read_parts
from elastic.lm.text.prepared import FORMAT, MANIFEST_FILE, TRAIN, VALIDATION, PreparedText, TextManifest
from elastic.lm.text.store import TokenWriter, token_dtype
from elastic.lm.text.tokenise import Job, Tokenised
from elastic.lm.text.tokenizer import END_OF_TEXT, load_tokenizer, save_tokenizer, train_tokenizer

_log = logging.getLogger(__name__)


def prepare(config: TextConfig, seed: int, cache: Path | None = None) -> PreparedText:
    """The text of a run, made by Ray Data if the cache does not have it yet; call it once, with Ray connected.

    Documents, tokenizer and split decide what is made and where; block size, batch size and seed only how it is read.

    Args:
        config: which text.
        seed: the run's; orders documents and blocks.
        cache: folder that keeps prepared text; left out, `elastic/text` in the user's cache. Training workers on other
            machines read it at the same path.

    Raises:
        DataError: a source is missing or unreadable, or holds no document to train on.
    """
    folder = _given(config) or _make(config, cache or cache_dir() / "text")
    return PreparedText.load(folder, block_size=config.block_size, batch_size=config.batch_size, seed=seed)


def _given(config: TextConfig) -> Path | None:
    """The only source, if it is prepared text."""
    path = Path(config.source[0])
    return path if len(config.source) == 1 and (path / MANIFEST_FILE).is_file() else None


def _make(config: TextConfig, cache: Path) -> Path:
    parts = [part for source in config.source for part in find_parts(locate_source(source))]
    given = None if config.tokenizer is None else load_tokenizer(config.tokenizer)
    folder = cache / _key(config, parts, given)
    if (folder / MANIFEST_FILE).exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    groups = group_parts(parts)
    console = Console(stderr=True)
    tokenizer, end = given or (_train_tokenizer(config, groups, console), END_OF_TEXT)
    # Written beside its place and renamed last: a folder of that name is always complete.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        save_tokenizer(tokenizer, made, end)
        manifest = _write_tokens(config, groups, tokenizer, end, made, console)
        manifest.save(made)
        _rename(made, folder)
    return folder


def _key(config: TextConfig, parts: Sequence[Part], given: tuple[Tokenizer, str] | None) -> str:
    """A name that changes with everything that decides what is written."""
    tokenizer = config.vocab_size if given is None else (given[0].to_str(), given[1])
    split = (config.validation_fraction, config.split_seed, config.text_field)
    facts = json.dumps([FORMAT, fingerprint(parts), tokenizer, split])
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def _train_tokenizer(config: TextConfig, groups: Sequence[tuple[Part, ...]], console: Console) -> Tokenizer:
    def texts() -> Iterator[str]:
        for group in track(groups, "training the tokenizer", console=console, transient=True):
            for document in read_parts(group, config.text_field).documents:
                if not is_held_out(document.id, config.validation_fraction, config.split_seed):
                    yield document.text

    return train_tokenizer(texts(), config.vocab_size)


def _write_tokens(
    config: TextConfig,
    groups: Sequence[tuple[Part, ...]],
    tokenizer: Tokenizer,
    end_of_text: str,
    folder: Path,
    console: Console,
) -> TextManifest:
    from elastic.lm.text.pipeline import tokenise_all  # only here: what is prepared needs no Ray

    job = Job(
        tokenizer=tokenizer.to_str(),
        end_of_text=end_of_text,
        text_field=config.text_field,
        validation_fraction=config.validation_fraction,
        split_seed=config.split_seed,
    )
    made = tokenise_all(groups, job)
    shown = track(made, "tokenizing", total=len(groups), console=console, transient=True)
    manifest = write_split(shown, config, folder, token_dtype(tokenizer.get_vocab_size()))
    _report(manifest, console)
    return manifest


def write_split(made: Iterable[Tokenised], config: TextConfig, folder: Path, dtype: np.dtype[Any]) -> TextManifest:
    """Write the tokens of both splits, each text once: the first of equal ones stays, on its side of the split.

    Raises:
        DataError: no document to train on.
    """
    seen: set[bytes] = set()
    num_bytes, num_documents, num_skipped = Counter[str](), 0, 0
    with TokenWriter(folder, TRAIN, dtype) as train, TokenWriter(folder, VALIDATION, dtype) as validation:
        for group in made:
            fresh = np.array([is_first(digest, seen) for digest in group.digests], bool)
            for split, writer in ((TRAIN, train), (VALIDATION, validation)):
                chosen = fresh & (group.held_out == (split == VALIDATION))
                writer.append(group.tokens[np.repeat(chosen, group.lengths)], group.lengths[chosen])
                num_bytes[split] += int(group.num_bytes[chosen].sum())
            num_documents += len(group.digests)
            num_skipped += group.num_skipped
    if train.num_documents == 0:
        found = f"{num_documents:,} documents were read, {validation.num_documents:,} of them held out"
        problem = f"no document to train on ({found}, {num_skipped:,} lines, rows or files skipped)"
        raise DataError(", ".join(config.source), problem, "check the files, `text_field` and `validation_fraction`")
    return TextManifest(
        sources=config.source,
        validation_fraction=config.validation_fraction,
        split_seed=config.split_seed,
        num_train_documents=train.num_documents,
        num_validation_documents=validation.num_documents,
        num_train_tokens=train.num_tokens,
        num_validation_tokens=validation.num_tokens,
        num_train_bytes=num_bytes[TRAIN],
        num_validation_bytes=num_bytes[VALIDATION],
        num_skipped=num_skipped,
        num_duplicates=num_documents - len(seen),
    )


def is_first(digest: bytes, seen: set[bytes]) -> bool:
    """Whether a text was not there before; remembers it."""
    known = digest in seen
    seen.add(digest)
    return not known


def _report(manifest: TextManifest, console: Console) -> None:
    bytes_per_token = manifest.num_train_bytes / manifest.num_train_tokens
    console.print(
        f"text: {manifest.num_train_tokens:,} tokens in {manifest.num_train_documents:,} documents to train on "
        f"({bytes_per_token:.2f} bytes a token), {manifest.num_validation_tokens:,} in "
        f"{manifest.num_validation_documents:,} held out",
        soft_wrap=True,
    )
    if manifest.num_duplicates:
        console.print(f"text: left out {manifest.num_duplicates:,} documents that repeat another's text")
    if manifest.num_skipped:
        _log.warning("skipped %d lines, rows or files without readable text", manifest.num_skipped)


def _rename(made: Path, folder: Path) -> None:
    """Put a finished folder in its place, unless somebody else was faster with the same one."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / MANIFEST_FILE).exists():
            raise
