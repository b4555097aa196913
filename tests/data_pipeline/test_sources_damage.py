"""Flipped bytes give a named error or a counted record, never another exception or a crash."""

import gzip
import json
import random
from collections import Counter

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_pipeline.errors import DatasetError
from data_pipeline.sources import open_source

ROWS = [{"text": f"text {i} é", "info": {"n": i}} for i in range(120)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def jsonl(root, suffix, data):
    (root / f"a.jsonl{suffix}").write_bytes(data)
    return root / f"a.jsonl{suffix}", {"kind": "jsonl", "root": str(root)}


def parquet(root):
    pq.write_table(pa.Table.from_pylist(ROWS), root / "a.parquet", row_group_size=50)
    return root / "a.parquet", {"kind": "parquet", "root": str(root)}


def arrow(root):
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(ROWS).save_to_disk(root)
    return next(root.glob("*.arrow")), {"kind": "hf_dataset", "path": str(root)}


FORMATS = {
    "jsonl": lambda root: jsonl(root, "", LINES),
    "jsonl.gz": lambda root: jsonl(root, ".gz", gzip.compress(LINES, mtime=0)),
    "jsonl.zst": lambda root: jsonl(root, ".zst", zstandard.compress(LINES)),
    "parquet": parquet,
    "arrow": arrow,
}


@pytest.mark.parametrize("name", FORMATS)
def test_flipped_bytes_are_a_named_error_or_a_counted_record(tmp_path, name):
    path, spec = FORMATS[name](tmp_path)
    whole, draw, outcomes = path.read_bytes(), random.Random(0), Counter()
    for _ in range(250):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 3])):
            data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        path.unlink()  # a new file: the last one may still be mapped
        path.write_bytes(data)
        source = open_source({**spec, "malformed": "skip", "meta_fields": ["info.n"]})
        counts = Counter()
        try:
            documents = list(source.read(source.files[0], counts))
        except DatasetError as error:  # a renamed column
            assert str(path) in str(error)
            outcomes["error"] += 1
        else:
            assert len(documents) == counts["documents"] <= len(ROWS) * 2
            outcomes["counted" if counts["skipped_malformed"] else "other text"] += 1
    assert outcomes["counted"] > 50
