// The view that regenerates part of an image, or its finer levels.

import { post } from "./api.js";
import { chooseNamed, chosenOn, showAxes } from "./axes.js";
import { make, seconds } from "./dom.js";
import { applyDefaults, chooseModel, clearError, InputError, numberIn, numbersIn, runForm, showError, wireSeed } from "./forms.js";
import { Brush } from "./brush.js";
import { Gallery, pictures, sharp } from "./gallery.js";
import { gridOf } from "./heat.js";
import { offerSamples, showOffer } from "./samples.js";
import { followSource } from "./source.js";

/** Wire the view. `store`: the chosen model of images; `samples`: what it draws; `sources`: the image; `uses` see
 * `Gallery`. */
export function startEdit(view, { models, store, samples, sources, uses }) {
  const form = view.querySelector("form");
  const paint = view.querySelector(".paint");
  const easel = view.querySelector(".easel");
  const [undo, clear, erase] = [".undo", ".clear", ".erase"].map((name) => form.querySelector(name));
  const [size, keep] = [form.querySelector("#edit-brush"), form.elements.keep_levels];
  const [left, top, right, bottom] = ["left", "top", "right", "bottom"].map((side) => form.querySelector(`#box-${side}`));
  const { num_samples: count, num_steps: steps, guidance_scale: guidance, seed, blend, class_id: classId } = form.elements;
  const gallery = new Gallery(view.querySelector(".gallery"), { uses, before: true });
  const axes = view.querySelector("#edit-axes");
  const cells = view.querySelector(".cells-hint");
  const brush = new Brush(easel, ({ canUndo, isEmpty, ready, drawnAgain, grid, cell }) => {
    undo.disabled = !canUndo;
    clear.disabled = isEmpty;
    const sides = `${cell[0]} x ${cell[1]} pixels each`;
    cells.textContent = ready ? `${drawnAgain} of ${grid[0] * grid[1]} positions will be drawn again, ${sides}.` : "";
    if (!isEmpty) clearError(paint);
  });

  const label = () => {
    document.getElementById("edit-brush-out").textContent = `${size.value} pixel${size.value === "1" ? "" : "s"}`;
    document.getElementById("edit-keep-out").textContent = `${keep.value} of ${keep.max}`;
    brush.size = Number(size.value);
    brush.mark({ whole: Number(keep.value) > 0, blend: blend.checked });
  };
  store.follow((model) => {
    const { width, height } = model.image;
    brush.grid = gridOf(model.positions, height, width);
    applyDefaults(form, model);
    [keep.max, keep.value] = [model.levels, Math.min(keep.value, model.levels)];
    [size.max, size.value] = [Math.floor(width / 2), Math.round(width / 6)];
    for (const [input, most] of [[left, width - 1], [top, height - 1], [right, width], [bottom, height]]) input.max = most;
    [left.value, top.value, right.value, bottom.value] = [0, 0, width, Math.round(height / 2)];
    document.getElementById("edit-class-field").hidden = model.classes.length === 0;
    showAxes(axes, model);
    classId.replaceChildren(...model.classes.map((name, k) => make("option", { value: k, text: name })));
    easel.classList.toggle("sharp", sharp(model) === "sharp");
    label();
  });
  chooseModel(form.elements.model, models, store);
  wireSeed(form);
  offerSamples(view, samples, (source) => sources.set(source));
  const picture = followSource(view, {
    sources,
    store,
    onready: (prepared, source) => {
      brush.show(prepared?.canvas ?? null);
      const name = source?.className ?? "";
      if (!name) return;
      const first = name.split(", ")[0];
      const said = [name, first, first.replace(`${store.value.axes?.[0]?.name}=`, "")];
      const known = said.map((one) => store.value.classes.indexOf(one)).find((k) => k >= 0);
      if (known !== undefined) classId.value = known;
      chooseNamed(axes, name);
    },
  });

  size.addEventListener("input", label);
  keep.addEventListener("input", label);
  blend.addEventListener("change", label);
  undo.addEventListener("click", () => brush.undo());
  clear.addEventListener("click", () => brush.clear());
  erase.addEventListener("click", () => {
    brush.erasing = !brush.erasing;
    erase.setAttribute("aria-pressed", String(brush.erasing));
  });
  const addBox = form.querySelector(".add-box");
  for (const input of [left, top, right, bottom]) {
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // the form is not sent
      addBox.click();
    });
  }
  addBox.addEventListener("click", () => {
    for (const input of [left, top, right, bottom]) clearError(input);
    try {
      const [x0, y0, x1, y1] = [left, top, right, bottom].map(numberIn);
      if (!brush.ready) throw new InputError(form.elements.image, "Choose an image first.");
      if (x1 <= x0) throw new InputError(right, "Right must be more than left.");
      if (y1 <= y0) throw new InputError(bottom, "Bottom must be more than top.");
      brush.box(x0, y0, x1, y1);
    } catch (error) {
      if (!(error instanceof InputError)) throw error;
      showError(error.control, error.message);
      error.control.focus();
    }
  });

  const work = async ({ signal, say, progress, began, fresh }) => {
    const model = store.value;
    const { blob, name } = await picture.require();
    const levels = Number(keep.value);
    if (brush.isEmpty && levels === 0) {
      throw new InputError(paint, "Paint what to regenerate, or keep at least one level of the whole image.");
    }
    if (levels >= model.levels) throw new InputError(keep, "All levels are kept, so nothing would be regenerated: keep fewer.");
    const numbers = numbersIn([count, steps, guidance, seed]);
    const body = new FormData();
    for (const [key, value] of Object.entries({ model: model.name, ...numbers })) body.set(key, value);
    body.set("image", blob, name);
    if (!brush.isEmpty) body.set("mask", await brush.blob(), "mask.png");
    if (levels > 0) body.set("keep_levels", levels);
    if (model.classes.length) {
      const { request } = chosenOn(axes, model, classId.value);
      const asText = (pairs) => Object.entries(pairs).map(([axis, name]) => `${axis}=${name}`).join(", ");
      body.set("class_id", typeof request === "object" ? asText(request) : request);
    }
    body.set("blend", blend.checked && !brush.isEmpty);
    say(`Generating ${pictures(numbers.num_samples)} …`);
    progress(0, 0);
    began();
    const before = brush.snapshot();
    const result = await post("v1/images/edit", body, signal);
    fresh();
    gallery.begin(model, result.images.map((image) => image.class_name || "image"), result.seed, before);
    gallery.done(result);
    showOffer(view);
    return `${pictures(result.images.length)} in ${seconds(result.seconds)}, seed ${result.seed}.`;
  };
  runForm(view, { work, blame: () => ({ mask: paint, box: paint, class: classId, images: count }) });
}
