// Small helpers for elements, downloads and bytes.

/** An element with properties (`class`, `text`, `on...` handlers, attributes) and children. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Other children for an element; the object URLs that the old ones show are given up. */
export function refill(element, ...children) {
  for (const { src } of element.querySelectorAll("[src^='blob:']")) URL.revokeObjectURL(src);
  element.replaceChildren(...children);
}

/** The bytes of a base64 text as a Blob. */
export function blobOf(base64, type) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return new Blob([bytes], { type });
}

export const pngUrl = (base64) => `data:image/png;base64,${base64}`;

/** Offer a Blob as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = make("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // the browser reads it after the click
}

/** A name that is safe in a file's name. */
export const slug = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "") || "image";

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

/** Seconds as people read them. */
export const seconds = (value) => `${value < 10 ? value.toFixed(1) : Math.round(value)} s`;

/** Stop the sounds that play in an element, except one. */
export function hush(root, except = null) {
  for (const sound of root.querySelectorAll("audio")) if (sound !== except) sound.pause();
}

/** Does the person want things to stay still? */
export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Bring an element into view where it is below the fold (one column). */
export function reveal(element) {
  const { top } = element.getBoundingClientRect();
  if (top > innerHeight * 0.5 || top < 0) element.scrollIntoView({ block: "start", behavior: calm() ? "auto" : "smooth" });
}

/** A value that others follow. */
export class Store {
  #value = null;
  #followers = [];

  get value() {
    return this.#value;
  }

  set(value) {
    this.#value = value;
    for (const follower of this.#followers) follower(value);
  }

  follow(follower) {
    this.#followers.push(follower);
  }
}
