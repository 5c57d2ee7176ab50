"""What a run needs to know of its data before the first step: can it feed the objectives, and in which words."""

from elastic.data.catalog import Catalog, open_catalog
from elastic.data.feed import FeedConfig
from elastic.data.tokenizer import Tokenizer, train_tokenizer
from elastic.data.weights import Weights
from elastic.errors import ConfigError
from elastic.model.config import Preprocess
from elastic.objectives.base import Dimensions
from elastic.objectives.joint import JointObjective, check
from elastic.train.config import TrainConfig
from elastic.train.validation import Validation

TEXT_FIELDS = frozenset({"captions", "synthetic_captions"})
"""`Batch` fields that only an encoder with a text tower is fed."""


def check_data(config: TrainConfig) -> Catalog:
    """The catalog of the run's data, which every objective can be trained on.

    Raises:
        ConfigError: an objective lacks what it needs, or a stream feeds no objective.
        DataError: the data cannot be used as configured.
    """
    catalog, _ = open_catalog(config.data)
    check(config.objectives, *carried_fields(config, catalog))
    JointObjective(config.objectives, dimensions(config, catalog))
    balanced_streams(config, catalog)
    open_validation(config)
    return catalog


def open_validation(config: TrainConfig) -> Validation | None:
    """What the model is measured on while it trains, if the config asks for it.

    Raises:
        DataError: there are no labelled validation rows.
    """
    if config.validate_every == 0:
        return None
    return Validation(config.data.streams[0].source, preprocess(config))


def carried_fields(config: TrainConfig, catalog: Catalog) -> tuple[frozenset[str], ...]:
    """The `Batch` fields that each stream carries in this run."""
    absent = TEXT_FIELDS if config.model.text is None else frozenset()
    return tuple(stream.present - absent for stream in catalog.streams)


def balanced_streams(config: TrainConfig, catalog: Catalog) -> tuple[int, ...]:
    """Places of the streams whose weights follow the loss: those in use that feed the objective that is balanced by.

    Raises:
        ConfigError: there are fewer than two.
    """
    if config.balancing is None:
        return ()
    needs = config.objectives[config.balancing.objective].needs
    present = carried_fields(config, catalog)
    found = tuple(place for place, weight in enumerate(config.data.weights) if weight > 0 and needs <= present[place])
    if len(found) < 2:
        rule = f"needs two streams or more that feed {config.balancing.objective!r}, found {len(found)}"
        raise ConfigError("balancing", config.balancing, rule)
    return found


def dimensions(config: TrainConfig, catalog: Catalog) -> Dimensions:
    """The sizes that the objectives' parameters follow from."""
    shape = config.model.vision.shape
    return Dimensions(
        embed_dim=config.model.embed_dim,
        width=shape.width,
        num_classes=catalog.num_classes,
        class_domains=catalog.class_domains,
        num_patches=shape.num_patches,
    )


def make_tokenizer(config: TrainConfig, catalog: Catalog) -> Tokenizer | None:
    """The tokenizer of a new run, trained on its captions; none without a text tower.

    Raises:
        ConfigError: the captions have more distinct characters than the vocabulary has room for.
    """
    if config.model.text is None:
        return None
    vocab_size = config.model.text.vocab_size
    tokenizer = train_tokenizer(catalog.texts(), vocab_size)
    if tokenizer.vocab_size > vocab_size:
        rule = f"must be at least {tokenizer.vocab_size}, the characters of the captions"
        raise ConfigError("model.text.vocab_size", vocab_size, rule)
    return tokenizer


def preprocess(config: TrainConfig) -> Preprocess:
    """How pixels become input of the run's model, in training and ever after."""
    return Preprocess(image_size=config.model.vision.image_size)


def feed_config(config: TrainConfig, tokenizer: Tokenizer | None, weights: dict[int, Weights]) -> FeedConfig:
    """What the run's feed is opened with, on every worker."""
    text = config.model.text
    return FeedConfig(
        data=config.data,
        seed=config.seed,
        preprocess=preprocess(config),
        tokenizer=tokenizer,
        max_tokens=1 if text is None else text.max_tokens,  # without a text tower there is no tokenizer to cut for
        weights=weights,
        is_adaptive=config.balancing is not None,
    )
