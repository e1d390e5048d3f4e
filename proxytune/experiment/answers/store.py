"""Finished answers on disk, from which an interrupted run resumes. One SQLite file, which any number of runs share."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import sqlite3
import time
import zlib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from proxytune.engines.requests import Answer, Generated, Scored, Trace
from proxytune.errors import UserError
from proxytune.provenance import code_version
from proxytune.record import EndpointUsage

log = logging.getLogger(__name__)
_KINDS: dict[str, type[Scored] | type[Generated]] = {"scored": Scored, "generated": Generated}
_TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL, "
    "code TEXT NOT NULL, written REAL NOT NULL)"  # the code version, and seconds since 1970: for clearing out
)
_SIMILAR = (
    "CREATE TABLE IF NOT EXISTS similar (asked TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (asked, key)) "
    "WITHOUT ROWID"  # the answers of all arms to one request
)
_ABORTED = (
    "CREATE TABLE IF NOT EXISTS aborted (endpoint TEXT NOT NULL, requests INTEGER NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"  # what runs that did not finish had asked
)
SIMILAR = 8
"""Answers at most to the same request that are worth reading as drafts of another one."""
_WAIT_SECONDS = 60.0


class AnswerStore:
    """Answers by key (`answers.keys`), committed as soon as they are put.

    A process that is killed loses nothing that was put; a power cut may cost the last answers, never the file (SQLite's
    write-ahead log). Several processes may use one store. Every row carries a checksum: a damaged row is reported,
    remembered in `damaged` and treated as absent, so that its answer is computed again.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        """`path` is made if need be; None keeps the answers in memory. Raises UserError if it is no usable store."""
        self.path = None if path is None else Path(path).expanduser()
        self.damaged: set[str] = set()
        if self.path is not None:
            _make_folder(self.path.parent)
        self._db = self._open()

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """The answers that are there and sound, by key."""
        found = {}
        wanted = list(dict.fromkeys(keys))
        for some in (wanted[start : start + 500] for start in range(0, len(wanted), 500)):
            marks = ",".join("?" * len(some))
            for key, value, checksum in self._read(
                f"SELECT key, value, checksum FROM answers WHERE key IN ({marks})", some
            ):
                if checksum == checksum_of(key, value):
                    found[key] = decode(value)
                else:
                    self._report(key)
        return found

    def similar(self, asked: Sequence[str], without: Set[str]) -> dict[str, tuple[tuple[int, ...], ...]]:
        """By what was `asked`, the tokens of what arms of any run generated, by any version, newest first.

        `without` are keys of answers that are not wanted. What is damaged is left out.
        """
        return {one: self._similar(one, without) for one in dict.fromkeys(asked)}

    def _similar(self, asked: str, without: Set[str]) -> tuple[tuple[int, ...], ...]:
        rows = self._read(
            "SELECT key, value, checksum FROM similar JOIN answers USING (key) WHERE asked = ? "
            "ORDER BY written DESC, key LIMIT ?",
            [asked, SIMILAR + len(without)],
        )
        sound = [value for key, value, checksum in rows if key not in without and checksum == checksum_of(key, value)]
        return tuple(tuple(json.loads(value)["tokens"]) for value in sound[:SIMILAR])

    def note(self, asked: Mapping[str, str]) -> None:
        """Keeps by key the requests of the answers that are put next, so that `similar` finds them."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                pairs = [(one, key) for key, one in asked.items()]
                self._db.executemany("INSERT OR IGNORE INTO similar VALUES (?, ?)", pairs)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def put(self, answers: Mapping[str, Answer]) -> None:
        """All of them are durable once this returns, or none; replaces what was there."""
        values = {key: encode(answer) for key, answer in answers.items()}
        now = time.time()
        rows = [(key, value, checksum_of(key, value), code_version(), now) for key, value in values.items()]
        try:
            # The transaction takes the lock at the start: one that had to be upgraded might fail at once.
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def add_aborted(self, endpoint: str, usage: EndpointUsage) -> None:
        """Keeps what an unfinished run has asked an endpoint, by the endpoint's identity."""
        self._read("INSERT INTO aborted VALUES (?, ?, ?, ?)", (endpoint, *usage.model_dump().values()))

    def take_aborted(self, endpoint: str) -> EndpointUsage:
        """The sum of what such runs have asked since the last call."""
        rows = self._read("DELETE FROM aborted WHERE endpoint = ? RETURNING *", (endpoint,))
        requests, prompt, completion = (sum(row[i] for row in rows) for i in (1, 2, 3))
        return EndpointUsage(requests=requests, prompt_tokens=prompt, completion_tokens=completion)

    def __len__(self) -> int:
        return self._read("SELECT COUNT(*) FROM answers")[0][0]

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(":memory:" if self.path is None else self.path, _WAIT_SECONDS, isolation_level=None)
            if db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                # A database of another kind, or of another layout, is refused before anything in it is changed.
                db.execute("SELECT key, value, checksum, code, written FROM answers LIMIT 0")
            _use_write_ahead_log(db)
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_TABLE)
            db.execute(_SIMILAR)
            db.execute(_ABORTED)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return db

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> UserError:
        if "full" in str(error) or "I/O" in str(error):
            return UserError(
                f"answer store {self.path}: {error}; what was stored before is safe: make room on the disk and "
                "re-run the same command, or choose another file with store=PATH"
            )
        return UserError(f"answer store {self.path}: {error}; move the file away or choose another one with store=PATH")

    def _report(self, key: str) -> None:
        self.damaged.add(key)
        log.warning("answer store %s: entry %s is damaged and will be computed again", self.path, key[:12])


def encode(answer: Answer) -> str:
    """An answer as JSON; floats come back bit for bit."""
    fields = {"kind": type(answer).__name__.lower(), **vars(answer)}
    if fields.get("trace") is not None:
        fields["trace"] = _packed(vars(fields["trace"]))
    return json.dumps(fields)


def decode(value: str) -> Answer:
    fields = json.loads(value)
    trace = fields.pop("trace", None)
    answer = {name: _frozen(field) for name, field in fields.items()}
    if trace is not None:
        trace = _unpacked(trace) if isinstance(trace, str) else trace  # older stores have it as it is
        top = {name: _frozen(field) for name, field in trace.pop("top").items()}
        answer["trace"] = Trace(**{name: _frozen(field) for name, field in trace.items()}, top=top)
    return _KINDS[answer.pop("kind")](**answer)


def _packed(trace: Mapping[str, Any]) -> str:
    """A trace, which is longer than its answer, as compressed JSON in base64."""
    text = json.dumps(trace, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode())).decode("ascii")


def _unpacked(trace: str) -> dict[str, Any]:
    return json.loads(zlib.decompress(base64.b64decode(trace)))


def _frozen(field: Any) -> Any:
    return tuple(_frozen(x) for x in field) if isinstance(field, list) else field


def checksum_of(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\n{value}".encode()).hexdigest()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path} of the answer store: {error.strerror}") from error


def _use_write_ahead_log(db: sqlite3.Connection) -> None:
    """Switching a new file over needs it alone, and SQLite does not wait for that by itself."""
    patience = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > patience:
                raise
            time.sleep(0.05)
