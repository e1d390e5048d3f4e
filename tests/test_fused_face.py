"""FusedCausalLM as others meet it: composing, saving and reading, Auto classes, lm-eval, loss, and what it refuses."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from test_sources import in_hub_cache
from tiny import EXPERTS, WINDOW, save_member, tiny_gpt2, tiny_llama, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from proxytune import FusedCausalLM, MatchKL, Static
from proxytune.errors import UserError
from proxytune.fusion.contrastive import Contrastive
from proxytune.fusion.rule import Fused
from proxytune.miniature.untrained import make_tokenizer
from proxytune.models import ADAPTERS_OFF, Ensemble, FamilySpec, Member, Source, load
from proxytune.models.chat import Chat, ChatPrompt

BOTH = ["expert:math", "expert:trivia"]
TOKENS = torch.tensor([[5, 9, 200, 31, 77, 8], [101, 44, 12, 60, 61, 62]])


def same(one: FusedCausalLM, other: FusedCausalLM) -> bool:
    a, b = one(TOKENS), other(TOKENS)
    return torch.equal(a.logits, b.logits) and torch.equal(a.weights, b.weights)


@pytest.fixture(scope="module")
def fused(family) -> FusedCausalLM:
    return FusedCausalLM.from_ensemble(family, MatchKL(), BOTH)


# --- composing ---


def test_compose_takes_models_members_and_sources_alike(fused, family, family_folders):
    paths = {name: str(family_folders[f"expert:{name}"]) for name in EXPERTS}
    from_paths = FusedCausalLM.compose(family_folders["base"], paths, family_folders["antiexpert"], MatchKL())
    assert same(from_paths, fused)
    mixed = FusedCausalLM.compose(
        base=family["base"].model,
        experts={"math": family["expert:math"], "trivia": Source(paths["trivia"])},
        antiexpert=str(family_folders["antiexpert"]),
        rule=MatchKL(),
        tokenizer=tiny_tokenizer(),
    )
    assert same(mixed, fused)
    single = FusedCausalLM.compose(family_folders["base"], paths["math"], family_folders["antiexpert"], Static(0.5))
    assert same(single, FusedCausalLM.from_ensemble(family, Static(0.5), ["expert:math"]))


def test_compose_takes_one_adapter_model_in_two_roles(adapter_family):
    shared = adapter_family["antiexpert"].model
    size = adapter_family.vocab_size
    model = FusedCausalLM.compose(
        base=adapter_family["base"].model,
        experts={"math": Member("x", shared, size, adapter="math")},
        antiexpert=Member("y", shared, size, adapter=ADAPTERS_OFF),
        rule=Static(1.0),
        tokenizer=adapter_family.tokenizer,
    )
    assert same(model, FusedCausalLM.from_ensemble(adapter_family, Static(1.0), ["expert:math"]))


def test_voices_that_are_equal_run_once(family, monkeypatch):
    one = tiny_llama(family.vocab_size, seed=1)
    calls = []
    model = FusedCausalLM.compose(one, {"math": family["expert:math"], "self": one}, one, Static(1.0), family.tokenizer)
    one.register_forward_hook(lambda *_: calls.append(1))
    model.generate(TOKENS, max_new_tokens=5, eos_token_id=-1)
    assert len(calls) == 5
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for m in (one, family["expert:math"].model) for p in m.parameters()
    )


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (lambda f: {"base": f["base"].model}, "pass tokenizer="),
        (lambda f: {"base": f["base"], "experts": f["expert:math"], "rule": Static()}, "antiexpert is missing"),
        (
            lambda f: {"base": f["base"], "experts": {}, "antiexpert": f["antiexpert"], "rule": Static()},
            "has 0 experts, but its rule takes base, experts, antiexpert",
        ),
        (
            lambda f: {
                "base": f["base"],
                "experts": f["expert:math"],
                "antiexpert": f["antiexpert"],
                "tokenizer": f.tokenizer,
            },
            "has 1 experts, but one model alone takes none",
        ),
        (lambda f: {"base": f["base"], "rule": Static(1.0), "tokenizer": f.tokenizer}, "has 0 experts"),
        (
            lambda f: {"base": f["base"], "antiexpert": f["antiexpert"]},
            "antiexpert has no effect: the base alone takes",
        ),
        (lambda f: {"base": f["base"], "rule": Contrastive()}, "antiexpert is missing: Contrastive takes base, antiex"),
        (
            lambda f: {"base": torch.nn.Linear(2, 2)},
            "base: a Linear can't be a member: give a transf",
        ),
        (lambda f: {"base": FusedCausalLM.from_ensemble(f)}, "base: a FusedCausalLM can't be a member"),
        (lambda f: {"base": "/no/such/model"}, "base: no such folder: '/no/such/model'"),
        (lambda f: {"base": f["base"], "tokenizer": tiny_tokenizer(["<new>"])}, "its family has"),
        (lambda f: {"base": tiny_llama(50, seed=1), "tokenizer": f.tokenizer}, "the model's head has 50 rows"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message, family):
    with pytest.raises(UserError) as error:
        FusedCausalLM.compose(**parts(family))
    assert message in str(error.value)


class Bare:
    """What a rule of a user's own may look like at first."""

    def fuse(self, base, experts, antiexpert):
        return base + experts[0] - antiexpert


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("proxy", "rule: 'proxy' is not a rule: give an object with fuse(), such as MatchKL() or Static(1.0)"),
        (MatchKL, "match_kl.MatchKL'> is not a rule: give an object"),
        (Bare(), "rule: Bare.fuse returned Tensor[3, 1000], but a rule returns Fused("),
        (Static((1.0, 2.0, 3.0)), "rule: Static.weights has 3 numbers for 2 experts"),
    ],
    ids=["text", "class", "bare tensor", "three weights"],
)
def test_what_is_no_rule_is_refused_before_anything_loads(rule, message, family):
    nowhere = {"base": "/no/such/model", "experts": {"a": "/no/a", "b": "/no/b"}, "antiexpert": "/no/b"}
    for make in (
        lambda: FusedCausalLM.compose(**nowhere, rule=rule),
        lambda: FusedCausalLM.from_ensemble(family, rule, BOTH),
    ):
        with pytest.raises(UserError) as error:
            make()
        assert message in str(error.value)
        assert "\n" not in str(error.value)


def test_adapters_that_cannot_be_switched_are_refused(adapter_family, family):
    shared, size = adapter_family["antiexpert"].model, family.vocab_size
    with pytest.raises(UserError, match="needs a PeftModel"):
        Member("antiexpert", family["base"].model, size, adapter=ADAPTERS_OFF)
    with pytest.raises(UserError, match=r"expert:x: unknown adapter 'maths'. Did you mean 'math'"):
        Member("expert:x", shared, size, adapter="maths")
    shared.merge_adapter(["math"])
    try:
        with pytest.raises(UserError, match="merged adapters"):
            Member("expert:math", shared, size, adapter="math")
    finally:
        shared.unmerge_adapter()


# --- saving and reading ---


@pytest.mark.parametrize(
    "rule", [Static((1.0, -0.5)), MatchKL(high=1.5, solver="grid", experts="joint"), Static(0.0)], ids=str
)
def test_a_saved_model_reads_back_the_same(family, rule, tmp_path):
    model = FusedCausalLM.from_ensemble(family, rule, BOTH)
    model.generation_config.max_new_tokens = 7
    model.save_pretrained(tmp_path / "fused")
    for again in (
        FusedCausalLM.from_pretrained(tmp_path / "fused"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "fused"),
    ):
        assert isinstance(again, FusedCausalLM)
        assert again.arm == model.arm and again.arm.roles == model.arm.roles
        assert again.generation_config.max_new_tokens == 7
        assert same(again, model)
    assert AutoTokenizer.from_pretrained(tmp_path / "fused").get_vocab() == family.tokenizer.get_vocab()
    assert AutoConfig.from_pretrained(tmp_path / "fused").vocab_size == family.vocab_size
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))


def test_two_models_decode_contrastively_and_are_saved_without_experts(family, tmp_path):
    """Li et al. 2023, token by token without a cache; the saved folder holds two members and the rule."""
    rule = Contrastive(0.2)
    model = FusedCausalLM.compose(
        family["base"], antiexpert=family["antiexpert"], rule=rule, tokenizer=family.tokenizer
    )
    tokens = TOKENS[:1]
    for _ in range(6):
        logits = (family[role].model(tokens).logits[0, -1, : family.vocab_size] for role in ("base", "antiexpert"))
        large, small = (one.log_softmax(-1) for one in logits)
        score = torch.where(large.exp() >= 0.2 * large.exp().max(), large - small, -torch.inf)
        tokens = torch.cat([tokens, score.argmax().view(1, 1)], dim=1)
    assert torch.equal(model.generate(TOKENS[:1], max_new_tokens=6, eos_token_id=-1), tokens)
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["antiexpert", "base"]
    again = FusedCausalLM.from_pretrained(tmp_path)
    assert again.arm.rule == rule and again.arm.roles == ("base", "antiexpert")
    assert same(again, model)


def test_without_a_terminal_no_bars_of_transformers_are_shown(family_folders, tmp_path, capfd, monkeypatch):
    def bars(show: bool) -> list[bool]:
        """Which of transformers' bars are shown, in a terminal or without one."""
        monkeypatch.setattr("rich.console.Console.is_terminal", show)
        FusedCausalLM.compose(family_folders["base"]).save_pretrained(tmp_path)
        FusedCausalLM.from_pretrained(tmp_path)
        said = capfd.readouterr().err
        return [bar in said for bar in ("Loading weights", "Writing model shards")]

    assert bars(show=False) == [False, False]
    assert bars(show=True) == [True, True]


def test_every_saved_member_is_an_ordinary_folder(fused, family, tmp_path):
    fused.save_pretrained(tmp_path)
    for role in fused.arm.roles:
        folder = tmp_path / role.replace(":", "-")
        alone = AutoModelForCausalLM.from_pretrained(folder)
        assert torch.equal(alone(TOKENS).logits, family[role].model(TOKENS).logits)
        assert len(AutoTokenizer.from_pretrained(folder)) == family.vocab_size
    assert str(tmp_path) not in (tmp_path / "config.json").read_text()


def test_adapters_are_saved_beside_one_module_and_share_it_again(adapter_family, tmp_path):
    model = FusedCausalLM.from_ensemble(adapter_family, MatchKL(), BOTH)
    model.save_pretrained(tmp_path / "fused")
    moved = (tmp_path / "fused").rename(tmp_path / "elsewhere")
    again = FusedCausalLM.from_pretrained(moved)
    assert same(again, model)
    assert len(again.members) == 2
    assert {p.parent.name for p in moved.rglob("*.safetensors")} == {
        "base",
        "antiexpert",
        "expert-math",
        "expert-trivia",
    }
    plain = AutoModelForCausalLM.from_pretrained(moved / "antiexpert")
    with adapter_family["antiexpert"].active():
        assert torch.equal(plain(TOKENS).logits, adapter_family["antiexpert"].model(TOKENS).logits)


def test_an_adapter_without_its_bare_module_is_saved_too(adapter_family, family, tmp_path):
    members = {"base": adapter_family["expert:math"], "antiexpert": family["antiexpert"]}
    ensemble = Ensemble({**members, "expert:x": family["expert:math"]}, family.tokenizer)
    model = FusedCausalLM.from_ensemble(ensemble, Static(1.0))
    model.save_pretrained(tmp_path)
    assert same(FusedCausalLM.from_pretrained(tmp_path), model)


def test_tokens_of_the_base_alone_survive_saving(tmp_path):
    large, small = tiny_tokenizer(["<fill>"]), tiny_tokenizer()
    spec = FamilySpec(
        base=save_member(tmp_path / "base", tiny_llama(len(large), seed=1), large),
        antiexpert=save_member(tmp_path / "anti", tiny_llama(len(small), seed=2), small),
        experts={"x": save_member(tmp_path / "x", tiny_gpt2(len(small) + 9, seed=3), small)},
        missing_tokens="base_only",
    )
    model = FusedCausalLM.from_ensemble(load(spec), MatchKL())
    assert torch.isfinite(model(TOKENS).logits).all()
    model.save_pretrained(tmp_path / "fused")
    assert same(FusedCausalLM.from_pretrained(tmp_path / "fused"), model)


def chatty(family: Ensemble) -> Ensemble:
    render = ChatPrompt.of(Chat(), family.tokenizer, "expert:math")
    return Ensemble({**family.members, "expert:math": replace(family["expert:math"], render=render)}, family.tokenizer)


def test_a_chat_member_reads_its_own_rendering_and_is_saved_with_it(family, tmp_path):
    model = FusedCausalLM.from_ensemble(chatty(family), Static(1.0), BOTH)
    texts = ["how many apples are there?", "Paris"]
    prompts = model.prompts(texts)
    assert set(prompts["member_prompts"]) == {"expert:math"}
    own = prompts["member_prompts"]["expert:math"]
    for i, text in enumerate(texts):
        read = own["input_ids"][i][own["attention_mask"][i].bool()]
        assert family.tokenizer.decode(read) == f"<|user|> {text}\n<|assistant|>"
    answer = model.generate(**prompts, max_new_tokens=6)
    plain = FusedCausalLM.from_ensemble(family, Static(1.0), BOTH)
    assert not torch.equal(answer, plain.generate(**plain.prompts(texts), max_new_tokens=6))
    assert torch.equal(answer, plain.generate(**prompts, max_new_tokens=6))
    model.save_pretrained(tmp_path)
    again = FusedCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.generate(**again.prompts(texts), max_new_tokens=6), answer)


def test_a_chat_member_may_draft(family):
    model = FusedCausalLM.from_ensemble(chatty(family), Static(1.0), BOTH)
    prompts = model.prompts(["how many apples are there?"])
    answer = model.generate(**prompts, max_new_tokens=8)
    assert torch.equal(model.generate(**prompts, max_new_tokens=8, assistant_model=model.alone("expert:math")), answer)


def test_a_chat_member_without_its_prompt_is_refused(family):
    model = FusedCausalLM.from_ensemble(chatty(family), Static(1.0), BOTH)
    with pytest.raises(UserError, match="expert:math reads a prompt of its own"):
        model.generate(TOKENS, max_new_tokens=2)
    with pytest.raises(UserError, match="expert:math reads a prompt of its own"):
        model(TOKENS)


@dataclass(frozen=True)
class Halfway:
    """A rule of a user's own."""

    share: float = 0.5
    id: ClassVar[str] = "halfway"
    formula: ClassVar[str] = "base + share (expert - antiexpert)"
    paper: ClassVar[str] = "none"

    def fuse(self, base, experts, antiexpert) -> Fused:
        return Static(self.share).fuse(base, experts, antiexpert)


def test_a_rule_from_elsewhere_is_passed_when_reading(family, tmp_path):
    model = FusedCausalLM.from_ensemble(family, Halfway(0.25), BOTH)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no rule has the id 'halfway'"):
        FusedCausalLM.from_pretrained(tmp_path)
    assert same(FusedCausalLM.from_pretrained(tmp_path, rule=Halfway(0.25)), model)


@dataclass(frozen=True)
class Imitator(Halfway):
    id: ClassVar[str] = "static"


def test_a_rule_that_would_be_read_back_as_another_is_not_saved(family, tmp_path):
    model = FusedCausalLM.from_ensemble(family, Imitator(), BOTH)
    with pytest.raises(UserError, match="Imitator has the id 'static' of another rule"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_reading_options_reach_every_member(fused, tmp_path):
    fused.save_pretrained(tmp_path)
    model = FusedCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    assert {m.dtype for m in model.members} == {torch.bfloat16}
    assert {m.config._attn_implementation for m in model.members} == {"eager"}
    assert model(TOKENS).logits.dtype == torch.float32


def test_saving_again_replaces_what_was_there(family, tmp_path):
    FusedCausalLM.from_ensemble(family, Static(1.0), ["expert:math"]).save_pretrained(tmp_path)
    other = Ensemble({**family.members, "expert:math": family["tuned:math"]}, family.tokenizer)
    model = FusedCausalLM.from_ensemble(other, Static(1.0), ["expert:math"])
    model.save_pretrained(tmp_path)
    assert same(FusedCausalLM.from_pretrained(tmp_path), model)


def test_a_saved_model_is_read_from_the_hub_cache(fused, tmp_path, monkeypatch):
    fused.save_pretrained(tmp_path / "fused")
    in_hub_cache(tmp_path / "hub", "someone/fused", tmp_path / "fused", "0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert same(FusedCausalLM.from_pretrained("someone/fused"), fused)


def damaged(fused: FusedCausalLM, folder: Path, **changes) -> Path:
    fused.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_what_cannot_be_read_is_one_clear_line(fused, family_folders, tmp_path):
    with pytest.raises(UserError, match="no such folder: "):
        FusedCausalLM.from_pretrained(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a saved FusedCausalLM"):
        FusedCausalLM.from_pretrained(family_folders["base"])
    with pytest.raises(UserError, match="is neither a local folder nor in the local hub cache"):
        FusedCausalLM.from_pretrained("nobody/has-this-model")
    with pytest.raises(UserError, match=r"holds its members in sub-folders, not in '../base'"):
        FusedCausalLM.from_pretrained(damaged(fused, tmp_path / "a", family={"base": "../base"}))
    with pytest.raises(UserError, match="does not take load_in_8bit=True"):
        FusedCausalLM.from_pretrained(tmp_path / "a", load_in_8bit=True)
    with pytest.raises(UserError, match="go to one device"):
        FusedCausalLM.from_pretrained(tmp_path / "a", device_map={"model": "cpu", "lm_head": "cpu"})
    with pytest.raises(UserError, match="it is a file"):
        (tmp_path / "file").write_text("")
        fused.save_pretrained(tmp_path / "file")


# --- the Hugging Face face ---


def test_loss_is_the_cross_entropy_of_the_fused_logits(fused):
    labels = TOKENS.clone()
    labels[0, :3] = -100
    output = fused(TOKENS, labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


def test_kept_positions_equal_the_last_of_all(fused):
    whole = fused(TOKENS)
    last = fused(TOKENS, logits_to_keep=2)
    assert whole.logits.shape == (2, 6, fused.config.vocab_size) and whole.weights.shape == (2, 2, 6)
    torch.testing.assert_close(last.logits, whole.logits[:, -2:], atol=1e-4, rtol=1e-4)
    assert isinstance(fused(TOKENS, return_dict=False)[0], torch.Tensor)


@pytest.mark.parametrize("how", ["model", "folder"])
def test_lm_eval_scores_it_like_any_model(how, fused, family, tmp_path):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    fused.save_pretrained(tmp_path)
    made = {
        "model": {"pretrained": fused, "tokenizer": family.tokenizer, "max_length": 64},
        "folder": {"pretrained": str(tmp_path), "dtype": "float32", "device": "cpu", "trust_remote_code": True},
    }[how]
    lm = HFLM(**made, batch_size=2)
    assert lm.max_length == (64 if how == "model" else WINDOW)
    pairs = [("how many apples", " are there"), ("Paris", " is the answer to it"), ("x", " y")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    scored = lm.loglikelihood(requests, disable_tqdm=True)
    for (context, continuation), (loglikelihood, _) in zip(pairs, scored, strict=True):
        head = family.tokenizer(context)["input_ids"]
        tokens = family.tokenizer(context + continuation)["input_ids"]
        logprobs = fused(torch.tensor([tokens])).logits[0].log_softmax(-1)
        expected = sum(float(logprobs[i - 1, tokens[i]]) for i in range(len(head), len(tokens)))
        assert loglikelihood == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m(inputs_embeds=torch.zeros(1, 2, 4)), "does not take inputs_embeds"),
        (lambda m: m(TOKENS, output_hidden_states=True), "does not take output_hidden_states"),
        (lambda m: m(TOKENS, output_attentions=True), "does not take output_attentions"),
        (lambda m: m(TOKENS, position_ids=torch.arange(6)[None]), "does not take position_ids"),
        (lambda m: m(TOKENS[0]), "reads input_ids"),
        (lambda m: m(TOKENS, past_key_values=DynamicCache()), "must be a FusedCache"),
        (lambda m: m(TOKENS, attention_mask=torch.ones(2, 4)), "attention_mask must be [rows, past + tokens] = [2, 6]"),
        (lambda m: m(TOKENS, logits_to_keep=torch.tensor([1])), "logits_to_keep must be a number"),
        (lambda m: m(TOKENS, labels=TOKENS, logits_to_keep=2), "labels need the logits of every position"),
        (lambda m: m(TOKENS, member_prompts={"base": TOKENS}), "member_prompts need logits_to_keep"),
        (lambda m: m.generate(TOKENS, max_new_tokens=2, past_key_values=DynamicCache()), "must be a FusedCache"),
        (lambda m: m.generate(TOKENS, max_new_tokens=2, cache_implementation="static"), "only dynamic caches"),
        (lambda m: m.generate(TOKENS, max_new_tokens=2, cache_implementation="paged"), "only dynamic caches"),
        (
            lambda m: m.generate(TOKENS, max_new_tokens=2, output_hidden_states=True, return_dict_in_generate=True),
            "no common hidden states",
        ),
        (
            lambda m: m.generate(TOKENS, max_new_tokens=2, member_prompts={"expert:moth": TOKENS}),
            "Did you mean 'expert:math'",
        ),
        (
            lambda m: m.generate(TOKENS, max_new_tokens=2, member_prompts={"base": TOKENS[0]}),
            "must be [rows, tokens] for 2 rows",
        ),
        (
            lambda m: m.generate(TOKENS, max_new_tokens=2, member_prompts={"base": TOKENS[:, :0].repeat(2, 1)}),
            "for 2 rows, not [4, 0]",
        ),
        (
            lambda m: m.generate(TOKENS, max_new_tokens=2, member_prompts={"base": TOKENS}, use_cache=False),
            "need use_cache=True",
        ),
        (lambda m: m.prompts("one text"), "takes a list of texts"),
        (lambda m: FusedCausalLM(m.config), "use compose, from_ensemble or from_pretrained"),
    ],
)
def test_what_has_no_meaning_for_several_models_is_refused(call, message, fused):
    with pytest.raises(UserError) as error:
        call(fused)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_prompt_with_a_word_that_a_tokenizer_of_whole_words_lacks_is_refused():
    tokenizer = make_tokenizer(["what is the capital of ?"], WINDOW)
    model = FusedCausalLM.compose(tiny_llama(len(tokenizer), seed=1), tokenizer=tokenizer)
    assert model.prompts(["what is the capital ?"])["input_ids"].shape == (1, 6)
    with pytest.raises(UserError, match=f"no token for 'love': it knows only {len(tokenizer)} words"):
        model.prompts(["what is the capital ?", "what is love ?"])


def test_a_misspelt_generate_argument_is_refused_by_transformers(fused):
    with pytest.raises(ValueError, match="max_new_token"):
        fused.generate(TOKENS, max_new_token=3)


def test_precision_can_be_changed_unless_a_member_is_quantised(family):
    model = FusedCausalLM.compose(tiny_llama(family.vocab_size, seed=1), tokenizer=family.tokenizer)
    assert model.to(torch.bfloat16).dtype == torch.bfloat16
    model.members[0].is_quantized = True
    with pytest.raises(UserError, match="quantised or spread member stays where it was loaded"):
        model.float()
