"""A stand-in for W&B's server: takes whatever W&B's client sends, and remembers it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ME = {"id": "e", "name": "me"}


@dataclass
class Received:
    """What came of one run."""

    described: dict[str, Any] = field(default_factory=dict)
    """Group, tags, configuration and so on, as first sent."""
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None
    uploads: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, dies: bool) -> None:
        """One that `dies` does so once it has opened a run."""
        super().__init__(("127.0.0.1", 0), _Handler)
        self.dies = dies
        self.runs: dict[str, Received] = {}
        self.asked: list[str] = []
        """Names of the queries."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def query(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """The answer to a GraphQL query, with no more in it than the client needs."""
        self.asked.append(name)
        if name == "Viewer":
            return {"viewer": {"id": "v", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        if name == "RunResumeStatus":
            return {
                "model": {"id": "p", "name": given["project"], "entity": ME, "bucket": self._resumed(given["name"])}
            }
        if name == "UpsertBucket":
            return {"upsertBucket": {"bucket": self._run(given), "inserted": True}}
        if name == "CreateArtifact":
            self._artifact(given["input"])
            state = {"id": "a", "state": "COMMITTED", "artifactSequence": {"latestArtifact": {"id": "a"}}}
            return {"createArtifact": {"artifact": state}}
        if name == "CreateRunFiles":
            files = [{"name": file, "uploadUrl": f"{self.url}/{given['run']}/{file}"} for file in given["files"]]
            return {"createRunFiles": {"runID": given["run"], "uploadHeaders": [], "files": files}}
        return {"project": None}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        """What the client must know to go on with a run; None for a new one."""
        if name not in self.runs:
            return None
        run = self.runs[name]
        tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
        config = {key: {"value": value} for key, value in run.config.items()}
        return {
            **{"id": "r", "name": name, "displayName": name, "tags": [], "notes": None, "wandbConfig": '{"t": 1}'},
            **{"logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0, "eventsTail": "[]"},
            **{"summaryMetrics": json.dumps(run.summary), "historyTail": tail, "config": json.dumps(config)},
        }

    def _run(self, given: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(given["name"], Received())
        run.described = given | run.described
        config = json.loads(given.get("config") or "{}")
        run.config |= {name: value["value"] for name, value in config.items()}
        project = {"id": "p", "name": given["project"], "entity": ME}
        named = {"id": "r", "name": given["name"], "displayName": given["displayName"], "config": "{}"}
        return {**named, "description": None, "sweepName": None, "project": project, "historyLineCount": 0}

    def _artifact(self, given: dict[str, Any]) -> None:
        self.runs[given["runName"]].artifacts.append(given["artifactCollectionName"])

    @property
    def gone(self) -> bool:
        return self.dies and bool(self.runs)

    def stream(self, run: Received, sent: dict[str, Any]) -> None:
        """Lines of the run's files, or its end."""
        for name, chunk in (sent.get("files") or {}).items():
            lines = [json.loads(line) for line in chunk["content"]]
            if name == "wandb-history.jsonl":
                run.history += lines
            elif name == "wandb-summary.json":
                run.summary = lines[-1]
        if sent.get("complete"):
            run.exit_code = sent["exitcode"]


@contextmanager
def serving(dies: bool = False) -> Iterator[Server]:
    """A server on the loopback interface, see `Server`."""
    server = Server(dies)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def parse_request(self) -> bool:
        """A server that is gone ends each connection without an answer."""
        return super().parse_request() and not self.server.gone

    def do_POST(self) -> None:
        body, parts = self._body(), self.path.strip("/").split("/")
        if parts[0] == "files":  # files/<entity>/<project>/<run>/file_stream
            self.server.stream(self.server.runs[parts[3]], json.loads(body))
            self._reply({"exitcode": None, "limits": {}})
        elif parts[0] == "graphql":
            sent = json.loads(body)
            self._reply({"data": self.server.query(sent.get("operationName") or "", sent.get("variables") or {})})
        else:  # W&B's own statistics
            self._reply({})

    def do_PUT(self) -> None:
        run, _, name = self.path.strip("/").partition("/")
        self.server.runs[run].uploads[name] = self._body()
        self._reply({})

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _reply(self, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""
