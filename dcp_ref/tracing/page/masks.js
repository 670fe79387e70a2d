// Masks: a triangle a layer. Pixel (i, j), i downwards, is coloured where row i saw token j.
// Each triangle is painted once; a step draws it again as an image, with the crosshair on top.

const masks = { painted: [], canvases: [], large: null, colours: null };

// The picture of a layer's mask, `size` pixels wide, in the layer's colour or with its scores.
function paintMask(trace, l, size, scored) {
  const canvas = document.createElement("canvas"), n = Math.max(1, Math.min(trace.T, size));
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n), pixels = image.data;
  const [r, g, b] = layerColour(l, trace.L).match(/\d+/g).map(Number), at = (p) => Math.floor((p * trace.T) / n);
  const most = scored ? largestMargin(trace, l, n) : 1, limit = Number.isFinite(trace.threshold) ? trace.threshold : 0;
  for (let y = 0; y < n; y++) {
    for (let x = 0; x <= y; x++) {
      const i = at(y), j = at(x);
      if (!isLive(trace, l, j, i)) continue;
      const share = scored && i !== j ? Math.sqrt(Math.min((score(trace, l, i, j) - limit) / most, 1) || 0) : 1;
      pixels.set([r, g, b, Math.round(255 * (scored ? 0.15 + 0.85 * Math.max(share, 0) : 1))], 4 * (y * n + x));
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function largestMargin(trace, l, n) {
  const limit = Number.isFinite(trace.threshold) ? trace.threshold : 0, every = Math.ceil(trace.T / Math.min(n, 64));
  let most = 1e-9;
  for (let i = every; i < trace.T; i += every) {
    for (let j = 0; j < i; j += every) if (isLive(trace, l, j, i)) most = Math.max(most, score(trace, l, i, j) - limit);
  }
  return most;
}

function buildMasks() {
  const trace = front();
  $("mask-score-label").hidden = !trace.interaction;
  masks.painted = trace.lifetime.map((_, l) => paintMask(trace, l, 320, scoredMasks()));
  masks.canvases = trace.lifetime.map(() => html("canvas", { "aria-hidden": "true" }));
  $("triangles").replaceChildren(...masks.canvases.map((canvas, l) => html("button", {
    type: "button", class: "triangle", "aria-pressed": "false", "data-layer": l,
    "aria-label": `Enlarge the mask of layer ${l}: ${percent(trace.shareKept[l])} kept`,
    onclick: () => enlarge(masks.large === l ? null : l),
  }, canvas, html("span", {}, swatch(l), `layer ${l}`))));
}

function scoredMasks() {
  return $("mask-score").checked && Boolean(front().interaction);
}

function enlarge(l) {
  masks.large = l;
  masks.largePainted = l === null ? null : paintMask(front(), l, 1024, scoredMasks());
  $("large-mask").hidden = l === null;
  for (const button of $("triangles").children) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === l));
  }
  drawMasks();
}

function drawMask(canvas, painted, size, width) {
  const trace = front(), context = cleared(canvas, size, size), unit = size / trace.T;
  context.imageSmoothingEnabled = painted.width > size;
  context.drawImage(painted, 0, 0, size, size);
  const row = Math.min(view.step, trace.T - 1), column = looked();
  context.fillStyle = cssColour("--ink");
  context.globalAlpha = 0.6;
  context.fillRect(0, (row + 0.5) * unit - width / 2, size, width);
  if (column !== null) context.fillRect((column + 0.5) * unit - width / 2, 0, width, size);
  context.globalAlpha = 1;
}

function drawMasks() {
  const small = $("masks").clientWidth < 400 ? 88 : 132;
  masks.canvases.forEach((canvas, l) => drawMask(canvas, masks.painted[l], small, 1));
  if (masks.large !== null) {
    const size = Math.min($("masks").clientWidth - 34, 640);
    drawMask($("large-mask").querySelector("canvas"), masks.largePainted, size, 1);
    const canvas = $("large-mask").querySelector("canvas");
    canvas.setAttribute("aria-label", `The mask of layer ${masks.large}, enlarged`);
    nameCell(view.step, looked());
  }
}

function nameCell(i, j) {
  const trace = front(), l = masks.large, caption = $("large-mask").querySelector("figcaption");
  if (j === null || j > i || i >= trace.T) {
    caption.textContent = `Layer ${l}. Point at a cell to name it; click it to go to that step and token.`;
    return;
  }
  const scored = trace.interaction && i !== j ? `; score ${number(score(trace, l, i, j))}` : "";
  const state = isLive(trace, l, j, i) ? "sees" : trace.end[l * trace.T + j] === i ? "drops" : "no longer has";
  caption.textContent = i === j ? `Layer ${l}: ${named(trace, i)} sees itself.`
    : `Layer ${l}: ${named(trace, i)} ${state} ${named(trace, j)}${scored}.`;
}

function cellAt(event) {
  const box = event.currentTarget.getBoundingClientRect(), { T } = front();
  const at = (share) => Math.min(Math.max(Math.floor(share * T), 0), T - 1);
  return { i: at((event.clientY - box.top) / box.height), j: at((event.clientX - box.left) / box.width) };
}

const largeCanvas = $("large-mask").querySelector("canvas");
largeCanvas.addEventListener("pointermove", (event) => {
  const { i, j } = cellAt(event);
  change({ point: j <= i ? j : null });
  nameCell(i, j);
});
largeCanvas.addEventListener("pointerleave", () => change({ point: null }));
largeCanvas.addEventListener("click", (event) => {
  const { i, j } = cellAt(event);
  if (j <= i) change({ step: i, lock: j, layer: masks.large, point: null });
});
$("mask-score").addEventListener("change", () => {
  buildMasks();
  enlarge(masks.large);
});

panes.push((changed) => {
  if (changed.has("front")) {
    buildMasks();
    enlarge(null);
  }
  drawMasks();
});
