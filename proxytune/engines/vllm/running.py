"""The running vLLM engine, or several of them through Ray, behind one method: settings and prompts in, outputs out."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from proxytune.engines.vllm.decoding import KeptWeights
from proxytune.engines.vllm.launch import refusals
from proxytune.errors import UserError, first_line

log = logging.getLogger(__name__)
_QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
_PIECES = 4
"""Pieces of work for each replica in a call: small enough that none waits long for the last, large enough to batch."""
_DEATHS = 3
"""Replicas that may be lost one after another without a finished piece between."""


class VLLMRequest(NamedTuple):
    """A request of vLLM's."""

    tag: str
    """Under which the weights are kept."""
    prompt: tuple[int, ...]
    sampling: dict[str, Any]
    """Arguments of `SamplingParams`, `extra_args` among them."""


Outputs = dict[str, tuple[Any, KeptWeights]]
"""vLLM's output and the weights kept, by tag."""


def _quieten() -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)


class Local:
    """A vLLM engine of this process; with several GPUs vLLM starts workers of its own."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        _quieten()
        if arguments["tensor_parallel_size"] == 1:
            os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM
        from vllm.platforms import current_platform

        with refusals():
            self._llm = LLM(**arguments, enforce_eager=current_platform.is_cpu(), disable_log_stats=True)

    def run(self, requests: Sequence[VLLMRequest]) -> Outputs:
        """Raises whatever vLLM raises."""
        from vllm import SamplingParams

        if not requests:
            return {}
        settings = [SamplingParams(temperature=0, **request.sampling) for request in requests]
        prompts: list[Any] = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        outputs = self._llm.generate(prompts, settings, use_tqdm=False)
        kept = {tag: dict(pairs) for tag, pairs in self._llm.collective_rpc("take_weights")[0].items()}
        return {request.tag: (output, kept[request.tag]) for request, output in zip(requests, outputs, strict=True)}

    def process(self) -> int:
        return os.getpid()

    def close(self) -> None:
        """Ends vLLM and frees its memory."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()


class Replicas:
    """vLLM engines in processes of their own, which Ray places on this machine, or on the cluster it is connected to.

    Each takes pieces of the work, one after another. The piece of one that dies is given to a new one in its place.
    """

    def __init__(self, arguments: dict[str, Any], count: int) -> None:
        import ray
        from vllm.platforms import current_platform

        _quieten()
        self._ray = ray
        if not ray.is_initialized():
            try:
                ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
            except (ConnectionError, RuntimeError) as error:
                raise UserError(
                    f"no connection to Ray: {first_line(error)}; see RAY_ADDRESS and RAY_AUTH_MODE"
                ) from error
        each = {"CPU": 1} if current_platform.is_cpu() else {"GPU": arguments["tensor_parallel_size"]}
        self._check_room(each, count)
        bind = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if current_platform.is_cpu() else {}  # or all bind to one core
        environment = {**bind, **{name: value for name, value in os.environ.items() if name.startswith("VLLM_")}}
        kind = ray.remote(
            num_cpus=each.get("CPU", 0), num_gpus=each.get("GPU", 0), runtime_env={"env_vars": environment}
        )(Local)
        self._make: Callable[[], Any] = lambda: kind.remote(arguments)
        self.actors = [self._make() for _ in range(count)]
        self._started()

    def _check_room(self, each: dict[str, int], count: int) -> None:
        """Raises UserError where Ray would wait for a free GPU, or core, for ever."""
        [(what, needed)] = each.items()
        free = int(self._ray.available_resources().get(what, 0))
        if count * needed > free:
            raise UserError(
                f"engine.replicas = {count} needs {count * needed} {what}s, and Ray has {free} free: give fewer, or "
                "connect to a larger cluster (RAY_ADDRESS)"
            )

    def _started(self) -> None:
        """Waits until all run. Raises UserError for what vLLM refuses."""
        try:
            self._ray.get([actor.process.remote() for actor in self.actors])
        except self._ray.exceptions.ActorDiedError as error:
            self.close()
            reason = error.__cause__ or error
            raise UserError(f"a replica of vLLM could not start: {' '.join(str(reason).split())[-500:]}") from error

    def run(self, requests: Sequence[VLLMRequest]) -> Outputs:
        """Raises whatever vLLM raises, and UserError after `_DEATHS` deaths without a finished piece between."""
        size = max(1, -(-len(requests) // (_PIECES * len(self.actors))))
        waiting = deque(requests[start : start + size] for start in range(0, len(requests), size))
        idle, deaths = list(range(len(self.actors))), 0
        working: dict[Any, tuple[int, Sequence[VLLMRequest]]] = {}
        outputs: Outputs = {}
        while waiting or working:
            while waiting and idle:
                replica, piece = idle.pop(), waiting.popleft()
                working[self.actors[replica].run.remote(piece)] = replica, piece
            [done], _ = self._ray.wait(list(working), num_returns=1)
            replica, piece = working.pop(done)
            try:
                outputs |= self._ray.get(done)
                deaths = 0
            except self._ray.exceptions.RayActorError as error:
                deaths += 1
                if deaths > _DEATHS:
                    raise UserError(f"replicas of vLLM die one after another: {str(error).splitlines()[0]}") from error
                log.warning(
                    "replica %d was lost; a new one takes its place and does its %d requests", replica, len(piece)
                )
                self.actors[replica] = self._make()
                waiting.appendleft(piece)
            idle.append(replica)
        return outputs

    def close(self) -> None:
        """Ends the replicas; Ray itself stays."""
        for actor in self.actors:
            self._ray.kill(actor)
