// Speech as it comes about: for every sentence its spectrogram and the map of known levels, step by step.

import { make, pngUrl, seconds } from "./dom.js";
import { drawColumns } from "./heat.js";

let counter = 0;

/** An image of sound with a part of its width marked. */
export class Timed {
  constructor() {
    this.image = make("img", { alt: "" });
    this.part = make("span", { class: "part", hidden: true });
    this.root = make("div", { class: "timed" }, this.image, this.part);
  }

  /** Mark what lies between two shares of the width. */
  mark(from, to) {
    this.part.hidden = false;
    [this.part.style.left, this.part.style.width] = [`${100 * from}%`, `${100 * (to - from)}%`];
  }
}

export class Sentences {
  #cards = [];

  constructor(root) {
    this.root = root;
  }

  /** Make room for another text of a model with so many levels. `mark(timed, visible)` marks a part of an image: of a
   * step's, or, without the levels that are visible, of the sentence's. */
  begin(levels, mark = () => {}) {
    [this.levels, this.mark] = [levels, mark];
    this.#cards = [];
    this.root.replaceChildren();
  }

  /** A step of a sentence. */
  step(event) {
    const card = this.#card(event.sentence, event.sentences);
    card.steps.push(event);
    this.#draw(card, card.steps.length - 1);
  }

  /** A sentence is there; `title`: its words, if some of them are marked. */
  sound(event, title = [`“${event.text}”`]) {
    const card = this.#card(event.sentence, event.sentence + 1);
    card.final = event.spectrogram;
    card.title.replaceChildren(...title, " ", make("span", { class: "hint", text: seconds(event.duration_s) }));
    this.#draw(card, card.steps.length - 1);
    card.slide.hidden = card.steps.length < 2;
  }

  #card(number, total) {
    if (this.#cards[number]) return this.#cards[number];
    const id = `sentence-${++counter}`;
    const card = { steps: [], final: null, timed: new Timed() };
    card.title = make("p", { class: "spoken", text: total > 1 ? `Sentence ${number + 1} of ${total} …` : "…" });
    card.image = card.timed.image;
    card.map = make("canvas");
    card.caption = make("figcaption");
    card.slider = make("input", { type: "range", min: 1, max: 1, step: 1, id });
    card.text = make("output", { for: id });
    card.slide = make("div", { class: "steps" }, make("label", { for: id, text: "Step" }), card.slider, card.text);
    card.slide.hidden = true;
    card.slider.addEventListener("input", () => this.#draw(card, Number(card.slider.value) - 1));
    this.root.append(make("section", { class: "sentence", "aria-label": `Sentence ${number + 1}` }, card.title,
      make("figure", { class: "spectrogram" }, card.timed.root, card.map, card.caption), card.slide));
    return (this.#cards[number] = card);
  }

  #draw(card, index) {
    const step = card.steps[index];
    const isLast = index === card.steps.length - 1;
    const picture = (isLast && card.final) || step?.spectrogram;
    card.image.hidden = !picture;
    if (picture) card.image.src = pngUrl(picture);
    card.map.hidden = !step;
    if (!step) return;
    this.mark(card.timed, isLast && card.final ? null : step.visible);
    const known = drawColumns(card.map, step.visible, this.levels);
    const place = `step ${step.step} of ${step.num_steps}`;
    card.image.alt = `Spectrogram, ${place}`;
    card.caption.textContent = `Spectrogram (time to the right, pitch upwards) and the ${known} of ` +
      `${step.visible.length * this.levels} codes that are known, ${place}`;
    [card.slider.max, card.slider.value] = [card.steps.length, index + 1];
    card.text.textContent = `${step.step} of ${step.num_steps}`;
    card.slider.setAttribute("aria-valuetext", place);
  }
}
