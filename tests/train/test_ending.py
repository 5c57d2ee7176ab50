import pytest
import torch

from elastic.errors import ConfigError
from elastic.train.ending import STOP_FILE, end_window
from elastic.train.optim import OptimConfig, learning_rate_at
from elastic.train.window import Window

OPTIM = OptimConfig()


def window_of(loss: float) -> Window[torch.Tensor]:
    window = Window[torch.Tensor](len, "things")
    window.fetch(iter([torch.zeros(3)]), 1, torch.device("cpu"))
    window.add({"loss": torch.tensor(loss), "grad_norm": torch.tensor(1.0)})
    return window


def test_a_record_has_the_speed_in_its_unit_the_rate_of_its_last_step_and_what_was_added(tmp_path):
    record, stopping = end_window(window_of(2.0), tmp_path, OPTIM, step=5, steps=10, extra=7.0)
    assert not stopping and "stop" not in record
    assert record["loss"] == 2.0 and record["extra"] == 7.0 and record["things_per_s"] > 0
    assert record["learning_rate"] == learning_rate_at(4, 10, OPTIM)


def test_a_file_in_the_run_directory_asks_to_stop(tmp_path):
    (tmp_path / STOP_FILE).touch()
    assert end_window(window_of(2.0), tmp_path, OPTIM, step=5, steps=10)[1]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_advice(tmp_path, loss):
    with pytest.raises(ConfigError, match="lower the rate") as raised:
        end_window(window_of(loss), tmp_path, OPTIM, step=5, steps=10)
    assert raised.value.field == "optim.learning_rate"
