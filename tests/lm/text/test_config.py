import pytest

from elastic.errors import ConfigError
from elastic.lm.text.config import TextConfig


def test_the_default_needs_no_download():
    assert TextConfig().source == ("bundled",)


@pytest.mark.parametrize(
    "change, field",
    [
        ({"source": ()}, "text.source"),
        ({"vocab_size": 256}, "text.vocab_size"),
        ({"block_size": 0}, "text.block_size"),
        ({"batch_size": 0}, "text.batch_size"),
        ({"validation_fraction": 1.0}, "text.validation_fraction"),
        ({"validation_fraction": -0.1}, "text.validation_fraction"),
    ],
)
def test_what_cannot_work_is_refused_by_name(change: dict, field: str):
    with pytest.raises(ConfigError, match=f"^{field}="):
        TextConfig(**change)
