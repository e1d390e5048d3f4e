"""The identity of a source: a hub commit, or a hash of its files."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from proxytune.models.api.endpoint import Endpoint
from proxytune.models.family import Source, is_local
from proxytune.models.loading.files import locate

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
