"""Finds a model's files in a folder or on the hub, and reports errors in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
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

from proxytune.errors import UserError
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


def first_line(error: Exception) -> str:
    """The line of an error that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def read_json(config: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where it holds none."""
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{config} is not JSON ({error}): get the file again") from error
    if not isinstance(values, dict):
        raise UserError(f"{config} is not a JSON object: get the file again")
    return values
