// Sound that is heard while the rest of it is made: pieces of samples, one after the other without a gap.

const AHEAD_S = 0.05; // before the first sample: time to hand it over

export class Player {
  #context = null;
  #end = 0;

  /** Be ready; call it in the handler of a press, since browsers let no page sound by itself. */
  start(rateHz) {
    this.stop();
    this.#context = new AudioContext({ sampleRate: rateHz });
    this.#end = 0;
  }

  /** Play 16-bit samples after those that came before. */
  push(samples) {
    const context = this.#context;
    if (!context || !samples.length) return;
    const buffer = context.createBuffer(1, samples.length, context.sampleRate);
    buffer.copyToChannel(Float32Array.from(samples, (value) => value / 32768), 0);
    const source = new AudioBufferSourceNode(context, { buffer });
    source.connect(context.destination);
    const begin = Math.max(this.#end, context.currentTime + AHEAD_S);
    source.start(begin);
    this.#end = begin + buffer.duration;
  }

  /** Be silent at once. */
  stop() {
    this.#context?.close();
    this.#context = null;
  }
}

/** 16-bit samples of base64 text. */
export function samplesOf(base64) {
  const text = atob(base64);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Int16Array.from({ length: bytes.length >> 1 }, (_, k) => view.getInt16(2 * k, true));
}
