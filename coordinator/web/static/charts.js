// Bars, in SVG.

import { makeSvg } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 80;

/**
 * Bars for `values`, the newest at the right; each has `value`, `tone` and `title`. At most `most`
 * are shown, and a short past does not make broad ones.
 */
export function bars(values, { most: room, label }) {
  const shown = values.slice(-room);
  const slots = Math.max(room / 2, shown.length);
  const most = Math.max(1e-9, ...shown.map((one) => one.value));
  const step = WIDTH / slots;
  const first = WIDTH - shown.length * step;
  const drawn = shown.map((one, index) => {
    const height = Math.max(2.5, (one.value / most) * (HEIGHT - 2));
    const x = first + index * step;
    return makeSvg(
      "g",
      {},
      makeSvg("title", {}, one.title),
      makeSvg("rect", { class: "hit", x, y: 0, width: step, height: HEIGHT }),
      makeSvg("rect", {
        class: "bar", "data-tone": one.tone, x: x + step * 0.14, y: HEIGHT - height,
        width: step * 0.72, height, rx: 1,
      }),
    );
  });
  const base = makeSvg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT });
  return makeSvg(
    "svg",
    {
      class: "bars", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img",
      "aria-label": label,
    },
    base,
    ...drawn,
  );
}
