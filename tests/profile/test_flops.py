import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.model.decoder import Decoder, DecoderConfig
from elastic.model.encoder import Encoder
from elastic.model.vit import forward_vit
from elastic.profile.flops import count_image, count_text, count_token
from elastic.submodel import Submodel

TEXT = TextConfig(vocab_size=50, max_tokens=7, width=24, depth=3, num_heads=4, mlp_ratio=2.0)
PLAIN = VisionConfig(image_size=32, patch_size=8, width=48, depth=3, num_heads=4, mlp_ratio=4.0)
SMALL = {"image_size": 32, "width": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 4.0}
TOWERS = {
    "plain": PLAIN,
    "two class tokens": VisionConfig(**SMALL, patch_size=8, num_cls_tokens=2, pool="token"),
    "attention pooling": VisionConfig(**SMALL, patch_size=8, num_cls_tokens=0, pool="map"),
    "convolutional stem": VisionConfig(**SMALL, timm_name="vit_tiny_r_s16_p8_224", patch_size=2),
    "gated": VisionConfig(**SMALL, timm_name="vit_giant_patch14_reg4_dinov2", patch_size=8),
}


def config(vision=PLAIN, text=None):
    return EncoderConfig(vision=vision, text=text, ffn_fractions=(0.25, 0.5, 1.0), embed_dims=(8, 16))


def counted_by_torch(function, *arguments):
    # The counter does not know the CPU's fused attention kernel; the math kernel is made of products that it sees.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        function(*arguments)
    return counter.get_total_flops()


def submodels(space):
    return [*space.granularities.values(), list(space.mixes())[1]]


@pytest.mark.parametrize("name", TOWERS)
def test_image_flops_equal_those_that_torch_counts(name):
    encoder = Encoder(config(TOWERS[name])).eval().requires_grad_(False)
    image = torch.zeros(1, 3, 32, 32)
    for submodel in submodels(encoder.space):
        counted = counted_by_torch(forward_vit, encoder.image, image, submodel)
        assert count_image(encoder.config, submodel).flops == counted


def test_text_flops_equal_those_that_torch_counts():
    encoder = Encoder(config(text=TEXT)).eval().requires_grad_(False)
    tokens = torch.ones(1, TEXT.max_tokens, dtype=torch.long)
    for submodel in submodels(encoder.text_space):
        counted = counted_by_torch(encoder.text, tokens, tokens > 0, submodel)
        assert count_text(encoder.config, submodel).flops == counted
    shorter = counted_by_torch(encoder.text, tokens[:, :3], tokens[:, :3] > 0, submodel)
    assert count_text(encoder.config, submodel, num_tokens=3).flops == shorter


@pytest.mark.parametrize("name", TOWERS)
def test_the_full_submodel_has_every_parameter_of_the_tower(name):
    encoder = Encoder(config(TOWERS[name], TEXT))
    assert count_image(encoder.config, encoder.space.full).params == sum(p.numel() for p in encoder.image.parameters())
    assert count_text(encoder.config, encoder.text_space.full).params == sum(
        p.numel() for p in encoder.text.parameters()
    )


def test_a_hidden_unit_costs_its_row_its_bias_and_its_column():
    space = config().space
    one_layer_smaller = Submodel((space.ffn_dims[-2], *space.full.ffn_dims[1:]))
    saved = count_image(config(), space.full).params - count_image(config(), one_layer_smaller).params
    assert saved == (space.ffn_dims[-1] - space.ffn_dims[-2]) * (48 + 1 + 48)


def test_cost_rises_along_the_mixes():
    costs = [count_image(config(), submodel) for submodel in config().space.mixes()]
    assert [cost.flops for cost in costs] == sorted({cost.flops for cost in costs})
    assert [cost.params for cost in costs] == sorted({cost.params for cost in costs})


@pytest.mark.parametrize("num_kv_heads", [1, 4])
def test_flops_of_a_token_are_its_share_of_a_block_that_torch_counts(num_kv_heads):
    sizes = {"width": 32, "depth": 3, "num_heads": 4, "head_dim": 8, "num_kv_heads": num_kv_heads}
    decoder = Decoder(DecoderConfig(vocab_size=50, ffn_dims=(16, 32, 64), max_tokens=12, **sizes)).requires_grad_(False)
    tokens = torch.zeros(1, 12, dtype=torch.long)
    for submodel in submodels(decoder.space):
        cost = count_token(decoder.config, submodel, context=12)
        assert 12 * cost.flops == counted_by_torch(decoder, tokens, submodel)


def test_parameters_of_a_decoder_are_its_blocks_matrices():
    decoder = Decoder(DecoderConfig(vocab_size=50, width=32, depth=3, head_dim=8, ffn_dims=(16, 64)))
    blocks = sum(parameter.numel() for parameter in decoder.model.layers.parameters() if parameter.ndim == 2)
    full, smallest = (count_token(decoder.config, s, 1).params for s in (decoder.space.full, decoder.space.smallest))
    assert full == blocks
    assert full - smallest == 3 * 32 * 3 * (64 - 16)
