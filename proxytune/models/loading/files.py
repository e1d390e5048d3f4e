"""A model's files in a folder or on the hub: where they are, what identifies them, errors in one line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from proxytune.errors import UserError, first_line
from proxytune.models.api.endpoint import Endpoint
from proxytune.models.family import Source, is_local


def locate(path: str, filename: str, revision: str | None = None) -> Path | None:
    """`filename` of a local folder or hub id; None where it has no such file; UserError where it can't be reached."""
    if is_local(path):
        file = Path(path).expanduser() / filename
        return file if file.is_file() else None
    with hub_errors(path, revision):
        try:
            return Path(hf_hub_download(path, filename, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return None


@contextmanager
def hub_errors(path: str, revision: str | None = None) -> Iterator[None]:
    """Turns the hub's errors into one line."""
    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{path!r} is gated: ask for access on its hub page, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{path!r} is neither a local folder nor a model on the hub (for a private one, run `hf auth login`)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{path!r} has no revision {revision!r}: give a branch, a tag or a commit of it") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise UserError(
            f"{path!r}{at} is neither a local folder nor in the local hub cache, and the hub can't be reached: "
            "check the name, or download it while online"
        ) from error
    except HFValidationError as error:
        raise UserError(f"{path!r} is neither a local folder nor a possible hub id") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub can't serve {path!r}{at}: {str(error).splitlines()[0]}") from error


def read_source(kind: Any, role: str, source: Source, **settings: Any) -> Any:
    """`kind.from_pretrained` of a source, without its adapter. Raises UserError, one line that names the role."""
    with source_errors(role, source):
        return kind.from_pretrained(
            source.module.path,
            revision=source.revision,
            gguf_file=source.gguf_file,
            trust_remote_code=source.trust_remote_code,
            **settings,
        )


@contextmanager
def source_errors(role: str, source: Source) -> Iterator[None]:
    """Turns what transformers and the hub raise for a wrong source into one line that names the role."""
    try:
        with hub_errors(source.path, source.revision):
            yield
    except UserError as error:
        raise UserError(f"{role}: {error}") from error
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, SafetensorError) as error:
        if "trust_remote_code" in str(error) and not source.trust_remote_code:
            raise UserError(
                f"{role}: {source.path!r} needs code that comes with it, which does not run here: "
                "read that code, and if you trust it set trust_remote_code=true"
            ) from error
        raise UserError(f"{role}: can't load {source.path!r}: {first_line(error)}") from error


def read_json(config: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where it holds none."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is not JSON ({error}): get the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"{config} is not a JSON object: get the file again")
    return values


_IDLE = (
    ".*",
    "*.md",
    "LICENSE*",
    "*.bin",  # pickled weights and the states of optimisers, which are not read
    "*.pt",
    "*.pth",
    "*.h5",
    "*.msgpack",
    "*.onnx",
    "recipe.json",  # what training notes beside the model
    "training.json",
    "trainer_state.json",
)
"""The files of a model folder that cannot change an answer. All others count, known or not."""
_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})/")


def identity(source: Source | Endpoint) -> str:
    """Identifies what `source` answers by content: a hub commit or a hash of its files, adapter, precision, attention.

    Nothing is loaded; a folder that was moved keeps its identity.
    """
    if isinstance(source, Endpoint):
        return source.identity
    parts = [_content(source.path, source.revision, source.gguf_file)]
    if source.adapter is not None:
        parts.append(f"adapter={_content(source.adapter, source.adapter_revision)}")
    parts.append(f"dtype={source.dtype}")
    if source.trust_remote_code:
        parts.append("trust_remote_code")
    if source.attn_implementation is not None:
        parts.append(f"attn={source.attn_implementation}")
    if source.quantization is not None:
        parts.append(f"quantization={json.dumps(dict(source.quantization), sort_keys=True)}")
    if source.chat is not None:
        parts.append(f"chat={json.dumps(asdict(source.chat), sort_keys=True)}")
    return " ".join(parts)


def _content(path: str, revision: str | None, gguf_file: str | None = None) -> str:
    if is_local(path):
        return _folder_hash(Path(path).expanduser(), gguf_file)
    names = [gguf_file] if gguf_file is not None else ["config.json", "adapter_config.json"]
    file = next(found for name in names if (found := locate(path, name, revision)) is not None)
    commit = _COMMIT.search(file.as_posix())
    return f"{path}@{commit[1] if commit else revision}" + (f"/{gguf_file}" if gguf_file is not None else "")


def _folder_hash(folder: Path, gguf_file: str | None) -> str:
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*"), *folder.glob("additional_chat_templates/*")]):
        if file.is_file() and _counts(file, gguf_file):
            stat = file.stat()
            name = file.relative_to(folder).as_posix()
            digest.update(f"{name} {_file_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def _counts(file: Path, gguf_file: str | None) -> bool:
    other_weights = "*.gguf" if gguf_file is None else "*.safetensors"
    if file.suffix == ".gguf" and gguf_file is not None:
        return file.name == gguf_file
    return not any(fnmatch(file.name, pattern) for pattern in (*_IDLE, other_weights))


@lru_cache(maxsize=4096)
def _file_hash(file: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file's bytes; size and time are there to notice that it changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
