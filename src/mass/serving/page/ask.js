// The view that asks a problem and shows, as the server tells it, what is practised, learned and answered.

import { ApiError, call, stream } from "./api.js";
import { answerPair, gatePart, panel, practiceList, practiceWords, seconds, section, stagePart, verdictPart } from "./parts.js";
import { el, fill } from "./text.js";

const $ = (id) => document.getElementById(id);
const STAGES = [["writing", "Practice written"], ["learning", "Practice learned"], ["answering", "Answered"]];

let models = [];
let keepsRecords = () => false;
let running = null;

export function startAsk(recordsKept) {
  keepsRecords = recordsKept;
  $("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  $("problem").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask-form").requestSubmit();
  });
  $("stop").addEventListener("click", () => running?.controller.abort());
  $("model").addEventListener("change", showModel);
  for (const radio of document.getElementsByName("adapt")) radio.addEventListener("change", showModel);
}

export function offerModels(found) {
  models = found;
  const chosen = $("model").value || "default";
  $("model").replaceChildren(...found.map((one) => el("option", { value: one.id }, one.id)));
  if (found.some((one) => one.id === chosen)) $("model").value = chosen;
  showModel();
}

const PRACTISES = {
  auto: "Practises unless the model is certain of its answer.",
  always: "Practises; what was learned is still checked.",
  never: "The unadapted weights answer at once.",
};

function showModel() {
  const one = chosenModel();
  const plain = isPlain(one);
  $("adapt").disabled = plain;
  $("adapt-hint").textContent = plain ? "This model does not practise." : PRACTISES[wish()];
  $("model-hint").textContent = describe(one);
}

function describe(one) {
  if (!one) return "";
  if (one.id === "default") return `Stands for ${one.parent}.`;
  return one.parent ? `${one.parent} after practice.` : "Answers plainly, with the base's weights.";
}

const chosenModel = () => models.find((one) => one.id === $("model").value);
const wish = () => document.querySelector("input[name=adapt]:checked").value;

// `default` has for its parent the model that it stands for, which may be the plain base.
function isPlain(one) {
  if (one?.id === "default") return isPlain(models.find((other) => other.id === one.parent));
  return one !== undefined && !one.parent;
}

function requestBody() {
  const mass = { include: ["practice"] };
  if (!isPlain(chosenModel())) mass.adapt = wish();
  if ($("steps").value !== "") mass.steps = Number($("steps").value);
  if ($("deadline").value !== "") mass.deadline_s = Number($("deadline").value);
  const body = {
    model: $("model").value,
    messages: [{ role: "user", content: $("problem").value }],
    stream: true,
    mass,
  };
  if ($("seed").value !== "") body.seed = Number($("seed").value);
  return body;
}

// --- one request

class Asked {
  constructor(practises) {
    this.controller = new AbortController();
    this.practises = practises;
    this.began = performance.now();
    this.text = "";
    this.unadapted = null;
    this.practice = null;
    this.learned = false;
    this.answered = false;
    this.places = { answers: el("div"), practice: el("div"), gate: el("div"), stages: el("div"), more: el("div") };
  }
}

async function ask() {
  if (running) return;
  if (!$("problem").value.trim()) {
    showError("The problem is empty. Write one above, and ask again.");
    $("problem").focus();
    return;
  }
  const practises = !isPlain(chosenModel()) && wish() !== "never";
  const one = (running = new Asked(practises));
  const { answers, more, gate, practice, stages } = one.places;
  $("result").replaceChildren(answers, more, gate, practice, stages);
  showError("");
  busy(true);
  at(one, practises ? "writing" : "answering");
  say(practises ? "Writing practice problems." : "Answering.");
  const ticking = setInterval(() => showClock(one), 100);
  try {
    for await (const chunk of stream("/v1/chat/completions", requestBody(), one.controller.signal)) hear(one, chunk);
  } catch (error) {
    ended(one, error);
  } finally {
    clearInterval(ticking);
    showClock(one);
    busy(false);
    running = null;
  }
}

function busy(yes) {
  $("submit").setAttribute("aria-disabled", String(yes));
  // A hidden button loses the focus, so it goes on to where the next thing is done.
  if (!yes && document.activeElement === $("stop")) $("submit").focus();
  $("stop").hidden = !yes;
  $("progress").hidden = false;
}

function ended(one, error) {
  if (error.name === "AbortError") {
    say("Stopped. The server has given the request up.");
  } else {
    say("No answer.");
    showError(error instanceof ApiError ? error.message : "This page met an error of its own. Load it again.");
    if (!(error instanceof ApiError)) console.error(error);
  }
  at(one, null);
}

function showError(text) {
  $("ask-error").textContent = text;
  $("ask-error").hidden = !text;
}

const say = (text) => ($("status").textContent = text);
const showClock = (one) => ($("clock").textContent = `${((performance.now() - one.began) / 1000).toFixed(1)} s`);

// Shows which stages are done, and which is going on; null: none is any more.
function at(one, stage) {
  one.stage = stage;
  const shown = one.practises ? STAGES : STAGES.slice(-1);
  const done = { writing: one.practice !== null, learning: one.learned, answering: one.answered };
  const items = shown.map(([name, text]) => {
    const current = name === stage && !done[name];
    return el("li", { class: done[name] ? "done" : current ? "current" : "", "aria-current": current && "step" }, text);
  });
  $("stages").replaceChildren(...items);
}

function hear(one, chunk) {
  const text = chunk.choices?.[0]?.delta?.content;
  if (text) {
    one.text += text;
    if (one.stage !== "answering") {
      at(one, "answering");
      say("Answering.");
    }
    showAnswers(one);
  }
  const told = chunk.mass;
  if (!told) return;
  if (told.stage === "unadapted") {
    one.unadapted = told.unadapted[0] ?? "";
    showAnswers(one);
  } else if (told.stage === "written") {
    showPractice(one, told.practice, false);
    at(one, "learning");
    say(`Learning: ${practiceWords(told.practice)}.`);
  } else if (told.stage === "learned") {
    showPractice(one, told.practice, hasLosses(told.practice));
    at(one, "answering");
    say(`Answering: ${practiceWords(told.practice)}.`);
  } else {
    finish(one, told);
  }
}

function showAnswers(one) {
  const adapted = live(one.text);
  if (!one.practises) {
    one.places.answers.replaceChildren(section("Answer", panel("Unadapted weights", adapted, true)));
    return;
  }
  const unadapted = one.unadapted === null ? el("p", { class: "none" }, "on its way") : live(one.unadapted);
  const waiting = el("p", { class: "none" }, "after the practice");
  const pair = el("div", { class: "pair" }, panel("Unadapted weights", unadapted), panel("Adapted weights", one.text ? adapted : waiting));
  one.places.answers.replaceChildren(section("Answers", pair));
}

const hasLosses = (practice) => practice.some((each) => each.loss_after !== null);
const live = (text) => fill(el("pre", { class: "text", dir: "auto" }), text);

function showPractice(one, practice, learned) {
  if (!practice.length) return;
  one.practice = practice;
  one.learned ||= learned;
  const words = el("p", { class: "hint" }, `${practiceWords(practice)}.`);
  one.places.practice.replaceChildren(section("Practice", words, practiceList(practice, one.learned)));
}

function finish(one, told) {
  const { answers, gate, stages, more } = one.places;
  if (told.adapted) {
    answers.replaceChildren(section("Answers", ...answerPair(told.unadapted?.[0] ?? one.unadapted ?? "", one.text)));
  } else {
    answers.replaceChildren(section("Answer", panel("Unadapted weights", live(one.text), true)));
  }
  if (told.practice?.length) showPractice(one, told.practice, hasLosses(told.practice));
  if (one.practises) gate.replaceChildren(gatePart(told.gate, told.fallback));
  stages.replaceChildren(stagePart(told.seconds, told.tokens));
  more.replaceChildren(...afterwards(told));
  one.answered = true;
  at(one, null);
  say(closing(told));
}

function closing(told) {
  const took = `after ${seconds(told.seconds.total)} seconds, with seed ${told.seed}`;
  return told.adapted ? `Answered by the adapted weights ${took}.` : `Answered by the unadapted weights ${took}.`;
}

function afterwards(told) {
  if (!keepsRecords() || !(told.adapted || told.fallback)) return [];
  const path = `/v1/mass/adaptations/${encodeURIComponent(told.id)}`;
  const save = async (right) => (await call(`${path}/verdict`, { method: "POST", body: { right } })).right;
  const link = el("a", { href: `#/adaptations/${encodeURIComponent(told.id)}` }, "Its record");
  return [el("div", { class: "afterwards" }, verdictPart(null, save), link)];
}
