// Requests to this server -> JSON, or the events of a stream. Errors become one plain sentence that says what to do.

const KEY = "mass key";

export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryS = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.retryS = retryS;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

let refused = () => {};
export function onKeyRefused(listener) {
  refused = listener;
}

export async function call(path, { method = "GET", body, signal } = {}) {
  const reply = await send(path, { method, body, signal });
  try {
    return await reply.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The reply of the server could not be read. Try again.", { status: reply.status });
  }
}

// Returns true if the server answers nobody without a key.
export async function wantsKey() {
  try {
    return (await fetch("/v1/models", { credentials: "omit", cache: "no-store" })).status === 401;
  } catch {
    return false;
  }
}

async function send(path, { method, body, signal }) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  // Without a key of its own the page sends what the browser's own question has got. With one the browser stays out of
  // it, so that a wrong key shows an error here and not that question once more.
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  const credentials = key.get() ? "omit" : "same-origin";
  let reply;
  try {
    const content = body === undefined ? undefined : JSON.stringify(body);
    reply = await fetch(path, { method, headers, body: content, signal, credentials, redirect: "error", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. See that mass serve is running, and try again.");
  }
  if (!reply.ok) throw await failure(reply);
  return reply;
}

async function failure(reply) {
  let error = {};
  try {
    error = (await reply.json()).error ?? {};
  } catch {
    // Something between the page and the server answered; its status is all there is.
  }
  if (reply.status === 401) refused();
  const seconds = Number.parseFloat(reply.headers.get("Retry-After"));
  const retryS = Number.isFinite(seconds) ? seconds : null;
  const found = { status: reply.status, code: error.code ?? null, retryS };
  return new ApiError(sentence(error.message, reply.status), found);
}

function sentence(message, status) {
  if (status === 401) return "This server wants another key. Enter it above.";
  if (typeof message !== "string" || !message) return `The server answered with status ${status}. Try again.`;
  const whole = message[0].toUpperCase() + message.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

// Yields the objects of a stream of server-sent events; comments, which only keep a connection alive, are left out.
export async function* stream(path, body, signal) {
  const reply = await send(path, { method: "POST", body, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = dataOf(event);
        if (data === "[DONE]") return;
        if (data) yield parsed(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError("The connection broke before the answer was complete. Ask again.");
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the answer was complete. Ask again.");
  }
}

const dataOf = (event) =>
  event
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");

function parsed(data) {
  const found = JSON.parse(data);
  if (found.error) throw new ApiError(sentence(found.error.message, 0), { code: found.error.code });
  return found;
}
