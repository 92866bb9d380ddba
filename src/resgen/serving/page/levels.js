// The view that shows an image decoded with its first level, its first two, and so on.

import { post } from "./api.js";
import { blobOf, download, make, plural, pngUrl, slug } from "./dom.js";
import { chooseModel, runForm } from "./forms.js";
import { sharp } from "./gallery.js";
import { offerSamples, showOffer } from "./samples.js";
import { followSource } from "./source.js";

/** Wire the view; call what it returns when the view is shown. `store`: the chosen model of images; `sources`: the
 * image; `samples`: what the model draws. An image that is new to the view is decoded at once. */
export function startLevels(view, { models, store, samples, sources }) {
  const form = view.querySelector("form");
  const preview = view.querySelector(".preview");
  const list = view.querySelector(".levels");
  let sent = null; // last
  chooseModel(form.elements.model, models, store);
  offerSamples(view, samples, (source) => sources.set(source));
  const picture = followSource(view, {
    sources,
    store,
    onready: (prepared) => {
      preview.replaceChildren();
      if (!prepared) return;
      prepared.canvas.className = sharp(store.value);
      prepared.canvas.setAttribute("role", "img");
      prepared.canvas.setAttribute("aria-label", "The image as the model sees it");
      preview.append(prepared.canvas);
      open();
    },
  });

  const work = async ({ signal, say, progress, began, fresh }) => {
    const model = store.value;
    const { blob, name } = (sent = await picture.require());
    const body = new FormData();
    body.set("model", model.name);
    body.set("image", blob, name);
    say("Encoding and decoding …");
    progress(0, 0);
    began();
    const { levels } = await post("v1/images/levels", body, signal);
    fresh();
    list.hidden = false;
    showOffer(view);
    list.replaceChildren(...levels.map((level) => tile(level, model, name)));
    return `${plural(levels.length, "image")}, from coarse to fine.`;
  };
  const run = runForm(view, { work });
  const open = () => {
    if (!view.hidden && picture.prepared && picture.prepared !== sent) run();
  };
  return open;
}

function tile({ depth, png, psnr_db: decibels }, model, name) {
  const title = plural(depth, "level");
  const near = decibels < 100 ? `${decibels.toFixed(1)} dB` : "identical";
  const stem = slug(name.replace(/\.[a-z]+$/i, ""));
  const onclick = () => download(blobOf(png, "image/png"), `${stem}-levels-${depth}.png`);
  return make("li", {},
    make("figure", {},
      make("img", { src: pngUrl(png), class: sharp(model), alt: `Decoded with ${title}` }),
      make("figcaption", {}, make("b", { text: title }), make("span", { text: near }))),
    make("button", { type: "button", text: "PNG", "aria-label": `Download the PNG of ${title}`, onclick }));
}
