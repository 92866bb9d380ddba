// The view that makes new images.

import { post, stream } from "./api.js";
import { chosenOn, showAxes } from "./axes.js";
import { make, seconds } from "./dom.js";
import { applyDefaults, checkCount, chooseModel, forget, InputError, numbersIn, runForm, wireSeed } from "./forms.js";
import { Gallery, pictures } from "./gallery.js";
import { sayMeasured } from "./samples.js";

const MANY = 24; // classes; more get a field to find them

/** Wire the view. `store` holds the chosen model of images; `uses` see `Gallery`. */
export function startPictures(view, { models, store, samples, uses }) {
  const form = view.querySelector("form");
  const classes = view.querySelector("#pictures-classes");
  const chips = classes.querySelector(".chips");
  const axes = view.querySelector("#pictures-axes");
  const filter = classes.querySelector(".filter");
  const gallery = new Gallery(view.querySelector(".gallery"), { uses });
  const { num_samples: each, num_steps: steps, guidance_scale: guidance, seed, watch } = form.elements;

  store.follow((model) => {
    applyDefaults(form, model);
    classes.hidden = model.classes.length === 0;
    showAxes(axes, model);
    each.labels[0].textContent = model.classes.length ? "Per class" : "Images";
    filter.hidden = model.classes.length <= MANY;
    filter.querySelector("input").value = "";
    chips.classList.toggle("many", model.classes.length > MANY);
    chips.replaceChildren(...model.classes.map((name, k) =>
      make("label", { class: "chip" }, make("input", { type: "checkbox", value: k, checked: k === 0 }), make("span", { text: name }))));
  });
  chooseModel(form.elements.model, models, store);
  wireSeed(form);
  filter.addEventListener("keydown", (event) => event.key === "Enter" && event.preventDefault()); // it finds, it sends nothing
  filter.addEventListener("input", (event) => {
    const query = event.target.value.trim().toLowerCase();
    for (const chip of chips.children) {
      chip.hidden = !chip.textContent.toLowerCase().includes(query) && !chip.querySelector(":checked");
    }
  });

  const request = () => {
    const model = store.value;
    const numbers = numbersIn([each, steps, guidance, seed]);
    const classIndices = [...chips.querySelectorAll(":checked")].map((box) => Number(box.value));
    if (model.classes.length && !classIndices.length) throw new InputError(classes, "Choose at least one class.");
    const rows = classIndices.length || 1;
    checkCount(each, { classes: rows, each: numbers.num_samples, limit: model.limits.max_samples });
    const chosen = classIndices.map((k) => chosenOn(axes, model, k));
    const names = chosen.length ? chosen.map(({ name }) => name) : ["image"];
    const labels = names.flatMap((name) => Array(numbers.num_samples).fill(name));
    const classIds = chosen.length ? { class_ids: chosen.map((one) => one.request) } : {};
    return { model, labels, body: { model: model.name, ...classIds, ...numbers } };
  };

  const about = view.querySelector(".about");
  const empty = view.querySelector(".empty");
  const waiting = empty.querySelector("p").textContent;
  samples.follow(({ model, answer, problem }) => {
    if (!answer && !problem) forget(view, gallery.root);
    const made = !gallery.root.hidden && !gallery.root.classList.contains("samples");
    if (made) return; // what was asked for stays
    sayMeasured(about, model);
    about.hidden = !answer;
    empty.hidden = Boolean(answer);
    empty.querySelector("p").textContent = problem ? `No samples: ${problem}` : waiting;
    if (answer) gallery.show(model, answer);
  });

  const work = async ({ signal, say, progress, began, fresh }) => {
    const { model, labels, body } = request();
    let begun = false;
    const begin = () => {
      if (begun) return;
      begun = true;
      fresh();
      empty.hidden = about.hidden = true;
      gallery.begin(model, labels, body.seed);
    };
    say(`Generating ${pictures(labels.length)} …`);
    progress(0, watch.checked ? body.num_steps ?? 0 : 0);
    began();
    let result = null;
    if (watch.checked) {
      for await (const event of stream("v1/images/stream", body, signal)) {
        begin();
        if (event.event === "done") result = event;
        else {
          gallery.step(event);
          progress(event.step, event.num_steps);
        }
      }
    } else {
      result = await post("v1/images", body, signal);
    }
    begin();
    gallery.done(result);
    return `${pictures(result.images.length)} in ${seconds(result.seconds)}, seed ${result.seed}.`;
  };
  runForm(view, { work, blame: () => ({ class_ids: classes, class: classes, images: each }) });
}
