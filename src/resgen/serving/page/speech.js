// The view that speaks a text, in a voice of the model's choice, of a file or of a recording.

import { post } from "./api.js";
import { blobOf, download, make, pngUrl, seconds, slug, Store } from "./dom.js";
import { applyDefaults, checkSize, chooseModel, clearError, InputError, numbersIn, runForm, showError, wireSeed } from "./forms.js";
import { record, whyNoRecording } from "./record.js";

const MOST_SECONDS = 6; // of a recording; a prompt is a few seconds

/** Wire the view. */
export function startSpeech(view, { models }) {
  const form = view.querySelector("form");
  const store = new Store();
  const output = view.querySelector(".sound");
  const { text, prompt, prompt_text: promptText, speed, num_steps: steps, guidance_scale: guidance, seed, voice } = form.elements;
  const recorder = startRecorder(view);
  const listen = view.querySelector(".voice-shared audio");
  let played = null;

  store.follow((model) => {
    applyDefaults(form, model);
    text.maxLength = model.limits.max_text;
  });
  chooseModel(form.elements.model, models, store);
  store.set(models[0]);
  wireSeed(form);

  const currentSound = () => ({ file: prompt.files[0] ?? null, record: recorder.wav, none: null })[voice.value];
  const show = () => {
    view.querySelector(".voice-file").hidden = voice.value !== "file";
    view.querySelector(".voice-record").hidden = voice.value !== "record";
    view.querySelector(".voice-shared").hidden = voice.value === "none";
    if (voice.value !== "record") recorder.stop();
    if (played) URL.revokeObjectURL(played);
    const sound = currentSound();
    played = sound ? URL.createObjectURL(sound) : null;
    listen.hidden = !played;
    if (played) listen.src = played;
    else listen.removeAttribute("src");
  };
  for (const choice of voice) choice.addEventListener("change", show);
  prompt.addEventListener("change", show);
  recorder.onchange = show;
  show();

  const request = () => {
    const model = store.value;
    if (!text.value.trim()) throw new InputError(text, "Write what to say.");
    const body = new FormData();
    body.set("model", model.name);
    body.set("text", text.value.trim());
    if (voice.value !== "none") {
      const sound = currentSound();
      const control = voice.value === "file" ? prompt : recorder.button;
      if (!sound) throw new InputError(control, voice.value === "file" ? "Choose a sound file." : "Record a few seconds first.");
      checkSize(control, sound, model.limits.max_upload_bytes);
      if (!promptText.value.trim()) throw new InputError(promptText, "Write what is said in it; the voice is found by its text.");
      body.set("prompt", sound, sound.name ?? "recording.wav");
      body.set("prompt_text", promptText.value.trim());
    }
    for (const [key, value] of Object.entries(numbersIn([speed, steps, guidance, seed]))) body.set(key, value);
    return body;
  };

  const work = async ({ signal, say, progress, began, fresh }) => {
    const body = request();
    const spoken = body.get("text");
    say("Speaking …");
    progress(0, 0);
    began();
    const result = await post("v1/speech", body, signal);
    fresh();
    view.querySelector(".empty").hidden = true;
    output.hidden = false;
    const wav = blobOf(result.wav, "audio/wav");
    output.replaceChildren(...soundOf(result, wav, spoken));
    return `${seconds(result.duration_s)} of speech in ${seconds(result.seconds)}, seed ${result.seed}.`;
  };
  runForm(view, { work, blame: () => ({ sound: prompt, recording: prompt }) });
}

let lastUrl = null;

function soundOf(result, wav, spoken) {
  if (lastUrl) URL.revokeObjectURL(lastUrl);
  lastUrl = URL.createObjectURL(wav);
  const name = `${slug(spoken).slice(0, 40)}-${result.seed}.wav`;
  const parts = [
    make("p", { class: "spoken", text: `“${spoken}”` }),
    make("audio", { controls: true, src: lastUrl, "aria-label": `Spoken: ${spoken}` }),
  ];
  if (result.spectrogram) {
    parts.push(make("figure", { class: "spectrogram" },
      make("img", { src: pngUrl(result.spectrogram), alt: `Spectrogram of ${seconds(result.duration_s)} of speech` }),
      make("figcaption", { text: `Spectrogram: time to the right, ${seconds(result.duration_s)}; pitch upwards` })));
  }
  parts.push(make("div", { class: "actions" },
    make("button", { type: "button", class: "save", text: "Download WAV", onclick: () => download(wav, name) }),
    make("span", { class: "hint", text: `${result.sample_rate_hz.toLocaleString("en")} Hz` })));
  return parts;
}

/** The record button; `wav` is the last recording. */
function startRecorder(view) {
  const button = view.querySelector(".record");
  const clock = view.querySelector(".clock");
  const status = view.querySelector(".record-status");
  const recorder = { button, wav: null, onchange: () => {}, stop: () => running?.stop() };
  let running = null;
  const refusal = whyNoRecording();
  button.disabled = Boolean(refusal);
  status.textContent = refusal || `At most ${MOST_SECONDS} seconds; the sound stays in this page until you press Speak.`;

  button.addEventListener("click", async () => {
    if (running) return running.stop();
    clearError(button);
    let tick = null;
    try {
      running = await record(MOST_SECONDS);
      button.textContent = "Stop";
      status.textContent = "Recording …";
      const begin = performance.now();
      tick = setInterval(() => (clock.textContent = `${((performance.now() - begin) / 1000).toFixed(1)} s`), 100);
      recorder.wav = await running.wav;
      status.textContent = "Recorded. Listen to it below, or record again.";
    } catch (error) {
      const denied = error.name === "NotAllowedError" ? "the browser was not allowed to use the microphone" : error.message;
      status.textContent = "";
      showError(button, `No recording: ${denied}.`);
    } finally {
      clearInterval(tick);
      running = null;
      button.textContent = "Record";
      recorder.onchange();
    }
  });
  return recorder;
}
