"""Finding a model's files in a folder or on the hub, and naming what they hold."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

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

from proxytune.errors import UserError
from proxytune.models.family import Source, is_local

_CONTENT = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.jinja",
    "*.py",  # with trust_remote_code
)
"""The files of a model folder that decide what the model answers."""
_COMMIT = re.compile(r"/snapshots/([0-9a-f]{40})/")


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
    """Turns what the hub may answer into one line."""
    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except GatedRepoError as error:
        raise UserError(f"{path!r} is gated: ask for access on its hub page, then run `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{path!r} is neither a local folder nor a model on the hub (for a private one, run `hf auth login`)."
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{path!r} has no revision {revision!r}: give a branch, a tag or a commit of it.") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise UserError(
            f"{path!r}{at} is neither a local folder nor in the local hub cache, and the hub can't be reached: "
            "check the name, or download it while online."
        ) from error
    except HFValidationError as error:
        raise UserError(f"{path!r} is neither a local folder nor a possible hub id.") from error
    except HfHubHTTPError as error:
        raise UserError(f"the hub can't serve {path!r}{at}: {str(error).splitlines()[0]}") from error


def identity(source: Source) -> str:
    """Names what `source` answers by its content: a hub commit or a hash of its files, adapter, precision, attention.

    Nothing is loaded; a folder that was moved keeps its identity.
    """
    parts = [_content(source.path, source.revision, source.gguf_file)]
    if source.adapter is not None:
        parts.append(f"adapter={_content(source.adapter, source.adapter_revision)}")
    parts.append(f"dtype={source.dtype}")
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
    named = [folder / gguf_file] if gguf_file is not None else [f for p in _CONTENT for f in folder.glob(p)]
    files = sorted({file for file in named if file.is_file()})
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name} {_file_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


@lru_cache(maxsize=4096)
def _file_hash(file: Path, size: int, mtime_ns: int) -> str:
    """Hash of a file's bytes; size and time are there to notice that it changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
