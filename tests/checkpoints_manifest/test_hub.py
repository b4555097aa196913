"""The local Hub: what git, huggingface_hub and transformers themselves see."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import scan_cache_dir

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.export import export_revision, model_config, tokenizer_config
from checkpoints_manifest.gitobjects import AUTHOR, lfs_pointer
from checkpoints_manifest.hub import LocalHub
from checkpoints_manifest.names import canonical_parameters, load_canonical
from data_pipeline.canonical import sha256_file
from data_pipeline.tokenizer import train_bpe

HF = {
    "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 32, "hidden_act": "gelu_pytorch_tanh",
    "rotary_pct": 0.5, "rotary_emb_base": 5000, "use_parallel_residual": True,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
REPO = "tripod/toy"


def record(step):
    order = {"name": "order-v1", "index_digest": "a" * 64, "chain": "b" * 64}
    return {
        "suite": "toy",
        "rung": "toy",
        "step": step,
        "tokens": 8 * step,
        "weights_root": "c" * 64,
        "order": order,
    }


def model(seed):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(seed)
    return GPTNeoXForCausalLM(GPTNeoXConfig(**HF)).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([(Path(__file__)).read_text()], 300).data


def revision(tmp_path, tokenizer, step):
    from safetensors.torch import save_file

    folder = tmp_path / f"files-{step}"
    weights = tmp_path / f"weights-{step}.safetensors"
    save_file(
        {n: p.data for n, p in canonical_parameters(model(step)).items()}, weights, {"format": "pt"}
    )
    export_revision(folder, weights, HF, tokenizer, record(step))
    return folder


@pytest.fixture
def hub(tmp_path, tokenizer):
    found = LocalHub(tmp_path / "hub")
    for step in (0, 1, 16):
        found.publish(REPO, f"step{step}", revision(tmp_path, tokenizer, step))
    found.set_main(REPO, "step16")
    return found


def git(repository, *arguments, data=None, **environment):
    done = subprocess.run(
        ["git", *arguments], cwd=repository, input=data, capture_output=True, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.stdout.decode().strip()


def test_commits_are_those_that_git_makes(hub, tmp_path):
    repository = tmp_path / "git"
    repository.mkdir()
    git(repository, "init", "-q", ".")
    name, address = AUTHOR.split(" <")[0], AUTHOR.split("<")[1].split(">")[0]
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", name), ("EMAIL", address), ("DATE", "@0 +0000"))
    }
    parent = None
    for step in (0, 1, 16):
        lines = []
        for path in sorted((tmp_path / f"files-{step}").iterdir()):
            data = path.read_bytes()
            if path.suffix == ".safetensors":
                data = lfs_pointer(sha256_file(path), path.stat().st_size)
            blob = git(repository, "hash-object", "-w", "--stdin", data=data)
            lines.append(f"100644 blob {blob}\t{path.name}\n")
        tree = git(repository, "mktree", data="".join(lines).encode())
        message = f"{REPO} step{step}\n".encode()
        parents = ["-p", parent] if parent else []
        parent = git(repository, "commit-tree", tree, *parents, data=message, **who)
        assert hub.commit_of(REPO, f"step{step}") == parent


def test_huggingface_hubs_own_scanner_finds_every_revision_without_a_warning(hub):
    found = scan_cache_dir(hub.root)
    assert not found.warnings
    (repository,) = found.repos
    assert repository.repo_id == REPO
    refs = {ref: revision.commit_hash for revision in repository.revisions for ref in revision.refs}
    assert refs == {
        name: hub.commit_of(REPO, name) for name in ("step0", "step1", "step16", "main")
    }


def test_files_that_do_not_change_are_stored_once(hub):
    blobs = list((hub.repository(REPO) / "blobs").iterdir())
    # Three weights, three manifests, three cards; everything else is shared.
    assert len(blobs) == 9 + len(list((hub.root.parent / "files-0").iterdir())) - 3


def test_weights_are_links_not_copies(hub, tmp_path):
    snapshot = hub.repository(REPO) / "snapshots" / hub.commit_of(REPO, "step1")
    assert (snapshot / "model.safetensors").resolve().stat().st_ino == (
        tmp_path / "weights-1.safetensors"
    ).stat().st_ino
    assert not (snapshot / "model.safetensors").readlink().is_absolute()


@pytest.mark.parametrize("name", ["step1", "main", "commit"])
def test_transformers_loads_a_revision_to_the_same_bits(hub, name):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wanted = hub.commit_of(REPO, "step1") if name == "commit" else name
    step = 16 if name == "main" else 1
    keywords = {"revision": wanted, "cache_dir": hub.root, "local_files_only": True}
    loaded = AutoModelForCausalLM.from_pretrained(REPO, **keywords).eval()
    ids = torch.arange(24).view(2, 12) % 300
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(step)(input_ids=ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(REPO, **keywords)
    text = "def f(x):\n    return x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert 0 not in tokenizer(text)["input_ids"]


def test_configuration_carries_the_keys_of_both_generations():
    config = model_config(HF)
    assert (config["rotary_pct"], config["rotary_emb_base"]) == (0.5, 5000)
    assert config["rope_parameters"]["partial_rotary_factor"] == 0.5
    assert config["rope_parameters"]["rope_theta"] == 5000
    assert config["torch_dtype"] == "float32"
    assert tokenizer_config(HF)["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_publishing_again_changes_nothing_and_other_files_are_refused(hub, tmp_path):
    before = {p: p.lstat().st_mtime_ns for p in hub.root.rglob("*")}
    commit = hub.publish(REPO, "step1", tmp_path / "files-1")
    assert commit == hub.commit_of(REPO, "step1")
    assert {p: p.lstat().st_mtime_ns for p in hub.root.rglob("*")} == before
    (tmp_path / "files-1" / "README.md").write_text("another card")
    with pytest.raises(CheckpointError, match="A published step never changes"):
        hub.publish(REPO, "step1", tmp_path / "files-1")
    assert hub.commit_of(REPO, "step1") == commit


def test_a_step_added_between_others_changes_none_of_them(hub, tmp_path):
    steps = hub.revisions(REPO)
    before = {step: hub.commit_of(REPO, step) for step in steps}
    hub.publish(REPO, "step8", tmp_path / "files-1")
    assert hub.revisions(REPO) == sorted([*steps, "step8"], key=lambda name: int(name[4:]))
    assert {step: hub.commit_of(REPO, step) for step in steps} == before
    # Publishing a later step again still finds it unchanged, though its neighbour is new.
    assert hub.publish(REPO, "step16", tmp_path / "files-16") == before["step16"]


def test_names_are_checked(hub, tmp_path):
    with pytest.raises(CheckpointError, match="step"):
        hub.publish(REPO, "latest", tmp_path / "files-1")
    for bad in ("toy", "../../etc/x", "a/../b", "a/b/c"):
        with pytest.raises(CheckpointError, match="org/name"):
            hub.publish(bad, "step1", tmp_path / "files-1")
    with pytest.raises(CheckpointError, match="no revision step3"):
        hub.set_main(REPO, "step3")


def test_killed_before_the_ref_is_written_there_is_no_revision(tmp_path, tokenizer):
    hub = LocalHub(tmp_path / "hub")
    files = revision(tmp_path, tokenizer, 2)
    child = os.fork()
    if child == 0:
        from checkpoints_manifest import hub as module

        module._set_ref = lambda *arguments: os._exit(9)
        hub.publish(REPO, "step2", files)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert hub.revisions(REPO) == []
    commit = hub.publish(REPO, "step2", files)
    assert hub.commit_of(REPO, "step2") == commit
    assert not scan_cache_dir(hub.root).warnings


def test_refs_have_no_newline(hub):
    for ref in (hub.repository(REPO) / "refs").iterdir():
        assert len(ref.read_bytes()) == 40


def test_wrong_tensors_are_refused_by_name():
    tensors = {n: p.data for n, p in canonical_parameters(model(0)).items()}
    assert "embed_out.weight" in tensors
    load_canonical(model(1), tensors)
    missing = {n: t for n, t in tensors.items() if n != "embed_out.weight"}
    with pytest.raises(CheckpointError, match=r"embed_out\.weight"):
        load_canonical(model(1), missing)
    with pytest.raises(CheckpointError, match=r"embed_out\.weight has shape \(2, 2\)"):
        load_canonical(model(1), tensors | {"embed_out.weight": torch.zeros(2, 2)})


def test_from_pretrained_needs_nothing_but_the_two_variables(hub):
    code = (
        "from transformers import AutoModelForCausalLM as A; "
        f"print(A.from_pretrained('{REPO}', revision='step16').num_parameters())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub.root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(p.numel() for p in model(0).parameters())
