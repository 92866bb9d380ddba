// The map of known levels: one cell per position, dark for none and bright for all, with the number written in it.

const RAMP = [[34, 10, 60], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]; // as in `--trace`
const SIDE = 480; // pixels of the drawing, enough for screens of two pixels a point
const MOST_NUMBERS = 12; // columns; with more, numbers would be too small to read

/** The colour of a share in [0, 1] as [r, g, b]. */
export function heatColour(share) {
  const place = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[low].map((value, k) => Math.round(value + (place - low) * (RAMP[low + 1][k] - value)));
}

/** Rows and columns of `count` positions for an image of that shape. */
export function gridOf(count, height, width) {
  let rows = Math.max(1, Math.round(Math.sqrt((count * height) / width)));
  while (count % rows) rows--;
  return [rows, count / rows];
}

/** Draw the known levels of a sequence: a column per position, a row per level, coarse at the bottom. */
export function drawColumns(canvas, visible, levels) {
  [canvas.width, canvas.height] = [6 * visible.length, 6 * levels];
  const context = canvas.getContext("2d");
  const colour = (share) => `rgb(${heatColour(share).join(" ")})`;
  context.fillStyle = colour(0);
  context.fillRect(0, 0, canvas.width, canvas.height);
  visible.forEach((known, k) => {
    context.fillStyle = colour(known / levels);
    context.fillRect(6 * k, 6 * (levels - known), 5.5, 6 * known);
  });
  const sum = visible.reduce((total, known) => total + known, 0);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${sum} of ${visible.length * levels} codes known`);
  return sum;
}

/** Draw the known levels of one image; a text for those who do not see it is set as well. */
export function drawHeat(canvas, visible, levels, [rows, columns]) {
  const cell = Math.floor(SIDE / Math.max(rows, columns));
  [canvas.width, canvas.height] = [cell * columns, cell * rows];
  const context = canvas.getContext("2d");
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `600 ${Math.round(cell * 0.34)}px system-ui, sans-serif`;
  visible.forEach((known, k) => {
    const [x, y] = [(k % columns) * cell, Math.floor(k / columns) * cell];
    const [red, green, blue] = heatColour(known / levels);
    context.fillStyle = `rgb(${red} ${green} ${blue})`;
    context.fillRect(x, y, cell, cell);
    if (columns > MOST_NUMBERS) return;
    context.fillStyle = 0.3 * red + 0.59 * green + 0.11 * blue > 110 ? "#101418" : "#ffffff";
    context.fillText(known, x + cell / 2, y + cell / 2 + cell * 0.02);
  });
  const sum = visible.reduce((total, known) => total + known, 0);
  canvas.setAttribute("role", "img");
  const range = `from ${Math.min(...visible)} to ${Math.max(...visible)} of ${levels} levels per position`;
  canvas.setAttribute("aria-label", `${sum} of ${visible.length * levels} codes known, ${range}`);
  return sum;
}
