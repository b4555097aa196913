"""A run says which engine computed it, and another one is refused until it is accepted by name."""

import dataclasses
import json

import pytest

from checkpoints_manifest import standalone
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Ledger, check_record, record_digest
from data_pipeline.canonical import canonical_json
from suite.config import ConfigError, EngineConfig, RunConfig, sibling_differences
from suite.engine_record import (
    EngineError,
    check_continues,
    computed_by,
    describe,
    engine_of,
    present_engine,
    promise_of,
    settle_engine,
    with_present_engine,
)
from suite.launch import write_config
from suite.train import compose
from tests.checkpoints_manifest.test_manifest import record as a_record

ZERO3 = EngineConfig(name="deepspeed", zero_stage=3)
REFERENCE = EngineConfig()


@pytest.fixture(scope="module")
def mapping():
    return compose("smoke", "smoke-20k")


@pytest.fixture
def run(mapping, tmp_path):
    """A run directory whose ZeRO-3 engine has written checkpoints 0 and 4."""
    config = dataclasses.replace(RunConfig.from_mapping(mapping), engine=ZERO3)
    write_config(config, tmp_path)
    for step in (0, 4):
        enter(tmp_path, step, fields_of(tmp_path, ZERO3, 2))
    return config, tmp_path


def newest(run_dir):
    records = Ledger(run_dir / "manifest.jsonl").records()
    return records[-1] if records else None


def fields_of(run_dir, engine, ranks):
    """What a rank on this engine would write into the next record."""
    return check_continues(run_dir, describe(engine, ranks), newest(run_dir))


def enter(run_dir, step, fields):
    ledger = Ledger(run_dir / "manifest.jsonl")
    before = ledger.records()
    previous = record_digest(before[-1]) if before else None
    ledger.append(a_record(step, previous, **fields))


@pytest.mark.parametrize(
    ("settings", "promise"),
    [
        ({}, "elastic"),
        ({"name": "deepspeed", "zero_stage": 0}, "elastic"),
        ({"name": "deepspeed", "zero_stage": 1}, "elastic"),
        ({"name": "deepspeed", "zero_stage": 2}, "fixed-layout"),
        ({"name": "deepspeed", "zero_stage": 3}, "fixed-layout"),
        ({"name": "deepspeed", "offload_optimizer": True}, "fixed-layout"),
        ({"name": "deepspeed", "tensor_parallel": 2}, "fixed-layout"),
    ],
)
def test_only_layouts_whose_gradients_are_reduced_as_integers_are_elastic(settings, promise):
    engine = EngineConfig(**settings)
    assert promise_of(engine) == promise
    assert ("ranks" in describe(engine, 4)) == (promise == "fixed-layout")


def test_a_run_of_the_reference_engine_has_the_record_it_always_had(mapping):
    config = RunConfig.from_mapping(mapping)
    assert "engine" not in config.to_record()
    without = {key: value for key, value in mapping.items() if key != "engine"}
    assert RunConfig.from_mapping(without).to_bytes() == config.to_bytes()
    assert RunConfig.from_mapping(json.loads(config.to_bytes())).engine == REFERENCE


def test_another_engine_is_part_of_the_record_and_a_difference_between_siblings(mapping):
    config = RunConfig.from_mapping(mapping)
    other = dataclasses.replace(config, engine=ZERO3)
    assert RunConfig.from_mapping(json.loads(other.to_bytes())).engine == ZERO3
    lines = sibling_differences({"a": config.to_record(), "b": other.to_record()}, ())
    assert "engine.zero_stage: a has None, b has 3" in lines


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"name": "megatron"}, "engine.name='megatron'"),
        ({"name": "deepspeed", "zero_stage": 4}, "engine.zero_stage=4"),
        ({"name": "deepspeed", "tensor_parallel": 0}, "engine.tensor_parallel=0"),
        ({"zero_stage": 3}, "has no settings of its own"),
    ],
)
def test_a_bad_engine_is_named(settings, word):
    with pytest.raises(ConfigError, match=word):
        EngineConfig(**settings)


def test_records_name_the_engine_only_where_it_is_not_the_reference_alone(run, tmp_path_factory):
    config, run_dir = run
    assert computed_by(run_dir, 0, 4) == describe(ZERO3, 2)
    empty = tmp_path_factory.mktemp("reference")
    assert fields_of(empty, REFERENCE, 2) == {}
    assert fields_of(empty, ZERO3, 2)["engine"]["since"] == 0
    # After a change the reference is named too.
    settle_engine(dataclasses.replace(config, engine=REFERENCE), run_dir, 5, ("engine",))
    assert fields_of(run_dir, REFERENCE, 5) == {
        "engine": {"name": "reference", "promise": "elastic", "since": 4}
    }


def test_a_change_is_refused_then_accepted_then_settled(run):
    config, run_dir = run
    other = dataclasses.replace(config, engine=REFERENCE)
    with pytest.raises(
        ConfigError, match=r"zero_stage: expected 3, found None(.|\n)*--accept-engine-change"
    ):
        settle_engine(other, run_dir, 2)
    with pytest.raises(EngineError, match="name: expected 'deepspeed', found 'reference'"):
        fields_of(run_dir, REFERENCE, 2)
    with pytest.raises(ConfigError):
        settle_engine(other, run_dir, 2, ("numerics",))
    assert not (run_dir / "engine.json").exists()
    settle_engine(other, run_dir, 2, ("engine",))
    settle_engine(other, run_dir, 3)
    fields_of(run_dir, REFERENCE, 5)
    assert with_present_engine(config, run_dir).engine == REFERENCE
    # What is stored is what the run was started with.
    assert json.loads((run_dir / "config.json").read_text())["engine"]["zero_stage"] == 3
    assert (engine_of(run_dir, config, 4), engine_of(run_dir, config, 5)) == (ZERO3, REFERENCE)
    # As long as no checkpoint names the new engine, the way back is open; afterwards it is not.
    settle_engine(config, run_dir, 2)
    assert present_engine(config, run_dir) == ZERO3
    assert computed_by(run_dir, 0, 6) == describe(ZERO3, 2)
    settle_engine(other, run_dir, 2, ("engine",))
    enter(run_dir, 6, fields_of(run_dir, REFERENCE, 2))
    with pytest.raises(ConfigError, match="expected 'reference', found 'deepspeed'"):
        settle_engine(config, run_dir, 2)


def test_a_fixed_layout_keeps_its_number_of_ranks(run):
    config, run_dir = run
    settle_engine(config, run_dir, 2)
    with pytest.raises(ConfigError, match="ranks: expected 2, found 4"):
        settle_engine(config, run_dir, 4)
    settle_engine(config, run_dir, 4, ("engine",))
    assert present_engine(config, run_dir) == ZERO3
    assert fields_of(run_dir, ZERO3, 4)["engine"]["since"] == 4


def test_a_segment_across_a_change_has_no_one_engine(run):
    config, run_dir = run
    settle_engine(dataclasses.replace(config, engine=REFERENCE), run_dir, 2, ("engine",))
    # Before any checkpoint of the new engine, and after it.
    for step in (6, 7):
        with pytest.raises(EngineError, match=r"changed at step 4, inside 0\.\.6"):
            computed_by(run_dir, 0, 6)
        assert computed_by(run_dir, 4, 6) == describe(REFERENCE, 1)
        assert computed_by(run_dir, 0, 4) == describe(ZERO3, 2)
        enter(run_dir, step, fields_of(run_dir, REFERENCE, 2))


BROKEN = [
    {"stage": 3}, {"promise": "exact"}, {"since": -1}, {"since": True}, {"version": ""},
    {"offload_optimizer": 1}, {"tensor_parallel": 0}, {"ranks": 0}, {"options": {"a": 1}},
    {"options": []}, {"name": ""},
]  # fmt: skip


@pytest.mark.parametrize("change", [{}, *BROKEN])
def test_both_readers_of_records_know_the_engine_and_nothing_else_about_it(run, change):
    _, run_dir = run
    (field,) = fields_of(run_dir, ZERO3, 2).values()
    record = {**a_record(0), "engine": {**field, **change}}
    for engine in (record["engine"], {"name": "reference", "promise": "elastic", "since": 3}):
        if engine is record["engine"] and change:
            with pytest.raises(CheckpointError, match="engine"):
                check_record(record, "a record")
            with pytest.raises(standalone.Wrong, match="engine"):
                standalone.parse_record(canonical_json(record), "a record")
        else:
            whole = {**record, "engine": engine}
            check_record(whole, "a record")
            assert standalone.parse_record(canonical_json(whole), "a record") == whole


@pytest.mark.parametrize("kind", ["recovery", "checkpoints"])
def test_a_checkpoint_that_is_in_no_ledger_counts_as_the_newest_state(run, kind):
    """A recovery checkpoint, or one that a killed process did not enter."""
    config, run_dir = run
    record = a_record(6, record_digest(newest(run_dir)), **fields_of(run_dir, ZERO3, 2))
    path = run_dir / kind / "step6" / "manifest.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(canonical_json(record))
    other = dataclasses.replace(config, engine=REFERENCE)
    settle_engine(other, run_dir, 2, ("engine",))
    assert check_continues(run_dir, describe(REFERENCE, 2), record)["engine"]["since"] == 6
    assert (engine_of(run_dir, config, 6), engine_of(run_dir, config, 7)) == (ZERO3, REFERENCE)
    # Where it cannot be read, the run goes on from the ledger's checkpoint, and says so.
    assert fields_of(run_dir, REFERENCE, 2)["engine"]["since"] == 4


def test_a_start_elsewhere_is_settled_too(run):
    config, run_dir = run
    settle_engine(config, run_dir, None)
    with pytest.raises(ConfigError, match="found 'reference'"):
        settle_engine(dataclasses.replace(config, engine=REFERENCE), run_dir, None)
