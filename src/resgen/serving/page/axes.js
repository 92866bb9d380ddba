// What a model is told besides the class: a select for each further axis.

import { make } from "./dom.js";

/** Fill `root` with the selects of a model. */
export function showAxes(root, { axes = [] }) {
  root.hidden = axes.length < 2;
  root.replaceChildren(...axes.slice(1).map(({ name, classes }, k) => {
    const id = `${root.id}-${k}`;
    const any = make("option", { value: "", text: "any" });
    const options = classes.map((one, number) => make("option", { value: number, text: one }));
    return make("div", { class: "field" },
      make("label", { for: id, text: name }), make("select", { id, "data-axis": name }, any, ...options));
  }));
}

/** What a request says: class `k` of a model and, where it has axes, what the selects say. */
export function chosenOn(root, { axes = [], classes }, k) {
  if (!axes.length) return { request: k, name: classes[k] };
  const said = [...root.querySelectorAll("select")].filter((select) => select.value !== "")
    .map((select) => [select.dataset.axis, select.selectedOptions[0].textContent]);
  const pairs = [[axes[0].name, classes[k]], ...said];
  return { request: Object.fromEntries(pairs), name: pairs.map(([, name]) => name).join(", ") };
}

/** Choose on the selects what an image's class name says, as the server writes it: `lorelei, background=blue, glasses`. */
export function chooseNamed(root, className) {
  const parts = className.split(", ");
  for (const select of root.querySelectorAll("select")) {
    const said = [...select.options].find(({ value, text }) => value && (parts.includes(text) || parts.includes(`${select.dataset.axis}=${text}`)));
    select.value = said?.value ?? "";
  }
}
