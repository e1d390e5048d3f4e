// One item: prompt, reference and what each arm said, side by side.

function drawItem(entry, shown) {
  const { head, item } = entry;
  const seen = cells(entry, shown);
  const article = make("article", "item");
  article.append(title(entry), passage("Prompt", item.prompt, cutNote(item)), passage("Reference", reference(item)));
  if (!seen.length) article.append(make("p", "quiet", "No arm that is shown has an answer to this item."));
  else if (item.choices) article.append(choices(entry, seen));
  else article.append(cards(entry, seen));
  return article;
}

function title(entry) {
  const bar = make("header", "bar");
  const heading = make("h3", "", `${entry.head.task} / ${entry.item.id}`);
  heading.append(make("a", "permalink", "#", { href: address(entry), "aria-label": "Link to this item" }));
  const button = (id, text, label, key) => make("button", "", text, { type: "button", id, title: `${label} (${key})`, "aria-label": label });
  bar.append(heading, button("previous", "‹", "Previous item", "k"), button("next", "›", "Next item", "j"));
  bar.append(button("copy", "Copy as JSON", "Copy as JSON", "c"));
  return bar;
}

function cutNote(item) {
  return item.cut ? `${item.cut} tokens were cut off its beginning` : null;
}

function reference(item) {
  const { target, choices } = item;
  return choices && Number.isInteger(target) && target in choices ? choices[target] : said(target);
}

function passage(label, text, note = null) {
  const section = make("section", "passage");
  section.append(make("h4", "", label), make("div", "text", text, { dir: "auto", tabindex: "0", "aria-label": label }));
  if (note) section.append(make("p", "quiet", note));
  return section;
}

/** Where several runs have the same answer of an arm, one card stands for them. */
function cards(entry, seen) {
  const groups = new Map();
  for (const { run, arm, cell } of seen) {
    const key = JSON.stringify([arm, cell.output, cell.value, cell.error, cell.alpha, cell.trace]);
    if (!groups.has(key)) groups.set(key, { arm, cell, runs: [] });
    groups.get(key).runs.push(run);
  }
  const order = [...new Set(seen.map(({ arm }) => arm))];
  const sorted = [...groups.values()].sort((a, b) => order.indexOf(a.arm) - order.indexOf(b.arm));
  const grid = make("div", "cards");
  grid.append(...sorted.map((group) => card(entry, group)));
  return grid;
}

function card(entry, { arm, cell, runs }) {
  const result = outcome(entry.head, cell);
  const box = make("section", `card ${result}`, null, { "aria-label": arm });
  box.append(cardTitle(arm, cell, result, runs));
  if (cell.error !== undefined) box.append(make("p", "error", cell.error));
  else box.append(output(cell));
  if (cell.answer !== undefined) box.append(labelled("read as", said(cell.answer)));
  if (cell.alpha) box.append(labelled("α", alphas(cell.alpha)));
  return box;
}

function cardTitle(arm, cell, result, runs) {
  const bar = make("header", "bar");
  bar.append(mark(result), make("h4", "", arm));
  const worth = result === "partial" || result === "valued" ? number(cell.value) : WORDS[result];
  bar.append(make("span", "worth", worth));
  if (RUNS.length > 1) bar.append(make("p", "quiet", runNames(runs)));
  return bar;
}

function runNames(runs) {
  return runs.length === RUNS.length ? `all ${RUNS.length} runs` : runs.map((run) => RUNS[run]).join("; ");
}

function mark(result) {
  return make("i", `mark ${result}`, null, { title: WORDS[result], "aria-hidden": "true" });
}

function output(cell) {
  if (cell.trace) return tokens(cell.trace);
  const text = said(cell.output);
  return text ? make("div", "text", text, { dir: "auto" }) : make("div", "text quiet", "(empty)");
}

function labelled(label, text) {
  const line = make("p", "labelled");
  line.append(make("span", "quiet", label), " ", make("span", "", text));
  return line;
}

/** Mean of each expert's weight, and its range where it moved. */
function alphas(alpha) {
  const names = Object.keys(alpha);
  const one = (range) => {
    if (range === null) return "–";
    const [mean, least, most] = range.map((value) => number(value, 2));
    return least === most ? mean : `${mean} (${least} to ${most})`;
  };
  return names.map((name) => (names.length > 1 ? `${name} ${one(alpha[name])}` : one(alpha[name]))).join(" · ");
}

/** Log-probability of each choice: choices down, arms across. */
function choices({ head, item }, seen) {
  const frame = make("div", "frame choices", null, { tabindex: "0", role: "region", "aria-label": "Log-probabilities" });
  const table = frame.appendChild(make("table"));
  table.append(make("caption", "", "Log-probability of each choice; in bold, each arm's highest. The reference is marked ▸."));
  const top = table.createTHead().insertRow();
  top.append(make("th", "", "choice", { scope: "col" }));
  for (const { run, arm, cell } of seen) top.append(choiceHead(head, run, arm, cell));
  const body = table.createTBody();
  item.choices.forEach((choice, index) => {
    const row = body.insertRow();
    row.append(make("th", index === item.target ? "reference" : "", choice.trim(), { scope: "row", dir: "auto" }));
    for (const { cell } of seen) row.append(choiceCell(cell, index));
  });
  return frame;
}

function choiceHead(head, run, arm, cell) {
  const result = outcome(head, cell);
  const cellHead = make("th", "", null, { scope: "col" });
  for (const part of arm.split(/(?<=_)/)) cellHead.append(visible(part), document.createElement("wbr"));
  if (RUNS.length > 1) cellHead.append(make("small", "", RUNS[run]));
  const worth = cellHead.appendChild(make("small"));
  worth.append(mark(result), visible(cell.error ?? (result === "partial" ? number(cell.value) : WORDS[result])));
  return cellHead;
}

function choiceCell(cell, index) {
  const values = Array.isArray(cell.output) ? cell.output : [];
  const highest = values[index] === Math.max(...values);
  return make("td", highest ? "best" : "", number(values[index], 2));
}
