// The samples of all tasks, which of them a filter keeps, and what an arm's answer is worth.

const HEADS = JSON.parse(document.getElementById("heads").textContent);
const RUNS = HEADS.runs;

/** The content of a packed block: base64 of gzipped JSON. */
async function unpack(id) {
  const binary = atob(document.getElementById(id).textContent.trim());
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

/** Every item of every task: {head, item, number of the task, place in the task}. */
async function entries() {
  const items = await Promise.all(HEADS.tasks.map((_, number) => unpack(`items-${number}`)));
  return HEADS.tasks.flatMap((head, number) => items[number].map((item, place) => ({ head, item, number, place })));
}

const PART = 32;
const parts = new Map();

/** Puts the traces of the item's answers, if there are any, into its cells. */
async function addTraces({ head, item, number, place }) {
  if (!head.traced || item.traced) return;
  const id = `traces-${number}-${Math.floor(place / PART)}`;
  if (!parts.has(id)) parts.set(id, unpack(id));
  const { texts, traces } = await parts.get(id);
  for (const [column, trace] of Object.entries(traces[place] ?? {})) {
    const tops = Object.entries(trace.top ?? {}).map(([model, steps]) => [model, steps.map((step) => pairs(step, texts))]);
    item.cells[column].trace = { ...trace, tokens: trace.tokens.map((token) => texts[token]), top: Object.fromEntries(tops) };
  }
  item.traced = true;
}

/** [place of a text, p, place of a text, p, ...] as [[text, p], ...]. */
function pairs(flat, texts) {
  return flat.flatMap((entry, index) => (index % 2 ? [] : [[texts[entry], flat[index + 1]]]));
}

function outcome(head, cell) {
  if (cell.error !== undefined) return "failed";
  if (cell.value === null) return "unjudged";
  if (!head.judged) return "valued";
  return cell.value >= 1 ? "right" : cell.value <= 0 ? "wrong" : "partial";
}

const WORDS = {
  right: "right", wrong: "wrong", partial: "in between", failed: "failed", unjudged: "not judged", valued: "scored",
};

/** The item's cells of the arms and runs that are shown: {run, arm, cell}. */
function cells({ head, item }, shown) {
  const all = head.arms.map(([run, arm], column) => ({ run, arm, cell: item.cells[column] }));
  return all.filter(({ run, arm, cell }) => cell !== null && shown.runs.has(run) && shown.arms.has(arm));
}

function keeps(entry, filter, shown) {
  if (filter.task && entry.head.task !== filter.task) return false;
  if (filter.text && !haystack(entry).includes(filter.text)) return false;
  if (!filter.outcome && !filter.differ) return true;
  const seen = cells(entry, shown);
  return hasOutcome(entry, seen, filter) && (!filter.differ || differ(seen, filter.differ));
}

function hasOutcome(entry, seen, { arm, outcome: wanted }) {
  if (!wanted) return true;
  const those = arm === "*any" || arm === "*every" ? seen : seen.filter((one) => one.arm === arm);
  const matches = ({ cell }) => {
    const found = outcome(entry.head, cell);
    return wanted === "lost" ? found === "failed" || found === "unjudged" : found === wanted;
  };
  return arm === "*every" ? those.length > 0 && those.every(matches) : those.some(matches);
}

function differ(seen, what) {
  const worth = ({ cell }) => (what === "score" ? number(cell.value) : JSON.stringify(cell.output));
  return new Set(seen.map(worth)).size > 1;
}

/** The item's whole text in lower case, kept once it was asked for. */
function haystack(entry) {
  const { item } = entry;
  entry.text ??= [item.prompt, said(item.target), ...(item.choices ?? []), ...item.cells.map(texts)].join("\n").toLowerCase();
  return entry.text;
}

function texts(cell) {
  if (cell === null) return "";
  return [cell.output, cell.answer, cell.error].filter((part) => part !== undefined && part !== null).map(said).join("\n");
}

function address({ head, item }) {
  return `#${[head.task, item.id].map((part) => encodeURIComponent(part.toWellFormed())).join("/")}`;
}
