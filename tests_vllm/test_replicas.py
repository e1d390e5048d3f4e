"""Several engines through a local Ray: the same answers, also when one of them is killed at work."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
from families import prompts, save, wrong

from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.engines.vllm.engine import VLLMEngine
from proxytune.engines.vllm.running import Replicas
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import FamilySpec, describe, load

ray = pytest.importorskip("ray")
EXPERT = ("expert:math",)
ARMS = [Arm("base"), Arm("proxy", rule=Static(1.0), experts=EXPERT), Arm("dynamic", rule=MatchKL(), experts=EXPERT)]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> FamilySpec:
    return save("sliding_expert", tmp_path_factory.mktemp("family"))


def test_what_vllm_refuses_is_one_line(family: FamilySpec):
    with pytest.raises(UserError, match=r"a replica of vLLM could not start: .*memory") as refused:
        VLLMEngine(describe(family), family, memory=1e-4, replicas=2)
    assert "\n" not in str(refused.value)


def test_more_replicas_than_ray_has_room_for_are_one_line(family: FamilySpec):
    with pytest.raises(UserError, match=r"engine.replicas = 1000 needs 1000 CPUs, and Ray has \d+ free"):
        VLLMEngine(describe(family), family, replicas=1000)


@pytest.fixture(scope="module")
def engine(family: FamilySpec) -> Iterator[VLLMEngine]:
    engine = VLLMEngine(describe(family), family, batch_size=8, memory=0.2, replicas=2)
    yield engine
    engine.close()
    ray.shutdown()


def _replicas(engine: VLLMEngine) -> Replicas:
    assert isinstance(engine._running, Replicas)
    return engine._running


def test_two_replicas_share_the_requests(engine: VLLMEngine, family: FamilySpec):
    requests = [GenerateRequest(Prompt(tokens), 12) for tokens in prompts(12, 60)]
    _check(engine, family, requests)
    processes = ray.get([actor.process.remote() for actor in _replicas(engine).actors])
    assert len({*processes, os.getpid()}) == 3


def test_the_work_of_a_killed_replica_is_done_by_a_new_one(engine: VLLMEngine, family: FamilySpec):
    victim = ray.get(_replicas(engine).actors[0].process.remote())

    def kill() -> None:
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    requests = [GenerateRequest(Prompt(tokens), 60) for tokens in prompts(24, 80, seed=1)]
    _check(engine, family, requests)
    killer.join()
    assert victim not in ray.get([actor.process.remote() for actor in _replicas(engine).actors])


def _check(engine: VLLMEngine, family: FamilySpec, requests: list[GenerateRequest]) -> None:
    ensemble, seen = load(family), set()
    for i, name, answer in engine.generate(requests, ARMS):
        assert (i, name) not in seen
        seen.add((i, name))
        arm = next(arm for arm in ARMS if arm.name == name)
        assert wrong(ensemble, arm, requests[i].prompt.tokens, answer.tokens) == [], (i, name)
    assert len(seen) == len(requests) * len(ARMS)
