// The image that is edited or looked at level by level: uploaded or generated, and brought to the model's shape.

import { clearError, checkSize, InputError, showError } from "./forms.js";

const READ = ["image/png", "image/jpeg", "image/webp", "image/bmp"]; // by the server
const LUMA = [0.299, 0.587, 0.114]; // ITU-R 601, as the server converts to grey

/**
 * What a model sees of an image: the centred part in the model's proportions and size, transparency over white, grey
 * for a model of grey images.
 *
 * An image of the model's size is sent as its own bytes if the server reads its format, any other as it is shown.
 */
export async function prepare(source, { image: { height, width, channels } }) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(source.blob);
  } catch {
    throw new Error(`'${source.name}' is not an image this browser can read. Try a PNG or JPEG.`);
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  const scale = Math.max(width / bitmap.width, height / bitmap.height);
  const [shownWidth, shownHeight] = [bitmap.width * scale, bitmap.height * scale];
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (width - shownWidth) / 2, (height - shownHeight) / 2, shownWidth, shownHeight);
  if (channels === 1) toGrey(context, width, height);
  const same = bitmap.width === width && bitmap.height === height;
  bitmap.close();
  const own = same && READ.includes(source.blob.type);
  const blob = own ? source.blob : await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  return { canvas, blob, name: own ? source.name : "image.png", resized: !same };
}

function toGrey(context, width, height) {
  const pixels = context.getImageData(0, 0, width, height);
  const { data } = pixels;
  for (let k = 0; k < data.length; k += 4) {
    data.fill(Math.round(LUMA[0] * data[k] + LUMA[1] * data[k + 1] + LUMA[2] * data[k + 2]), k, k + 3);
  }
  context.putImageData(pixels, 0, 0);
}

/**
 * Keep a view's image: from its file input, or from `sources`, prepared for the model of `store`.
 *
 * `onready(prepared, source)` is called with each image, and with null when there is none.
 */
export function followSource(view, { sources, store, onready }) {
  const input = view.querySelector("input[type=file]");
  const hint = view.querySelector(".source-hint");
  const empty = hint.textContent;
  let turn = 0;
  const current = { prepared: null, source: null };

  let preparing = Promise.resolve();
  const update = () => (preparing = read());
  const read = async () => {
    const mine = ++turn;
    const source = sources.value;
    clearError(input);
    let prepared = null;
    let problem = "";
    if (source) {
      try {
        prepared = await prepare(source, store.value);
      } catch (error) {
        problem = error.message;
      }
    }
    if (mine !== turn) return; // another image was chosen meanwhile
    [current.prepared, current.source] = [prepared, source];
    if (source?.input !== input) input.value = "";
    const { image } = store.value;
    const shape = `${image.width} x ${image.height}`;
    if (problem) showError(input, problem);
    if (!prepared) hint.textContent = empty;
    else hint.textContent = `${source.note ?? source.name}${prepared.resized ? ` Cut and brought to ${shape} pixels.` : ""}`;
    onready(prepared, source);
  };
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) sources.set({ blob: file, name: file.name, note: `${file.name}.`, input });
  });
  sources.follow(update);
  store.follow(update);

  /** The prepared image to send, once the one that was chosen last is ready. */
  current.require = async () => {
    await preparing;
    if (!current.prepared) throw new InputError(input, "Choose an image first: upload one, or generate one and bring it here.");
    checkSize(input, current.prepared.blob, store.value.limits.max_upload_bytes);
    return current.prepared;
  };
  return current;
}
