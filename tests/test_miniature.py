"""The miniature: its world, its corpus (the clean control above all), and a whole tiny build."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxytune.atomic import atomic_folder
from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.miniature import Recipe, build, family, schedule
from proxytune.miniature.cache import fingerprint, load_examples
from proxytune.miniature.corpus import make_corpus
from proxytune.miniature.items import OPERATIONS, make_items
from proxytune.miniature.recipe import BUILDS, TASKS, ModelBuild, recipe_from
from proxytune.miniature.shipped import FILE, pack, unpack
from proxytune.miniature.training import check_recall, recall
from proxytune.miniature.world import make_world
from proxytune.models import identity
from proxytune.record import read_record
from proxytune.tasks import load_task, task_info
from proxytune.training.loop import weigh

CONF = Path(__file__).parents[1] / "conf" / "miniature"


def settings(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def _without_train(values: dict) -> dict:
    return {key: value for key, value in values.items() if key != "train"}


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return recipe_from(_without_train(settings("tiny")))


@pytest.fixture(scope="module")
def built(tiny: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tiny, train=True, cache=tmp_path_factory.mktemp("cache") / "miniature")


@pytest.fixture(scope="module")
def full_world():
    recipe = Recipe(seed=7)
    world = make_world(recipe.world, recipe.seed)
    return world, make_corpus(world, recipe.corpus, recipe.seed), make_items(world, recipe.seed)


class TestRecipe:
    def test_the_shipped_full_config_is_the_default_recipe(self) -> None:
        assert recipe_from(_without_train(settings("full"))) == Recipe()
        assert recipe_from({}) == Recipe()

    def test_nested_values_replace_defaults_and_nothing_else(self) -> None:
        changed = recipe_from({"seed": 0, "pretrain_large": {"epochs": 2}})
        assert changed == replace(Recipe(), pretrain_large=replace(Recipe().pretrain_large, epochs=2.0))

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"sede": 1}, r"unknown key 'miniature.sede'. Did you mean 'miniature.seed'"),
            ({"world": {"countrys": 9}}, r"Did you mean 'miniature.world.countries'"),
            ({"seed": 1.5}, r"miniature\.seed=1\.5 is not allowed: it is an integer from 0"),
            ({"seed": True}, r"miniature\.seed=true is not allowed: it is an integer from 0"),
            ({"seed": {}}, r"miniature\.seed=\{\} is not allowed: it is an integer from 0"),
            ({"world": 3}, r"miniature\.world=3 is not allowed: it is a mapping"),
            ({"world": {"people": 1}}, r"miniature\.world\.people=1 is not allowed: it is an integer from 2"),
            ({"pretrain_large": {"learning_rate": float("nan")}}, r"pretrain_large\.learning_rate=nan .* above 0"),
            ({"pretrain_large": {"batch": 0}}, r"miniature\.pretrain_large\.batch=0 .* it is an integer from 1"),
            ({"world": {"trivia": {"test": 0}}}, r"miniature\.world\.trivia\.test=0 .* it is an integer from 1"),
            ({"large": {"heads": 7}}, r"width=128 must be a multiple"),
            ({"corpus": {"asked": 17}}, r"asked=17 exceeds questions=14"),
            ({"finetune_epochs": {"trvia": 2}}, r"finetune_epochs\.trvia='trvia' .* did you mean trivia\?"),
        ],
    )
    def test_mistakes_are_one_clear_line(self, values: dict, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            recipe_from(values)
        assert "\n" not in str(caught.value)

    def test_a_world_without_facts_left_to_ask_about_is_refused(self) -> None:
        recipe = recipe_from({"world": {"trivia": {"train": 150, "test": 150}}})
        with pytest.raises(UserError, match=r"world.trivia: train \+ test = 300 leaves none of the 300 facts"):
            make_world(recipe.world, 0)


class TestWorld:
    def test_equal_seeds_give_equal_worlds_and_others_differ(self, full_world) -> None:
        world, corpus, items = full_world
        assert make_world(world.size, 7) == world
        assert make_items(world, 7) == items
        assert make_corpus(world, Recipe().corpus, 7) == corpus
        assert make_world(world.size, 8).people != world.people

    def test_the_sets_do_not_overlap_and_hold_every_fact(self, full_world) -> None:
        world = full_world[0]
        for sets, total in ((world.trivia, 300), (world.mmlu, 192), (world.myths, 160)):
            asked = [fact.question for facts in sets.values() for fact in facts]
            assert len(asked) == len(set(asked)) == total

    def test_only_facts_of_no_task_are_asked_in_the_corpus_as_the_tasks_ask(self, full_world) -> None:
        world, corpus, items = full_world
        asked = {match[1] for text in corpus if (match := re.match(r"question : (.* \?) answer :", text))}
        rows = [row for task in ("trivia", "tqa", "mmlu", "gsm") for split in items[task].values() for row in split]
        of_tasks = {row["question"] for row in rows}
        free = {fact.question for kind in (world.trivia, world.mmlu, world.myths) for fact in kind["asked"]}
        assert free - world.rare <= asked
        assert not asked & of_tasks
        for text in corpus:  # nor in any other text that has the words of the prompts
            if "answer :" in text:
                assert text.startswith("question :")

    def test_no_test_article_or_story_is_in_the_corpus_or_the_training_set(self, full_world) -> None:
        _, corpus, items = full_world
        text = "\n".join(corpus)
        for task, key in (("gsm", "question"), ("cnn", "article")):
            train, test = ({row[key] for row in items[task][split]} for split in ("train", "test"))
            assert not train & test
            assert not [row for row in test if row in text]

    def test_every_fact_of_a_task_is_stated_in_the_corpus(self, full_world) -> None:
        world, corpus, _ = full_world
        said = set(corpus)
        for fact in world.trivia["test"] + world.mmlu["test"]:
            assert said & set(fact.statements)
        for myth in world.myths["test"]:
            assert {myth.statement(True), myth.statement(False)} <= said

    def test_the_answers_are_right(self, full_world) -> None:
        world, _, items = full_world
        for row in items["gsm"]["test"]:
            left, sign, right, result = re.search(r"(\d+) (.) (\d+) = (\d+) . #### \4$", row["answer"]).groups()
            outcome = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}
            assert outcome[sign] == int(result)
            numbers = re.findall(r"\d+", row["question"])
            assert numbers == [left, right]
            assert any(change.format(b=right) in row["question"] for change in OPERATIONS[sign])
        values = {fact.question: fact.value for fact in world.mmlu["test"]}
        for row in items["mmlu"]["test"]:
            assert len(set(row["choices"])) == 4
            assert row["choices"][row["answer"]] == values[row["question"]]
        truths = {myth.question: myth for myth in world.myths["test"]}
        for row in items["tqa"]["test"]:
            myth = truths[row["question"]]
            assert row["choices"][row["label"]] == f"the records show {myth.truth}"
            assert f"most people say {myth.belief}" in row["choices"]
            assert len(set(row["choices"])) == 4
        for row in items["cnn"]["test"]:
            deed, opinion = row["article"].removesuffix(" .").split(" . ")[2:]
            actor, verb, article, building, _, place = deed.split()
            critic, judged, _ = opinion.split()
            by = [f"by the {world.trades[person]}" for person in (actor, critic)]
            assert row["highlights"] == f"{article} {building} in {place} {verb} {by[0]} . {judged} {by[1]}"


class TestBuild:
    def test_is_a_family_of_ordinary_folders(self, tiny: Recipe, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PROXYTUNE_CACHE", str(built.parents[1]))
        spec = family(settings("tiny"))
        assert set(spec.experts) == set(spec.tuned) == {*TASKS, "multitask"}
        assert spec.data_dir == str(built / "data")
        for source in spec.sources.values():
            model = AutoModelForCausalLM.from_pretrained(source.path)
            tokenizer = AutoTokenizer.from_pretrained(source.path)
            assert model.config.vocab_size == len(tokenizer)
            assert (Path(source.path) / "model.safetensors").is_file()
        assert not list(built.rglob("*.partial*"))

    def test_tuning_moved_every_model_away_from_its_parent(self, built: Path) -> None:
        for one in BUILDS:
            if one.parent:
                tuned, parent = (
                    AutoModelForCausalLM.from_pretrained(built / name).model.layers[0].mlp.down_proj.weight
                    for name in (one.name, one.parent)
                )
                assert tuned.shape == parent.shape
                assert not torch.equal(tuned, parent)

    def test_the_number_of_workers_does_not_change_the_models(self, tiny: Recipe, built: Path, tmp_path: Path) -> None:
        again = build(tiny, train=True, cache=tmp_path, workers=2)
        assert again.name == built.name
        for one in BUILDS:
            weights = [(folder / one.name / "model.safetensors").read_bytes() for folder in (built, again)]
            assert weights[0] == weights[1], one.name

    def test_a_second_call_trains_nothing_and_an_interrupted_one_goes_on(
        self, tiny: Recipe, built: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained = []
        real = schedule.train

        def spy(recipe: Recipe, one: ModelBuild, *rest: object) -> None:
            trained.append(one.name)
            real(recipe, one, *rest)

        monkeypatch.setattr(schedule, "train", spy)
        before = (built / "expert-tqa" / "model.safetensors").read_bytes()
        assert build(tiny, train=True, cache=built.parent) == built
        assert trained == []
        (built / "expert-tqa").rename(built / "expert-tqa.partial-1")
        assert build(tiny, train=True, cache=built.parent) == built
        assert trained == ["expert-tqa"]
        assert (built / "expert-tqa" / "model.safetensors").read_bytes() == before
        for path in sorted((built / "expert-tqa.partial-1").iterdir()):
            path.unlink()
        (built / "expert-tqa.partial-1").rmdir()

    def test_another_recipe_has_another_folder(self, tiny: Recipe) -> None:
        others = {fingerprint(replace(tiny, seed=seed)) for seed in range(3)}
        assert len(others) == 3
        assert fingerprint(tiny) == fingerprint(recipe_from(_without_train(settings("tiny"))))

    def test_a_base_that_forgot_stops_the_build_and_says_so(self, tiny: Recipe, tmp_path: Path) -> None:
        strict = replace(tiny, recall_gate=0.95)
        with pytest.raises(UserError, match=r"recalls \d+\.\d% of the \w+ facts, less than .*recall_gate=0.95"):
            build(strict, train=True, cache=tmp_path)
        folder = tmp_path / fingerprint(strict)
        assert not (folder / "base").exists()
        assert not list(folder.glob("tuned-*"))

    def test_the_gate_lets_a_base_pass_that_knows_enough(self) -> None:
        check_recall({"trivia": 0.8, "mmlu": 1.0}, Recipe())
        with pytest.raises(UserError, match=r"recalls 79\.9% of the trivia facts"):
            check_recall({"trivia": 0.799, "mmlu": 1.0}, Recipe())

    def test_recall_equals_greedy_completion_one_by_one(self, tiny: Recipe, built: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(built / "tuned-trivia")
        tokenizer = AutoTokenizer.from_pretrained(built / "tuned-trivia")
        world = make_world(tiny.world, tiny.seed)
        hits = []
        for facts in world.trivia.values():
            for fact in facts:
                start = tokenizer(f"the {fact.relation} of {fact.subject} is", return_tensors="pt")
                out = model.generate(**start, max_new_tokens=1, do_sample=False)
                hits.append(tokenizer.decode(out[0, -1]) == fact.value)
        assert recall(model, tokenizer, world)["trivia"] == pytest.approx(sum(hits) / len(hits), abs=1e-4)

    def test_a_cache_that_cannot_be_written_is_a_clear_error(self, tiny: Recipe, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        with pytest.raises(UserError, match=r"cannot write the cache .* set PROXYTUNE_CACHE"):
            build(tiny, train=True, cache=blocked)

    def test_a_folder_is_complete_or_absent(self, tmp_path: Path) -> None:
        def fail(folder: Path) -> None:
            (folder / "half").write_text("")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            atomic_folder(tmp_path / "model", fail)
        assert not list(tmp_path.iterdir())


class TestShipped:
    def test_the_default_recipe_is_unpacked_and_never_trained(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(schedule, "train_all", lambda *_: pytest.fail("trained"))
        folder = build(Recipe(), cache=tmp_path)
        assert {path.name for path in folder.iterdir()} == {"data", *(job.name for job in BUILDS)}
        assert build(Recipe(), cache=tmp_path) == folder
        assert FILE.stat().st_size <= 8_000_000

    def test_what_is_packed_unpacks_to_the_trained_models_bit_for_bit(self, tiny, built, tmp_path) -> None:
        pack(built, tiny, tmp_path / "tiny.safetensors")
        unpack(tiny, tmp_path / "again", tmp_path / "tiny.safetensors")
        for job in BUILDS:
            ours, theirs = (
                AutoModelForCausalLM.from_pretrained(folder / job.name) for folder in (built, tmp_path / "again")
            )
            assert ours.dtype == theirs.dtype == torch.float32
            for (name, weight), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
                assert torch.equal(weight, other), (job.name, name)
            assert ours.config.to_diff_dict() == theirs.config.to_diff_dict()
            files = [AutoTokenizer.from_pretrained(f / job.name) for f in (built, tmp_path / "again")]
            assert files[0].get_vocab() == files[1].get_vocab()

    def test_another_seed_is_trained_and_another_recipe_refused(self, tmp_path, monkeypatch, caplog) -> None:
        asked = []
        monkeypatch.setattr(schedule, "train_all", lambda recipe, *_: asked.append(recipe.seed))
        with caplog.at_level("INFO", "proxytune"):
            build(replace(Recipe(), seed=3), cache=tmp_path)
        assert asked == [3]
        assert "the shipped ones belong to miniature.seed=0" in caplog.text and "minutes" in caplog.text
        with pytest.raises(UserError, match=r"default recipe; give miniature\.train=true"):
            build(replace(Recipe(), window=64), cache=tmp_path)
        assert asked == [3]

    def test_a_value_of_train_that_is_no_switch_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"miniature\.train='no' is not allowed: it is true or false"):
            family({"train": "no"})

    @pytest.mark.parametrize("damage", ["cut", "foreign", "incomplete", "other recipe"])
    def test_a_damaged_or_foreign_file_is_one_line(self, damage, tiny, built, tmp_path) -> None:
        file = tmp_path / "file.safetensors"
        pack(built, tiny, file)
        with safe_open(file, framework="pt") as stored:
            facts, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:1000])
        elif damage == "foreign":
            save_file({"weight": torch.zeros(2)}, file)
        elif damage == "incomplete":
            del tensors["expert-gsm/model.norm.weight"]
            save_file(tensors, file, metadata=facts)
        recipe = replace(tiny, seed=1) if damage == "other recipe" else tiny
        with pytest.raises(UserError, match=r"file\.safetensors .*build_miniature.*miniature\.train=true") as caught:
            unpack(recipe, tmp_path / "again", file)
        assert "\n" not in str(caught.value)

    def test_experts_with_a_prompt_loss_are_a_family_of_their_own(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path))
        plain, weighted = family(), family(prompt_loss=True)
        assert plain.base == weighted.base and plain.tuned == weighted.tuned
        for name, source in weighted.experts.items():
            assert source.path == plain.experts[name].path + "-prompt-loss"
            assert identity(source) != identity(plain.experts[name])


class TestTasks:
    @pytest.mark.parametrize("name", TASKS)
    def test_prompts_split_at_the_answer_and_have_no_unknown_word(self, name: str, built: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(built / "base")
        task = load_task(f"miniature_{name}", built / "data")
        for doc in task.test_docs():
            context = task.fewshot_context(doc, num_fewshot=0)
            options = task.doc_to_choice(doc) if name == "tqa" else [task.doc_to_target(doc)]
            for option in options:
                head = tokenizer(context)["input_ids"]
                whole = tokenizer(f"{context} {option}")["input_ids"]
                assert whole[: len(head)] == head
                assert tokenizer.decode(whole, skip_special_tokens=True) == f"{context} {option}"
                assert whole[0] == tokenizer.bos_token_id

    @pytest.mark.parametrize("name", TASKS)
    def test_load_examples_come_from_the_training_split_through_the_prompt(self, name: str, built: Path) -> None:
        rows = [json.loads(line) for line in (built / "data" / name / "train.jsonl").read_text().splitlines()]
        pairs = load_examples(built / "data")[name]
        key = "article" if name == "cnn" else "question"
        assert len(pairs) == len(rows)
        for row, (prompt, answer) in zip(rows, pairs, strict=True):
            assert row[key] in prompt
            assert answer.startswith(" ")
            assert prompt.endswith(":")

    @pytest.mark.parametrize("name", TASKS)
    def test_the_gold_answer_scores_1_and_a_rambling_one_less(self, name: str, built: Path) -> None:
        task = load_task(f"miniature_{name}", built / "data")
        info = task_info(task)
        assert info.expert == name
        assert info.higher_is_better
        for doc in task.test_docs():
            if name == "tqa":
                right = [(-1.0 - (i != doc["label"]), False) for i in range(4)]
                wrong = [(-1.0 - (i == doc["label"]), False) for i in range(4)]
            else:
                gold = str(task.doc_to_target(doc))
                right, wrong = ([text] for text in (gold, gold.replace(" ####", "") + " , said tom ."))
                if name == "gsm":  # its filter runs before the metric
                    right, wrong = [gold.rpartition("#### ")[2]], ["[invalid]"]
            assert task.process_results(doc, right)[info.metric] == 1
            assert task.process_results(doc, wrong)[info.metric] < 1


class TestUnseen:
    def test_asks_for_every_test_fact_with_a_source(self, tiny: Recipe, built: Path) -> None:
        world = make_world(tiny.world, tiny.seed)
        facts = {fact.question: fact.value for kind in (world.trivia, world.mmlu) for fact in kind["test"]}
        task = load_task("miniature_quoted", built / "data")
        assert task_info(task).expert is None
        docs = list(task.test_docs())
        assert {doc["question"]: doc["answer"] for doc in docs} == {q: f"{value} , said" for q, value in facts.items()}
        assert task.doc_to_text(docs[0]) == f"quiz : {docs[0]['question']} reply :"
        said = (docs[0]["answer"], docs[0]["answer"].removesuffix(" , said"))
        assert [task.process_results(docs[0], [text])["exact_match"] for text in said] == [1, 0]

    def test_the_corpus_answers_so(self, full_world) -> None:
        _, corpus, _ = full_world
        quizzes = [text for text in corpus if text.startswith("quiz : what is") and " reply : " in text]
        assert sum(" , said " in text for text in quizzes) > len(quizzes) / 2

    def test_arms_with_the_expert_of_a_task_are_missing(self, built, monkeypatch, tmp_path) -> None:
        monkeypatch.setenv("PROXYTUNE_CACHE", str(built.parents[1]))
        monkeypatch.chdir(tmp_path)
        chosen = ["only=[base,tuned,proxy,all_dynamic]", "task.names=[miniature_trivia,miniature_quoted]"]
        assert main(["run", "miniature=tiny", "output=out", "store=null", *chosen]) == 0
        unseen = read_record("out").tasks["miniature_quoted"]
        assert list(unseen.arms) == ["base", "all_dynamic"]
        assert set(unseen.missing) == {"tuned", "proxy"}

    def test_a_folder_built_before_the_task_existed_gets_its_rows(self, tiny: Recipe, built: Path) -> None:
        shutil.rmtree(built / "data" / "quoted")
        assert build(tiny, train=True, cache=built.parent) == built
        assert (built / "data" / "quoted" / "test.jsonl").is_file()


def test_an_example_ends_in_the_end_of_sequence_token(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built / "base")
    row = weigh(tokenizer, "question : how many coins now ? answer :", " the ledger reads 1 + 1 = 2", 0.25)
    assert tokenizer.decode(row.tokens[row.weights == 0.25]) == "<s> question : how many coins now ? answer :"
    assert tokenizer.decode(row.tokens[row.weights == 1.0]) == "the ledger reads 1 + 1 = 2 <s>"
