import pytest
import torch

from elastic.errors import ConfigError
from elastic.model.config import EncoderConfig, TextConfig, VisionConfig
from elastic.model.encoder import Encoder
from elastic.profile.device import device_fingerprint
from elastic.profile.latency import LatencyConfig, default_submodels, measure, time_in_rounds, torch_threads

CONFIG = LatencyConfig(batch_sizes=(1, 3), rounds=2, warmup_rounds=1)


class FakeClock:
    """Seconds that pass only when a call says so."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def encoder(with_text=True):
    text = TextConfig(vocab_size=20, max_tokens=5, width=8, depth=1, num_heads=2, mlp_ratio=2.0)
    vision = VisionConfig(image_size=16, patch_size=8, width=8, depth=2, num_heads=2, mlp_ratio=2.0)
    config = EncoderConfig(vision=vision, text=text if with_text else None, ffn_fractions=(0.5, 1.0), embed_dims=(2, 4))
    return Encoder(config).eval()


def test_every_call_is_timed_once_a_round_after_the_warm_up():
    clock, made = FakeClock(), []

    def call(name, seconds):
        def run():
            made.append(name)
            clock.now_s += seconds

        return run

    config = LatencyConfig(rounds=3, warmup_rounds=2)
    seconds = time_in_rounds({"a": call("a", 1.0), "b": call("b", 0.25)}, config, clock=clock)
    assert seconds == {"a": [1.0] * 3, "b": [0.25] * 3}
    rounds = [sorted(made[i : i + 2]) for i in range(0, len(made), 2)]
    assert rounds == [["a", "b"]] * 5


def test_the_order_of_calls_changes_between_rounds_and_follows_the_seed():
    def order(seed):
        made = []
        calls = {name: (lambda name=name: made.append(name)) for name in "abcdef"}
        time_in_rounds(calls, LatencyConfig(rounds=4, warmup_rounds=0, seed=seed), clock=FakeClock())
        return ["".join(made[i : i + 6]) for i in range(0, len(made), 6)]

    assert len(set(order(0))) > 1
    assert order(0) == order(0)
    assert order(0) != order(1)


def test_measuring_ends_with_the_round_that_passes_the_time_limit():
    clock = FakeClock()

    def call():
        clock.now_s += 4.0

    rounds_seen = []
    config = LatencyConfig(rounds=100, warmup_rounds=1, max_s=10.0)
    seconds = time_in_rounds({"a": call}, config, lambda: rounds_seen.append(clock.now_s), clock)
    assert seconds == {"a": [4.0, 4.0]}
    assert rounds_seen == [4.0, 8.0, 12.0]


def test_at_least_one_round_is_measured_even_when_the_warm_up_took_all_the_time():
    clock = FakeClock()

    def call():
        clock.now_s += 99.0

    assert time_in_rounds({"a": call}, LatencyConfig(max_s=1.0), clock=clock) == {"a": [99.0]}


def test_the_table_has_a_row_for_every_submodel_and_batch_size_of_both_towers():
    model = encoder()
    table = measure(model, CONFIG)
    cells = {(row.modality, row.submodel, row.batch_size) for row in table.rows}
    assert cells == {
        (modality, submodel, batch_size)
        for modality, submodels in default_submodels(model).items()
        for submodel in submodels
        for batch_size in (1, 3)
    }
    assert {row.n for row in table.rows} == {2}
    assert all(row.min_ms <= row.p50_ms <= row.p90_ms <= row.p99_ms <= row.max_ms for row in table.rows)
    assert table.provenance.device == device_fingerprint()


def test_an_encoder_without_text_tower_has_image_rows_only():
    table = measure(encoder(with_text=False), CONFIG)
    assert {row.modality for row in table.rows} == {"image"}


def test_the_mixes_and_the_granularities_are_measured_by_default():
    model = encoder()
    assert default_submodels(model)["image"] == list(model.space.mixes())
    assert set(model.text_space.granularities.values()) <= set(default_submodels(model)["text"])


def test_a_reduced_precision_measurement_is_labelled_as_one():
    config = LatencyConfig(batch_sizes=(1,), rounds=1, warmup_rounds=0, dtype="bfloat16")
    assert {row.dtype for row in measure(encoder(), config).rows} == {"bfloat16"}


def test_the_thread_count_is_put_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="inside"), torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError("inside")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("change", [{"batch_sizes": ()}, {"batch_sizes": (0,)}, {"rounds": 0}, {"num_threads": 0}])
def test_settings_that_measure_nothing_are_refused(change):
    with pytest.raises(ConfigError):
        LatencyConfig(**change)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_is_handed_the_input_and_waited_for(dtype):
    table = measure(encoder(), LatencyConfig(batch_sizes=(1, 3), rounds=2, warmup_rounds=1, dtype=dtype), device="cuda")
    assert {row.device for row in table.rows} == {str(device_fingerprint("cuda"))}
    assert all(row.min_ms > 0 for row in table.rows)
    assert table.provenance.device.isa == "cuda"
