"""From the members of a family to the arguments of a vLLM engine, after all possible checks."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from proxytune.engines.vllm.adapters import is_plain_lora
from proxytune.engines.vllm.copies import head_width, paddable, place_of
from proxytune.engines.vllm.settings import ARCHITECTURE, KEY, FusedSettings, Place, arm_to_dict
from proxytune.errors import UserError
from proxytune.fusion.arm import Arm
from proxytune.models.facts import MemberFacts, Members
from proxytune.models.family import FamilySpec, Source
from proxytune.models.vocabulary import check_head

_GIB = 2**30
_UNSUPPORTED = ("gguf_file", "device_map", "attn_implementation", "max_memory", "quantization")

_QUANTIZATIONS = ("fp8_per_block", "fp8_per_channel", "fp8_per_tensor", "mxfp4", "mxfp8")
"""What vLLM can do with the weights of linear layers while it loads them."""


def engine_arguments(
    members: Members[MemberFacts] | None,
    family: FamilySpec,
    arms: Iterable[Arm] | None = None,
    *,
    memory: float | None = None,
    max_model_len: int | None = None,
    tensor_parallel: int = 1,
    quantization: str | None = None,
) -> dict[str, Any]:
    """Arguments of vLLM's `LLM` and `EngineArgs` for the fused model of all `members`.

    Args:
        members: what `describe(family)` says of those that run.
        arms: those that requests may name, the first for requests that name none; None: requests bring their arms.
        memory: GiB for KV caches; None: vLLM's own choice.
        max_model_len: tokens of a request, prompt and answer; None: the smallest window of a member, and one more,
            which is never read.
        tensor_parallel: GPUs that share each member.
        quantization: how vLLM stores the weights of members that are not quantised already; None: as they are.

    Raises:
        UserError: for members that the fused model cannot hold.
    """
    members = _checked(members, family)
    sources = {role: family.weights(role) for role in members.members}
    widths = {role: _padding(role, member) for role, member in members.members.items()}
    for role, source in sources.items():
        _check_copied(role, source, widths[role], members[role])
    alone = tensor_parallel > 1 or quantization is not None
    shared = frozenset() if alone else _shared(sources, widths, members)
    places = {
        role: _beside(source) if role in shared else place_of(role, source, widths[role])
        for role, source in sources.items()
    }
    named = None if arms is None else {arm.name: arm for arm in arms}
    for arm in (named or {}).values():
        arm_to_dict(arm)  # refuses rules that the engine's process cannot build
    settings = FusedSettings(places, members.vocab_size, named)
    first = next(iter(places.values()))
    arguments = {
        "model": first.path,
        "revision": first.revision,
        "dtype": _dtype(members),
        "max_model_len": _length(members, max_model_len),
        "tensor_parallel_size": tensor_parallel,
        "quantization": _quantization(quantization),
        "load_format": "safetensors",
        "hf_overrides": {"architectures": [ARCHITECTURE], KEY: settings.to_dict()},
        "logits_processors": _processors(),
        "worker_extension_cls": "proxytune.engines.vllm.runners.WorkerExtension",
    }
    return arguments if memory is None else arguments | {"kv_cache_memory_bytes": int(memory * _GIB)}


@contextmanager
def refusals() -> Iterator[None]:
    """Around the start of vLLM: its own refusals as one line."""
    try:
        yield
    except ValidationError as error:
        raise UserError(f"vLLM refuses this engine: {error.errors()[0]['msg']}") from error
    except ValueError as error:
        raise UserError(f"vLLM refuses this engine: {' '.join(str(error).split())}") from error
    except RuntimeError as error:
        if "initialization failed" not in str(error):
            raise
        raise UserError("vLLM could not start; its log above says why") from error


def _checked(members: Members[MemberFacts] | None, family: FamilySpec) -> Members[MemberFacts]:
    for role in family.sources:
        if members is None or role in members.members:
            _check_source(role, family.weights(role))
    if members is None:
        raise UserError("a member's configuration does not say its number type, which vLLM must know: give it a dtype")
    for role, member in members.members.items():
        if member.missing:
            raise UserError(f"{role}: missing_tokens=base_only is not supported inside vLLM: use engine=hf")
        check_head(member, members.vocab_size, (), role)
        _check_known(role, member)
    return members


def _check_source(role: str, source: Source) -> None:
    for name in _UNSUPPORTED:
        if getattr(source, name) is not None:
            raise UserError(f"{role}: {name} is not supported inside vLLM: leave it out, or use engine=hf")
    if source.chat is not None:
        raise UserError(f"{role}: chat is not supported inside vLLM, where all members read one prompt: use engine=hf")
    if source.trust_remote_code:
        raise UserError(f"{role}: trust_remote_code=true is not supported inside vLLM: use engine=hf")


def _check_copied(role: str, source: Source, width: int | None, member: MemberFacts) -> None:
    """UserError for a member that needs a changed copy, of a checkpoint that nothing here can change."""
    if getattr(member.config, "quantization_config", None) is not None and (source.adapter or width):
        what = "its adapter cannot be merged" if source.adapter else "its attention heads cannot be padded"
        raise UserError(f"{role}: its checkpoint is quantised, so {what}: use engine=hf, or another checkpoint")


def _check_known(role: str, member: MemberFacts) -> None:
    """UserError for an architecture that vLLM does not know."""
    from vllm import ModelRegistry

    named = member.config.architectures or []
    if not set(named) & set(ModelRegistry.get_supported_archs()):
        kind = ", ".join(named) or member.config.model_type
        raise UserError(f"{role}: vLLM knows no architecture {kind}: use engine=hf, or another model")


def _shared(
    sources: Mapping[str, Source], widths: Mapping[str, int | None], members: Members[MemberFacts]
) -> frozenset[str]:
    """The roles whose LoRA adapters need no copy of the model under them: another member reads the same model."""
    uses = Counter(source.module for source in sources.values())
    return frozenset(
        role
        for role, source in sources.items()
        if source.adapter is not None
        and uses[source.module] > 1
        and widths[role] is None
        and is_plain_lora(source, members[role].config)
    )


def _beside(source: Source) -> Place:
    return Place(source.path, source.revision, source.adapter, source.adapter_revision)


def _padding(role: str, member: MemberFacts) -> int | None:
    """The width that its heads need for vLLM's attention on a CPU, which knows a few; None: they fit.

    Raises UserError where they cannot be padded: vLLM would notice in the run only.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return None
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    width, known = head_width(member.config), CPUAttentionBackend.get_supported_head_sizes()
    if width in known:
        return None
    wider = min((size for size in known if size > width), default=None)
    if wider is None or not paddable(member.config):
        listed = ", ".join(map(str, known))
        raise UserError(
            f"{role}: its attention heads are {width} wide; on a CPU vLLM knows {listed}: use engine=hf, or a GPU"
        )
    return wider


def _dtype(members: Members[MemberFacts]) -> str:
    """The one number type of all members: vLLM has one for the whole engine."""
    found = {role: str(member.dtype).removeprefix("torch.") for role, member in members.members.items()}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{role} is {dtype}" for role, dtype in found.items())
        raise UserError(f"vLLM computes all members in one number type, but {listed}: give every source the same dtype")
    return next(iter(found.values()))


def _quantization(asked: str | None) -> str | None:
    from vllm.platforms import current_platform

    if asked is not None and asked not in _QUANTIZATIONS:
        raise UserError(
            f"quantization={asked} is not allowed: give one of {', '.join(_QUANTIZATIONS)}, or null for the weights as "
            "they are (a checkpoint that is quantised says so itself)"
        )
    if asked == "fp8_per_tensor" and current_platform.is_cpu():  # vLLM would only notice while it loads
        raise UserError(f"vLLM has no kernel for quantization={asked} on a CPU: use fp8_per_channel, or a GPU")
    return asked


def _length(members: Members[MemberFacts], asked: int | None) -> int:
    windows = {role: member.window for role, member in members.members.items() if member.window is not None}
    if not windows and asked is None:
        raise UserError("no member's configuration says how many tokens it reads: give max_model_len")
    # The last token of an answer is never read, so that a request may be one token longer than the window.
    longest = min(windows.values(), default=asked or 0) + 1
    if asked is not None and not 2 <= asked <= longest:
        raise UserError(
            f"max_model_len={asked} is not allowed: give a number of tokens from 2 to {longest}, or null for {longest}"
        )
    os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] = "1"
    return longest if asked is None else asked


def _processors() -> list[str] | None:
    """Under the V1 runner the one that tells the model which requests run; V2 refuses it and has a hook instead."""
    from vllm import envs
    from vllm.triton_utils import HAS_TRITON

    uses_v2 = HAS_TRITON if envs.VLLM_USE_V2_MODEL_RUNNER is None else envs.VLLM_USE_V2_MODEL_RUNNER
    return None if uses_v2 else ["proxytune.engines.vllm.runners:V1Rows"]
