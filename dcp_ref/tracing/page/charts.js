// The two kinds of charts of the panes: bars to both sides of zero, and a line with a threshold. As SVG.

const ROW = 19;

const widths = new Map(); // reading a width makes the browser lay out the page: each is read once a size

// The width of a pane's charts in pixels: drawn at their size, so that letters are as large on a small screen.
function chartWidth(host) {
  if (!widths.has(host)) widths.set(host, Math.min(Math.max($(host).clientWidth, 220), 560));
  return widths.get(host);
}

panes.push((changed) => changed.has("size") && widths.clear());

// Bars with a name at the left and a number at the right; items: { name, value, strong }.
function barChart(items, label, width) {
  const row = ROW, name = Math.min(150, Math.round(width * 0.42)), room = 58;
  const least = Math.min(0, ...items.map((each) => each.value)), most = Math.max(0, ...items.map((each) => each.value));
  const span = most - least || 1, x = (v) => name + ((v - least) / span) * (width - name - room);
  const rows = items.map(({ name: text, value, strong }, n) => svg("g", {
    class: strong ? "bar-row strong" : "bar-row", transform: `translate(0 ${n * row})`,
  },
  svg("text", { x: name - 8, y: 14, "text-anchor": "end" }, text),
  svg("rect", {
    class: value < 0 ? "negative" : "positive", x: Math.min(x(0), x(value)), y: 3, height: row - 6, rx: 2,
    width: Math.max(Math.abs(x(value) - x(0)), 0.75),
  }),
  svg("text", { x: width, y: 14, "text-anchor": "end", class: "figure" }, number(value))));
  return svg("svg", {
    viewBox: `0 0 ${width} ${items.length * row + 2}`, class: "chart bars", role: "img",
    "aria-label": `${label}: ${items.map((each) => `${each.name} ${number(each.value)}`).join(", ")}`,
  }, svg("line", { class: "zero", x1: x(0), x2: x(0), y1: 0, y2: items.length * row }), ...rows);
}

// A line of numbers at steps; `limit` is dashed, `marked` a step with a dot. A click goes to the step.
function lineChart(steps, values, { limit = null, marked = null, colour, label, width, name = String }) {
  const height = 150, left = 44, bottom = 24, right = 12, top = 10;
  const known = [...values, ...(Number.isFinite(limit) ? [limit] : [])].filter(Number.isFinite);
  const least = Math.min(...known), most = Math.max(...known), span = most - least || 1;
  const x = (i) => left + ((i - steps[0]) / Math.max(steps.at(-1) - steps[0], 1)) * (width - left - right);
  const y = (v) => top + ((most - v) / span) * (height - top - bottom);
  const points = steps.map((i, n) => `${x(i).toFixed(1)} ${y(values[n]).toFixed(1)}`);
  const ends = steps.length > 1 ? [steps[0], steps.at(-1)] : [steps[0]];
  const parts = [
    ...(Number.isFinite(limit) ? [
      svg("line", { class: "limit", x1: left, x2: width - right, y1: y(limit), y2: y(limit) }),
      svg("text", { x: left - 6, y: y(limit) + 4, "text-anchor": "end" }, number(limit, 2))] : []),
    ...[least, most].filter((v) => !Number.isFinite(limit) || Math.abs(y(v) - y(limit)) > 13)
      .map((v) => svg("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, number(v, 2))),
    ...ends.map((i, n) => svg("text", { x: x(i), y: height - 6, "text-anchor": n ? "end" : "start" }, name(i))),
    svg("path", { class: "line", d: `M${points.join("L")}`, stroke: colour }),
    ...(steps.length <= 80 ? steps : [])
      .map((i, n) => svg("circle", { cx: x(i), cy: y(values[n]), r: 2.2, fill: colour })),
  ];
  const at = marked === null ? -1 : steps.indexOf(marked);
  if (at >= 0) parts.push(svg("circle", { class: "marked", cx: x(marked), cy: y(values[at]), r: 5 }));
  const picture = svg("svg", {
    viewBox: `0 0 ${width} ${height}`, class: "chart curve", role: "img", "aria-label": label,
  }, ...parts);
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect(), px = ((event.clientX - box.left) / box.width) * width;
    const share = (px - left) / (width - left - right);
    goTo(Math.round(steps[0] + Math.min(Math.max(share, 0), 1) * (steps.at(-1) - steps[0])));
  });
  return picture;
}
