"""The benchmark of speculation runs on any language model and adds up; its numbers are not tested."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn

from benchmarks.speculative import __main__ as speculative
from benchmarks.speculative.assisted import Assisted
from benchmarks.speculative.prompts import cut_prompts
from elastic.lm.checkpoint import LmManifest, save_matlm
from elastic.lm.drafts import DraftConfig
from elastic.lm.generate import GenerationConfig, Generator
from elastic.model.decoder import Decoder, DecoderConfig, parameters_by_part

CONFIG = DecoderConfig(
    vocab_size=257, width=16, depth=2, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dims=(8, 16, 32, 64), max_tokens=64
)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(CONFIG).eval().requires_grad_(False)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.4)
    return decoder


@pytest.fixture(scope="module")
def run(decoder: Decoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([""], trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet))
    folder = tmp_path_factory.mktemp("lm") / "run"
    save_matlm(folder, decoder, LmManifest(decoder=CONFIG, eos_token_ids=(0,)), tokenizer)
    return folder


def test_every_draft_is_measured_with_every_length_and_changes_nothing(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 8, encoding="utf-8")
    threads = torch.get_num_threads()
    options = speculative.Options(
        run=run,
        text=text,
        gammas=(2, "auto"),
        num_prompts=2,
        prompt_tokens=8,
        max_new_tokens=12,
        rounds=1,
        threads=(1,),
        independent=run,
        out=tmp_path / "out.json",
    )
    speculative.main(options)
    torch.set_num_threads(threads)
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    cells = {(row["draft"], row["gamma"]) for row in result["rows"]}
    assert len(cells) == len(result["rows"]) == 1 + 8 * 2
    fixed = [row for row in result["rows"] if row["gamma"] == 2]
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in fixed)
    assert all(row["mean_gamma"] <= 2 and 0 <= row["alpha"] <= 1 for row in fixed)


def test_prompts_are_the_beginnings_of_texts_that_are_held_out(run: Path) -> None:
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    prompts, counted = cut_prompts(tokenizer, None, 5, 16)
    assert {len(prompt) for prompt in prompts} == {16}
    assert len({tuple(prompt) for prompt in prompts}) == 5
    assert len(counted) > 10_000


def test_a_draft_reads_the_bytes_of_its_matrices() -> None:
    decoder = Decoder(CONFIG)
    full = parameters_by_part(CONFIG, decoder.space.full)
    whole = full["attention"] + full["ffn"] + full["head"]
    part = DraftConfig(submodel=decoder.space.smallest, layers=(1,), vocabulary=tuple(range(64)))
    assert speculative.bytes_ratio(decoder, DraftConfig(submodel=decoder.space.full)) == 1
    expected = full["attention"] / 2 + 3 * 16 * 8 + 64 * 16
    assert speculative.bytes_ratio(decoder, part) == pytest.approx(expected / whole)


def test_transformers_pair_says_what_the_decoder_says(decoder: Decoder) -> None:
    pair, prompt = Assisted(decoder), [70, 71, 72, 73]
    (step, *rest) = Generator(decoder).generate([prompt], GenerationConfig(max_new_tokens=12))
    expected = [*step.tokens[0], *(token for step in rest for token in step.tokens[0])]
    assert pair.generate(prompt, 12, assisted=False) == expected
    assert pair.generate(prompt, 12, assisted=True) == expected
    found = pair.measure([prompt], 4, 1)
    assert found["ratio"] == pytest.approx(found["assisted_tokens_per_s"] / found["plain_tokens_per_s"])
