"""Files on the branch main of a repository, brought to a stated content by one commit or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import CommitOperationAdd

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub_answers import RemoteFile
from checkpoints_manifest.published import fact_of
from checkpoints_manifest.remote import Operation, Remote


def differing(files: Mapping[str, Path], tree: Mapping[str, RemoteFile]) -> list[str]:
    """Paths of `files` that the Hub does not state with the same bytes."""
    return [
        name
        for name, path in sorted(files.items())
        if not fact_of(path, name, tree.get(name)).is_on(tree.get(name))
    ]


def bring_main(remote: Remote, files: Mapping[str, Path], message: str) -> str:
    """Makes main hold these files, other files of main left as they are.

    Returns:
        The head of main: a new commit, or the present one where nothing differs.

    Raises:
        CheckpointError: there is no main, somebody else wrote to it meanwhile, or what is read back
        is not what was sent.
    """
    refs = remote.refs()
    head = refs.branches.get("main") if refs else None
    if head is None:
        raise CheckpointError(f"{remote.url} has no branch main; create the repository again")
    changed = differing(files, remote.tree(head))
    if not changed:
        return head

    def operations() -> list[Operation]:
        return [CommitOperationAdd(name, str(files[name])) for name in changed]

    made = remote.commit("main", head, operations, message, lambda tree: not differing(files, tree))
    if odd := differing(files, remote.tree(made)):
        raise CheckpointError(
            f"{remote.url}: commit {made} of main was to hold {odd[0]} with the bytes sent, and "
            "does not: the Hub stored something else. Publish again"
        )
    return made
