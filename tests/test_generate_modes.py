"""Every mode of transformers' `generate` gives what a model without caches, batches and padding gives.

The reference runs the members on each row alone, from its first token, at every step; transformers' own beam search,
sampling and logits processors run over it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fused_reference import SlowFused, slow_greedy
from test_fused import answers, padded
from tiny import tiny_gpt2, tiny_qwen2, tiny_tokenizer
from transformers import (
    AsyncTextIteratorStreamer,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    TextIteratorStreamer,
    TextStreamer,
    WatermarkingConfig,
)

from proxytune import FusedCausalLM, MatchKL, Static
from proxytune.errors import UserError
from proxytune.models import Ensemble, Member

TOKENIZER = tiny_tokenizer()
SIZE = len(TOKENIZER)
PROMPTS = [[140, 30, 374, 265, 250, 192], [211, 20, 74]]
"""Their greedy continuations repeat tokens, and beams find others."""
EXPERT = "expert:x"
NEW = 6


def family(base: str) -> Ensemble:
    """A large base of one kind; the expert and the antiexpert are of the other. Heads have padding rows."""
    large, small = (tiny_gpt2, tiny_qwen2) if base == "gpt2" else (tiny_qwen2, tiny_gpt2)
    models = {
        "base": large(SIZE + 7, seed=1, hidden=40, layers=3),
        EXPERT: small(SIZE + 2, seed=2),
        "antiexpert": small(SIZE + 4, seed=3),
    }
    return Ensemble({role: Member(role, model, SIZE) for role, model in models.items()}, TOKENIZER)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` of `generate` with the prompts and, unless they say it, how many tokens to generate."""
    length = {} if options.keys() & {"max_length", "generation_config"} else {"max_new_tokens": NEW}
    return {**padded(PROMPTS), **length, **options}


@dataclass(frozen=True)
class Pair:
    """A fused model and its reference."""

    fast: FusedCausalLM
    slow: SlowFused

    def both(self, **options: Any) -> tuple[Any, Any]:
        """What each generates from one seed."""
        found = []
        for model, cache in ((self.fast, {}), (self.slow, {"use_cache": False})):
            torch.manual_seed(7)
            found.append(model.generate(**given(options), **cache))
        return found[0], found[1]

    def greedy(self, prompt: list[int], steps: int = NEW) -> list[int]:
        """The prompt and its greedy continuation: a loop over the members, without transformers' `generate`."""
        experts = [] if self.slow.rule is None else [EXPERT]
        [[answer], _] = slow_greedy(self.slow.family, self.slow.rule, experts, [prompt], steps)
        return prompt + answer


@pytest.fixture(scope="module", params=["gpt2 alone", "qwen2 alone", "qwen2 static", "gpt2 match_kl"])
def pair(request) -> Pair:
    base, name = request.param.split()
    ensemble, rule = family(base), {"alone": None, "static": Static(1.0), "match_kl": MatchKL()}[name]
    experts = None if rule is None else [EXPERT]
    return Pair(FusedCausalLM.from_ensemble(ensemble, rule, experts), SlowFused(ensemble, rule, experts or []))


# --- modes that both run alike ---

SAMPLE = {"do_sample": True, "top_k": 0, "temperature": 2.0}
BEAMS = {"num_beams": 3, "do_sample": False}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "max length": {"max_length": 9},
    "sampling": SAMPLE,
    "temperature": SAMPLE | {"temperature": 0.7},
    "top k": SAMPLE | {"top_k": 5},
    "top p": SAMPLE | {"top_p": 0.6},
    "min p": SAMPLE | {"min_p": 0.05},
    "top h": SAMPLE | {"top_h": 0.5},
    "typical p": SAMPLE | {"typical_p": 0.6},
    "epsilon cutoff": SAMPLE | {"epsilon_cutoff": 0.01},
    "eta cutoff": SAMPLE | {"eta_cutoff": 0.01},
    "renormalised logits": SAMPLE | {"top_p": 0.8, "renormalize_logits": True},
    "several samples": SAMPLE | {"num_return_sequences": 3},
    "beams": BEAMS,
    "all beams": BEAMS | {"num_return_sequences": 3},
    "long beams": BEAMS | {"length_penalty": 2.0, "early_stopping": True},
    "beams until sure": BEAMS | {"early_stopping": "never", "length_penalty": -1.0},
    "beam sampling": SAMPLE | {"num_beams": 3, "num_return_sequences": 2},
    "repetition penalty": {"repetition_penalty": 1.7},
    "repetition penalty of the prompt": {"encoder_repetition_penalty": 1.7},
    "no repeated n-grams": {"no_repeat_ngram_size": 1},
    "no n-grams of the prompt": {"encoder_no_repeat_ngram_size": 1},
    "bad words": {"bad_words_ids": [[i] for i in range(3, SIZE, 2)]},
    "suppressed tokens": {"suppress_tokens": list(range(3, SIZE, 2))},
    "suppressed at first": {"begin_suppress_tokens": list(range(4, SIZE, 2))},
    "biased tokens": {"sequence_bias": [[[i], 40.0] for i in range(60, 70)]},
    "end forced": {"forced_eos_token_id": 2},
    "many ends": {"eos_token_id": list(range(3, SIZE, 3))},
    "least length": {"eos_token_id": list(range(3, SIZE, 3)), "min_length": 9},
    "least new tokens": {"eos_token_id": list(range(3, SIZE, 3)), "min_new_tokens": 4},
    "decay of length": {"exponential_decay_length_penalty": (2, 1.5)},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=4.0)},
    "SynthID watermark": SAMPLE
    | {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3, context_history_size=8)},
    "guidance": {"guidance_scale": 2.5},
    "negative prompt": {"guidance_scale": 1.8, "negative_prompt_ids": torch.tensor([[30, 31], [32, 33]])},
    "allowed tokens": {"prefix_allowed_tokens_fn": lambda row, ids: list(range(3 + row + len(ids), SIZE, 5))},
    "allowed tokens of beams": BEAMS | {"prefix_allowed_tokens_fn": lambda _, ids: list(range(3 + len(ids), SIZE, 5))},
    "processor of one's own": {"logits_processor": LogitsProcessorList([lambda _, scores: scores.roll(1, dims=-1)])},
    "criterion of one's own": {
        "stopping_criteria": StoppingCriteriaList([lambda ids, _: torch.full((len(ids),), ids.shape[1] > 8)])
    },
    "a whole config": {
        "generation_config": GenerationConfig(max_new_tokens=NEW, repetition_penalty=1.3, pad_token_id=0)
    },
}
UNLIKE_GREEDY = {name for name in MODES if name not in ("greedy", "renormalised logits")}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_gives_what_the_reference_gives(mode, pair):
    fast, slow = pair.both(**MODES[mode])
    assert fast.tolist() == slow.tolist()


def test_greedy_decoding_is_the_loop_written_out(pair):
    fast, _ = pair.both()
    assert answers(fast, PROMPTS) == [pair.greedy(row)[len(row) :] for row in PROMPTS]


@pytest.mark.parametrize("mode", sorted(UNLIKE_GREEDY))
def test_a_mode_changes_something(mode):
    """Otherwise the comparison shows nothing."""
    model = FusedCausalLM.from_ensemble(family("qwen2"), Static(1.0), [EXPERT])
    torch.manual_seed(7)
    assert model.generate(**given(MODES[mode])).tolist() != model.generate(**given({})).tolist()


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
def test_scores_and_logits_are_those_of_the_reference(mode, pair):
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    fast, slow = pair.both(**MODES[mode], **options)
    for part in ("scores", "logits"):
        for mine, theirs in zip(getattr(fast, part), getattr(slow, part), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-4)


# --- modes that must give what plain decoding gives ---


@pytest.mark.parametrize(
    "options", [{"use_cache": False}, {"prefill_chunk_size": 2}, {"disable_compile": True}, {"num_beams": 1}], ids=str
)
def test_how_it_is_computed_does_not_matter(options, pair):
    fast, slow = pair.fast.generate(**padded(PROMPTS), max_new_tokens=NEW, **options), pair.both()[1]
    assert fast.tolist() == slow.tolist()


def draft(pair: Pair) -> PreTrainedModel:
    """A model in memory, whose head has padding rows."""
    return pair.slow.family["antiexpert"].model


ASSISTANTS: dict[str, Callable[[Pair], dict[str, Any]]] = {
    "a member": lambda pair: {"assistant_model": pair.fast.alone("base")},
    "another model": lambda pair: {"assistant_model": draft(pair)},
    "a constant schedule": lambda pair: {
        "assistant_model": draft(pair),
        "num_assistant_tokens": 3,
        "num_assistant_tokens_schedule": "constant",
    },
    "a threshold": lambda pair: {"assistant_model": draft(pair), "assistant_confidence_threshold": 0.9},
    "another tokenizer": lambda _: {
        "assistant_model": tiny_gpt2(SIZE + 1, seed=9),
        "tokenizer": TOKENIZER,
        "assistant_tokenizer": tiny_tokenizer(["<new>"]),
    },
    "prompt lookup": lambda _: {"prompt_lookup_num_tokens": 3},
    "prompt lookup of long n-grams": lambda _: {"prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 3},
}


@pytest.mark.parametrize("name", ASSISTANTS)
def test_assisted_decoding_is_greedy_decoding(name, pair):
    row = [101, 44, 12, 60, 61, 101, 44]
    answer = pair.fast.generate(torch.tensor([row]), max_new_tokens=12, do_sample=False, **ASSISTANTS[name](pair))
    assert answer[0].tolist() == pair.greedy(row, 12)


def test_a_second_turn_goes_on_from_the_cache(pair):
    first = pair.fast.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, return_dict_in_generate=True)
    longer = [*first.sequences[0].tolist(), 50, 51]
    again = pair.fast.generate(torch.tensor([longer]), past_key_values=first.past_key_values, max_new_tokens=5)
    assert again[0].tolist() == pair.greedy(longer, 5)


def test_token_healing_completes_the_last_word(pair):
    """Of one row: transformers does not lengthen the attention mask of several."""
    row, options = TOKENIZER("Question: how many ap", return_tensors="pt")["input_ids"], {"max_new_tokens": 4}
    options |= {"token_healing": True, "tokenizer": TOKENIZER}
    assert pair.fast.generate(row, **options).tolist() == pair.slow.generate(row, **options, use_cache=False).tolist()


def test_without_a_prompt_it_begins_with_the_first_token(pair):
    assert pair.fast.generate(max_new_tokens=4)[0].tolist() == pair.greedy([TOKENIZER.bos_token_id], 4)


def test_streamers_are_given_what_is_returned(pair, capsys):
    prompt, text = torch.tensor([PROMPTS[0]]), TOKENIZER.decode(pair.greedy(PROMPTS[0])[len(PROMPTS[0]) :])
    pair.fast.generate(prompt, max_new_tokens=NEW, streamer=TextStreamer(TOKENIZER, skip_prompt=True))
    assert capsys.readouterr().out.rstrip("\n") == text.rstrip("\n")
    streamer = TextIteratorStreamer(TOKENIZER, skip_prompt=True)
    pair.fast.generate(prompt, max_new_tokens=NEW, streamer=streamer)
    assert "".join(streamer) == text

    async def listen() -> str:
        streamer = AsyncTextIteratorStreamer(TOKENIZER, skip_prompt=True)
        given = {"inputs": prompt, "max_new_tokens": NEW, "streamer": streamer}
        speaker = threading.Thread(target=pair.fast.generate, kwargs=given)
        speaker.start()
        said = "".join([part async for part in streamer])
        speaker.join()
        return said

    assert asyncio.run(listen()) == text


def test_stop_strings_end_where_they_first_stand(pair):
    row = PROMPTS[0]
    whole = pair.greedy(row, 12)
    words = [word for word in map(TOKENIZER.decode, whole[len(row) + 2 :]) if word.isascii()]  # some are parts of words
    stop = words[0]
    length = next(n for n in range(1, 13) if stop in TOKENIZER.decode(whole[len(row) : len(row) + n]))
    answer = pair.fast.generate(torch.tensor([row]), max_new_tokens=12, stop_strings=stop, tokenizer=TOKENIZER)
    assert answer[0].tolist() == whole[: len(row) + length]


def test_a_loop_of_ones_own_may_be_given(pair):
    def best(model, input_ids, logits_processor, stopping_criteria, generation_config, **given):
        while input_ids.shape[1] < generation_config.max_length:
            chosen = model(input_ids).logits[:, -1].argmax(dim=-1, keepdim=True)
            input_ids = torch.cat([input_ids, chosen], dim=1)
        return input_ids

    answer = pair.fast.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, custom_generate=best)
    assert answer[0].tolist()[: len(PROMPTS[0]) + 4] == pair.greedy(PROMPTS[0], 4)


# --- modes that several models do not have ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"output_hidden_states": True, "return_dict_in_generate": True}, UserError, "no common hidden states"),
        ({"output_attentions": True, "return_dict_in_generate": True}, UserError, "no common hidden states"),
        ({"cache_implementation": "static"}, UserError, "only dynamic caches can be fused"),
        ({"cache_implementation": "quantized"}, UserError, "only dynamic caches can be fused"),
        ({"cache_implementation": "offloaded"}, UserError, "only dynamic caches can be fused"),
        ({"cache_implementation": "paged"}, UserError, "only dynamic caches can be fused"),
        ({"assistant_early_exit": 1}, UserError, "assistant_early_exit drafts from the layers of one model"),
        ({"use_mtp": True}, UserError, "use_mtp drafts from the layers of one model"),
        ({"speculation_type": "dflash"}, UserError, "speculation_type drafts from the layers of one model"),
        ({"guidance_scale": 2.0, "num_beams": 2}, UserError, "guidance_scale needs num_beams=1"),
        ({"penalty_alpha": 0.6, "top_k": 4}, ValueError, "Contrastive Search requires `trust_remote_code=True`"),
        ({"dola_layers": "low"}, ValueError, "Dola Generation requires `trust_remote_code=True`"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0}, ValueError, "requires `trust_remote_code"),
        ({"num_beams": 2, "force_words_ids": [[5]]}, ValueError, "requires `trust_remote_code=True`"),
    ],
    ids=str,
)
def test_modes_of_one_model_are_refused(options, error, message):
    model = FusedCausalLM.from_ensemble(family("gpt2"), Static(1.0), [EXPERT])
    with pytest.raises(error, match=message):
        model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=2, **options)


def test_weight_zero_does_not_count_the_padding_rows_of_the_head():
    """Stock programs take the base's head as it is: rows beyond the vocabulary are tokens to them."""
    ensemble = family("gpt2")
    whole = ensemble["base"].model(torch.tensor([PROMPTS[0]])).logits
    fused = FusedCausalLM.from_ensemble(ensemble, Static(0.0), [EXPERT])(torch.tensor([PROMPTS[0]])).logits
    assert fused.equal(whole[..., :SIZE]) and whole.shape[-1] == SIZE + 7
    assert (fused.log_softmax(-1) > whole.log_softmax(-1)[..., :SIZE]).any()
