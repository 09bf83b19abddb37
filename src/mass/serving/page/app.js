// The page: which view the address asks for, the key, and what the server has to offer.

import { call, key, onKeyRefused, wantsKey } from "./api.js";
import { offerModels, startAsk } from "./ask.js";
import { offerFilterModels, showFilters, showHistory, startHistory } from "./history.js";
import { showRecord } from "./record.js";

const $ = (id) => document.getElementById(id);
const VIEWS = { ask: "Ask a problem", history: "Past adaptations", record: "Adaptation" };
const AGAIN_S = 2;

let keepsRecords = false;
let connected = false;
let connecting = 0;
let lastHistory = "#/adaptations";

// --- views

function route() {
  const [path, query = ""] = location.hash.replace(/^#/, "").split(/\?(.*)/s);
  const parts = path.split("/").filter(Boolean);
  if (parts[0] !== "adaptations") return ["ask"];
  return parts.length > 1 ? ["record", decoded(parts[1])] : ["history", new URLSearchParams(query)];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function show(moves) {
  const [view, detail] = route();
  for (const name of Object.keys(VIEWS)) $(name).hidden = name !== view;
  document.title = `${VIEWS[view]} · MASS`;
  for (const link of document.querySelectorAll("nav [data-view]")) {
    const here = link.dataset.view === view || (link.dataset.view === "history" && view === "record");
    if (here) link.setAttribute("aria-current", view === "record" ? "true" : "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "history") {
    lastHistory = location.hash;
    showFilters(detail);
  }
  $("back").href = lastHistory;
  load();
  // The focus follows to the new view, but a list that was only filtered keeps it where it was.
  if (moves && !$(view).contains(document.activeElement)) $(`${view}-title`).focus();
}

// Reads what the view shows, once the server answers.
function load() {
  const [view, detail] = route();
  if (connected && view === "history") showHistory(detail);
  if (connected && view === "record") showRecord(detail);
}

// --- the server

async function connect() {
  const ticket = ++connecting;
  try {
    const models = (await call("/v1/models")).data;
    if (ticket !== connecting) return;
    trouble("");
    offerModels(models);
    offerFilterModels(models);
    keepsRecords = await recordsKept();
    $("key-open").hidden = !(key.get() || (await wantsKey()));
    connected = true;
    load();
  } catch (error) {
    if (ticket !== connecting) return;
    trouble(error.status === 503 ? "The server is loading its model. This page goes on by itself." : error.message);
    if (error.status === 503) setTimeout(() => ticket === connecting && connect(), 1000 * (error.retryS ?? AGAIN_S));
  }
}

async function recordsKept() {
  try {
    await call("/v1/mass/adaptations?limit=1");
    return true;
  } catch (error) {
    if (error.code === "records_off") return false;
    throw error;
  }
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// --- the key

function showKeyForm(yes) {
  $("key-form").hidden = !yes;
  $("key-open").setAttribute("aria-expanded", String(yes));
  $("key-forget").hidden = !key.get();
}

function startKey() {
  $("key-open").addEventListener("click", () => {
    showKeyForm($("key-form").hidden);
    if (!$("key-form").hidden) $("key").focus();
  });
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    use($("key").value.trim());
  });
  $("key-forget").addEventListener("click", () => use(""));
  onKeyRefused(() => {
    $("key-open").hidden = false;
    if (!$("key-form").hidden) return;
    showKeyForm(true);
    $("key").focus();
  });
}

function use(value) {
  if (!/^[\x21-\x7e]*$/.test(value)) {
    trouble("A key has letters, digits and signs of ASCII only. Enter it again.");
    return;
  }
  key.set(value);
  $("key").value = "";
  showKeyForm(false);
  $("key-open").focus();
  trouble("");
  connect();
}

startAsk(() => keepsRecords);
startHistory();
startKey();
addEventListener("hashchange", () => show(true));
show(false);
connect();
