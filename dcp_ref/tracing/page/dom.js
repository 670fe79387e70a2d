// Making elements, and the colours of layers. All text goes in as text nodes: nothing is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";
const dark = matchMedia("(prefers-color-scheme: dark)");

function $(id) {
  return document.getElementById(id);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function html(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

// A group of buttons of which one is chosen; arrow keys move within it.
function radios(host, choices, onchoose) {
  const buttons = choices.map(({ value, label }, n) => html("button", {
    type: "button", role: "radio", "aria-checked": "false", tabindex: "-1", "data-value": String(value),
    onclick: () => onchoose(value),
    onkeydown: (event) => {
      const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      event.stopPropagation();
      const next = (n + by + choices.length) % choices.length;
      onchoose(choices[next].value);
      buttons[next].focus();
    },
  }, ...(Array.isArray(label) ? label : [label])));
  host.replaceChildren(...buttons);
  return (chosen) => {
    for (const button of buttons) {
      const is = button.dataset.value === String(chosen);
      button.setAttribute("aria-checked", String(is));
      button.tabIndex = is ? 0 : -1;
    }
  };
}

// Layers are ordered, so their colours are a ramp that darkens or lightens steadily: it can be told in grey, too.
const RAMP = ["0d0887", "41049d", "6a00a8", "8f0da4", "b12a90", "cc4778", "e16462", "f2844b", "fca636",
  "fcce25", "f0f921"];

function ramp(share) {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1), n = Math.min(Math.floor(at), RAMP.length - 2);
  const channel = (hex, c) => parseInt(hex.slice(2 * c, 2 * c + 2), 16);
  const mixed = [0, 1, 2].map((c) => {
    return Math.round(channel(RAMP[n], c) + (at - n) * (channel(RAMP[n + 1], c) - channel(RAMP[n], c)));
  });
  return `rgb(${mixed.join(" ")})`;
}

function layerColour(l, L) {
  const [from, to] = dark.matches ? [0.42, 1] : [0.02, 0.7];
  return ramp(from + (to - from) * (L > 1 ? l / (L - 1) : 0.3));
}

function setLayerColours(L) {
  for (let l = 0; l < L; l++) document.documentElement.style.setProperty(`--layer-${l}`, layerColour(l, L));
}

const cssColours = new Map(); // reading one makes the browser work out all styles: each is read once
dark.addEventListener("change", () => cssColours.clear());

function cssColour(name) {
  if (!cssColours.has(name)) {
    cssColours.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  }
  return cssColours.get(name);
}

// A small square in a layer's colour.
function swatch(l) {
  const square = html("span", { class: "swatch", "aria-hidden": "true" });
  square.style.background = `var(--layer-${l})`;
  return square;
}

// A canvas of so many CSS pixels, sharp on dense screens; gives its context, cleared.
function cleared(canvas, width, height) {
  const density = window.devicePixelRatio || 1;
  const w = Math.round(width * density), h = Math.round(height * density);
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}
