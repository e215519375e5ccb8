"use strict";
// The page's script. Texts of models and environments only ever become text nodes, by `make`.

const listing = JSON.parse(document.getElementById("listing").textContent);
const NAMES = ["run", "step", "id", "type", "success", "reason", "total", "turns", "gap", "size", "start"];
const episodes = listing.episodes.map((values, index) =>
  Object.assign({ index }, Object.fromEntries(NAMES.map((name, i) => [name, values[i]]))));
const severalRuns = listing.runs.length > 1;
const ROW = 54; // pixels, as in page.css
const TELLING = 0.1; // nats: a gap that is worth a jump

const byId = (id) => document.getElementById(id);
const state = { shown: [], open: [], colour: "gap", cursor: null };

/** An element with properties, and children that are elements or texts. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== "").map((c) => c instanceof Node ? c : String(c)));
  return element;
}

const known = (value) => typeof value === "number";
const number = (value, digits = 2) => known(value) ? value.toFixed(digits) : "–";
const signed = (value, digits = 3) => known(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits) : "–";
const mean = (values) => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
const place = (e) => [severalRuns ? listing.runs[e.run] : null, known(e.step) ? `step ${e.step}` : e.step].filter((t) => t !== null).join(" · ");
const outcome = (e) => make("span", { className: e.success ? "won" : "lost" }, e.success ? "✓ won" : `✗ ${e.reason || "not won"}`);

const loaded = new Promise((done) => document.addEventListener("DOMContentLoaded", done));

/** What the page has under a name; the data stands behind this script, so that the list is there first. */
async function unpack(id) {
  if (!byId(id)) await loaded;
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

// The list

const FILTERS = {
  run: ["All runs", (e) => listing.runs[e.run]],
  step: ["All steps", (e) => known(e.step) ? `Step ${e.step}` : e.step],
  success: ["Won and not", (e) => e.success ? "Won" : "Not won"],
  type: ["All task types", (e) => e.type || "(no type)"],
  reason: ["All stop reasons", (e) => e.reason || "(no reason)"],
};
const ORDERS = {
  "In order": null,
  "Highest return first": (a, b) => (b.total ?? 0) - (a.total ?? 0),
  "Most turns first": (a, b) => b.turns - a.turns,
  "Largest gaps first": (a, b) => (b.size ?? 0) - (a.size ?? 0),
  "By task": (a, b) => a.id < b.id ? -1 : a.id > b.id ? 1 : a.index - b.index,
};

function fillFilters() {
  for (const [name, [all, label]] of Object.entries(FILTERS)) {
    const counts = new Map();
    for (const episode of episodes) counts.set(label(episode), (counts.get(label(episode)) ?? 0) + 1);
    const select = byId(name);
    select.append(make("option", { value: "" }, all));
    for (const [text, count] of counts) select.append(make("option", { value: text }, `${text} (${count})`));
    select.hidden = name === "run" && !severalRuns;
    select.onchange = filter;
  }
  for (const name of Object.keys(ORDERS)) byId("sort").append(make("option", { value: name }, name));
  byId("sort").onchange = byId("search").oninput = filter;
}

function filter() {
  const wanted = Object.entries(FILTERS).filter(([name]) => byId(name).value).map(([name, [, label]]) => [label, byId(name).value]);
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (e) => `${e.id} ${e.type} ${e.start}`.toLowerCase();
  state.shown = episodes.filter((e) => wanted.every(([label, value]) => label(e) === value) && (!words.length || words.every((w) => text(e).includes(w))));
  const order = ORDERS[byId("sort").value];
  if (order) state.shown.sort(order);
  const won = state.shown.filter((e) => e.success).length;
  byId("count").textContent = `${state.shown.length} of ${episodes.length} episodes` +
    (state.shown.length ? `, ${(100 * won / state.shown.length).toFixed(0)}% won` : "");
  byId("list").scrollTop = 0;
  drawRows();
}

/** Only the rows that can be seen are there. */
function drawRows() {
  const list = byId("list"), rows = byId("rows");
  rows.style.height = `${state.shown.length * ROW}px`;
  const first = Math.max(0, Math.floor(list.scrollTop / ROW) - 5);
  const last = Math.min(state.shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 5);
  rows.replaceChildren(...state.shown.slice(first, last).map((episode, i) => {
    const chosen = state.open.includes(episode.index);
    const row = make("div", { className: chosen ? "row chosen" : "row", role: "option", id: `row${episode.index}`, ariaSelected: String(chosen) },
      make("div", {}, outcome(episode), ` ${number(episode.total)}  ${episode.id || episode.start || "(no task id)"}`),
      make("div", { className: "meta" }, [place(episode), episode.type, `${episode.turns} turns`,
        known(episode.gap) ? `gap ${signed(episode.gap)}` : null].filter(Boolean).join(" · ")));
    row.style.top = `${(first + i) * ROW}px`;
    row.onclick = () => show([episode.index]);
    return row;
  }));
  list.setAttribute("aria-activedescendant", state.open.length ? `row${state.open[0]}` : "");
}

function reveal(index) {
  const position = state.shown.findIndex((e) => e.index === index), list = byId("list");
  if (position < 0) return;
  if (position * ROW < list.scrollTop) list.scrollTop = position * ROW;
  if ((position + 1) * ROW > list.scrollTop + list.clientHeight) list.scrollTop = (position + 1) * ROW - list.clientHeight;
}

// What is open is in the address, as #3 or #3+17, so that back and bookmarks work

function show(indices, replace = false) {
  const hash = indices.length ? `#${indices.join("+")}` : "#";
  state.open = indices; // the next key may come before the address has changed
  if (replace) location.replace(hash);
  else location.hash = hash;
}

async function follow() {
  const wanted = location.hash.slice(1).split("+").filter((part) => /^\d+$/.test(part)).map(Number).filter((i) => i < episodes.length);
  state.open = [...new Set(wanted)].slice(0, 2);
  const open = state.open;
  hideTip();
  document.body.classList.toggle("reading", open.length > 0);
  const panes = byId("panes");
  panes.classList.toggle("two", open.length > 1);
  const made = await Promise.all(open.map(makePane));
  if (open !== state.open) return; // another was chosen meanwhile
  panes.replaceChildren(...(made.length ? made : [make("p", { className: "empty" }, "Choose an episode. Press ? for keys.")]));
  state.cursor = null;
  reveal(open[0]);
  drawRows();
}

const sameTask = (index) => episodes[index].id ? episodes.filter((e) => e.id === episodes[index].id) : [episodes[index]];

function move(by) {
  const at = state.shown.findIndex((e) => e.index === state.open[0]);
  const next = state.shown[at < 0 ? 0 : Math.min(Math.max(at + by, 0), state.shown.length - 1)];
  if (!next) return;
  const other = episodes[state.open[1]]; // its like stays beside
  const beside = other && sameTask(next.index).find((e) => e.index !== next.index && e.run === other.run && e.step === other.step);
  show(beside ? [next.index, beside.index] : [next.index], true);
}

/** The next episode of the same task beside the first; those of other runs and steps come first. */
function compare() {
  if (!state.open.length) return;
  const first = episodes[state.open[0]], alike = (e) => Number(place(e) === place(first));
  const others = sameTask(first.index).filter((e) => e !== first).sort((a, b) => alike(a) - alike(b) || a.index - b.index).map((e) => e.index);
  if (others.length) show([state.open[0], others[(others.indexOf(state.open[1]) + 1) % others.length]], true);
}

// An episode

async function makePane(index, side) {
  const entry = episodes[index], episode = await unpack(`e${index}`), context = await unpack(`c${episode.context}`);
  const same = sameTask(index);
  const details = Object.entries({ ...episode.task, ...episode.info }).filter(([name]) => !["task_id", "task_type", "success"].includes(name));
  const close = make("button", { title: "Close (x)", ariaLabel: "Close" }, "×");
  close.onclick = () => show(state.open.filter((i) => i !== index));
  return make("article", { tabIndex: -1, ariaLabel: `Episode ${entry.id}` },
    make("div", { className: "top" }, make("h2", {}, entry.id || "Episode"), close),
    make("div", { className: "meta" }, outcome(entry), ` · ${[place(entry), entry.type, `return ${number(entry.total)}`,
      `${entry.turns} turns`, known(entry.gap) ? `mean gap ${signed(entry.gap)}` : null].filter(Boolean).join(" · ")}`),
    details.length ? make("div", { className: "meta" }, details.map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`).join(" · ")) : null,
    same.length > 1 ? sameTaskButtons(same, index, side) : null,
    make("div", { className: context || episode.student_context ? "body taught" : "body" },
      context || episode.student_context ? teacherPart(episode, context) : null,
      make("div", {}, ...conversation(episode))));
}

function sameTaskButtons(same, index, side) {
  const groups = Map.groupBy(same.slice(0, 64), (e) => place(e) || "episodes");
  const button = (e) => {
    const made = make("button", { title: "Side by side (b)", ariaCurrent: String(e.index === index) }, make("span", { className: e.success ? "won" : "lost" }, e.success ? "✓" : "✗"), ` ${number(e.total)}`);
    made.onclick = () => { if (e.index !== index) show(side ? [state.open[0], e.index] : [index, e.index]); };
    return made;
  };
  return make("div", { className: "same", role: "group", ariaLabel: "Episodes of this task" },
    make("span", { className: "meta" }, "Same task:"),
    ...[...groups].map(([name, entries]) => make("span", {}, make("span", { className: "meta" }, name), ...entries.map(button))),
    same.length > 64 ? make("span", { className: "meta" }, `and ${same.length - 64} more`) : null);
}

function teacherPart(episode, context) {
  const title = context ? "What the teacher read" : "Skills that the policy itself read";
  const names = (episode.skills ?? []).length ? `: ${episode.skills.join(", ")}` : "";
  const wide = !byId("panes").classList.contains("two") && innerWidth > 760;
  return make("aside", { className: "teacher" },
    make("details", { open: wide }, make("summary", {}, title + names), make("pre", {}, context || episode.student_context)));
}

function conversation(episode) {
  const label = (...parts) => make("div", { className: "label" }, ...parts.map((part) => part instanceof Node ? part : make("span", {}, part)));
  const read = (text) => make("div", { className: "read", tabIndex: 0 }, text);
  const parts = (Array.isArray(episode.prompt) ? episode.prompt : []).map((message) =>
    make("div", { className: "turn" }, label(make("strong", {}, message.role ?? "")), read(textOf(message.content))));
  episode.turns.forEach((turn, index) => {
    const told = [make("strong", {}, `turn ${index + 1}`)];
    const gaps = (turn.gaps ?? []).filter(known), losses = (turn.losses ?? []).filter(known);
    if (turn.reward) told.push(`reward ${number(turn.reward)}`);
    if (turn.valid === false) told.push(make("span", { className: "bad" }, "no legal action"));
    if (gaps.length) told.push(`gap ${signed(mean(gaps))}`);
    if (losses.length) told.push(`sdar loss ${signed(losses.reduce((a, b) => a + b, 0))}`);
    for (const [name, value] of Object.entries(turn.metrics ?? {})) told.push(`${name} ${known(value) ? +value.toFixed(3) : value}`);
    if (known(turn.generation_seconds)) told.push(`${number(turn.generation_seconds)} s, environment ${number(turn.environment_seconds)} s`);
    parts.push(make("div", { className: "turn" },
      index > 0 && turn.observation ? read(turn.observation) : null, label(...told), said(turn)));
  });
  if (episode.feedback) parts.push(make("div", { className: "turn" }, label(make("strong", {}, "at the end")), read(episode.feedback)));
  if (episode.error) parts.push(make("div", { className: "turn" }, label(make("strong", { className: "bad" }, "error")), make("div", { className: "plain" }, episode.error)));
  return parts;
}

const textOf = (content) => typeof content === "string" ? content : JSON.stringify(content);

// Tokens

function said(turn) {
  if (!Array.isArray(turn.tokens)) // written without their texts
    return make("div", { className: "said" }, turn.response ?? "");
  const box = make("div", { className: "said" });
  turn.tokens.forEach((text, i) => {
    const span = make("span", { className: text === "" ? "t part" : "t", tabIndex: -1 }, text === "" ? "·" : text.replaceAll("\n", "↵\n"));
    const at = (name) => turn[name]?.[i];
    span.token = { text, id: at("response_ids"), logp: at("logprobs"), gap: at("gaps"), gate: at("gates"), entropy: at("entropies"), loss: at("losses") };
    paint(span);
    box.append(span);
  });
  return box;
}

/** From less to more: a gap of one nat, or a gate of 0 or 1, has the full colour. */
function paint(span) {
  const { gap, gate } = span.token;
  const value = state.colour === "gap" ? gap : known(gate) ? 2 * gate - 1 : null;
  const share = known(value) ? Math.round(75 * Math.sqrt(Math.min(1, Math.abs(value)))) : 0;
  span.style.backgroundColor = share > 2 ? `color-mix(in srgb, var(--${value > 0 ? "more" : "less"}) ${share}%, transparent)` : "";
}

function setColour(name) {
  state.colour = name;
  const gap = name === "gap";
  byId("colour").textContent = `Colour: ${name}`;
  byId("low").textContent = gap ? "gap −1" : "gate 0";
  byId("high").textContent = gap ? "+1 nat" : "1";
  for (const span of document.querySelectorAll(".t")) paint(span);
}

function showTip(span) {
  const { text, id, logp, gap, gate, entropy, loss } = span.token, tip = byId("tip");
  const teacher = known(logp) && known(gap) ? logp + gap : null;
  const chance = (value) => known(value) ? `${signed(value)} (p ${number(Math.exp(value), 3)})` : "–";
  const rows = [["token id", id ?? "–"], ["student log-prob", chance(logp)], ["teacher log-prob", chance(teacher)], ["gap (nats)", signed(gap)],
    ["entropy (nats)", number(entropy, 3)], ["gate", number(gate, 3)], ["adds to sdar/loss", signed(loss, 4)]];
  tip.replaceChildren(make("code", {}, text === "" ? "(part of the character before)" : JSON.stringify(text)),
    make("table", {}, ...rows.map(([name, value]) => make("tr", {}, make("th", {}, name), make("td", {}, value)))));
  tip.hidden = false;
  const box = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${below ? box.bottom + 6 : Math.max(8, box.top - tip.offsetHeight - 6)}px`;
}

const hideTip = () => { byId("tip").hidden = true; };

/** The token after the one that has the cursor; the next with a telling gap, if only those are wanted. */
function step(by, telling) {
  const pane = state.cursor?.closest("article") ?? document.querySelector("article");
  if (!pane) return;
  const tokens = [...pane.querySelectorAll(".t")];
  let at = tokens.indexOf(state.cursor);
  do at = at < 0 && by < 0 ? tokens.length - 1 : at + by;
  while (telling && tokens[at] && !(Math.abs(tokens[at].token.gap) >= TELLING));
  tokens[at]?.focus();
}

for (const [event, act] of [["pointerover", showTip], ["focusin", (span) => { state.cursor = span; showTip(span); }], ["click", (span) => span.focus()]])
  byId("panes").addEventListener(event, ({ target }) => { if (target.token) act(target); });
byId("panes").addEventListener("pointerout", ({ target }) => { if (target.token && target !== document.activeElement) hideTip(); });
byId("panes").addEventListener("focusout", hideTip);
byId("panes").addEventListener("scroll", () => document.activeElement.token ? showTip(document.activeElement) : hideTip(), true);

// Keys

const KEYS = {
  "j": ["next episode", () => move(1)],
  "k": ["episode before", () => move(-1)],
  "b": ["beside it, the next of the same task", compare],
  "x": ["close the one beside", () => show(state.open.slice(0, 1), true)],
  "n": [`next token with a gap of at least ${TELLING} nats`, () => step(1, true)],
  "p": ["the one before", () => step(-1, true)],
  "ArrowRight": ["next token", () => step(1)],
  "ArrowLeft": ["token before", () => step(-1)],
  "c": ["colour by gap or by gate", () => setColour(state.colour === "gap" ? "gate" : "gap")],
  "t": ["dark or light", switchTheme],
  "/": ["search", () => byId("search").focus()],
  "Escape": ["back to the list", () => { show([]); byId("list").focus(); }],
  "?": ["these keys", () => byId("keys").showModal()],
};

function switchTheme() {
  const root = document.documentElement.style;
  const dark = root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = dark ? "light" : "dark";
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("keys").open) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const name = event.target === byId("list") ? ({ ArrowDown: "j", ArrowUp: "k" })[event.key] ?? event.key : event.key;
  if (!Object.hasOwn(KEYS, name)) return;
  event.preventDefault();
  KEYS[name][1]();
});

byId("keys").append(make("table", {}, ...Object.entries(KEYS).map(([key, [text]]) =>
  make("tr", {}, make("td", {}, make("kbd", {}, key.replace("Arrow", ""))), make("td", {}, text)))), make("form", { method: "dialog" }, make("button", {}, "Close")));
byId("keys").onclick = ({ target }) => { if (target.tagName !== "TABLE") byId("keys").close(); };
byId("help").onclick = KEYS["?"][1];
byId("back").onclick = KEYS.Escape[1];
byId("colour").onclick = KEYS.c[1];
byId("theme").onclick = switchTheme;
byId("list").addEventListener("scroll", drawRows);
addEventListener("resize", drawRows);
addEventListener("hashchange", follow);
fillFilters();
setColour("gap");
filter();
follow();
