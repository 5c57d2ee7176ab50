import io
from dataclasses import replace

import pytest
from rich.console import Console

from elastic.errors import ConfigError
from elastic.train.dry_run import dry_run, estimate_memory, images_per_batch
from elastic.train.preparation import check_data


def test_the_tables_name_every_granularity_and_what_feeds_what(drawings_config):
    out = io.StringIO()
    Console(file=out, width=160).print(dry_run(drawings_config))
    text = out.getvalue()
    assert all(f"\u2502 {name} " in text for name in drawings_config.model.space.granularities)
    assert "supcon, classes, captions" in text
    assert "8 x 3 x 16 x 16" in text


def test_a_config_that_cannot_be_trained_is_refused(drawings_config):
    with pytest.raises(ConfigError):
        dry_run(replace(drawings_config, model=replace(drawings_config.model, text=None)))


def test_views_multiply_the_images_of_a_batch(drawings_config):
    stream = drawings_config.data.streams[0]
    assert images_per_batch(stream) == 8
    assert images_per_batch(replace(stream, views_per_image=3)) == 24


def test_the_state_is_five_copies_of_the_weights_less_what_is_not_averaged(drawings_config):
    memory = estimate_memory(drawings_config, check_data(drawings_config))
    unaveraged = memory.num_params - memory.num_encoder_params
    assert unaveraged == 8 * 8 + 1  # class prototypes and one temperature
    assert memory.state_bytes == 4 * (5 * memory.num_params - unaveraged)


def test_sharded_workers_divide_the_state(drawings_config):
    model = drawings_config.model
    wordy = replace(drawings_config, model=replace(model, text=replace(model.text, vocab_size=8192)))

    def shown(**changes):
        out = io.StringIO()
        Console(file=out, width=160).print(dry_run(replace(wordy, **changes)))
        (line,) = (line for line in out.getvalue().splitlines() if "weights, gradients" in line)
        return float(line.partition(" MiB")[0].split()[-1])

    whole = shown(num_workers=2)
    assert whole > 1
    assert shown(num_workers=2, parallel="fsdp") == pytest.approx(whole / 2, abs=0.1)


def test_activations_grow_with_the_batch_and_shrink_with_workers(drawings_config):
    catalog = check_data(drawings_config)
    one = estimate_memory(drawings_config, catalog).activation_bytes
    assert one > 8 * 16 * 16 * 3 * 4  # more than the images themselves
    two = estimate_memory(replace(drawings_config, num_workers=2), catalog).activation_bytes
    assert two == pytest.approx(one / 2, rel=0.01)
