// Generated images: one large with its map of known levels, a slider through the steps, and all of them small.

import { blobOf, calm, download, make, plural, pngUrl, slug } from "./dom.js";
import { drawHeat, gridOf } from "./heat.js";
import { zip } from "./zip.js";

const SMOOTH_FROM = 128; // pixels: smaller images are enlarged with their pixels as they are
const REPLAY_MS = 180;

/** `size-N` classes that say how an img is enlarged. */
export const sharp = (model) => (model.image && model.image.width < SMOOTH_FROM ? "sharp" : "smooth");

export class Gallery {
  #pictures = []; // {label, steps: [base64], maps: [[known levels]], final: base64 or null}
  #numbers = []; // of the steps that arrived: a server may leave some out for a slow connection
  #ofSteps = 0;
  #selection = 0;
  #step = null; // which of the steps that arrived is shown, from 1; null: the last
  #timer = null;

  /** `uses`: {name: (image) => ...}, what can be done with an image besides keeping it; `before`: show another
   * image beside it, as an edit does. */
  constructor(root, { uses = {}, before = false } = {}) {
    this.root = root;
    this.before = make("figure", { class: "before" });
    this.before.hidden = !before;
    this.image = make("img", { alt: "", decoding: "sync" });
    this.heat = make("canvas");
    this.known = make("figcaption");
    this.caption = make("figcaption");
    this.heatFigure = make("figure", { class: "heat" }, this.heat, this.known);
    this.slider = make("input", { type: "range", min: 1, max: 1, step: 1, id: `${root.parentElement.parentElement.id}-step` });
    this.stepText = make("output", { for: this.slider.id });
    this.replay = make("button", { type: "button", class: "replay", text: "Replay", onclick: () => this.#replay() });
    this.steps = make("div", { class: "steps" },
      make("label", { for: this.slider.id, text: "Step" }), this.slider, this.stepText);
    this.buttons = make("div", { class: "actions" }, this.replay,
      make("button", { type: "button", class: "save", text: "Download PNG", onclick: () => this.#save(this.#pictures[this.#selection]) }));
    for (const [name, use] of Object.entries(uses)) {
      const onclick = () => use(this.#asSource(this.#pictures[this.#selection]));
      this.buttons.append(make("button", { type: "button", class: `use-${slug(name)}`, text: name, onclick }));
    }
    this.all = make("button", { type: "button", class: "save-all", text: "Download all (ZIP)", onclick: () => this.#saveAll() });
    this.buttons.append(this.all);
    this.thumbs = make("ul", { class: "thumbs", role: "list", "aria-label": "All images" });
    root.append(
      make("div", { class: before ? "hero pair" : "hero" }, this.before, make("figure", {}, this.image, this.caption), this.heatFigure),
      this.steps, this.buttons, this.thumbs);
    this.slider.addEventListener("input", () => {
      this.#stop();
      const step = Number(this.slider.value);
      this.#step = step === this.#numSteps() ? null : step; // at the end it follows what arrives
      this.#draw();
    });
  }

  /** An answer at once, as the images that the model draws by itself. */
  show(model, answer) {
    const names = answer.images.map((image, k) => image.class_name ?? `image ${k + 1}`);
    this.begin(model, names, answer.seed);
    this.root.classList.add("samples");
    this.done(answer);
  }

  /** Forget what was shown and make room for images with these labels; `before`: a canvas beside them. */
  begin(model, labels, seed, before = null) {
    this.#stop();
    this.root.classList.remove("samples");
    if (before) this.before.replaceChildren(before, make("figcaption", { text: "Before; outlined: drawn again" }));
    this.model = model;
    this.seed = seed;
    this.grid = model.positions ? gridOf(model.positions, model.image.height, model.image.width) : null;
    this.#pictures = labels.map((label) => ({ label, steps: [], maps: [], final: null }));
    [this.#selection, this.#step, this.#numbers] = [0, null, []];
    const scale = sharp(model);
    this.image.className = scale;
    this.thumbs.replaceChildren(...labels.map((label, k) =>
      make("li", {}, make("button", { type: "button", onclick: () => this.#choose(k) },
        make("img", { alt: "", class: scale }), make("span", { text: label })))));
  }

  /** The images after a step, and the known levels of each. */
  step({ images, visible, step, num_steps: total }) {
    this.#numbers.push(step);
    this.#ofSteps = total;
    images.forEach((image, k) => {
      this.#pictures[k]?.steps.push(image);
      this.#pictures[k]?.maps.push(visible[k]);
    });
    this.#draw();
  }

  /** The finished images. */
  done({ images, seed }) {
    this.seed = seed;
    images.forEach((image, k) => {
      this.#pictures[k].final = image.png;
      if (image.class_name) this.#pictures[k].label = image.class_name;
    });
    this.#draw();
  }

  #numSteps() {
    const picture = this.#pictures[0];
    return picture ? Math.max(picture.steps.length, picture.final ? 1 : 0) : 0;
  }

  /** The image at the step that is shown. */
  #at(picture) {
    const last = picture.steps.length;
    if (this.#step !== null && this.#step < last) return picture.steps[this.#step - 1];
    return picture.final ?? picture.steps[last - 1] ?? null;
  }

  #choose(k) {
    this.#selection = k;
    this.#draw();
  }

  #draw() {
    const picture = this.#pictures[this.#selection];
    if (!picture || !this.#at(picture)) return;
    this.root.hidden = false;
    const total = this.#numSteps();
    const step = this.#step ?? total;
    const title = this.#pictures.length > 1 ? `${picture.label}, ${this.#selection + 1} of ${this.#pictures.length}` : picture.label;
    const place = total > 1 ? `step ${this.#numbers[step - 1]} of ${this.#ofSteps}` : "";
    this.image.src = pngUrl(this.#at(picture));
    this.image.alt = place ? `${title}, ${place}` : title;
    this.caption.textContent = this.before.hidden ? title : `After: ${title}`;
    this.steps.hidden = total < 2;
    [this.slider.max, this.slider.value] = [total, step];
    this.stepText.textContent = place.replace("step ", "");
    this.slider.setAttribute("aria-valuetext", place);
    const map = picture.maps[step - 1];
    this.heatFigure.hidden = !map || !this.grid;
    if (map && this.grid) {
      const known = drawHeat(this.heat, map, this.model.levels, this.grid);
      this.known.textContent = `${known} of ${map.length * this.model.levels} codes known`;
    }
    const complete = Boolean(picture.final);
    for (const button of this.buttons.children) button.disabled = !complete;
    this.replay.hidden = total < 2 || calm();
    this.all.hidden = this.#pictures.length < 2;
    [...this.thumbs.children].forEach((item, k) => {
      const [button, other] = [item.firstChild, this.#pictures[k]];
      button.setAttribute("aria-pressed", String(k === this.#selection));
      button.querySelector("img").src = pngUrl(this.#at(other));
      button.querySelector("span").textContent = other.label;
      button.setAttribute("aria-label", `${other.label}, ${k + 1} of ${this.#pictures.length}`);
    });
    this.thumbs.hidden = this.#pictures.length < 2;
  }

  /** Play the steps from the first; a press on the slider ends it. */
  #replay() {
    this.#stop();
    this.#step = 1;
    this.#draw();
    this.#timer = setInterval(() => {
      this.#step = this.#step + 1 < this.#numSteps() ? this.#step + 1 : null;
      if (this.#step === null) this.#stop();
      this.#draw();
    }, REPLAY_MS);
  }

  #stop() {
    clearInterval(this.#timer);
  }

  #fileName(picture) {
    return `${slug(picture.label)}-${this.seed}-${this.#pictures.indexOf(picture)}.png`;
  }

  #save(picture) {
    download(blobOf(picture.final, "image/png"), this.#fileName(picture));
  }

  async #saveAll() {
    const files = this.#pictures.map((picture) => ({ name: this.#fileName(picture), blob: blobOf(picture.final, "image/png") }));
    download(await zip(files), `${this.model.name.replace(/[^\w.-]+/g, "-")}-${this.seed}.zip`);
  }

  #asSource(picture) {
    const blob = blobOf(picture.final, "image/png");
    return { blob, name: this.#fileName(picture), className: picture.label, note: `Generated: ${picture.label}, seed ${this.seed}.` };
  }
}

/** `3 images` and the like, for status lines. */
export const pictures = (count) => plural(count, "image");
