"use strict";

const WRITTEN = 40; // narrowest cell with text in it, in pixels
const BARE = 8; // narrowest cell without

const report = JSON.parse(document.getElementById("report-data").textContent);

/** Rows of a stored table, made anew for each view: Vega writes into the rows it is given. */
function rowsOf(columns) {
  const keys = Object.keys(columns);
  const length = keys.length ? columns[keys[0]].length : 0;
  return Array.from({ length }, (_, row) => Object.fromEntries(keys.map((key) => [key, columns[key][row]])));
}

function darkNow() {
  const chosen = document.documentElement.dataset.theme;
  return chosen === "dark" || (chosen === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
}

/** The stored tables a chart refers to, at any depth. */
function tablesIn(spec, tables, found = {}) {
  const name = spec.data?.name;
  if (name in tables) found[name] ??= rowsOf(tables[name]);
  for (const key of ["layer", "hconcat", "vconcat", "concat", "spec"]) {
    for (const inner of [spec[key] ?? []].flat()) tablesIn(inner, tables, found);
  }
  return found;
}

/** Fit the cells of a picture to the room there is: wider up to half again, narrower where nothing is written in them. */
function fitted(spec, room, right) {
  const step = spec.width?.step;
  const across = spec.layer?.[0].encoding?.x?.scale?.domain?.length;
  if (!step || !across) return spec;
  const beside = right ? 84 : 52;
  const fitting = Math.floor((room - beside) / across);
  const least = step > WRITTEN ? step : BARE;
  return { ...spec, width: { step: fitting < least ? step : Math.min(fitting, 1.5 * step) } };
}

/** Draw a chart in the theme of the page; resolves to its Vega view. */
async function draw(element, spec, tables, { room, right }) {
  const dark = darkNow();
  const full = { ...fitted(spec, room, right), datasets: tablesIn(spec, tables) };
  const { view } = await vegaEmbed(element, full, {
    mode: "vega-lite",
    renderer: "svg",
    actions: false,
    config: report.themes[dark ? "dark" : "light"],
    tooltip: { theme: dark ? "dark" : "light" },
  });
  return view;
}

/** Move the outline of a linked view; nothing but the outline is drawn again. */
function mark(view, { layer, position }) {
  view.signal("cursor_layer", layer).signal("cursor_position", position).runAsync();
}

/** Keep the axis on the left, and the legend, in sight while the cells are scrolled under them. */
function freeze(view, element) {
  const drawn = element.querySelector("svg");
  const [x, y] = view.origin();
  const left = x + view.padding().left;
  const bottom = y + view.padding().top + view.height();
  const still = drawn.cloneNode(true);
  still.querySelectorAll(".role-mark, .role-title").forEach((mark) => mark.remove());
  const part = (width, from, to) => {
    const copy = still.cloneNode(true);
    copy.style.top = `${-from}px`;
    const box = make("div", {}, copy);
    Object.assign(box.style, { width: `${width}px`, top: `${from}px`, height: `${to - from}px` });
    return box;
  };
  const height = Number(drawn.getAttribute("height"));
  const frozen = make("div", { className: "frozen" }, part(left - 1, 0, bottom + 4), part(element.parentElement.clientWidth, bottom + 4, height));
  element.before(frozen);
  return frozen;
}

/** Scroll a view sideways, if it must, until the marked column is in sight. */
function reveal(view, name, scroller, { layer, position }, right) {
  const column = right ? layer : position;
  if (column === null) return;
  const scale = view.scale(`${name}_x`);
  const start = scale(column);
  if (start === undefined) return;
  const axis = view.origin()[0] + view.padding().left;
  const edge = axis + start + scale.bandwidth();
  const from = scroller.scrollLeft;
  if (start < from) scroller.scrollLeft = start - 12;
  else if (edge > from + scroller.clientWidth) scroller.scrollLeft = edge - scroller.clientWidth + 12;
}
