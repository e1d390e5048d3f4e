"""What others hand us, configurations, models and data, cannot run code here, and secrets go nowhere."""

from __future__ import annotations

import ast
import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import tiny_tokenizer

import proxytune
from proxytune.cli import main
from proxytune.errors import UserError
from proxytune.models import FamilySpec, FusedCausalLM, Source, load
from proxytune.models.chat import Chat, ChatPrompt

PACKAGE = Path(proxytune.__file__).parent
SOURCES = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")])
TOKEN = "hf_" + "aBcDeFgHiJ" * 4

# --- our own code -----------------------------------------------------------------------------------------------------

MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
CALLS |= {"torch.load", "pd.read_pickle", "pandas.read_pickle", "subprocess.getoutput"}


def dangers(source: str) -> Iterator[str]:
    """Imports and calls that would read pickles or run texts; `torch.load(weights_only=True)` is none."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.partition(".")[0] in MODULES)
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] in MODULES:
                yield module
            case ast.Call(func=function, keywords=keywords):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in keywords}
                if ast.unparse(function) in CALLS and given.get("weights_only") != "True":
                    yield ast.unparse(node)
                if given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False":
                    yield ast.unparse(node)
                if given.get("trust_remote_code") == "True":
                    yield ast.unparse(node)


IN_THE_SANDBOX = PACKAGE / "execution" / "inside.py"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_no_code_of_ours_reads_pickles_or_runs_texts(path: Path):
    found = list(dangers(path.read_text(encoding="utf-8")))
    if path == IN_THE_SANDBOX:
        assert len(found) == 2 and found[0].startswith("exec(compile(")
    else:
        assert found == []


def test_what_runs_texts_is_imported_nowhere():
    """It is given to an interpreter of its own, in the sandbox."""
    assert not [path for path in SOURCES if "execution.inside" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "eval('1')",
        "import os\nos.system('ls')",
        "subprocess.run('ls', shell=True)",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_the_search_for_dangers_finds_them(code: str):
    assert list(dangers(code))


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the code beside a model would create; transformers' copies of such code go into the test's folder."""
    for module in ("transformers.dynamic_module_utils", "transformers.utils.hub"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"), raising=False)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    return tmp_path / "marker"


@pytest.fixture(params=["llama", "of_its_own"])
def with_code(request: pytest.FixtureRequest, tmp_path: Path, family_folders: dict[str, Path], marker: Path) -> Path:
    """A model that brings code, of a kind that transformers knows or does not know without that code."""
    folder = shutil.copytree(family_folders["base"], tmp_path / "model")
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig): ...\n"  # transformers marks the classes that it finds here
        "class Model(LlamaForCausalLM): ...\n"
        "class Tokens(PreTrainedTokenizerFast): ...\n"
    )
    mapped = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": [None, "evil.Tokens"]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text()) | {"auto_map": mapped}
        if name == "config.json":
            content["model_type"] = request.param
        (folder / name).write_text(json.dumps(content))
    return folder


def test_code_beside_a_model_does_not_run(with_code: Path, marker: Path):
    try:
        load(FamilySpec(str(with_code)))
        known = True
    except UserError as error:
        assert "trust_remote_code" in str(error)
        known = False
    assert known == (json.loads((with_code / "config.json").read_text())["model_type"] == "llama")
    assert not marker.exists()
    with pytest.raises(UserError):
        FusedCausalLM.from_pretrained(str(with_code))
    assert not marker.exists()
    with contextlib.suppress(UserError):
        load(FamilySpec(Source(str(with_code), trust_remote_code=True)))
    assert marker.exists()  # it could have run


def test_code_that_may_run_is_part_of_what_a_model_answers_by(with_code: Path):
    from proxytune.models.loading.files import identity

    before = identity(Source(str(with_code)))
    (with_code / "evil.py").write_text("# another\n")
    assert identity(Source(str(with_code))) != before


# --- configurations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`refused("run", ...)` fails with one line, which it gives back, and leaves no file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def call(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert (said.err.count("\n"), said.out) == (1, "")
        assert sorted(tmp_path.rglob("*")) == before
        return said.err

    return call


@pytest.mark.parametrize(
    "override",
    [
        "+models.base={_target_: os.system, command: touch x}",
        "+models.extra=[{_target_: os.system, command: touch x}]",
        "+models.extra=[[{deep: {_target_: os.system, command: touch x}}]]",
        "+models.base._target_=proxytune.models.loading.files.json.loads",
        "engine._target_=subprocess.run",
        "+engine.more={_target_: builtins.exec}",
        "+arms.a={rule: {_target_: proxytune.fusion.Static, weights: {_target_: builtins.eval}}}",
        "+arms.a={rule: {_target_: proxytune.fusion.Static, weights: [{_target_: builtins.eval}]}}",
        "hydra.launcher._target_=os.system",
        "hydra.launcher._target_=logging.os.system",
        "hydra.sweeper._target_=${oc.env:HOME}",
        "+hydra.callbacks.a={_target_: proxytune.cli.main}",
        "+hydra.callbacks={a: [{_target_: os.system}]}",
        "+hydra.job_logging.handlers.a={class: os.system}",
        "+hydra.job_logging.handlers.a={class: logging.os.system}",
        "+hydra.job_logging.handlers.a={class: logging.handlers.QueueHandler, queue: os.system}",
        "+hydra.job_logging.handlers.a={class: logging.StreamHandler, stream: ext://os.environ}",
    ],
)
def test_only_parts_of_listed_packages_are_built(refused, override: str):
    line = refused("run", "models=local", "models.base.path=x", "models.antiexpert=null", "task=gsm8k", override)
    said = ("is not allowed", "only parts of these may be built", "is not a class", "unknown key")
    assert any(part in line for part in said), line


def test_a_class_is_at_home_where_it_is_said_to_be(refused, tmp_path: Path):
    file = tmp_path / "mine/hydra/job_logging/evil.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("version: 1\nhandlers:\n  a: {'()': logging.os.system, command: touch marker}\n")
    assert "a.()=logging.os.system is not allowed" in refused("run", "--config-dir", "mine", "hydra/job_logging=evil")


def test_every_job_of_a_sweep_is_held_to_it(refused, tmp_path: Path):
    file = tmp_path / "mine/experiment/evil.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\ndefaults: [miniature]\n"
        "hydra: {job_logging: {handlers: {a: {class: logging.os.system}}}}\n"
    )
    for arguments in (["-m", "experiment=miniature,evil"], ["experiment=evil"], ["experiment=evil", "--cfg", "job"]):
        assert "a.class=logging.os.system is not allowed" in refused("run", "--config-dir", "mine", *arguments)


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [f"output={TOKEN}"],
        [f"limit={TOKEN}"],
        [f"models.base.path=https://me:{TOKEN}@hub.example/model"],
        [f"+models.base.chat={{system_prompt: 'a {TOKEN} b'}}"],
        [f"task.names=[{TOKEN}]"],
        [f"+engine.api_key={TOKEN}"],
        ["+engine.headers={password: open-sesame}"],
        [f"+hydra.job.env_set.HF_TOKEN={TOKEN}"],
        [f"taks={TOKEN}"],
        [f"taks=[{TOKEN}"],
        [f"--{TOKEN}"],
        ["output=outputs/open-sesame", "limit=0"],
        ["only=[open-sesame]"],
    ],
)
def test_no_line_shows_a_secret(refused, monkeypatch, arguments: list[str]):
    monkeypatch.setenv("SERVICE_PASSWORD", "open-sesame")
    line = refused("run", "models=local", "models.base.path=x", "models.antiexpert=null", "task=gsm8k", *arguments)
    assert TOKEN not in line
    assert "open-sesame" not in line.replace("{password: open-sesame}", "")


@pytest.fixture
def trivia(tmp_path: Path, family_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`trivia.run(row, *overrides)`: the base on one question, results in `trivia.out`."""
    monkeypatch.chdir(tmp_path)

    def run(row: dict[str, str], *overrides: str) -> int:
        (tmp_path / "data/trivia").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/trivia/test.jsonl").write_text(json.dumps(row) + "\n")
        family = ["models=local", f"models.base.path={family_folders['base']}", "models.antiexpert=null"]
        task = ["task=miniature", "task.names=[miniature_trivia]", "task.data_dir=data", "~arms.all_joint"]
        return main(["run", *family, *task, "only=[base]", "output=out", *overrides])

    return SimpleNamespace(run=run, out=tmp_path / "out")


SECRET = "${oc.env:MY_API_KEY}"
KEYED = ["engine._target_=secretive.Keyed", "allow_targets=[secretive]", f"+engine.api_key='{SECRET}'"]
ENGINE = """
from proxytune.engines.hf import HFEngine

class Keyed(HFEngine):
    def __init__(self, ensemble, api_key, **options):
        assert api_key == "open-sesame"
        super().__init__(ensemble, **options)
"""


def test_a_secret_reaches_the_part_that_needs_it_and_no_file_or_screen(trivia, tmp_path, monkeypatch, capfd):
    (tmp_path / "secretive.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MY_API_KEY", "open-sesame")
    row = {"question": "where does the river begin ?", "answer": "the sea"}
    assert trivia.run(row, *KEYED) == 0
    assert trivia.run(row, *KEYED, "--cfg", "job") == 0
    assert trivia.run(row, *KEYED, "--cfg", "all", "--resolve") == 0
    assert trivia.run(row, *KEYED, "limit=0") == 1
    assert "open-sesame" not in "".join(capfd.readouterr())
    written = [path for path in trivia.out.rglob("*") if path.is_file()]
    assert {"results.json", "config.yaml", "overrides.yaml", "proxytune.log"} <= {path.name for path in written}
    for path in written:
        assert "open-sesame" not in path.read_text(), path
    assert json.loads((trivia.out / "results.json").read_text())["provenance"]["config"]["engine"]["api_key"] == "***"


# --- data -------------------------------------------------------------------------------------------------------------

NASTY = (
    "{question} {0} {{ 7*7 }} {% for i in [1] %}loop{% endfor %} {# gone? #} %s %(x)s ${oc.env:HOME} $(touch marker) "
    "`touch marker`; touch marker & <b>[red]x[/red]</b> __import__('os').system('touch marker') \\n \\x00 '\"\"\""
)


def test_text_of_the_data_stays_text(trivia, tmp_path):
    assert trivia.run({"question": NASTY, "answer": f"to {NASTY}"}) == 0
    item = json.loads((trivia.out / "items/miniature_trivia.jsonl").read_text())
    assert item["prompt"].count(NASTY) == 1
    assert item["target"].count(f"to {NASTY}") == 1
    assert not list(tmp_path.rglob("marker"))


def test_text_of_the_data_stays_text_in_a_chat():
    tokenizer = tiny_tokenizer()
    prompt = ChatPrompt.of(Chat(system_prompt=NASTY, response_prefixes=("Answer:",)), tokenizer, "base")
    assert prompt(f"{NASTY}Answer:") == f"<|system|> {NASTY}\n<|user|> {NASTY}\n<|assistant|> Answer:"
