"""The benchmark of saving runs, measures every saver, and leaves nothing behind."""

from checkpoints_manifest.bench import save


def test_every_saver_is_measured_and_printed(tmp_path):
    result = save.measure(0.3, 1, tmp_path)
    assert {save.MEMCPY, save.OURS, "torch.save", "torch DCP, asynchronous"} <= set(
        result["seconds"]
    )
    for stall, total in result["seconds"].values():
        assert 0 < stall <= total
    table = save.table(result)
    assert table.count("\n| ") == len(result["seconds"])
    assert "Verifying, GB/s of one core: bytes " in table
    assert list(tmp_path.iterdir()) == []
