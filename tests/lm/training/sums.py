"""A run small enough to step through by hand, on text that is prepared on the spot: sums."""

from pathlib import Path

import numpy as np

from elastic.lm.text.config import TextConfig
from elastic.lm.text.prepared import TRAIN, VALIDATION, TextManifest
from elastic.lm.text.store import TokenWriter, token_dtype
from elastic.lm.text.tokenizer import END_OF_TEXT, save_tokenizer, train_tokenizer
from elastic.lm.training.config import MatlmConfig
from elastic.model.decoder import DecoderConfig
from elastic.train.submodels import SubmodelSampling

VOCAB_SIZE = 300
BLOCK, BATCH = 16, 4


def prepare_sums(folder: Path) -> None:
    """Write a folder as `prepare` does."""
    documents = [f"{i} and {j} make {i + j}." for i in range(40) for j in range(10)]
    tokenizer = train_tokenizer(documents, VOCAB_SIZE)
    save_tokenizer(tokenizer, folder)
    counts = {}
    for split, chosen in ((TRAIN, documents[40:]), (VALIDATION, documents[:40])):
        with TokenWriter(folder, split, token_dtype(VOCAB_SIZE)) as writer:
            for document in chosen:
                ids = [*tokenizer.encode(document).ids, tokenizer.token_to_id(END_OF_TEXT)]
                writer.append(np.array(ids, np.uint16), np.array([len(ids)]))
        counts |= {
            f"num_{split}_documents": len(chosen),
            f"num_{split}_tokens": writer.num_tokens,
            f"num_{split}_bytes": sum(map(len, chosen)),
        }
    manifest = TextManifest(
        sources=("sums",), validation_fraction=0.1, split_seed=0, num_skipped=0, num_duplicates=0, **counts
    )
    manifest.save(folder)


def tiny_config(text: Path) -> MatlmConfig:
    """Six steps of all that a run can do."""
    return MatlmConfig(
        name="tiny",
        decoder=DecoderConfig(
            vocab_size=VOCAB_SIZE,
            width=16,
            depth=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=8,
            ffn_dims=(8, 16, 32, 64),
            max_tokens=BLOCK,
        ),
        text=TextConfig(source=(str(text),), vocab_size=VOCAB_SIZE, block_size=BLOCK, batch_size=BATCH),
        steps=6,
        submodels=SubmodelSampling(policy="anchored"),
        distillation=0.5,
        checkpoint_every=2,
        log_every=1,
        validation_blocks=4,
    )
