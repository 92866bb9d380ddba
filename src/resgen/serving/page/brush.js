// A mask painted over an image, pixel by pixel of the model's image: what is painted is regenerated.

import { make } from "./dom.js";

const MOST_UNDO = 100;
const TINT = [226, 28, 110, 165];
const FILL = "rgb(226 28 110 / 24%)";
const SIDE = 640; // pixels of the drawing of the cells, enough for fine lines

export class Brush {
  #mask = new Uint8Array(0); // 1: regenerated
  #past = [];
  #at = null; // the last point of the stroke, in the model's pixels
  #over = null; // where the pointer is, without a stroke
  #whole = false; // levels of every position are drawn again where nothing is painted
  #blend = false; // outside the paint the pixels stay

  /** `onchange(brush)` is called when a stroke, a box, undo or clear has ended. */
  constructor(root, onchange) {
    this.root = root;
    this.onchange = onchange;
    this.size = 4;
    this.erasing = false;
    this.picture = make("canvas", { class: "picture", "aria-hidden": "true" });
    this.cells = make("canvas", { class: "cells", "aria-hidden": "true" });
    this.overlay = make("canvas", { class: "mask", role: "img" });
    this.grid = [1, 1];
    root.append(this.picture, this.cells, this.overlay);
    this.overlay.addEventListener("pointerdown", (event) => this.#begin(event));
    this.overlay.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel"]) this.overlay.addEventListener(end, (event) => event.isPrimary && this.#end());
    this.overlay.addEventListener("pointerleave", () => this.#hover(null));
    this.show(null);
  }

  /** Take a canvas with the image; the mask starts empty. Null: no image. */
  show(canvas) {
    this.root.classList.toggle("blank", !canvas);
    const [width, height] = canvas ? [canvas.width, canvas.height] : [1, 1];
    for (const each of [this.picture, this.overlay]) [each.width, each.height] = [width, height];
    if (canvas) this.picture.getContext("2d").drawImage(canvas, 0, 0);
    [this.width, this.height] = [width, height];
    this.ready = Boolean(canvas);
    this.#mask = new Uint8Array(width * height);
    this.#past = [];
    this.#draw();
  }

  /** `whole`: without paint, levels of every position are drawn again; `blend`: outside the paint the pixels stay. */
  mark({ whole, blend }) {
    [this.#whole, this.#blend] = [whole, blend];
    this.#draw();
  }

  /** Height and width of a position's cell in pixels. */
  get cell() {
    return [Math.round(this.height / this.grid[0]), Math.round(this.width / this.grid[1])];
  }

  /** Positions that are drawn again: those that the paint touches. */
  get drawnAgain() {
    return this.#touched(this.#mask).size;
  }

  /** The image and its outlined positions, as they are now. */
  snapshot() {
    const canvas = make("canvas", { role: "img", "aria-label": `Before; ${this.drawnAgain} positions are outlined` });
    [canvas.width, canvas.height] = [this.cells.width, this.cells.height];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = !this.root.classList.contains("sharp");
    context.drawImage(this.picture, 0, 0, canvas.width, canvas.height);
    this.#outline(context, this.#touched(this.#mask));
    return canvas;
  }

  get isEmpty() {
    return !this.#mask.includes(1);
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  undo() {
    const before = this.#past.pop();
    if (before) this.#mask = before;
    this.#draw();
  }

  clear() {
    this.#remember();
    this.#mask.fill(0);
    this.#draw();
  }

  /** Paint a rectangle; `right` and `bottom` lie just outside it. */
  box(left, top, right, bottom) {
    this.#remember();
    for (let y = top; y < bottom; y++) this.#mask.fill(1, y * this.width + left, y * this.width + right);
    this.#draw();
  }

  /** White where it is painted, black elsewhere, as a PNG of the image's size. */
  async blob() {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [this.width, this.height];
    this.#put(canvas, (on) => (on ? [255, 255, 255, 255] : [0, 0, 0, 255]));
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }

  #begin(event) {
    if (!this.ready || event.button !== 0 || !event.isPrimary) return; // one finger paints
    event.preventDefault();
    this.overlay.setPointerCapture(event.pointerId);
    this.#remember();
    this.#at = this.#point(event);
    this.#stroke(this.#at);
  }

  #move(event) {
    if (!event.isPrimary) return;
    if (!this.#at) return this.#hover(this.ready ? this.#point(event) : null);
    for (const part of event.getCoalescedEvents?.() ?? [event]) this.#stroke(this.#point(part));
  }

  #end() {
    if (!this.#at) return;
    this.#at = null;
    this.#draw();
  }

  #hover(point) {
    this.#over = point;
    this.#drawCells();
  }

  /** Positions that a mask touches; without paint all of them, if `mark` says so. */
  #touched(mask) {
    const [[rows, columns], touched] = [this.grid, new Set()];
    mask.forEach((on, k) => {
      const [x, y] = [k % this.width, Math.floor(k / this.width)];
      if (on) touched.add(Math.floor((y * rows) / this.height) * columns + Math.floor((x * columns) / this.width));
    });
    if (!touched.size && this.#whole && this.ready && mask === this.#mask) {
      for (let k = 0; k < rows * columns; k++) touched.add(k);
    }
    return touched;
  }

  #drawCells() {
    const scale = Math.max(1, Math.floor(SIDE / Math.max(this.width, this.height)));
    [this.cells.width, this.cells.height] = [this.width * scale, this.height * scale];
    const context = this.cells.getContext("2d");
    this.#outline(context, this.#touched(this.#mask), this.#blend ? "" : FILL);
    if (this.#over) {
      const under = new Uint8Array(this.#mask.length);
      this.#disc(...this.#over, under, 1);
      context.setLineDash([8, 8]);
      this.#outline(context, this.#touched(under));
    }
  }

  /** A frame around each of some positions, in two colours that show on every image. */
  #outline(context, positions, fill = "") {
    const [rows, columns] = this.grid;
    const [width, height] = [context.canvas.width / columns, context.canvas.height / rows];
    for (const k of positions) {
      const [x, y] = [(k % columns) * width, Math.floor(k / columns) * height];
      if (fill) {
        context.fillStyle = fill;
        context.fillRect(x, y, width, height);
      }
      for (const [colour, line] of [["#ffffff", 5], ["#c4105f", 2.5]]) {
        [context.strokeStyle, context.lineWidth] = [colour, line];
        context.strokeRect(x + 3, y + 3, width - 6, height - 6);
      }
    }
  }

  #remember() {
    this.#past.push(this.#mask.slice());
    if (this.#past.length > MOST_UNDO) this.#past.shift();
  }

  #point(event) {
    const { left, top, width, height } = this.overlay.getBoundingClientRect();
    return [((event.clientX - left) / width) * this.width, ((event.clientY - top) / height) * this.height];
  }

  /** Discs from the last point to this one, half a pixel apart. */
  #stroke([x, y]) {
    const [fromX, fromY] = this.#at;
    const count = Math.max(1, Math.ceil(2 * Math.hypot(x - fromX, y - fromY)));
    for (let k = 0; k <= count; k++) this.#disc(fromX + ((x - fromX) * k) / count, fromY + ((y - fromY) * k) / count);
    this.#at = [x, y];
    this.#paint();
  }

  #disc(centreX, centreY, mask = this.#mask, value = this.erasing ? 0 : 1) {
    const radius = Math.max(this.size / 2, 0.71); // at least the pixel that is touched
    for (let y = Math.max(0, Math.floor(centreY - radius)); y < Math.min(this.height, centreY + radius); y++) {
      for (let x = Math.max(0, Math.floor(centreX - radius)); x < Math.min(this.width, centreX + radius); x++) {
        const far = Math.hypot(x + 0.5 - centreX, y + 0.5 - centreY);
        if (far <= radius) mask[y * this.width + x] = value;
      }
    }
  }

  #put(canvas, colour) {
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(this.width, this.height);
    this.#mask.forEach((on, k) => pixels.data.set(colour(on), 4 * k));
    context.putImageData(pixels, 0, 0);
  }

  #paint() {
    this.#put(this.overlay, (on) => (on ? TINT : [0, 0, 0, 0]));
    this.#drawCells();
  }

  #draw() {
    this.#paint();
    const share = this.#mask.reduce((sum, on) => sum + on, 0) / this.#mask.length;
    const painted = share ? `${Math.max(1, Math.round(100 * share))} % of it painted` : "nothing painted";
    const again = `${this.drawnAgain} of ${this.grid[0] * this.grid[1]} positions will be drawn again`;
    this.overlay.setAttribute("aria-label", this.ready ? `The image, ${painted}; ${again}` : "No image yet");
    this.onchange(this);
  }
}
