"""A small decoder that was taught a little of the license, which never changes: its drafts are right now and then."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from elastic.model.decoder import Decoder, DecoderConfig

TEXT = Path(__file__).parents[2] / "LICENSE"


@pytest.fixture(scope="session")
def letters() -> torch.Tensor:
    """Bytes of a text, below 128."""
    return torch.tensor([byte for byte in TEXT.read_bytes() if byte < 128])


@pytest.fixture(scope="session")
def taught(letters: torch.Tensor) -> Decoder:
    """Three blocks of width 32, four granularities, trained in turn for two hundred steps."""
    torch.manual_seed(0)
    config = DecoderConfig(
        vocab_size=128, width=32, depth=3, num_heads=4, num_kv_heads=2, head_dim=8, ffn_dims=(8, 16, 32, 128)
    )
    decoder = Decoder(config)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    submodels = list(decoder.space.granularities.values())
    for step in range(200):
        starts = torch.randint(len(letters) - 49, (16,))
        rows = torch.stack([letters[start : start + 49] for start in starts])
        logits = decoder(rows[:, :-1], submodels[step % len(submodels)])
        F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def prompts(letters: torch.Tensor) -> list[list[int]]:
    """Two hundred pieces of it, of one to twenty tokens."""
    generator = torch.Generator().manual_seed(1)
    starts = torch.randint(len(letters) - 20, (200,), generator=generator).tolist()
    lengths = torch.randint(1, 21, (200,), generator=generator).tolist()
    return [letters[start : start + length].tolist() for start, length in zip(starts, lengths, strict=True)]
