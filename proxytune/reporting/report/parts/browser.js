// The list of items, of which only the visible rows exist, the filters and the keyboard.

const ROW = 46;
const STRIP = 20;
const shown = { runs: new Set(RUNS.keys()), arms: new Set(HEADS.tasks.flatMap(({ arms }) => arms.map(([, arm]) => arm))) };
const filter = { task: "", arm: "*any", outcome: "", differ: "", text: "" };
let all = [];
let kept = [];
let at = -1;

function refilter() {
  const current = kept[at];
  kept = all.filter((entry) => keeps(entry, filter, shown));
  $("count").textContent = `${kept.length.toLocaleString("en")} of ${all.length.toLocaleString("en")} items`;
  $("rows").style.height = `${kept.length * ROW}px`;
  $("none").hidden = kept.length > 0;
  select(Math.max(0, kept.indexOf(current)), { quietly: true });
}

function drawList() {
  const list = $("list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
  const last = Math.min(kept.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
  const rows = [];
  for (let index = first; index < last; index++) rows.push(row(index));
  $("rows").replaceChildren(...rows);
  if (at >= 0) list.setAttribute("aria-activedescendant", `row-${at}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(index) {
  const { head, item } = kept[index];
  const element = make("div", "row", null, {
    role: "option", id: `row-${index}`, "aria-selected": index === at, "aria-setsize": kept.length, "aria-posinset": index + 1,
  });
  element.style.top = `${index * ROW}px`;
  element.append(make("div", "lead", oneLine(item.prompt.slice(head.lead)), { dir: "auto" }));
  const line = make("div", "under");
  line.append(make("span", "", HEADS.tasks.length > 1 ? `${head.task} / ${item.id}` : item.id), strip(kept[index]));
  element.append(line);
  element.addEventListener("click", () => select(index));
  return element;
}

/** A mark for each shown arm, and how many are right. */
function strip(entry) {
  const results = cells(entry, shown).map(({ cell }) => outcome(entry.head, cell));
  const right = results.filter((result) => result === "right").length;
  const line = make("span", "strip", null, { role: "img", "aria-label": `${right} of ${results.length} arms right` });
  if (results.length <= STRIP) line.append(...results.map(mark));
  else if (entry.head.judged) line.append(`${right}/${results.length}`);
  return line;
}

/** Shows an item; `quietly` leaves the address and the page's position as they are. */
async function select(index, { quietly = false } = {}) {
  at = kept.length ? Math.min(Math.max(index, 0), kept.length - 1) : -1;
  if (at >= 0) reveal();
  drawList();
  const entry = kept[at];
  if (entry && !quietly) {
    history.replaceState(null, "", address(entry));
    $("samples").scrollIntoView({ block: "nearest" });
  }
  if (entry) await addTraces(entry);
  if (entry === kept[at]) drawDetail(entry);
}

function drawDetail(entry) {
  hideTip();
  $("detail").replaceChildren(...(entry ? [drawItem(entry, shown)] : []));
  $("detail").scrollTop = 0;
  const actions = { copy, previous: KEYS.k, next: KEYS.j };
  for (const [id, act] of Object.entries(actions)) $(id)?.addEventListener("click", act);
}

/** Scrolls the list as far as needed; an item that is far away comes to its middle. */
function reveal() {
  const list = $("list");
  const above = list.scrollTop - at * ROW;
  const below = (at + 1) * ROW - list.scrollTop - list.clientHeight;
  if (Math.max(above, below) > 10 * ROW) list.scrollTop = at * ROW - list.clientHeight / 2;
  else if (above > 0) list.scrollTop -= above;
  else if (below > 0) list.scrollTop += below;
}

/** Goes to the item of the address; filters that hide it are lifted. Other addresses are the page's own. */
function follow() {
  const index = () => kept.findIndex((entry) => address(entry) === location.hash);
  if (!location.hash.includes("/") || !all.some((entry) => address(entry) === location.hash)) return;
  if (index() < 0) clear();
  $("samples").scrollIntoView();
  return select(index(), { quietly: true });
}

function clear() {
  $("filters").reset();
  readFilters();
}

function readFilters() {
  const form = new FormData($("filters"));
  for (const name of ["task", "arm", "outcome", "differ"]) filter[name] = form.get(name) ?? filter[name];
  filter.text = form.get("text").trim().toLowerCase();
  if (form.has("choosing")) {
    shown.arms = new Set(form.getAll("shown-arm"));
    if (RUNS.length > 1) shown.runs = new Set(form.getAll("shown-run").map(Number));
  }
  refilter();
}

async function copy() {
  const { head, item } = kept[at];
  const answers = head.arms.map(([run, arm], column) => ({ run: RUNS[run], arm, ...item.cells[column] }));
  const { cells: _, traced: __, ...rest } = item;
  const text = JSON.stringify({ task: head.task, metric: head.metric, ...rest, answers }, null, 2);
  try {
    await navigator.clipboard.writeText(text);
    say("Copied");
  } catch {
    say("The browser does not allow copying");
  }
}

function say(text) {
  $("said").textContent = text;
  setTimeout(() => ($("said").textContent = ""), 2000);
}

const KEYS = {
  j: () => select(at + 1),
  k: () => select(at - 1),
  c: () => at >= 0 && copy(),
  "/": () => $("text").focus(),
  "?": () => $("help").showModal(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const typing = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape") {
    hideTip();
    if (typing) event.target.blur();
  } else if (!typing && KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

function onListKey(event) {
  const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  event.preventDefault();
  select(at + steps[event.key]);
}

async function start() {
  all = await entries();
  $("filters").addEventListener("input", readFilters);
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("list").addEventListener("scroll", drawList, { passive: true });
  $("list").addEventListener("keydown", onListKey);
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", follow);
  window.addEventListener("resize", drawList);
  $("filters").reset();
  readFilters();
  await follow();
  $("samples").dataset.ready = "";
}

if ($("list")) start();
