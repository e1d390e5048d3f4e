"""How much memory a family will take, estimated before any weights are read."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from proxytune.errors import UserError
from proxytune.models.family import Source, is_local
from proxytune.models.loading import control_group
from proxytune.models.loading.adapters import module_of

_log = logging.getLogger(__name__)
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
"""Bytes of a stored number by safetensors' name of its type; of all other types 1."""
_FLOATS = {"F64", "F32", "F16", "BF16"}


def check_memory(sources: Mapping[str, Source]) -> None:
    """Logs what the members of `sources` (by role) will take; modules that members share are counted once.

    Raises UserError if the weights whose size is known exceed the memory of the device that they go to. Members spread
    by `device_map=auto` or quantised on loading, and hub models that are not in the cache, are left out, and said so.
    """
    sizes = {role: _if_sound(partial(_own_bytes, sources, role), source) for role, source in sources.items()}
    known = {role: size for role, size in sizes.items() if size is not None}
    devices: dict[str, int] = {}
    for role, size in known.items():
        devices[_device(sources[role])] = devices.get(_device(sources[role]), 0) + size
    for device, needed in devices.items():
        available = _available(device)
        _log.info("weights on %s: about %s, available %s", device, _text(needed), _text(available))
        if needed > available:
            listing = ", ".join(f"{role} {_text(size)}" for role, size in known.items() if size)
            raise UserError(
                f"the weights need about {_text(needed)} on {device}, which has {_text(available)} available "
                f"({listing}): use a smaller dtype or model, quantization, or device_map=auto"
            )
    caches = {role: _if_sound(cache_bytes, source) for role, source in sources.items() if _counted(source)}
    listing = ", ".join(f"{role} {_text(1000 * size)}" for role, size in caches.items() if size is not None)
    total = 1000 * sum(size for size in caches.values() if size is not None)
    _log.info("caches for each row of 1,000 tokens: about %s (%s)", _text(total), listing)
    if unknown := [role for role, size in sizes.items() if size is None]:
        _log.info("of unknown size before loading: %s", ", ".join(unknown))


def _own_bytes(sources: Mapping[str, Source], role: str, source: Source) -> int | None:
    """Bytes that `role` adds to those of the roles before it: its module and its adapter, where they have neither."""
    if not _counted(source):
        return None
    before = list(sources.values())[: list(sources).index(role)]
    module = 0 if any(module_of(other) == module_of(source) for other in before) else weight_bytes(source)
    adapter = 0 if source.adapter is None or _same_adapter(source, before) else adapter_bytes(source)
    return None if module is None or adapter is None else module + adapter


def _same_adapter(source: Source, others: Sequence[Source]) -> bool:
    ours = (source.module, source.adapter, source.adapter_revision)
    return any((other.module, other.adapter, other.adapter_revision) == ours for other in others)


def check_training_memory(role: str, source: Source, lora_rank: int | None) -> None:
    """Raises UserError if training the model of `role` needs more than its device has; `lora_rank` None: all weights.

    Counted are the weights, and for each number that is trained, in float32, its gradient and Adam's two moments;
    activations, which depend on the length of the examples, are not. What cannot be known before loading is not
    checked, and said so.
    """
    if lora_rank is None:
        source = replace(source, dtype="float32")
    weights = _if_sound(weight_bytes, source)
    adapter = 0 if lora_rank is None else _if_sound(partial(_lora_bytes, lora_rank), source)
    if weights is None or adapter is None or not _counted(source):
        _log.info("training %s: its memory is not known before loading", role)
        return
    needed = weights + adapter + 3 * (weights if lora_rank is None else adapter)
    device, available = _device(source), _available(_device(source))
    _log.info("training on %s: about %s and activations, available %s", device, _text(needed), _text(available))
    if needed > available:
        raise UserError(
            f"{role}: training needs about {_text(needed)} and activations on {device}, which has {_text(available)} "
            "available: use another which=, training=lora, a smaller dtype or model, or several devices"
        )


def _lora_bytes(rank: int, source: Source) -> int | None:
    """Bytes of a float32 adapter of `rank` over every matrix but the embedding and the head; None where unknown."""
    if source.gguf_file is not None:
        file = _file(source, source.gguf_file)
        shapes = None if file is None else _gguf_shapes(file)
    else:
        files = _weight_files(source)
        shapes = None if files is None else [pair for file in files for pair in _shapes(file)]
    if shapes is None:
        return None
    return 4 * rank * sum(sum(shape) for name, shape in shapes if _adapted(name, shape))


def _adapted(name: str, shape: Sequence[int]) -> bool:
    outside = name.startswith("output.") or any(part in name for part in ("embd", "embed", "lm_head", "wte", "wpe"))
    return len(shape) == 2 and not outside


def _shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            yield name, tensors.get_slice(name).get_shape()


def _weight_files(source: Source) -> list[Path] | None:
    index, single = _file(source, "model.safetensors.index.json"), _file(source, "model.safetensors")
    found = single or index
    if found is None:
        return None
    return [found] if found == single else list(found.parent.glob("*.safetensors"))


def _if_sound(size: Callable[[Source], int | None], source: Source) -> int | None:
    """None for files that cannot be read: loading, which follows, says what is wrong with them."""
    try:
        return size(source)
    except (OSError, ValueError, KeyError, SafetensorError):
        return None


def weight_bytes(source: Source) -> int | None:
    """Bytes of the module's weights in memory; None where its files are not here."""
    if source.gguf_file is not None:
        file = _file(source, source.gguf_file)
        return None if file is None else _gguf_numbers(file) * (_size(source) or 4)
    files = _weight_files(source)
    return None if files is None else sum(_tensor_bytes(file, source) for file in files)


def adapter_bytes(source: Source) -> int | None:
    """Bytes of the adapter's weights in memory, which PEFT keeps in float32; None where its file is not here."""
    assert source.adapter is not None
    file = _file(replace(source, path=source.adapter, revision=source.adapter_revision), "adapter_model.safetensors")
    return None if file is None else 4 * sum(math.prod(shape) for _, shape in _shapes(file))


def cache_bytes(source: Source) -> int | None:
    """Bytes of the keys and values of one token of one row; None where the config is not here."""
    file = _file(source, source.gguf_file or "config.json")
    if file is None:
        return None
    config = AutoConfig.from_pretrained(
        file.parent, gguf_file=source.gguf_file, trust_remote_code=source.trust_remote_code
    ).get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * width * (_size(source) or (config.dtype or torch.float32).itemsize)


def _counted(source: Source) -> bool:
    return source.quantization is None and source.device_map != "auto"


def _device(source: Source) -> str:
    return source.device_map or ("cuda:0" if torch.cuda.is_available() else "cpu")


def _available(device: str) -> int:
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    machine = psutil.virtual_memory().available + psutil.swap_memory().free
    return int(min(machine, control_group.room()))


def _size(source: Source) -> int | None:
    """Bytes of a number in the type the source asks for; None: as stored."""
    return None if source.dtype == "auto" else getattr(torch, source.dtype).itemsize


def _file(source: Source, name: str) -> Path | None:
    if is_local(source.path):
        file = Path(source.path).expanduser() / name
        return file if file.is_file() else None
    cached = try_to_load_from_cache(source.path, name, revision=source.revision)
    return Path(cached) if isinstance(cached, str) else None


def _tensor_bytes(file: Path, source: Source) -> int:
    """From the file's header alone."""
    total = 0
    with safe_open(file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (no mapping)
            tensor = tensors.get_slice(name)
            kind = tensor.get_dtype()
            size = _size(source) if kind in _FLOATS else None
            total += math.prod(tensor.get_shape()) * (size or _BYTES.get(kind, 1))
    return total


def _gguf_numbers(file: Path) -> int:
    return sum(math.prod(shape) for _, shape in _gguf_shapes(file))


@lru_cache
def _gguf_shapes(file: Path) -> list[tuple[str, list[int]]]:
    from gguf import GGUFReader

    return [(tensor.name, [int(size) for size in tensor.shape]) for tensor in GGUFReader(file).tensors]


def _text(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
