// Text of users and models -> nodes. Text is only ever inserted as text: there is no way from here to markup.

// Characters that are invisible, or that reorder what stands around them: such text could show something else than it is.
const HIDDEN =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e007f}]+/gu;
const MOST_MARKS = 500;
const MOST_CELLS = 4_000_000;

// Returns an element. `content` is nodes and strings; strings become text nodes.
export function el(tag, attributes = {}, ...content) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...content.flat().filter((one) => one !== null && one !== undefined && one !== ""));
  return node;
}

// Appends foreign text to a node. Hidden characters stay in the text, each run in an element of its own that names it
// and keeps its effect inside.
export function fill(node, text) {
  let at = 0;
  let marks = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (++marks > MOST_MARKS) break;
    node.append(text.slice(at, match.index));
    node.append(el("bdi", { class: "hidden-character", "data-name": named(match[0]) }, match[0]));
    at = match.index + match[0].length;
  }
  // Beyond so many marks the rest is isolated as a whole, which is enough to keep it inside.
  node.append(marks > MOST_MARKS ? el("bdi", {}, text.slice(at)) : text.slice(at));
  return node;
}

function named(run) {
  const code = `U+${run.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
  const count = [...run].length;
  return count > 1 ? `${code} and ${count - 1} more` : code;
}

// Returns a block of foreign text as it is, which scrolls where it is long.
export function block(text, label) {
  const long = text.length > 1200 || text.split("\n").length > 16;
  const scrolls = long ? { tabindex: "0", role: "group", "aria-label": label } : {};
  const node = el("pre", { class: "text", dir: "auto", ...scrolls });
  return text.trim() ? fill(node, text) : el("p", { class: "none" }, "empty");
}

// Returns foreign text on one line, shortened.
export function line(text, most = 160) {
  const short = text.replace(/\s+/g, " ").trim();
  return fill(el("bdi", {}), short.length > most ? `${short.slice(0, most)}…` : short || "empty");
}

// Returns foreign text for the title of the page, where no element can hold a character's effect.
export const plain = (text, most = 60) => text.replace(HIDDEN, "").replace(/\s+/g, " ").trim().slice(0, most);

const words = (text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];

// Returns two blocks for two texts, in which the words that only one of them has are marked; and whether they differ.
export function compared(before, after) {
  const [a, b] = [words(before), words(after)];
  const [onlyA, onlyB] = differences(a, b);
  return {
    same: before === after,
    before: marked(a, onlyA, "gone", before),
    after: marked(b, onlyB, "new", after),
  };
}

function marked(tokens, only, kind, whole) {
  const node = block(whole, kind === "gone" ? "Unadapted answer" : "Adapted answer");
  if (!whole.trim()) return node;
  node.replaceChildren();
  for (let i = 0; i < tokens.length; ) {
    const start = i;
    const differs = only[i];
    while (i < tokens.length && only[i] === differs) i++;
    const text = tokens.slice(start, i).join("");
    if (differs) node.append(fill(el(kind === "gone" ? "del" : "ins", {}), text));
    else fill(node, text);
  }
  return node;
}

// Returns for each word of both lists if it is outside their longest common subsequence. Where the middle is too long
// for that, all of it counts as different.
export function differences(a, b) {
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
  const [n, m] = [a.length - start - end, b.length - start - end];
  const onlyA = new Array(a.length).fill(false).fill(true, start, start + n);
  const onlyB = new Array(b.length).fill(false).fill(true, start, start + m);
  if (!n || !m || n * m > MOST_CELLS) return [onlyA, onlyB];
  const length = lengths(a, b, start, n, m);
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (a[start + i] === b[start + j]) onlyA[start + i++] = onlyB[start + j++] = false;
    else if (length[(i + 1) * (m + 1) + j] >= length[i * (m + 1) + j + 1]) i++;
    else j++;
  }
  return [onlyA, onlyB];
}

// Returns the length of the longest common subsequence of a[start+i..] and b[start+j..] for all i and j, row by row.
function lengths(a, b, start, n, m) {
  const found = new Uint32Array((n + 1) * (m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const at = i * (m + 1) + j;
      found[at] =
        a[start + i] === b[start + j] ? found[at + m + 2] + 1 : Math.max(found[at + m + 1], found[at + 1]);
    }
  }
  return found;
}
