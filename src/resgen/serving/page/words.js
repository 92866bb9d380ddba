// The view in which a recording says other words.

import { stream } from "./api.js";
import { download, make, pngUrl, refill, seconds, slug } from "./dom.js";
import { applyDefaults, checkSize, checkText, chooseModel, clearError, forget, InputError, numbersIn, runForm, wireSeed } from "./forms.js";
import { samplesOf } from "./player.js";
import { startRecorder, wavOf } from "./record.js";
import { Sentences, Timed } from "./sentences.js";
import { doubtsOf, sampleOf } from "./speech.js";

const PRESS = "Press a word to change it, or write what is to be said.";
const wordsOf = (text) => text.trim().split(/\s+/).filter(Boolean);

/** What a plan of the server changes, in words. */
function sayChange({ replaced, text, new_words: place }) {
  const fresh = wordsOf(text).slice(...place).join(" ");
  return `${replaced ? `“${replaced}” becomes “${fresh}”` : `“${fresh}” is put in`}; the rest is kept.`;
}

/** Words of which those from `begin` on, up to `end`, are marked. */
function marked(words, [begin, end]) {
  const [left, part, right] = [words.slice(0, begin), words.slice(begin, end), words.slice(end)].map((list) => list.join(" "));
  const pieces = [left, part && make("mark", { text: part }), right].filter(Boolean);
  return ["“", ...pieces.flatMap((piece, k) => (k ? [" ", piece] : [piece])), "”"];
}

/** Wire the view. `store`: the chosen model of speech; `samples`: what it says; `sources`: a sound that was made here,
 * {blob, name, text}; `change(source)` brings one. */
export function startWords(view, { models, store, samples, sources, change }) {
  const form = view.querySelector("form");
  const output = view.querySelector(".sound");
  const { recording: file, input_text: said, text, speed, num_steps: steps, guidance_scale: guidance, seed, blend, keep_length: keep } = form.elements;
  const [fieldset, listen, chips] = ["fieldset", ".voice-shared audio", ".words"].map((name) => form.querySelector(name));
  const hint = document.getElementById("words-change");
  const made = form.querySelector("[name=source][value=made]");
  const recorder = startRecorder(view);
  const [before, sentences] = [new Before(), new Sentences(make("div", { class: "sentences" }))];
  const result = make("div", { class: "result" });
  output.append(before.root, make("section", { class: "after", "aria-label": "After" }, make("h3", { text: "After" }), sentences.root, result));
  let played = null;

  const from = () => form.elements.source.value;
  const current = () => ({ made: sources.value?.blob, file: file.files[0], record: recorder.wav })[from()] ?? null;
  const showSource = () => {
    view.querySelector(".voice-file").hidden = from() !== "file";
    view.querySelector(".voice-record").hidden = from() !== "record";
    view.querySelector(".consent").hidden = from() === "made";
    if (from() !== "record") recorder.stop();
    if (played) URL.revokeObjectURL(played);
    played = current() && URL.createObjectURL(current());
    listen.hidden = !played;
    if (played) listen.src = played;
    else listen.removeAttribute("src");
    clearError(fieldset);
  };
  for (const choice of form.elements.source) choice.addEventListener("change", showSource);
  file.addEventListener("change", showSource);
  recorder.onchange = showSource;

  /** The words to press. */
  const showWords = () => {
    const words = wordsOf(text.value);
    chips.hidden = !words.length;
    chips.replaceChildren(...words.map((word, k) => make("button", { type: "button", class: "chip", text: word, onclick: () => select(k) })));
    hint.textContent = words.length ? PRESS : "";
  };
  const select = (number) => {
    const [place] = [...text.value.matchAll(/\S+/g)].slice(number);
    text.focus();
    text.setSelectionRange(place.index, place.index + place[0].length);
  };
  let earlier = "";
  said.addEventListener("input", () => {
    if (text.value === earlier) text.value = said.value; // nothing was changed in it yet
    earlier = said.value;
    showWords();
  });
  text.addEventListener("input", showWords);

  sources.follow((source) => {
    made.disabled = false;
    made.checked = true;
    form.querySelector(".made").textContent = `Made here: “${source.text}”`;
    said.value = text.value = earlier = source.text;
    for (const control of [said, text, file]) clearError(control);
    showSource();
    showWords();
  });
  const [offer, empty] = [".offer", ".empty"].map((name) => view.querySelector(name));
  const waiting = empty.querySelector("p").textContent;
  const showOffer = () => {
    offer.hidden = !output.hidden || !offer.querySelector("ul").children.length;
    empty.hidden = !output.hidden || !offer.hidden;
  };
  samples.follow(({ answer, problem }) => {
    empty.querySelector("p").textContent = problem ? `No samples: ${problem}` : waiting;
    refill(offer.querySelector("ul"), ...(answer?.samples ?? []).map((one) => sampleOf(one, change)));
    showOffer();
  });
  store.follow((model) => {
    applyDefaults(form, model);
    forget(view, output);
    if (output.hidden) showWords(); // not what was changed before
    showOffer();
  });
  chooseModel(form.elements.model, models, store);
  wireSeed(form);
  showSource();

  const soundControl = () => ({ file, record: recorder.button })[from()] ?? fieldset;
  const request = () => {
    const [model, sound] = [store.value, current()];
    const missing = from() === "record" ? "Record a few seconds first." : "Choose a sound file.";
    if (!sound) throw new InputError(soundControl(), missing);
    const name = sound.name ?? sources.value?.name ?? "recording.wav";
    const content = sound.name ? sound : new File([sound], name, { type: "audio/wav" });
    checkSize(soundControl(), content, model.limits.max_upload_bytes);
    if (!said.value.trim()) throw new InputError(said, "Write what is said in it: the page needs this to find the words.");
    if (!text.value.trim()) throw new InputError(text, "Write what it should say.");
    if (text.value.trim() === said.value.trim()) throw new InputError(text, "Change at least one word.");
    for (const control of [said, text]) checkText(control, model.limits.max_text);
    const body = new FormData();
    const fields = { model: model.name, input_text: said.value.trim(), text: text.value.trim(), blend: blend.checked, keep_length: keep.checked };
    for (const [key, value] of Object.entries({ ...fields, ...numbersIn([speed, steps, guidance, seed]) })) body.set(key, value);
    body.set("recording", content, name);
    if (from() !== "made") body.set("check_input", true);
    return body;
  };

  const work = async ({ signal, say, progress, began, fresh }) => {
    const body = request();
    const [model, source] = [store.value, current()];
    say("Speaking …");
    progress(0, 0);
    began();
    let [plan, sound, done, doubts] = [null, null, null, ""];
    for await (const event of stream("v1/speech/edit/stream", body, signal)) {
      if (event.event === "plan") {
        plan = event;
        fresh();
        output.hidden = false;
        showOffer();
        hint.textContent = sayChange(plan);
        refill(result);
        before.show(plan, source);
        sentences.begin(model.levels, (timed, visible) => {
          if (visible) timed.mark(...plan.new_positions.map((place) => place / visible.length));
          else timed.mark(plan.begin_s / sound.duration_s, plan.new_end_s / sound.duration_s);
        });
      } else if (event.event === "step") {
        sentences.step({ ...event, sentence: 0, sentences: 1 });
        progress(event.step, event.num_steps);
      } else if (event.event === "sound") {
        sound = event;
        sentences.sound({ ...event, sentence: 0 }, marked(wordsOf(plan.text), plan.new_words));
      } else if (event.event === "warning") doubts = doubtsOf(event);
      else done = event;
    }
    const wav = wavOf([samplesOf(sound.pcm)], done.sample_rate_hz);
    const name = `${slug(plan.text).slice(0, 40)}-${done.seed}.wav`;
    refill(result,
      make("audio", { controls: true, src: URL.createObjectURL(wav), "aria-label": `After: ${plan.text}` }),
      make("div", { class: "actions" },
        make("button", { type: "button", class: "save", text: "Download WAV", onclick: () => download(wav, name) }),
        make("button", { type: "button", class: "change-words", text: "Change more", onclick: () => change({ blob: wav, name, text: plan.text }) })));
    const length = `${plan.begin_s.toFixed(2)} to ${plan.new_end_s.toFixed(2)} s`;
    return `New from ${length}, in ${seconds(done.seconds)}, seed ${done.seed}.${doubts}`;
  };
  runForm(view, { work, blame: () => ({ recording: soundControl(), sound: soundControl(), stretch: text, words: text, "no English words": text, "the model cannot": text }) });
}

/** The recording as it was. */
class Before {
  #url = null;

  constructor() {
    this.title = make("p", { class: "spoken" });
    this.timed = new Timed();
    this.caption = make("figcaption");
    this.player = make("audio", { controls: true });
    this.root = make("section", { class: "before", "aria-label": "Before" }, make("h3", { text: "Before" }),
      make("div", { class: "sentence" }, this.title,
        make("figure", { class: "spectrogram" }, this.timed.root, this.caption)),
      make("div", { class: "result" }, this.player));
  }

  /** `plan` of the server for the sound of a blob. */
  show(plan, blob) {
    const words = plan.words.map((word) => word.text);
    this.title.replaceChildren(...marked(words, plan.replaced_words), " ", make("span", { class: "hint", text: seconds(plan.duration_s) }));
    this.timed.image.src = pngUrl(plan.spectrogram);
    const stretch = `${plan.begin_s.toFixed(2)} to ${plan.end_s.toFixed(2)} s`;
    this.timed.image.alt = `Spectrogram of the recording; ${stretch} is marked`;
    this.timed.mark(plan.begin_s / plan.duration_s, plan.end_s / plan.duration_s);
    this.caption.textContent = `Marked and replaced: ${stretch}`;
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.player.src = this.#url = URL.createObjectURL(blob);
    this.player.setAttribute("aria-label", `Before: ${words.join(" ")}`);
  }
}
