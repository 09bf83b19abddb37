// The view of one record: all that is in it, and what can be done with it: replay, judge, download, delete.

import { call } from "./api.js";
import { time } from "./history.js";
import { answerPair, facts, gatePart, json, panel, practiceList, practiceWords, section, stagePart, verdictPart } from "./parts.js";
import { block, el, line, plain } from "./text.js";

const $ = (id) => document.getElementById(id);
// Fields of a record that have a place of their own; all others are listed at the end.
const SHOWN = new Set(
  "answer examples fallback gate problem seconds seed text tokens unadapted_text update_norm".split(" "),
);
const ROOT = "/v1/mass/adaptations";

let shownId = null;

export async function showRecord(id) {
  shownId = id;
  $("entry").replaceChildren();
  $("record-title").textContent = "Adaptation";
  say("Reading the record.");
  fail("");
  try {
    const found = await call(`${ROOT}/${encodeURIComponent(id)}`);
    if (shownId !== id) return;
    say("");
    show(found);
  } catch (error) {
    if (shownId !== id) return;
    say("");
    fail(error.message);
  }
}

function show(found) {
  const record = found.record;
  $("record-title").replaceChildren(line(found.problem, 90));
  document.title = `${plain(found.problem)} · MASS`;
  $("entry").replaceChildren(
    summary(found),
    actions(found),
    section("Problem", block(record.problem, "Problem")),
    answers(found),
    gatePart(record.gate, record.fallback, record.config?.gate),
    practice(record),
    stagePart(record.seconds, record.tokens),
    request(found.request),
    rest(found),
  );
}

function summary(found) {
  const { record } = found;
  return facts([
    ["Time", time(found.time)],
    ["Model", found.model],
    ["Checkpoint", found.checkpoint],
    ["Answered by", found.adapted ? "adapted weights" : "unadapted weights"],
    ["Decision", found.fallback ?? found.gate ?? "none"],
    ["Final answer", record.answer],
    ["Seed", record.seed],
    ["Update norm", typeof record.update_norm === "number" ? record.update_norm.toPrecision(4) : null],
    ["Record", el("code", {}, found.id)],
  ]);
}

function answers({ adapted, record }) {
  if (adapted && record.unadapted_text !== null) return section("Answers", ...answerPair(record.unadapted_text, record.text));
  const title = adapted ? "Adapted weights" : "Unadapted weights";
  return section("Answer", panel(title, block(record.text, "Answer"), true));
}

function practice(record) {
  const examples = record.examples ?? [];
  if (!examples.length) return section("Practice", el("p", { class: "none" }, "No practice is in this record."));
  const learned = examples.some((one) => typeof one.loss_after === "number");
  return section(
    "Practice",
    el("p", { class: "hint" }, `${practiceWords(examples)}.`),
    practiceList(examples, learned),
    json("All fields of the practice, with tokens and scores", examples),
  );
}

function request(asked) {
  if (!asked) return el("div");
  const { messages, ...options } = asked;
  const parts = (messages ?? []).map((one) => el("div", { class: "panel" }, el("h3", {}, line(one.role)), block(one.text, "Message")));
  return section("Request", ...parts, json("Options of the request", options));
}

function rest(found) {
  const other = Object.entries(found.record).filter(([name]) => !SHOWN.has(name));
  const single = other.filter(([, value]) => value === null || typeof value !== "object");
  const nested = other.filter(([, value]) => value !== null && typeof value === "object");
  return section(
    "Everything else",
    facts([["Checkpoint's hash", code(found.checkpoint_hash)], ...single.map(([name, value]) => [title(name), value === null || value === "" ? "none" : code(value)])]),
    ...nested.map(([name, value]) => json(title(name), value)),
    json("The whole record as JSON", found),
  );
}

const code = (value) => el("code", {}, line(String(value), 400));
const title = (name) => name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");

// --- what can be done with it

function actions(found) {
  const replayed = el("div", { class: "replayed" });
  const replay = el("button", { type: "button" }, "Replay");
  replay.addEventListener("click", () => replayIt(found, replay, replayed));
  const download = el("button", { type: "button" }, "Download JSON");
  download.addEventListener("click", () => save(found.id));
  const remove = el("button", { type: "button", class: "quiet" }, "Delete");
  remove.addEventListener("click", () => deleteIt(found.id));
  const keep = async (right) => {
    const path = `${ROOT}/${encodeURIComponent(found.id)}/verdict`;
    return (await call(path, { method: "POST", body: { right } })).right;
  };
  return el(
    "div",
    { class: "actions" },
    el("div", { class: "afterwards" }, verdictPart(found.right, keep), el("div", { class: "buttons" }, replay, download, remove)),
    replayed,
  );
}

async function replayIt(found, button, place) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true");
  say("Replaying: the same practice is learned again.");
  fail("");
  try {
    const again = await call(`${ROOT}/${encodeURIComponent(found.id)}/replay`, { method: "POST" });
    if (shownId !== found.id) return;
    say(again.same ? "Replayed: the same text, character for character." : "Replayed: the text is another one.");
    place.replaceChildren(...(again.same ? [] : [section("Replay", ...replayPair(again))]));
  } catch (error) {
    if (shownId !== found.id) return;
    say("");
    fail(error.message);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

function replayPair({ recorded, text }) {
  return [el("div", { class: "pair" }, panel("Recorded", block(recorded, "Recorded answer")), panel("Replayed", block(text, "Replayed answer")))];
}

async function save(id) {
  fail("");
  try {
    const found = await call(`${ROOT}/${encodeURIComponent(id)}`);
    const address = URL.createObjectURL(new Blob([`${JSON.stringify(found, null, 2)}\n`], { type: "application/json" }));
    el("a", { href: address, download: `${id}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  } catch (error) {
    fail(error.message);
  }
}

async function deleteIt(id) {
  if (!(await confirmed())) return;
  fail("");
  try {
    await call(`${ROOT}/${encodeURIComponent(id)}`, { method: "DELETE" });
    location.hash = "#/adaptations";
  } catch (error) {
    fail(error.message);
  }
}

function confirmed() {
  const dialog = $("confirm");
  return new Promise((resolve) => {
    dialog.returnValue = "";
    $("confirm-yes").onclick = () => dialog.close("yes");
    $("confirm-no").onclick = () => dialog.close("");
    dialog.onclose = () => resolve(dialog.returnValue === "yes");
    dialog.showModal();
  });
}

const say = (text) => ($("record-status").textContent = text);

function fail(text) {
  $("record-error").textContent = text;
  $("record-error").hidden = !text;
}
