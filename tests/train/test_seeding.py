from elastic.train.seeding import derive_seed


def test_equal_arguments_give_equal_seeds():
    assert derive_seed(3, "step", 10, 1) == derive_seed(3, "step", 10, 1)


def test_every_argument_matters():
    seeds = [
        derive_seed(3, "step", 10, 1),
        derive_seed(4, "step", 10, 1),
        derive_seed(3, "weights", 10, 1),
        derive_seed(3, "step", 11, 1),
        derive_seed(3, "step", 10, 0),
        derive_seed(3, "step", 10),
        derive_seed(3, "step", 1, 10),
    ]
    assert len(set(seeds)) == len(seeds)


def test_seeds_are_what_torch_accepts():
    assert all(0 <= derive_seed(0, "step", step) < 2**63 for step in range(1000))
