"""MatLM: a nested Llama that drafts for itself, on the text that comes with the package."""

from dataclasses import replace

from elastic.lm.text.config import TextConfig
from elastic.lm.training.config import MatlmConfig
from elastic.model.decoder import DecoderConfig
from elastic.train.optim import OptimConfig
from elastic.train.submodels import SubmodelSampling

OPTIM = OptimConfig(learning_rate=3e-3, final_fraction=0.1, weight_decay=0.1, betas=(0.9, 0.95), ema_decay=0.0)
"""As in MatFormer's public code for language models, with a higher rate for smaller models."""


def matlm() -> MatlmConfig:
    """A small one: `elastic train matlm`, some eleven minutes on 2 cores (estimated from the time of a step).

    Feed-forward blocks up to 8 times the width, as in MatFormer's public code, so that S costs a third of XL. XL and
    one other size a step; half of the other's loss comes from XL, for which it is to draft.
    """
    width = 128
    return MatlmConfig(
        name="matlm",
        decoder=DecoderConfig(
            vocab_size=2048,
            width=width,
            depth=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            ffn_dims=(width, 2 * width, 4 * width, 8 * width),
            max_tokens=512,
        ),
        text=TextConfig(vocab_size=2048, block_size=128, batch_size=16),
        steps=1000,
        submodels=SubmodelSampling(policy="anchored", k=1),
        distillation=0.5,
        optim=OPTIM,
        checkpoint_every=250,
        log_every=25,
        validate_every=250,
    )


def matlm_debug() -> MatlmConfig:
    """Every part of a run in seconds, plus the start of Ray: `elastic train matlm_debug`. It learns next to nothing."""
    full = matlm()
    return replace(
        full,
        name="matlm_debug",
        decoder=replace(
            full.decoder,
            vocab_size=512,
            width=32,
            depth=2,
            num_heads=2,
            num_kv_heads=1,
            head_dim=16,
            ffn_dims=(16, 32, 64, 128),
            max_tokens=64,
        ),
        text=replace(full.text, vocab_size=512, block_size=32, batch_size=4),
        steps=20,
        checkpoint_every=10,
        log_every=5,
        validate_every=10,
        validation_blocks=8,
    )


def matlm_gpu() -> MatlmConfig:
    """For one GPU: `elastic train matlm_gpu`, meant for five minutes on an H100 and not run on one yet.

    Reads every corpus that `elastic data fetch text` brings. Of these gcide quotes WordNet 1.5, of which the bundled
    text has version 3.0, so losses on held-out text are somewhat too good.
    """
    width = 512
    full = matlm()
    return replace(
        full,
        name="matlm_gpu",
        decoder=replace(
            full.decoder,
            vocab_size=4096,
            width=width,
            depth=8,
            num_heads=8,
            num_kv_heads=8,
            head_dim=64,
            ffn_dims=(width, 2 * width, 4 * width, 8 * width),
            max_tokens=1024,
        ),
        text=replace(
            full.text,
            source=("bundled", "gcide", "linux-doc", "python-doc"),
            vocab_size=4096,
            block_size=512,
            batch_size=64,
        ),
        steps=2000,
        optim=replace(OPTIM, learning_rate=1e-3),
        device="gpu",
        precision="bf16",
        compile=True,
        checkpoint_every=500,
        validate_every=500,
        validation_blocks=256,
    )
