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

// A colour of OKLCH as rgb(...): equal steps of lightness look equal. Its matrices are those of Björn Ottosson's OKLab.
function oklch(lightness, chroma, hue) {
  const a = chroma * Math.cos((hue * Math.PI) / 180), b = chroma * Math.sin((hue * Math.PI) / 180);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s, -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  const channel = (x) => (x <= 0.0031308 ? 12.92 * x : 1.055 * x ** (1 / 2.4) - 0.055);
  return `rgb(${linear.map((x) => Math.round(255 * channel(Math.min(Math.max(x, 0), 1)))).join(" ")})`;
}

// Neighbours differ in lightness, which all eyes tell; the hue goes from blue over red to yellow, layer by layer.
function layerColour(l, L) {
  const [deep, pale] = dark.matches ? [0.55, 0.86] : [0.4, 0.7];
  return oklch(l % 2 ? pale : deep, 0.15, 265 + 170 * (L > 1 ? l / (L - 1) : 0));
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
