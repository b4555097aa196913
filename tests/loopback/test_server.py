"""The loopback Hub against the client it was made for: what it accepts, refuses and breaks."""

import hashlib
import json
import subprocess
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.loopback.faults import Answer, broken, too_many
from tests.loopback.fixtures import serving
from tests.loopback.server import TOKEN

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")
REPO = "org/toy"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with serving(tmp_path / "loopback", monkeypatch) as served:
        yield served


@pytest.fixture
def api(hub):
    found = HfApi(endpoint=hub.endpoint, token=TOKEN)
    found.create_repo(REPO)
    return found


def add(**files):
    return [CommitOperationAdd(name.replace("__", "."), data) for name, data in files.items()]


def commit(api, revision="main", parent=None, message="more", **files):
    return api.create_commit(
        REPO, add(**files), commit_message=message, revision=revision, parent_commit=parent
    ).oid


@pytest.mark.parametrize("kind", ["model", "dataset"])
@pytest.mark.parametrize("part_bytes", [None, 4000])
def test_what_is_pushed_comes_back(hub, tmp_path, kind, part_bytes):
    hub.part_bytes = part_bytes
    api = HfApi(endpoint=hub.endpoint, token=TOKEN)
    api.create_repo(REPO, repo_type=kind)
    readme = b"---\nlicense: mit\n---\ntext"
    oid = api.create_commit(
        REPO, add(model__safetensors=WEIGHTS, README__md=readme), commit_message="first",
        repo_type=kind,
    ).oid  # fmt: skip
    assert api.repo_info(REPO, repo_type=kind).sha == oid
    listed = {item.path: item for item in api.list_repo_tree(REPO, repo_type=kind)}
    assert set(listed) == {".gitattributes", "README.md", "model.safetensors"}
    assert listed["model.safetensors"].lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    assert listed["model.safetensors"].size == len(WEIGHTS)
    (info,) = api.get_paths_info(REPO, ["README.md", "absent"], repo_type=kind)
    assert info.blob_id == listed["README.md"].blob_id and info.lfs is None
    folder = snapshot_download(
        REPO, repo_type=kind, endpoint=hub.endpoint, cache_dir=tmp_path / "cache", token=TOKEN
    )
    assert (tmp_path / "cache").exists()
    assert Path(folder, "model.safetensors").read_bytes() == WEIGHTS
    assert not api.verify_repo_checksums(
        REPO, repo_type=kind, cache_dir=tmp_path / "cache"
    ).mismatches


def test_git_itself_finds_nothing_wrong(hub, api):
    commit(api, a__json=b"{}")
    commit(api, model__safetensors=WEIGHTS)
    api.create_commit(REPO, [CommitOperationDelete("a.json")], commit_message="less")
    path = hub.repository("model", REPO).path
    subprocess.run(["git", "fsck", "--strict"], cwd=path, check=True, capture_output=True)
    assert {item.path for item in api.list_repo_tree(REPO)} == {
        ".gitattributes", "model.safetensors",
    }  # fmt: skip


def test_a_stale_parent_is_refused(api):
    first = commit(api, a=b"1")
    second = commit(api, a=b"2", parent=first)
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, a=b"3", parent=first)
    assert api.repo_info(REPO).sha == second


def test_what_exists_and_what_does_not(hub, api):
    head = commit(api, a=b"1")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    api.create_repo(REPO, exist_ok=True)
    api.create_branch(REPO, branch="step0", revision=head)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="step0")
    api.create_tag(REPO, tag="v1", revision="step0")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPO, tag="v1", exist_ok=False)
    refs = api.list_repo_refs(REPO)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": head, "step0": head}
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", head)]
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision="step9")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("org/none")
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "folder"))
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(REPO, "none", endpoint=hub.endpoint)
    api.delete_branch(REPO, branch="step0")
    assert [ref.name for ref in api.list_repo_refs(REPO).branches] == ["main"]


def test_history_comes_in_pages_newest_first_with_dates_the_client_reads(hub, api):
    hub.page = 2
    made = [commit(api, a=bytes([n]), message=f"change {n}") for n in range(4)]
    found = api.list_repo_commits(REPO)
    assert [item.commit_id for item in found][:4] == made[::-1]
    assert found[-1].title == "initial commit"
    assert found[0].created_at.year >= 2024


def test_objects_are_what_their_name_says(hub, api):
    name = hashlib.sha256(WEIGHTS).hexdigest()
    answer = httpx2.put(f"{hub.endpoint}/lfs/object/{name}", content=WEIGHTS[:-1])
    assert answer.status_code == 400
    assert not hub.object_path(name).exists()
    # A commit may not point to an object that was never uploaded.
    line = {"key": "lfsFile", "value": {"path": "w", "algo": "sha256", "oid": name, "size": 3}}
    body = "\n".join(json.dumps(i) for i in ({"key": "header", "value": {"summary": "x"}}, line))
    answer = httpx2.post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main", content=body.encode(),
        headers={"Authorization": f"Bearer {TOKEN}"},
    )  # fmt: skip
    assert answer.status_code == 400 and "does not exist" in answer.text


def test_changes_need_the_token(hub, api):
    stranger = HfApi(endpoint=hub.endpoint, token="hf_other")
    before = hub.repository("model", REPO).refs("heads")
    with pytest.raises(HfHubHTTPError):
        stranger.create_branch(REPO, branch="step0")
    assert hub.repository("model", REPO).refs("heads") == before


def test_ranges(hub, api):
    commit(api, model__safetensors=WEIGHTS, small=b"0123456789")
    base = f"{hub.endpoint}/{REPO}/resolve/main"
    for name, data in (("small", b"0123456789"), ("model.safetensors", WEIGHTS)):
        answer = httpx2.get(f"{base}/{name}", headers={"Range": "bytes=3-6"}, follow_redirects=True)
        assert (answer.status_code, answer.content) == (206, data[3:7])
        assert answer.headers["Content-Range"] == f"bytes 3-6/{len(data)}"
    past = httpx2.get(f"{base}/small", headers={"Range": "bytes=10-"})
    assert past.status_code == 416


def test_a_download_that_breaks_goes_on_where_it_was(
    hub,
    api,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    commit(api, model__safetensors=WEIGHTS)
    hub.faults.add("GET", "/resolve/", cut_answer=5000)
    path = hf_hub_download(
        REPO, "model.safetensors", endpoint=hub.endpoint, local_dir=tmp_path / "here"
    )
    assert Path(path).read_bytes() == WEIGHTS
    assert [r[2] for r in hub.requests if r[0] == "GET" and "/resolve/" in r[1]] == [200, 206]


def test_the_client_does_not_see_a_corrupted_object(hub, api, tmp_path):
    """Why pull hashes what it gets: the downloader checks the size only."""
    commit(api, model__safetensors=WEIGHTS)
    hub.corrupt_object(hashlib.sha256(WEIGHTS).hexdigest())
    path = hf_hub_download(
        REPO, "model.safetensors", endpoint=hub.endpoint, local_dir=tmp_path / "here"
    )
    assert Path(path).read_bytes() != WEIGHTS


@pytest.mark.parametrize(
    ("fault", "made"),
    [
        ({"answer": broken()}, False),
        ({"answer": too_many("7")}, False),
        ({"cut_upload": 10}, False),
        ({"cut_answer": -1}, True),
        ({"mangle": lambda answer: Answer(200, b"[]")}, True),
    ],
)
def test_faults_strike_once_and_say_whether_the_commit_was_made(hub, api, fault, made):
    head = commit(api, a=b"1")
    hub.faults.add("POST", "/commit/", **fault)
    with pytest.raises((HfHubHTTPError, httpx2.HTTPError, TypeError)):
        commit(api, a=b"2", parent=head)
    assert (api.repo_info(REPO).sha != head) is made
    commit(api, a=b"3")


def test_another_writer_between_two_of_our_requests(hub, api):
    head = commit(api, a=b"1")
    repository = hub.repository("model", REPO)
    hub.faults.add(
        "POST", "/commit/", before=lambda: repository.commit("main", {"b": b"2"}, (), "theirs")
    )
    with pytest.raises(HfHubHTTPError, match="412"):
        commit(api, a=b"2", parent=head)


def test_an_upload_that_breaks_is_sent_again_whole(hub, api):
    hub.faults.add("PUT", "/lfs/object/", cut_upload=5000)
    commit(api, model__safetensors=WEIGHTS)
    assert hub.object_path(hashlib.sha256(WEIGHTS).hexdigest()).read_bytes() == WEIGHTS
