"""Whether a family fits into memory, before any weights are read. A container's or a job's limit counts as well."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from safetensors import SafetensorError

from proxytune.errors import UserError
from proxytune.models.family import Source
from proxytune.models.loading.adapters import modules_of
from proxytune.models.loading.sizes import adapter_bytes, cache_bytes, lora_bytes, weight_bytes

log = logging.getLogger(__name__)
GROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")
UNLIMITED = 1 << 60
"""Version 1 of Linux control groups says "no limit" with a number beyond any machine's memory."""


def check_memory(sources: Mapping[str, Source]) -> None:
    """Logs what the members of `sources` (by role) will take; modules that members share are counted once.

    Raises UserError if the weights whose size is known exceed the memory of the device that they go to. Members spread
    by `device_map=auto` or quantised on loading, and hub models that are not in the cache, are not counted but named.
    """
    sizes = _own_bytes(sources)
    known = {role: size for role, size in sizes.items() if size is not None}
    for device in dict.fromkeys(device_for(sources[role]) for role in known):
        _check_device(device, {role: size for role, size in known.items() if device_for(sources[role]) == device})
    found = {role: _if_sound(cache_bytes, source) for role, source in sources.items() if _counted(source)}
    caches = {role: 1000 * size for role, size in found.items() if size is not None}
    total = _text(sum(caches.values()))
    log.info("caches for each row of 1,000 tokens: about %s (%s)", total, _listing(caches))
    if unknown := [role for role, size in sizes.items() if size is None]:
        log.info("of unknown size before loading: %s", ", ".join(unknown))


def _check_device(device: str, sizes: Mapping[str, int]) -> None:
    needed, available = sum(sizes.values()), _available(device)
    log.info("weights on %s: about %s, available %s", device, _text(needed), _text(available))
    if needed > available:
        listing = _listing({role: size for role, size in sizes.items() if size})
        raise UserError(
            f"the weights need about {_text(needed)} on {device}, which has {_text(available)} available "
            f"({listing}): use a smaller dtype or model, quantization, or device_map=auto"
        )


def _own_bytes(sources: Mapping[str, Source]) -> dict[str, int | None]:
    """Bytes that each role adds to those before it: its module and its adapter, where they have neither."""
    sizes: dict[str, int | None] = {}
    modules, adapters = set[Hashable](), set[Hashable]()
    for (role, source), module in zip(sources.items(), modules_of(sources).values(), strict=True):
        adapter = source.module, source.adapter, source.adapter_revision
        parts = [0 if module in modules else _if_sound(weight_bytes, source)]
        if source.adapter is not None and adapter not in adapters:
            parts.append(_if_sound(adapter_bytes, source))
        known = [part for part in parts if part is not None]
        sizes[role] = sum(known) if _counted(source) and len(known) == len(parts) else None
        modules.add(module)
        adapters.add(adapter)
    return sizes


def check_training_memory(role: str, source: Source, lora_rank: int | None) -> None:
    """Raises UserError if training the model of `role` needs more than its device has; `lora_rank` None: all weights.

    Counted are the weights, and for each number that is trained, in float32, its gradient and Adam's two moments;
    activations, which depend on the length of the examples, are not. What cannot be known before loading is not
    checked, which is logged.
    """
    if lora_rank is None:
        source = replace(source, dtype="float32")
    weights = _if_sound(weight_bytes, source)
    adapter = 0 if lora_rank is None else _if_sound(partial(lora_bytes, lora_rank), source)
    if weights is None or adapter is None or not _counted(source):
        log.info("training %s: its memory is not known before loading", role)
        return
    needed = weights + adapter + 3 * (weights if lora_rank is None else adapter)
    device = device_for(source)
    available = _available(device)
    log.info("training on %s: about %s and activations, available %s", device, _text(needed), _text(available))
    if needed > available:
        raise UserError(
            f"{role}: training needs about {_text(needed)} and activations on {device}, which has {_text(available)} "
            "available: use another which=, training=lora, a smaller dtype or model, or several devices"
        )


def _if_sound(size: Callable[[Source], int | None], source: Source) -> int | None:
    """None for files that cannot be read: loading, which follows, says what is wrong with them."""
    try:
        return size(source)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def _counted(source: Source) -> bool:
    return source.quantization is None and source.device_map != "auto"


def device_for(source: Source) -> str:
    """Where its module goes."""
    return source.device_map or ("cuda:0" if torch.cuda.is_available() else "cpu")


def _available(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    machine = psutil.virtual_memory().available + psutil.swap_memory().free
    return int(min(machine, room()))


class _GroupFiles(NamedTuple):
    limit: str
    used: str
    cache: str
    """Entry of memory.stat: file cache that is freed when memory is needed."""


_V1 = _GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _GroupFiles("memory.max", "memory.current", "inactive_file")


def room(root: Path = GROUPS, own: Path = OWN_GROUP) -> float:
    """Bytes left to this process by the tightest control group that it is in; infinite where none limits it."""
    left = [_left(folder, files) for folder, files in _groups(root, own)]
    return min((bytes_left for bytes_left in left if bytes_left is not None), default=math.inf)


def _groups(root: Path, own: Path) -> Iterator[tuple[Path, _GroupFiles]]:
    """The folder of every group that limits the memory of this process, the innermost first."""
    lines = own.read_text().splitlines() if own.is_file() else []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            top, files = root, _V2
        elif "memory" in controllers.split(","):
            top, files = root / "memory", _V1
        else:
            continue
        folder = top / path.lstrip("/")
        yield from ((group, files) for group in (folder, *folder.parents) if group.is_relative_to(top))


def _left(group: Path, files: _GroupFiles) -> int | None:
    try:
        limit, used = (int((group / name).read_text()) for name in (files.limit, files.used))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not a group with a limit: there is no file, or it says "max"
        return None
    return None if limit >= UNLIMITED else max(0, limit - used + int(statistics.get(files.cache, 0)))


def _listing(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{role} {_text(size)}" for role, size in sizes.items())


def _text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
