// The view that speaks a text, in a voice of the model's choice, of a file or of a recording.

import { ApiError, stream, voices } from "./api.js";
import { blobOf, download, hush, make, pngUrl, refill, seconds, slug } from "./dom.js";
import { applyDefaults, checkSize, checkText, chooseModel, clearError, forget, InputError, numbersIn, runForm, showError, wireSeed } from "./forms.js";
import { Player, samplesOf } from "./player.js";
import { startRecorder, wavOf } from "./record.js";
import { sayMeasured } from "./samples.js";
import { Sentences } from "./sentences.js";

/** Wire the view. `store`: the chosen model of speech; `samples`: what it says; `change(source)`: a sound that was made
 * should say other words. */
export function startSpeech(view, { models, store, samples, change }) {
  const form = view.querySelector("form");
  const output = view.querySelector(".sound");
  const { text, recording: prompt, prompt_text: promptText, speed, num_steps: steps, guidance_scale: guidance, seed, listen: aloud } = form.elements;
  const recorder = startRecorder(view);
  const listen = view.querySelector(".voice-shared audio");
  const named = view.querySelector(".named");
  const player = new Player();
  const heard = make("audio"); // a named voice
  form.append(heard);
  let wanted = null; // the button of the named voice that is to be heard once it arrives
  const silence = () => {
    wanted = null;
    player.stop();
  };
  document.addEventListener("play", silence, true); // one sound at a time
  const sentences = new Sentences(make("div", { class: "sentences" }));
  const result = make("div", { class: "result" });
  output.append(result, sentences.root);
  let played = null;
  const known = new Map(); // model: its named voices, with their sound; an answer to come

  const offer = (model) => {
    const texts = model.sentences ?? [];
    view.querySelector(".try").hidden = !texts.length;
    view.querySelector(".try .chips").replaceChildren(...texts.map((one) => make("button", {
      type: "button", class: "chip", text: one, onclick: () => {
        text.value = one;
        clearError(text);
      },
    })));
    if (!text.value.trim() || text.dataset.offered === text.value) text.value = text.dataset.offered = texts[0] ?? "";
  };
  const offerVoices = (model) => {
    const names = (model.voices ?? []).filter((name) => name !== "default");
    named.replaceChildren(...names.map((name) => make("div", { class: "named-voice" },
      make("label", { class: "check" }, make("input", { type: "radio", name: "voice", value: `named:${name}`, onchange: () => show() }),
        make("span", { text: name })),
      make("button", { type: "button", class: "listen", text: "Listen", "aria-label": `Listen to ${name}`, onclick: (event) => hear(name, event.target) }))));
    wanted = null;
    if (!voiceNow()) form.querySelector("[name=voice][value=none]").checked = true; // a named one of another model
    if (names.length) askVoices(model).catch(() => {}); // said when one is to be heard
  };
  const askVoices = (model) => {
    if (!known.has(model)) known.set(model, voices(model.name));
    known.get(model).catch(() => known.delete(model)); // asked for again
    return known.get(model);
  };
  const hear = async (name, button) => {
    clearError(button);
    wanted = button;
    try {
      const { flac } = (await askVoices(store.value)).find((voice) => voice.name === name);
      if (wanted !== button) return; // another sound or model was chosen meanwhile
      heard.src = `data:audio/flac;base64,${flac}`;
      heard.play().catch(() => {}); // another press has come between
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      showError(button, error.message);
    }
  };
  const [about, list, empty] = [".about", ".spoken-samples", ".empty"].map((name) => view.querySelector(name));
  const waiting = empty.querySelector("p").textContent;
  samples.follow(({ model, answer, problem }) => {
    if (!answer && !problem) forget(view, output);
    sayMeasured(about, model);
    if (!output.hidden) return; // what was asked for stays
    empty.querySelector("p").textContent = problem ? `No samples: ${problem}` : waiting;
    refill(list, ...(answer?.samples ?? []).map((one) => sampleOf(one, change)));
    list.hidden = about.hidden = !list.children.length;
    empty.hidden = !list.hidden;
  });

  store.follow((model) => {
    applyDefaults(form, model);
    offer(model);
    offerVoices(model);
  });
  chooseModel(form.elements.model, models, store);
  wireSeed(form);

  const voiceNow = () => form.elements.voice.value;
  const ownVoice = () => voiceNow() === "file" || voiceNow() === "record";
  const currentSound = () => ({ file: prompt.files[0] ?? null, record: recorder.wav })[voiceNow()] ?? null;
  function show() {
    view.querySelector(".voice-file").hidden = voiceNow() !== "file";
    view.querySelector(".voice-record").hidden = voiceNow() !== "record";
    view.querySelector(".voice-shared").hidden = !ownVoice();
    if (voiceNow() !== "record") recorder.stop();
    if (played) URL.revokeObjectURL(played);
    const sound = currentSound();
    played = sound ? URL.createObjectURL(sound) : null;
    listen.hidden = !played;
    if (played) listen.src = played;
    else listen.removeAttribute("src");
  }
  for (const choice of form.elements.voice) choice.addEventListener("change", show);
  prompt.addEventListener("change", show);
  recorder.onchange = show;
  show();

  const request = () => {
    const model = store.value;
    if (!text.value.trim()) throw new InputError(text, "Write what to say.");
    checkText(text, model.limits.max_text);
    const body = new FormData();
    body.set("model", model.name);
    body.set("text", text.value.trim());
    if (voiceNow().startsWith("named:")) body.set("voice", voiceNow().slice("named:".length));
    if (ownVoice()) {
      const sound = currentSound();
      const control = voiceNow() === "file" ? prompt : recorder.button;
      if (!sound) throw new InputError(control, voiceNow() === "file" ? "Choose a sound file." : "Record a few seconds first.");
      checkSize(control, sound, model.limits.max_upload_bytes);
      if (!promptText.value.trim()) throw new InputError(promptText, "Write what is said in it: the model needs this to imitate the voice.");
      checkText(promptText, model.limits.max_text);
      body.set("prompt", sound, sound.name ?? "recording.wav");
      body.set("prompt_text", promptText.value.trim());
      body.set("check_prompt", true);
    }
    for (const [key, value] of Object.entries(numbersIn([speed, steps, guidance, seed]))) body.set(key, value);
    return body;
  };

  const work = async ({ signal, say, progress, began, fresh }) => {
    const body = request();
    const [spoken, model, pieces] = [body.get("text"), store.value, []];
    if (aloud.checked) hush(document);
    silence();
    if (aloud.checked) player.start(model.sample_rate_hz);
    signal.addEventListener("abort", () => player.stop());
    say("Speaking …");
    progress(0, 0);
    began();
    let [done, begun, doubts] = [null, false, ""];
    for await (const event of stream("v1/speech/stream", body, signal)) {
      if (!begun) {
        for (const name of [".about", ".spoken-samples", ".empty"]) view.querySelector(name).hidden = true;
        fresh();
        output.hidden = false;
        refill(result);
        sentences.begin(model.levels);
        begun = true;
      }
      if (event.event === "step") {
        sentences.step(event);
        progress(event.sentence + event.step / event.num_steps, event.sentences);
      } else if (event.event === "sound") {
        pieces.push(samplesOf(event.pcm));
        player.push(pieces.at(-1));
        sentences.sound(event);
      } else if (event.event === "warning") doubts = doubtsOf(event);
      else done = event;
    }
    const wav = wavOf(pieces, done.sample_rate_hz);
    refill(result, ...soundOf(done, wav, spoken, change));
    const length = pieces.reduce((sum, piece) => sum + piece.length, 0) / done.sample_rate_hz;
    return `${seconds(length)} of speech in ${seconds(done.seconds)}, seed ${done.seed}.${doubts}`;
  };
  runForm(view, {
    work,
    blame: () => {
      const sound = voiceNow() === "record" ? recorder.button : prompt;
      return { prompt: sound, sound, recording: sound, voice: form.querySelector("fieldset.voice"), sentence: text, "no English words": text, "the model cannot": text };
    },
  });
}

/** Doubts of the server about a transcript, to be put behind other sentences. */
export const doubtsOf = ({ warnings }) => warnings.map((one) => ` But ${one}.`).join("");

function soundOf(done, wav, spoken, change) {
  const name = `${slug(spoken).slice(0, 40)}-${done.seed}.wav`;
  return [
    make("audio", { controls: true, src: URL.createObjectURL(wav), "aria-label": `Spoken: ${spoken}` }),
    make("div", { class: "actions" },
      make("button", { type: "button", class: "save", text: "Download WAV", onclick: () => download(wav, name) }),
      make("button", { type: "button", class: "change-words", text: "Change words", onclick: () => change({ blob: wav, name, text: spoken }) }),
      make("span", { class: "hint", text: `${done.sample_rate_hz.toLocaleString("en")} Hz` })),
  ];
}

/** A sentence that the model has spoken by itself, for `refill`; `change` as above. */
export function sampleOf({ text, voice, wav, spectrogram, seed, duration_s: length }, change) {
  const blob = blobOf(wav, "audio/wav");
  const who = voice === "default" ? "the model's own choice" : voice;
  return make("li", {},
    make("p", { class: "spoken", text: `“${text}”` }),
    make("p", { class: "hint", text: `Voice: ${who}` }),
    make("audio", { controls: true, src: URL.createObjectURL(blob), "aria-label": `Spoken: ${text}, voice: ${who}` }),
    make("figure", { class: "spectrogram" }, make("img", { src: pngUrl(spectrogram), alt: `Spectrogram of ${seconds(length)} of speech` })),
    make("div", { class: "actions" }, make("button", {
      type: "button", class: "change-words", text: "Change words", "aria-label": `Change words of: ${text}`,
      onclick: () => change({ blob, name: `${slug(text).slice(0, 40)}-${seed}.wav`, text }) })));
}
