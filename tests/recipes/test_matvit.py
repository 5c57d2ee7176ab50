"""One dimension of elasticity each."""

from elastic.recipes.matvit import matvit, mrl
from elastic.train.preparation import check_data


def test_matvit_nests_the_blocks_and_not_the_embedding():
    config = matvit()
    check_data(config)
    assert len(config.model.space.granularities) == 4 and len(config.model.embed_dims) == 1


def test_mrl_nests_the_embedding_and_not_the_blocks():
    config = mrl()
    check_data(config)
    assert len(config.model.space.granularities) == 1
    assert config.objectives["classes"].embed_dims == config.model.embed_dims == (16, 32, 64, 128)
