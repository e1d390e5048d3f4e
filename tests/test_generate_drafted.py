"""`generate(draft=...)` gives the tokens of `generate`, in fewer passes of the base."""

import pytest
import torch
from test_generate_modes import TOKENIZER, family
from test_speculation import kin
from transformers import TextStreamer

from proxytune import FusedCausalLM, MatchKL, Static
from proxytune.errors import UserError
from proxytune.models import Ensemble, Member

TEXTS = ["Answer the following question", "The answer is: (A) Paris, (B) London", "She had 48"]
ONE = "expert:math"


@pytest.fixture(scope="module")
def near():
    return kin(0.02)


def fused(ensemble, rule):
    return FusedCausalLM.from_ensemble(ensemble, rule, [ONE])


def both(model, draft, texts=TEXTS, **options):
    """What is generated without and with drafts, from one seed, and whether the generator is left the same."""
    found = []
    for one in (None, draft):
        torch.manual_seed(5)
        options = {"max_new_tokens": 24} | options
        found.append((model.generate(**model.prompts(texts), draft=one, **options), torch.rand(1).item()))
    return found


MODES = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 50},
    "processed": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 6},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("draft", ["expert", "ngram"])
@pytest.mark.parametrize("rule", [Static(1.0), MatchKL()], ids=["static", "dynamic"])
def test_tokens_are_those_of_generate(near, rule, draft, mode):
    (plain, before), (drafted, after) = both(fused(near, rule), draft, **MODES[mode])
    assert drafted.tolist() == plain.tolist()
    assert before == after, "the generator stands where it would"


@pytest.mark.parametrize("base", ["gpt2", "qwen2"])
def test_members_of_other_kinds(base):
    model = FusedCausalLM.from_ensemble(family(base), Static(1.0))
    for draft in ("expert", "ngram"):
        (plain, _), (drafted, _) = both(model, draft)
        assert drafted.tolist() == plain.tolist()


def test_ends_and_stop_strings_within_a_draft(near):
    model = fused(near, Static(1.0))
    whole = model.generate(**model.prompts(TEXTS[:1]), max_new_tokens=24)[0, -24:].tolist()
    for at in range(2, 14, 3):
        for end in ({"eos_token_id": whole[at]}, {"stop_strings": TOKENIZER.decode(whole[at : at + 2])}):
            options = {"tokenizer": TOKENIZER} if "stop_strings" in end else {}
            (plain, _), (drafted, _) = both(model, "expert", **end, **options)
            assert drafted.tolist() == plain.tolist()
        # Without an end token, rows that have ended go on until all have.
        end = {"stop_strings": TOKENIZER.decode(whole[at : at + 1]), "eos_token_id": None, "tokenizer": TOKENIZER}
        (plain, _), (drafted, _) = both(model, "expert", **end)
        assert drafted.tolist() == plain.tolist()


def test_the_base_reads_less_often_and_the_cache_can_be_continued(near, monkeypatch):
    model = fused(near, MatchKL())
    passes = []
    read = Member.read
    monkeypatch.setattr(Member, "read", lambda self, *args: passes.append(self.role) or read(self, *args))
    counts, found = [], []
    for draft in (None, "expert"):
        passes.clear()
        out = model.generate(**model.prompts(TEXTS[:1]), max_new_tokens=24, draft=draft, return_dict_in_generate=True)
        counts.append(passes.count("base"))
        again = model.generate(out.sequences, past_key_values=out.past_key_values, max_new_tokens=8, draft=draft)
        found.append((out.sequences.tolist(), again.tolist()))
        assert out.past_key_values.weights.shape == (1, 1, 32)
    assert counts[1] < counts[0] / 1.5
    assert found[0] == found[1]


def test_weights_are_those_of_the_tokens_taken(near):
    model = fused(near, Static(0.7))
    plain, drafted = (
        model.generate(**model.prompts(TEXTS), max_new_tokens=20, draft=draft, return_dict_in_generate=True)
        for draft in (None, "expert")
    )
    weights = drafted.past_key_values.weights
    assert weights.shape == plain.past_key_values.weights.shape
    torch.testing.assert_close(weights[weights.isfinite()].unique(), torch.tensor([0.7]))


def test_members_with_prompts_of_their_own(near):
    from dataclasses import replace

    chat = {ONE: replace(near[ONE], render=lambda text: f"<|user|> {text}\n")}
    model = fused(Ensemble({**near.members, **chat}, near.tokenizer), Static(1.0))
    (plain, _), (drafted, _) = both(model, "expert")
    assert drafted.tolist() == plain.tolist()


def test_streams_token_by_token(near, capsys):
    model = fused(near, Static(1.0))
    shown = []
    for draft in (None, "expert"):
        streamer = TextStreamer(TOKENIZER, skip_prompt=True)
        model.generate(**model.prompts(TEXTS[:1]), max_new_tokens=16, draft=draft, streamer=streamer)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"draft": "base"}, "draft='base'"),
        ({"draft": "ngram", "num_beams": 2}, "num_beams=1"),
        ({"draft": "ngram", "return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"draft": "ngram", "guidance_scale": 2.0}, "guidance_scale"),
        ({"draft": "ngram", "use_cache": False}, "use_cache"),
        ({"draft": "ngram", "prompt_lookup_num_tokens": 3}, "two ways to draft"),
    ],
)
def test_what_does_not_go_with_drafts_is_refused(near, options, said):
    model = fused(near, Static(1.0))
    with pytest.raises(UserError, match=said):
        model.generate(**model.prompts(TEXTS[:1]), max_new_tokens=4, **options)
    alone = FusedCausalLM.from_ensemble(near)
    with pytest.raises(UserError, match="takes no expert"):
        alone.generate(**alone.prompts(TEXTS[:1]), draft="expert")
