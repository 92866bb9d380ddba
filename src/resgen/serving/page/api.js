// Requests to the server this page came from, and what can go wrong with them, in words.

import { make } from "./dom.js";

const KEY = "resgen-api-key"; // sessionStorage: gone with the tab

/** An answer that is no result. `message` is one line for people; `status` 0 when there was no answer at all;
 * `wait`: seconds after which the server wants to be asked again, or NaN; `field`: the part of the form that is at
 * fault, if it is known. */
export class ApiError extends Error {
  constructor(message, status = 0, wait = NaN) {
    super(message);
    this.status = status;
    this.wait = wait;
  }
}

/** The models of the server. */
export async function models() {
  return (await (await send("v1/models", {})).json()).models;
}

/** What a model draws by itself. */
export async function samples(model) {
  return readJson(await send(`v1/images/samples?model=${encodeURIComponent(model)}`, {}));
}

/** What a model of speech says by itself. */
export async function spokenSamples(model) {
  return readJson(await send(`v1/speech/samples?model=${encodeURIComponent(model)}`, {}));
}

/** The named voices of a model of speech: [{name, text, flac}]. */
export async function voices(model) {
  return (await readJson(await send(`v1/voices?model=${encodeURIComponent(model)}`, {}))).voices;
}

/** POST a plain object as JSON, or a FormData; the answer as an object. */
export async function post(path, body, signal) {
  return readJson(await send(path, { method: "POST", ...encode(body), signal }));
}

/** POST, and the events of the answer's lines as they come. Ends with `done`; everything else is an ApiError. */
export async function* stream(path, body, signal) {
  const response = await send(path, { method: "POST", ...encode(body), signal });
  for await (const line of lines(response.body)) {
    const event = JSON.parse(line);
    if (event.event === "error") throw new ApiError(sentence(event.error), response.status);
    yield event;
    if (event.event === "done") return;
  }
  throw new ApiError("The connection ended before the response was complete. Try again.");
}

function encode(body) {
  if (body instanceof FormData) return { body };
  return { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
}

/** A request with the key, if one is needed; its answer, or an ApiError. */
export async function send(path, options) {
  for (let wrong = false; ; wrong = true) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(key ? { "X-API-Key": key } : {}) };
    const response = await reach(path, { ...options, headers, cache: "no-store", credentials: "same-origin" });
    if (response.ok) return response;
    if (response.status !== 401) throw await asError(response);
    const given = await askKey(wrong || Boolean(key));
    if (given === null) throw new ApiError("This server needs an API key; without one it does nothing.", 401);
    sessionStorage.setItem(KEY, given);
  }
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw (await unreadable(options.body)) ?? new ApiError("The server does not respond. Is it still running?");
  }
}

/** An error about a file of a form that was changed or removed after it was chosen: browsers do not send it then. */
async function unreadable(body) {
  for (const [field, part] of body instanceof FormData ? body : []) {
    if (!(part instanceof File)) continue;
    try {
      await part.arrayBuffer();
    } catch {
      const error = new ApiError(`'${part.name}' was changed or removed since it was chosen. Choose it again.`);
      return Object.assign(error, { field });
    }
  }
  return null;
}

async function readJson(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection ended before the response was complete. Try again.");
  }
}

async function asError(response) {
  let said = "";
  try {
    const { error } = await response.json();
    said = String(error?.message ?? error ?? "");
  } catch {
    // A proxy's own page: its status has to do.
  }
  const text = said.replace(/; try again later$/, "") || `the server answered ${response.status} ${response.statusText}`.trim();
  const wait = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  const again = Number.isFinite(wait) ? `Try again in ${wait} second${wait === 1 ? "" : "s"}.` : "Try again later.";
  if (response.status === 429 || response.status === 503) return new ApiError(`${sentence(text)} ${again}`, response.status, wait);
  if (response.status === 504 && !said) {
    return new ApiError(`${sentence(text)} Ask for fewer images or steps, or a shorter text.`, response.status);
  }
  return new ApiError(sentence(text), response.status);
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

let asking = null;

/** Show the dialog; the key, or null if it was closed. Several requests that want a key ask once. */
function askKey(wrong) {
  asking ??= new Promise((resolve) => {
    const title = wrong ? "The server did not accept this API key" : "This server needs an API key";
    const input = make("input", { id: "key-input", type: "password", autocomplete: "off", "aria-describedby": "key-hint" });
    const dialog = make("dialog", { id: "key", "aria-labelledby": "key-title" },
      make("form", { method: "dialog", novalidate: true },
        make("h2", { id: "key-title", text: title }),
        make("div", { class: "field" }, make("label", { for: "key-input", text: "API key" }), input,
          make("p", { class: "hint", id: "key-hint", text: "Kept in this tab until it is closed, and sent to this server only." })),
        make("div", { class: "actions" },
          make("button", { class: "primary", type: "submit", value: "ok", text: "Use key" }),
          make("button", { type: "submit", value: "cancel", formnovalidate: true, text: "Not now" }))));
    dialog.addEventListener("close", () => {
      asking = null;
      dialog.remove();
      resolve(dialog.returnValue === "ok" && input.value.trim() ? input.value.trim() : null);
    });
    document.body.append(dialog);
    dialog.showModal();
    input.focus();
  });
  return asking;
}

async function* lines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError("The connection was lost. Try again.");
    }
    if (part.done) break;
    const pieces = (rest + part.value).split("\n");
    rest = pieces.pop();
    yield* pieces.filter((piece) => piece.trim());
  }
  if (rest.trim()) yield rest;
}
