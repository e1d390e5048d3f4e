"""`proxytune serve` with the real OpenAI client over HTTP, on this machine alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
from engine_reference import score
from families import prompts, save, wrong
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from tiny import WINDOW, free_port

from proxytune.engines.requests import Prompt, ScoreRequest
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, load

EXPERT = ("expert:math",)
ARMS = {
    "proxy": Arm("proxy", rule=Static(1.0), experts=EXPERT),
    "dynamic": Arm("dynamic", rule=MatchKL(), experts=EXPERT),
    "base": Arm("base"),
    "fused": Arm("fused", rule=Static(0.3), experts=EXPERT),
}
START = 240.0
"""Seconds that a server may take to start on two slow cores."""


@dataclass
class Server:
    process: subprocess.Popen
    client: openai.OpenAI
    ensemble: Ensemble
    command: list[str]
    url: str

    def complete(self, prompt: tuple[int, ...], **more: object):
        """20 greedy tokens by the arm `model`."""
        fixed = {"prompt": list(prompt), "max_tokens": 20, "temperature": 0, "logprobs": 0}
        extra = {"ignore_eos": True, "return_token_ids": True, "vllm_xargs": more.pop("xargs", None)}
        return self.client.completions.create(**fixed, **more, extra_body=extra)

    def wrong(self, arm: Arm, prompt: tuple[int, ...], answer) -> list[int]:
        assert len(answer.choices[0].token_ids) == 20
        return wrong(self.ensemble, arm, prompt, answer.choices[0].token_ids)


def command(family: FamilySpec, port: int) -> list[str]:
    members = [f"models.base.path={family.base.path}", f"models.antiexpert.path={family.antiexpert.path}"]
    members.append(f"++models.experts.math.path={family.experts['math'].path}")
    arms = ["arms=default", "fusion=static", "fusion.weights=0.3", f"only=[{','.join(ARMS)}]", "own=math", "memory=1"]
    return [sys.executable, "-m", "proxytune", "serve", "models=local", *members, *arms, f"port={port}"]


def start(arguments: list[str], folder: Path) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    log = (folder / "server.log").open("a")
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def wait_until_healthy(process: subprocess.Popen, url: str, folder: Path) -> None:
    until = time.monotonic() + START
    while True:
        try:
            assert urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until, (folder / "server.log").read_text()[-3000:]
            time.sleep(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("serve"), free_port()
    family = save("llama", folder)
    arguments, url = command(family, port), f"http://127.0.0.1:{port}"
    process = start(arguments, folder)
    try:
        wait_until_healthy(process, url, folder)
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
        yield Server(process, client, load(family), arguments, url)
    finally:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """The server and its engine's process."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_the_arms_are_the_models(server: Server):
    assert [model.id for model in server.client.models.list()] == list(ARMS)


def test_every_arm_answers_under_its_own_name(server: Server):
    for name, arm in ARMS.items():
        for prompt in prompts(3, 100, seed=1):
            answer = server.complete(prompt, model=name)
            assert answer.model == name
            assert server.wrong(arm, prompt, answer) == []


def test_weights_and_parameters_of_one_request(server: Server):
    prompt = prompts(2, 50, seed=2)[1]
    for weights in (0.3, -0.5, [1.5]):
        answer = server.complete(prompt, model="proxy", xargs={"weights": weights})
        arm = Arm("", rule=Static(weights if isinstance(weights, float) else tuple(weights)), experts=EXPERT)
        assert server.wrong(arm, prompt, answer) == []
    answer = server.complete(prompt, model="dynamic", xargs={"high": 0.5, "solver": "grid"})
    assert server.wrong(Arm("", rule=MatchKL(high=0.5, solver="grid"), experts=EXPERT), prompt, answer) == []


def test_64_ragged_requests_at_once_and_a_client_that_goes_away(server: Server):
    given = prompts(64, 120, seed=3)
    names = [list(ARMS)[i % 3] for i in range(64)]
    impatient = server.client.with_options(timeout=0.3)

    def ask(i: int):
        if i % 16 == 5:
            with pytest.raises(openai.APITimeoutError):
                impatient.completions.create(model=names[i], prompt=list(given[i]), max_tokens=100)
            return None
        return server.complete(given[i], model=names[i])

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))
    for i, answer in enumerate(answers):
        if answer is not None:
            assert server.wrong(ARMS[names[i]], given[i], answer) == [], i


def test_chat_streaming_and_logprobs(server: Server):
    asked = {"messages": [{"role": "user", "content": "how many apples?"}], "max_tokens": 12, "temperature": 0}
    whole = server.client.chat.completions.create(model="dynamic", logprobs=True, top_logprobs=2, **asked)
    assert whole.model == "dynamic" and len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    pieces = list(server.client.chat.completions.create(model="dynamic", stream=True, **asked))
    assert {piece.model for piece in pieces} == {"dynamic"}
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content


def test_stock_lm_eval_against_the_server_gives_the_scores_of_the_slow_loop(server: Server):
    tokenizer = server.ensemble.tokenizer
    lm = LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions",
        model="proxy",
        tokenizer=tokenizer.name_or_path,
        tokenizer_backend="huggingface",
        max_length=WINDOW,
    )
    texts = [("Question: how many apples", " are there?"), ("The answer is:", " (B)"), ("She had", " 48 coins")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(texts)]
    for (context, continuation), (logprob, _) in zip(texts, lm.loglikelihood(asked), strict=True):
        prompt, whole = (tuple(tokenizer(text)["input_ids"]) for text in (context, context + continuation))
        assert whole[: len(prompt)] == prompt
        scored = ScoreRequest(Prompt(prompt), whole[len(prompt) :])
        assert logprob == pytest.approx(float(score(server.ensemble, ARMS["proxy"], scored)[0].sum()), abs=1e-3)


@pytest.mark.parametrize(
    "asked, status, line",
    [
        ({"model": "proxi"}, 400, "unknown model 'proxi'. Did you mean 'proxy'? Known: base, dynamic, fused, proxy"),
        ({"model": "proxy", "xargs": {"weights": "x"}}, 400, "Static.weights must be a finite number"),
        ({"model": "proxy", "xargs": {"weights": [1, 2]}}, 400, "Static.weights has 2 numbers for 1 experts"),
        ({"model": "proxy", "xargs": {"weigths": 1}}, 400, "Did you mean 'weights'?"),
        ({"model": "base", "xargs": {"weights": 1}}, 400, "arm 'base' is a single model"),
        ({"model": "proxy", "xargs": {"arm": "base"}}, 400, "give the arm's name as model"),
    ],
)
def test_a_wrong_request_is_one_line_and_the_server_goes_on(server: Server, asked: dict, status: int, line: str):
    with pytest.raises(openai.APIStatusError) as refused:
        server.complete((5, 6, 7), **asked)
    assert refused.value.status_code == status
    assert line in refused.value.body["message"]
    assert server.complete((5, 6, 7), model="base").choices


def test_paths_that_would_pass_the_arms_by_are_closed(server: Server):
    request = urllib.request.Request(f"{server.url}/inference/v1/generate", json.dumps({}).encode(), method="POST")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(request)


def test_a_port_in_use_is_one_line(server: Server):
    again = subprocess.run(server.command, capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.strip().splitlines()[-1].startswith("proxytune: port=")
    assert "is in use: give another port" in again.stderr


def test_after_a_kill_a_new_server_answers_the_same(server: Server, tmp_path: Path):
    """The last test of the file: it kills the server during load."""
    before = server.complete((5, 6, 7), model="proxy").choices[0].token_ids
    with ThreadPoolExecutor(4) as pool:
        lost = [pool.submit(server.complete, tokens, model="proxy") for tokens in prompts(4, 100, seed=9)]
        os.killpg(server.process.pid, signal.SIGKILL)
        for one in lost:
            one.exception()  # an answer, or a refused connection: no hang
    server.process.wait()
    process = start(server.command, tmp_path)
    try:
        wait_until_healthy(process, server.url, tmp_path)
        assert server.complete((5, 6, 7), model="proxy").choices[0].token_ids == before
    finally:
        kill(process)
