"""The text of an answer is what it adds to its prompt: the two decoded together, whatever decoder the tokenizer has."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

import pytest
from lm_eval.api.instance import Instance
from tiny import CHAT, tiny_llama, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from proxytune.engines.hf import HFEngine
from proxytune.engines.hf.stopping import StopConditions
from proxytune.engines.requests import GenerateRequest, Prompt
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.arm_model import ArmLM
from proxytune.fusion import Static
from proxytune.fusion.arm import Arm
from proxytune.models import Ensemble, Member
from proxytune.models.chat import Chat, ChatPrompt
from proxytune.models.vocabulary import text_after, token_ids

TEXTS = [
    "def half(x):\n    return x / 2\n\n\nprint( half(3) )",
    "Answer: Zoë paid 3 € for a 🍎, didn't she?  Two blanks,\ttab.",
    "数えて 答え: 十二個。 Ответ: 12 яблок",
]
SPECIAL = ["<unk>", "<s>", "</s>"]


def fast(tokenizer: Tokenizer, **options) -> PreTrainedTokenizerFast:
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named, **options)


def trained(model, trainer, before, decoder, normalizer=None, **options) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    if decoder is not None:
        tokenizer.decoder = decoder
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(TEXTS, trainer)
    return fast(tokenizer, **options)


def bpe(**options) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False, **options)


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    before = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return trained(models.BPE(), bpe(initial_alphabet=alphabet), before, decoders.ByteLevel())


def metaspace(scheme: str) -> PreTrainedTokenizerFast:
    before = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    decoder = decoders.Metaspace(prepend_scheme=scheme)
    return trained(models.BPE(unk_token="<unk>"), bpe(), before, decoder)


def unigram() -> PreTrainedTokenizerFast:
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    cleaned = {"clean_up_tokenization_spaces": True}
    return trained(models.Unigram(), trainer, pre_tokenizers.Metaspace(), decoders.Metaspace(), **cleaned)


def llama() -> PreTrainedTokenizerFast:
    """Like Llama-2's: pieces with a mark for blanks, bytes for what has no piece, one blank dropped at the start."""
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.Metaspace()
    pieces.train_from_iterator(TEXTS[:1], bpe())
    vocab = pieces.get_vocab()
    words = [word for word in sorted(vocab, key=vocab.__getitem__) if word not in SPECIAL]
    merges = [tuple(pair) for pair in json.loads(pieces.to_str())["model"]["merges"]]
    numbered = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return LlamaTokenizer(vocab={word: i for i, word in enumerate(numbered)}, merges=merges)


def stripped() -> PreTrainedTokenizerFast:
    """Like a Llama's without bytes."""
    steps = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return trained(models.BPE(unk_token="<unk>"), bpe(), pre_tokenizers.Metaspace(), decoders.Sequence(steps))


def word_pieces() -> PreTrainedTokenizerFast:
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False)
    before = pre_tokenizers.BertPreTokenizer()
    return trained(models.WordPiece(unk_token="<unk>"), trainer, before, decoders.WordPiece())


def suffixes() -> PreTrainedTokenizerFast:
    model = models.BPE(unk_token="<unk>", end_of_word_suffix="</w>")
    before = pre_tokenizers.WhitespaceSplit()
    return trained(model, bpe(end_of_word_suffix="</w>"), before, decoders.BPEDecoder(), normalizers.NFC())


def words() -> PreTrainedTokenizerFast:
    """As in the miniature: a token is a word, and no decoder puts them together."""
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    return trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.WhitespaceSplit(), None)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "bytes": tiny_tokenizer,
    "bytes, prefix space": byte_level,
    "metaspace always": lambda: metaspace("always"),
    "metaspace first": lambda: metaspace("first"),
    "metaspace never": lambda: metaspace("never"),
    "unigram": unigram,
    "llama": llama,
    "strip": stripped,
    "word pieces": word_pieces,
    "suffixes": suffixes,
    "words": words,
}
DROPS_A_BLANK = {"metaspace always", "metaspace first", "unigram", "llama", "strip", "word pieces", "words"}
"""Tokenizers whose tokens, decoded alone, lose the blank before them."""


def decoded(tokenizer, ids, skip=False) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip))


def less(whole: str, prompt: str) -> str:
    """`whole` without its longest beginning that `prompt` begins with too."""
    return next(whole[n:] for n in range(len(whole), -1, -1) if prompt.startswith(whole[:n]))


def sequences(tokenizer) -> list[list[int]]:
    """The tokens of texts, alone and one after the other, and tokens at random, special ones and broken bytes too."""
    random = Random(0)
    texts = [token_ids(tokenizer, text) for text in [*TEXTS, "\n\n".join(TEXTS), "  x", "🍎" * 12]]
    noise = [[random.randrange(len(tokenizer)) for _ in range(40)] for _ in range(20)]
    return [ids for ids in [*texts, *noise, [1, *texts[0], 2, 2, *texts[1]]] if ids]


@pytest.mark.parametrize("skip", [False, True], ids=["all", "without special tokens"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_text_is_that_of_everything_less_that_of_the_prompt(name, skip):
    tokenizer = TOKENIZERS[name]()
    compared = 0
    for ids in sequences(tokenizer):
        whole = decoded(tokenizer, ids, skip)
        for at in range(len(ids) + 1):
            prompt = decoded(tokenizer, ids[:at], skip)
            text = text_after(tokenizer, ids[:at], ids[at:], skip)
            assert text == less(whole, prompt), (ids, at)
            compared += whole.startswith(prompt)
    assert compared > 100


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_first_blank_is_kept(name):
    tokenizer = TOKENIZERS[name]()
    prompt = token_ids(tokenizer, "Answer:" if name != "words" else "return x")
    answer = token_ids(tokenizer, "return x")[len(token_ids(tokenizer, "")) :]
    assert text_after(tokenizer, prompt, answer).strip() == "return x"
    assert decoded(tokenizer, answer, True) == "return x" or name == "bytes, prefix space"
    if name in DROPS_A_BLANK:
        assert text_after(tokenizer, prompt, answer) == " return x"


def test_indented_code_keeps_its_blanks():
    tokenizer = llama()
    prompt = token_ids(tokenizer, "def half(x):\n")
    answer = token_ids(tokenizer, "def half(x):\n    return x")[len(prompt) :]
    assert decoded(tokenizer, answer) == "   return x", "decoded alone"
    assert text_after(tokenizer, prompt, answer) == "    return x"


@pytest.mark.parametrize("name", ["bytes", "bytes, prefix space"])
def test_byte_level_tokens_have_the_text_that_they_have_alone(name):
    tokenizer = TOKENIZERS[name]()
    for ids in sequences(tokenizer):
        for at in range(1, len(ids)):
            if "\ufffd" not in decoded(tokenizer, ids[:at])[-1:]:
                assert text_after(tokenizer, ids[:at], ids[at:]) == decoded(tokenizer, ids[at:])


def test_a_character_begun_in_the_prompt_belongs_to_the_answer():
    for tokenizer in (tiny_tokenizer(), llama()):
        ids = tokenizer("x🍎", add_special_tokens=False)["input_ids"]
        assert text_after(tokenizer, ids[:-1], ids[-1:]) == "🍎"


def test_a_character_begun_in_the_answer_breaks_the_bytes_before_it():
    """Llama's decoder spells a run of bytes as a whole: one that ends within a character is all broken."""
    tokenizer = llama()
    prompt = tokenizer("x" + "é" * 6, add_special_tokens=False)["input_ids"]
    whole, before = (decoded(tokenizer, ids) for ids in ([*prompt, prompt[-2]], prompt))
    assert (before, text := less(whole, before)) == ("x" + "é" * 6, "\ufffd" * 13)
    assert text_after(tokenizer, prompt, prompt[-2:-1]) == text


def test_little_of_a_long_prompt_is_decoded():
    tokenizer, seen = llama(), []
    decode = tokenizer.decode
    tokenizer.decode = lambda ids, **options: seen.append(len(ids)) or decode(ids, **options)
    prompt = token_ids(tokenizer, TEXTS[0] * 50)
    text_after(tokenizer, prompt, prompt[:3])
    assert max(seen) < 12 < len(prompt)


# --- stop strings -----------------------------------------------------------------------------------------------------


def ended(tokenizer, prompt: str, answer: str, *until: str) -> str:
    """The text of the answer, given token by token until it ends."""
    ids = token_ids(tokenizer, prompt)
    tokens = token_ids(tokenizer, prompt + answer)[len(ids) :]
    stops = StopConditions(tokenizer, GenerateRequest(Prompt(tuple(ids)), 200, until), tuple(ids))
    end = next(n for n in range(1, len(tokens) + 1) if stops.reached(tokens[:n]) is not None or n == len(tokens))
    assert stops.reached(tokens[:end]) == "stop", "the stop string is found"
    assert not any(stop in decoded(tokenizer, tokens[: end - 1]) for stop in until), "and at once"
    return stops.text(tokens[:end])


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_ends_at_a_stop_string(name):
    tokenizer = TOKENIZERS[name]()
    assert ended(tokenizer, "return x", " print( half(3) )", "half", "3").strip() in ("print(", "print (")


def test_a_stop_string_is_found_after_bytes_and_with_its_first_blank():
    tokenizer = llama()
    assert ended(tokenizer, "x:", " 🍎\n\nprint", "\n\n") == " 🍎"
    assert ended(tokenizer, "return", " x / 2", " x") == ""
    assert ended(tokenizer, "x:", "🍎🍎🍎🍎🍎🍎\nx", "🍎\n") == "🍎🍎🍎🍎🍎"


# --- in the engine and in lm-eval -------------------------------------------------------------------------------------


def family_over(tokenizer) -> Ensemble:
    size = len(tokenizer)
    tokenizer.chat_template = CHAT
    render = ChatPrompt.of(Chat(), tokenizer, "expert:chat")
    members = {
        "base": Member("base", tiny_llama(size, seed=1), size, identity="base"),
        "antiexpert": Member("antiexpert", tiny_llama(size, seed=2), size, identity="antiexpert"),
        "expert:chat": Member("expert:chat", tiny_llama(size, seed=3), size, identity="chat", render=render),
    }
    return Ensemble(members, tokenizer)


ARMS = [
    Arm("base"),
    Arm("chat", base="expert:chat"),
    Arm("proxy", rule=Static(0.8), experts=("expert:chat",)),
]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_answers_of_arms_through_lm_eval(name):
    """Of each arm: the tokens after what its base reads, decoded together with that."""
    ensemble = family_over(TOKENIZERS[name]())
    shared = SharedAnswers(HFEngine(ensemble), ARMS, AnswerStore(None))
    contexts = ["def half(x):\n", "Answer:", "return x"]
    for arm in ARMS:
        lm = ArmLM(shared, arm)
        settings = {"until": ["half"], "max_gen_toks": 12}
        asked = [
            Instance("generate_until", {}, (context, settings), 0, metadata=("task", i, 1))
            for i, context in enumerate(contexts)
        ]
        texts = lm.generate_until(asked)
        for i, context in enumerate(contexts):
            member = ensemble[arm.base]
            prompt = token_ids(ensemble.tokenizer, context if member.render is None else member.render(context))
            answer = lm.item_answers[i][0].answer
            tokens = answer.tokens[:-1] if answer.finish == "eos" else answer.tokens
            begun, whole = (decoded(ensemble.tokenizer, ids, True) for ids in (prompt, [*prompt, *tokens]))
            assert texts[i] == answer.text == less(whole, begun).split("half")[0]


def test_a_request_after_another_prompt_has_the_text_after_that():
    """The key of an answer holds the prompt that its text was decoded after."""
    ensemble = family_over(llama())
    own = {"expert:chat": (300, 301, 302)}
    shared = SharedAnswers(HFEngine(ensemble), ARMS, AnswerStore(None))
    alike = [GenerateRequest(Prompt(prompt, own), 4) for prompt in ((1,), (1, 290))]
    assert len({answer.text for answer in shared.answer(ARMS[1], alike)}) == 1
    assert shared.keys.of(ARMS[1], alike[0]) == shared.keys.of(ARMS[1], alike[1])
    assert shared.keys.of(ARMS[0], alike[0]) != shared.keys.of(ARMS[0], alike[1])
