"""The suite directory is read as it is, and what does not fit is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis.rungs import AnalysisError, SuiteDir, verified_root
from analysis.subject import Subject
from checkpoints_manifest.names import canonical_parameters


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "toy", symlinks=True))


def test_rungs_are_sorted_by_size_and_have_their_checkpoints(trained: Path) -> None:
    suite = SuiteDir.load(trained)
    assert [rung.name for rung in suite.rungs] == ["toy-8k", "toy-8k-seed1", "toy-50k"]
    assert [rung.init_seed for rung in suite.rungs] == [0, 1, 0]
    for rung in suite.rungs:
        assert [checkpoint.step for checkpoint in rung.checkpoints] == [0, 2, 4, 8]
        assert len({checkpoint.commit for checkpoint in rung.checkpoints}) == 4
        assert all(len(checkpoint.commit) == 40 for checkpoint in rung.checkpoints)


def test_parameters_are_counted_with_and_without_embeddings(trained: Path) -> None:
    rung = SuiteDir.load(trained).rungs[0]
    model = Subject(rung).model
    assert rung.parameters[0] == sum(p.numel() for p in model.parameters())
    embeddings = 2 * model.config.vocab_size * model.config.hidden_size
    assert rung.parameters[0] - rung.parameters[1] == embeddings


def test_weights_on_the_hub_must_be_those_of_the_ledger(copy: Path) -> None:
    rung = SuiteDir.load(copy).rungs[0]
    checkpoint, other = rung.checkpoints[1], rung.checkpoints[2]
    assert verified_root(checkpoint) == checkpoint.weights_root
    weights = load_file(checkpoint.weights)
    name = sorted(weights)[0]
    weights[name].view(-1)[0] += 1e-3
    checkpoint.weights.unlink()
    save_file(weights, checkpoint.weights, metadata={"format": "pt"})
    subject = Subject(rung)
    with pytest.raises(AnalysisError, match="expected weights root"):
        subject.load(checkpoint)
    checkpoint.weights.unlink()
    shutil.copy(other.weights, checkpoint.weights)  # another step's weights under this label
    with pytest.raises(AnalysisError, match="expected weights root"):
        subject.load(checkpoint)


def test_a_checkpoint_that_was_not_published_is_named(copy: Path) -> None:
    (copy / "hub" / "models--tripod--toy-8k" / "refs" / "step4").unlink()
    with pytest.raises(AnalysisError, match=r"tripod/toy-8k at revision step4.*publish"):
        SuiteDir.load(copy)


def test_runs_with_another_order_are_not_one_suite(copy: Path) -> None:
    path = copy / "toy-50k" / "config.json"
    config = json.loads(path.read_text())
    config["data"]["seed"] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(AnalysisError, match="share one data section"):
        SuiteDir.load(copy)


def test_a_directory_without_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="found none"):
        SuiteDir.load(tmp_path)


def test_a_dataset_that_is_not_the_suites_is_refused(copy: Path) -> None:
    for rung in ("toy-8k", "toy-8k-seed1", "toy-50k"):
        path = copy / rung / "config.json"
        config = json.loads(path.read_text())
        config["data"]["index_digest"] = "0" * 64
        path.write_text(json.dumps(config))
    with pytest.raises(AnalysisError, match="index digest"):
        SuiteDir.load(copy)


def test_swapping_leaves_no_trace_of_the_weights_before(trained: Path) -> None:
    rung = SuiteDir.load(trained).rungs[0]
    subject = Subject(rung)
    for checkpoint in (*rung.checkpoints, rung.checkpoints[0]):
        subject.load(checkpoint)
        file = load_file(checkpoint.weights)
        held = canonical_parameters(subject.model)
        assert held.keys() == file.keys()
        assert all(torch.equal(held[name], file[name]) for name in file)


def test_a_checkpoint_of_another_rung_is_refused(trained: Path) -> None:
    first, second, _ = SuiteDir.load(trained).rungs
    with pytest.raises(AnalysisError, match="toy-8k-seed1"):
        Subject(first).load(second.checkpoints[0])


@pytest.mark.parametrize(("field", "value"), [("overlay", "0" * 64), ("order", "preshuffled-v1")])
def test_an_order_that_the_probes_would_misname_is_refused(
    copy: Path, field: str, value: str
) -> None:
    suite = SuiteDir.load(copy)
    suite.data[field] = value
    with pytest.raises(AnalysisError, match="expected"):
        suite.order(100)
