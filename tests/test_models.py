"""Members and the ensemble step against plain forward passes without cache and without padding."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_llama

from proxytune.models.distinct import DistinctMembers
from proxytune.models.ensemble import Ensemble, Inputs
from proxytune.models.member import ADAPTERS_OFF, Member


def plain(member: Member, tokens: list[int]) -> torch.Tensor:
    """Logits [L, V] of one row read at once, with no cache and no mask."""
    with torch.inference_mode(), member.active():
        return member.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, :, : member.vocab_size]


ROLES = ["base", "antiexpert", "expert:math", "expert:trivia"]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("which", ["family", "adapter_family"])
def test_reading_in_pieces_with_left_padding_equals_reading_at_once(role, which, request):
    ensemble: Ensemble = request.getfixturevalue(which)
    member = ensemble[role]
    rows = [[5, 9, 200, 31, 77, 8], [101, 44, 12]]
    state = ensemble.start(role, 2)
    tokens = torch.tensor([rows[0], [0, 0, 0, *rows[1]]])
    mask = torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])
    first = ensemble.step({role: Inputs(state, tokens, mask, keep=1)})[role]
    more = torch.tensor([[60, 61], [62, 63]])
    then = ensemble.step({role: Inputs(state, more, keep=2)})[role]
    for i, row in enumerate(rows):
        whole = plain(member, row + more[i].tolist())
        torch.testing.assert_close(first[i, -1], whole[len(row) - 1], atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(then[i], whole[len(row) :], atol=2e-4, rtol=1e-4)


def test_roles_share_a_run_only_with_the_same_weights_and_prompts(adapter_family):
    """Adapter on, adapter off, another prompt and other missing tokens are each a run of their own."""
    first = next(role for role in adapter_family.members if role.startswith("expert:"))
    expert = adapter_family[first]
    members = {
        **adapter_family.members,
        "expert:same": replace(expert, role="expert:same"),
        "expert:chat": replace(expert, role="expert:chat"),
        "expert:less": replace(expert, role="expert:less", missing=(3,)),
    }
    ensemble = Ensemble(members, adapter_family.tokenizer)
    prompts = {"expert:chat": (1, 2, 3)}
    distinct = DistinctMembers(ensemble, members, lambda role: prompts.get(role, (1, 2)))
    assert distinct.of == {role: role for role in members} | {"expert:same": first}
    assert distinct.needed(["expert:same", first, "base"]) == [first, "base"]
    assert distinct.by_role(["expert:same", "base"], {first: 1, "base": 2}) == {"expert:same": 1, "base": 2}


def test_adapters_answer_apart_and_the_antiexpert_is_the_module_without_them(adapter_family):
    tokens = [5, 9, 200, 31]
    answers = {role: plain(adapter_family[role], tokens) for role in ROLES[1:]}
    assert (answers["antiexpert"] - answers["expert:math"]).abs().max() > 0.1
    assert (answers["expert:trivia"] - answers["expert:math"]).abs().max() > 0.1


@pytest.fixture
def whole_adapters():
    """A PEFT model whose second adapter brings a head of its own, in training mode's gradient state."""
    model = get_peft_model(
        tiny_llama(400, seed=1), LoraConfig(target_modules=["q_proj"], init_lora_weights=False), "one"
    )
    model.add_adapter(
        "two", LoraConfig(target_modules=["v_proj"], init_lora_weights=False, modules_to_save=["lm_head"])
    )
    torch.nn.init.normal_(model.base_model.model.lm_head.modules_to_save["two"].weight)
    return model.eval()


def test_switching_equals_pefts_own_and_leaves_no_trace(whole_adapters):
    model, tokens = whole_adapters, torch.tensor([[5, 9, 200, 31]])
    expected = {}
    for name in ("one", "two"):
        model.set_adapter(name)
        expected[name] = model(tokens).logits
    with model.disable_adapter():
        expected[ADAPTERS_OFF] = model(tokens).logits
    model.set_adapter("one")
    gradients = [weight.requires_grad for weight in model.parameters()]
    for name in ("two", ADAPTERS_OFF, "one", "two"):
        assert torch.equal(plain(Member("x", model, 400, adapter=name), tokens[0].tolist()), expected[name][0])
        assert torch.equal(model(tokens).logits, expected["one"])
    assert [weight.requires_grad for weight in model.parameters()] == gradients


def test_an_adapter_added_later_is_switched_too(whole_adapters):
    model = whole_adapters
    before = plain(Member("x", model, 400, adapter=ADAPTERS_OFF), [5, 6, 7])
    model.add_adapter("late", LoraConfig(target_modules=["o_proj"], init_lora_weights=False))
    assert not torch.equal(plain(Member("x", model, 400, adapter="late"), [5, 6, 7]), before)
    assert torch.equal(plain(Member("x", model, 400, adapter=ADAPTERS_OFF), [5, 6, 7]), before)


def test_logits_are_far_apart_and_follow_the_context(family):
    for role in family.members:
        top = plain(family[role], [5, 9, 200, 31, 77, 8, 3, 90]).topk(2).values
        assert (top[:, 0] - top[:, 1]).median() > 0.1
        assert len(set(plain(family[role], [5, 9, 200, 31, 77, 8, 3, 90]).argmax(-1).tolist())) > 3
