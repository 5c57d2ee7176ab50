"""Masked images: targets at their own place, a decoder that leaves no trace, and a codebook that never moves later."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from elastic.batch import Batch, Features, Passes
from elastic.checkpoint import Manifest, load_model, save_model
from elastic.data.config import DataConfig
from elastic.errors import ConfigError
from elastic.model.config import EncoderConfig, Preprocess, VisionConfig
from elastic.model.encoder import Encoder
from elastic.model.extract import extract
from elastic.objectives.base import Dimensions, ObjectiveConfig
from elastic.objectives.classification import Classification
from elastic.objectives.mim import MaskedImages, MaskedImagesLoss, normalised_patches, tokens_report
from elastic.train.config import TrainConfig
from elastic.train.optim import OptimConfig
from elastic.train.state import TrainState
from elastic.train.step import train_step

from ..workers import TwoWorkers

CPU = torch.device("cpu")
PATCHES, SIDE = 4, 4
DIMS = Dimensions(embed_dim=4, width=8, num_classes=3, num_patches=PATCHES)
SMALL = MaskedImages(num_codes=6, fit_steps=2, target_px=SIDE, head_dim=4)


def build(config: MaskedImages = SMALL) -> MaskedImagesLoss:
    torch.manual_seed(0)
    loss = config.build(DIMS)
    assert isinstance(loss, MaskedImagesLoss)
    return loss


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(seed))


def batch(pixels: Tensor, mask: Tensor) -> Batch:
    rows = torch.arange(len(pixels))
    return Batch(images=pixels, row_ids=rows, domains=torch.zeros_like(rows), labels=rows % 3, mask=mask)


def passes(patch_tokens: Tensor, cls_token: Tensor | None = None) -> Passes:
    pooled = torch.zeros_like(patch_tokens[:, 0]) if cls_token is None else cls_token
    masked = Features(embedding=pooled[:, :4], cls_token=pooled, patch_tokens=patch_tokens)
    return Passes(clean=masked, masked=masked)


def half(count: int) -> Tensor:
    """Different patches of each image hidden, two of four."""
    return torch.tensor([[True, True, False, False], [False, True, False, True]]).repeat(count // 2, 1)


def fitted(config: MaskedImages = SMALL) -> MaskedImagesLoss:
    loss = build(config)
    for seed in range(config.fit_steps):
        loss(passes(torch.zeros(8, PATCHES, 8)), batch(images(8, seed), half(8)))
    return loss


def test_a_patch_is_normalised_on_its_own():
    pixels = images(2)
    found = normalised_patches(pixels, PATCHES, SIDE)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        patch = pixels[:, :, SIDE * row : SIDE * (row + 1), SIDE * column : SIDE * (column + 1)].flatten(1)
        expected = (patch - patch.mean(1, keepdim=True)) / patch.var(1, correction=0, keepdim=True).add(1e-6).sqrt()
        torch.testing.assert_close(found[:, 2 * row + column], expected)


def test_a_patch_without_texture_is_zero_and_one_of_another_colour_is_not():
    plain = torch.ones(1, 3, 8, 8)
    assert (normalised_patches(plain, PATCHES, SIDE) == 0).all()
    red = plain * torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    assert normalised_patches(red, PATCHES, SIDE).square().mean().item() == pytest.approx(1, abs=1e-4)


def test_larger_patches_are_averaged_down():
    small = images(2)
    large = small.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    torch.testing.assert_close(normalised_patches(large, PATCHES, SIDE), normalised_patches(small, PATCHES, SIDE))


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_pixels_are_a_mean_within_images_and_then_over_them(positions: str):
    loss = build(replace(SMALL, target="pixels", positions=positions))
    mask = torch.tensor([[True, False, False, False], [True, True, True, False]])
    tokens, pixels = torch.randn(2, PATCHES, 8), images(2)
    terms = loss(passes(tokens), batch(pixels, mask))
    errors = (loss.decoder(passes(tokens).masked) - normalised_patches(pixels, PATCHES, SIDE)).square().mean(dim=2)
    counted = mask if positions == "masked" else torch.ones_like(mask)
    expected = sum(errors[index][counted[index]].mean() for index in range(2)) / 2
    torch.testing.assert_close(terms["pixels"], expected)


def test_pixels_start_near_their_variance_and_tokens_near_one():
    pixels, mask = images(16, seed=7), half(16)
    tokens = torch.randn(16, PATCHES, 8)
    start = build(replace(SMALL, target="pixels"))(passes(tokens), batch(pixels, mask))["pixels"]
    assert start.item() == pytest.approx(1, abs=0.05)
    for num_codes in (4, 16):
        loss = fitted(replace(SMALL, num_codes=num_codes))
        start = loss(passes(tokens), batch(pixels, mask))["tokens"] * math.log(num_codes)
        assert start.item() == pytest.approx(math.log(num_codes), abs=0.1)


def test_tokens_are_the_cross_entropy_of_hidden_patches_over_the_log_of_the_codes():
    loss = fitted()
    tokens, pixels, mask = torch.randn(4, PATCHES, 8), images(4, seed=5), half(4)
    terms = loss(passes(tokens), batch(pixels, mask))
    probabilities = loss.decoder(passes(tokens).masked).softmax(dim=2)
    patches = normalised_patches(pixels, PATCHES, SIDE)
    total, hits = 0.0, 0
    for image, patch in mask.nonzero().tolist():
        code = int((loss.codebook.codes - patches[image, patch]).square().sum(dim=1).argmin())
        total -= probabilities[image, patch, code].log().item()
        hits += int(probabilities[image, patch].argmax()) == code
    assert terms["tokens"].item() == pytest.approx(total / 8 / math.log(6), rel=1e-5)
    assert terms["accuracy@masked"].item() == hits / 8


def test_the_report_says_what_guessing_would_reach():
    codes = torch.tensor([[0, 0, 1, 2], [0, 1, 3, 3]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    decoded = nn.functional.one_hot(torch.zeros_like(codes), 4).float()
    report = tokens_report(decoded, codes, mask)
    assert report["accuracy@masked"].item() == report["accuracy@majority"].item() == 3 / 4
    shares = [3 / 8, 2 / 8, 1 / 8, 2 / 8]
    entropy = -sum(share * math.log(share) for share in shares)
    assert report["code_entropy@share"].item() == pytest.approx(entropy / math.log(4))


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_an_output_belongs_to_the_token_of_its_own_place(positions: str):
    loss = fitted(replace(SMALL, depth=0, positions=positions))
    tokens, mask = torch.randn(4, PATCHES, 8, requires_grad=True), half(4)
    loss.decoder(passes(tokens).masked)[:, 2].sum().backward()
    assert (tokens.grad.abs().sum(dim=(0, 2)) > 0).tolist() == [False, False, True, False]
    tokens.grad = None
    loss(passes(tokens), batch(images(4), mask))["tokens"].backward()
    counted = mask if positions == "masked" else torch.ones_like(mask)
    assert torch.equal(tokens.grad.abs().sum(dim=2) > 0, counted)


def test_attention_lets_hidden_patches_read_all_others_and_the_pooled_token():
    loss = fitted()
    tokens, pooled = torch.randn(2, PATCHES, 8, requires_grad=True), torch.randn(2, 8, requires_grad=True)
    loss(passes(tokens, pooled), batch(images(2), half(2)))["tokens"].backward()
    assert (tokens.grad.abs().sum(dim=2) > 0).all() and (pooled.grad.abs().sum(dim=1) > 0).all()


def test_tokens_that_name_the_code_of_their_place_bring_the_loss_to_zero():
    """Patterns change places from image to image, so that a shift by one place could not be learned."""
    random = torch.Generator().manual_seed(0)
    patterns = torch.randn(PATCHES, 3, SIDE, SIDE, generator=random)
    order = torch.stack([torch.randperm(PATCHES, generator=random) for _ in range(32)])
    rows = [torch.cat([torch.cat(list(four[i : i + 2]), dim=2) for i in (0, 2)], dim=1) for four in patterns[order]]
    rows_batch = batch(torch.stack(rows), half(32))
    told = passes(nn.functional.one_hot(order, 8).float())
    loss = fitted_on(rows_batch, told, replace(SMALL, num_codes=PATCHES, depth=0))
    optimizer = torch.optim.Adam(loss.decoder.parameters(), lr=0.05)
    for _ in range(60):
        terms = loss(told, rows_batch)
        optimizer.zero_grad()
        terms["tokens"].backward()
        optimizer.step()
    assert terms["tokens"].item() < 0.02 and terms["accuracy@masked"].item() == 1


def fitted_on(rows: Batch, seen: Passes, config: MaskedImages) -> MaskedImagesLoss:
    loss = build(config)
    for _ in range(config.fit_steps):
        loss(seen, rows)
    return loss


def test_the_term_is_zero_but_connected_until_the_codes_are_frozen():
    loss, codes = build(), []
    for step in range(5):
        terms = loss(passes(torch.randn(8, PATCHES, 8)), batch(images(8, step), half(8)))
        terms["tokens"].backward()
        assert all(p.grad is not None for p in loss.decoder.parameters())
        assert (terms["tokens"].item() == 0) == (step < SMALL.fit_steps)
        codes.append(loss.codebook.codes.clone())
    assert not torch.equal(codes[0], codes[1])
    assert all(torch.equal(later, codes[1]) for later in codes[2:])


def test_evaluation_fits_nothing():
    loss = build().eval()
    loss(passes(torch.zeros(8, PATCHES, 8)), batch(images(8), half(8)))
    assert loss.codebook.num_fits == 0


def test_it_asks_for_the_masked_pass_and_no_labels():
    assert MaskedImages().passes == {"masked"} and MaskedImages().needs == frozenset()
    assert MaskedImages().weight == 0.1


def test_the_decoder_is_at_most_so_wide():
    wide = replace(DIMS, width=1024)
    assert MaskedImages().build(wide).decoder.head.in_features == 512
    assert build().decoder.head.in_features == 8


@pytest.mark.parametrize(
    "changes", [{"num_codes": 1}, {"fit_steps": 0}, {"target_px": 0}, {"depth": -1}, {"head_dim": 0}, {"start": 1.0}]
)
def test_impossible_values_are_refused(changes: dict):
    with pytest.raises(ConfigError):
        MaskedImages(**changes)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ConfigError, match="must divide the decoder's width of 8"):
        replace(SMALL, head_dim=3).build(DIMS)


def run_config(**objectives: ObjectiveConfig) -> TrainConfig:
    vision = VisionConfig(image_size=8, patch_size=4, width=8, depth=2, num_heads=2, num_cls_tokens=0, drop_path=0.2)
    return TrainConfig(
        name="tiny",
        model=EncoderConfig(vision=vision, embed_dims=(2, 4)),
        data=DataConfig(image_size=8, canvas_size=8),
        objectives={"classes": Classification(), **objectives},
        steps=9,
        # Norms over more parameters are added up in another order; unclipped, not a bit depends on that.
        optim=OptimConfig(learning_rate=3e-3, max_grad_norm=1e9),
    )


def take_steps(state: TrainState, first: int, count: int) -> list[float]:
    losses = []
    for step in range(first, first + count):
        rows = replace(batch(images(6, step), half(6)), mask=None)
        submodels = [state.space.full, state.space.smallest]
        losses.append(train_step(state, [rows], submodels, rank=0)["loss"].item())
    return losses


@pytest.mark.parametrize("target", ["tokens", "pixels"])
def test_with_a_weight_of_zero_it_is_the_supervised_run(target: str):
    free = replace(SMALL, target=target, weight=0.0)
    with_it, without = TrainState(run_config(mim=free), DIMS, CPU), TrainState(run_config(), DIMS, CPU)
    assert take_steps(with_it, 0, 5) == take_steps(without, 0, 5)
    expected = without.learner.encoder.state_dict()
    found = with_it.learner.encoder.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_saved_model_has_no_decoder_and_needs_none(tmp_path: Path):
    config = run_config(mim=SMALL)
    state = TrainState(config, DIMS, CPU)
    take_steps(state, 0, 4)
    manifest = Manifest(encoder=config.model, preprocess=Preprocess(image_size=8), domains=("all",), provenance={})
    save_model(tmp_path, state.average, manifest)
    encoder, _, _ = load_model(tmp_path)
    assert encoder.state_dict().keys() == Encoder(run_config().model).state_dict().keys()
    assert any("decoder" in name for name in state.learner.state_dict())
    pixels, space = images(4, seed=3), state.space
    for submodel in (space.full, space.smallest):
        seen = encoder.encode_images(pixels, submodel, 4)
        assert torch.equal(seen, state.average.encode_images(pixels, submodel, 4))
        torch.testing.assert_close(nn.functional.normalize(extract(encoder, submodel).eval()(pixels), dim=1), seen)


def test_a_run_that_is_interrupted_while_the_codes_are_fitted_resumes_exactly():
    config = run_config(mim=replace(SMALL, fit_steps=7))
    straight, interrupted, resumed = (TrainState(config, DIMS, CPU) for _ in range(3))
    losses = take_steps(straight, 0, 6)
    head = take_steps(interrupted, 0, 2)
    resumed.load_state_dict(interrupted.state_dict())
    assert head + take_steps(resumed, 2, 4) == losses
    expected, found = straight.learner.state_dict(), resumed.learner.state_dict()
    assert "objective.objectives.mim.codebook.codes" in expected
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


SPLIT, ROWS = 4, 10
"""The first worker has the first 4 of 10 images."""


class Learner(nn.Module):
    """A linear encoder of patches under the objective, as training wraps it in DDP."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(3 * SIDE**2, 8)
        self.loss = SMALL.build(DIMS)

    def forward(self, rows: Batch) -> Tensor:
        tokens = self.encoder(normalised_patches(rows.images, PATCHES, SIDE) * ~rows.mask[..., None])
        self.report = self.loss(passes(tokens, tokens.mean(dim=1)), rows)
        return self.report["tokens"]


def shard(rank: int | None, step: int) -> Batch:
    rows = slice(None) if rank is None else slice(0, SPLIT) if rank == 0 else slice(SPLIT, None)
    return batch(images(ROWS, step)[rows], half(ROWS)[rows])


def learn(learner: Learner, module: nn.Module, rank: int | None) -> dict[str, Tensor]:
    """The codebook and, from the first step with a loss, the report and the gradients."""
    for step in range(SMALL.fit_steps + 1):
        learner.zero_grad()
        module(shard(rank, step)).backward()
    grads = {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}
    report = {name: value.detach() for name, value in learner.report.items()}
    return {"codes": learner.loss.codebook.codes, **report, **grads}


def work(rank: int) -> dict[str, Tensor]:
    learner = Learner()
    parallel = DistributedDataParallel(learner)  # must outlive the backward pass
    return learn(learner, parallel, rank)


def test_two_workers_fit_and_learn_what_one_does(two_workers: TwoWorkers):
    alone = Learner()
    expected = learn(alone, alone, None)
    one, two = two_workers.run(work)
    assert one.keys() == two.keys() == expected.keys()
    for name, value in expected.items():
        mean = (one[name] + two[name]) / 2
        torch.testing.assert_close(mean, value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(one["codes"], two["codes"]) and expected["tokens"] > 0
