"""The report: what a reader finds in it, that nothing in a run can run in it, and how it works in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, RULE, item, items, task, write_items, write_overrides, write_run, write_traces

from proxytune.cli import main
from proxytune.reporting.report import find_runs, write_report

DRAWN = {"g", "path", "text", "tspan", "line", "rect"}
"""Tags of drawings: how many and which attributes they have depends on the numbers."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: install it (Debian: apt install chromium)")


def written(*folders: Path) -> str:
    """The report of the runs in `folders`, as text."""
    path = folders[0] / "report.html"
    write_report(find_runs(folders), path)
    return path.read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a reader sees without a script, tags and runs of blanks removed."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


# --- the page without a script --------------------------------------------------------------------------------------


def test_tables_and_paired_differences_need_no_script(tmp_path: Path):
    shown = text_of(written(write_run(tmp_path, {"sums": items(12)})))
    assert "Score ± standard error" in shown and "proxy 50.0 ± 2.0" in shown
    assert "50.0 [40.0, 60.0]" in shown
    assert "Paired differences" in shown and "+25.0 ± 1.0" in shown
    assert "base + a (expert - antiexpert)" in shown


def test_the_cost_of_each_arm_is_a_table(tmp_path: Path):
    cost = {"seconds": 2.5, "tokens": 50, "weights": 3 * 2**20}
    timings = {"costs": {"sums": {"arms": {"proxy": cost}}}}
    shown = text_of(written(write_run(tmp_path, {"sums": items(4)}, provenance={"timings": timings})))
    assert "weights proxy 2.5 s, 20/s 3 MiB" in shown
    assert "Cost of each arm" not in text_of(written(write_run(tmp_path, {"sums": items(4)})))


def test_a_run_with_a_failed_arm_and_lost_items_says_what_is_missing(tmp_path: Path):
    write_run(
        tmp_path, {"sums": items(4), "words": items(4)}, failed={"sums": {"dynamic": "ValueError: no <b>luck</b>"}}
    )
    (tmp_path / "items" / "words.jsonl").write_text('{"doc_id": 0')
    shown = text_of(written(tmp_path))
    assert "sums: dynamic failed: ValueError: no &lt;b&gt;luck&lt;/b&gt;" in shown
    assert "The items of words are missing" in shown
    (tmp_path / "items" / "words.jsonl").unlink()
    assert "The items of words are missing: there is no" in text_of(written(tmp_path))


def test_a_run_that_was_killed_is_reported_with_the_items_it_has(tmp_path: Path):
    write_items(tmp_path, {"sums": items(4)})
    write_overrides(tmp_path, "limit=4", task={"names": ["sums", "words"]})
    shown = text_of(written(tmp_path))
    assert "This run is not finished: there is no results.json" in shown
    assert "It has items of sums; the run was to evaluate sums, words." in shown
    assert "There are no scores." in shown


def test_items_of_an_earlier_run_in_the_same_folder_are_left_out_and_named(tmp_path: Path):
    write_run(tmp_path, {"sums": items(4)})
    write_items(tmp_path, {"older": items(2)})
    (run,) = find_runs([tmp_path])
    assert list(run.items) == ["sums"]
    assert run.missing == ["Items of tasks that are not in results.json are left out: older."]


def test_a_sweep_is_compared_with_what_differs_first(tmp_path: Path):
    for job, weight in enumerate((0.2, 0.8)):
        folder = write_run(tmp_path / "sweep" / str(job), {"sums": items(4)})
        config = {"arms": {"proxy": {"rule": {"weights": weight}}}, "seed": 0, "output": str(folder)}
        write_overrides(folder, "limit=4", f"arms.proxy.rule.weights={weight}", f"output={folder}", **config)
    write_report(find_runs([tmp_path / "sweep"]), tmp_path / "report.html")
    shown = text_of((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "2 runs" in shown
    assert "key weights=0.2 weights=0.8 arms.proxy.rule.weights 0.2 0.8" in shown
    assert "output" not in shown.partition("Results side by side")[0].partition("What differs")[2]
    assert "sums: Score ± standard error arm weights=0.2 weights=0.8 base" in shown


def test_the_jobs_of_a_sweep_are_in_their_order(tmp_path: Path):
    for job in (10, 2, 1):
        write_run(tmp_path / str(job), {"sums": items(1)})
    assert [run.folder.name for run in find_runs([tmp_path])] == ["1", "2", "10"]


def test_items_of_other_data_are_not_mixed_up(tmp_path: Path):
    from proxytune.reporting.report.samples import samples

    write_run(tmp_path / "a", {"sums": items(2)})
    write_run(tmp_path / "b", {"sums": [item(0, {"base": True}, prompt="Another?"), items(2)[1]]})
    (made,) = samples(find_runs([tmp_path]))
    assert made.arms == [(0, "base"), (0, "tuned"), (0, "proxy"), (1, "base"), (1, "tuned"), (1, "proxy")]
    assert [one["id"] for one in made.items] == ["0", "1", "0~2"]
    assert [cell is not None for cell in made.items[1]["cells"]] == [True] * 6
    assert [cell is not None for cell in made.items[2]["cells"]] == [False] * 3 + [True] + [False] * 2


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_beside_the_run_or_where_it_is_told(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a=1", {"sums": items(2)})
    assert main(["report", "a=1"]) == 0
    assert capsys.readouterr().out == f"Report: {Path('a=1', 'report.html')}\n"
    assert main(["report", "a=1/results.json", "output=deep/er.html"]) == 0
    assert "a=1" in (tmp_path / "deep" / "er.html").read_text(encoding="utf-8")
    assert main(["report", "a=1", "a=1"]) == 0
    assert (tmp_path / "report.html").is_file()


MISTAKES = {
    "nothing": ([], "no run is given"),
    "no folder": (["{here}/none"], "none is not a run: give the folder of a run or of a sweep, or a results.json"),
    "empty folder": (["{here}/empty"], "is not a run: there is no results.json and no items/<task>.jsonl"),
    "another file": (["{here}/file.txt"], "file.txt is not a run"),
    "damaged": (["{here}/damaged"], "is not a results.json of proxytune run"),
    "key": (["{here}", "outptu=x"], "Did you mean 'output'?"),
    "twice": (["{here}", "output=a", "output=b"], "output is given twice: a and b"),
    "no place": (["{here}/run", "output={here}/file.txt/report.html"], "cannot write"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged" / "results.json").write_text("[1]")
    if case == "no place":
        write_run(tmp_path / "run", {"sums": items(1)})
    arguments, said = MISTAKES[case]
    assert main(["report", *(argument.format(here=tmp_path) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("proxytune: ") and error.count("\n") == 1


def test_a_report_needs_neither_torch_nor_transformers(tmp_path: Path):
    write_run(tmp_path, {"sums": items(2)})
    code = "import sys; from proxytune.cli import main; main(['report', sys.argv[1]]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "lm_eval", "hydra"} & set(done.stdout.split())


# --- hostile texts --------------------------------------------------------------------------------------------------


def hostile_run(folder: Path, text: str) -> Path:
    """`text` wherever a run can have one; a record, which pydantic reads, has no halves of characters."""
    plain = text.encode("utf-8", "replace").decode("utf-8")
    rows = [item(0, {"base": True, "tuned": False, "proxy": False}, prompt=text, said=text)]
    rows[0]["target"] = text
    rows[0]["arms"] = {plain if name == "tuned" else name: said for name, said in rows[0]["arms"].items()}
    rows[0]["arms"]["proxy"] = {"output": None, "answer": None, "exact_match": None, "weights": None, "error": text}
    record = task(items(1))
    record["arms"] = {plain if name == "tuned" else name: arm for name, arm in record["arms"].items()}
    record["arms"]["proxy"] |= {"value": None, "undefined": {"value": plain}, "rule": {**RULE, "formula": plain}}
    member = {"identity": plain, "source": {"path": plain}}
    provenance = {"config": {"experiment": plain, plain: plain}, "members": {plain: member}}
    results = {"tasks": {"sums": record}, "failed": {"sums": {"proxy": plain}}, "provenance": provenance}
    write_items(folder, {"sums": rows})
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


class Tags(HTMLParser):
    """The tags of a page with the names of their attributes: `known`."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.known: set[tuple[str, ...]] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in DRAWN:
            self.known.add((tag, *(name for name, _ in attrs)))
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_of_a_run_becomes_part_of_the_page(name: str, tmp_path: Path):
    plain = Tags(written(hostile_run(tmp_path / "plain", "text")))
    page = written(hostile_run(tmp_path / "hostile", HOSTILE[name]))
    assert Tags(page).known <= plain.known
    assert not re.search("[\u200b\u200f\u202e\ufeff\u2028\ud800-\udfff]", page)


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """`opened(file)`: the page, once its samples are there; no error and no request but the file's own by the end."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(20_000)
    requests: list[str] = []
    faults: list[str] = []
    files: list[str] = []

    def open_file(path: Path, fragment: str = "") -> Any:
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url.partition("#")[0]))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))
        files.append(path.resolve().as_uri())
        page.goto(files[-1] + fragment)
        page.wait_for_selector("#samples[data-ready]")
        return page

    yield open_file
    context.close()
    assert (requests, faults) == (files, [])


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run"), {"sums": items(12), "more sums": items(5)})
    written(folder)
    return folder / "report.html"


def listed(page: Any) -> list[str]:
    """The addresses of the items in the list."""
    return page.locator(".row .under > :first-child").all_inner_texts()


def selected(page: Any) -> str:
    return page.locator("#detail h3").evaluate("heading => heading.firstChild.textContent")


@needs_browser
def test_filters_leave_the_items_they_say(opened, report_file: Path):
    page = opened(report_file)
    assert page.inner_text("#count") == "17 of 17 items"
    page.select_option("[name=task]", "sums")
    assert listed(page) == [f"sums / {i}" for i in range(12)]
    page.select_option("[name=arm]", "base")
    page.select_option("[name=outcome]", "right")
    assert listed(page) == [f"sums / {i}" for i in (0, 3, 6, 9)]
    page.select_option("[name=arm]", "*every")
    assert listed(page) == ["sums / 0", "sums / 6"]
    page.select_option("[name=outcome]", "")
    page.select_option("[name=differ]", "score")
    assert listed(page) == [f"sums / {i}" for i in range(12) if i % 6]
    page.locator(".choose summary").click()
    page.uncheck("[name=shown-arm][value=base]")
    assert listed(page) == [f"sums / {i}" for i in (1, 3, 5, 7, 9, 11)]
    assert page.locator(".card h4").all_inner_texts() == ["tuned", "proxy"]
    page.select_option("[name=outcome]", "lost")
    assert page.is_visible("#none") and page.inner_text("#count") == "0 of 17 items"


@needs_browser
def test_search_reads_prompts_references_and_outputs_in_any_case(opened, report_file: Path):
    page = opened(report_file)
    page.fill("#text", "THE NUMBER 11?")
    assert listed(page) == ["sums / 11"]
    page.fill("#text", "not 4")
    assert listed(page) == ["sums / 4", "more sums / 4"]
    page.fill("#text", "")
    assert len(listed(page)) == 17


@needs_browser
def test_keys_move_search_and_help(opened, report_file: Path):
    page = opened(report_file)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    assert selected(page) == "sums / 1"
    assert page.locator(".row[aria-selected=true]").inner_text().endswith("sums / 1")
    page.keyboard.press("/")
    page.keyboard.type("jk?")
    assert page.input_value("#text") == "jk?" and not page.is_visible("#help")
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")


@needs_browser
def test_an_address_leads_to_its_item_and_an_item_has_its_address(opened, report_file: Path):
    page = opened(report_file, "#more%20sums/3")
    assert selected(page) == "more sums / 3"
    page.keyboard.press("k")
    assert page.evaluate("location.hash") == "#more%20sums/2"
    page.fill("#text", "nothing has this")
    page.evaluate("location.hash = '#sums/7'")
    page.locator("#detail h3", has_text="sums / 7").wait_for()
    assert page.input_value("#text") == ""


@needs_browser
def test_an_item_is_copied_as_json(opened, report_file: Path):
    page = opened(report_file, "#sums/2")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#copy")
    page.locator("#said", has_text="Copied").wait_for()
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    assert (copied["task"], copied["id"], copied["target"]) == ("sums", "2", "2")
    assert [answer["arm"] for answer in copied["answers"]] == ["base", "tuned", "proxy"]
    assert copied["answers"][2]["alpha"] == {"math": [1, 0.5, 1.5]}


@needs_browser
def test_choices_stand_with_the_arms_side_by_side(opened, tmp_path: Path):
    row = item(0, {"base": False, "tuned": True})
    row |= {"choices": [" yes", " no"], "target": 1}
    row["arms"]["base"]["output"], row["arms"]["tuned"]["output"] = [-0.5, -1.25], [-3.0, -0.125]
    written(write_run(tmp_path, {"sums": [row]}))
    page = opened(tmp_path / "report.html")
    assert page.locator(".detail td").all_inner_texts() == ["−0.50", "-3", "−1.25", "−0.13"]
    assert page.locator(".detail td.best").all_inner_texts() == ["−0.50", "−0.13"]
    assert page.locator(".detail th.reference").inner_text().strip() == "no"


@needs_browser
def test_the_same_answer_of_several_runs_is_one_card(opened, tmp_path: Path):
    for job, rows in enumerate(
        (items(3), items(3), [item(i, dict.fromkeys(("base", "proxy"), True)) for i in range(3)])
    ):
        write_run(tmp_path / f"run{job}", {"sums": rows})
    write_report(find_runs([tmp_path]), tmp_path / "report.html")
    page = opened(tmp_path / "report.html", "#sums/1")
    assert page.locator(".card h4").all_inner_texts() == ["base", "base", "tuned", "proxy", "proxy"]
    assert page.locator(".card .bar p").first.inner_text() == "run0; run1"


@needs_browser
def test_tokens_are_coloured_and_say_on_hover_what_was_behind_them(opened, tmp_path: Path):
    write_run(tmp_path, {"sums": items(40)})
    write_traces(tmp_path, "sums", ["The", " an\u200bswer", " <b>"], items=(1, 33))
    written(tmp_path)
    page = opened(tmp_path / "report.html", "#sums/33")
    proxy = page.locator(".card[aria-label=proxy] .token")
    assert proxy.all_inner_texts() == ["The", " anU+200Bswer", " <b>"]
    shades = proxy.evaluate_all("tokens => tokens.map((token) => token.className)")
    assert shades == ["token down-3", "token ", "token up-3 changed"]
    proxy.nth(2).hover()
    tip = page.inner_text("#tip")
    for text in ("3 of 3", "α math\n1.250", "p fused\n0.500", "p base\n0.100", "Δ\n+0.400", "another token"):
        assert text in tip
    assert "expert:math likes this 0.750" in tip
    page.locator(".card[aria-label=base] .tokens").focus()
    page.keyboard.press("ArrowRight")
    assert "1 of 3" in page.inner_text("#tip") and "p base\n–" in page.inner_text("#tip")
    page.keyboard.press("Escape")
    assert not page.is_visible("#tip")
    page.evaluate("location.hash = '#sums/2'")
    page.locator("#detail h3", has_text="sums / 2").wait_for()
    assert page.locator(".token:visible").count() == page.locator(".legend .token").count()


@needs_browser
def test_a_mark_of_a_figure_says_its_numbers_on_hover(opened, report_file: Path):
    page = opened(report_file)
    page.locator("#figure-scores [role=graphics-symbol][aria-roledescription=circle]").first.hover()
    assert "arm: base" in page.inner_text("#tip")


@needs_browser
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_shown_and_never_run(name: str, opened, tmp_path: Path):
    text = HOSTILE[name]
    written(hostile_run(tmp_path, text))
    page = opened(tmp_path / "report.html")
    page.fill("#text", "0")
    for frame in page.locator("details").all():
        frame.evaluate("details => details.open = true")
    assert page.evaluate("window.ran") is None
    named = re.sub("[\u200b\u200f\u202e\u202c\ufeff\u2028\ud800-\udfff]", lambda found: f"U+{ord(found[0]):04X}", text)
    assert page.locator("#detail .passage .text").all_inner_texts() == [named, named]
    assert page.locator("#detail .error").inner_text() == named
    plain = re.sub("U\\+D83D", "?", named)
    shown = page.locator("main").inner_text().replace("⟨", "").replace("⟩", "")
    assert shown.count(plain) >= 6


@needs_browser
def test_the_theme_follows_the_system_until_it_is_chosen(opened, report_file: Path):
    page = opened(report_file)
    paper = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(paper)
    assert light != dark
    page.click("#theme")
    assert (page.inner_text("#theme"), page.evaluate(paper)) == ("Theme: light", light)
    page.emulate_media(color_scheme="light")
    page.click("#theme")
    assert page.evaluate(paper) == dark


@needs_browser
@pytest.mark.parametrize("width", [400, 1440])
def test_the_page_is_no_wider_than_the_window(width: int, opened, report_file: Path):
    page = opened(report_file)
    page.set_viewport_size({"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == width


@needs_browser
def test_of_ten_thousand_items_only_the_visible_rows_exist(opened, tmp_path: Path):
    written(write_run(tmp_path, {"sums": items(10_000)}))
    page = opened(tmp_path / "report.html")
    assert page.inner_text("#count") == "10,000 of 10,000 items"
    assert page.locator(".row").count() < 60
    page.locator("#list").focus()
    page.keyboard.press("End")
    assert selected(page) == "sums / 9999"
    assert listed(page)[-1] == "9999"
    page.fill("#text", "not 9998")
    assert listed(page) == ["9998"]
