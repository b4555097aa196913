import json

import pytest

from data_pipeline.cli_proofs import add_commands
from data_pipeline.digests import chain_over, split_leaves
from data_pipeline.errors import DatasetError
from data_pipeline.reading import Reading
from tests.data_pipeline.command import run_command
from tests.data_pipeline.runs import B, S, make_run


def tripod(*words):
    return run_command(add_commands, *words)


@pytest.fixture
def run(built, tmp_path):
    make_run(tmp_path / "suite" / "a", built)
    return tmp_path / "suite" / "a"


def test_verify_order(run, built, capsys):
    assert tripod("verify", "order", run.parent, "--against-index") == 0
    assert "12 steps recomputed from the shards" in capsys.readouterr().out
    make_run(run.parent / "b", built, fed=lambda t, ids: ids[::-1])
    assert tripod("verify", "order", run.parent, "--without-data", "--json") == 1
    verdict = json.loads(capsys.readouterr().out)
    assert verdict["ok"] is False
    assert "a and b: they read different tokens first at step 0" in verdict["failures"][0]
    assert tripod("verify", "order", run, run.parent / "b") == 1
    assert capsys.readouterr().out.startswith("FAIL")


@pytest.mark.parametrize("options", [[], ["--sequences"], ["--sequences", "--from-start"]])
def test_prove_and_check_a_step(run, options, tmp_path, capsys):
    proof = tmp_path / "proof.json"
    assert tripod("prove", "step", run, "--step", 5, "--out", proof, *options) == 0
    assert json.loads(proof.read_bytes())["checkpoint"] == 8
    chain = json.loads((run / "manifest.jsonl").read_text().splitlines()[2])["order"]["chain"]
    capsys.readouterr()
    for trust in (["--chain", chain], ["--run", run]):
        assert tripod("prove", "check", proof, *trust, "--json") == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["leaf_opened"] is ("--sequences" in options)
        assert shown["order_bound"] is ("--from-start" in options)
    assert tripod("prove", "check", proof, "--chain", "00" * 32) == 1
    out = capsys.readouterr().out
    assert out.startswith("FAIL")
    assert "chain of checkpoint 8: expected 0000" in out


def test_ids_are_checked_against_a_proof(run, built, tmp_path, capsys):
    proof, ids = tmp_path / "proof.json", Reading.of_run(run).reader().ids(5)
    assert tripod("prove", "step", run, "--step", 5, "--sequences", "--out", proof) == 0
    path = tmp_path / "ids.json"
    for content, status in (
        (ids.tolist(), 0),
        ({"3": ids[3].tolist(), "1": ids[1].tolist()}, 0),
        (ids[::-1].tolist(), 1),
        ({"2": ids[3].tolist()}, 1),
    ):
        path.write_text(json.dumps(content))
        assert tripod("prove", "check", proof, "--run", run, "--ids", path) == status
    assert "sequence digest of row 2: expected" in capsys.readouterr().out
    with pytest.raises(DatasetError, match="64 hex digits, found 'xy'"):
        tripod("prove", "check", proof, "--chain", "xy")
    path.write_text('[["x"]]')
    with pytest.raises(DatasetError, match="expected rows of integers"):
        tripod("prove", "check", proof, "--run", run, "--ids", path)


def test_steps_without_a_checkpoint_cannot_be_proven(run):
    with pytest.raises(DatasetError, match=r"expected a checkpoint after step 12 .* found \[0, 4"):
        tripod("prove", "step", run, "--step", 12)
    with pytest.raises(DatasetError, match=r"found \[0, 4, 8, 12\]"):
        tripod("prove", "step", run, "--step", 1, "--checkpoint", 3)


def test_a_proof_goes_to_standard_output(run, capsys):
    assert tripod("prove", "step", run, "--step", 5) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 5


def test_a_promise_made_before_training_is_kept(run, built, tmp_path, capsys):
    out = tmp_path / "order"
    assert tripod("prove", "promise", run, "--steps", 20, "--out", out) == 0
    assert "commit to it by publishing" in capsys.readouterr().out
    reading = [built, "--seq-len", S, "--batch-size", B, "--seed", 0, "--steps", 20]
    assert tripod("prove", "promise", *reading, "--out", tmp_path / "again") == 0
    for name in ("order.json", "order.log"):
        assert (out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    assert tripod("verify", "promise", out, run.parent) == 0
    proof = tmp_path / "proof.json"
    assert tripod("prove", "step", run, "--step", 5, "--out", proof) == 0
    assert tripod("prove", "check", proof, "--promise", out) == 0
    leaves = split_leaves((out / "order.log").read_bytes())
    start = json.loads((out / "order.json").read_bytes())["start"]
    chain = chain_over(bytes.fromhex(start), leaves[:8]).hex()
    assert tripod("prove", "check", proof, "--chain", chain) == 0
    make_run(run.parent / "b", built, fed=lambda t, ids: ids[::-1] if t == 7 else ids)
    capsys.readouterr()
    assert tripod("verify", "promise", out, run.parent, "--json") == 1
    (failure,) = json.loads(capsys.readouterr().out)["failures"]
    assert failure == "b: 1 of 12 steps are not what was promised, the first is step 7"
    none = ["--steps", 3, "--out", tmp_path / "none"]
    with pytest.raises(DatasetError, match="expected no sizes, seed or overlay for a run"):
        tripod("prove", "promise", run, "--seed", 1, *none)
    with pytest.raises(DatasetError, match=r"--batch-size and --seed, found \['seed'\]"):
        tripod("prove", "promise", built, "--seed", 1, *none)
    with pytest.raises(DatasetError, match="--steps"):
        tripod("prove", "promise", run, "--steps", 0, "--out", tmp_path / "none")
