// The keys of the whole page; then the first drawing.

const DIGITS = /^[0-9]$/;

function typing(target) {
  return target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
}

const keys = {
  ArrowLeft: (event) => goTo(view.step - (event.shiftKey ? 10 : 1)),
  ArrowRight: (event) => goTo(view.step + (event.shiftKey ? 10 : 1)),
  Home: () => goTo(0),
  End: () => goTo(front().T - 1),
  " ": () => play(),
  a: () => change({ layer: null }),
  s: swap,
  "/": () => $("find-text").focus(),
  c: copyLink,
  "?": () => {
    $("keys").open = !$("keys").open;
    if ($("keys").open) $("keys").scrollIntoView({ block: "nearest" });
  },
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape") {
    if (typing(event.target)) event.target.blur();
    else if (view.lock === null) change({ mask: null, point: null });
    else change({ lock: null, point: null });
    return;
  }
  const { target, key } = event;
  if (typing(target) || (key === " " && target.matches("button, summary, input"))) return;
  if (target.matches("input[type=range]") && /^(Arrow|Home|End)/.test(key)) return;
  if (DIGITS.test(key) && Number(key) < front().L) change({ layer: Number(key) });
  else if (Object.hasOwn(keys, key)) keys[key](event);
  else return;
  event.preventDefault();
});

$("main").hidden = false;
Object.assign(view, readAddress());
drawAll();

dark.addEventListener("change", drawAll);
let width = $("main").clientWidth;
new ResizeObserver(() => {
  if (Math.abs($("main").clientWidth - width) < 1) return;
  width = $("main").clientWidth;
  for (const draw of panes) draw(new Set(["size"]));
}).observe($("main"));

