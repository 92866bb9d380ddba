// The microphone, a few seconds of it, as a WAV file made in the browser.

import { clearError, showError } from "./forms.js";

const MOST_SECONDS = 6; // of a recording; a prompt is a few seconds
const RATE_HZ = 24_000; // enough for a voice; the server brings it to the model's own rate

/** Why there can be no recording here, or an empty text. */
export function whyNoRecording() {
  if (!window.isSecureContext) {
    return "Browsers allow the microphone only on pages from https or localhost. Upload a sound file instead.";
  }
  if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
    return "This browser has no recorder. Upload a sound file instead.";
  }
  return "";
}

/** Record until `signal` or until `seconds` are over; {wav: Promise of a Blob}. An AbortError if the signal comes before
 * the browser lends the microphone. */
export async function record(seconds, signal) {
  const sound = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
  const release = () => {
    for (const track of sound.getTracks()) track.stop(); // the microphone's light goes out
  };
  try {
    signal.throwIfAborted();
    return begin(new MediaRecorder(sound), seconds, signal, release);
  } catch (error) {
    release();
    throw error;
  }
}

/** See `record`; `release` gives the microphone back. */
function begin(recorder, seconds, signal, release) {
  const parts = [];
  const wav = new Promise((resolve, reject) => {
    recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
    recorder.addEventListener("error", () => {
      release();
      reject(new Error("the recorder failed"));
    });
    recorder.addEventListener("stop", () => {
      release();
      const recorded = asWav(new Blob(parts, { type: recorder.mimeType }));
      recorded.then(resolve, () => reject(new Error("it was stopped before there was a sound; record a few seconds")));
    });
  });
  recorder.start();
  const stop = () => {
    if (recorder.state !== "inactive") recorder.stop();
  };
  setTimeout(stop, 1000 * seconds);
  signal.addEventListener("abort", stop);
  return { wav };
}

/** Any sound that the browser can decode as a WAV file of one channel. */
async function asWav(blob) {
  const context = new OfflineAudioContext(1, 1, RATE_HZ);
  const decoded = await context.decodeAudioData(await blob.arrayBuffer());
  const mixed = new Float32Array(decoded.length);
  for (let channel = 0; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((value, k) => (mixed[k] += value / decoded.numberOfChannels));
  }
  return encodeWav(mixed, decoded.sampleRate);
}

/** Samples in [-1, 1] as a WAV file of 16 bits. */
function encodeWav(samples, rateHz) {
  return wavOf([Int16Array.from(samples, (value) => Math.round(32767 * Math.min(1, Math.max(-1, value))))], rateHz);
}

/** Pieces of 16-bit samples, one after the other, as a WAV file. */
export function wavOf(pieces, rateHz) {
  const samples = pieces.flatMap((piece) => [...piece]);
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, word) => [...word].forEach((letter, k) => bytes.setUint8(place + k, letter.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // one channel
  bytes.setUint32(24, rateHz, true);
  bytes.setUint32(28, 2 * rateHz, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  text(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, k) => bytes.setInt16(44 + 2 * k, value, true));
  return new Blob([bytes.buffer], { type: "audio/wav" });
}

/** The record button; `wav` is the last recording. */
export function startRecorder(view) {
  const button = view.querySelector(".record");
  const clock = view.querySelector(".clock");
  const status = view.querySelector(".record-status");
  const recorder = { button, wav: null, onchange: () => {}, stop: () => running?.abort() };
  let running = null;
  const refusal = whyNoRecording();
  button.disabled = Boolean(refusal);
  const idle = refusal || `At most ${MOST_SECONDS} seconds; the sound stays in this page until you send it.`;
  status.textContent = idle;

  button.addEventListener("click", async () => {
    if (running) return running.abort();
    clearError(button);
    let tick = null;
    try {
      running = new AbortController();
      button.textContent = "Stop";
      status.textContent = "Waiting for the microphone …";
      const { wav } = await record(MOST_SECONDS, running.signal);
      status.textContent = "Recording …";
      const begin = performance.now();
      tick = setInterval(() => (clock.textContent = `${((performance.now() - begin) / 1000).toFixed(1)} s`), 100);
      recorder.wav = await wav;
      status.textContent = "Recorded. Listen to it below, or record again.";
    } catch (error) {
      const denied = error.name === "NotAllowedError" ? "the browser was not allowed to use the microphone" : error.message;
      status.textContent = idle;
      if (error.name !== "AbortError") showError(button, `No recording: ${denied}.`);
    } finally {
      clearInterval(tick);
      running = null;
      button.textContent = "Record";
      recorder.onchange();
    }
  });
  return recorder;
}
