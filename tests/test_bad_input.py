"""One table of bad inputs: each is one line that names key or file, value, and what is allowed, and leaves no file."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tiny import save_member, tiny_llama, tiny_tokenizer

from proxytune.cli import main
from proxytune.errors import UserError

Maker = Callable[[Path], object]
"""Puts files into the working folder."""


class Bad(NamedTuple):
    """`arguments` are refused with a line that has all of `says` in it."""

    arguments: list[str]
    says: list[str]
    made: Maker = lambda folder: None


RUN = ["run"]
LOCAL = ["run", "models=local", "models.base.path=<base>", "models.antiexpert.path=<antiexpert>"]
FAMILY = [*LOCAL, "+models.experts.gsm8k.path=<expert>"]
"""The tiny family; <role> stands for a member's folder."""
GSM8K = [*FAMILY, "task=gsm8k", "task.data_dir=data", "only=[base,proxy]", "output=out"]
"""A run that would work: models, data and output are there."""


def write(path: Path, content: str | bytes = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- the command line and the configuration ---------------------------------------------------------------------------

COMMAND = {
    "command": Bad(["rnu"], ["unknown command 'rnu'", "Did you mean 'run'?", "score"]),
    "flag": Bad(["run", "--cgf", "job"], ["unknown flag '--cgf'", "Did you mean '--cfg'?"]),
    "flag that unpickles": Bad(["run", "--experimental-rerun", "x"], ["unknown flag '--experimental-rerun'"]),
    "flag without value": Bad(["run", "--cfg"], ["--cfg", "expected one argument"]),
    "flag's value": Bad(["run", "--cfg", "jbo"], ["--cfg", "'jbo'", "job"]),
    "no equals sign": Bad(["run", "limit"], ["'limit'", "as key=value"]),
    "open bracket": Bad(["run", "only=[base"], ["'only=[base'", "as key=value"]),
    "letters beyond ASCII in a list": Bad(["run", "only=[bäse]"], ["'only=[bäse]'", "need quotes"]),
    "letters beyond ASCII in a name": Bad(["run", "only=['bäse']"], ["'bäse'", "Did you mean 'base'?"]),
    "sweep without -m": Bad(["run", "seed=0,1"], ["seed=0,1", "--multirun"]),
    "key": Bad(["run", "sede=1"], ["unknown key 'sede'", "Did you mean 'seed'?"]),
    "key of an arm": Bad(["run", "arms.proxi.rule.weights=1"], ["'arms.proxi'", "Did you mean 'arms.proxy'?"]),
    "key of a rule": Bad(["run", "arms.proxy.weights=0.5"], ["Did you mean 'arms.proxy.rule.weights'?"]),
    "key of a group": Bad(["run", "data_dir=x"], ["'data_dir'", "Did you mean 'task.data_dir'?"]),
    "key to add": Bad(["run", "arms.mild.model=base"], ["'arms.mild'", "; to add an entry: +arms.mild=..."]),
    "key of a source": Bad(
        [*LOCAL, "task=gsm8k", "models.base.dtype=float8"],
        ["'models.base.dtype'. Known: models.base.path; to add an entry: +models.base.dtype=..."],
    ),
    "number type": Bad(
        [*LOCAL, "task=gsm8k", "+models.base.dtype=float8"],
        ["models.base.dtype='float8'", "bfloat16 or float16"],
    ),
    "added key": Bad(["run", "+sed=1"], ["unknown key 'sed'", "Did you mean 'seed'?"]),
    "added key of an arm": Bad(
        ["run", "+arms.a={model: base, expert: all}"], ["'arms.a.expert'", "Did you mean 'arms.a.experts'?"]
    ),
    "added key of the task": Bad(["run", "+task.data_dri=x"], ["'task.data_dri'", "Did you mean 'task.data_dir'?"]),
    "added key of a rule": Bad(
        ["run", "+arms.proxy.rule.weight=1"], ["'arms.proxy.rule.weight'", "Did you mean 'arms.proxy.rule.weights'?"]
    ),
    "added key of the engine": Bad(
        ["run", "+engine.batchsize=1"], ["'engine.batchsize'", "Did you mean 'engine.batch_size'?"]
    ),
    "added key of the models": Bad([*LOCAL, "task=gsm8k", "+models.bsae.path=x"], ["'models.bsae'", "'models.base'"]),
    "added key of a source": Bad([*LOCAL, "task=gsm8k", "+models.base.dtpye=auto"], ["base.dtpye'", "base.dtype'"]),
    "added key of the miniature": Bad(["run", "+miniature.sede=1"], ["'miniature.sede'", "'miniature.seed'"]),
    "experiment": Bad(["run", "experiment=minature"], ["experiment 'minature'", "Did you mean 'miniature'?"]),
    "models": Bad(["run", "models=locla", "task=gsm8k"], ["models 'locla'", "Did you mean 'local'?", "llama2"]),
    "task group": Bad(["run", "task=gsmk8"], ["task 'gsmk8'", "Did you mean 'gsm8k'?"]),
    "arms group": Bad(["run", "arms=defualt"], ["arms 'defualt'", "Did you mean 'default'?"]),
    "arm as a group": Bad(["run", "arms=base"], ["choice for arms 'base'", "default", "only=[base]"]),
    "arms as a list": Bad(["run", "arms=[base]"], ["no file 'base' for arms", "only=[base]"]),
    "engine group": Bad(["run", "engine=vlm"], ["engine 'vlm'", "hf"]),
    "rule": Bad(["run", "fusion@arms.proxy.rule=dynamo"], ["'dynamo'", "Did you mean 'dynamic'?"]),
    "group that is not there": Bad(
        [*LOCAL, "task=gsm8k", "miniature=tiny"], ["'miniature'", "No match in the defaults list"]
    ),
    "folder of configurations": Bad(["run", "--config-dir", "nowhere"], ["--config-dir nowhere", "no such folder"]),
    "folder of configurations for help": Bad(
        ["run", "--help", "--config-dir", "nowhere"], ["--config-dir nowhere", "no such folder"]
    ),
    "configuration": Bad(["run", "--config-name", "rnu"], ["'rnu'"]),
    "two things at once": Bad(["run", "-m", "--cfg", "job", "seed=1,2"], ["--cfg", "not allowed with", "--multirun"]),
    "flag without effect": Bad(["run", "--resolve"], ["--resolve", "no effect without --cfg"]),
    "mode of a sweep": Bad(["run", "hydra.mode=MULTIRUN", "seed=1"], ["hydra.mode=MULTIRUN", "--multirun"]),
    "sweep of no list": Bad(["run", "-m", "seed=interval(0,3)"], ["INTERVAL_SWEEP"]),
    "YAML": Bad(
        ["run", "--config-dir", "mine", "task=bad"],
        ["not valid YAML", "bad.yaml"],
        lambda folder: write(folder / "mine/task/bad.yaml", "names: [gsm8k\nstyle"),
    ),
    "task name": Bad(["run", "task.names=[miniature_gms]"], ["'miniature_gms'", "Did you mean 'miniature_gsm'?"]),
    "task twice": Bad(
        [*FAMILY, "task=gsm8k", "task.names=[gsm8k,gsm8k]", "task.data_dir=data"], ["'gsm8k_liu2024'", "twice"]
    ),
    "task group of lm-eval": Bad(
        [*FAMILY, "task=lm_eval", "task.names=[truthfulqa]"], ["'truthfulqa'", "group", "one by one"]
    ),
    "style": Bad([*FAMILY, "task=gsm8k", "task.style=lui2024"], ["'lui2024'", "Did you mean 'liu2024'?"]),
    "style of a task without": Bad(["run", "task.style=liu2024"], ["'miniature_gsm'", "'liu2024'", "gsm8k"]),
    "only": Bad(["run", "only=[proxi]"], ["'proxi'", "Did you mean 'proxy'?"]),
    "removed arm": Bad(["run", "~arms.proxi"], ["arms.proxi"]),
    "no task": Bad([*LOCAL], ["task", "specify"]),
    "no model": Bad(["run", "models=local", "task=gsm8k"], ["models.base.path has no value", "models.base.path=..."]),
    "interpolation": Bad(["run", "output=${nowhere}"], ["output", "'nowhere'"]),
    "environment": Bad(["run", "output=${oc.env:NO_SUCH_FOLDER}"], ["output", "'NO_SUCH_FOLDER'"]),
    "circle": Bad(["run", "output=${store}", "store=${output}"], ["output"]),
}

VALUES = {
    "limit=abc": "it is an integer from 1",
    "limit=0": "it is an integer from 1",
    "limit=-5": "it is an integer from 1",
    "limit=1.5": "it is an integer from 1",
    "limit=true": "it is an integer from 1",
    "seed=x": "it is an integer from 0",
    "seed=-1": "it is an integer from 0",
    "seed=null": "it is an integer from 0",
    "seed=nan": "it is an integer from 0",
    "num_fewshot=-1": "it is an integer from 0",
    "num_fewshot=inf": "it is an integer from 0",
    "only=[]": "it is a list of at least one arm's name",
    "only=base": "it is a list of at least one arm's name",
    "output=null": "it is a folder for the results",
    "output=''": "it is a folder for the results",
    "store=''": "it is a file of finished answers",
    "task.data_dir=''": "it is a folder of JSON-lines files",
    "task.names=gsm8k": "it is a list",
    "task.names=[]": "it is a list of at least one task name",
    "task.style=7": "it is liu2024, fan2024 or lm_eval",
    "engine.batch_size=0": "it is an integer from 1",
    "engine.batch_size=many": "it is an integer from 1",
    "allow_targets=mine": "it is a list of packages",
    "allow_targets=[os]": "name a package of your own",
    "arms.proxy.experts=owm": "it is own (the expert that belongs to the task), all, or a list of at least one expert",
    "+arms.a=base": "it is an arm",
    "+arms.a={rule: static}": "+fusion@arms.<arm>.rule=<file>",
    "+arms.base.except=[]": "it is a list of expert names",
}
"""`key=value` of the miniature's run -> what its line says is allowed."""

RULES = {
    "proxy.rule.weights=nan": "finite number",
    "proxy.rule.weights=inf": "finite number",
    "proxy.rule.weights=much": "finite number",
    "proxy.rule.weights=[]": "finite number",
    "proxy.rule.weights=[1,nan]": "finite number",
    "proxy.rule.weights=null": "finite number",
    "dynamic.rule.low=3": "must not exceed",
    "dynamic.rule.high=nan": "finite number",
    "dynamic.rule.step=0": "greater than 0",
    "dynamic.rule.step=-0.1": "greater than 0",
    "dynamic.rule.step=0.3": "divide",
    "dynamic.rule.step=1e-12": "steps from low to high, of 10000 allowed",
    "dynamic.rule.solver=newton": "exact, grid",
    "dynamic.rule.experts=one": "one_at_a_time, joint",
}
"""A parameter of an arm's rule -> what its line says is allowed."""

ARMS = {
    "no experts": Bad(["run", "arms.proxy.experts=[]"], ["arms.proxy.experts=[]", "at least one"]),
    "experts of a model": Bad(["run", "+arms.base.experts=all"], ["arms.base.experts", "no effect"]),
    "model and rule": Bad(["run", "+arms.proxy.model=base"], ["arms.proxy", "either a model", "or a rule"]),
    "empty arm": Bad(["run", "+arms.a={}"], ["arms.a", "either a model", "or a rule"]),
    "rule without class": Bad(["run", "+arms.a={rule: {weights: 1}}"], ["arms.a.rule", "_target_"]),
    "rule of another package": Bad(
        ["run", "arms.proxy.rule._target_=math.sqrt"], ["arms.proxy.rule._target_=math.sqrt", "allow_targets"]
    ),
    "rule that is no rule": Bad(
        ["run", "+arms.a={rule: {_target_: proxytune.fusion.logits.compare}}"], ["arms.a.rule", "no fuse()"]
    ),
    "rule's class": Bad(
        ["run", "arms.proxy.rule._target_=proxytune.fusion.Statc"], ["Statc", "Did you mean 'proxytune.fusion.Static'?"]
    ),
    "rule's module": Bad(
        ["run", "arms.proxy.rule._target_=proxytune.fusion.sttic.Static"], ["no module proxytune.fusion.sttic"]
    ),
    "parameter that is missing": Bad(
        [*LOCAL, "task=gsm8k", "~models.base"], ["models.base is missing", "FamilySpec needs it"]
    ),
    "model": Bad([*GSM8K, "arms.base.model=bsae"], ["arms.base.model", "'bsae'", "Did you mean 'base'?"]),
    "role": Bad([*GSM8K, "arms.base.model=expert:gsm9k"], ["arms.base.model", "Did you mean 'expert:gsm8k'?"]),
    "expert": Bad([*GSM8K, "arms.proxy.experts=[gsm9k]"], ["arms.proxy.experts", "'gsm9k'", "'gsm8k'"]),
    "expert twice": Bad([*GSM8K, "arms.proxy.experts=[gsm8k,gsm8k]"], ["arms.proxy.experts", "gsm8k", "twice"]),
    "except of an expert": Bad(
        [*GSM8K, "+arms.all_joint.except=[gsm9k]", "only=[all_joint]"], ["arms.all_joint.except", "'gsm9k'", "'gsm8k'"]
    ),
    "except without all": Bad([*GSM8K, "+arms.proxy.except=[gsm8k]"], ["arms.proxy.except", "experts=all"]),
    "except of all": Bad(
        [*GSM8K, "+arms.all_joint.except=[gsm8k]", "only=[all_joint]"], ["arms.all_joint.except", "at least one"]
    ),
    "number of weights": Bad(
        [*GSM8K, "arms.proxy.rule.weights=[0.5,1.5]"], ["arms.proxy.rule", "2 numbers for 1 experts", "one per expert"]
    ),
    "experts of a family without": Bad(
        [*LOCAL, "models.antiexpert=null", "task=gsm8k", "task.data_dir=data", "only=[proxy]"],
        ["arms.proxy", "family has no experts"],
    ),
    "expert of no task": Bad(
        [*GSM8K, "+models.experts.other.path=<expert>", "~models.experts.gsm8k", "+models.experts.more.path=<expert>"],
        ["arms.proxy", "gsm8k", "other, more"],
    ),
    "no upper bound left": Bad([*GSM8K, "only=[tuned]"], ["'gsm8k_liu2024'", "no tuned model"]),
    "miniature of another family": Bad([*GSM8K, "+miniature.seed=1"], ["miniature", "no effect", "models=miniature"]),
    "miniature's width": Bad(["run", "miniature.large.width=abc"], ["miniature.large.width='abc'", "an integer"]),
    "miniature's heads": Bad(["run", "miniature.large.heads=5"], ["miniature.large", "width=128", "heads"]),
    "miniature's gate": Bad(["run", "miniature.recall_gate=nan"], ["miniature.recall_gate=nan", "a number from 0"]),
    "miniature's items": Bad(["run", "miniature.world.trivia.test=0"], ["trivia.test=0", "an integer from 1"]),
    "secret in plain text": Bad(["run", "+models.token=hf_abc"], ["models.token", "${oc.env:NAME}"]),
    "secret in another key": Bad(["run", "output=${oc.env:HF_TOKEN}/x"], ["output", "HF_TOKEN"]),
    "wrong job of a sweep": Bad(["run", "-m", "limit=1,0"], ["limit=0", "an integer from 1", "(job"]),
    "wrong job of a later batch": Bad(
        ["run", "-m", "limit=1,2,0", "hydra.sweeper.max_batch_size=1"], ["limit=0", "an integer from 1", "(job"]
    ),
    "wrong job of a sweep in a file": Bad(
        ["run", "-m", "--config-dir", "mine", "experiment=limits"],
        ["limit=0", "an integer from 1", "(job limit=0"],
        lambda folder: write(
            folder / "mine/experiment/limits.yaml",
            "# @package _global_\ndefaults: [miniature]\nhydra: {sweeper: {params: {limit: '1,0'}}}\n",
        ),
    ),
    "wrong group in a sweep": Bad(["run", "-m", "task=miniature,gsmk8"], ["'gsmk8'", "Did you mean 'gsm8k'?"]),
}


# --- models -----------------------------------------------------------------------------------------------------------


def model(change: Maker) -> Maker:
    """A copy of the antiexpert in `model`, changed."""
    return lambda folder: change(shutil.copytree(folder / "family/antiexpert", folder / "model"))


def without(*patterns: str) -> Maker:
    return lambda folder: [file.unlink() for pattern in patterns for file in folder.glob(pattern)]


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def swap_tokens(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[10:12]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def adapter(config: str | None = None) -> Maker:
    """A PEFT adapter in `adapter`; `config` in place of its adapter_config.json."""

    def make(folder: Path) -> None:
        shutil.copytree(folder / "adapters/math", folder / "adapter")
        if config is not None:
            (folder / "adapter/adapter_config.json").write_text(config)

    return make


def narrow(folder: Path) -> None:
    """A model that the adapter of the antiexpert does not fit."""
    tokenizer = tiny_tokenizer()
    save_member(folder / "model", tiny_llama(len(tokenizer), seed=3, hidden=16), tokenizer)
    adapter()(folder)


EXPERT = [*GSM8K, "models.experts.gsm8k.path=model"]
"""The expert comes from the folder `model`."""
OVER = [*GSM8K, "models.experts.gsm8k.path=<antiexpert>", "+models.experts.gsm8k.adapter=adapter"]
"""The expert is the folder `adapter` over the antiexpert."""

MODELS = {
    "no folder": Bad([*GSM8K, "models.base.path=/no/such/model"], ["base", "no such folder", "'/no/such/model'"]),
    "a file": Bad(EXPERT, ["expert:gsm8k", "'model'"], lambda folder: write(folder / "model")),
    "empty path": Bad([*GSM8K, "models.base.path=''"], ["base", "path", "''", "hub id or a local folder"]),
    "path of another type": Bad([*GSM8K, "models.base.path=[a]"], ["base", "['a']", "hub id or a local folder"]),
    "hub id": Bad([*GSM8K, "models.base.path=org/no-such-model"], ["base", "'org/no-such-model'", "cache"]),
    "impossible hub id": Bad([*GSM8K, "models.base.path='org name'"], ["base", "'org name'", "possible hub id"]),
    "revision of a folder": Bad([*GSM8K, "+models.base.revision=main"], ["revision='main'", "no effect", "hub id"]),
    "revision of another type": Bad([*GSM8K, "+models.base.revision=1234567"], ["revision", "1234567", "text"]),
    "dtype": Bad([*GSM8K, "+models.base.dtype=flot16"], ["models.base.dtype='flot16'", "did you mean float16?"]),
    "attention": Bad([*GSM8K, "+models.base.attn_implementation=flush"], ["base", "flush"]),
    "device": Bad([*GSM8K, "+models.base.device_map=gpu7"], ["base", "gpu7"]),
    "memory": Bad([*GSM8K, "+models.base.max_memory={cpu: 1GiB}"], ["max_memory", "device_map=auto"]),
    "quantisation": Bad([*GSM8K, "+models.base.quantization=4bit"], ["quantization", "'4bit'", "mapping"]),
    "remote code as text": Bad(
        [*GSM8K, "+models.base.trust_remote_code=no"], ["trust_remote_code", "'no'", "true or false"]
    ),
    "chat": Bad([*GSM8K, "+models.base.chat={sytem_prompt: Hi}"], ["chat.sytem_prompt'", "chat.system_prompt'"]),
    "missing tokens": Bad([*GSM8K, "+models.missing_tokens=ingore"], ["missing_tokens", "'ingore'"]),
    "experts as a list": Bad([*GSM8K, "models.experts=a"], ["models.experts='a'", "names to sources"]),
    "no antiexpert": Bad([*GSM8K, "models.antiexpert=null"], ["antiexpert", "small model"]),
    "no config": Bad(EXPERT, ["expert:gsm8k", "'model'", "no config.json"], model(without("config.json"))),
    "truncated config": Bad(
        EXPERT,
        ["expert:gsm8k", "config.json", "JSON"],
        model(lambda f: write(f / "config.json", '{"model_type": "lla')),
    ),
    "config of no kind": Bad(
        EXPERT, ["expert:gsm8k", "'model'", "model_type"], model(lambda f: write(f / "config.json", "{}"))
    ),
    "unknown architecture": Bad(
        EXPERT,
        ["expert:gsm8k", "'model'", "lama9"],
        model(lambda f: write(f / "config.json", '{"model_type": "lama9"}')),
    ),
    "no tokenizer": Bad(EXPERT, ["expert:gsm8k", "'model'"], model(without("tokenizer*"))),
    "truncated tokenizer": Bad(
        EXPERT, ["expert:gsm8k", "'model'"], model(lambda f: write(f / "tokenizer.json", '{"version": "1.0"'))
    ),
    "no weights": Bad(EXPERT, ["expert:gsm8k", "'model'", "no .safetensors"], model(without("*.safetensors"))),
    "pickled weights": Bad(EXPERT, ["expert:gsm8k", "'model'", "Pickled weights", "safetensors"], model(pickled)),
    "damaged weights": Bad(
        EXPERT, ["expert:gsm8k", "'model'"], model(lambda f: write(f / "model.safetensors", b"\0" * 64))
    ),
    "empty weights": Bad(EXPERT, ["expert:gsm8k", "'model'"], model(lambda f: write(f / "model.safetensors"))),
    "other tokens": Bad(EXPERT, ["expert:gsm8k", "token"], model(swap_tokens)),
    "GGUF": Bad([*GSM8K, "models.base.path=none.gguf"], ["base", "none.gguf"]),
    "GGUF without magic": Bad(
        [*GSM8K, "models.base.path=model/bad.gguf"],
        ["base", "model"],
        lambda folder: write(folder / "model/bad.gguf", "GGUG"),
    ),
    "no adapter": Bad(OVER, ["expert:gsm8k", "'adapter'", "cache"]),
    "no adapter folder": Bad(
        [*OVER, "models.experts.gsm8k.adapter=./a"], ["expert:gsm8k", "no such adapter folder", "'./a'"]
    ),
    "adapter without config": Bad(OVER, ["'adapter'", "adapter_config.json"], lambda f: write(f / "adapter/x")),
    "adapter with a damaged config": Bad(
        OVER, ["expert:gsm8k", "adapter_config.json", "JSON"], adapter('{"peft_type"')
    ),
    "adapter of no kind": Bad(OVER, ["expert:gsm8k", "'adapter'"], adapter("{}")),
    "adapter as a model": Bad([*GSM8K, "models.experts.gsm8k.path=adapter"], ["'adapter'", "set path"], adapter()),
    "adapter of another base": Bad([*OVER, "models.experts.gsm8k.path=model"], ["'adapter'", "'model'"], narrow),
}

# --- data -------------------------------------------------------------------------------------------------------------

ROW = {"question": "1 + 1?", "answer": "#### 2"}


def data(content: str | bytes, file: str = "gsm8k/test.jsonl") -> Maker:
    return lambda folder: write(folder / "data" / file, content)


def line(**changes: Any) -> str:
    return json.dumps(ROW | changes) + "\n"


def subjects(*names: str) -> str:
    """One item of MMLU of each subject."""
    rows = [{"question": "?", "subject": name, "choices": ["a", "b", "c", "d"], "answer": 0} for name in names]
    return "".join(json.dumps(row) + "\n" for row in rows)


TEST = "data/gsm8k/test.jsonl"
DATA = {
    "no folder": Bad([*GSM8K, "task.data_dir=nowhere"], ["task.data_dir", "no folder nowhere"]),
    "a file": Bad([*GSM8K, f"task.data_dir={TEST}"], ["task.data_dir", "no folder", TEST]),
    "no file": Bad(GSM8K, ["task.data_dir", "no file", TEST], lambda f: (f / TEST).unlink()),
    "two excerpts": Bad(
        GSM8K, ["test_1.jsonl, test_2.jsonl", "keep one"], lambda f: _excerpts(f / "data/gsm8k", "test_1", "test_2")
    ),
    "empty": Bad(GSM8K, [TEST, "no rows", "one JSON object per line"], data("")),
    "blank": Bad(GSM8K, [TEST, "no rows"], data("\n \n")),
    "not JSON": Bad(GSM8K, [f"{TEST}, line 2", "not JSON"], data(line() + "{'question': 1}\n")),
    "JSON, not lines": Bad(GSM8K, [f"{TEST}, line 1", "not JSON"], data(json.dumps([ROW], indent=1))),
    "a list": Bad(GSM8K, [f"{TEST}, line 1", "list", "JSON object is expected"], data("[1]\n")),
    "not UTF-8": Bad(GSM8K, [f"{TEST}, line 2", "not UTF-8"], data(line().encode() + b'{"question": "\xff"}\n')),
    "UTF-16": Bad(GSM8K, [f"{TEST}, line 1", "not UTF-8"], data(line().encode("utf-16"))),
    "only a BOM": Bad(GSM8K, [f"{TEST}, line 1", "not JSON"], data(b"\xef\xbb\xbf\n")),
    "NaN": Bad(GSM8K, [f"{TEST}, line 1", "NaN"], data(line(answer=float("nan")))),
    "nested too deep": Bad(GSM8K, [f"{TEST}, line 1", "not JSON"], data("[" * 100_000)),
    "key twice": Bad(GSM8K, [f"{TEST}, line 1", "'answer'", "twice"], data('{"answer": "1", "answer": "2"}')),
    "no column": Bad(
        GSM8K, [f"{TEST}, line 2", "no 'answer'", "'reply'"], data(line() + '{"question": "", "reply": ""}')
    ),
    "null": Bad(GSM8K, [f"{TEST}, line 1", "no 'answer'"], data(line(answer=None))),
    "another type": Bad(GSM8K, [f"{TEST}, line 1", "answer = 2", "string"], data(line(answer=2))),
    "no number": Bad(GSM8K, [f"{TEST}, line 1", "answer = 'two'", "a number"], data(line(answer="two"))),
    "half a character": Bad(GSM8K, [f"{TEST}, line 1", "question", "surrogates"], data(line(question="\ud800"))),
    "index out of range": Bad(
        [*GSM8K, "task=mmlu"],
        ["data/mmlu/test.jsonl, line 1", "answer = 4", "less than 4", "choices"],
        data('{"question": "?", "subject": "s", "choices": ["a", "b", "c", "d"], "answer": 4}', "mmlu/test.jsonl"),
    ),
    "three choices": Bad(
        [*GSM8K, "task=mmlu"],
        ["data/mmlu/test.jsonl, line 1", "choices", "4 items"],
        data('{"question": "?", "subject": "s", "choices": ["a", "b", "c"], "answer": 0}', "mmlu/test.jsonl"),
    ),
    "no true choice": Bad(
        [*GSM8K, "task=truthfulqa_mc"],
        ["multiple_choice_validation.jsonl, line 1", "mc1_targets", "labels"],
        data(
            '{"question": "?", "mc1_targets": {"choices": ["a", "b"], "labels": [0, 0]}}',
            "truthfulqa/multiple_choice_validation.jsonl",
        ),
    ),
    "answer without aliases": Bad(
        [*GSM8K, "task=triviaqa"],
        ["rc.nocontext_validation.jsonl, line 1", "answer.aliases"],
        data('{"question": "?", "answer": {"value": "x"}}', "triviaqa/rc.nocontext_validation.jsonl"),
    ),
    "null article": Bad(
        [*GSM8K, "task=cnn_dailymail"],
        ["cnn_dailymail/test.jsonl, line 1", "no 'article'"],
        data('{"article": null, "highlights": "x"}', "cnn_dailymail/test.jsonl"),
    ),
    "no hub": Bad([*GSM8K, "task.data_dir=null"], ["'gsm8k_liu2024'", "task.data_dir=PATH"]),
    "local files of a task of the hub": Bad(
        [*GSM8K, "task=lm_eval", "task.names=[arc_easy]", "task.data_dir=data"],
        ["'arc_easy'", "task.data_dir", "gsm8k"],
    ),
    "models with data for other tasks": Bad(
        [*GSM8K, "task=mmlu", "task.data_dir=null", "+models.data_dir=data"],
        ["models bring their own data, in data, and none for task 'mmlu_fan2024'", "models=...", "task.data_dir=..."],
    ),
    "models with data, and a task of the hub": Bad(
        [*GSM8K, "task=lm_eval", "task.names=[arc_easy]", "task.data_dir=null", "+models.data_dir=x"],
        ["in x, and none for task 'arc_easy'", "models=...", "task.data_dir=..."],
    ),
    "more examples than rows": Bad(
        [*GSM8K, "num_fewshot=3"],
        ["num_fewshot=3", "'gsm8k_liu2024'", "at most 2"],
        data(line() * 2, "gsm8k/train.jsonl"),
    ),
    "examples without a training file": Bad(
        [*GSM8K, "num_fewshot=1"], ["task.data_dir", "no file", "gsm8k/train.jsonl"]
    ),
    "examples of a task without": Bad(
        [*GSM8K, "task=truthfulqa_mc", "num_fewshot=1"], ["num_fewshot=1", "'truthfulqa_mc_liu2024'", "use 0"]
    ),
    "more examples than a subject has": Bad(
        [*GSM8K, "task=mmlu", "num_fewshot=2"],
        ["num_fewshot=2", "law", "at most 1"],
        lambda f: [data(subjects("law"), "mmlu/test.jsonl")(f), data(subjects("law", "art"), "mmlu/dev.jsonl")(f)],
    ),
}


def _excerpts(folder: Path, *names: str) -> None:
    (folder / "test.jsonl").unlink()
    for name in names:
        write(folder / f"{name}.jsonl", line())


# --- output and store -------------------------------------------------------------------------------------------------


def damaged_store(folder: Path) -> None:
    """A SQLite file whose first page is gone."""
    with sqlite3.connect(folder / "store.sqlite") as db:
        db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, value TEXT NOT NULL, checksum TEXT NOT NULL)")
    db.close()
    with (folder / "store.sqlite").open("r+b") as file:
        file.write(b"\xff" * 4096)


FILES = {
    "output is a file": Bad([*GSM8K, "output=taken"], ["output", "taken"], lambda f: write(f / "taken")),
    "output in a file": Bad([*GSM8K, "output=taken/out"], ["output", "taken"], lambda f: write(f / "taken")),
    "output that cannot be made": Bad([*GSM8K, "output=/proc/none/out"], ["output", "/proc/none"]),
    "store is a folder": Bad([*GSM8K, "store=data"], ["store", "data"]),
    "store in a file": Bad([*GSM8K, "store=taken/s.sqlite"], ["store", "taken"], lambda f: write(f / "taken")),
    "store is no database": Bad(
        [*GSM8K, "store=store.sqlite"],
        ["answer store store.sqlite", "not a database", "store=PATH"],
        lambda f: write(f / "store.sqlite", "my notes\n" * 1000),
    ),
    "damaged store": Bad([*GSM8K, "store=store.sqlite"], ["answer store store.sqlite", "store=PATH"], damaged_store),
    "store of another kind": Bad(
        [*GSM8K, "store=store.sqlite"],
        ["answer store store.sqlite", "store=PATH"],
        lambda f: sqlite3.connect(f / "store.sqlite").execute("CREATE TABLE answers (name TEXT)").connection.close(),
    ),
}

# --- score and table --------------------------------------------------------------------------------------------------

SCORE = ["score", "task=gsm8k", "style=liu2024", "outputs=o.jsonl"]
TABLE = ["table", "paper=liu2024"]


def outputs(content: str) -> Maker:
    return lambda folder: write(folder / "o.jsonl", content)


def run_of(record: Any) -> Maker:
    return lambda folder: write(folder / "r/results.json", record if isinstance(record, str) else json.dumps(record))


OTHERS = {
    "score nothing": Bad(["score"], ["task=... is missing", "the task's name"]),
    "score without a file": Bad(["score", "task=gsm8k"], ["outputs=... is missing", "JSON-lines file"]),
    "score misspelt": Bad(["score", "taks=gsm8k"], ["'taks'", "Did you mean 'task'?"]),
    "score twice": Bad(["score", "task=a", "task=b"], ["task is given twice", "a and b"]),
    "score no value": Bad(["score", "task="], ["'task='", "key=value"]),
    "score task": Bad(["score", "task=gsm", "style=liu2024", "outputs=o.jsonl"], ["'gsm'", "Did you mean 'gsm8k'?"]),
    "score style": Bad(["score", "task=gsm8k", "style=liu", "outputs=o.jsonl"], ["'liu'", "'liu2024'"]),
    "score likelihoods": Bad(
        ["score", "task=mmlu", "style=fan2024", "outputs=o.jsonl"], ["'mmlu_fan2024'", "generated", "`outputs:`"]
    ),
    "score without a style": Bad(
        ["score", "task=gsm8k", "outputs=o.jsonl"], ["'gsm8k'", "give style=fan2024 or liu2024"]
    ),
    "score another style": Bad(
        ["score", "task=gsm8k", "style=lm_eval", "outputs=o.jsonl"],
        ["'gsm8k_lm_eval'", "give style=fan2024 or liu2024"],
    ),
    "score task of no style": Bad(
        ["score", "task=gsm8k_lui2024", "outputs=o.jsonl"],
        ["'gsm8k_lui2024'", "Did you mean 'gsm8k_liu2024'?"],
    ),
    "score no file": Bad(SCORE, ["cannot read o.jsonl", "No such file"]),
    "score a folder": Bad(["score", "task=gsm8k", "style=liu2024", "outputs=data"], ["cannot read data", "directory"]),
    "score no rows": Bad(SCORE, ["o.jsonl", "no rows"], outputs("\n")),
    "score not JSON": Bad(SCORE, ["o.jsonl, line 1", "not JSON"], outputs("output,answer\n")),
    "score without outputs": Bad(
        SCORE, ["o.jsonl, line 1", "no 'output' or 'model_output'"], outputs('{"answer": "1"}')
    ),
    "score a number": Bad(SCORE, ["o.jsonl, line 1", "output = 1"], outputs('{"output": 1, "answer": "1"}')),
    "score another gold": Bad(SCORE, ["o.jsonl, line 1", "answer = [1]"], outputs('{"output": "1", "answer": [1]}')),
    "table nothing": Bad(["table"], ["paper=... is missing", "liu2024 or fan2024"]),
    "table paper": Bad(["table", "paper=lui2024"], ["'lui2024'", "Did you mean 'liu2024'?"]),
    "table misspelt": Bad([*TABLE, "tabel=x"], ["'tabel'", "Did you mean 'table'?"]),
    "table name": Bad([*TABLE, "table=nine"], ["'nine'", "liu2024"]),
    "table format": Bad([*TABLE, "format=html"], ["'html'", "markdown"]),
    "table without a run": Bad([*TABLE, "runs=[nowhere]"], ["nowhere", "does not exist"]),
    "table runs": Bad([*TABLE, "runs=[1]"], ["runs=[1]", "list of run folders"]),
    "table bracket": Bad([*TABLE, "runs=[a"], ["cannot read the arguments"]),
    "table not JSON": Bad([*TABLE, "runs=[r]"], ["r/results.json", "not a results.json"], run_of("{")),
    "table no tasks": Bad([*TABLE, "runs=[r]"], ["r/results.json", "is not a results.json"], run_of([1])),
    "table no experiment": Bad([*TABLE, "runs=[r]"], ["names no experiment"], run_of({"tasks": {}})),
    "table other experiment": Bad(
        [*TABLE, "runs=[r]"],
        ["'fan2024_single_7b'", "liu2024_gsm8k_13b"],
        run_of({"tasks": {}, "provenance": {"config": {"experiment": "fan2024_single_7b"}}}),
    ),
    "table half a record": Bad(
        [*TABLE, "runs=[r]"],
        ["r/results.json", "tasks.gsm8k_liu2024.metric: Field required"],
        run_of({"tasks": {"gsm8k_liu2024": {}}, "provenance": {"config": {"experiment": "liu2024_gsm8k_13b"}}}),
    ),
}

TABLES = {
    "command": COMMAND,
    "value": {name: Bad(["run", name], [name.lstrip("+").split("=")[0], says]) for name, says in VALUES.items()},
    "parameter": {
        name: Bad(["run", f"arms.{name}"], ["arms." + name.split(".")[0], says]) for name, says in RULES.items()
    },
    "arms": ARMS,
    "models": MODELS,
    "data": DATA,
    "files": FILES,
    "others": OTHERS,
}
CASES = {f"{table}: {name}": bad for table, cases in TABLES.items() for name, bad in cases.items()}


@pytest.fixture
def folder(
    tmp_path: Path, family_folders: dict[str, Path], adapter_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working folder: one real item of GSM8K, and links to the tiny family."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    write(tmp_path / TEST, line())
    (tmp_path / "family").symlink_to(family_folders["base"].parent)
    (tmp_path / "adapters").symlink_to(adapter_folders["base"].parent)
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    if case.startswith("models:"):  # loaded before anything else where no answer is stored
        monkeypatch.setenv("PROXYTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    bad = CASES[case]
    bad.made(folder)
    capsys.readouterr()
    before = _contents(folder)
    status = main([_with_roles(argument) for argument in bad.arguments])
    said = capsys.readouterr().err
    assert status == 1
    assert said.startswith("proxytune: ")
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert "hf_abc" not in said
    for part in bad.says:
        assert part in said
    assert _contents(folder) == before


MISSPELT = """
from proxytune.fusion import Static

class Misspelt(Static):
    def fuse(self, base, experts, antiexpert):
        return super().fuse(bsae, experts, antiexpert)
"""


@pytest.mark.parametrize("experts", ["own", "all", "[trivia]"])
def test_a_bug_in_a_rule_shows_before_a_family_is_built(folder, monkeypatch, capsys, experts) -> None:
    write(folder / "misspelt_rule.py", MISSPELT)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "misspelt_rule", raising=False)  # that of another test's folder
    monkeypatch.setattr("proxytune.miniature.cache.build", lambda *_: pytest.fail("a family is built"))
    arm = f"+arms.mine={{rule: {{_target_: misspelt_rule.Misspelt, weights: 1.0}}, experts: {experts}}}"
    assert main(["run", arm, "allow_targets=[misspelt_rule]"]) == 1
    said = capsys.readouterr().err
    bug = "arms.mine.rule: Misspelt.fuse raises NameError: name 'bsae' is not defined"
    assert said == f"proxytune: {bug} ({folder / 'misspelt_rule.py'}, line 6)\n"
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError) as caught:
        main(["run", arm, "allow_targets=[misspelt_rule]"])
    assert isinstance(caught.value.__cause__.__cause__, NameError)


def test_the_table_is_long() -> None:
    assert len(CASES) >= 60


def _with_roles(argument: str) -> str:
    roles = {"<base>": "family/base", "<antiexpert>": "family/antiexpert", "<expert>": "family/expert-math"}
    for role, path in roles.items():
        argument = argument.replace(role, path)
    return argument


def _contents(folder: Path) -> dict[str, str]:
    """Every file and folder, links not followed: its name and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }
