// Text as text: nothing below is ever parsed as HTML, and characters that cannot be seen get a label.

const $ = (id) => document.getElementById(id);
const UNSEEN = /(?![\n\t])[\p{Cc}\p{Cf}\p{Cs}\u2028\u2029]/gu;

/** An element with a class, text and attributes. */
function make(tag, className = "", text = null, attributes = {}) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== null) element.append(visible(text));
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** `text` with a label for each character that cannot be seen or that changes the direction of its neighbours. */
function visible(text) {
  const fragment = document.createDocumentFragment();
  let end = 0;
  text = String(text);
  for (const match of text.matchAll(UNSEEN)) {
    fragment.append(text.slice(end, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const label = document.createElement("span");
    label.className = "unseen";
    label.textContent = `U+${code}`;
    fragment.append(label);
    end = match.index + match[0].length;
  }
  fragment.append(text.slice(end));
  return fragment;
}

/** Text on one line, for the list. */
function oneLine(text, length = 160) {
  return text.slice(0, 4 * length).replace(/\s+/g, " ").trim().slice(0, length);
}

/** What an arm or a target says, as text: a text itself, anything else as JSON. */
function said(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return Number.isInteger(value) ? String(value) : value.toFixed(digits).replace("-", "−");
}

function probability(value) {
  if (value === null || value === undefined) return "–";
  return value > 0 && value < 0.001 ? "<0.001" : value.toFixed(3);
}
