"""What the loopback Hub does for each endpoint that huggingface_hub 2.4.0 calls."""

import base64
import hashlib
import json
import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, unquote

from tests.loopback.faults import Answer
from tests.loopback.repository import Entry, Repository

LARGE_SUFFIXES = (".safetensors", ".bin", ".f32")
LARGE_BYTES = 10 << 20


class Refusal(Exception):
    """An answer that is an error, with the code that the client turns into its exceptions."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Code": code} if code else {}
        body = json.dumps({"error": message, **more}).encode()
        self.answer = Answer(status, body, {**headers, "Content-Type": "application/json"})


def _json(value: object, **headers: str) -> Answer:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json", **named})


class Endpoints:
    """Repositories, objects and what requests do to them; `server.LoopbackHub` serves it.

    Attributes:
        endpoint: what clients take for HF_ENDPOINT.
        page: commits or files that one answer lists.
        part_bytes: size of the parts of uploads; None: uploads in one piece.
    """

    endpoint: str

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.page = 50
        self.part_bytes: int | None = None
        self._parts: dict[tuple[str, int], bytes] = {}
        self._lock = threading.Lock()
        (root / "objects").mkdir(parents=True, exist_ok=True)
        for kind in ("model", "dataset"):
            for path in (root / f"{kind}s").glob("*/*.git"):
                name = f"{path.parent.name}/{path.name.removesuffix('.git')}"
                self.repositories[kind, name] = Repository(path)

    def repository(self, kind: str, name: str) -> Repository:
        found = self.repositories.get((kind, name))
        if found is None:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return found

    def object_path(self, sha256: str) -> Path:
        return self.root / "objects" / sha256

    def corrupt_object(self, sha256: str, offset: int = -1) -> None:
        """Flips a bit of a stored object; its name stays."""
        path = self.object_path(sha256)
        data = bytearray(path.read_bytes())
        data[offset] ^= 1
        path.write_bytes(data)

    # Endpoints. Arguments: the match of the path, the query, the request's body and headers.

    def create(self, match, query, body, headers) -> Answer:
        wanted = json.loads(body)
        kind = wanted.get("type") or "model"
        name = f"{wanted['organization']}/{wanted['name']}"
        prefix = "datasets/" if kind == "dataset" else ""
        url = f"{self.endpoint}/{prefix}{name}"
        with self._lock:
            if (kind, name) in self.repositories:
                raise Refusal(409, "You already created this model repo", url=url)
            path = self.root / f"{kind}s" / f"{name}.git"
            self.repositories[kind, name] = Repository(path)
        return _json({"url": url})

    def info(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        commit = self._commit(repository, unquote(match["revision"] or "main"))
        files = [
            {"rfilename": entry.path, "size": entry.size, "blobId": entry.blob}
            for entry in repository.tree(commit).values()
        ]
        return _json({"id": match["id"], "sha": commit, "siblings": files, "tags": []})

    def refs(self, match, query, body, headers) -> Answer:
        repository = self._of(match)

        def listed(kind: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit}
                for name, commit in repository.refs(kind).items()
            ]

        return _json({"branches": listed("heads"), "converts": [], "tags": listed("tags")})

    def commits(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        commit = self._commit(repository, unquote(match["revision"]))
        items = [
            {"id": oid, "authors": [{"user": "loopback"}], "date": date, "title": title,
             "message": ""}
            for oid, date, title in repository.history(commit)
        ]  # fmt: skip
        return self._paged(items, match.string, query)

    def tree(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        commit = self._commit(repository, unquote(match["revision"]))
        folder = unquote(match["path"] or "").strip("/")
        entries = [
            entry
            for entry in repository.tree(commit).values()
            if not folder or entry.path.startswith(f"{folder}/")
        ]
        if folder and not entries:
            raise Refusal(404, f"{folder} does not exist", "EntryNotFound")
        return self._paged([_listed(entry) for entry in entries], match.string, query)

    def paths_info(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        commit = self._commit(repository, unquote(match["revision"]))
        wanted = parse_qs(body.decode()).get("paths", [])
        tree = repository.tree(commit)
        return _json([_listed(tree[path]) for path in wanted if path in tree])

    def create_branch(self, match, query, body, headers) -> Answer:
        repository, name = self._of(match), unquote(match["name"])
        start = json.loads(body or b"{}").get("startingPoint", "main")
        with repository.lock:
            commit = self._commit(repository, start)
            if name in repository.refs("heads"):
                raise Refusal(409, f"Reference already exists: {name}")
            repository.set_ref("heads", name, commit)
        return _json({})

    def delete_branch(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        self._commit(repository, unquote(match["name"]))
        repository.delete_ref("heads", unquote(match["name"]))
        return _json({})

    def create_tag(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        name = json.loads(body)["tag"]
        with repository.lock:
            commit = self._commit(repository, unquote(match["revision"]))
            if name in repository.refs("tags"):
                raise Refusal(409, f"Tag reference exists already: {name}")
            repository.set_ref("tags", name, commit)
        return _json({})

    def validate_yaml(self, match, query, body, headers) -> Answer:
        if not json.loads(body)["content"].startswith("---\n"):
            raise Refusal(400, "no metadata")
        return _json({"errors": [], "warnings": []})

    def preupload(self, match, query, body, headers) -> Answer:
        repository = self._of(match)
        tree = repository.tree(self._commit(repository, unquote(match["revision"])))
        files = []
        for item in json.loads(body)["files"]:
            sample, path = base64.b64decode(item["sample"]), item["path"]
            large = path.endswith(LARGE_SUFFIXES) or item["size"] > LARGE_BYTES or b"\0" in sample
            present = tree.get(path)
            files.append(
                {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
                | ({"oid": present.sha256 or present.blob} if present else {})
            )
        return _json({"files": files})

    def commit(self, match, query, body, headers) -> Answer:
        repository, branch = self._of(match), unquote(match["revision"])
        items = [json.loads(line) for line in body.splitlines()]
        header = items[0]["value"]
        with repository.lock:
            head = self._commit(repository, branch)
            if header.get("parentCommit", head) != head:
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = {
                _safe(item["value"]["path"]): self._content(item)
                for item in items[1:]
                if item["key"] in ("file", "lfsFile")
            }
            deleted = [i["value"]["path"] for i in items[1:] if i["key"] == "deletedFile"]
            if absent := sorted(set(deleted) - set(repository.tree(head))):
                raise Refusal(404, f"A file with this name doesn't exist: {absent[0]}")
            oid = repository.commit(branch, files, tuple(deleted), header["summary"])
        url = f"{self.endpoint}/{match['id']}/commit/{oid}"
        return _json({"success": True, "commitOid": oid, "commitUrl": url})

    def _content(self, item: dict) -> bytes:
        value = item["value"]
        if item["key"] == "file":
            return base64.b64decode(value["content"])
        path = self.object_path(value["oid"])
        if not re.fullmatch("[0-9a-f]{64}", value["oid"]) or not path.exists():
            raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {path.name}")
        if path.stat().st_size != value["size"]:
            raise Refusal(400, f"LFS object {path.name} has another size")
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\n"
            f"size {value['size']}\n"
        ).encode()

    def lfs_batch(self, match, query, body, headers) -> Answer:
        self._of(match)
        objects = []
        for item in json.loads(body)["objects"]:
            oid, size = item["oid"], item["size"]
            answer = {"oid": oid, "size": size}
            if not self.object_path(oid).exists():
                verify = {"href": f"{self.endpoint}/lfs/verify", "header": {}}
                answer["actions"] = {"upload": self._upload(oid, size), "verify": verify}
            objects.append(answer)
        return _json({"transfer": "basic", "objects": objects})

    def _upload(self, oid: str, size: int) -> dict:
        if self.part_bytes is None:
            return {"href": f"{self.endpoint}/lfs/object/{oid}", "header": {}}
        count = -(-size // self.part_bytes)
        parts = {str(n): f"{self.endpoint}/lfs/part/{oid}/{n}" for n in range(1, count + 1)}
        header = {"chunk_size": str(self.part_bytes), **parts}
        return {"href": f"{self.endpoint}/lfs/complete/{oid}", "header": header}

    def put_object(self, match, query, body, headers) -> Answer:
        return self._store(match["oid"], body)

    def put_part(self, match, query, body, headers) -> Answer:
        self._parts[match["oid"], int(match["part"])] = body
        return Answer(200, b"", {"ETag": hashlib.md5(body).hexdigest()})

    def complete(self, match, query, body, headers) -> Answer:
        wanted = json.loads(body)
        numbers = [part["partNumber"] for part in wanted["parts"]]
        return self._store(
            match["oid"], b"".join(self._parts.pop((match["oid"], number)) for number in numbers)
        )

    def _store(self, oid: str, data: bytes) -> Answer:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refusal(400, "BadDigest: the bytes are not those of the named sha256")
        temporary = self.object_path(f"{oid}.{threading.get_ident()}")
        temporary.write_bytes(data)
        temporary.replace(self.object_path(oid))
        return Answer()

    def verify_object(self, match, query, body, headers) -> Answer:
        wanted = json.loads(body)
        path = self.object_path(wanted["oid"])
        if not path.exists() or path.stat().st_size != wanted["size"]:
            raise Refusal(404, "object not found")
        return _json({})

    def resolve(self, match, query, body, headers) -> Answer:
        kind = "dataset" if match["dataset"] else "model"
        repository = self.repository(kind, match["id"])
        commit = self._commit(repository, unquote(match["revision"]))
        entry = repository.tree(commit).get(unquote(match["path"]))
        named = {"X-Repo-Commit": commit}
        if entry is None:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.answer.headers |= named
            raise refusal
        if entry.sha256 is None:
            return _ranged(
                repository.blob(entry.blob), headers, {**named, "ETag": f'"{entry.blob}"'}
            )
        linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        data = self.object_path(entry.sha256).read_bytes()
        return _ranged(data, headers, named | linked | {"ETag": f'"{entry.sha256}"'})

    def _of(self, match: re.Match[str]) -> Repository:
        groups = match.groupdict()
        kind = groups.get("kind") or ("dataset" if groups.get("dataset") else "model")
        return self.repository(kind, match["id"])

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def _paged(self, items: list, path: str, query: dict[str, list[str]]) -> Answer:
        start = int(query.get("cursor", ["0"])[0])
        stop = start + self.page
        link = f'<{self.endpoint}{path}?cursor={stop}>; rel="next"'
        return _json(items[start:stop], **({"Link": link} if stop < len(items) else {}))


def _listed(entry: Entry) -> dict:
    lfs = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return {
        "type": "file", "path": entry.path, "size": entry.size, "oid": entry.blob,
        **({"lfs": lfs} if entry.sha256 else {}),
    }  # fmt: skip


def _safe(path: str) -> str:
    if path.startswith("/") or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise Refusal(400, f"Invalid path: {path}")
    return path


def _ranged(data: bytes, headers, named: dict[str, str]) -> Answer:
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
    if not wanted:
        return Answer(200, data, {**named, "Accept-Ranges": "bytes"})
    start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1) + 1
    if start >= len(data):
        return Answer(416, b"", {**named, "Content-Range": f"bytes */{len(data)}"})
    place = f"bytes {start}-{min(stop, len(data)) - 1}/{len(data)}"
    return Answer(206, data[start:stop], {**named, "Content-Range": place})
