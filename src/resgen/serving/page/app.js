// The page's start: which models there are, and which of the views is shown.

import { ApiError, models, samples, spokenSamples } from "./api.js";
import { heatColour } from "./heat.js";
import { hush, make, Store } from "./dom.js";
import { startEdit } from "./edit.js";
import { startPictures } from "./images.js";
import { startLevels } from "./levels.js";
import { followSamples } from "./samples.js";
import { startSpeech } from "./speech.js";
import { startWords } from "./words.js";

const VIEWS = { pictures: "New images", edit: "Edit an image", levels: "Levels of an image", speech: "Speech", words: "Change words" };
const links = [...document.querySelectorAll("nav a")];
const onshow = {}; // by view: called when it is shown
const notice = document.getElementById("notice");

for (const slot of document.querySelectorAll("slot")) {
  const fields = document.getElementById(`fields-${slot.name}`).content.cloneNode(true);
  const view = slot.closest(".view").id.slice("view-".length);
  for (const name of ["id", "for"]) {
    for (const element of fields.querySelectorAll(`[${name}]`)) element.setAttribute(name, `${view}-${element.getAttribute(name)}`);
  }
  slot.replaceWith(fields);
}

function show(name, { focus = false } = {}) {
  for (const view of Object.keys(VIEWS)) document.getElementById(`view-${view}`).hidden = view !== name;
  for (const link of links) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  onshow[name]?.();
  document.title = `${VIEWS[name]} – resgen`;
  if (focus) {
    const heading = document.querySelector(`#view-${name} h2`);
    heading.tabIndex = -1;
    heading.focus();
  }
}

/** The view of the address, if this server can do it; else the first that it can. */
function route(options) {
  const offered = links.filter((link) => !link.hidden).map((link) => link.hash.slice(1));
  const name = location.hash.slice(1);
  if (name && !(name in VIEWS) && document.querySelector(".view:not([hidden])")) return; // a place in it, as the skip link's
  show(offered.includes(name) ? name : offered[0], options);
}

/** A static drawing of what happens, in the empty views: coarse cells, then finer ones. */
function sketch(root) {
  for (const [cells, seed] of [[2, 5], [4, 11], [8, 23]]) {
    const square = make("div");
    square.style.setProperty("--cells", cells);
    for (let k = 0; k < cells * cells; k++) {
      const [x, y] = [(k % cells) + 0.5 - cells / 2, Math.floor(k / cells) + 0.5 - cells / 2];
      const jitter = ((k * 7919 + seed) % 13) / 13 - 0.5;
      const cell = make("i");
      cell.style.background = `rgb(${heatColour(1 - Math.hypot(x, y) / cells / 0.75 + 0.16 * jitter).join(" ")})`;
      square.append(cell);
    }
    root.append(square);
  }
}

/** What brings an image or a sound to a view. */
const take = (view, sources) => (source) => {
  if (location.hash !== `#${view}`) history.pushState(null, "", `#${view}`);
  route({ focus: true });
  sources.set(source);
};

function start(models) {
  const images = models.filter((model) => model.modality === "image");
  const voices = models.filter((model) => model.modality === "speech");
  for (const link of links) link.hidden = !{ image: images, speech: voices }[link.dataset.modality].length;
  if (images.length) {
    const [store, sources] = [new Store(), new Store()];
    const drawn = followSamples(store, samples);
    const uses = { Edit: take("edit", sources), Levels: take("levels", sources) };
    startPictures(document.getElementById("view-pictures"), { models: images, store, samples: drawn, uses });
    startEdit(document.getElementById("view-edit"), { models: images, store, samples: drawn, sources, uses: { "Edit this": uses.Edit, Levels: uses.Levels } });
    onshow.levels = startLevels(document.getElementById("view-levels"), { models: images, store, samples: drawn, sources });
    store.set(images[0]);
  }
  if (voices.length) {
    const [store, sources] = [new Store(), new Store()];
    const spoken = followSamples(store, spokenSamples);
    const shared = { models: voices, store, samples: spoken, change: take("words", sources) };
    startSpeech(document.getElementById("view-speech"), shared);
    startWords(document.getElementById("view-words"), { ...shared, sources });
    store.set(voices[0]);
  }
  document.querySelectorAll(".sketch").forEach(sketch);
  if (!models.length) {
    notice.textContent = "This server offers no models. Start it with one: resgen serve --model fashion-mnist-small";
    return;
  }
  notice.hidden = true;
  for (const event of ["hashchange", "popstate"]) addEventListener(event, () => route());
  route();
}

document.addEventListener("play", ({ target }) => hush(document, target), true); // one sound at a time

let again = 0;

async function load() {
  clearTimeout(again);
  notice.textContent = "Asking the server for its models …";
  try {
    start(await models());
  } catch (error) {
    if (!(error instanceof ApiError)) console.error(error);
    const retry = make("button", { type: "button", text: "Try again", onclick: load });
    notice.replaceChildren(make("span", { text: error.message }), retry);
    if (error.status === 503 && error.wait) again = setTimeout(load, 1000 * error.wait); // it still loads its models
  }
}

load();
