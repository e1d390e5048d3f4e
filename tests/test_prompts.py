"""What a model reads for a text: the tokenizer's beginning once, no end, and the same on every day."""

from __future__ import annotations

import datetime
import json

import pytest
import torch
from lm_eval.api.instance import Instance
from standins import fill_standins
from tiny import CHAT, save_member, tiny_llama, tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from proxytune import FusedCausalLM
from proxytune.engines.hf import HFEngine
from proxytune.errors import UserError
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.arm_model import ArmLM
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, Member
from proxytune.models.chat import Chat, ChatPrompt
from proxytune.models.vocabulary import token_ids, tokens_before
from proxytune.training.examples import encode

TEXT = "Question: how many apples are there?\nAnswer:"
ENDS = {
    "neither": "$A",
    "begins": "<s> $A",
    "ends": "$A </s>",
    "both": "<s> $A </s>",
    "more": "<s> <pad> $A </s> </s>",
}
"""What post-processors do with a text $A."""


def tokenizer_that(ends: str, template: str | dict | None = None) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    special = [("<pad>", 0), ("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=ENDS[ends], special_tokens=special)
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def shown(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize(
    ("ends", "expected"), [("neither", ""), ("begins", "<s>"), ("ends", ""), ("both", "<s>"), ("more", "<s><pad>")]
)
def test_a_text_begins_as_the_tokenizer_begins_texts_and_has_no_end(ends, expected):
    tokenizer = tokenizer_that(ends)
    assert shown(tokenizer, tokens_before(tokenizer)) == expected
    assert shown(tokenizer, token_ids(tokenizer, TEXT)) == expected + TEXT
    assert shown(tokenizer, token_ids(tokenizer, "")) == expected


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen25", "smollm2"])
def test_real_kinds_of_tokenizers_give_what_they_give_by_themselves(name):
    made = getattr(fill_standins, name)
    tokenizer = (made() if name == "llama2" else made)(True)
    assert token_ids(tokenizer, TEXT) == tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("ends", ENDS)
def test_what_the_text_says_itself_is_kept(ends):
    """An end of sequence in the middle or at the end of a text was written by somebody."""
    tokenizer = tokenizer_that(ends)
    for text in ("a</s>", "a</s>b", "<s>a", "\n<s>a"):
        assert shown(tokenizer, token_ids(tokenizer, text)).endswith(text)
        assert token_ids(tokenizer, text).count(1) <= 1


# --- every place that turns text into tokens ------------------------------------------------------------------------


def member(tokenizer: PreTrainedTokenizerFast, role: str = "base", chat: Chat | None = None) -> Member:
    size = len(tokenizer)
    render = None if chat is None else ChatPrompt.of(chat, tokenizer, role)
    return Member(role, tiny_llama(size, seed=1), size, identity=role, tokenizer=tokenizer, render=render)


def lm_over(tokenizer: PreTrainedTokenizerFast, chat: Chat | None = None) -> ArmLM:
    arm = Arm("base")
    ensemble = Ensemble({"base": member(tokenizer, chat=chat)}, tokenizer)
    return ArmLM(SharedAnswers(HFEngine(ensemble), [arm], AnswerStore(None)), arm)


def asked_for(kind: str, arguments: tuple) -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=("task", 0, 1))


@pytest.mark.parametrize("ends", ENDS)
def test_prompts_pairs_and_training_examples_have_no_end_in_them(ends):
    tokenizer = tokenizer_that(ends)
    begin = shown(tokenizer, tokens_before(tokenizer))
    lm = lm_over(tokenizer)
    assert shown(tokenizer, lm.tok_encode(TEXT)) == begin + TEXT
    context, continuation = lm._encode_pair(TEXT, " there are 12")
    assert [shown(tokenizer, ids) for ids in (context, continuation)] == [begin + TEXT, " there are 12"]
    fused = FusedCausalLM.from_ensemble(lm.shared.ensemble)
    assert shown(tokenizer, fused.prompts([TEXT])["input_ids"][0].tolist()) == begin + TEXT
    rows = encode(tokenizer, [(TEXT, " 12")], 200)
    assert shown(tokenizer, rows[0]["input_ids"]) == f"{begin}{TEXT} 12</s>"
    (answer,) = lm.loglikelihood([asked_for("loglikelihood", (TEXT, " 12"))])
    ids = torch.tensor([[*token_ids(tokenizer, TEXT), *tokenizer(" 12", add_special_tokens=False)["input_ids"]]])
    logprobs = lm.shared.ensemble["base"].model(ids).logits[0].log_softmax(dim=-1)
    start = len(token_ids(tokenizer, TEXT))
    expected = sum(logprobs[at - 1, ids[0, at]].item() for at in range(start, ids.shape[1]))
    assert answer[0] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("before", ["", "{{ bos_token }}", "\n{{ bos_token }}"])
def test_a_rendered_chat_has_one_beginning_at_most(ends, before):
    tokenizer = tokenizer_that(ends, before + CHAT)
    render = ChatPrompt.of(Chat(response_prefixes=("Answer:",)), tokenizer, "base")
    ids = token_ids(tokenizer, render(TEXT))
    assert ids.count(1) == (1 if before or "<s>" in ENDS[ends] else 0)
    assert ids.count(2) == 0
    messages = [{"role": "user", "content": TEXT.removesuffix("Answer:").strip()}]
    ours = shown(tokenizer, token_ids(tokenizer, ChatPrompt.of(Chat(), tokenizer, "base")(messages[0]["content"])))
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    if before:
        assert ours.replace("<pad>", "") == shown(tokenizer, theirs)


# --- chat templates -------------------------------------------------------------------------------------------------


def test_a_prompt_is_the_same_every_day():
    dated = "Today Date: {{ strftime_now('%d %b %Y') }}\n" + CHAT
    tokenizer = tokenizer_that("neither", dated)
    prompt = ChatPrompt.of(Chat(), tokenizer, "base")
    assert prompt("Hi").startswith("Today Date: 26 Jul 2024\n")
    given = ChatPrompt.of(Chat(date="2031-01-02"), tokenizer, "base")
    assert given("Hi").startswith("Today Date: 02 Jan 2031\n") and given != prompt
    assert lm_over(tokenizer).apply_chat_template([{"role": "user", "content": "Hi"}]).startswith("Today Date: 26 Jul")
    today = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert str(datetime.date.today().year) in today, "transformers itself tells the day, so this test can fail"
    with pytest.raises(UserError, match=r"chat\.date: 'yesterday' is not a date"):
        Chat(date="yesterday")


def test_of_several_templates_default_is_the_one_and_others_go_by_name():
    templates = {"default": CHAT, "tool_use": "TOOLS " + CHAT}
    tokenizer = tokenizer_that("neither", templates)
    assert not ChatPrompt.of(Chat(), tokenizer, "base")("Hi").startswith("TOOLS")
    assert ChatPrompt.of(Chat(template="tool_use"), tokenizer, "base")("Hi").startswith("TOOLS <|user|> Hi")
    with pytest.raises(UserError, match=r"chat template of expert:a 'tools'.*Known: default, liu2024, tool_use"):
        ChatPrompt.of(Chat(template="tools"), tokenizer, "expert:a")
    with pytest.raises(UserError, match="unknown chat template of base 'default'"):
        ChatPrompt.of(Chat(), tokenizer_that("neither", {"rag": CHAT}), "base")


def published(prompt: str, system: str | None, prefix: str) -> str:
    """The expert's prompt as the class in the code of Liu et al. 2024 puts it together."""
    chat_prefix, chat_suffix = "[INST]", "[/INST]"
    if system is not None:
        chat_prefix += f"<<SYS>>\n{system}\n<</SYS>>\n\n"
    return f"{chat_prefix} {prompt.replace(prefix, '').rstrip()} {chat_suffix} {prefix}"


@pytest.mark.parametrize("system", [None, "Be brief.\\nBe kind."])
def test_the_published_framing_is_that_of_the_published_code(system):
    tokenizer = fill_standins.llama2()(True)
    tokenizer.chat_template = fill_standins.LLAMA2_CHAT
    chat = Chat(system_prompt=system, response_prefixes=("Answer:",), template="liu2024")
    ours, theirs = ChatPrompt.of(chat, tokenizer, "base")(TEXT), published(TEXT, system, "Answer:")
    assert ours == theirs and token_ids(tokenizer, ours) == tokenizer(theirs)["input_ids"]
    own = ChatPrompt.of(Chat(system_prompt=system, response_prefixes=("Answer:",)), tokenizer, "base")(TEXT)
    assert (own == ours) == (system is None)
    assert own.startswith("[INST] <<SYS>>\n" if system else "[INST] Question")


# --- tokenizers without an end of sequence --------------------------------------------------------------------------


def test_a_tokenizer_without_an_end_of_sequence_is_no_obstacle():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    lm = lm_over(tokenizer)
    asked = asked_for("generate_until", (TEXT, {"until": [], "max_gen_toks": 5}))
    with_end = lm_over(tiny_tokenizer()).generate_until([asked])
    assert lm.generate_until([asked]) == with_end
    assert lm.loglikelihood([asked_for("loglikelihood", ("", "12"))])[0][0] < 0, "the beginning stands for it"
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="has neither a beginning- nor an end-of-sequence token"):
        lm_over(tokenizer).loglikelihood([asked_for("loglikelihood", ("", "12"))])
    assert lm_over(tokenizer).generate_until([asked]) == with_end


def test_such_a_tokenizer_loads_from_a_folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    save_member(tmp_path, tiny_llama(len(tokenizer), seed=1), tokenizer)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()).get("eos_token") is None
    model = FusedCausalLM.compose(tmp_path)
    assert model.generate(**model.prompts([TEXT]), max_new_tokens=3).shape[1] > 3
