"use strict";

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

/** Widen the cells of a picture of fixed steps until it fills the room there is, within reason. */
function widened(spec, room) {
  const step = spec.width?.step;
  const across = spec.layer?.[0].encoding?.x?.scale?.domain?.length;
  if (!step || !across) return spec;
  const margin = 110;
  return { ...spec, width: { step: Math.max(step, Math.min(1.5 * step, Math.floor((room - margin) / across))) } };
}

/** Draw a chart in the theme of the page; resolves to its Vega view. */
async function draw(element, spec, tables, room) {
  const dark = darkNow();
  const full = { ...widened(spec, room), datasets: tablesIn(spec, tables) };
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

/** Scroll a view sideways, if it must, until the marked column is in sight. */
function reveal(view, name, scroller, { layer, position }, right) {
  const column = right ? layer : position;
  if (column === null) return;
  const scale = view.scale(`${name}_x`);
  const start = scale(column);
  if (start === undefined) return;
  const left = view.origin()[0] + start;
  const edge = left + scale.bandwidth();
  const from = scroller.scrollLeft;
  if (left < from) scroller.scrollLeft = left - 12;
  else if (edge > from + scroller.clientWidth) scroller.scrollLeft = edge - scroller.clientWidth + 12;
}
