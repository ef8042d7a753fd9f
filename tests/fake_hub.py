"""A fake Hugging Face Hub on this machine: what pushing and loading a model repository needs, and nothing else."""

import base64
import hashlib
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


HOST = "127.0.0.1"
REPO = r"([\w.\-]+/[\w.\-]+)"


def blob_id(data):
    """The id git gives to a file; the client compares it to skip what has not changed."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubError(Exception):
    """An answer other than 200; `code` is what the client turns into its own exceptions."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class FakeHub:
    """Model repositories in memory, served over HTTP while the context lasts.

    It knows one branch (main), keeps every commit, stores all files as ordinary ones and validates nothing.
    """

    def __init__(self):
        self.commits = {}  # repository -> [(commit id, {path: bytes})], oldest first
        self.unhandled = []  # requests that no route knows
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer((HOST, 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://{HOST}:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exc):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def env(self, home):
        """The environment of a process that knows this Hub alone and keeps its caches in `home`."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        return env | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "any",
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": HOST,
            "no_proxy": HOST,
        }

    def files(self, repo, revision="main"):
        """Path -> bytes of one commit."""
        return self._commit(repo, revision)[1]

    def _commit(self, repo, revision):
        if repo not in self.commits:
            raise HubError(404, f"Repository not found: {repo}", "RepoNotFound")
        for commit in reversed(self.commits[repo]):
            if revision in ("main", commit[0]):
                return commit
        raise HubError(404, f"Revision not found: {revision}", "RevisionNotFound")

    def _add_commit(self, repo, tree):
        history = self.commits.setdefault(repo, [])
        listing = json.dumps([len(history), {path: blob_id(data) for path, data in sorted(tree.items())}])
        history.append((hashlib.sha1(listing.encode()).hexdigest(), tree))
        return history[-1][0]

    # What the client asks; each takes the body of the request and what the route's pattern caught.

    def validate_yaml(self, body):
        return {"errors": [], "warnings": []}

    def create_repo(self, body):
        spec = json.loads(body)
        repo = f"{spec.get('organization') or 'me'}/{spec['name']}"
        if repo not in self.commits:
            self._add_commit(repo, {})
        return {"url": f"{self.url}/{repo}", "name": repo}

    def preupload(self, body, repo, revision):
        tree = self.files(repo, revision)
        asked = [file["path"] for file in json.loads(body)["files"]]
        known = {path: blob_id(data) for path, data in tree.items()}
        common = {"uploadMode": "regular", "shouldIgnore": False}
        return {"files": [{"path": path, "oid": known.get(path), **common} for path in asked]}

    def commit(self, body, repo, revision):
        tree = dict(self.files(repo, revision))
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "file":
                tree[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                tree.pop(entry["value"]["path"], None)
        commit_id = self._add_commit(repo, tree)
        return {"commitOid": commit_id, "commitUrl": f"{self.url}/{repo}/commit/{commit_id}"}

    def tree(self, body, repo, revision, folder):
        tree = self.files(repo, revision).items()
        return [
            {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
            for path, data in sorted(tree)
            if not folder or path.startswith(f"{folder}/")
        ]

    def model_info(self, body, repo, revision):
        commit_id, tree = self._commit(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(tree)]
        return {"id": repo, "modelId": repo, "sha": commit_id, "siblings": siblings, "private": False, "tags": []}

    ROUTES = (
        ("POST", "/api/validate-yaml", validate_yaml),
        ("POST", "/api/repos/create", create_repo),
        ("POST", f"/api/models/{REPO}/preupload/(.+)", preupload),
        ("POST", f"/api/models/{REPO}/commit/(.+)", commit),
        ("GET", f"/api/models/{REPO}/tree/([^/]+)(?:/(.*))?", tree),
        ("GET", f"/api/models/{REPO}(?:/revision/(.+))?", model_info),
    )


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self):
        route, body = unquote(urlsplit(self.path).path), self._body()
        try:
            with self.hub.lock:
                data, headers = self._file(route) or self._api(route, body)
            status = 200
        except HubError as error:
            status, data, headers = error.status, json.dumps({"error": str(error)}).encode(), error.headers
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_POST = do_DELETE = answer

    def _api(self, route, body):
        for method, pattern, handler in FakeHub.ROUTES:
            match = re.fullmatch(pattern, route)
            if match and method == self.command:
                answer = handler(self.hub, body, *match.groups())
                return json.dumps(answer).encode(), {"Content-Type": "application/json"}
        self.hub.unhandled.append((self.command, route))
        raise HubError(404, f"no such endpoint: {self.command} {route}")

    def _file(self, route):
        match = re.fullmatch(f"/{REPO}/resolve/([^/]+)/(.+)", route)
        if match is None:
            return None
        repo, revision, path = match.groups()
        commit_id, tree = self.hub._commit(repo, revision)
        if path not in tree:
            raise HubError(404, f"Entry not found: {path}", "EntryNotFound")
        return tree[path], {"ETag": f'"{blob_id(tree[path])}"', "X-Repo-Commit": commit_id}

    def _body(self):
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)
