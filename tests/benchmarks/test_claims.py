from pathlib import Path

from benchmarks.serving.claims import write_quality
from elastic.profile.store import load_quality
from elastic.submodel import Space

SPACE = Space(depth=2, ffn_dims=(8, 16), embed_dims=(4, 8))


def test_what_is_claimed_is_what_a_server_reads(tmp_path: Path) -> None:
    write_quality(tmp_path, SPACE, {SPACE.smallest: 0.5, SPACE.full: 1.0})
    table = load_quality(tmp_path)
    assert table.query_submodels() == [SPACE.smallest, SPACE.full]
    assert {(row.embed_dim, row.recall_at_1) for row in table.rows} == {(4, 0.5), (8, 0.5), (4, 1.0), (8, 1.0)}
