// An answer token by token: coloured by what the experts changed, with the numbers of a token on hover or by arrow keys.

const STEPS = [0.02, 0.1, 0.3, 0.6];

/** `trace`: {tokens, fused, base, alpha: {expert: []}, changed, top: {role: [[text, probability], ...] per token}}. */
function tokens(trace) {
  const box = make("div", "text tokens", null, { dir: "auto", tabindex: "0", role: "group" });
  box.setAttribute("aria-label", "Tokens; left and right arrows show the details of each");
  trace.tokens.forEach((token, step) => {
    const element = make("span", `token ${shade(delta(trace, step))}`, token);
    if (trace.changed?.[step]) element.classList.add("changed");
    element.addEventListener("pointerenter", () => showTip(element, trace, step));
    element.addEventListener("pointerleave", hideTip);
    box.append(element);
  });
  box.addEventListener("keydown", (event) => walk(event, box, trace));
  box.addEventListener("blur", hideTip);
  return box;
}

function delta(trace, step) {
  const [fused, base] = [trace.fused?.[step], trace.base?.[step]];
  return fused === null || base === null || fused === undefined || base === undefined ? null : fused - base;
}

function shade(value) {
  const level = value === null ? 0 : STEPS.filter((step) => Math.abs(value) >= step).length;
  return level ? `${value > 0 ? "up" : "down"}-${level}` : "";
}

function walk(event, box, trace) {
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!by) return;
  event.preventDefault();
  const all = [...box.querySelectorAll(".token")];
  const now = all.findIndex((element) => element.classList.contains("current"));
  const next = Math.min(Math.max(now + by, 0), all.length - 1);
  showTip(all[next], trace, next);
}

function showTip(element, trace, step) {
  hideTip();
  element.classList.add("current");
  placeTip(element, tipContent(trace, step));
}

/** Shows `content` below `element`, or above it where there is no room. */
function placeTip(element, content) {
  const tip = $("tip");
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = element.getBoundingClientRect();
  const left = Math.min(box.left, window.innerWidth - tip.offsetWidth - 8);
  const below = box.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
}

function hideTip() {
  $("tip").hidden = true;
  for (const element of document.querySelectorAll(".token.current")) element.classList.remove("current");
}

function tipContent(trace, step) {
  const facts = make("dl");
  const fact = (label, text) => facts.append(make("dt", "", label), make("dd", "", text));
  fact("token", `${step + 1} of ${trace.tokens.length}: ${JSON.stringify(trace.tokens[step])}`);
  for (const [expert, values] of Object.entries(trace.alpha ?? {})) fact(`α ${expert}`, number(values[step]));
  fact("p fused", probability(trace.fused?.[step]));
  fact("p base", probability(trace.base?.[step]));
  const change = delta(trace, step);
  fact("Δ", change === null ? "–" : `${change > 0 ? "+" : ""}${change.toFixed(3)}`.replace("-", "−"));
  if (trace.changed?.[step]) fact("", "the base alone would have chosen another token");
  return trace.top ? [facts, topTable(trace.top, step)] : [facts];
}

/** The most probable tokens of each model and of the fused distribution. */
function topTable(top, step) {
  const table = make("table");
  const head = table.createTHead().insertRow();
  const columns = Object.entries(top).filter(([, steps]) => steps[step]?.length);
  for (const [role] of columns) head.append(make("th", "", role, { scope: "col" }));
  const body = table.createTBody();
  for (let rank = 0; rank < Math.max(0, ...columns.map(([, steps]) => steps[step].length)); rank++) {
    const row = body.insertRow();
    for (const [, steps] of columns) {
      const [token, p] = steps[step][rank] ?? ["", null];
      const cell = row.appendChild(make("td"));
      cell.append(make("code", "", token), " ", make("span", "quiet", p === null ? "" : probability(p)));
    }
  }
  return table;
}
