"""Records of input files."""

import dataclasses
import hashlib
from pathlib import Path

from pipeline.sources import ShardPart
from pipeline.sources.inputs import InputShard
from pipeline.storage.input_scans import Scan, read_scans, replace_scans, write_scans

SCAN = Scan(
    name="a",
    path="in/a.tar",
    size_bytes=8,
    updated_sec=1.5,
    fingerprint="f",
    limits=(10, 20),
    parts=(ShardPart(0, 2, 0, 4096), ShardPart(2, None, 4096, None)),
    unit="u",
)


def test_records_are_a_file_called_by_its_hash_and_come_back_as_they_were(tmp_path: Path) -> None:
    other = dataclasses.replace(SCAN, name="b", parts=(ShardPart(),), unit="")
    path = write_scans(str(tmp_path), [other, SCAN])
    content = (
        b'[["a","in/a.tar",8,1.5,"f",[10,20],[[0,2,0,4096],[2,null,4096,null]],"u"],'
        b'["b","in/a.tar",8,1.5,"f",[10,20],[[0,null,0,null]],""]]'
    )
    assert Path(path).read_bytes() == content
    assert path == f"{tmp_path}/units/inputs/{hashlib.sha256(content).hexdigest()[:32]}.json"
    assert read_scans(str(tmp_path)) == ({"a": [SCAN], "b": [other]}, [path])


def test_a_record_fits_a_file_of_its_path_size_time_and_limits(tmp_path: Path) -> None:
    shard = InputShard(path="in/a.tar", file="a.tar", name="a", fingerprint="", size_bytes=8, updated_sec=1.5)
    assert SCAN.fits(shard, (10, 20))
    assert not SCAN.fits(shard, (10, 21))
    for other in ({"path": "in/b.tar"}, {"size_bytes": 9}, {"updated_sec": 1.25}):
        assert not SCAN.fits(dataclasses.replace(shard, **other), (10, 20))


def test_all_records_are_one_file_after_they_were_replaced(tmp_path: Path) -> None:
    other = dataclasses.replace(SCAN, name="b")
    old = [write_scans(str(tmp_path), [SCAN]), write_scans(str(tmp_path), [other])]
    for paths in (old, [f"{tmp_path}/units/inputs/gone.json"]):  # the second time the new file is the old one
        replace_scans(str(tmp_path), [other, SCAN], [*paths, write_scans(str(tmp_path), [SCAN, other])])
        found, left = read_scans(str(tmp_path))
        assert found == {"a": [SCAN], "b": [other]} and len(left) == 1 and left[0] not in old
