// Makes and changes elements. Text is only ever set as text: nothing that comes from a server can
// become markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: make("p", { class: "soft", onclick }, "text", child, ...). */
export function make(name, attributes = {}, ...children) {
  return dress(document.createElement(name), attributes, children);
}

export function makeSvg(name, attributes = {}, ...children) {
  return dress(document.createElementNS(SVG, name), attributes, children);
}

function dress(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Sets what has changed, and nothing else: the rest keeps its focus, its selection, its place. */
export function text(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function show(element, shown) {
  element.hidden = !shown;
}

export function mark(element, name, value) {
  if (value === null || value === undefined) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

/**
 * One child of `parent` for each item, made once by `create(item)`, which gives an element and a
 * function that updates it. They stay in the order of the items.
 */
export function list(parent, items, key, create) {
  const kept = (parent.kept ??= new Map());
  const wanted = new Set(items.map(key));
  for (const [name, child] of kept) {
    if (!wanted.has(name)) {
      child.element.remove();
      kept.delete(name);
    }
  }
  items.forEach((item, index) => {
    let child = kept.get(key(item));
    if (!child) kept.set(key(item), (child = create(item)));
    if (parent.children[index] !== child.element) {
      parent.insertBefore(child.element, parent.children[index] ?? null);
    }
    child.update(item);
  });
}

const ICONS = {
  good: ["M3 8.5 6.5 12 13 4.5"],
  bad: ["M4 4l8 8", "M12 4l-8 8"],
  busy: ["M13 8a5 5 0 1 1-1.6-3.7", "M13 2v3h-3"],
  warn: ["M8 3v6", "M8 12.5v.2"],
  plain: ["M5.5 4v8", "M10.5 4v8"],
  waiting: ["M8 4v4l2.5 2"],
};

/** A word with a sign before it, so that colour is never all there is to go by. */
export function badge() {
  const label = make("span");
  const element = make("span", { class: "badge" }, label);
  let shown = null;
  return {
    element,
    update(tone, icon, words) {
      text(label, words);
      mark(element, "data-tone", tone);
      if (shown === icon) return;
      shown = icon;
      element.querySelector("svg")?.remove();
      const lines = ICONS[icon].map((d) => makeSvg("path", { d }));
      element.prepend(
        makeSvg(
          "svg",
          {
            viewBox: "0 0 16 16", fill: "none", stroke: "currentColor", "stroke-width": "2.2",
            "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true",
          },
          ...lines,
        ),
      );
    },
  };
}
