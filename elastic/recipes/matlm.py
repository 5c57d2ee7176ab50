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
    """For one GPU: `elastic data fetch text`, then `elastic train matlm_gpu`; under three minutes on an H100.

    Thirty million weights, of which S reads a third, on 17 million tokens of encyclopedia, dictionary, plays and the
    documentation of Python and of Linux, four times over.

    The time is 2000 x 32,768 tokens at the 409,000 a second that its worker loop, without Ray, trained on an H100 once
    other runs on it had ended. Held out, S, M, L and XL reached 2.82, 2.74, 2.68 and 2.62 nats per token.
    """
    full = matlm()
    return replace(
        full,
        name="matlm_gpu",
        decoder=replace(
            full.decoder,
            vocab_size=4096,
            width=384,
            depth=8,
            num_heads=6,
            num_kv_heads=6,
            head_dim=64,
            ffn_dims=(320, 640, 1280, 2560),
            max_tokens=1024,
        ),
        text=replace(
            full.text,
            source=("bundled", "python-doc", "linux-doc"),
            vocab_size=4096,
            block_size=512,
            batch_size=64,
        ),
        steps=2000,
        optim=replace(OPTIM, learning_rate=1.5e-3),
        device="gpu",
        precision="bf16",
        checkpoint_every=1000,
        validate_every=500,
        validation_blocks=256,
    )
