"use strict";
// What the page does. Its cases are in the HTML already; names and numbers of all of them are in the element "data".

const data = JSON.parse(document.getElementById("data").textContent);
const [cases, list] = [data.cases, document.getElementById("cases")];
const [search, flagged, kind, structure, rating, sort, turn, outlines, large, file, status, tally] =
  ["search", "flagged", "kind", "structure", "rating", "sort", "turn", "outlines", "large", "file", "status", "tally"]
    .map((id) => document.getElementById(id));
const text = new Intl.Collator(undefined, { numeric: true });
const shown = (node) => !node.hidden;
const bar = document.getElementById("bar");
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;

for (const node of list.children) {
  const one = cases[node.dataset.case];
  one.node = node;
  one.words = `${one.subject} ${one.session} ${one.name}`.toLowerCase();
}
const caseOf = (node) => cases[node.dataset.case];

// ---- ratings: by name, so that they outlive the page; a Map, because a name may be anything

const KEY = `brainseg_jax.qc.${data.id}`;
const nothing = { rating: "", comment: "" };
let ratings = new Map();

function recall() {
  try {
    ratings = new Map(JSON.parse(localStorage.getItem(KEY) || "[]"));
  } catch {
    ratings = new Map();
  }
  cases.forEach(show);
  count();
}

function remember() {
  try {
    localStorage.setItem(KEY, JSON.stringify([...ratings]));
  } catch {
    status.value = "This browser does not keep ratings: save them before you leave.";
  }
  count();
}

const rated = (one) => ratings.get(one.name) || nothing;

function rate(one, change) {
  const now = { ...rated(one), ...change };
  if (now.rating || now.comment) ratings.set(one.name, now);
  else ratings.delete(one.name);
  show(one);
}

function show(one) {
  const now = rated(one);
  if (now.rating) one.node.dataset.rating = now.rating;
  else delete one.node.dataset.rating;
  for (const button of one.node.querySelectorAll("button[data-rating]"))
    button.setAttribute("aria-pressed", button.dataset.rating === now.rating);
  one.node.querySelector("input").value = now.comment;
}

function count() {
  const by = (wanted) => cases.filter((one) => rated(one).rating === wanted).length;
  const visible = [...list.children].filter(shown).length;
  tally.textContent = [
    `${visible === cases.length ? "" : `${visible} of `}${plural(cases.length, "case")}`,
    `${cases.filter((one) => one.flags.length).length} flagged`,
    ...data.ratings.map((name) => `${by(name)} ${name}`),
    `${by("")} not rated`,
  ].join(" · ");
}

// ---- ratings as a file

const COLUMNS = ["name", "subject", "session", "rating", "comment", "score", "flags"];

function save() {
  // An apostrophe before what a spreadsheet would compute; numbers stay numbers.
  const cell = (value) => String(value).replace(/[\t\r\n]+/g, " ").replace(/^(?=[=+\-@＝＋－＠])(?![+-]?[\d.]+$)/, "'");
  const lines = cases.map((one) => {
    const kinds = [...new Set(one.flags.map(([name]) => name))].join(",");
    const row = { ...one, rating: rated(one).rating, comment: rated(one).comment.trim(), flags: kinds };
    return COLUMNS.map((name) => cell(row[name])).join("\t");
  });
  const content = `${[COLUMNS.join("\t"), ...lines].join("\n")}\n`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "text/tab-separated-values" }));
  link.download = `${data.title.replace(/[^\p{L}\p{N}]+/gu, "_").slice(0, 60)}_ratings.tsv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  status.value = `${link.download} saved`;
}

async function load(chosen) {
  const [header, ...lines] = (await chosen.text()).replace(/^\ufeff/, "").split(/\r?\n/).filter(Boolean).map((line) => line.split("\t"));
  const at = ["name", "rating", "comment"].map((name) => (header || []).indexOf(name));
  if (at[0] < 0 || at[1] < 0) {
    status.value = `${chosen.name} has no columns name and rating; choose a file that was saved here`;
    return;
  }
  const known = new Map(cases.map((one) => [one.name, one]));
  let [taken, strange] = [0, 0];
  for (const cells of lines) {
    const [name, given, comment] = at.map((i) => (cells[i] || "").replace(/^'(?=[=+\-@＝＋－＠])/, ""));
    if (!given && !comment) continue;
    if (known.has(name) && (!given || data.ratings.includes(given))) {
      rate(known.get(name), { rating: given, comment });
      taken += 1;
    } else strange += 1;
  }
  remember();
  status.value = `${plural(taken, "rating")} loaded${strange ? `, ${plural(strange, "line")} fit no case here` : ""}`;
}

// ---- which cases are shown, and in which order

function filter() {
  const words = search.value.trim().toLowerCase();
  const wanted = (one) =>
    one.words.includes(words) &&
    (!flagged.checked || one.flags.length > 0) &&
    ((!kind.value && !structure.value) ||
      one.flags.some(([name, n]) => (!kind.value || name === kind.value) && (!structure.value || n === Number(structure.value)))) &&
    (!rating.value || (rated(one).rating || "none") === rating.value);
  for (const one of cases) one.node.hidden = !wanted(one);
  count();
  toFirst();
}

// What a case is sorted by: a text, or a number, or null, which always comes last.
const KEYS = {
  score: (one) => -one.score,
  subject: (one) => `${one.subject} ${one.session} ${one.name}`,
  rating: (one) => (rated(one).rating ? -data.ratings.indexOf(rated(one).rating) : null),
};

function order() {
  const [by, n] = sort.value.split("/");
  const column = { ml: 0, z: 2 }[by];
  const key = KEYS[by] || ((one) => one.values[n][column]);
  const sign = turn.getAttribute("aria-pressed") === "true" ? -1 : 1;
  const compare = (a, b) => (typeof a === "string" ? text.compare(a, b) : a - b);
  const sorted = cases.map((one, i) => [key(one), i, one]);
  sorted.sort(([a, i], [b, j]) => (a === null) - (b === null) || (a === null ? 0 : sign * compare(a, b)) || i - j);
  list.append(...sorted.map(([, , one]) => one.node));
  for (const one of cases) {
    const value = column === undefined ? null : one.values[n][column];
    one.node.querySelector(".value").textContent =
      column === undefined ? "" : `${data.structures[n][0]} ${value === null ? "–" : by === "z" ? `z ${signed(value)}` : `${value} ml`}`;
  }
  toFirst();
}

const toFirst = () => scrollTo(0, Math.min(scrollY, list.offsetTop - bar.offsetHeight));

const signed = (value) => (value === null ? "" : `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(1)}`);

function options(parent, entries) {
  for (const [value, words] of entries) parent.append(new Option(words, value));
}

options(kind, data.kinds.filter((name) => cases.some((one) => one.flags.some(([own]) => own === name))).map((name) => [name, name]));
options(structure, data.structures.map(([name], n) => [n, name]));
options(rating, data.ratings.map((name) => [name, name]));
for (const [by, label] of [["ml", "volume"], ["z", "z, scaled"]]) {
  if (!cases.some((one) => one.values.some((row) => row[by === "ml" ? 0 : 2] !== null))) continue;
  const group = document.createElement("optgroup");
  group.label = label;
  options(group, data.structures.map(([name], n) => [`${by}/${n}`, `${name}, ${by}`]));
  sort.append(group);
}

// ---- volumes: made when they are unfolded

list.addEventListener("toggle", (event) => {
  const details = event.target;
  if (!details.matches(".volumes") || !details.open || details.querySelector("table")) return;
  const one = caseOf(details.closest("article"));
  const heads = ["", "ml", "z", "z, scaled", "soft ml"].slice(0, one.values[0].length + 1);
  const table = document.createElement("table");
  const head = table.createTHead().insertRow();
  for (const words of heads) {
    const th = document.createElement("th");
    th.scope = "col";
    th.textContent = words;
    head.append(th);
  }
  const body = table.createTBody();
  one.values.forEach((values, n) => {
    const row = body.insertRow();
    const th = document.createElement("th");
    th.scope = "row";
    const swatch = document.createElement("i");
    swatch.style.background = data.structures[n][1] || "none";
    th.append(swatch, data.structures[n][0]);
    row.append(th);
    values.forEach((value, column) => {
      const cell = row.insertCell();
      const deviation = column === 1 || column === 2;
      cell.textContent = deviation ? signed(value) : value === null ? "" : value;
      if (deviation && Math.abs(value) > data.z) cell.className = "far";
    });
  });
  details.append(table);
}, true);

// ---- which case the keys are for

let current = null;

function choose(one) {
  if (current) current.node.removeAttribute("aria-current");
  current = one;
  one.node.setAttribute("aria-current", "true");
}

function go(one) {
  choose(one);
  one.node.focus({ preventScroll: true });
  one.node.scrollIntoView({ block: "start" });
}

// The chosen case if it can be seen, else the first that can: keys never change what is out of sight.
function inSight() {
  const top = bar.getBoundingClientRect().bottom;
  const seen = (node) => shown(node) && node.getBoundingClientRect().bottom > top + 20 && node.getBoundingClientRect().top < innerHeight - 20;
  const node = current && seen(current.node) ? current.node : [...list.children].find(seen);
  return node && caseOf(node);
}

function step(by) {
  const visible = [...list.children].filter(shown);
  const at = current && shown(current.node) && inSight() === current ? visible.indexOf(current.node) + by : visible.indexOf(inSight()?.node);
  if (visible[at]) go(caseOf(visible[at]));
}

function withCase(action) {
  const one = inSight();
  if (!one) return;
  choose(one);
  action(one);
}

const click = (box) => () => box.click();
const ACTIONS = {
  j: () => step(1),
  k: () => step(-1),
  0: () => withCase((one) => { rate(one, { rating: "" }); remember(); }),
  c: () => withCase((one) => one.node.querySelector("input").focus()),
  v: () => withCase((one) => one.node.querySelector(".volumes summary").click()),
  o: click(outlines),
  l: click(large),
  "/": () => search.focus(),
};
data.ratings.forEach((name, i) => {
  ACTIONS[i + 1] = () => withCase((one) => { rate(one, { rating: name }); remember(); });
});

// ---- what people do

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=checkbox]), select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!Object.hasOwn(ACTIONS, event.key)) return;
  event.preventDefault();
  ACTIONS[event.key]();
});

list.addEventListener("click", (event) => {
  const node = event.target.closest("article");
  if (!node) return;
  const one = caseOf(node);
  choose(one);
  const given = event.target.closest("button[data-rating]")?.dataset.rating;
  if (!given) return;
  rate(one, { rating: rated(one).rating === given ? "" : given });
  remember();
});
list.addEventListener("input", (event) => {
  rate(caseOf(event.target.closest("article")), { comment: event.target.value });
  remember();
});

search.addEventListener("input", filter);
for (const box of [flagged, kind, structure, rating]) box.addEventListener("change", filter);
sort.addEventListener("change", order);
turn.addEventListener("click", () => {
  const up = turn.getAttribute("aria-pressed") !== "true";
  turn.setAttribute("aria-pressed", up);
  turn.textContent = up ? "↑" : "↓";
  order();
});
outlines.addEventListener("change", () => document.body.classList.toggle("bare", !outlines.checked));
large.addEventListener("change", () => document.body.classList.toggle("large", large.checked));
document.getElementById("save").addEventListener("click", save);
document.getElementById("load").addEventListener("click", () => file.click());
file.addEventListener("change", async () => {
  if (file.files[0]) await load(file.files[0]);
  file.value = "";
});
bar.addEventListener("submit", (event) => event.preventDefault());
addEventListener("storage", (event) => { if (event.key === KEY) recall(); }); // rated in another tab
new ResizeObserver(() => document.documentElement.style.setProperty("--bar", `${bar.offsetHeight + 8}px`)).observe(bar);

recall();
