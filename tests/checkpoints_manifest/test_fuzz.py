"""Whatever lies in a manifest or a safetensors file: CheckpointError or the right answer.

No other exception, and not a byte written outside the target.
"""

import contextlib
import json
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load

from checkpoints_manifest.audit.deep import Weights
from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.hub_gc import collect_garbage
from checkpoints_manifest.manifest import Ledger, check_record, parse_record
from checkpoints_manifest.recovery import newest_recovery
from checkpoints_manifest.store import reconcile, verify_files
from checkpoints_manifest.tensor_digest import file_digests, tensor_leaf
from checkpoints_manifest.versions import migrate_record
from data_pipeline.canonical import canonical_json
from tests.checkpoints_manifest.conftest import save

FEW = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.integers(-2, 40) | st.sampled_from([1 << 31, 1 << 63, 1 << 64, -1, 10**400])
TRAVERSAL = st.sampled_from(["../x", "/etc/passwd", "a/../../b", "a\0b", "..", ".", "", "a\n"])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=5) | TRAVERSAL,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | TRAVERSAL, inner, max_size=3)
    ),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "BOOL", "F8", "", None]),
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.lists(NUMBERS, max_size=3) | JSON,
    }
)
HEADERS = st.dictionaries(st.text(max_size=4) | st.just("__metadata__"), ENTRY | JSON, max_size=3)
# As a writer would lay them out, so that some are sound.
SOUND = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 3), max_size=2)),
    max_size=3,
)


def lay_out(tensors):
    header, end = {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: item[0].encode()):
        count = {"F32": 4, "BF16": 2, "U8": 1}[dtype]
        for number in shape:
            count *= number
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + count]}
        end += count
    return header, end


def file_of(header, data):
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def read_both(path, data):
    """Our reader against the library's: what we accept, it accepts, with the same bytes."""
    path.write_bytes(data)
    try:
        found = file_digests(path).leaves
    except CheckpointError:
        return None
    try:
        tensors = load(data)
    except SafetensorError as error:
        pytest.fail(f"accepted what safetensors refuses: {error}")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        if str(tensor.dtype) == "torch.float32":
            raw = tensor.numpy().tobytes()
            assert found[name] == tensor_leaf(name, "F32", list(tensor.shape), raw)
    return found


@FEW
@given(HEADERS, st.binary(max_size=60))
def test_any_header_is_read_right_or_refused(tmp_path, header, data):
    read_both(tmp_path / "model.safetensors", file_of(header, data))
    with_weights = tmp_path / "model.safetensors"
    try:
        weights = Weights(tmp_path)
        for name in weights.sizes:
            weights.tensor(name)
    except CheckpointError:
        pass
    assert [p.name for p in tmp_path.iterdir()] == [with_weights.name]


@FEW
@given(SOUND, st.data())
def test_sound_files_are_read_and_damaged_ones_never_crash(tmp_path, tensors, data):
    header, size = lay_out(tensors)
    whole = file_of(header, data.draw(st.binary(min_size=size, max_size=size)))
    path = tmp_path / "model.safetensors"
    assert read_both(path, whole) is not None
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    read_both(path, whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:])
    path.write_bytes(data.draw(st.binary(max_size=64)))
    with pytest.raises(CheckpointError):
        file_digests(path)


@FEW
@given(JSON | st.binary(max_size=40))
def test_any_bytes_are_a_record_or_refused(value):
    data = value
    if not isinstance(value, bytes):
        data = json.dumps(value).encode("utf-8", "surrogatepass")
    for act in (lambda: parse_record(data, "here"), lambda: Ledger("here").parse(data + b"\n")):
        with pytest.raises(CheckpointError):
            act()
    if isinstance(value, dict):
        with pytest.raises(CheckpointError):
            migrate_record(value)


def outside(tmp_path):
    return {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@FEW
@given(data=st.data())
def test_a_record_that_lies_about_its_files_reads_and_writes_nothing_else(run_dir, tmp_path, data):
    """Paths that leave the directory, sizes and digests of any kind, in a stray checkpoint."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    record = Ledger(run_dir / "manifest.jsonl").records()[-1]
    key = data.draw(st.sampled_from(["path", "size", "sha256"]))
    number = data.draw(st.integers(0, 2))
    record["files"][number][key] = data.draw(JSON | TRAVERSAL)
    with pytest.raises(CheckpointError):
        check_record(record, "the record")
        verify_files(run_dir / "checkpoints/step4", record)
    for folder in ("checkpoints/step9", "recovery/step9"):
        place = run_dir / folder
        place.mkdir(parents=True, exist_ok=True)
        try:
            text = canonical_json(record | {"step": 9})
        except (TypeError, ValueError):
            text = json.dumps(record).encode("utf-8", "surrogatepass")
        (place / "manifest.json").write_bytes(text)
    before = outside(tmp_path)
    with pytest.raises(CheckpointError):
        reconcile(run_dir)
    assert newest_recovery(run_dir)[0] is None
    assert outside(tmp_path) == before


@FEW
@given(name=st.text(max_size=12) | TRAVERSAL, target=st.text(max_size=12) | TRAVERSAL)
def test_garbage_collection_stays_inside_whatever_links_and_refs_say(
    tmp_path_factory, name, target
):
    root = tmp_path_factory.mktemp("hub")
    victim = root / "victim"
    victim.write_bytes(b"x")
    hub = LocalHub(root / "hub")
    files = root / "files"
    files.mkdir()
    (files / "config.json").write_text("{}")
    commit = hub.publish("a/b", "step0", files)
    repository = hub.repository("a/b")
    try:
        (repository / "snapshots" / commit / "link").symlink_to(target)
        (repository / "blobs" / "link").symlink_to(victim)
        (repository / "refs" / name).write_text(target)
    except (OSError, ValueError):
        pass
    with contextlib.suppress(CheckpointError):
        collect_garbage(hub, "a/b")
    assert victim.read_bytes() == b"x"
    assert (repository / "snapshots" / commit / "config.json").read_text() == "{}"


def test_the_fuzzed_fixture_is_sound(empty_run):
    save(empty_run, 0)
    assert reconcile(empty_run) == []
