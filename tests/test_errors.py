"""Every error crosses a process boundary with its type and fields, and says what to do."""

import inspect
import pickle

import pytest

from elastic import errors
from elastic.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeadlineExceeded,
    ElasticError,
    InvalidRequest,
    Overloaded,
    ProfileError,
    RateLimited,
    RequestTooLarge,
    ServerUnavailable,
    SloInfeasible,
    Unauthenticated,
)

EXAMPLES: list[ElasticError] = [
    ElasticError("something"),
    ConfigError("optim.lr", -1.0, "must be positive"),
    DataError("photos/", "no column 'image'", "rename the column that holds the encoded images"),
    CheckpointError("runs/a", "has no elastic.json", "train it to the end or name another run"),
    ProfileError("latency.parquet", "measured on another device", "run elastic profile here"),
    InvalidRequest("items", "is empty"),
    RequestTooLarge("items", 10_000, 256),
    SloInfeasible("latency_ms=0.1 at batch=1", "the fastest needs 1.2 ms", "raise the objective"),
    Overloaded("40 requests are waiting", 12.5),
    RateLimited("key 'mobile' is above 10 requests/s", 80.5),
    DeadlineExceeded(20.0, 3.5),
    Unauthenticated("no API key was sent", "pass one"),
    ServerUnavailable("127.0.0.1:9000", "connection refused", "start a server with elastic serve"),
]


def test_every_error_class_has_an_example_here():
    classes = {value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__}
    assert classes == {type(example) for example in EXAMPLES}


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_pickling_keeps_type_fields_and_message(error: ElasticError):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_the_message_shows_the_value_of_every_field(error: ElasticError):
    # Numbers may be rounded in the text, so their integer part is enough.
    shown = str(error)
    assert shown and all(str(value).split(".0")[0].split(".5")[0] in shown for value in vars(error).values())


def test_each_error_is_also_the_standard_error_it_refines():
    refined = {type(example): type(example).__mro__ for example in EXAMPLES}
    assert ValueError in refined[ConfigError] and ValueError in refined[DataError]
    assert ValueError in refined[RequestTooLarge] and TimeoutError in refined[DeadlineExceeded]
    assert RuntimeError in refined[Overloaded] and RuntimeError in refined[SloInfeasible]
    assert all(issubclass(kind, ElasticError) for kind in refined)


def test_the_tree_drawn_in_the_module_names_every_class_and_no_other():
    drawn = {word for word in (errors.__doc__ or "").split() if word.isidentifier() and hasattr(errors, word)}
    assert drawn == {type(example).__name__ for example in EXAMPLES}


@pytest.mark.ray
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_raised_in_a_ray_task_arrives_typed_with_its_fields(local_ray: None, error: ElasticError):
    import ray

    @ray.remote(max_retries=0)
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        ray.get(fail.remote())
    cause = caught.value.cause  # pyright: ignore[reportAttributeAccessIssue]
    assert type(cause) is type(error)
    assert vars(cause) == vars(error)
