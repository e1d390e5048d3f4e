"""FusedCausalLM.generate gives, token by token, what slow loops without cache and padding give."""

from copy import deepcopy

import pytest
import torch
from fused_reference import SlowFused, slow_greedy
from transformers import TextIteratorStreamer, pipeline

from proxytune.fusion.match_kl import MatchKL
from proxytune.fusion.static import Static
from proxytune.models import Ensemble
from proxytune.models.hf.causal_lm import FusedCausalLM

BOTH = ["expert:math", "expert:trivia"]
"""A Llama and a GPT-2."""
PROMPTS = [[5, 9, 200, 31, 77, 8], [101, 44, 12], [7]]
RULES = [Static(1.0), Static((0.7, -0.4)), MatchKL(), MatchKL(solver="grid")]


def padded(rows, device="cpu"):
    """input_ids and attention_mask of rows padded on the left."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
    }


def answers(output, prompts):
    """The generated tokens of each row, up to and with its end of sequence."""
    width = max(map(len, prompts))
    rows = [row[width:].tolist() for row in output]
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_greedy_with_a_padded_batch_and_a_gpt2_member(family, rule):
    model = FusedCausalLM.from_ensemble(family, rule, BOTH)
    expected, weights = slow_greedy(family, rule, BOTH, PROMPTS, 12)
    output = model.generate(**padded(PROMPTS), max_new_tokens=12, do_sample=False, return_dict_in_generate=True)
    assert answers(output.sequences, PROMPTS) == expected
    noted = output.past_key_values.weights
    for i, row in enumerate(weights):
        torch.testing.assert_close(noted[:, i, : len(row)].T, torch.tensor(row), atol=2e-3, rtol=0)


@pytest.mark.parametrize("experts", [["expert:math"], BOTH])
def test_greedy_with_adapters_on_one_shared_module(adapter_family, experts):
    model = FusedCausalLM.from_ensemble(adapter_family, MatchKL(), experts)
    expected, _ = slow_greedy(adapter_family, MatchKL(), experts, PROMPTS, 12)
    assert answers(model.generate(**padded(PROMPTS), max_new_tokens=12, do_sample=False), PROMPTS) == expected
    assert len(model.members) == 2


@pytest.mark.parametrize("which", ["family", "adapter_family"])
@pytest.mark.parametrize("returned", [1, 3])
def test_beams(which, returned, request):
    ensemble = request.getfixturevalue(which)
    options = {"num_beams": 3, "num_return_sequences": returned, "max_new_tokens": 8, "do_sample": False}
    fused = FusedCausalLM.from_ensemble(ensemble, MatchKL(), BOTH).generate(**padded(PROMPTS), **options)
    slow = SlowFused(ensemble, MatchKL(), BOTH).generate(**padded(PROMPTS), **options, use_cache=False)
    assert fused.shape[0] == returned * len(PROMPTS)
    assert torch.equal(fused, slow)


@pytest.mark.parametrize(
    "options", [{}, {"num_return_sequences": 4}, {"num_beams": 2}, {"top_k": 5, "top_p": 0.9}], ids=str
)
def test_sampling_from_one_seed(family, options):
    options = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 10, **options}
    rule = Static((1.0, 0.5))
    torch.manual_seed(11)
    fused = FusedCausalLM.from_ensemble(family, rule, BOTH).generate(**padded(PROMPTS), **options)
    torch.manual_seed(11)
    slow = SlowFused(family, rule, BOTH).generate(**padded(PROMPTS), **options, use_cache=False)
    assert torch.equal(fused, slow)
    torch.manual_seed(12)
    assert not torch.equal(
        fused, FusedCausalLM.from_ensemble(family, rule, BOTH).generate(**padded(PROMPTS), **options)
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
def test_weight_zero_is_the_base(family, options):
    base = deepcopy(family["base"].model)
    base.resize_token_embeddings(family.vocab_size)  # without its padding rows
    options = {"max_new_tokens": 12, "do_sample": False, **options}
    torch.manual_seed(3)
    fused = FusedCausalLM.from_ensemble(family, Static(0.0), BOTH).generate(**padded(PROMPTS), **options)
    torch.manual_seed(3)
    assert torch.equal(fused, base.generate(**padded(PROMPTS), **options))


def test_without_a_rule_it_is_the_base(family):
    model = FusedCausalLM.from_ensemble(family)
    logits = model(torch.tensor(PROMPTS[:1])).logits
    assert torch.equal(logits, family["base"].model(torch.tensor(PROMPTS[:1])).logits[..., : family.vocab_size])
    assert len(model.members) == 1


# --- prompts of their own ---

OWN = {
    "expert:math": [[3, 3, 60, 5, 9, 200, 31, 4], [90, 2, 101], [7, 7, 7, 7]],
    "expert:trivia": [[15], [16, 17], [7]],
}


def own_prompts():
    return {role: padded(rows) for role, rows in OWN.items()}


def test_members_with_prompts_of_their_own_share_the_generated_tokens(family):
    model = FusedCausalLM.from_ensemble(family, MatchKL(), BOTH)
    expected, _ = slow_greedy(family, MatchKL(), BOTH, PROMPTS, 10, OWN)
    output = model.generate(**padded(PROMPTS), member_prompts=own_prompts(), max_new_tokens=10, do_sample=False)
    assert answers(output, PROMPTS) == expected
    assert expected != slow_greedy(family, MatchKL(), BOTH, PROMPTS, 10)[0]


def test_own_prompts_with_beams_and_several_return_sequences(family):
    options = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "do_sample": False}
    model = FusedCausalLM.from_ensemble(family, Static(1.0), BOTH)
    fused = model.generate(**padded(PROMPTS), member_prompts=own_prompts(), **options)
    slow = SlowFused(family, Static(1.0), BOTH, OWN, prompt=max(map(len, PROMPTS)))
    assert torch.equal(fused, slow.generate(**padded(PROMPTS), **options, use_cache=False))


def test_the_base_may_have_a_prompt_of_its_own_too(family):
    own = {"base": [[40, 41, 42, 43, 44], [1], [2, 3]]}
    model = FusedCausalLM.from_ensemble(family, Static(1.0), BOTH)
    expected, _ = slow_greedy(family, Static(1.0), BOTH, PROMPTS, 8, own)
    output = model.generate(**padded(PROMPTS), member_prompts={"base": padded(own["base"])}, max_new_tokens=8)
    assert answers(output, PROMPTS) == expected


def test_one_module_in_two_roles_reads_two_prompts(family):
    """base and antiexpert are one module; only the antiexpert has a prompt of its own."""
    twins = Ensemble({**family.members, "antiexpert": family["base"]}, family.tokenizer)
    own = {"antiexpert": [[40, 41], [1], [2, 3]]}
    model = FusedCausalLM.from_ensemble(twins, Static(1.0), BOTH)
    expected, _ = slow_greedy(twins, Static(1.0), BOTH, PROMPTS, 8, own)
    output = model.generate(
        **padded(PROMPTS), member_prompts={"antiexpert": padded(own["antiexpert"])}, max_new_tokens=8
    )
    assert answers(output, PROMPTS) == expected


# --- assisted decoding ---


@pytest.mark.parametrize("prompt", PROMPTS[:2], ids=len)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("assistant", ["expert alone", "padded model", "gpt2", "prompt lookup"])
def test_assisted_decoding_is_greedy_decoding(family, prompt, own, assistant):
    model = FusedCausalLM.from_ensemble(family, MatchKL(), BOTH)
    help_of = {
        "expert alone": {"assistant_model": model.alone("expert:math")},
        "padded model": {"assistant_model": family["antiexpert"].model},
        "gpt2": {"assistant_model": family["expert:trivia"].model},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }[assistant]
    options = {"input_ids": torch.tensor([prompt]), "max_new_tokens": 16, "do_sample": False}
    if own:
        options["member_prompts"] = {"expert:math": torch.tensor([OWN["expert:math"][0]])}
    plain = model.generate(**options, return_dict_in_generate=True)
    assisted = model.generate(**options, **help_of, return_dict_in_generate=True)
    assert torch.equal(assisted.sequences, plain.sequences)
    steps = plain.past_key_values.weights.shape[-1]
    noted = assisted.past_key_values.weights
    torch.testing.assert_close(
        noted[..., :steps], plain.past_key_values.weights[..., : noted.shape[-1]], atol=2e-3, rtol=0
    )


def test_assisted_sampling_follows_the_fused_distribution(family):
    """First tokens of many assisted samples against the fused probabilities."""
    model = FusedCausalLM.from_ensemble(family, Static(0.5), ["expert:math"])
    prompt = torch.tensor([PROMPTS[1]])
    wanted = model(prompt).logits[0, -1].softmax(-1)
    counts = torch.zeros_like(wanted)
    for seed in range(120):
        torch.manual_seed(seed)
        sample = model.generate(
            prompt, do_sample=True, top_k=0, max_new_tokens=2, assistant_model=model.alone("expert:math")
        )
        counts[sample[0, prompt.shape[1]]] += 1
    top = wanted.topk(5).indices
    assert (counts[top] / 120 - wanted[top]).abs().max() < 4 * (0.25 / 120) ** 0.5


# --- the other ways of transformers ---


def test_stop_strings_and_streaming(family):
    model = FusedCausalLM.from_ensemble(family, Static(1.0), BOTH)
    tokenizer = family.tokenizer
    prompt = padded(PROMPTS[:1])
    whole = model.generate(**prompt, max_new_tokens=20)[0, len(PROMPTS[0]) :]
    text = tokenizer.decode(whole)
    stop = tokenizer.decode(whole[4:6])
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    stopped = model.generate(**prompt, max_new_tokens=20, stop_strings=[stop], tokenizer=tokenizer, streamer=streamer)
    said = tokenizer.decode(stopped[0, len(PROMPTS[0]) :])
    assert said == "".join(streamer)
    assert stop in said and text.startswith(said) and len(said) < len(text)


def test_pipeline(family):
    model = FusedCausalLM.from_ensemble(family, Static(1.0), BOTH)
    speak = pipeline("text-generation", model=model, tokenizer=family.tokenizer)
    texts = ["how many apples", "Paris"]
    said = [out[0]["generated_text"] for out in speak(texts, batch_size=2, max_new_tokens=6, do_sample=False)]
    prompts = [family.tokenizer(text)["input_ids"] for text in texts]
    expected, _ = slow_greedy(family, Static(1.0), BOTH, prompts, 6)
    assert said == [
        text + family.tokenizer.decode(answer, skip_special_tokens=True)
        for text, answer in zip(texts, expected, strict=True)
    ]


def test_a_prompt_in_chunks_and_a_second_turn_from_the_cache(family):
    model = FusedCausalLM.from_ensemble(family, MatchKL(), BOTH)
    prompt = padded(PROMPTS[:2])
    plain = model.generate(**prompt, max_new_tokens=6, return_dict_in_generate=True, eos_token_id=-1)
    assert torch.equal(
        model.generate(**prompt, max_new_tokens=6, prefill_chunk_size=2, eos_token_id=-1), plain.sequences
    )
    longer = torch.cat([plain.sequences, torch.tensor([[50, 51], [52, 53]])], dim=1)
    mask = torch.cat([prompt["attention_mask"], torch.ones(2, 8, dtype=torch.long)], dim=1)
    anew = model.generate(longer, attention_mask=mask, max_new_tokens=6)
    cache = plain.past_key_values
    assert torch.equal(model.generate(longer, attention_mask=mask, past_key_values=cache, max_new_tokens=6), anew)


def test_without_cache_it_says_the_same(family):
    model = FusedCausalLM.from_ensemble(family, MatchKL(), BOTH)
    prompt = padded(PROMPTS)
    assert torch.equal(
        model.generate(**prompt, max_new_tokens=8, use_cache=False), model.generate(**prompt, max_new_tokens=8)
    )


def test_guidance_by_logits_processors_sees_the_fused_logits(family):
    model = FusedCausalLM.from_ensemble(family, Static(1.0), BOTH)
    options = {"max_new_tokens": 10, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "do_sample": False}
    slow = SlowFused(family, Static(1.0), BOTH).generate(**padded(PROMPTS), **options, use_cache=False)
    assert torch.equal(model.generate(**padded(PROMPTS), **options), slow)
