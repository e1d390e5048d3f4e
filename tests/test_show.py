"""`proxytune show`: what it prints is what a run asks of its engine; no weights are read and nothing is written."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace

import pytest
from standins import write_data
from tiny import save_member, tiny_llama, tiny_tokenizer

from proxytune.cli import main
from proxytune.cli.show import pieces
from proxytune.engines.hf import HFEngine
from proxytune.experiment import run
from proxytune.experiment.arm_spec import arm_specs
from proxytune.experiment.lm_eval.reading import requests_of
from proxytune.experiment.planning import Items, plans_unchecked
from proxytune.fusion import Static
from proxytune.models import FamilySpec, readers

SYSTEM = "Be brief."
ARMS = {"base": {"model": "base"}, "proxy": {"rule": Static(1.0), "experts": "all"}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an antiexpert, and a chat expert whose generation config names an end token of its own; task data."""
    folder = tmp_path_factory.mktemp("show")
    tokenizer = tiny_tokenizer(["<|end|>"])
    size = len(tokenizer)
    models = {name: tiny_llama(size + 3, seed=seed) for seed, name in enumerate(("base", "small", "chat"))}
    chat = models["chat"]
    chat.generation_config.eos_token_id = [2, size - 1]
    chat.generation_config.repetition_penalty = 1.1
    for name, model in models.items():
        model.config.max_position_embeddings = 1024
        save_member(folder / name, model, tokenizer)
    write_data(folder / "data")
    return folder


def family(folders: Path) -> FamilySpec:
    chat = {"path": str(folders / "chat"), "chat": {"system_prompt": SYSTEM, "response_prefixes": ["Answer:"]}}
    spec = {"base": str(folders / "base"), "antiexpert": str(folders / "small"), "experts": {"gsm8k": chat}}
    return FamilySpec.of(spec)


class Recording(HFEngine):
    """Keeps what it is asked."""

    asked: list

    def score(self, requests, arms, progress=None):
        self.asked += requests
        return super().score(requests, arms, progress)

    def generate(self, requests, arms, progress=None):
        self.asked += requests
        return super().generate(requests, arms, progress)


@pytest.mark.parametrize(
    ("task", "limit", "num_fewshot"),
    [
        ("gsm8k_liu2024", None, None),
        ("gsm8k_lm_eval", 4, 2),
        ("mmlu_lm_eval", 3, 1),
        ("truthfulqa_mc2_lm_eval", None, None),
    ],
)
def test_it_is_what_a_run_asks(folders, tmp_path, task, limit, num_fewshot):
    asked = []

    def engine(ensemble):
        made = Recording(ensemble, 4)
        made.asked = asked
        return made

    options = {"data_dir": folders / "data", "limit": limit, "num_fewshot": num_fewshot, "seed": 3}
    record = run(family(folders), [task], ARMS, engine, output_dir=tmp_path, **options)
    items = [json.loads(line)["doc_id"] for line in (tmp_path / "items" / f"{task}.jsonl").open()]
    assert len(items) == record.tasks[task].n
    shown = []
    for item in items:
        wanted = Items(folders / "data", limit, num_fewshot, 3)
        (plan,) = plans_unchecked(family(folders), [task], arm_specs(ARMS), None, wanted)
        shown += [one.request for one in requests_of(readers(family(folders)), plan, wanted, item)]
    assert all(request in asked for request in shown)
    assert all(request in shown for request in asked)
    assert all(dict(request.prompt.own).keys() == {"expert:gsm8k"} for request in shown)


def show(capsys: pytest.CaptureFixture[str], folders: Path, *arguments: str) -> SimpleNamespace:
    chat = f"{{path: {folders / 'chat'}, chat: {{system_prompt: '{SYSTEM}', response_prefixes: ['Answer:']}}}}"
    models = [f"models.base.path={folders / 'base'}", f"models.antiexpert.path={folders / 'small'}"]
    models = ["models=local", *models, f"+models.experts.gsm8k={chat}", f"task.data_dir={folders / 'data'}"]
    status = main(["show", *models, *arguments])
    captured = capsys.readouterr()
    return SimpleNamespace(status=status, out=captured.out, err=captured.err)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    return tmp_path


def test_a_chat_member_and_what_ends_the_answer(folders, here, capsys):
    shown = show(capsys, folders, "task=gsm8k", "arms=liu2024", "only=[base,proxy]", "item=2")
    assert (shown.status, shown.err) == (0, "") and not list(here.iterdir())
    lines = shown.out.splitlines()
    assert lines[0] == "gsm8k_liu2024, item 2: an answer is generated (metric exact_match)"
    tokenizer = tiny_tokenizer(["<|end|>"])
    plain = [line for line in lines if line.startswith("base, antiexpert: ")]
    chat = [line for line in lines if line.startswith("expert:gsm8k: ")]
    assert len(plain) == len(chat) == 1
    end = len(tokenizer) - 1
    assert "  base, antiexpert: 2 </s>" in lines
    assert f"  expert:gsm8k: 2 </s>, {end} '<|end|>'" in lines
    assert "  arms base: 2 </s>" in lines and f"  arms proxy: 2 </s>, {end} '<|end|>'" in lines
    assert "stop strings: 'Question:', 'Comment:', 'Answer the following question', '</s>'" in lines
    assert lines[-4:-1] == [
        "at most 512 tokens",
        "not applied, of the generation_config of expert:gsm8k: repetition_penalty=1.1",
        "greedy decoding",
    ]
    start = lines.index(chat[0]) + 1
    rows = takewhile(lambda line: line[0] == " ", lines[start:])
    ids = [int(part.split()[0]) for line in rows for part in line[7:].split("  ") if part]
    assert len(ids) == int(chat[0].split()[1])
    read = tokenizer.decode(ids)
    assert read.startswith(f"<|system|> {SYSTEM}\n<|user|> Answer the following") and read.endswith(
        "<|assistant|> Answer:"
    )


def test_pairs_are_shown_as_context_and_continuations(folders, here, capsys):
    shown = show(capsys, folders, "task=truthfulqa_mc1", "task.style=lm_eval", "only=[base]", "item=1")
    lines = shown.out.splitlines()
    assert " continuations are scored (metric acc)" in lines[0]
    assert [line.partition(":")[0] for line in lines if line[:1] not in (" ", "")][1:3] == ["base", "continuation 0"]
    assert "end tokens" not in shown.out


def test_no_weights_are_needed(folders, here, capsys):
    for file in folders.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".away"))
    try:
        assert show(capsys, folders, "task=gsm8k", "only=[base]").status == 0
    finally:
        for file in folders.glob("*/*.away"):
            file.rename(file.with_suffix(".safetensors"))


def test_an_end_token_of_the_family_is_said(folders, here, capsys):
    shown = show(capsys, folders, "task=gsm8k", "only=[base]", "+models.end_tokens=['<|end|>']")
    assert "end tokens (models.end_tokens)" in shown.out and "  arms base: 404 '<|end|>'" not in shown.out
    assert f"  arms base: {len(tiny_tokenizer())} '<|end|>'" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["item=6"], "item=6 is not among the items of gsm8k_liu2024, which are 0 to 5"),
        (["item=2", "limit=2"], "item=2 is not among the items of gsm8k_liu2024, which are 0 to 1 with limit=2"),
        (["item=-1"], "item=-1 is not allowed: it is an integer from 0"),
        (["item=x"], "item='x' is not allowed: it is an integer from 0"),
        (["only=[prox]"], "Did you mean 'proxy'"),
        (["-m", "item=1,2"], "leave --multirun out"),
        (["models.base.path=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line(folders, here, capsys, arguments, message):
    shown = show(capsys, folders, "task=gsm8k", *arguments)
    assert shown.status == 1 and shown.out == ""
    assert shown.err.count("\n") == 1 and message in shown.err
    assert not list(here.iterdir())


def test_items_of_a_limit_that_is_spread_are_named(folders, here, capsys):
    (here / "mmlu").mkdir()
    rows = (folders / "data/mmlu/test.jsonl").read_text().splitlines(keepends=True)
    (here / "mmlu/test.jsonl").write_text("".join(sorted(rows, key=lambda row: "virology" in row)))
    asked = ["task=mmlu", "task.style=lm_eval", "only=[base]", "num_fewshot=0", "limit=2", f"task.data_dir={here}"]
    assert (
        "item=1 is not among the items of mmlu_lm_eval with limit=2, which are 0, 6"
        in show(capsys, folders, *asked, "item=1").err
    )
    assert show(capsys, folders, *asked, "item=6").out.startswith("mmlu_lm_eval, item 6: 4 continuations")


def test_what_cannot_be_printed_is_escaped():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["\x1b[31m", "\u202e", "日"])
    tokenizer.add_tokens(["<|a\nb|>"], special_tokens=True)
    size = len(tokenizer)
    shown = ["'\\x1b[31m'", "'\\u202e'", "'日'", "'<|a\\nb|>'"]
    expected = [f"{size - 4 + i} {piece}" for i, piece in enumerate(shown)]
    assert pieces([*range(size - 4, size), 2], tokenizer) == [*expected, "2 </s>"]


def test_the_members_without_weights_are_those_with_weights(folders):
    """Windows, prompts and end tokens; nothing can be read with them."""
    from proxytune.models import load

    whole, bare = load(family(folders)), readers(family(folders))
    assert whole.members.keys() == bare.members.keys()
    for role, member in whole.members.items():
        other = bare[role]
        assert (member.window, member.render, member.missing) == (other.window, other.render, other.missing)
        assert whole.ends([role]) == bare.ends([role]) and member.ignored == other.ignored
    assert bare["expert:gsm8k"].ignored == {"repetition_penalty": 1.1}
