import os

import torch

from elastic.profile.device import device_fingerprint


def test_the_cpu_fingerprint_names_processor_cores_and_vector_instructions():
    here = device_fingerprint()
    assert here.processor
    assert here.num_cores == os.cpu_count()
    assert here.isa == torch.backends.cpu.get_cpu_capability()


def test_the_fingerprint_of_one_machine_is_always_the_same():
    assert device_fingerprint("cpu") == device_fingerprint(torch.device("cpu"))
