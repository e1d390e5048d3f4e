"""Answers on disk: exact round trips, damage, several processes, and keys that tell every answer apart."""

import importlib
import linecache
import math
import sqlite3
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell

from proxytune.engines.requests import Generated, GenerateRequest, Prompt, Scored, ScoreRequest
from proxytune.errors import UserError
from proxytune.experiment.answers.gc import clear
from proxytune.experiment.answers.keys import Keys
from proxytune.experiment.answers.store import AnswerStore, decode, encode
from proxytune.fusion.arm import Arm

ANSWER = Generated((5, 6), "twelve 🙂\n", ((0.1, 1 / 3), (0.0, 2.0)), "stop")

floats = st.floats(allow_nan=False)
scored = st.integers(0, 5).flatmap(
    lambda n: st.builds(
        Scored,
        st.tuples(*[floats] * n),
        st.tuples(*[st.booleans()] * n),
        st.lists(st.tuples(*[floats] * n), max_size=3).map(tuple),
    )
)
generated = st.builds(
    Generated,
    st.lists(st.integers(0, 10**6)).map(tuple),
    st.text(),
    st.lists(st.lists(floats).map(tuple), max_size=2).map(tuple),
    st.sampled_from(["stop", "eos", "length"]),
)


@settings(max_examples=100, deadline=None)
@given(scored | generated)
def test_answers_come_back_bit_for_bit(answer):
    assert decode(encode(answer)) == answer


def test_what_is_put_is_there_for_the_next_process(tmp_path):
    path = tmp_path / "made" / "answers.sqlite"
    with AnswerStore(path) as store:
        store.put({"a": ANSWER})
        store.put({"b": Scored((-1.5,), (True,), ())})
    with AnswerStore(path) as store:
        assert store.get(["a", "b", "c"]) == {"a": ANSWER, "b": Scored((-1.5,), (True,), ())}
        assert len(store) == 2


def test_in_memory_store_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with AnswerStore() as store:
        store.put({"a": ANSWER})
        assert store.get(["a", "a"]) == {"a": ANSWER}
    assert list(tmp_path.iterdir()) == []


def test_asks_for_more_keys_than_sqlite_takes_at_once():
    with AnswerStore() as store:
        store.put({f"k{i}": ANSWER for i in range(1201)})
        assert len(store.get([f"k{i}" for i in range(2000)])) == 1201


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE answers SET value = replace(value, 'twelve', 'eleven') WHERE key = 'a'",
        "UPDATE answers SET value = substr(value, 1, 20) WHERE key = 'a'",
        "UPDATE answers SET checksum = '' WHERE key = 'a'",
        "UPDATE answers SET value = X'00FF' WHERE key = 'a'",
        "DELETE FROM answers WHERE key = 'b'; UPDATE answers SET key = 'b' WHERE key = 'a'",
    ],
    ids=["changed", "cut", "checksum", "bytes", "moved"],
)
def test_damaged_rows_are_reported_and_never_used(tmp_path, damage, caplog):
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as store:
        store.put({"a": ANSWER})
        store.put({"b": replace(ANSWER, text="other")})
    with sqlite3.connect(path) as db:
        db.executescript(damage)
    with AnswerStore(path) as store:
        assert ANSWER not in store.get(["a", "b"]).values()
        assert len(store.damaged) == 1
        assert "damaged" in caplog.text
        store.put({"a": ANSWER})
        assert store.get(["a"]) == {"a": ANSWER}


@pytest.mark.parametrize("content", [b"no database" * 200, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_store_is_one_clear_line(tmp_path, content):
    path = tmp_path / "answers.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.sqlite.*store=PATH"):
        AnswerStore(path)
    assert path.read_bytes() == content


def test_a_store_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        AnswerStore(tmp_path / "file" / "answers.sqlite")
    with pytest.raises(UserError, match="unable to open"):
        AnswerStore(tmp_path)


WRITER = textwrap.dedent("""
    import sys
    from proxytune.engines.requests import Scored
    from proxytune.experiment.answers.store import AnswerStore
    path, name = sys.argv[1:]
    with AnswerStore(path) as store:
        for i in range(300):
            answers = {f"{name}-{i}": Scored((-float(i),), (True,), ()), f"shared-{i}": Scored((-1.0,), (True,), ())}
            store.put(answers)
            assert store.get([f"{name}-{i}"])
            print(i, flush=True)
""")


def _writer(path: Path, name: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)


def test_processes_share_a_store_and_a_killed_one_loses_nothing_it_had_put(tmp_path):
    path = tmp_path / "answers.sqlite"
    writers = {name: _writer(path, name) for name in ("one", "two", "killed")}
    seen = -1
    for line in writers["killed"].stdout:
        seen = int(line)
        if seen >= 40:
            break
    writers["killed"].kill()
    said = [int(line) for line in writers["killed"].communicate()[0].split()]
    for name in ("one", "two"):
        writers[name].communicate()
    assert [writers[name].returncode for name in ("one", "two")] == [0, 0]
    with AnswerStore(path) as store:
        for name, last in (("one", 299), ("two", 299), ("killed", max([seen, *said]))):
            found = store.get([f"{name}-{i}" for i in range(last + 1)])
            assert [found[f"{name}-{i}"].logprobs[0] for i in range(last + 1)] == [-float(i) for i in range(last + 1)]
        assert len(store.get([f"shared-{i}" for i in range(300)])) == 300
        assert not store.damaged


@dataclass(frozen=True)
class Shift:
    """A rule of the test's own."""

    weight: float | str | object = 1.0
    id: ClassVar[str] = "shift"
    formula: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def fuse(self, base, experts, antiexpert):
        raise NotImplementedError


def _key(family, arm, request):
    return Keys(family, [arm]).of(arm, request)


def test_keys_tell_apart_whatever_determines_an_answer(family):
    prompt = Prompt((1, 2, 3))
    score, generate = ScoreRequest(prompt, (4, 5)), GenerateRequest(prompt, 8)
    fused = Arm("fused", rule=Shift(1.0), experts=("expert:math",))
    pairs = [
        (Arm("a"), score),
        (Arm("a"), ScoreRequest(prompt, (4, 6))),
        (Arm("a"), ScoreRequest(Prompt((1, 2, 4)), (4, 5))),
        (Arm("a"), ScoreRequest(Prompt((1, 2)), (3, 4, 5))),
        (Arm("a", base="antiexpert"), score),
        (fused, score),
        (replace(fused, rule=Shift(0.0)), score),
        (replace(fused, experts=("expert:trivia",)), score),
        (replace(fused, experts=("expert:math", "expert:trivia")), score),
        (replace(fused, experts=("expert:trivia", "expert:math")), score),
        (fused, ScoreRequest(Prompt((1, 2, 3), {"expert:math": (9,)}), (4, 5))),
        (fused, ScoreRequest(Prompt((1, 2, 3), {"expert:math": (8,)}), (4, 5))),
        (fused, ScoreRequest(Prompt((1, 2, 3), {"antiexpert": (9,)}), (4, 5))),
        (Arm("a"), generate),
        (Arm("a"), replace(generate, max_new_tokens=9)),
        (Arm("a"), replace(generate, until=("x",))),
        (Arm("a"), replace(generate, temperature=1.0)),
        (Arm("a"), replace(generate, temperature=1.0, seed=1)),
        (Arm("a"), replace(generate, temperature=1.0, top_p=0.5)),
    ]
    assert len({_key(family, arm, request) for arm, request in pairs}) == len(pairs)


def test_what_decides_answers_beside_the_models_is_part_of_a_key(family):
    def key(engine):
        return Keys(family, [Arm("a")], engine).of_arm["a"]

    assert len({key(None), key({"name": "other"}), key({"name": "other", "cuts": 8})}) == 3
    assert key({"name": "other", "cuts": 8}) == key({"cuts": 8, "name": "other"})


def test_the_token_read_in_place_of_missing_ones_is_part_of_a_key(family):
    def key(missing, unknown):
        members = dict(family.members) | {"base": replace(family["base"], missing=missing, unknown=unknown)}
        return Keys(type(family)(members, family.tokenizer), [Arm("a")]).of_arm["a"]

    assert len({key((), 0), key((5,), 0), key((5,), 1), key((6,), 1)}) == 4
    assert key((), 0) == key((), 1)


def test_what_is_asked_has_one_hash_for_all_arms_lengths_and_stops(family):
    request = GenerateRequest(Prompt((1, 2, 3)), 8, temperature=0.5)
    others = [
        replace(request, prompt=Prompt((1, 2, 4))),
        replace(request, temperature=1.0),
        replace(request, top_p=0.5),
        replace(request, seed=1),
    ]
    keys = Keys(family, [Arm("a")])
    assert len({keys.asked(one) for one in [request, *others]}) == 5
    assert keys.asked(request) == Keys(family, []).asked(replace(request, max_new_tokens=9, until=("x",)))


def test_names_of_arms_and_prompts_of_others_are_no_part_of_a_key(family):
    own = ScoreRequest(Prompt((1, 2), {"expert:math": (9,)}), (4,))
    assert _key(family, Arm("a"), own) == _key(family, Arm("b"), ScoreRequest(Prompt((1, 2)), (4,)))
    spelt_out = ScoreRequest(Prompt((7,), {"base": (1, 2)}), (4,))
    assert _key(family, Arm("a"), spelt_out) == _key(family, Arm("a"), ScoreRequest(Prompt((1, 2)), (4,)))


def test_a_member_without_identity_is_refused(family):
    members = dict(family.members) | {"base": replace(family["base"], identity="")}
    with pytest.raises(UserError, match="base has no identity"):
        Keys(type(family)(members, family.tokenizer), [Arm("a")])


def test_a_rule_that_cannot_be_described_is_refused(family):
    class Loose:
        def fuse(self, base, experts, antiexpert): ...

    with pytest.raises(UserError, match="frozen dataclass"):
        Keys(family, [Arm("a", rule=Loose(), experts=("expert:math",))])
    with pytest.raises(UserError, match="plain numbers"):
        Keys(family, [Arm("a", rule=Shift(math.sin), experts=("expert:math",))])


EDITED = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine:
    def fuse(self, base, experts, antiexpert):
        return base + {}
"""


INHERITED = """
from dataclasses import dataclass
from typing import ClassVar
from proxytune.fusion import Static

@dataclass(frozen=True)
class Mine(Static):
    largest: ClassVar[float] = {}
"""


@pytest.mark.parametrize("source", [EDITED, INHERITED], ids=["own fuse", "inherited fuse"])
def test_an_edited_rule_has_another_key(family, source, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for body in ("0.5", "1.5", "0.5"):
        (tmp_path / "mine.py").write_text(source.format(body))
        monkeypatch.delitem(sys.modules, "mine", raising=False)
        importlib.invalidate_caches()
        rule = importlib.import_module("mine").Mine()
        keys.append(Keys(family, [Arm("a", rule=rule, experts=("expert:math",))]).of_arm["a"])
    monkeypatch.delitem(sys.modules, "mine")
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]


def test_a_rule_of_a_notebook_has_the_key_of_its_cell(family, monkeypatch):
    cells = ModuleType("cells")
    monkeypatch.setitem(sys.modules, "cells", cells)
    shell = InteractiveShell(user_module=cells, user_ns=cells.__dict__)

    def key(cell):
        shell.run_cell(cell, store_history=True).raise_error()
        return Keys(family, [Arm("a", rule=cells.Mine(), experts=("expert:math",))]).of_arm["a"]

    half, again = EDITED.format("0.5"), EDITED.format("0.5") + "# a remark\n"
    assert key(half) == key(half)
    assert len({key(half), key(again), key(EDITED.format("1.5"))}) == 3
    shell.run_cell(half).raise_error()
    linecache.cache.clear()
    with pytest.raises(UserError, match="rule Mine: its source cannot be read"):
        Keys(family, [Arm("a", rule=cells.Mine(), experts=("expert:math",))])


def test_answers_to_the_same_request_are_found_whoever_gave_them(tmp_path):
    path = tmp_path / "answers.sqlite"
    answers = {key: replace(ANSWER, tokens=(number,), weights=((0.5,),)) for number, key in enumerate("abcd")}
    with AnswerStore(path) as store:
        store.note({"a": "question", "b": "question", "c": "another"})  # d: as older versions did
        store.put(answers)
        store.put({"scored": Scored((-1.5,), (True,), ())})
        assert set(store.similar(["question", "unasked"], set())["question"]) == {(0,), (1,)}
        assert store.similar(["question", "unasked"], {"a"}) == {"question": ((1,),), "unasked": ()}
        with sqlite3.connect(path) as db:
            db.execute(
                "UPDATE answers SET code = 'older', value = replace(value, 'finish', 'finished') WHERE key = 'a'"
            )
            db.execute("UPDATE answers SET value = replace(value, '[1]', '[7]') WHERE key = 'b'")
        assert store.similar(["question"], set()) == {"question": ()}, "damaged answers are no drafts"
        store.put(answers)
        clear(path, older_than=0)
        assert store.similar(["question"], set()) == {"question": ()}
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM similar").fetchone() == (0,)


def test_a_store_of_an_older_version_gets_the_table_of_what_was_asked(tmp_path):
    path = tmp_path / "answers.sqlite"
    with AnswerStore(path) as store:
        store.put({"a": ANSWER})
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE similar")
    with AnswerStore(path) as store:
        assert store.get(["a"]) == {"a": ANSWER}
        store.note({"a": "question"})
        assert store.similar(["question"], set()) == {"question": (ANSWER.tokens,)}
