// What the forms share: numbers and their errors in words, models, seeds, running and cancelling.

import { ApiError } from "./api.js";
import { hush, make, plural, reveal } from "./dom.js";

let counter = 0;

/** Say what is wrong beside a control (an input, or a fieldset for a group of them). */
export function showError(control, message) {
  clearError(control);
  control.id ||= `control-${++counter}`;
  const note = make("p", { class: "error", id: `${control.id}-error`, text: message });
  if (control.tagName === "FIELDSET") control.append(note);
  else (control.closest(".with-button") ?? control).after(note);
  control.setAttribute("aria-invalid", "true");
  describe(control, note.id, true);
}

/** Take back what `showError` said. */
export function clearError(control) {
  const id = `${control.id}-error`;
  document.getElementById(id)?.remove();
  control.removeAttribute("aria-invalid");
  describe(control, id, false);
}

function describe(control, id, on) {
  const ids = (control.getAttribute("aria-describedby") ?? "").split(" ").filter((known) => known && known !== id);
  if (on) ids.push(id);
  if (ids.length) control.setAttribute("aria-describedby", ids.join(" "));
  else control.removeAttribute("aria-describedby");
}

/** A mistake of the person at a control. */
export class InputError extends Error {
  constructor(control, message) {
    super(message);
    this.control = control;
  }
}

/** The number in an input, checked against its `min`, `max` and `step`. */
export function numberIn(input) {
  const { min, max, step } = input;
  const value = input.value.trim() === "" ? NaN : Number(input.value);
  const whole = step !== "any";
  const fits = Number.isFinite(value) && !(whole && !Number.isInteger(value));
  if (fits && !(min !== "" && value < Number(min)) && !(max !== "" && value > Number(max))) return value;
  const range = max === "" ? `from ${min} up` : `from ${min} to ${max}`;
  throw new InputError(input, `${input.dataset.name} must be a ${whole ? "whole " : ""}number ${range}.`);
}

/** The numbers of several inputs by name; all mistakes are shown, and the first is thrown. */
export function numbersIn(inputs) {
  const values = {};
  let first = null;
  for (const input of inputs) {
    if (input.disabled) continue; // the model has no such setting
    try {
      values[input.name] = numberIn(input);
    } catch (error) {
      showError(input, error.message);
      first ??= error;
    }
  }
  if (first) throw first;
  return values;
}

/** Fill a select with models; what is chosen goes to `store`, and what others choose comes from there. */
export function chooseModel(select, models, store) {
  const hint = document.getElementById(`${select.id}-hint`);
  select.replaceChildren(...models.map((model) => make("option", { value: model.name, text: model.name })));
  select.setAttribute("aria-describedby", hint.id);
  select.addEventListener("change", () => store.set(models.find((model) => model.name === select.value)));
  store.follow((model) => {
    select.value = model.name;
    hint.textContent = model.description ?? "";
  });
}

/** A model's own settings and limits as values and bounds of a form's numbers. */
export function applyDefaults(form, { defaults, limits }) {
  for (const name of ["num_steps", "guidance_scale", "speed"]) {
    const input = form.elements[name];
    if (!input) continue;
    const known = defaults[name] !== undefined && defaults[name] !== null;
    if (known) input.value = defaults[name];
    input.disabled = !known && name !== "speed"; // some kinds of models take no number of steps
    input.closest(".field").hidden = input.disabled;
  }
  form.elements.num_steps.max = limits.max_steps;
  const count = form.elements.num_samples;
  if (count) {
    count.max = limits.max_samples;
    count.value = Math.min(Number(count.value) || 1, limits.max_samples);
  }
  for (const control of [...form.querySelectorAll("[aria-invalid]")]) clearError(control);
}

/** Another model was chosen: take the result of the one before and its status away, unless a request runs. */
export function forget(view, output) {
  if (view.classList.contains("busy")) return;
  hush(output);
  output.hidden = true;
  view.querySelector(".status").textContent = "";
}

/** A text's length against the server's limit. */
export function checkText(control, limit) {
  const { length } = [...control.value.trim()]; // characters, as the server counts them
  if (length <= limit) return;
  throw new InputError(control, `${control.dataset.name} has ${length} characters; this server takes ${limit} at most.`);
}

/** A file's size against the server's limit. */
export function checkSize(input, file, limit) {
  if (file.size <= limit) return;
  const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  throw new InputError(input, `'${file.name}' has ${mebibytes(file.size)}; this server takes ${mebibytes(limit)} at most.`);
}

/** Wire the buttons that draw a new seed. */
export function wireSeed(form) {
  form.querySelector(".new-seed").addEventListener("click", () => {
    form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;
    clearError(form.elements.seed);
  });
}

const RESULT = ".gallery:not([hidden], .samples), .levels:not([hidden]), .sound:not([hidden], .samples)";

/**
 * Run `work({signal, say, progress, began, fresh})` when the form is sent, until it ends, fails or is cancelled.
 *
 * `work` calls `began` when the request goes out and `fresh` when the first of its result is shown: until then, and if
 * it fails before, the earlier result is dimmed. It returns the last sentence of the status. An error is shown beside
 * the control it names (`blame()` maps words of the server's errors to controls), otherwise beside the button.
 *
 * Returns a function that sends the form, in place of a request that still runs.
 */
export function runForm(view, { work, blame = () => ({}) }) {
  const form = view.querySelector("form");
  const start = form.querySelector("button.primary");
  const cancel = form.querySelector("button.cancel");
  const status = view.querySelector(".status");
  const bar = view.querySelector("progress");
  const stage = view.querySelector(".stage");
  let [abort, again, isFresh] = [null, false, false];

  const dim = (on) => stage.classList.toggle("stale", on && Boolean(stage.querySelector(RESULT)));
  const fresh = () => {
    isFresh = true;
    dim(false);
    hush(stage); // what was shown before goes
  };
  const say = (text) => (status.textContent = text);
  const progress = (step, total) => {
    bar.hidden = false;
    if (total) [bar.max, bar.value] = [total, step];
    else bar.removeAttribute("value");
  };
  const finish = () => {
    abort = null;
    bar.hidden = true;
    view.classList.remove("busy");
    if (document.activeElement === cancel) start.focus(); // a hidden button keeps no focus
    cancel.hidden = true;
    start.removeAttribute("aria-disabled");
    if (again) form.requestSubmit();
    again = false;
  };

  cancel.addEventListener("click", () => abort?.abort());
  form.addEventListener("input", (event) => clearError(event.target.closest("fieldset[aria-invalid]") ?? event.target));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (abort) return;
    for (const control of [...form.querySelectorAll("[aria-invalid]"), start]) clearError(control);
    abort = new AbortController();
    start.setAttribute("aria-disabled", "true");
    cancel.hidden = false;
    view.classList.add("busy");
    isFresh = false;
    try {
      const began = () => {
        dim(true);
        reveal(stage);
      };
      say(await work({ signal: abort.signal, say, progress, began, fresh }));
    } catch (error) {
      dim(error.name !== "AbortError" && !isFresh);
      say(error.name === "AbortError" ? "Cancelled." : "");
      if (error.name !== "AbortError") fail(error);
    } finally {
      finish();
    }
  });

  function fail(error) {
    if (!(error instanceof InputError || error instanceof ApiError)) console.error(error);
    const control = error.control ?? blamed(error) ?? start;
    if (!control.hasAttribute("aria-invalid")) showError(control, error.message);
    const target = control.tagName === "FIELDSET" ? control.querySelector("input, select, button") : control;
    target?.focus();
    const earlier = stage.classList.contains("stale") ? " Below is the earlier result." : "";
    say(`Not done: ${control === start ? error.message : "see the message beside the field."}${earlier}`);
  }

  /** The control whose name the server's error begins with or holds earliest. */
  function blamed(error) {
    const controls = { ...namedControls(form), ...blame() };
    if (error.field) return controls[error.field];
    if (error.status < 400 || error.status >= 500 || error.status === 429) return null;
    const matches = Object.entries(controls)
      .map(([word, control]) => [error.message.search(new RegExp(`\\b${word}\\b`)), control])
      .filter(([place, control]) => place >= 0 && control.offsetParent)
      .sort(([one], [other]) => one - other);
    return matches[0]?.[1] ?? null;
  }

  return () => {
    again = Boolean(abort);
    if (abort) abort.abort();
    else form.requestSubmit();
  };
}

function namedControls(form) {
  const named = [...form.querySelectorAll("[name]")].filter((control) => control.type !== "radio");
  return Object.fromEntries(named.map((control) => [control.name, control]));
}

/** What is asked for against the limit of one request. */
export function checkCount(control, { classes, each, limit }) {
  if (classes * each <= limit) return;
  const product = classes > 1 ? `${classes} classes times ${each} are ${classes * each}` : plural(each, "image");
  throw new InputError(control, `${product}; this server makes ${limit} at most at once.`);
}
