"""A base behind an endpoint: what it answers equals the model itself, over real HTTP; and all that can go wrong."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from api_server import KEY, PASS, Fault, Served, broken, gone, limited, serving, slow, truncated
from invented import jsonl
from standins import fill_standins
from tiny import save_member, tiny_llama, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from proxytune.cli import main
from proxytune.engines.hf import HFEngine
from proxytune.engines.requests import GenerateRequest, Prompt, ScoreRequest
from proxytune.errors import UserError
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, FamilySpec, load
from proxytune.models.api.client import Client
from proxytune.models.api.endpoint import Endpoint
from proxytune.models.api.tokens import SameTokens
from proxytune.record import read_record

ARMS = (
    Arm("base"),
    Arm("proxy", rule=Static(1.0), experts=("expert:math",)),
    Arm("dynamic", rule=MatchKL(), experts=("expert:math", "expert:trivia")),
)
PROMPTS = ("Question: how many apples are there? Answer:", "In which country")
ITEMS = 20
PAGE = (Path(__file__).parents[1] / "docs" / "blackbox.md").read_text()


@pytest.fixture
def served(family_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """The tiny family's base behind an endpoint, and the key of it."""
    monkeypatch.setenv("PROXYTUNE_API_KEY", KEY)
    folder = family_folders["base"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with serving(Served(model, AutoTokenizer.from_pretrained(folder))) as running:
        yield running


def family(folders: dict[str, Path], base: Any) -> FamilySpec:
    experts = {name: folders[f"expert:{name}"] for name in ("math", "trivia")}
    return FamilySpec(base=base, antiexpert=folders["antiexpert"], experts=experts)  # type: ignore[arg-type]


def behind(served: Served, folders: dict[str, Path], **changes: Any) -> Ensemble:
    """The same family with its base behind the endpoint, tokens named by ids."""
    base = {"api": served.url, "model": "tiny", "top_logprobs": 10**4, "tokenizer": str(folders["base"])}
    named = {"options": {"return_tokens_as_token_ids": True}, "retries": 1}
    return load(family(folders, base | named | changes))


def requests(ensemble: Ensemble) -> tuple[list[ScoreRequest], list[GenerateRequest]]:
    prompts = [Prompt(tuple(ensemble.tokenizer(text)["input_ids"])) for text in PROMPTS]
    continuations = [(5, 300, 17), (301,), (299, 298)]
    scored = [ScoreRequest(prompt, c) for prompt in prompts for c in continuations]
    return scored, [GenerateRequest(prompt, 6) for prompt in prompts]


def test_with_the_whole_vocabulary_answers_are_those_of_the_model_itself(served, family_folders) -> None:
    remote, here = behind(served, family_folders), load(family(family_folders, family_folders["base"]))
    score, generate = requests(here)
    expected = {(i, arm): answer for i, arm, answer in HFEngine(here).score(score, ARMS)}
    for i, arm, answer in HFEngine(remote).score(score, ARMS):
        assert answer.logprobs == pytest.approx(expected[i, arm].logprobs, abs=1e-4)
        assert answer.greedy == expected[i, arm].greedy
    answers = {(i, arm): a for i, arm, a in HFEngine(here).generate(generate, ARMS)}
    assert any(len(answer.tokens) > 4 for answer in answers.values())
    assert {(i, arm): a.tokens for i, arm, a in HFEngine(remote).generate(generate, ARMS)} == {
        key: answer.tokens for key, answer in answers.items()
    }


@pytest.mark.parametrize("by_id", [True, False])
def test_tokens_beyond_the_likeliest_are_masked(served, family_folders, by_id: bool) -> None:
    """Against a loop without a cache that masks the base's logits itself."""
    k = 4
    options = {"return_tokens_as_token_ids": True} if by_id else {}
    remote = behind(served, family_folders, top_logprobs=k, options=options)
    here = load(family(family_folders, family_folders["base"]))
    prompt = tuple(here.tokenizer(PROMPTS[0])["input_ids"])
    tokens = list(prompt)
    for _ in range(8):
        read = torch.tensor([tokens])
        logits = {role: here[role].model(input_ids=read).logits[0, -1, : here.vocab_size] for role in here.members}
        base = logits["base"].log_softmax(-1)
        fused = base + logits["expert:math"] - logits["antiexpert"]
        fused[base < base.topk(k).values[-1]] = -torch.inf
        if not by_id:  # pieces of characters have no text of their own
            fused[torch.tensor(["\ufffd" in here.tokenizer.decode([i]) for i in range(here.vocab_size)])] = -torch.inf
        tokens.append(int(fused.argmax()))
        if tokens[-1] in here.ends(ARMS[1].roles):
            break
    [(_, _, answer)] = HFEngine(remote).generate([GenerateRequest(Prompt(prompt), 8)], [ARMS[1]])
    assert list(answer.tokens) == tokens[len(prompt) :]
    assert [body["logprobs"] for body in served.bodies] == [k] * len(served.bodies)


# RealTimeQA from the command line: the endpoint has another tokenizer, so that letters alone are compared


@pytest.fixture(scope="module")
def lettered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A family whose tokenizer has a token for each letter after a blank: {role: path}."""
    folder = tmp_path_factory.mktemp("lettered")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([" A B C D" * 9, prompt_of(0)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    seeds = {"base": 4, "antiexpert": 2, "expert": 3}  # a base with several letters among its likeliest tokens, or none
    return {
        role: save_member(folder / role, tiny_llama(len(tokenizer), seed=seed), tokenizer)
        for role, seed in seeds.items()
    }


@pytest.fixture
def command(lettered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """RealTimeQA with the lettered family, its base behind an endpoint: `served_by` has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROXYTUNE_API_KEY", KEY)
    rows = [
        {
            "question_id": f"20220617_{i}",
            "question_sentence": f"Which town is number {i}?",
            "choices": [f"Town {i}", "Paris", "Rome", "Madrid"],
            "answer": [str(i % 4)],
            "evidence": "",
        }
        for i in range(ITEMS)
    ]
    jsonl(tmp_path / "data/realtimeqa/test.jsonl", *rows)
    yield [
        *("run", "models=api", "arms=blackbox", "task=realtimeqa", "task.data_dir=data", "output=out"),
        *("store=s.sqlite", "models.base.model=tiny", "models.base.top_logprobs=20"),
        *(f"models.antiexpert.path={lettered['antiexpert']}", f"+models.experts.realtimeqa.path={lettered['expert']}"),
    ]


@pytest.fixture
def asked(lettered, command: list[str]) -> Iterator[Served]:
    """The endpoint of `command`."""
    model = AutoModelForCausalLM.from_pretrained(lettered["base"]).eval()
    with serving(Served(model, AutoTokenizer.from_pretrained(lettered["base"]))) as running:
        command.append(f"models.base.api={running.url}")
        yield running


def prompt_of(i: int) -> str:
    return f"Which town is number {i}?\nA. Town {i}\nB. Paris\nC. Rome\nD. Madrid\n\nThe answer is:"


def logits_after(model, tokenizer, i: int) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokenizer(prompt_of(i))["input_ids"]])).logits[0, -1].float()


def by_hand(folders: dict[str, Path], k: int) -> tuple[dict[str, list[int | None]], int]:
    """What base and proxy choose at each item, None where it is left out; and where some letters are missing."""
    tokenizer = AutoTokenizer.from_pretrained(folders["antiexpert"])
    models = {
        role: AutoModelForCausalLM.from_pretrained(folders[role]).eval() for role in ("antiexpert", "expert", "base")
    }
    letters = [tokenizer(f" {letter}")["input_ids"] for letter in "ABCD"]
    assert all(len(ids) == 1 for ids in letters)
    chosen: dict[str, list[int | None]] = {"base": [], "proxy": []}
    some = 0
    for i in range(ITEMS):
        after = {role: logits_after(model, tokenizer, i) for role, model in models.items()}
        base = after["base"][: len(tokenizer)].log_softmax(-1)
        names = [tokenizer.decode([int(t)]).strip() for t in base.topk(k).indices]
        found = {
            letter: [base.topk(k).values[n] for n, name in enumerate(names) if name == letter] for letter in "ABCD"
        }
        some += 0 < sum(map(bool, found.values())) < 4
        minus = torch.tensor(-torch.inf)
        scores = torch.stack([max(found[letter], default=minus) for letter in "ABCD"])
        shift = torch.stack([(after["expert"] - after["antiexpert"])[ids[0]] for ids in letters])
        for arm, total in (("base", scores), ("proxy", scores + shift)):
            chosen[arm].append(None if not any(found.values()) else int(total.argmax()))
    return chosen, some


@pytest.mark.parametrize("format", ["completions", "chat"])
def test_letters_are_fused_and_items_without_one_are_left_out(command, asked, lettered, capsys, format: str) -> None:
    assert main([*command, f"models.base.format={format}"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    chosen, some = by_hand(lettered, 20)
    record = read_record("out")
    task = record.tasks["realtimeqa_mc_liu2024"]
    left_out = chosen["base"].count(None)
    assert 0 < left_out < ITEMS and some > 0 and chosen["base"] != chosen["proxy"], "items of every kind are needed"
    for arm, letters in chosen.items():
        right = [letter == i % 4 for i, letter in enumerate(letters) if letter is not None]
        assert task.arms[arm].left_out == left_out == task.arms[arm].n_invalid
        assert task.arms[arm].n == len(right)
        assert task.arms[arm].value == pytest.approx(sum(right) / len(right))
    assert task.arms["expert"].left_out == 0 and not record.failed
    usage = record.provenance.timings.endpoint["realtimeqa_mc_liu2024"]
    assert usage.requests == len(asked.bodies) == ITEMS + 1  # and the first, which tries the endpoint
    assert usage.prompt_tokens > ITEMS and usage.completion_tokens == ITEMS + 1
    assert f"base is tiny at {asked.url}: at each step only its 20 likeliest tokens are known" in printed
    assert f"which are left out: proxy {left_out}, base {left_out}." in printed
    assert f"{ITEMS + 1} requests to the endpoint" in printed


def test_a_repeated_run_asks_nothing_and_needs_no_key_which_is_nowhere(command, asked, monkeypatch, capsys) -> None:
    assert main([*command, "report=true"]) == 0
    out = capsys.readouterr()
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert len(files) > 5 and not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in out.out + out.err
    requests = len(asked.bodies)
    monkeypatch.delenv("PROXYTUNE_API_KEY")
    first = read_record("out").tasks
    assert main([*command, "output=again"]) == 0
    assert len(asked.bodies) == requests and read_record("again").tasks == first
    assert read_record("again").provenance.timings.endpoint == {}


def test_a_server_that_dies_midway_costs_one_block(command, asked, capsys) -> None:
    command.append("models.base.retries=0")
    asked.faults.extend([lambda handler: PASS] * 12)
    asked.always = gone
    assert main(command) == 1
    out = capsys.readouterr()
    assert "cannot be reached, after 1 tries" in out.err and "re-run to resume" in out.err
    # The twelve that were answered; those that failed got no answer, and are not counted.
    assert "the endpoint was asked 12 requests" in " ".join((out.out + out.err).split())
    asked.always, asked.bodies = None, []
    assert main(command) == 0
    assert len(asked.bodies) == 1 + ITEMS - 8  # of 8 items, one block, the answers were stored
    timings = read_record("out").provenance.timings
    assert timings.endpoint_aborted.requests == 12 == timings.endpoint_aborted.completion_tokens
    assert timings.endpoint["realtimeqa_mc_liu2024"].requests == len(asked.bodies)
    assert "Runs before this one that failed or were stopped: 12 requests" in " ".join(capsys.readouterr().out.split())
    resumed = read_record("out").tasks
    assert main([*command, "store=other.sqlite", "output=whole"]) == 0
    assert read_record("whole").tasks == resumed


def test_a_pilot_asks_no_item_twice(command, asked, capsys) -> None:
    assert main([*command, "pilot=6"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "pilot, realtimeqa_mc_liu2024, 6 items: proxy" in said and "95 % interval" in said
    assert len(asked.bodies) == ITEMS + 1
    pilot, whole = (read_record(folder).provenance.timings.endpoint for folder in ("out/pilot", "out"))
    assert [usage["realtimeqa_mc_liu2024"].requests for usage in (pilot, whole)] == [6 + 1, ITEMS - 6]
    assert read_record("out/pilot").tasks["realtimeqa_mc_liu2024"].n == 6


def test_nothing_is_drafted_for_an_endpoint_which_would_be_asked_about_each_token(
    served, family_folders, caplog
) -> None:
    remote, here = behind(served, family_folders), load(family(family_folders, family_folders["base"]))
    [_, request] = requests(here)[1]
    tried = len(served.bodies)
    with caplog.at_level("INFO"):
        [(_, _, answer)] = HFEngine(remote, speculate=4).generate([request], [ARMS[1]])
    [(_, _, expected)] = HFEngine(here, speculate=4).generate([request], [ARMS[1]])
    assert answer.tokens == expected.tokens and len(answer.tokens) > 4
    assert len(served.bodies) - tried == len(answer.tokens)
    assert "no speculation: base can't forget what it has read" in caplog.text and "endpoint" in caplog.text


def test_the_papers_table_counts_what_was_left_out(command, asked, lettered, capsys) -> None:
    assert main([*command, "experiment=liu2024_blackbox", "models=api"]) == 0
    left_out = read_record("out").tasks["realtimeqa_mc_liu2024"].arms["proxy"].left_out
    assert left_out > 0
    capsys.readouterr()
    assert main(["table", "paper=liu2024", "table=black_box", "runs=[out]"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"GPT-3.5 proxy, realtimeqa: {left_out} of {ITEMS} items were left out." in said


# What can go wrong


def endpoint(served: Served, **changes: Any) -> Endpoint:
    return Endpoint.of({"api": served.url, "model": "tiny", "top_logprobs": 3, "retries": 1} | changes)


@pytest.mark.parametrize("fault", [limited, broken, truncated, gone])
def test_passing_faults_are_tried_again_and_counted(served, fault) -> None:
    client = Client(endpoint(served, retries=2))
    expected = client.next_tokens("In which country")
    served.faults.extend([fault, fault])
    assert client.next_tokens("In which country") == expected
    assert client.take_usage().requests == 4 == len(served.bodies)


NOWHERE = "http://127.0.0.1:1/v1"
NO_LOGPROBS = {"choices": [{"index": 0, "text": "x", "finish_reason": "length", "logprobs": None}]}
FAULTS: dict[str, tuple[Fault | None, dict[str, Any], list[str]]] = {
    "rate limit": (limited, {}, ["answers 429 too many requests, after 2 tries; re-run to resume"]),
    "server error": (broken, {}, ["answers 500 out of order, after 2 tries; re-run to resume"]),
    "half an answer": (truncated, {}, ["does not answer as the API says: not JSON", "re-run to resume"]),
    "connection": (gone, {}, ["cannot be reached, after 2 tries", "re-run to resume"]),
    "no server": (
        None,
        {"api": "http://127.0.0.1:1/v1"},
        ["models.base (tiny at http://127.0.0.1:1/v1) cannot be reached"],
    ),
    "no answer": (slow, {"timeout": 0.1}, ["gives no answer within 0.1 seconds, after 2 tries"]),
    "page": (lambda h: h.send_text("<p>", headers={"content-type": "text/html"}), {}, ["a page of type text/html"]),
    "no choices": (lambda h: h.send({"choices": []}), {}, ["does not answer as the API says: no choices"]),
    "no log-probabilities": (lambda h: h.send(NO_LOGPROBS), {}, ["gives no log-probabilities, which fusion needs"]),
    "request": (lambda h: h.send({"error": {"message": "at most 5"}}, 400), {}, ["answers 400 at most 5"]),
    "model": (None, {"model": "other"}, ["models.base (other at http", "is not there: 404 no model other"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_that_stays_is_one_line(served, name: str) -> None:
    fault, changes, says = FAULTS[name]
    served.always = fault
    with pytest.raises(UserError) as raised:
        Client(endpoint(served, **changes)).next_tokens("In which country")
    assert "\n" not in str(raised.value)
    assert all(text in str(raised.value) for text in says), raised.value


BAD: dict[str, tuple[list[str], str]] = {
    "address": (["models.base.api=localhost"], "models.base.api: 'localhost' is not an address like https://"),
    "key in it": (["models.base.api='http://h/v1?key=x'"], "models.base.api: give the address alone"),
    "number": (["models.base.top_logprobs=0"], "models.base.top_logprobs=0 is not allowed: it is an integer from 1"),
    "misspelt": (["+models.base.retrys=1"], "Did you mean 'models.base.retries'?"),
    "chat": (["models.base.format=chat", "models.base.tokenizer=x"], "models.base: tokenizer has no effect"),
    "generation": (
        ["task=gsm8k", "task.data_dir=other"],
        "needs more of tiny than the probabilities of",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_is_one_line(command, capsys, name: str) -> None:
    arguments, says = BAD[name]
    jsonl(Path("other/gsm8k/test.jsonl"), {"question": "1 + 1?", "answer": "#### 2"})
    assert main([*command, f"models.base.api={NOWHERE}", *arguments]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("proxytune: ") and says in error and "\n" not in error


def test_a_missing_and_a_wrong_key_are_one_line(command, asked, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PROXYTUNE_API_KEY", "sk-wrong-key-987654")
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "refuses the key in PROXYTUNE_API_KEY or OPENAI_API_KEY: 401 wrong key Bearer ***" in error
    monkeypatch.delenv("PROXYTUNE_API_KEY")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert main(command) == 1
    assert "needs a key: set the environment variable PROXYTUNE_API_KEY or OPENAI_API_KEY" in capsys.readouterr().err


def test_fewer_log_probabilities_than_asked_for_are_refused(served, family_folders) -> None:
    served.most = 5
    with pytest.raises(
        UserError, match=r"gives 5 log-probabilities of the 20 asked for: set models.base.top_logprobs=5"
    ):
        behind(served, family_folders, top_logprobs=20)


def test_another_tokenizer_than_the_endpoints_is_refused(served, family_folders, tmp_path) -> None:
    tokenizer = tiny_tokenizer(["<|new|>"])
    served.tokenizer, served.model = tokenizer, tiny_llama(len(tokenizer), seed=1)
    with torch.no_grad():
        served.model.lm_head.weight[-1] = 0
        served.model.lm_head.weight[:-1] = -1e-4 * served.model.lm_head.weight[:-1]
    with pytest.raises(
        UserError, match=r"gives the token '<\|new\|>', which .* does not have: name the endpoint's own"
    ):
        behind(served, family_folders, top_logprobs=400, options={})


def test_a_text_that_several_tokens_have_is_refused() -> None:
    """SentencePiece-like tokenizers decode " a" alone without its blank."""
    tokenizer = fill_standins.llama2()(False)
    tokens = SameTokens(tokenizer, "the endpoint")
    both = next(piece for piece in tokenizer.get_vocab() if "▁" + piece in tokenizer.get_vocab() and piece.isalpha())
    assert tokens.ids(f" {both}") == (tokenizer.convert_tokens_to_ids("▁" + both),)
    assert tokens.ids("token_id:7") == (7,)
    assert tokens.ids("\ufffd") == ()
    with pytest.raises(UserError, match=r"may be any of \d tokens of .*return_tokens_as_token_ids=true"):
        tokens.ids(both)
    with pytest.raises(UserError, match="gives the token 'token_id:32000', which"):
        tokens.ids("token_id:32000")


COMMANDS = [line for line in PAGE.splitlines() if line.startswith("proxytune run")]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_of_the_page_compose(line: str, capfd) -> None:
    assert main([*shlex.split(line)[1:], "--cfg", "job"]) == 0
    assert "top_logprobs: 5" in capfd.readouterr().out
