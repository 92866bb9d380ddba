// What the models draw by themselves: shown before anything was asked for, and to press in the other views.

import { blobOf, make, pngUrl, Store } from "./dom.js";
import { sharp } from "./gallery.js";

/** A store of {model, answer, problem}: the answer of `ask(name)` is null until it arrives, and stays null if there is
 * none. */
export function followSamples(models, ask) {
  const [store, known] = [new Store(), new Map()];
  models.follow(async (model) => {
    if (!known.has(model.name)) known.set(model.name, ask(model.name));
    store.set({ model, answer: null, problem: "" });
    try {
      const answer = await known.get(model.name);
      if (models.value === model) store.set({ model, answer, problem: "" });
    } catch (error) {
      known.delete(model.name); // asked for again when the model is chosen again
      if (models.value === model) store.set({ model, answer: null, problem: error.message });
    }
  });
  return store;
}

/** How good a model is, in a view's `.about`. */
export function sayMeasured(about, model) {
  about.querySelector(".measured").replaceChildren(...(model.measured ?? []).map((text) => make("li", { text })));
}

/** Fill a view's `.offer` with the samples; `use(image)` is called with the one that is pressed. */
export function offerSamples(view, samples, use) {
  const offer = view.querySelector(".offer");
  const [list, empty] = [offer.querySelector(".thumbs"), view.querySelector(".empty p")];
  const waiting = empty.textContent;
  samples.follow(({ model, answer, problem }) => {
    list.replaceChildren(...(answer?.images ?? []).map((image, k) => tile(image, k, model, answer, use)));
    empty.textContent = problem ? `No samples: ${problem}` : waiting;
    showOffer(view);
  });
}

/** Show the offer as long as there is nothing else, and the sketch as long as there is no offer. */
export function showOffer(view) {
  const offer = view.querySelector(".offer");
  const done = view.querySelector(".stage > .gallery:not([hidden]), .stage > .levels:not([hidden])");
  offer.hidden = Boolean(done) || !offer.querySelector(".thumbs").children.length;
  view.querySelector(".empty").hidden = Boolean(done) || !offer.hidden;
}

function tile(image, k, model, answer, use) {
  const label = image.class_name ?? `image ${k + 1}`;
  const onclick = () => use({
    blob: blobOf(image.png, "image/png"),
    name: `sample-${k}.png`,
    className: image.class_name,
    note: `Made by ${model.name}: ${label}, seed ${answer.seed}.`,
  });
  return make("li", {}, make("button", { type: "button", onclick },
    make("img", { src: pngUrl(image.png), alt: "", class: sharp(model) }), make("span", { text: label })));
}
