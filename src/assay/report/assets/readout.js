"use strict";

/** Say what a figure holds at the marked cell: bars for numbers with their intervals, then single facts. */
function readout(figure, title) {
  const rows = figure.here();
  const block = make("section", {}, make("h4", {}, title));
  block.append(make("p", { className: "faint unit" }, figure.content.unit));
  if (!rows.length) {
    block.append(make("p", { className: "faint" }, "nothing measured at this place"));
    return block;
  }
  const bars = rows.flatMap((row) => figure.content.bars.map(([label, value, low, high]) => ({
    label: String(row[label]), value: row[value], low: row[low] ?? null, high: row[high] ?? null,
  })));
  block.append(barList(bars.filter((bar) => bar.value !== null && bar.value !== undefined)));
  const facts = make("dl");
  for (const [name, column] of figure.content.facts) {
    if (rows[0][column] !== undefined) facts.append(make("dt", {}, name), make("dd", {}, make("bdi", {}, shown(rows[0][column]))));
  }
  block.append(facts);
  return block;
}

function barList(bars) {
  const reach = Math.max(...bars.map((bar) => Math.max(Math.abs(bar.value), Math.abs(bar.low ?? 0), Math.abs(bar.high ?? 0)))) || 1;
  const percent = (value) => `${(100 * Math.abs(value)) / reach}%`;
  const list = make("ul", { className: "bars" });
  for (const { label, value, low, high } of bars) {
    const interval = low === null ? "" : ` [${shown(low, 3)}, ${shown(high, 3)}]`;
    const line = make("li", {}, make("bdi", { className: "name" }, label), make("span", { className: "number" }, shown(value, 3) + interval));
    const bar = make("span", { className: value < 0 ? "bar negative" : "bar" });
    bar.style.width = percent(value);
    line.append(bar);
    list.append(line);
  }
  return list;
}

/** One spoken sentence about the marked place. */
function spoken(section) {
  const { position, layer, pinned } = section.cursor;
  if (position === null && layer === null) return "Nothing marked.";
  const token = position === null ? "" : `token ${position}, ${section.tokens[position]}`;
  const place = [token, layerName(layer)].filter(Boolean).join(", ");
  const said = section.figures.filter((figure) => figure.content.linked).map((figure) => {
    const [row] = figure.here();
    const [bar] = figure.content.bars;
    return row && bar ? `${figure.title}: ${row[bar[0]]} ${shown(row[bar[1]])}` : "";
  });
  return `${place}${pinned ? ", pinned" : ""}. ${said.filter(Boolean).join(". ")}`;
}

function layerName(layer) {
  if (layer === null) return "";
  return layer < 0 ? "before the first block" : `after block ${layer}`;
}
