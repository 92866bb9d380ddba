// The server's interface from its OpenAPI document: what every route takes and answers, and a form to try it.

import { ApiError, models, send } from "./api.js";
import { blobOf, make, pngUrl, refill } from "./dom.js";

const LONG = 120; // characters of a text in an answer; longer ones (images, sounds) are counted
const FILES = { png: "image", spectrogram: "image", wav: "audio", flac: "audio" }; // base64 in JSON, shown as what it is
let [api, served, counter] = [null, [], 0];

const resolved = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : schema ?? {});
const typeOf = ({ anyOf, type, format, items }) => {
  if (anyOf) return anyOf.map(typeOf).filter((one) => one !== "null").join(" or ");
  if (format === "binary") return "file";
  return type === "array" ? `list of ${typeOf(items ?? {})}` : type ?? "any";
};

/** A value to begin with: what the route needs, and a seed. */
function example(name, path) {
  const model = served.find((one) => one.modality === (/speech|audio|voices/.test(path) ? "speech" : "image"));
  if (name === "model") return model?.name;
  if (name === "text" || name === "input") return model?.sentences?.[0] ?? "some text";
  return { seed: 0, num_samples: 1 }[name];
}

/** A text as nodes: what is between backticks as code. */
const marked = (said) => said.split("`").map((part, index) => (index % 2 ? make("code", { text: part }) : part));

function fieldTable(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => make("tr", {},
    make("th", { scope: "row" }, make("code", { text: name })),
    make("td", { text: typeOf(field) + (schema.required?.includes(name) ? ", required" : "") }),
    make("td", {}, ...marked([field.description, field.default != null ? `Default: ${JSON.stringify(field.default)}.` : ""].filter(Boolean).join(" ")))));
  const head = make("tr", {}, ...["field", "type", "meaning"].map((text) => make("th", { scope: "col", text })));
  return make("div", { class: "wide", tabindex: 0, role: "group", "aria-label": "Fields" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

/** A labelled control. */
function labelled(name, control) {
  control.id = `docs-${++counter}`;
  return make("div", { class: "field" }, make("label", { for: control.id, text: name }), control);
}

function choice(name, values) {
  return labelled(name, make("select", { name }, ...values.map((value) => make("option", { value, text: value }))));
}

/** The controls of a body of one media type, and a function that reads them. */
function bodyOf(type, schema, path) {
  const names = Object.keys(schema.properties ?? {});
  if (type === "application/json") {
    const start = Object.fromEntries(names.map((name) => [name, example(name, path)]).filter(([, value]) => value !== undefined));
    const text = make("textarea", { rows: 7, spellcheck: "false", class: "code" });
    text.value = JSON.stringify(start, null, 2);
    return [[labelled("JSON", text)], () => ({ body: text.value, headers: { "Content-Type": type } }),
      () => `-H 'Content-Type: ${type}' -d '${text.value.replace(/\s+/g, " ").replaceAll("'", "'\\''")}'`];
  }
  const inputs = names.map((name) => {
    const file = schema.properties[name].format === "binary";
    const input = make("input", { name, type: file ? "file" : "text", autocomplete: "off" });
    if (!file) input.value = example(name, path) ?? "";
    return input;
  });
  const given = () => inputs.filter((input) => (input.type === "file" ? input.files.length : input.value));
  const read = () => {
    const body = new FormData();
    for (const input of given()) body.set(input.name, input.files?.[0] ?? input.value);
    return { body };
  };
  const curl = () => given().map((input) => `-F ${input.name}=${input.files ? `@${input.files[0].name}` : `'${input.value.replaceAll("'", "'\\''")}'`}`).join(" ");
  return [[make("div", { class: "row" }, ...inputs.map((input) => labelled(input.name, input)))], read, curl];
}

function routeOf(path, method, route) {
  const bodies = Object.entries(route.requestBody?.content ?? {});
  const answers = Object.keys(route.responses["200"]?.content ?? {});
  const form = make("form", { class: "try-out", novalidate: true, autocomplete: "off" });
  const query = (route.parameters ?? []).map(({ name }) => {
    const input = make("input", { name, type: "text" });
    input.value = example(name, path) ?? "";
    return input;
  });
  const place = make("div", { class: "body" });
  const kind = bodies.length > 1 ? choice("Body as", bodies.map(([type]) => type)) : null;
  const accept = answers.length > 1 ? choice("Response as", answers) : null;
  let [read, curl] = [() => ({}), () => ""];
  const showBody = () => {
    const [type, { schema }] = bodies.find(([one]) => one === kind?.querySelector("select").value) ?? bodies[0];
    const [controls, ...functions] = bodyOf(type, resolved(schema), path);
    [read, curl] = functions;
    place.replaceChildren(...controls, fieldTable(resolved(schema)));
  };
  if (bodies.length) showBody();
  kind?.addEventListener("change", showBody);

  const command = make("pre", { class: "code", tabindex: 0, "aria-label": "The same with curl" });
  const output = make("div", { class: "answer", "aria-live": "polite" });
  const address = () => {
    const given = query.filter((input) => input.value).map((input) => `${input.name}=${encodeURIComponent(input.value)}`);
    return path.slice(1) + (given.length ? `?${given.join("&")}` : "");
  };
  const wanted = () => accept?.querySelector("select").value ?? answers[0] ?? "*/*";
  const sayCommand = () => {
    const header = accept ? `-H 'Accept: ${wanted()}' ` : "";
    command.textContent = `curl ${header}${curl()} '${new URL(address(), location.href)}'`.replace(/ +/g, " ");
  };
  for (const event of ["input", "change"]) form.addEventListener(event, sayCommand);
  form.append(...query.map((input) => labelled(input.name, input)), ...(kind ? [kind] : []), ...(accept ? [accept] : []), place,
    make("div", { class: "actions" }, make("button", { class: "primary", type: "submit", text: "Send" })), command, output);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    refill(output, make("p", { class: "status", text: "Waiting for the response …" }));
    const began = performance.now();
    try {
      const { headers, ...options } = read();
      const answer = await send(address(), { method: method.toUpperCase(), ...options, headers: { ...headers, Accept: wanted() } });
      const shown = await answerOf(answer);
      const took = ((performance.now() - began) / 1000).toFixed(2);
      output.replaceChildren(make("p", { class: "status", text: `${answer.status}, ${answer.headers.get("Content-Type")}, ${took} s` }), ...shown);
    } catch (error) {
      if (!(error instanceof ApiError)) console.error(error);
      output.replaceChildren(make("p", { class: "error", text: error.status ? `${error.status}: ${error.message}` : error.message }));
    }
  });
  sayCommand();
  return make("details", { class: "panel route" },
    make("summary", {}, make("b", { class: "method", text: method.toUpperCase() }), make("code", { text: path }), make("span", { class: "hint" }, ...marked(route.description ?? ""))),
    form);
}

/** An answer as elements: images and sounds as such, everything else as text. */
async function answerOf(answer) {
  const type = (answer.headers.get("Content-Type") ?? "").split(";")[0];
  if (/^(image|audio)\//.test(type) && type !== "audio/pcm") return [media(type, URL.createObjectURL(await answer.blob()))];
  if (type === "audio/pcm") return [text(`${(await answer.blob()).size} bytes of samples`)];
  const whole = await answer.text();
  if (type !== "application/json" && type !== "application/x-ndjson") return [text(whole)];
  const found = [];
  const short = (key, value) => {
    if (typeof value !== "string" || value.length <= LONG) return value;
    if (key in FILES && found.length < 24) {
      found.push(media(`${FILES[key]}/`, FILES[key] === "image" ? pngUrl(value) : URL.createObjectURL(blobOf(value, `audio/${key}`))));
    }
    return `${value.slice(0, 24)}… (${value.length} characters)`;
  };
  const documents = type === "application/json" ? [whole] : whole.trim().split("\n");
  const lines = documents.map((one) => JSON.stringify(JSON.parse(one, short), null, documents.length > 1 ? 0 : 2));
  return [text(lines.join("\n")), ...(found.length ? [make("div", { class: "found" }, ...found)] : [])];
}

const text = (content) => make("pre", { class: "code", tabindex: 0, "aria-label": "The response", text: content });
const media = (type, src) => (type.startsWith("image")
  ? make("img", { src, alt: "An image of the response", class: "sharp" })
  : make("audio", { controls: true, src, "aria-label": "A sound of the response" }));

async function load() {
  const notice = document.getElementById("notice");
  try {
    api = await (await send("openapi.json", {})).json();
    served = await models().catch(() => []);
    const routes = Object.entries(api.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, route]) => routeOf(path, method, route)));
    document.querySelector(".routes").replaceChildren(...routes);
    notice.hidden = true;
  } catch (error) {
    if (!(error instanceof ApiError)) console.error(error);
    notice.replaceChildren(make("span", { text: error.message }), make("button", { type: "button", text: "Try again", onclick: load }));
  }
}

load();
