"""Old records are read by their own schema, unknown ones refused, none rewritten."""

import copy

import pytest

from checkpoints_manifest import versions
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.manifest import Ledger, check_record
from checkpoints_manifest.verify import verify_checkpoints
from checkpoints_manifest.versions import migrate_record


@pytest.fixture
def record(run_dir):
    return Ledger(run_dir / "manifest.jsonl").records()[-1]


def test_the_present_version_needs_no_migration(record):
    before = copy.deepcopy(record)
    found = migrate_record(record)
    assert found == before
    found["order"]["chain"] = ""
    assert record == before


@pytest.mark.parametrize("version", ["manifest-v2", "", None, 1, ["manifest-v1"]])
def test_an_unknown_version_is_refused_and_the_known_ones_are_named(run_dir, record, version):
    for act in (lambda r: migrate_record(r), lambda r: check_record(r, "a record")):
        with pytest.raises(CheckpointError, match=r"expected a record of manifest-v1, found"):
            act(record | {"schema": version})


def test_a_ledger_of_an_unknown_version_is_a_finding(run_dir):
    path = run_dir / "manifest.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"manifest-v1"', b'"manifest-v9"'))
    (finding,) = verify_checkpoints(run_dir).findings
    assert "line 1: expected a record of manifest-v1, found schema 'manifest-v9'" in finding


def test_migrations_are_followed_step_by_step_to_the_present(record, monkeypatch):
    known = versions.SCHEMA_FILES | {"manifest-v2": "", "manifest-v3": ""}
    monkeypatch.setattr(versions, "SCHEMA_FILES", known)
    monkeypatch.setattr(versions, "PRESENT", "manifest-v3")
    monkeypatch.setitem(versions.MIGRATIONS, "manifest-v1", ("manifest-v2", lambda r: r | {"a": 1}))
    with pytest.raises(CheckpointError, match="no way from manifest-v2 to manifest-v3"):
        migrate_record(record)
    monkeypatch.setitem(
        versions.MIGRATIONS, "manifest-v2", ("manifest-v3", lambda r: r | {"a": r["a"] + 1})
    )
    assert migrate_record(record) == record | {"a": 2, "schema": "manifest-v3"}


def test_every_version_but_the_present_one_has_a_way_on():
    assert set(versions.MIGRATIONS) == set(versions.SCHEMA_FILES) - {versions.PRESENT}
