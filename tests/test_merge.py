"""Merging experts: against the formula in float64, as folders that load, with one line for each mistake."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.models import FamilySpec, Source, load
from proxytune.training import Recipe, Tuning, folder
from proxytune.training.merging import merge


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, str]:
    """An antiexpert, two experts of its shape, one adapter over it, and experts that do not fit it."""
    folder = tmp_path_factory.mktemp("small")
    tokenizer, longer = tiny.tiny_tokenizer(), tiny.tiny_tokenizer(extra=["<new>"])
    size = len(tokenizer)
    models = {
        "antiexpert": tiny.tiny_llama(size, seed=1),
        "a": tiny.tiny_llama(size, seed=2),
        "b": tiny.tiny_llama(size, seed=3),
        "wide": tiny.tiny_llama(size, seed=4, hidden=40),
        "deep": tiny.tiny_llama(size, seed=5, layers=3),
        "gpt2": tiny.tiny_gpt2(size, seed=6),
    }
    paths = {name: str(tiny.save_member(folder / name, model, tokenizer)) for name, model in models.items()}
    paths["longer"] = str(tiny.save_member(folder / "longer", tiny.tiny_llama(len(longer), seed=2), longer))
    return paths


def family(small: dict[str, str], *experts: str) -> FamilySpec:
    return FamilySpec(small["antiexpert"], small["antiexpert"], {name: small[name] for name in experts})


def weights(path) -> dict[str, torch.Tensor]:
    return {name: weight.double() for name, weight in AutoModelForCausalLM.from_pretrained(path).state_dict().items()}


@pytest.mark.parametrize("scale", [0.4, -1.0, 0.0])
def test_the_merged_model_is_what_the_formula_says(small, tmp_path, scale):
    merge(family(small, "a", "b"), ["a", "b"], scale, tmp_path)
    start, a, b, merged = (weights(path) for path in (small["antiexpert"], small["a"], small["b"], tmp_path))
    for name, weight in merged.items():
        expected = start[name] + scale * (a[name] - start[name] + b[name] - start[name])
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


def test_scale_0_is_the_antiexpert_to_the_bit(small, tmp_path):
    merge(family(small, "a"), ["a"], 0.0, tmp_path)
    start, merged = weights(small["antiexpert"]), weights(tmp_path)
    assert all(torch.equal(weight, start[name]) for name, weight in merged.items())


def test_an_adapter_is_merged_first(adapter_folders, tmp_path):
    over = str(adapter_folders["antiexpert"])
    spec = FamilySpec(over, over, {"math": Source(over, adapter=str(adapter_folders["expert:math"]))})
    merge(spec, ["math"], 1.0, tmp_path)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(over), adapter_folders["expert:math"])
    for name, weight in peft.merge_and_unload().state_dict().items():
        torch.testing.assert_close(weights(tmp_path)[name].float(), weight, rtol=1e-5, atol=1e-5)


def test_half_precision_is_rounded_once(small, tmp_path):
    half = {}
    for name in ("antiexpert", "a"):
        half[name] = str(tmp_path / name)
        AutoModelForCausalLM.from_pretrained(small[name], dtype=torch.bfloat16).save_pretrained(half[name])
        tiny.tiny_tokenizer().save_pretrained(half[name])
    merge(family(half, "a"), ["a"], 0.3, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert model.dtype == torch.bfloat16
    start, tuned, merged = weights(half["antiexpert"]), weights(half["a"]), weights(tmp_path / "merged")
    exact = {name: start[name] + 0.3 * (tuned[name] - start[name]) for name in start}
    equal = torch.cat([(merged[name] == exact[name].bfloat16().double()).flatten() for name in exact])
    assert equal.double().mean() > 0.99  # all but those that float32 puts on the other side of a tie


def test_the_command_writes_a_folder_that_is_one_expert(small, tmp_path, capsys):
    command = [
        "merge",
        "models=local",
        f"models.antiexpert.path={small['antiexpert']}",
        f"output={tmp_path / 'merged'}",
    ]
    command += [f"++models.experts.{name}.path={small[name]}" for name in "ab"] + ["scale=0.4", "experts=[a,b]"]
    assert main(command) == 0
    override = capsys.readouterr().out.splitlines()[-1].removeprefix("for proxytune run: ")
    source = Source(override.partition("=")[2])
    assert source.path == str(tmp_path / "merged")
    spec = FamilySpec(small["antiexpert"], small["antiexpert"], {"task_arithmetic": source})
    assert load(spec, ["expert:task_arithmetic"])["expert:task_arithmetic"].model.dtype == torch.float32
    assert {path.suffix for path in (tmp_path / "merged").iterdir()} <= {
        ".json",
        ".safetensors",
        ".md",
        ".jinja",
        "",
        ".log",
    }
    card = json.loads((tmp_path / "merged" / "recipe.json").read_text())
    assert (card["scale"], list(card["experts"])) == (0.4, ["a", "b"])
    assert main(command) == 0, "a second start does nothing"
    assert main([*command, "scale=0.5"]) == 1
    assert "holds another merge: scale was 0.4 and is 0.5. Give another output=" in capsys.readouterr().err
    assert card["libraries"]["torch"]
    assert "torch" in (tmp_path / "merged" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wide", r"expert 'wide' is not a tuned antiexpert: its '.*' has the shape \[.*\], the antiexpert's \[.*\]"),
        ("deep", r"expert 'deep' is not a tuned antiexpert: only one of the two has the tensor 'model\.layers\.2\."),
        ("gpt2", "expert 'gpt2' is not a tuned antiexpert: only one of the two has the tensor"),
        ("longer", "<new>"),
    ],
)
def test_experts_that_do_not_fit_are_refused(small, tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        merge(family(small, name), [name], 0.4, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_scale_that_is_not_finite_is_refused_before_anything_loads(small, tmp_path):
    with pytest.raises(UserError, match=r"merge\.scale=nan is not allowed: it is a finite number"):
        merge(family(small, "a"), ["a"], float("nan"), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_unfinished_training_is_not_written_over(small, tmp_path):
    folder.begin(tmp_path, Recipe(Tuning(), [("a", "b")]))
    checkpoint = tmp_path / folder.UNFINISHED / "checkpoint-4"
    checkpoint.mkdir()
    with pytest.raises(UserError, match=r"recipe\.json is damaged, or that of something else: give another output="):
        merge(family(small, "a"), ["a"], 0.4, tmp_path)
    assert checkpoint.is_dir()


def test_a_merge_that_was_killed_is_done_again_and_another_is_not(small, tmp_path):
    spec = family(small, "a", "b")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_to_disk", lambda file: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            merge(spec, ["a", "b"], 0.4, tmp_path)
    with pytest.raises(UserError, match=r"holds another merge: scale was 0\.4 and is 0\.5; the experts differ"):
        merge(spec, ["a"], 0.5, tmp_path)
    card = merge(spec, ["a", "b"], 0.4, tmp_path)
    assert merge(spec, ["a", "b"], 0.4, tmp_path) == card
    assert not (tmp_path / folder.UNFINISHED).exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_a_damaged_recipe_is_said(small, tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(UserError, match=r"recipe\.json is damaged, or that of something else"):
        merge(family(small, "a"), ["a"], 0.4, tmp_path)
    assert (tmp_path / "recipe.json").read_text() == text


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            ["method=ties"],
            "method='ties' is not allowed: it is task_arithmetic (for other methods merge the same folders",
        ),
        (["scale=nan"], "scale=nan is not allowed"),
        (["scale=inf"], "scale=inf is not allowed"),
        (["scale=much"], "scale='much' is not allowed"),
        (["scale=???"], "scale has no value yet"),
        (["experts=[]"], "experts=[] is empty"),
        (["experts=[a,a]"], "'a' is named twice"),
        (["experts=[c]"], "unknown expert in experts 'c'. Known: a"),
        (["experts=a"], "experts='a' is not allowed"),
        (["experts=3"], "experts=3 is not allowed"),
        (["experts=???"], "experts has no value yet"),
        (["models.experts.a.path=???"], "models.experts.a.path has no value yet"),
        (["models.antiexpert=null"], "models.antiexpert is missing"),
        (["models.antiexpert.path=/no/such/folder"], "no such folder"),
        (["skale=1"], "scale"),
    ],
)
def test_mistakes_take_one_line(small, tmp_path, capsys, bad, says):
    given = [f"models.antiexpert.path={small['antiexpert']}", f"++models.experts.a.path={small['a']}", "scale=0.4"]
    out = tmp_path / "out"
    assert main(["merge", "models=local", *given, "experts=[a]", f"output={out}", *bad]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert says in error
    assert not out.exists()
