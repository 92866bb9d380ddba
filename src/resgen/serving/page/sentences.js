// Speech as it comes about: for every sentence its spectrogram and the map of known levels, step by step.

import { make, pngUrl, seconds } from "./dom.js";
import { drawColumns } from "./heat.js";

export class Sentences {
  #cards = [];

  constructor(root) {
    this.root = root;
  }

  /** Make room for another text of a model with so many levels. */
  begin(levels) {
    this.levels = levels;
    this.#cards = [];
    this.root.replaceChildren();
  }

  /** A step of a sentence. */
  step(event) {
    const card = this.#card(event.sentence, event.sentences);
    card.steps.push(event);
    this.#draw(card, card.steps.length - 1);
  }

  /** A sentence is there. */
  sound(event) {
    const card = this.#card(event.sentence, event.sentence + 1);
    card.final = event.spectrogram;
    card.title.textContent = `“${event.text}” `;
    card.title.append(make("span", { class: "hint", text: seconds(event.duration_s) }));
    this.#draw(card, card.steps.length - 1);
    card.slide.hidden = card.steps.length < 2;
  }

  #card(number, total) {
    if (this.#cards[number]) return this.#cards[number];
    const id = `sentence-${number}`;
    const card = { steps: [], final: null };
    card.title = make("p", { class: "spoken", text: total > 1 ? `Sentence ${number + 1} of ${total} …` : "…" });
    card.image = make("img", { alt: "" });
    card.map = make("canvas");
    card.caption = make("figcaption");
    card.slider = make("input", { type: "range", min: 1, max: 1, step: 1, id });
    card.text = make("output", { for: id });
    card.slide = make("div", { class: "steps" }, make("label", { for: id, text: "Step" }), card.slider, card.text);
    card.slide.hidden = true;
    card.slider.addEventListener("input", () => this.#draw(card, Number(card.slider.value) - 1));
    this.root.append(make("section", { class: "sentence", "aria-label": `Sentence ${number + 1}` }, card.title,
      make("figure", { class: "spectrogram" }, card.image, card.map, card.caption), card.slide));
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
