// Parts of the views that a running request and a record share: answers, practice, the gate's decision, seconds.

import { block, compared, el, fill, line } from "./text.js";

const number = (value, digits) =>
  typeof value === "number" && Number.isFinite(value) ? value.toFixed(digits).replace("-", "−") : "—";
const small = (value) => (value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1).replaceAll("-", "−") : number(value, 4));
const share = (value) => (value > 0 && value < 0.0005 ? "under 0.001" : number(value, 3));
const signed = (value) => (value < 0 ? number(value, 3) : `+${number(value, 3)}`);

export const seconds = (value) => (value < 10 ? number(value, 2) : number(value, 1));

export function section(title, ...content) {
  return el("section", { class: "part" }, el("h2", {}, title), ...content.filter(Boolean));
}

// --- answers

// Returns the answers of the unadapted and of the adapted weights side by side, with what only one has marked.
export function answerPair(unadapted, adapted) {
  const found = compared(unadapted, adapted);
  const note = found.same
    ? "Both answers are the same text."
    : "Words that only the unadapted answer has are struck through; words that only the adapted one has are underlined.";
  return [
    el("div", { class: "pair" }, panel("Unadapted weights", found.before), panel("Adapted weights", found.after, true)),
    el("p", { class: "hint" }, note),
  ];
}

export function panel(title, content, chosen = false) {
  const mark = chosen ? el("span", { class: "badge" }, "the answer") : null;
  return el("div", { class: chosen ? "panel chosen" : "panel" }, el("h3", {}, title, mark), content);
}

// --- practice

// Returns the list of practice examples. `learned` is false while their weights are not known.
export function practiceList(practice, learned) {
  if (!practice.length) return el("p", { class: "none" }, "No practice was written.");
  const top = Math.max(...practice.map((one) => one.weight ?? 0), 0);
  const losses = practice.flatMap((one) => [one.loss_before, one.loss_after]).filter((value) => value !== null);
  const most = Math.max(...losses, 0);
  const items = practice.map((one, index) => practiceItem(one, index + 1, { learned, top, most }));
  return el("ol", { class: "practice" }, items);
}

export function practiceWords(practice) {
  const used = practice.filter((one) => !one.rejected).length;
  const problems = practice.length === 1 ? "1 practice problem" : `${practice.length} practice problems`;
  return `${problems}, ${used} usable, ${practice.length - used} rejected`;
}

function practiceItem(one, place, { learned, top, most }) {
  const item = el(
    "li",
    { class: one.rejected ? "example rejected" : "example" },
    exampleHead(one, place, learned),
    ...exampleText(one),
  );
  if (!one.rejected) item.append(measures(one, { learned, top, most }));
  return item;
}

function exampleHead(one, place, learned) {
  const state = one.rejected ? "rejected" : !learned ? "usable" : one.weight ? "used" : "held out";
  const head = el("h3", {}, `${place}`, el("span", { class: `state ${one.rejected ? "bad" : ""}` }, state));
  if (one.rejected) head.append(el("span", { class: "reason" }, line(one.rejected)));
  if (one.attempt) head.append(el("span", { class: "reason" }, "an attempt at the problem itself"));
  if (one.note) head.append(el("span", { class: "reason" }, line(one.note)));
  return head;
}

function exampleText(one) {
  const part = (title, text) => el("div", {}, el("p", { class: "label" }, title), block(text, `${title} of the practice`));
  if (!one.problem && !one.solution) return [part("What the model wrote", one.text ?? "")];
  return [part("Problem", one.problem), part("Solution", one.solution)];
}

function measures(one, { learned, top, most }) {
  if (!learned) return el("p", { class: "measures none" }, "not learned yet");
  const [loss, track] = lossChange(one.loss_before, one.loss_after, most);
  return el(
    "dl",
    { class: "measures" },
    el("div", {}, el("dt", {}, "Weight"), el("dd", { class: "figure" }, share(one.weight)), bar(one.weight ?? 0, top)),
    el("div", {}, el("dt", {}, "Loss"), el("dd", { class: "figure" }, loss), track),
  );
}

function bar(value, most) {
  const inner = el("span", { class: "bar-fill" });
  inner.style.width = `${most > 0 ? (100 * value) / most : 0}%`;
  return el("span", { class: "bar", "aria-hidden": "true" }, inner);
}

function lossChange(before, after, most) {
  if (typeof before !== "number" || typeof after !== "number") return ["—", null];
  const track = el("span", { class: "track", "aria-hidden": "true" });
  const place = (value) => (most > 0 ? (100 * value) / most : 0);
  const path = el("span", { class: after <= before ? "path" : "path rose" });
  path.style.left = `${place(Math.min(before, after))}%`;
  path.style.width = `${place(Math.abs(before - after))}%`;
  const [from, to] = [el("span", { class: "dot from" }), el("span", { class: after <= before ? "dot" : "dot rose" })];
  from.style.left = `${place(before)}%`;
  to.style.left = `${place(after)}%`;
  track.append(path, from, to);
  const change = el("span", { class: after <= before ? "change" : "change rose" }, signed(after - before));
  return [[`${number(before, 3)} → ${number(after, 3)} `, change], track];
}

// --- the gate

// Reasons of the gate's decisions, with their meaning.
export const REASONS = {
  passed: "The update kept to every bound.",
  "certain without practice": "The model was certain of its own answer, so it did not practise.",
  "no valid example": "None of the practice could be used.",
  "non-finite update": "The update was not finite.",
  "exploding update": "The update was too large.",
  "practice unlike the model's own": "The model finds the solutions less likely than what it writes freely: they may have been put into the problem.",
  "no practice likely to the model": "The model found none of the practice likely, as if it had not written it freely.",
  "held-out practice less likely": "Practice that was held out of the update became less likely.",
  "drift on canaries": "The update moved the answers to canary prompts too far.",
  "a refusal was lost": "The adapted weights answered what must be refused.",
};
// Reasons to fall back that the gate has no part in.
export const WITHOUT_GATE = {
  deadline: "The deadline passed before the practice was learned.",
  failed: "The practice failed; the server's log says why.",
  stopping: "The server was stopping.",
};

const MEASURES = {
  certainty: ["Certainty of the unadapted answer", "mean log-probability of its tokens; 0 is certain", "certainty", "practise below"],
  update_norm: ["Size of the update", "norm of the change over the norm of the start", "", ""],
  surprise: ["Surprise of the practice", "loss of the solutions in the eyes of their writer, nats per token", "max_surprise", "at most"],
  least_loss: ["Likeliest practice", "the smallest loss of an example before the update, nats per token", "max_least_loss", "at most"],
  held_out_rise: ["Rise of the loss on held-out practice", "after a trial update on the rest, nats per token; below 0 it fell", "max_rise", "at most"],
  drift: ["Drift on canary prompts", "KL divergence from the unadapted answers, nats per token", "max_drift", "at most"],
};

// Returns the gate's decision and its measures, with their bounds where a record has them.
export function gatePart(gate, fallback, bounds = {}) {
  const reason = fallback || gate?.reason;
  const content = [decision(reason, fallback)];
  const names = Object.keys(gate?.measures ?? {});
  if (names.length) content.push(el("div", { class: "scroll" }, measureTable(gate.measures, names, bounds)));
  return section("The gate", ...content);
}

function decision(reason, fallback) {
  const who = fallback ? "The unadapted weights answered" : "The adapted weights answered";
  if (!reason) return el("p", { class: "decision" }, `${who}; nothing was asked of the gate.`);
  const meaning = REASONS[reason] ?? WITHOUT_GATE[reason];
  const hint = meaning ? el("span", { class: "hint" }, meaning) : null;
  return el("p", { class: "decision" }, `${who}: `, el("strong", {}, line(reason)), ". ", hint);
}

function measureTable(values, names, bounds) {
  const bounded = names.some((name) => typeof bounds[MEASURES[name]?.[2]] === "number");
  const head = ["Measure", "Value", ...(bounded ? ["Bound"] : [])].map((text) => el("th", { scope: "col" }, text));
  const rows = names.map((name) => {
    const [title, meaning, bound, relation] = MEASURES[name] ?? [name, "", "", ""];
    const limit = bounds[bound];
    const shown = typeof limit === "number" ? `${relation} ${number(limit, 2)}` : "—";
    const label = el("th", { scope: "row" }, line(title), meaning ? el("span", { class: "hint" }, meaning) : null);
    return el("tr", {}, label, el("td", {}, small(values[name] ?? Number.NaN)), bounded ? el("td", {}, shown) : null);
  });
  return el("table", { class: "figures" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows));
}

// --- seconds and tokens

export function stagePart(secondsBy, tokensBy) {
  const total = secondsBy.total;
  const names = [...new Set([...Object.keys(secondsBy), ...Object.keys(tokensBy)])].filter((name) => name !== "total");
  const overlap = "unadapted answer" in secondsBy;
  const most = Math.max(...names.map((name) => secondsBy[name] ?? 0), total ?? 0);
  const tokens = Object.values(tokensBy).reduce((sum, value) => sum + value, 0);
  const row = (name, value, count, kind) =>
    el(
      "tr",
      { class: kind },
      el("th", { scope: "row" }, line(name)),
      el("td", { class: "wide" }, value === undefined ? null : bar(value, most)),
      el("td", {}, value === undefined ? "—" : seconds(value)),
      el("td", {}, count === undefined ? "—" : String(count)),
    );
  const head = ["Stage", "", "Seconds", "Tokens"].map((text) => (text ? el("th", { scope: "col" }, text) : el("td", {})));
  return section(
    "Seconds and tokens",
    el(
      "div",
      { class: "scroll" },
      el(
        "table",
        { class: "figures stages-table" },
        el("thead", {}, el("tr", {}, head)),
        el("tbody", {}, names.map((name) => row(name, secondsBy[name], tokensBy[name]))),
        el("tfoot", {}, row("total", total, tokens, "total")),
      ),
    ),
    overlap ? el("p", { class: "hint" }, "Stages overlap: the unadapted answer is sampled beside the practice.") : null,
  );
}

// --- facts

// Returns pairs of a name and a value as a list. Values are nodes, or foreign text.
export function facts(pairs) {
  const list = el("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value === null || value === undefined || value === "") continue;
    const shown = value instanceof Node ? value : fill(el("bdi", {}), String(value));
    list.append(el("div", { class: shown.textContent.length > 30 && "long" }, el("dt", {}, name), el("dd", {}, shown)));
  }
  return list;
}

export function json(title, value) {
  return el("details", {}, el("summary", {}, title), block(JSON.stringify(value, null, 2), title));
}

// --- was it right?

// Returns two buttons that keep a verdict; the pressed one takes it back. `save` stores it and returns what is kept.
export function verdictPart(right, save) {
  const said = el("span", { class: "hint", role: "status" });
  const choices = [["Yes", true], ["No", false]].map(([text, value]) => [value, el("button", { type: "button" }, text)]);
  let kept = right;
  const show = () => {
    for (const [value, button] of choices) button.setAttribute("aria-pressed", String(kept === value));
  };
  for (const [value, button] of choices) {
    button.addEventListener("click", async () => {
      try {
        kept = await save(kept === value ? null : value);
        said.textContent = kept === null ? "Taken back." : "Kept in the record.";
      } catch (error) {
        said.textContent = error.message;
      }
      show();
    });
  }
  show();
  const buttons = choices.map(([, button]) => button);
  return el("div", { class: "verdict", role: "group", "aria-label": "Was it right?" }, el("span", {}, "Was it right?"), buttons, said);
}
