// Draws avatars for make_avatars.py. Every line of standard input is one request, {style, options, size}; the answer is
// one line: {png (base64), attributes, drawing (SHA-256 of the SVG), license}.
import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import * as styles from "@dicebear/collection";
import { createAvatar } from "@dicebear/core";
import { Resvg } from "@resvg/resvg-js";

for await (const line of createInterface({ input: process.stdin })) {
  const { style, options, size } = JSON.parse(line);
  const { svg, extra } = createAvatar(styles[style], options).toJson();
  const png = new Resvg(svg, { fitTo: { mode: "width", value: size } }).render().asPng();
  const drawing = createHash("sha256").update(svg).digest("hex");
  const { title, creator, source, license } = styles[style].meta;
  const answer = { png: png.toString("base64"), attributes: extra, drawing, meta: { title, creator, source, license } };
  process.stdout.write(JSON.stringify(answer) + "\n");
}
