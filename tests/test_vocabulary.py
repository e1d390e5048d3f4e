"""Token ids mean the same to every member, or the family is refused; heads are cut to what the tokenizer knows."""

import re
from types import SimpleNamespace

import pytest
import torch
from tiny import EXPERTS, save_member, tiny_gpt2, tiny_llama, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from proxytune.errors import UserError
from proxytune.models import Ensemble, FamilySpec, Inputs, Member, load
from proxytune.models.vocabulary import (
    check_head,
    check_policy,
    known_words,
    missing_tokens,
    token_ids,
    unknown_token,
    vocabulary_size,
)

EXTRA = ("<fill>", "<mid>", "<end>")


def words(vocabulary: dict[str, int], **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words without an unknown token, unless `special` names one."""
    model = models.WordLevel(vocabulary, unk_token=special.get("unk_token", ""))
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


def renamed(token: str, by: str):
    """The tiny tokenizer with one token called differently, everything else equal."""
    tokenizer = tiny_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace(f'"{token}":', f'"{by}":')
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(text)
    return tokenizer


def test_equal_vocabularies_miss_nothing():
    assert missing_tokens(tiny_tokenizer(), tiny_tokenizer(), "antiexpert") == ()


def test_the_size_of_a_vocabulary_with_gaps_is_its_largest_id_plus_one():
    assert vocabulary_size(words({"a": 0, "b": 3, "c": 9})) == 10
    assert vocabulary_size(tiny_tokenizer()) == len(tiny_tokenizer())


def test_tokens_between_gaps_are_compared_by_id():
    base, other = words({"a": 0, "b": 3, "c": 9}), words({"a": 0, "c": 9, "d": 5})
    with pytest.raises(UserError, match=r"only base knows 1 token \(3 'b'\); only expert:x knows 1 token \(5 'd'\)"):
        missing_tokens(base, other, "expert:x")
    assert missing_tokens(base, other, "expert:x", "base_only") == (3,)
    assert missing_tokens(other, base, "expert:x", "base_only") == (5,)
    clash = words({"a": 0, "b": 4, "x": 3, "c": 9})
    with pytest.raises(UserError, match=r"1 ids differ \(3 is 'b' in base and 'x' in expert:x\)"):
        missing_tokens(base, clash, "expert:x")


@pytest.mark.parametrize(
    ("n", "listing"),
    [(2, "2 tokens (1 'b', 8 'c')"), (3, "3 tokens (1 'b', 8 'c', 9 'd')"), (4, "4 tokens (1 'b', 8 'c', 9 'd', ...)")],
)
def test_a_refusal_lists_the_first_three_tokens_in_order(n: int, listing: str):
    own = dict(list({"b": 1, "c": 8, "d": 9, "e": 16}.items())[:n])
    with pytest.raises(UserError, match=re.escape(f"different tokens: only base knows {listing}. Set missing_tokens")):
        missing_tokens(words({"a": 0} | own), words({"a": 0}), "expert:x")
    assert missing_tokens(words({"a": 0} | own), words({"a": 0}), "expert:x", "base_only") == tuple(own.values())


def test_a_refusal_lists_the_first_three_clashes_in_order():
    base, other = ({f"{name}{i}": i for i in (1, 8, 9, 16)} for name in "ab")
    listing = ", ".join(f"{i} is 'a{i}' in base and 'b{i}' in expert:x" for i in (1, 8, 9))
    with pytest.raises(UserError, match=re.escape(f"4 ids differ ({listing})")):
        missing_tokens(words(base), words(other), "expert:x")


def test_a_policy_that_does_not_exist_is_refused():
    check_policy("refuse")
    check_policy("base_only")
    with pytest.raises(UserError, match="Did you mean 'refuse'"):
        check_policy("refuze")


def test_a_token_that_a_member_does_not_know_is_its_unknown_token_or_else_its_end():
    known = {"a": 0, "end": 1, "unk": 2}
    assert unknown_token(words(known, unk_token="unk", eos_token="end")) == 2
    assert unknown_token(words(known, eos_token="end")) == 1
    assert unknown_token(words({"unk": 0, "end": 1}, unk_token="unk", eos_token="end")) == 0
    with pytest.raises(UserError, match="has no unknown and no end-of-sequence token"):
        unknown_token(words(known))


def test_a_head_needs_a_row_for_every_token_that_is_not_missing():
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(vocab_size=8)))
    check_head(model, 8, (), "base")
    check_head(model, 10, (8, 9), "base")
    with pytest.raises(UserError, match=r"base: the model's head has 8 rows, but .* up to id 9"):
        check_head(model, 10, (8,), "base")


def test_a_word_without_a_token_is_named_and_other_errors_are_not_swallowed():
    tokenizer = words({"red": 0, "blue": 1})
    assert token_ids(tokenizer, "red") == [0]
    with pytest.raises(UserError, match="no token for 'green': it knows only 2 words") as error:
        token_ids(tokenizer, "green")
    assert type(error.value.__cause__) is Exception
    for bug in (KeyError("x"), ValueError("x"), TypeError("x")):
        with pytest.raises(type(bug)), known_words(tokenizer, "red"):
            raise bug
    with pytest.raises(UserError, match="no token for 'red'"), known_words(words({}), "red blue"):
        raise Exception("a fault of the tokenizers library")
    with pytest.raises(UserError, match="no token for 'green'"):
        token_ids(tokenizer, "red green blue")
    every = "red blue " * 10
    with pytest.raises(UserError, match=f"no token for '{every[:40]}': "), known_words(tokenizer, every):
        raise Exception("every word by itself is known")


def test_an_id_with_two_meanings_is_refused_by_name_under_either_policy():
    other = renamed("z", "zz")
    clash = tiny_tokenizer().convert_tokens_to_ids("z")
    for policy in ("refuse", "base_only"):
        with pytest.raises(
            UserError, match=rf"expert:math.*1 ids differ \({clash} is 'z' in base and 'zz' in expert:math"
        ):
            missing_tokens(tiny_tokenizer(), other, "expert:math", policy)


def test_tokens_of_the_base_alone_need_a_policy():
    base, other = tiny_tokenizer(EXTRA), tiny_tokenizer()
    first = vocabulary_size(other)
    with pytest.raises(UserError, match=rf"only base knows 3 tokens \({first} '<fill>', .*missing_tokens=base_only"):
        missing_tokens(base, other, "antiexpert")
    assert missing_tokens(base, other, "antiexpert", "base_only") == (first, first + 1, first + 2)


def test_tokens_of_an_expert_alone_need_a_policy():
    base, other = tiny_tokenizer(), tiny_tokenizer(EXTRA[:1])
    with pytest.raises(UserError, match=r"only expert:chat knows 1 token \("):
        missing_tokens(base, other, "expert:chat")
    assert missing_tokens(base, other, "expert:chat", "base_only") == ()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> FamilySpec:
    """A base with three tokens of its own, small models without them, one of which lacks even the head rows."""
    folder = tmp_path_factory.mktemp("mixed")
    large, small = tiny_tokenizer(EXTRA), tiny_tokenizer()
    size = len(small)
    return FamilySpec(
        base=save_member(folder / "base", tiny_llama(len(large) + 4, seed=1, hidden=48), large),
        antiexpert=save_member(folder / "anti", tiny_llama(size, seed=2), small),
        experts={"math": save_member(folder / "math", tiny_gpt2(size + 8, seed=3), small)},
        missing_tokens="base_only",
    )


def test_base_only_leaves_foreign_tokens_to_the_base(mixed):
    family = load(mixed)
    size = vocabulary_size(tiny_tokenizer())
    tokens = torch.tensor([[5, size + 1, 9]])
    read = family.step({role: Inputs(family.start(role, 1), tokens, keep=3) for role in family.members})
    assert {logits.shape for logits in read.values()} == {(1, 3, size + 3)}
    assert read["base"].isfinite().all()
    for role in ("antiexpert", "expert:math"):
        assert torch.isneginf(read[role][..., size:]).all()
        assert read[role][..., :size].isfinite().all()


def test_base_only_members_read_their_unknown_token_for_a_foreign_one(mixed):
    family = load(mixed)
    size = vocabulary_size(tiny_tokenizer())
    stand_in = tiny_tokenizer().eos_token_id
    for role in ("antiexpert", "expert:math"):
        foreign = family[role].read(family.start(role, 1), torch.tensor([[5, size + 1, 9]]))
        known = family[role].read(family.start(role, 1), torch.tensor([[5, stand_in, 9]]))
        assert torch.equal(foreign, known)


def test_different_tokens_are_refused_before_weights_are_read(mixed, monkeypatch):
    monkeypatch.setattr("proxytune.models.loading.modules.load_module", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="only base knows 3 tokens"):
        load(FamilySpec(mixed.base, mixed.antiexpert, mixed.experts))


def test_a_head_without_a_row_for_a_known_token_is_refused(tmp_path):
    tokenizer = tiny_tokenizer(EXTRA)
    path = save_member(tmp_path / "short", tiny_llama(len(tokenizer) - 1, seed=1), tokenizer)
    with pytest.raises(UserError, match=rf"base: the model's head has {len(tokenizer) - 1} rows"):
        load(FamilySpec(base=path))


def test_padding_rows_never_reach_the_logits():
    """A padding row of the head that would win every argmax is cut off."""
    tokenizer = tiny_tokenizer()
    model = tiny_llama(len(tokenizer) + 7, seed=1)
    model.lm_head.weight.data[len(tokenizer) :] *= 100
    family = Ensemble({"base": Member("base", model, len(tokenizer))}, tokenizer)
    logits = family.step({"base": Inputs(family.start("base", 1), torch.tensor([[5, 6, 7, 8]]), keep=4)})["base"]
    assert logits.shape == (1, 4, len(tokenizer))
    assert model(torch.tensor([[5, 6, 7, 8]])).logits.argmax(-1).max() >= len(tokenizer)


def test_default_experts_have_different_padding(family):
    rows = {family[role].model.config.vocab_size for role in ("base", "antiexpert", *(f"expert:{n}" for n in EXPERTS))}
    assert len(rows) == 4 and min(rows) >= family.vocab_size
