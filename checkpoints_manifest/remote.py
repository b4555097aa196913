"""One repository on a Hub: the few calls that publishing and pulling need, made safe to repeat.

Guarantees: every answer is checked before it is used (ids are 40 or 64 hexadecimal digits, sizes
are sizes, lists end); whatever a server sends, the only error is CheckpointError. A request that
changes something is repeated only once it is known whether the first one had its effect: a commit
whose answer was lost is looked for at the head of its branch. Limits of the Hub are kept
(`pacer.py`), and what it says in Retry-After is done.

The token is that of the Hub's own login (`hf auth login`, `HF_TOKEN`); it is in no message.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
    hf_hub_download,
    hf_hub_url,
)
from huggingface_hub.errors import (
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status
from huggingface_hub.utils._pagination import _paginate_pages as pages

from checkpoints_manifest.errors import CheckpointError
from checkpoints_manifest.hub_answers import (
    FAILED,
    Refs,
    RemoteFile,
    asked_pause,
    commit_id,
    date_of,
    raise_if_local,
    refusal_in,
    remote_file,
    status_of,
    text_of,
)
from checkpoints_manifest.hub_client import answers_up_to, use_bounded_client
from checkpoints_manifest.pacer import Pacer

T = TypeVar("T")
Operation = CommitOperationAdd | CommitOperationDelete
# Requests that create_commit makes beside uploads: YAML check, modes, LFS batch, verify, commit.
CALLS_PER_COMMIT = 6
_MAX_PAGES = 5000


class Remote:
    """A model or dataset repository.

    Args:
        repo_id: org/name.
        repo_type: `model` or `dataset`.
        endpoint: address of the Hub; None: the one huggingface_hub is configured for.
        token: None: the one of the Hub's login.
        pacer: keeps to the Hub's limits; also how pauses are made.
        attempts: how often a request is tried.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: str = "model",
        *,
        endpoint: str | None = None,
        token: str | None = None,
        pacer: Pacer | None = None,
        attempts: int = 6,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", repo_id, re.ASCII) or (
            ".." in repo_id or "--" in repo_id
        ):
            raise CheckpointError(f"expected a repository org/name, found {repo_id!r}")
        use_bounded_client()
        self.repo_id, self.repo_type, self.attempts = repo_id, repo_type, attempts
        self.pacer = pacer or Pacer()
        self._token = token or get_token()
        # False, not None: without a token, ask as nobody rather than look for one again.
        self._api = HfApi(endpoint=endpoint, token=self._token or False)
        self.endpoint = str(self._api.endpoint)

    @property
    def logged_in(self) -> bool:
        """Whether there is a token, which changes need."""
        return self._token is not None

    @property
    def url(self) -> str:
        """Address of the repository's page."""
        kind = "datasets/" if self.repo_type == "dataset" else ""
        return f"{self.endpoint}/{kind}{self.repo_id}"

    # Reading.

    def refs(self) -> Refs | None:
        """Branches and tags; None where there is no such repository (or none for this login)."""

        def ask() -> Refs | None:
            try:
                found = self._api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
            except RepositoryNotFoundError:
                return None
            return Refs(*(
                {text_of(ref.name): commit_id(ref.target_commit) for ref in kind}
                for kind in (found.branches, found.tags)
            ))  # fmt: skip

        return self._repeat("list branches", ask)

    def history(self, revision: str) -> list[tuple[str, datetime]]:
        """Commits of a branch, oldest first, with their dates."""

        def ask() -> list[tuple[str, datetime]]:
            items = self._listed("commits", revision)
            found = [(commit_id(item["id"]), date_of(item["date"])) for item in items][::-1]
            if not found:
                raise ValueError("a branch has at least one commit")
            return found

        return self._repeat(f"list the commits of {revision}", ask)

    def title(self, revision: str) -> str:
        """Title of the newest commit of a branch: one request, whatever came before it."""
        return self._repeat(
            f"read the title of {revision}",
            lambda: text_of(next(self._listed("commits", revision), {})["title"]),
        )

    def tree(self, commit: str) -> dict[str, RemoteFile]:
        """Every file of a commit, folders included, by path."""

        def ask() -> dict[str, RemoteFile]:
            items = self._listed("tree", commit, recursive=True)
            return {text_of(i["path"]): remote_file(i) for i in items if i["type"] == "file"}

        return self._repeat(f"list the files of {commit}", ask)

    def read(self, commit: str, path: str, max_bytes: int) -> bytes:
        """A small file's bytes; not verified.

        Raises:
            CheckpointError: no such file, or more bytes than that.
        """

        def ask() -> bytes:
            url = hf_hub_url(
                self.repo_id, path, repo_type=self.repo_type, revision=commit,
                endpoint=self.endpoint,
            )  # fmt: skip
            with answers_up_to(max_bytes):
                response = get_session().get(url, headers=self._headers())
                hf_raise_for_status(response)
            if len(response.content) > max_bytes:
                raise ValueError(f"expected at most {max_bytes:,} bytes")
            return response.content

        return self._repeat(f"read {path} of {commit}", ask)

    def download(self, commit: str, path: str, size: int, folder: Path, force: bool) -> Path:
        """Downloads a file with huggingface_hub into `folder`; its content is not verified.

        Args:
            commit: 40 hexadecimal digits.
            path: name in the repository; the caller has checked that it stays inside `folder`.
            size: more bytes than this are refused.
            folder: keeps what is complete, so a later call goes on from there.
            force: download also what is there.
        """

        def ask() -> Path:
            with answers_up_to(size):
                return Path(
                    hf_hub_download(
                        self.repo_id, path, repo_type=self.repo_type, revision=commit,
                        local_dir=folder, endpoint=self.endpoint, token=self._token or False,
                        force_download=force,
                    )
                )  # fmt: skip

        return self._repeat(f"download {path} of {commit}", ask)

    # Changing.

    def create(self, private: bool) -> None:
        """Creates the repository where there is none."""
        self._repeat(
            f"create {self.repo_id}",
            lambda: self._api.create_repo(
                self.repo_id, repo_type=self.repo_type, exist_ok=True, private=private
            ),
        )

    def commit(
        self,
        branch: str,
        parent: str,
        operations: Callable[[], list[Operation]],
        message: str,
        holds: Callable[[dict[str, RemoteFile]], bool],
    ) -> str:
        """Adds one commit on top of `parent`, once, whatever gets lost on the way.

        Args:
            branch: exists.
            parent: the head that the commit must have as parent.
            operations: makes the operations, anew for each attempt.
            message: first line of the commit.
            holds: whether the files of a commit are those that are meant.

        Returns:
            The commit.

        Raises:
            CheckpointError: somebody else wrote to the branch, or the Hub refused or kept failing.
        """
        self.pacer.take("commit")
        what = f"commit to {branch}"
        for attempt in range(self.attempts):
            self.pacer.take("call", CALLS_PER_COMMIT)
            try:
                made = self._api.create_commit(
                    self.repo_id, operations(), repo_type=self.repo_type, revision=branch,
                    parent_commit=parent, commit_message=message,
                )  # fmt: skip
                return commit_id(made.oid)
            except FAILED as error:
                problem = error
            raise_if_local(problem)
            if (landed := self._landed(branch, parent, holds)) is not None:
                return landed
            self._pause(what, problem, attempt)
        raise AssertionError("the last attempt raises")

    def _landed(
        self, branch: str, parent: str, holds: Callable[[dict[str, RemoteFile]], bool]
    ) -> str | None:
        """The commit that a failed request made all the same; None: it made none."""
        history = [commit for commit, _ in self.history(branch)]
        after = history[history.index(parent) + 1 :] if parent in history else history
        if parent in history and not after:
            return None
        # The first one only: another publisher of the same run may be further already.
        if parent in history and holds(self.tree(after[0])):
            return after[0]
        raise CheckpointError(
            f"{self.repo_id}: expected the head of {branch} to be {parent}, found "
            f"{history[-1] if history else 'no commit'}, which is not ours: somebody else writes "
            "there. Let only one publisher write to a repository; to go on, remove their commits "
            "or publish to another repository"
        )

    def create_branch(self, name: str, commit: str) -> None:
        """Creates a branch at a commit; an existing one must be there already.

        Raises:
            CheckpointError: the branch exists elsewhere.
        """
        self._create_ref(
            f"branch {name}", commit, lambda refs: refs.branches.get(name),
            lambda: self._api.create_branch(
                self.repo_id, branch=name, revision=commit, repo_type=self.repo_type
            ),
        )  # fmt: skip

    def create_tag(self, name: str, commit: str) -> None:
        """Creates a tag at a commit; an existing one must be there already.

        Raises:
            CheckpointError: the tag exists elsewhere.
        """
        self._create_ref(
            f"tag {name}", commit, lambda refs: refs.tags.get(name),
            lambda: self._api.create_tag(
                self.repo_id, tag=name, revision=commit, repo_type=self.repo_type, exist_ok=False
            ),
        )  # fmt: skip

    def _create_ref(
        self,
        what: str,
        commit: str,
        found: Callable[[Refs], str | None],
        create: Callable[[], object],
    ) -> None:
        for attempt in range(self.attempts):
            problem: Exception | None = None
            self.pacer.take("call")
            try:
                create()
            except FAILED as error:
                problem = error
            # 409 does not say where the existing one points, and a lost answer says nothing.
            refs = self.refs()
            there = found(refs) if refs else None
            if there == commit:
                return
            if there is not None:
                raise CheckpointError(
                    f"{self.repo_id}: expected {what} at {commit}, found it at {there}. A "
                    "published name never moves: delete it by hand if it is wrong, or publish to "
                    "another repository"
                )
            self._pause(
                f"create {what}", problem or ValueError("it is not there afterwards"), attempt
            )

    # Repeating.

    def _repeat(self, what: str, ask: Callable[[], T]) -> T:
        for attempt in range(self.attempts):
            self.pacer.take("call")
            try:
                return ask()
            except FAILED as error:
                problem = error
            raise_if_local(problem)
            self._pause(what, problem, attempt)
        raise AssertionError("the last attempt raises")

    def _pause(self, what: str, problem: Exception, attempt: int) -> None:
        """Waits before the next attempt, or raises where another one would not help."""
        status = status_of(problem)
        refused = status is not None and 400 <= status < 500 and status not in (408, 412, 429)
        hopeless = refused or isinstance(problem, OfflineModeIsEnabled)
        if hopeless or attempt + 1 == self.attempts:
            remedy = (
                ". Log in with `hf auth login`, with a token that may do this"
                if status in (401, 403)
                else ". Nothing is lost: the same command goes on from here"
            )
            raise CheckpointError(
                f"{self.url}: could not {what} (attempt {attempt + 1}): "
                f"{self._explain(problem)}{remedy}"
            ) from None
        if status == 429:
            self.pacer.back_off(asked_pause(problem))
        else:
            self.pacer.rest(min(2.0**attempt, 60.0))

    def _explain(self, problem: Exception) -> str:
        refusal = refusal_in(problem) or problem
        text = " ".join(f"{type(refusal).__name__}: {refusal}".split())[:1000]
        # A server may send back what it was sent.
        return text.replace(self._token, "(token)") if self._token else text

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self._token or False)

    def _listed(self, what: str, revision: str, **params: object) -> Iterator[dict[str, Any]]:
        url = f"{self.endpoint}/api/{self.repo_type}s/{self.repo_id}/{what}/"
        listed = pages(url + quote(revision, safe=""), headers=self._headers(), params=params)
        for number, (page, _) in enumerate(listed):
            if number >= _MAX_PAGES:
                raise ValueError(f"the list has more than {_MAX_PAGES:,} pages")
            if not isinstance(page, list):
                raise ValueError(f"expected a list, found {type(page).__name__}")
            yield from page
