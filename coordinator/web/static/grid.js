// The chunks of a run as cells on canvases, one for each collection. A cell that changes fades over
// to its new state; one that is being worked on breathes.

import { list, make, mark, text } from "./dom.js";
import { count, plural } from "./format.js";

const HEIGHT = 250; // pixels that all cells together should need, about
const SMALLEST = 6;
const LARGEST = 24;
const FADE = 450; // milliseconds
const NAMES = { c: "completed", f: "failed", r: "being worked on", p: "waiting" };

const still = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const grids = new Set();
let colours = null;

function palette() {
  if (!colours) {
    const style = getComputedStyle(document.documentElement);
    const one = (name) => style.getPropertyValue(name).trim();
    colours = { c: one("--done"), f: one("--bad"), r: one("--busy"), p: one("--idle"), ink: one("--card") };
  }
  return colours;
}
dark.addEventListener("change", () => {
  colours = null;
  for (const grid of grids) grid.paint();
});

/** A place for a grid; `update(grid, words)` fills it, `words` is what it shows in a sentence. */
export function grid() {
  const element = make("div", { class: "grid" });
  const canvases = new Set();
  let latest = null;

  const update = (shown, words) => {
    latest = [shown, words];
    const width = Math.max(120, element.clientWidth);
    const cells = shown.segments.reduce((sum, one) => sum + one.cells.length, 0);
    const several = shown.segments.length > 1;
    const size = Math.max(SMALLEST, Math.min(LARGEST, Math.floor(Math.sqrt((width * HEIGHT) / Math.max(1, cells)))));
    list(element, shown.segments, (one) => one.collection, () => segment(canvases));
    for (const one of shown.segments) {
      element.kept.get(one.collection).draw(one, { size, width, several, perCell: shown.per_cell, words });
    }
  };
  new ResizeObserver(() => latest && update(...latest)).observe(element);
  return { element, update };
}

function segment(canvases) {
  const caption = make("figcaption");
  const canvas = make("canvas", { role: "img" });
  const element = make("figure", {}, caption, canvas);
  const context = canvas.getContext("2d");
  let cells = "";
  let before = "";
  let changed = []; // when each cell took its state
  let place = { size: 10, columns: 1, perCell: 1, chunks: 0, name: "" };

  const box = (index) => [
    (index % place.columns) * place.size,
    Math.floor(index / place.columns) * place.size,
  ];

  function paint(now = performance.now()) {
    const { size } = place;
    const gap = size >= 12 ? 3 : size >= 8 ? 2 : 1;
    const ratio = devicePixelRatio || 1;
    const wide = Math.min(place.columns, cells.length) * size - gap;
    const high = Math.ceil(cells.length / place.columns) * size - gap;
    if (canvas.width !== Math.round(wide * ratio) || canvas.height !== Math.round(high * ratio)) {
      canvas.width = Math.round(wide * ratio);
      canvas.height = Math.round(high * ratio);
      canvas.style.width = `${wide}px`;
      canvas.style.height = `${high}px`;
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, wide, high);
    let moving = false;
    for (let index = 0; index < cells.length; index++) {
      const age = still.matches ? FADE : now - changed[index];
      const part = Math.min(1, age / FADE);
      if (part < 1) {
        moving = true;
        cell(before[index] ?? "p", box(index), size - gap, 1, now);
      }
      moving ||= cells[index] === "r" && !still.matches;
      cell(cells[index], box(index), size - gap, part, now);
    }
    context.globalAlpha = 1;
    if (moving) schedule();
  }

  function cell(state, [x, y], side, opacity, now) {
    const paints = palette();
    const fill = (colour, alpha, top = 0) => {
      context.globalAlpha = alpha * opacity;
      context.fillStyle = colour;
      context.beginPath();
      context.roundRect(x, y + top, side, side - top, Math.min(4, side / 4));
      context.fill();
    };
    if (state === "r") {
      fill(paints.p, 1);
      fill(paints.r, still.matches ? 1 : 0.75 + 0.25 * Math.sin(now / 260));
    } else if (state >= "1" && state <= "9") {
      fill(paints.p, 1);
      fill(paints.c, 1, side * (1 - Number(state) / 10));
    } else {
      fill(paints[state] ?? paints.p, 1);
      if (state === "f" && side >= 7) cross(x, y, side, opacity, paints.ink);
    }
  }

  function cross(x, y, side, opacity, colour) {
    const inset = side * 0.3;
    context.globalAlpha = opacity;
    context.strokeStyle = colour;
    context.lineWidth = Math.max(1.2, side / 9);
    context.beginPath();
    context.moveTo(x + inset, y + inset);
    context.lineTo(x + side - inset, y + side - inset);
    context.moveTo(x + side - inset, y + inset);
    context.lineTo(x + inset, y + side - inset);
    context.stroke();
  }

  canvas.addEventListener("mousemove", (event) => {
    const column = Math.floor(event.offsetX / place.size);
    const index = Math.floor(event.offsetY / place.size) * place.columns + column;
    mark(canvas, "title", index < cells.length && column < place.columns ? describe(index) : null);
  });

  function describe(index) {
    const first = index * place.perCell + 1;
    const last = Math.min(first + place.perCell - 1, place.chunks);
    const state = NAMES[cells[index]] ?? `${cells[index]}0 % completed`;
    const which = first === last ? `chunk ${count(first)}` : `chunks ${count(first)} to ${count(last)}`;
    return `${place.name}, ${which} of ${count(place.chunks)}: ${state}`;
  }

  const self = { paint };
  grids.add(self);
  canvases.add(self);
  return {
    element,
    update() {},
    draw(shown, { size, width, several, perCell, words }) {
      const now = performance.now();
      if (shown.cells.length !== cells.length) {
        before = "p".repeat(shown.cells.length);
        changed = Array.from(shown.cells, (state) => (state === "p" ? -FADE : now));
      } else {
        before = Array.from(before, (state, index) => (shown.cells[index] === cells[index] ? state : cells[index])).join("");
        changed = changed.map((moment, index) => (shown.cells[index] === cells[index] ? moment : now));
      }
      cells = shown.cells;
      place = {
        size,
        columns: Math.max(1, Math.floor(width / size)),
        perCell,
        chunks: shown.chunks,
        name: shown.collection,
      };
      text(caption, `${shown.collection} · ${plural(shown.chunks, "chunk")}`);
      mark(canvas, "aria-label", several ? `${shown.collection}: ${summary(shown.cells)}` : words);
      paint(now);
    },
  };
}

function summary(cells) {
  const done = Array.from(cells).filter((state) => state === "c").length;
  const failed = Array.from(cells).filter((state) => state === "f").length;
  return `${Math.floor((100 * done) / cells.length)} % completed${failed ? `, ${failed} failed` : ""}`;
}

let scheduled = false;

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame((now) => {
    scheduled = false;
    for (const grid of grids) grid.paint(now);
  });
}
