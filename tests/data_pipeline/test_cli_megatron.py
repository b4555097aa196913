import argparse

import pytest

from data_pipeline.canonical import sha256_file
from data_pipeline.cli_megatron import add_commands, progress_line, verify_lines
from data_pipeline.errors import DatasetError
from data_pipeline.megatron import write_megatron
from data_pipeline.megatron_index import MegatronIndex


def call(*words):
    parser = argparse.ArgumentParser(prog="tripod")
    commands = parser.add_subparsers(required=True)

    def add(name, run, text, example):
        assert name == "data index-megatron"
        sub = commands.add_parser("index-megatron", help=text, epilog=example)
        sub.set_defaults(run=run)
        return sub

    add_commands(add)
    arguments = parser.parse_args(["index-megatron", *map(str, words)])
    return arguments.run(arguments)


@pytest.fixture
def files(tmp_path):
    for name in ("a", "b"):
        write_megatron(tmp_path / name, [[5, 6, 0], [7, 8, 9, 0]], "uint16")
    return tmp_path


def test_two_paths_with_weights_are_indexed_and_verified(files, capsys):
    out = files / "data"
    words = ["--paths", "--weights", "2, 1", "--num-samples", 9, "--seq-len", 3, "--eod", 0]
    assert call(files / "a", files / "b", "--out", out, "--vocab-size", 10, *words) == 0
    printed = capsys.readouterr().out
    digest = sha256_file(out / "index.json")
    assert f"index {digest}" in printed
    assert "note: EOD unknown" in printed
    assert "E = 4 epochs" in printed
    found = MegatronIndex.load(out)
    assert found.weights == [2.0, 1.0]
    assert found.data["neox"]["epochs"] == [4, 2]
    lines = verify_lines(out, digest)
    assert lines[0] == f"ok  {out}: index {digest}"
    assert any("E = 4" in line for line in lines)


def test_a_split_and_a_preshuffled_set_are_indexed(files, capsys):
    common = [files / "a", "--vocab-size", 10, "--eod", 0]
    split = ["--split", "969, 30, 1", "--num-samples", 2, "--seq-len", 3]
    assert call(*common, "--out", files / "s", *split, "--eod-policy", "appended") == 0
    assert MegatronIndex.load(files / "s").data["neox"]["split"] == "969, 30, 1"
    assert call(*common, "--out", files / "p", "--preshuffled") == 0
    assert MegatronIndex.load(files / "p").data["neox"] is None
    assert "not documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "1", "--num-samples", 2], "--seq-len: expected"),
        (["--split", "1", "--seq-len", 3], "give one of them"),
        (["--paths", "--weights", "1,2", "--seq-len", 3, "--num-samples", 2], "--weights"),
        (["--paths", "--weights", "x", "--seq-len", 3, "--num-samples", 2], "weight"),
        (["--split", "1", "--seq-len", 3, "--num-samples", 0], "neox"),
    ],
)
def test_requests_without_meaning_are_refused(files, words, message):
    with pytest.raises(ValueError, match=message):
        call(files / "a", "--out", files / "data", "--vocab-size", 10, *words)
    assert not (files / "data").exists()


def test_one_way_of_reading_must_be_chosen(files, capsys):
    with pytest.raises(SystemExit):
        call(files / "a", "--out", files / "data", "--vocab-size", 10)
    assert "--preshuffled" in capsys.readouterr().err


def test_verification_names_the_damaged_file(files):
    call(files / "a", "--out", files / "data", "--vocab-size", 10, "--preshuffled")
    (files / "a.bin").write_bytes((files / "b.bin").read_bytes()[::-1])
    with pytest.raises(DatasetError, match=r"a\.bin: sha256"):
        verify_lines(files / "data")


def test_progress_says_how_long_it_will_take(monkeypatch, capsys):
    times = iter([0.0, 1.0, 3.0])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    report = progress_line(4_000_000_000)
    report(1_000_000_000)
    report(1_000_000_000)
    assert capsys.readouterr().err == "2.0 of 4.0 GB, 3 s left\n"
