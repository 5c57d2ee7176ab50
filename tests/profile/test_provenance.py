import re

from elastic.profile.provenance import Device, Provenance, collect, git_commit

HERE = Device(processor="CPU A", num_cores=2, isa="AVX2")


def test_devices_differ_by_name_of_the_field():
    there = Device(processor="CPU A", num_cores=8, isa="AVX512")
    assert HERE.differences(HERE) == []
    assert HERE.differences(there) == ["num_cores: 2 != 8", "isa: 'AVX2' != 'AVX512'"]


def test_json_round_trip_keeps_every_field():
    value = Provenance(device=HERE, commit="abc", command="elastic profile", versions={"python": "3.11.2"})
    assert Provenance.from_json(value.to_json()) == value


def test_collected_provenance_names_the_libraries_that_did_the_work():
    value = collect(HERE)
    assert value.device == HERE
    assert {"python", "torch", "timm", "numpy"} <= set(value.versions)


def test_commit_is_a_git_revision_or_says_that_there_is_none():
    assert re.fullmatch(r"unknown|[0-9a-f]{7,40}(-dirty)?", git_commit())
