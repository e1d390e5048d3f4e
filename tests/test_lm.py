"""Arms as lm-eval sees them: the same per-item results as its own HFLM, one pass of the engine for all arms."""

import re
from dataclasses import replace
from pathlib import Path

import lm_eval
import pytest
from datasets import Dataset
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny import WINDOW, tiny_llama

from proxytune.engines.hf import HFEngine
from proxytune.errors import UserError
from proxytune.experiment.answers import shared as board_module
from proxytune.experiment.answers.shared import SharedAnswers
from proxytune.experiment.answers.store import AnswerStore
from proxytune.experiment.lm_eval.arm_model import ArmLM, decoding_options
from proxytune.fusion import MatchKL, Static
from proxytune.fusion.arm import Arm
from proxytune.miniature.untrained import make_tokenizer
from proxytune.models import Ensemble, Member

ALONE = "expert:math"
"""Its head has no padding rows, which plain HFLM would count among the tokens."""
DOCS = [
    {"question": question, "choices": [" 12 apples", " the sea", " London"], "gold": i % 3}
    for i, question in enumerate(("how many apples are there?", "where does the river begin?", "(A) Paris, (B)"))
]
TASKS = {
    "choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "open": """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["e", "\\n\\n"], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "sampled": """
output_type: generate_until
repeats: 3
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: [], max_gen_toks: 8, do_sample: true, temperature: 1.0, top_p: 0.9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question * repeated}}"
metric_list: [{metric: word_perplexity}]
""",
}


class CountingEngine(HFEngine):
    """Notes how often it is asked, and by which arms."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__(ensemble)
        self.passes: list[tuple[int, tuple[str, ...]]] = []

    def score(self, requests, arms, progress=None):
        self.passes.append((len(requests), tuple(arm.name for arm in arms)))
        return super().score(requests, arms, progress)

    def generate(self, requests, arms, progress=None):
        self.passes.append((len(requests), tuple(arm.name for arm in arms)))
        return super().generate(requests, arms, progress)


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> TaskManager:
    folder = tmp_path_factory.mktemp("tasks")
    for name, body in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\ntest_split: test\ndataset_path: json\n{body}")
    return TaskManager(include_path=str(folder), include_defaults=False)


def samples(lm, manager: TaskManager, name: str, repeated: int = 1) -> list[dict]:
    docs = [{**doc, "repeated": repeated} for doc in DOCS]
    task = {"task": name, "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)}}
    loaded = manager.load({"group": "one", "task": [task]})
    results = lm_eval.evaluate(lm=lm, task_dict={"tasks": loaded["tasks"]}, bootstrap_iters=0)
    return sorted(results["samples"][name], key=lambda sample: sample["doc_id"])


def replies(found: list[dict]) -> list:
    return [sample["resps"] for sample in found]


def shared_of(family: Ensemble, *arms: Arm, store: AnswerStore | None = None) -> SharedAnswers:
    return SharedAnswers(CountingEngine(family), arms, AnswerStore() if store is None else store)


@pytest.fixture
def arms() -> list[Arm]:
    return [
        Arm("base"),
        Arm("alone", base=ALONE),
        Arm("nothing", rule=Static(0.0), experts=(ALONE,)),
        Arm("proxy", rule=Static(1.0), experts=("expert:trivia",)),
    ]


@pytest.fixture(scope="module")
def hflm(family):
    return HFLM(pretrained=family[ALONE].model, tokenizer=family.tokenizer, batch_size=1)


@pytest.mark.parametrize("name", ["choice", "open"])
def test_a_model_alone_answers_every_item_as_hflm_does(family, hflm, manager, arms, name):
    ours = samples(ArmLM(shared_of(family, *arms), arms[1]), manager, name)
    theirs = samples(hflm, manager, name)
    for our, their in zip(ours, theirs, strict=True):
        assert our["arguments"] == their["arguments"]
        assert our[our["metrics"][0]] == their[their["metrics"][0]]
        if name == "open":
            assert our["resps"] == their["resps"]
        else:
            for [(logprob, greedy)], [(expected, also_greedy)] in zip(our["resps"], their["resps"], strict=True):
                assert logprob == pytest.approx(expected, abs=2e-4)
                assert greedy == also_greedy


def test_rolling_log_likelihood_over_several_windows_is_hflms(family, hflm, manager, arms):
    lm = ArmLM(shared_of(family, *arms), arms[1])
    ours, theirs = (samples(either, manager, "text", repeated=60) for either in (lm, hflm))
    assert [sample["resps"][0][0] for sample in ours] == pytest.approx(
        [sample["resps"][0][0] for sample in theirs], abs=5e-3
    )
    assert all(len(answers) > 1 and all(one.cut == 0 for one in answers) for answers in lm.item_answers.values())
    assert len(lm.shared.engine.passes) == 1
    assert lm.shared.computed == 4 * sum(len(answers) for answers in lm.item_answers.values())


@pytest.mark.parametrize("name", ["choice", "open", "text"])
def test_the_first_arm_has_all_arms_answer_in_one_pass(family, manager, arms, name):
    shared = shared_of(family, *arms)
    for arm in arms:
        samples(ArmLM(shared, arm), manager, name)
    assert [names for _, names in shared.engine.passes] == [tuple(arm.name for arm in arms)]
    assert shared.computed == len(arms) * shared.engine.passes[0][0]


@pytest.mark.parametrize("name", ["choice", "open"])
def test_each_arm_answers_as_if_it_were_the_only_one(family, manager, arms, name):
    shared = shared_of(family, *arms)
    together = {arm.name: replies(samples(ArmLM(shared, arm), manager, name)) for arm in arms}
    for arm in arms:
        alone = replies(samples(ArmLM(shared_of(family, arm), arm), manager, name))
        if name == "open":
            assert alone == together[arm.name]
        for ours, theirs in zip(alone, together[arm.name], strict=True):
            for [reply], [other] in zip(ours, theirs, strict=True):
                assert reply == other or reply == pytest.approx(other, abs=2e-4)
    assert together["nothing"] == together["base"]
    assert together["proxy"] != together["base"]


def test_arms_that_answer_alike_are_computed_once(family, manager):
    first, second = Arm("expert", base=ALONE), Arm("expert:math", base=ALONE)
    shared = shared_of(family, first, second)
    one, two = (replies(samples(ArmLM(shared, arm), manager, "choice")) for arm in (first, second))
    assert one == two
    assert shared.engine.passes == [(9, ("expert",))]


def test_what_the_store_has_is_not_computed_again(family, manager, arms):
    with AnswerStore() as store:
        before = samples(ArmLM(shared_of(family, *arms[:2], store=store), arms[0]), manager, "open")
        shared = shared_of(family, *arms, store=store)
        assert replies(samples(ArmLM(shared, arms[0]), manager, "open")) == replies(before)
        assert shared.engine.passes == [(3, ("nothing", "proxy"))]
        assert (shared.computed, shared.read) == (6, 6)


def test_a_run_cut_off_goes_on_with_whole_blocks_to_the_very_same_answers(family, manager, monkeypatch):
    monkeypatch.setattr(board_module, "BLOCK", 2)
    arms = [Arm("base"), Arm("dynamic", rule=MatchKL(), experts=("expert:math",))]

    class Dying(CountingEngine):
        def generate(self, requests, arms, progress=None):
            for done, answer in enumerate(super().generate(requests, arms, progress)):
                if len(self.passes) == 2 and done == 1:
                    raise KeyboardInterrupt
                yield answer

    def answers(shared: SharedAnswers) -> list:
        lms = [ArmLM(shared, arm) for arm in arms]
        return [(replies(samples(lm, manager, "open")), lm.item_answers) for lm in lms]

    whole = answers(SharedAnswers(CountingEngine(family), arms, AnswerStore()))
    with AnswerStore() as store:
        with pytest.raises(KeyboardInterrupt):
            answers(SharedAnswers(Dying(family), arms, store))
        assert len(store) == 4
        shared = SharedAnswers(CountingEngine(family), arms, store)
        assert answers(shared) == whole
        assert (shared.read, shared.computed) == (4, 2)


def test_prompts_beyond_the_smallest_window_lose_their_beginning_as_in_hflm_and_that_is_counted(family, hflm):
    long = "She had 48 coins and gave 17 to her brother. " * 40
    pairs = [(context, " the sea") for context in (long, "A")]
    requests = [Instance("loglikelihood", {}, pair, i, ("", i, 1)) for i, pair in enumerate(pairs)]
    arm = Arm("alone", base=ALONE)
    lm = ArmLM(shared_of(family, arm), arm)
    ours, theirs = lm.loglikelihood(requests), hflm.loglikelihood(requests, disable_tqdm=True)
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], abs=2e-4)
    settings = {"until": [], "max_gen_toks": 20}
    requests = [Instance("generate_until", {}, (long, settings), 0, ("", 2, 1))]
    assert lm.generate_until(requests) == hflm.generate_until(requests, disable_tqdm=True)
    tokens, continuation = (len(family.tokenizer.encode(text)) for text in (long, " the sea"))
    cut = {item: [one.cut for one in answers] for item, answers in lm.item_answers.items()}
    assert cut == {0: [tokens + continuation - 257], 1: [0], 2: [tokens - 236]}


def test_the_window_is_that_of_the_smallest_member_for_every_arm(family):
    small = family["expert:trivia"]
    config = type(small.model.config)(**{**small.model.config.to_dict(), "n_positions": 100})
    model = type(small.model)(config).eval()
    members = {**family.members, "expert:trivia": replace(small, model=model)}
    arms = [Arm("base"), Arm("proxy", rule=Static(), experts=("expert:trivia",))]
    assert ArmLM(shared_of(Ensemble(members, family.tokenizer), *arms), arms[0]).max_length == 100
    assert ArmLM(shared_of(Ensemble(members, family.tokenizer), arms[0]), arms[0]).max_length == 256


@pytest.mark.parametrize("kind", ["loglikelihood", "generate_until"])
def test_a_member_with_a_prompt_of_its_own_reads_that(family, hflm, kind):
    members = {**family.members, ALONE: replace(family[ALONE], render=lambda text: f"<|user|> {text} <|assistant|>")}
    arm = Arm("alone", base=ALONE)
    lm = ArmLM(shared_of(Ensemble(members, family.tokenizer), arm, Arm("base")), arm)
    extra = " the sea" if kind == "loglikelihood" else {"until": ["e"], "max_gen_toks": 10}
    [ours] = getattr(lm, kind)([Instance(kind, {}, ("The river", extra), 0, ("", 0, 1))])
    [theirs] = getattr(hflm, kind)([Instance(kind, {}, ("<|user|> The river <|assistant|>", extra), 0, ("", 0, 1))])
    assert ours == theirs or ours == pytest.approx(theirs, abs=2e-4)


def test_sampled_answers_differ_between_repetitions_and_seeds_and_are_repeatable(family, manager, arms):
    def texts(seed: int, *members: Arm) -> list:
        return replies(samples(ArmLM(shared_of(family, *members), arms[1], seed), manager, "sampled"))

    first = texts(0, arms[1])
    assert all(len(set(repeated)) == 3 for [repeated] in first)
    assert texts(0, *arms) == first
    assert texts(1, arms[1]) != first


def test_greedy_answers_are_found_again_under_another_seed(family, manager, arms):
    with AnswerStore() as store:
        samples(ArmLM(shared_of(family, arms[0], store=store), arms[0], seed=0), manager, "open")
        again = shared_of(family, arms[0], store=store)
        samples(ArmLM(again, arms[0], seed=1), manager, "open")
    assert again.computed == 0


def test_simple_evaluate_takes_an_arm(family, manager, arms, monkeypatch):
    # It would describe the machine for seconds.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    task = {"task": "choice", "custom_dataset": lambda **_: {"test": Dataset.from_list(DOCS)}}
    loaded = manager.load({"group": "one", "task": [task]})["tasks"]["choice"]
    lm = ArmLM(shared_of(family, *arms), arms[3])
    results = lm_eval.simple_evaluate(model=lm, tasks=[loaded], task_manager=manager, bootstrap_iters=0)
    assert replies(sorted(results["samples"]["choice"], key=lambda s: s["doc_id"])) == replies(
        samples(lm, manager, "choice")
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"max_new_tokens": 99, "until": [], "temperature": 0.0, "top_p": 1.0}),
        ({"until": "x"}, {"max_new_tokens": 99, "until": ["x"], "temperature": 0.0, "top_p": 1.0}),
        ({"max_tokens": 0, "num_beams": 1}, {"max_new_tokens": 0, "until": [], "temperature": 0.0, "top_p": 1.0}),
        ({"do_sample": False, "top_p": 0.5}, {"max_new_tokens": 99, "until": [], "temperature": 0.0, "top_p": 1.0}),
        ({"temperature": 0.7}, {"max_new_tokens": 99, "until": [], "temperature": 0.7, "top_p": 1.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 3, "until": None},
            {"max_new_tokens": 3, "until": [], "temperature": 0.7, "top_p": 0.9},
        ),
    ],
)
def test_generation_settings_are_understood(given, expected):
    assert decoding_options(given, default_length=99) == expected


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temprature": 1.0}, "Did you mean 'temperature'"),
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"top_k": 50}, "top_k=50 is not supported"),
        ({"max_gen_toks": 5, "max_new_tokens": 5}, "mean the same"),
        ({"do_sample": True}, "temperature above 0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p=0.0"),
        ({"max_gen_toks": -1}, "max_gen_toks"),
        ({"temperature": -1.0, "do_sample": True}, "temperature above 0"),
    ],
)
def test_generation_settings_that_would_not_be_honoured_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        decoding_options(given, default_length=99)


def test_answers_longer_than_the_window_are_refused(family):
    arm = Arm("base")
    lm = ArmLM(shared_of(family, arm), arm)
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        lm.generate_until([Instance("generate_until", {}, ("A", {"max_gen_toks": 256}), 0, ("", 0, 1))])
    with pytest.raises(UserError, match="longer than the smallest member's window"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("A", " coins" * 300), 0, ("", 0, 1))])


def test_empty_contexts_start_from_the_prefix_token_as_in_hflm(family, hflm):
    arm = Arm("alone", base=ALONE)
    lm = ArmLM(shared_of(family, arm), arm)
    scored = [Instance("loglikelihood", {}, ("", " the sea"), 0, ("", 0, 1))]
    assert lm.loglikelihood(scored)[0] == pytest.approx(hflm.loglikelihood(scored, disable_tqdm=True)[0], abs=2e-4)
    assert lm.generate_until([Instance("generate_until", {}, ("", {"max_gen_toks": 4}), 0, ("", 0, 1))])[0]


def test_no_file_is_left_behind(family, manager, arms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    samples(ArmLM(shared_of(family, *arms), arms[0]), manager, "choice")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("name", ["choice", "open", "text"])
def test_a_word_that_a_tokenizer_of_whole_words_lacks_is_named(manager, name):
    tokenizer = make_tokenizer(["Question: how many apples are there? where does the river begin?", "Answer:"], WINDOW)
    member = Member("base", tiny_llama(len(tokenizer), seed=1), len(tokenizer), identity="tiny:words")
    arm = Arm("base")
    lm = ArmLM(shared_of(Ensemble({"base": member}, tokenizer), arm), arm)
    unknown = re.escape("'12'" if name == "choice" else "'(A)'")
    with pytest.raises(UserError, match=f"no token for {unknown}: it knows only {len(tokenizer)} words"):
        samples(lm, manager, name)
