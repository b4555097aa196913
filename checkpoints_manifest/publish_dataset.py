"""What proves the data of a run, in a dataset repository: index, tokenizer, order, logs.

Tokens are not published: the index names every shard by SHA-256, and who has the text can build the
same dataset. Several runs of a suite share one repository: each has its folder `runs/RUNG`.
"""

from __future__ import annotations

from pathlib import Path

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub_answers import RemoteFile
from checkpoints_manifest.main_branch import bring_main, differing
from checkpoints_manifest.published import fact_of
from checkpoints_manifest.remote import Remote
from checkpoints_manifest.run_files import LOGS, ORDER_KEYS, RunFiles
from data_pipeline.digests import chain_start


def publish_dataset(run: RunFiles, remote: Remote, licence: str, private: bool) -> str:
    """Publishes the run's data facts; repeated, it changes nothing.

    Returns:
        The commit of main.

    Raises:
        CheckpointError: the repository holds another dataset, or the Hub refused.
    """
    if remote.refs() is None:
        remote.create(private)
    with run.one_publisher(), run.scratch() as scratch:
        files = dataset_files(run, remote.repo_id, licence, scratch)
        _main_tree(run, remote)
        return bring_main(remote, files, str(run.records[-1]["rung"]))


def dataset_changes(run: RunFiles, remote: Remote, licence: str) -> list[str]:
    """What `publish_dataset` would write, by requests that change nothing."""
    tree = _main_tree(run, remote)
    with run.one_publisher(), run.scratch() as scratch:
        return differing(dataset_files(run, remote.repo_id, licence, scratch), tree)


def _main_tree(run: RunFiles, remote: Remote) -> dict[str, RemoteFile]:
    refs = remote.refs()
    main = refs.branches.get("main") if refs else None
    tree = remote.tree(main) if main else {}
    index = tree.get("index.json")
    path = run.dataset / "index.json"
    if index is not None and not fact_of(path, path.name, index).is_on(index):
        raise CheckpointError(
            f"{remote.url} holds the index of another dataset than {run.dataset}; publish to "
            "another repository"
        )
    return tree


def dataset_files(run: RunFiles, repo_id: str, licence: str, directory: Path) -> dict[str, Path]:
    """Path in the repository to file; what has to be written is written into `directory`."""
    last = run.records[-1]
    folder = directory / "runs" / str(last["rung"])
    folder.mkdir(parents=True)
    for name in LOGS:
        if (run.directory / name).exists():
            (folder / name).write_bytes(run.log_until(name, last["step"]))
    (directory / "README.md").write_text(_card(run, repo_id, licence))
    files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}
    files |= {name: run.dataset / name for name in ("index.json", "tokenizer.json")}
    data = run.config["data"]
    start = chain_start(*(data[key] for key in ORDER_KEYS))
    leaves = run.dataset / "leaves" / f"{start.hex()}.log"
    if leaves.exists():
        files[f"leaves/{leaves.name}"] = leaves
    return files


def _card(run: RunFiles, repo_id: str, licence: str) -> str:
    last = run.records[-1]
    policies = ", ".join(f"{k} {v}" for k, v in sorted(run.index.get("policies", {}).items()))
    return f"""---
license: {licence}
tags: [tripod, {last["suite"]}]
---
# {repo_id}

Facts about the data of the Tripod suite `{last["suite"]}`: what was read, in which order, and what
the trainer logged. The tokens are not here: `index.json` names every shard by SHA-256.

| | |
|---|---|
| index digest (SHA-256 of `index.json`) | `{last["order"]["index_digest"]}` |
| token order | `{last["order"]["name"]}` |
| policies | {policies} |

`leaves/` holds a digest per step that the index promises; `runs/RUNG/` what that run read
(`order.log`), its metrics, the loss of every sequence at first exposure (`sequence_loss.f32`) and
wall times. `tripod verify order` compares them.
"""
