"""A small hub for tests: serves folders over the part of the hub's HTTP API that the real clients use.

`<root>/models/<org>/<name>/` and `<root>/datasets/<org>/<name>/` are repositories (huggingface_hub 1.33, datasets 5.2).
The content of a folder is branch `main`; a folder `<name>@<revision>` next to it is another branch or tag, with `%2F`
for a slash in its name. A file `<name>.moved` contains the new id of a repository, to which requests are redirected. A
commit is derived from names and contents, and exists while a folder has this content. Files larger than `lfs_above` are
LFS files: their ETag is their SHA-256, and with `redirect` they come from another host, as on the hub. Files of a
repository with a file `.gated` are only for the tokens in it, or for any token if it is empty. With `tokens`, other
tokens are invalid.

`fail_rate`, `delay_s`, `cut_after`, `corrupt`, `slow_s` and `rate_limit` cause failures of requests whose path matches
`only`. All requests are counted when they are answered, those in a delay when they arrive (`delayed`). `POST
/_hub/reset` returns and resets the counts, `POST /_hub/set?delay_s=2` changes options. `HubServer` starts the server in
a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit

API_VERBS = ("revision", "tree", "paths-info", "refs", "xet-read-token")
GATED = ".gated"
PIECE_BYTES = 50_000

# Name: (type, default).
OPTIONS: dict[str, tuple[Any, Any]] = {
    "page": (int, 1000),  # entries per page of a tree
    "lfs_above": (int, 10 * 2**20),  # bytes
    "redirect": (int, 0),  # 1: LFS files come from localhost instead of 127.0.0.1, as from a CDN
    "xet": (str, ""),  # URL of a server of hf-xet, from which LFS files come
    "tokens": (str, ""),  # valid tokens, separated by commas; empty: all
    "fail_rate": (float, 0.0),  # share of requests that are answered with fail_status
    "fail_status": (int, 500),
    "retry_after": (int, 0),  # seconds, in these answers
    "delay_s": (float, 0.0),  # before each answer
    "cut_after": (int, 0),  # bytes of a file after which the connection is closed; 0: never
    "corrupt": (int, 0),  # 1: the first byte of each file is wrong
    "slow_s": (float, 0.0),  # per 50 kB of a file
    "rate_limit": (str, ""),  # REQUESTS/SECONDS; others are answered with 429
    "only": (str, ""),  # regular expression of paths
}


class HubError(Exception):
    """An answer with an error: status, X-Error-Code, X-Error-Message, and other headers."""

    def __init__(self, status: int, code: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.headers |= {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Revision:
    """Content of a folder: its files as trees list them, and the commit that follows from it."""

    _digests: dict[tuple[str, int, int], tuple[str, str]] = {}  # noqa: RUF012 (a cache of the process)

    def __init__(self, name: str, folder: Path, lfs_above: int) -> None:
        self.name, self.folder = name, folder
        self.files: dict[str, dict[str, Any]] = {}
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != GATED):
            path, size = file.relative_to(folder).as_posix(), file.stat().st_size
            blob_id, sha256 = self._digests_of(file)
            self.files[path] = {"type": "file", "path": path, "oid": blob_id, "size": size}
            if size > lfs_above:
                self.files[path]["lfs"] = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}
        listing = "".join(f"{path}\0{file['oid']}\n" for path, file in self.files.items())
        self.commit = hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    def _digests_of(self, file: Path) -> tuple[str, str]:
        """Return git's id of the blob and the SHA-256."""
        status = file.stat()
        key = (str(file), status.st_mtime_ns, status.st_size)
        if key not in self._digests:
            content = file.read_bytes()
            blob = f"blob {len(content)}\0".encode() + content
            self._digests[key] = (
                hashlib.sha1(blob, usedforsecurity=False).hexdigest(),
                hashlib.sha256(content).hexdigest(),
            )
        return self._digests[key]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return files and folders by path."""
        folders = {folder.as_posix() for path in self.files for folder in Path(path).parents[:-1]}
        ids = {
            path: hashlib.sha1(f"{self.commit}{path}".encode(), usedforsecurity=False).hexdigest() for path in folders
        }
        made = {path: {"type": "directory", "path": path, "oid": oid, "size": 0} for path, oid in ids.items()}
        return dict(sorted({**self.files, **made}.items()))


class Hub(ThreadingHTTPServer):
    """The repositories, the options, and the counts."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        self.chance = random.Random(0)  # noqa: S311
        self.counts, self.recent, self.lock = Counter[str](), list[float](), threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    def folder(self, kind: str, repo: str) -> Path:
        """Return the folder of a repository's main branch."""
        folder = self.root / kind / repo
        if ".." in repo or "@" in repo or not folder.is_dir():
            raise HubError(404, "RepoNotFound", "Repository not found")
        return folder

    def revisions(self, kind: str, repo: str) -> list[Revision]:
        """Return all branches and tags, main first."""
        main = self.folder(kind, repo)
        others = sorted(path for path in main.parent.iterdir() if path.name.startswith(f"{main.name}@"))
        with self.lock:
            named = [("main", main), *((unquote(path.name.partition("@")[2]), path) for path in others)]
            return [Revision(name, folder, self.options.lfs_above) for name, folder in named]

    def revision(self, kind: str, repo: str, name: str) -> Revision:
        """Return the revision with this name or commit."""
        for found in self.revisions(kind, repo):
            if name.removeprefix("refs/heads/") in (found.name, found.commit):
                return found
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {name}")

    def check_token(self, token: str | None) -> None:
        """Refuse invalid tokens."""
        if token is not None and self.options.tokens and token not in self.options.tokens.split(","):
            raise HubError(401, "", "Invalid credentials in Authorization header")

    def check_access(self, kind: str, repo: str, token: str | None) -> None:
        """Refuse the files of a gated repository to those without access."""
        gate = self.folder(kind, repo) / GATED
        if gate.is_file() and token is None:
            raise HubError(401, "GatedRepo", f"Access to {repo} is restricted. You must be authenticated")
        if gate.is_file() and (allowed := gate.read_text().split()) and token not in allowed:
            raise HubError(403, "GatedRepo", f"Access to {repo} is restricted and you are not in the authorized list")

    def sleep_while(self, option: str) -> None:
        """Sleep for as many seconds as the option says, or until it becomes smaller."""
        begin_s = time.monotonic()
        while time.monotonic() < begin_s + getattr(self.options, option):
            time.sleep(0.01)

    def cause_failures(self, path: str) -> bool:
        """Wait or fail as the options say; return whether a file may be cut."""
        options = self.options
        if not re.search(options.only, path):
            return False
        if options.delay_s:
            with self.lock:
                self.counts["delayed"] += 1
            self.sleep_while("delay_s")
        with self.lock:
            is_failing, now_s = self.chance.random() < options.fail_rate, time.monotonic()
            allowed, seconds = map(int, (options.rate_limit or "0/0").split("/"))
            self.recent = [at_s for at_s in self.recent if at_s > now_s - seconds]
            wait_s = int(self.recent[0] + seconds - now_s) + 1 if allowed and len(self.recent) >= allowed else 0
            self.recent += [] if wait_s else [now_s]
        if wait_s:
            raise HubError(429, "", "We had to rate limit you", Retry_After=str(wait_s))
        if is_failing:
            after = {"Retry_After": str(options.retry_after)} if options.retry_after else {}
            raise HubError(options.fail_status, "", "Internal Error", **after)
        return True


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Hub
    protocol_version, wbufsize, disable_nagle_algorithm = "HTTP/1.1", -1, True

    def log_message(self, *_: object) -> None:
        """Write no log: requests are counted."""

    def answer(self) -> None:
        """Answer a request, and count it."""
        self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.requested_path, self.query = url.path, parse_qs(url.query, keep_blank_values=True)
        self.label = "other"
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        parts = [unquote(part) for part in url.path.split("/") if part]
        if parts[:1] == ["_hub"]:
            self.control(parts[1:])
            return
        try:
            self.route(parts)
        except HubError as error:
            self.reply(error.status, {"error": str(error)}, error.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = answer  # noqa: N815 (names of the base class)

    def control(self, parts: list[str]) -> None:
        """Return or reset the counts, or change options."""
        counts = self.server.counts
        document = {"total": counts.total(), "counts": dict(sorted(counts.items()))}
        if parts == ["reset"]:
            counts.clear()
        for name, values in self.query.items():
            setattr(self.server.options, name, OPTIONS[name][0](values[0]))
        self.reply(200, document)

    def route(self, parts: list[str]) -> None:
        """Find out what is requested."""
        is_api = parts[:1] == ["api"]
        kind = parts[1] if is_api and parts[1:] else "models"
        if parts[:1] == ["datasets"]:
            kind, parts = "datasets", parts[1:]
        verbs = (number for number, part in enumerate(parts[:5]) if is_api and number > 2 and part in API_VERBS)
        verb = next(verbs, None)
        word = parts[verb] if verb else "info" if is_api else "cdn" if parts[:1] == ["cdn"] else "other"
        self.label = "resolve" if "resolve" in parts[1:3] else word
        self.may_cut = self.server.cause_failures(self.requested_path)
        if self.label != "cdn":
            self.server.check_token(self.token)
            self.redirect_moved(kind, parts[2:] if is_api else parts)
        if is_api and kind in ("models", "datasets") and parts[2:]:
            self.api(kind, "/".join(parts[2:verb]), *(parts[verb:] if verb else ["revision"]))
        elif parts == ["api", "whoami-v2"] and self.token:
            self.reply(200, {"type": "user", "name": "someone", "orgs": []})
        elif self.label == "cdn" and len(parts) == 5:
            self.file(self.server.revision(parts[1], f"{parts[2]}/{parts[3]}", parts[4]), self.query["path"][0])
        elif self.label == "resolve":
            at = parts.index("resolve")
            self.resolve(kind, "/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
        else:
            raise HubError(401 if "whoami-v2" in parts else 404, "", "Invalid username or password.")

    def redirect_moved(self, kind: str, parts: list[str]) -> None:
        """Redirect requests for a repository that has been renamed, as the hub does."""
        old = "/".join(parts[:2])
        new = self.server.root / kind / f"{old}.moved"
        if ".." not in old and new.is_file():
            location = self.path.replace(old, new.read_text().strip(), 1)
            raise HubError(307, "", f"Temporary Redirect. Redirecting to {location}", Location=location)

    def api(self, kind: str, repo: str, verb: str, name: str = "main", *path: str) -> None:
        """Answer /api/<kind>/<repo>/<verb>/<revision>/<path>."""
        if verb == "revision":
            self.reply(200, self.info(kind, repo, name))
        elif verb == "tree":
            self.tree(self.server.revision(kind, repo, name), "/".join(path))
        elif verb == "paths-info":
            text, entries = self.content.decode(), self.server.revision(kind, repo, name).entries()
            paths = json.loads(text).get("paths", []) if text.startswith("{") else parse_qs(text).get("paths", [])
            self.reply(200, [entries[found] for found in paths if found in entries])
        elif verb == "xet-read-token":
            xet = {"Cas-Url": self.server.options.xet, "Access-Token": "token", "Token-Expiration": "9999999999"}
            self.reply(200, {}, {f"X-Xet-{header}": value for header, value in xet.items()})
        else:
            heads = [(found.name, found.commit) for found in self.server.revisions(kind, repo)]
            branches = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit} for name, commit in heads]
            self.reply(200, {"branches": branches, "tags": [], "converts": []})

    def info(self, kind: str, repo: str, name: str) -> dict[str, Any]:
        """Return the facts of a repository at a revision."""
        revision = self.server.revision(kind, repo, name)
        names = {"path": "rfilename", "size": "size", "oid": "blobId", "lfs": "lfs"}
        siblings = [{new: file.get(old) for old, new in names.items()} for file in revision.files.values()]
        facts = {"_id": revision.commit[:24], "id": repo, "sha": revision.commit, "private": False, "disabled": False}
        facts |= {"gated": (revision.folder / GATED).is_file() and "auto", "tags": [], "siblings": siblings}
        wanted = self.query.get("expand", []) + self.query.get("expand[]", [])
        return {key: facts[key] for key in ("_id", "id", *wanted) if key in facts} if wanted else facts

    def tree(self, revision: Revision, folder: str) -> None:
        """Reply one page of a folder's entries, and the URL of the next."""
        entries, headers = revision.entries(), {"X-Repo-Commit": revision.commit}
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise HubError(404, "EntryNotFound", f"{folder} does not exist", X_Repo_Commit=revision.commit)
        prefix = f"{folder}/" if folder else ""
        found = [entry for path, entry in entries.items() if path.startswith(prefix)]
        if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
            found = [entry for entry in found if "/" not in entry["path"].removeprefix(prefix)]
        begin, size = int(self.query.get("cursor", ["0"])[0]), self.server.options.page
        if begin + size < len(found):
            kept = "".join(f"{name}={quote(values[0])}&" for name, values in self.query.items() if name != "cursor")
            url = f"http://{self.headers['Host']}{self.requested_path}?{kept}cursor={begin + size}"
            headers["Link"] = f'<{url}>; rel="next"'
        self.reply(200, found[begin : begin + size], headers)

    def resolve(self, kind: str, repo: str, name: str, path: str) -> None:
        """Reply a file, or where it is."""
        revision = self.server.revision(kind, repo, name)
        self.server.check_access(kind, repo, self.token)
        if path not in revision.files:
            raise HubError(404, "EntryNotFound", "Entry not found", X_Repo_Commit=revision.commit)
        if not self.server.options.redirect or "lfs" not in revision.files[path]:
            self.file(revision, path)
            return
        url = f"http://localhost:{self.server.server_port}/cdn/{kind}/{repo}/{revision.commit}?path={quote(path)}"
        self.reply(302, b"", {**self.file_headers(revision, path), "Location": url})

    def file_headers(self, revision: Revision, path: str) -> dict[str, str]:
        """Return the headers of a file."""
        file = revision.files[path]
        etag = f'"{file.get("lfs", file)["oid"]}"'
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(file["size"])} if "lfs" in file else {}
        if linked and self.server.options.xet:
            repository = revision.folder.relative_to(self.server.root).as_posix()
            route = f"http://{self.headers['Host']}/api/{repository}/xet-read-token/{revision.commit}"
            linked |= {"X-Xet-Hash": file["lfs"]["oid"], "X-Xet-Refresh-Route": route}
        return {"ETag": etag, "X-Repo-Commit": revision.commit, "Accept-Ranges": "bytes", **linked}

    def file(self, revision: Revision, path: str) -> None:
        """Send the requested bytes, or some of them before the connection is cut."""
        size, headers = revision.files[path]["size"], self.file_headers(revision, path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        begin = int(wanted[1]) if wanted else 0
        end = min(int(wanted[2]) + 1, size) if wanted and wanted[2] else size
        if wanted and begin >= end:
            raise HubError(416, "", "Range not satisfiable", Content_Range=f"bytes */{size}")
        headers |= {"Content-Range": f"bytes {begin}-{end - 1}/{size}"} if wanted else {}
        cut = self.server.options.cut_after if self.may_cut and self.command == "GET" else 0
        self.label += (" range" if wanted else "") + (" cut" if 0 < cut < end - begin else "")
        self.start(206 if wanted else 200, "application/octet-stream", end - begin, headers)
        if self.command == "HEAD":
            return
        with (revision.folder / path).open("rb") as content:
            content.seek(begin)
            sent = self.send(content.read(min(end - begin, cut or end)), is_start=begin == 0)
        if sent < end - begin:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def send(self, content: bytes, *, is_start: bool) -> int:
        """Send the content of a file, slowly or wrongly if the options say so; return the number of bytes."""
        options = self.server.options
        if options.corrupt and is_start and content and self.may_cut:
            content = bytes([content[0] ^ 1]) + content[1:]
        piece = PIECE_BYTES if options.slow_s else len(content) or 1
        for begin in range(0, len(content), piece):
            self.wfile.write(content[begin : begin + piece])
            if options.slow_s and self.may_cut:
                self.wfile.flush()
                self.server.sleep_while("slow_s")
        return len(content)

    def start(self, status: int, content_type: str, length: int, headers: dict[str, str]) -> None:
        """Count the request, and send status and headers."""
        if not self.requested_path.startswith("/_hub/"):
            with self.server.lock:
                self.server.counts[f"{self.command} {self.label} {status}"] += 1
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        """Send a JSON document, or bytes."""
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.start(status, "application/json; charset=utf-8", len(text), headers or {})
        if self.command != "HEAD":
            self.wfile.write(text)


@dataclass(frozen=True)
class HubServer:
    """A running server.

    Attributes:
        root: Folder of the repositories, which may change at any time.
        url: For HF_ENDPOINT.
    """

    root: Path
    url: str

    def repository(self, repo_id: str, kind: str = "models") -> Path:
        """Return the folder of a repository, created if it is missing; `<id>@<branch>` for another branch."""
        folder = self.root / kind / repo_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, repo_id: str, kind: str = "models") -> str:
        """Return the commit of a repository's main branch, or of the branch in `<id>@<branch>`."""
        lfs_above = OPTIONS["lfs_above"][1]
        return Revision("main", self.repository(repo_id, kind), lfs_above).commit

    def set(self, **options: object) -> None:
        """Change options."""
        self._post(f"set?{urlencode(options)}")

    def counts(self) -> dict[str, int]:
        """Return the number of requests by method, what was requested, and status; the next call starts at 0."""
        counts: dict[str, int] = self._post("reset")["counts"]
        return counts

    def _post(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url}/_hub/{path}", method="POST")  # noqa: S310 (http)
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            document: dict[str, Any] = json.load(answer)
        return document


@contextlib.contextmanager
def running_hub(root: Path, **options: object) -> Iterator[HubServer]:
    """Run a server in another process until the block ends."""
    root.mkdir(parents=True, exist_ok=True)
    arguments = [f"--{name}={value}" for name, value in options.items()]
    process = subprocess.Popen([sys.executable, __file__, root, *arguments], stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield HubServer(root=root, url=process.stdout.readline().strip())
        finally:
            process.kill()


def main() -> None:
    """Serve a folder on a free port, whose URL is printed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    for option, (kind, default) in OPTIONS.items():
        parser.add_argument(f"--{option}", type=kind, default=default)
    options = parser.parse_args()
    hub = Hub(options.root, options)
    print(f"http://127.0.0.1:{hub.server_port}", flush=True)  # noqa: T201
    hub.serve_forever()


if __name__ == "__main__":
    main()
