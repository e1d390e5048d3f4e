"""Every check of HFLM that ArmLM stands in front of: the same answer as lm-eval's HFLM, or one line that says why not.

| HFLM                                                        | ArmLM                                              |
|-------------------------------------------------------------|----------------------------------------------------|
| asserts a continuation of at least one token                | refused, naming context and continuation           |
| asserts a context of at least one token                     | the prefix token, as for an empty context          |
| asserts a continuation within the window                    | refused                                            |
| warns that a context is cut on the left                     | cut alike, counted in the record (test_lm.py)      |
| asserts room for the tokens to generate                     | refused (test_lm.py)                               |
| an empty context starts from BOS, or else EOS               | the same; refused where there is neither           |
| blanks at a context's end go to the continuation            | the same                                           |
| no second BOS before a text that starts with it             | the same                                           |
| an empty text has the log-likelihood 0 (not checked)        | refused                                            |
| `max_length`, beams and other generation settings           | refused (test_lm.py)                               |
| applies the chat template; drops a refused system prompt    | the same; refused where there is none, or two      |
| `enable_thinking`, `softmax_dtype`, `truncation` and so on  | refused in model_args (unknown key)                |
| tasks that need more than text are refused by lm-eval       | the same                                           |
"""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny import tiny_llama, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from proxytune.engines.hf import HFEngine
from proxytune.errors import UserError
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.arm_model import ArmLM
from proxytune.experiment.lm_eval.cli_model import FusedLM
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, Member


def lms(tokenizer: PreTrainedTokenizerBase, **member) -> tuple[ArmLM, HFLM]:
    """The same model as ArmLM and as HFLM."""
    model = tiny_llama(len(tokenizer), seed=1)
    ensemble = Ensemble({"base": Member("base", model, len(tokenizer), identity="tiny", **member)}, tokenizer)
    shared = SharedAnswers(HFEngine(ensemble), [Arm("base")], AnswerStore())
    return ArmLM(shared, Arm("base")), HFLM(model, tokenizer=tokenizer, batch_size=1)


def ask(lm: HFLM, kind: str, *arguments):
    return getattr(lm, kind)([Instance(kind, {}, arguments, 7, ("", 7, 1))], disable_tqdm=True)[0]


def byte_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the `special` tokens alone."""
    backend = Tokenizer.from_str(tiny_tokenizer().backend_tokenizer.to_str())
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", padding_side="left", **special)


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """ ": C" is one token of it, and ":" another."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["x: C", "y: C", "z: C", "w: C"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_a_continuation_that_the_tokenizer_merges_into_the_context_is_refused() -> None:
    ours, theirs = lms(merging_tokenizer())
    assert ask(ours, "loglikelihood", "Answer:", " B") == pytest.approx(
        ask(theirs, "loglikelihood", "Answer:", " B"), abs=2e-4
    )
    with pytest.raises(AssertionError):
        ask(theirs, "loglikelihood", "Answer:", " C")
    with pytest.raises(
        UserError, match="continuation ' C' after the context ending in 'Answer:': it is empty, or the tok"
    ):
        ask(ours, "loglikelihood", "Answer:", " C")


@pytest.mark.parametrize("context", ["Answer:", "", "  "])
def test_an_empty_continuation_is_refused(context: str) -> None:
    ours, theirs = lms(byte_tokenizer(eos_token="</s>"))
    if context.isspace():
        continuation = ask(ours, "loglikelihood", context, "")
        assert continuation == pytest.approx(ask(theirs, "loglikelihood", "", context), abs=2e-4)
        return
    with pytest.raises((AssertionError, IndexError)):
        ask(theirs, "loglikelihood", context, "")
    with pytest.raises(UserError, match="nothing is left to score of the continuation ''"):
        ask(ours, "loglikelihood", context, "")


def test_a_continuation_that_is_the_prefix_token_alone_is_refused() -> None:
    ours, theirs = lms(byte_tokenizer(eos_token="</s>"))
    with pytest.raises(AssertionError):
        ask(theirs, "loglikelihood", "", "</s>")
    with pytest.raises(UserError, match="nothing is left to score of the continuation '</s>'"):
        ask(ours, "loglikelihood", "", "</s>")


def test_a_context_of_blanks_alone_starts_from_the_prefix_token() -> None:
    ours, theirs = lms(byte_tokenizer(eos_token="</s>"))
    with pytest.raises(AssertionError):
        ask(theirs, "loglikelihood", "  ", "sea")
    expected = ask(theirs, "loglikelihood", "", "  sea")
    assert ask(ours, "loglikelihood", "  ", "sea") == pytest.approx(expected, abs=2e-4)


def test_a_continuation_beyond_the_window_is_refused_and_one_that_fills_it_is_not() -> None:
    ours, theirs = lms(byte_tokenizer(eos_token="</s>"))
    fits, too_long = ("~" * n for n in (256, 257))
    expected = ask(theirs, "loglikelihood", "A", fits)
    assert ask(ours, "loglikelihood", "A", fits) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(AssertionError):
        ask(theirs, "loglikelihood", "A", too_long)
    with pytest.raises(UserError, match="a continuation of 257 tokens is longer than the smallest member's window"):
        ask(ours, "loglikelihood", "A", too_long)


@pytest.mark.parametrize("special", [{"bos_token": "<s>", "eos_token": "</s>"}, {"bos_token": "<s>"}])
def test_a_tokenizer_without_an_end_of_sequence_token_generates_to_the_length(special: dict[str, str]) -> None:
    ours, _ = lms(byte_tokenizer(**special))
    assert ask(ours, "generate_until", "The river", {"max_gen_toks": 4})
    assert ask(ours, "generate_until", "", {"max_gen_toks": 4})
    assert ask(ours, "loglikelihood", "", " sea")[0] < 0


def test_a_tokenizer_without_both_reads_prompts_and_refuses_empty_ones() -> None:
    ours, _ = lms(byte_tokenizer())
    same, _ = lms(byte_tokenizer(eos_token="</s>"))
    assert ask(ours, "loglikelihood", "A", " sea") == ask(same, "loglikelihood", "A", " sea")
    assert ask(ours, "generate_until", "A", {"max_gen_toks": 4})
    for kind, arguments in (
        ("loglikelihood", ("", " sea")),
        ("loglikelihood", (" ", "sea")),
        ("generate_until", ("", {"max_gen_toks": 4})),
        ("loglikelihood_rolling", ("The sea",)),
    ):
        with pytest.raises(UserError, match="neither a beginning- nor an end-of-sequence token"):
            ask(ours, kind, *arguments)


def test_blanks_at_the_end_of_a_context_belong_to_the_continuation() -> None:
    ours, theirs = lms(tiny_tokenizer())
    for context, continuation in (("Answer: ", "sea"), ("Answer:\n \n", " sea")):
        expected = ask(theirs, "loglikelihood", context, continuation)
        assert ask(ours, "loglikelihood", context, continuation) == pytest.approx(expected, abs=2e-4)


def test_a_text_that_starts_with_the_beginning_token_gets_no_second_one() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    ours, theirs = lms(tokenizer)
    start = tokenizer.bos_token_id
    assert ours.tok_encode("<s>The sea")[:2].count(start) == ours.tok_encode("The sea")[:2].count(start) == 1
    for context in ("<s>The", "The"):
        expected = ask(theirs, "loglikelihood", context, " sea")
        assert ask(ours, "loglikelihood", context, " sea") == pytest.approx(expected, abs=2e-4)


def test_a_rolling_text_without_tokens_is_refused() -> None:
    ours, theirs = lms(tiny_tokenizer())
    assert ask(theirs, "loglikelihood_rolling", "") == 0
    with pytest.raises(UserError, match="item 7 is an empty text"):
        ask(ours, "loglikelihood_rolling", "")


TURNS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where?"}]


def test_the_chat_template_of_lm_evals_command_line_is_the_bases() -> None:
    ours, theirs = lms(tiny_tokenizer())
    assert ours.apply_chat_template(TURNS) == theirs.apply_chat_template(TURNS)
    assert ours.chat_template(True) == theirs.chat_template(True)


def test_a_base_without_a_chat_template_and_a_member_with_its_own_are_refused() -> None:
    ours, _ = lms(byte_tokenizer(eos_token="</s>"))
    with pytest.raises(UserError, match="--apply_chat_template: the base's tokenizer has no chat template"):
        ours.apply_chat_template(TURNS)
    ours, _ = lms(tiny_tokenizer(), render=lambda text: f"<|user|> {text}")
    with pytest.raises(UserError, match="--apply_chat_template: base has a chat template of its own already"):
        ours.apply_chat_template(TURNS)


@pytest.mark.parametrize(
    "option", ["enable_thinking", "think_end_token", "softmax_dtype", "truncation", "add_bos_token", "prefix_token_id"]
)
def test_options_of_hflm_that_would_have_no_effect_are_refused(option: str) -> None:
    with pytest.raises(UserError, match=f"unknown model_args key .* '{option}'"):
        FusedLM(base="models/base", **{option: True})
