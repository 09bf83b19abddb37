// The view of past adaptations: what the address asks for is listed, so that a list can be kept, shared and gone back to.

import { call } from "./api.js";
import { REASONS, WITHOUT_GATE } from "./parts.js";
import { el, line } from "./text.js";

const $ = (id) => document.getElementById(id);
const PAGE_SIZE = 25;
const FIELDS = ["text", "model", "adapted", "gate", "fallback", "right", "cursor"];

let asked = 0;

export function startHistory() {
  const option = (value, text) => el("option", { value }, text);
  $("f-why").append(
    option("", "any"),
    el("optgroup", { label: "of the gate" }, Object.keys(REASONS).map((reason) => option(`gate:${reason}`, reason))),
    el("optgroup", { label: "without the gate" }, Object.keys(WITHOUT_GATE).map((reason) => option(`fallback:${reason}`, reason))),
  );
  $("filters").addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = addressOf(chosen());
  });
  for (const select of $("filters").querySelectorAll("select")) {
    select.addEventListener("change", () => $("filters").requestSubmit());
  }
}

export function offerFilterModels(models) {
  const names = models.filter((one) => one.parent && one.id !== "default").map((one) => one.id);
  $("f-model").replaceChildren(el("option", { value: "" }, "any"), ...names.map((name) => el("option", { value: name }, name)));
}

function chosen() {
  const found = new URLSearchParams();
  const form = new FormData($("filters"));
  for (const name of ["text", "model", "adapted", "right"]) {
    const value = form.get(name)?.trim();
    if (value) found.set(name, value);
  }
  const [kind, reason] = (form.get("why") ?? "").split(/:(.*)/s);
  if (reason) found.set(kind, reason);
  return found;
}

const addressOf = (query) => (query.size ? `#/adaptations?${query}` : "#/adaptations");

export async function showHistory(query) {
  const wanted = known(query);
  const ticket = ++asked;
  say("Reading the records.");
  fail("");
  try {
    const found = await call(`/v1/mass/adaptations?limit=${PAGE_SIZE}&${wanted}`);
    if (ticket === asked) showList(found, wanted);
  } catch (error) {
    if (ticket !== asked) return;
    say("");
    $("filters").hidden = error.code === "records_off";
    $("list").replaceChildren(...(error.code === "records_off" ? [recordsOff()] : []));
    if (error.code !== "records_off") fail(error.message);
  }
}

function known(query) {
  const found = new URLSearchParams();
  for (const name of FIELDS) if (query.get(name)) found.set(name, query.get(name));
  return found;
}

// Shows in the form what the address asks for.
export function showFilters(query) {
  const form = $("filters").elements;
  for (const name of ["text", "adapted", "right"]) form[name].value = query.get(name) ?? "";
  choose(form.model, query.get("model") ?? "");
  const gate = query.get("gate") && `gate:${query.get("gate")}`;
  choose(form.why, gate || (query.get("fallback") && `fallback:${query.get("fallback")}`) || "");
  $("clear").hidden = !filters(query);
}

const filters = (query) => [...known(query).keys()].some((name) => name !== "cursor");

// Chooses a value of a select, one that it does not have yet included: a record may name a model of before.
function choose(select, value) {
  if (![...select.options].some((one) => one.value === value)) select.append(el("option", { value }, value.replace(/^\w+:/, "")));
  select.value = value;
}

function showList(found, query) {
  $("filters").hidden = false;
  const filtered = filters(query);
  const later = query.has("cursor");
  say(found.data.length ? `${found.data.length} ${found.data.length === 1 ? "record" : "records"} on this page, newest first.` : "");
  $("list").replaceChildren(
    ...(found.data.length ? [table(found.data)] : [empty(filtered, later)]),
    pages(found, query),
  );
}

function empty(filtered, later) {
  const text = later
    ? "There are no older records."
    : filtered
      ? "No past adaptation matches. Clear the filters, or change them."
      : "Nothing has been recorded yet. Ask a problem, and its adaptation is listed here.";
  return el("p", { class: "empty" }, text);
}

function recordsOff() {
  return el("p", { class: "empty" }, "This server keeps no records. Start it with ", el("code", {}, "mass serve --records FOLDER"), " to keep one of each adaptation.");
}

function table(entries) {
  const titles = ["Problem", "Time", "Model", "Weights", "Decision", "Right?"];
  const head = el("tr", {}, titles.map((text) => el("th", { scope: "col" }, text)));
  return el("table", { class: "list" }, el("thead", {}, head), el("tbody", {}, entries.map(row)));
}

function row(one) {
  const cell = (title, ...content) => el("td", { "data-title": title }, ...content);
  const why = one.fallback ?? one.gate;
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, el("a", { href: `#/adaptations/${encodeURIComponent(one.id)}` }, line(one.problem, 120))),
    cell("Time", time(one.time)),
    cell("Model", line(one.model)),
    cell("Weights", one.adapted ? "adapted" : "unadapted"),
    cell("Decision", why ? line(why) : "none"),
    cell("Right?", { true: "yes", false: "no" }[one.right] ?? "—"),
  );
}

export function time(stamp) {
  const date = new Date(stamp * 1000);
  const two = (value) => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const text = `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return el("time", { datetime: date.toISOString() }, text);
}

function pages(found, query) {
  const first = new URLSearchParams(query);
  first.delete("cursor");
  const next = new URLSearchParams(first);
  if (found.cursor) next.set("cursor", found.cursor);
  return el(
    "nav",
    { class: "pages", "aria-label": "Pages" },
    query.has("cursor") ? el("a", { href: addressOf(first) }, "Newest") : null,
    found.cursor ? el("a", { href: addressOf(next) }, "Older") : null,
  );
}

const say = (text) => ($("history-status").textContent = text);

function fail(text) {
  $("history-error").textContent = text;
  $("history-error").hidden = !text;
}
