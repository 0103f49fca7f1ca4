"use strict";

/** One figure of a section: its view, its variants, what it says of a cell, its table and files. */
class Figure {
  constructor(element, content, tables, cursor) {
    Object.assign(this, { element, content, tables, cursor });
    this.variant = Object.keys(content.variants)[0];
    this.right = false;
    this.scroller = element.querySelector(".scroll");
    this.table = element.querySelector("details.table");
    element.querySelector("[data-variant]")?.addEventListener("change", (event) => {
      this.variant = event.target.value;
      this.embed();
    });
    for (const button of element.querySelectorAll("[data-save]")) {
      button.addEventListener("click", () => this.save(button.dataset.save));
    }
    this.table.addEventListener("toggle", () => this.tabulate());
  }

  get rows() {
    return (this.stored ??= rowsOf(this.tables[this.content.name]));
  }

  get columns() {
    return Object.keys(this.tables[this.content.name]);
  }

  async embed() {
    const ways = this.content.variants[this.variant];
    const spec = ways[this.right ? 1 : 0] ?? ways[0];
    this.prefix = spec.name;
    this.view?.finalize();
    this.view = await draw(this.element.querySelector(".view"), spec, this.tables, {
      room: this.scroller.clientWidth,
      right: this.right,
    });
    if (!this.content.linked) return;
    for (const kind of ["mousemove", "click"]) {
      this.view.addEventListener(kind, (event, item) => this.point(kind, item?.datum));
    }
    this.frozen?.remove();
    this.frozen = freeze(this.view, this.element.querySelector(".view"));
    this.mark();
  }

  point(kind, datum) {
    if (datum?.position === undefined || datum.block === undefined) return;
    const place = { position: datum.position, layer: datum.block };
    if (kind === "click") this.cursor.set(place, { pinned: true });
    else this.cursor.hover(place);
  }

  mark() {
    if (!this.view || !this.content.linked) return;
    mark(this.view, this.cursor);
    if (this.table.open && this.scope?.value !== "all") this.fill();
    if (!this.element.matches(":hover")) reveal(this.view, this.prefix, this.scroller, this.cursor, this.right);
  }

  /** Rows at the marked token and layer. */
  here() {
    const { position, layer } = this.cursor;
    return this.rows.filter((row) => row.position === position && row.block === layer);
  }

  async save(kind) {
    const name = [this.content.name, ...this.variant.split(", ")].filter(Boolean).join("-");
    if (kind === "csv") download(`${this.content.name}.csv`, new Blob([csv(this.columns, this.rows)], { type: "text/csv" }));
    if (kind === "svg") download(`${name}.svg`, new Blob([await this.view.toSVG()], { type: "image/svg+xml" }));
    if (kind === "png") {
      const canvas = await this.view.toCanvas(2);
      canvas.toBlob((blob) => download(`${name}.png`, blob));
    }
  }

  /** Write the table when it is first opened: most readers never do, and it is large. */
  tabulate() {
    if (!this.table.open || this.body) return;
    const rows = { all: "all", token: "of the marked token", layer: "of the marked layer" };
    this.scope = make("select", {}, ...Object.entries(rows).map(([value, text]) => make("option", { value }, text)));
    this.scope.addEventListener("change", () => this.fill());
    if (this.content.linked) this.table.append(make("label", {}, "rows ", this.scope));
    const head = make("tr", {}, ...this.columns.map((name) => make("th", { scope: "col" }, name.replaceAll("_", " "))));
    this.body = make("tbody");
    const caption = make("caption", {}, this.table.dataset.caption);
    const table = make("table", {}, caption, make("thead", {}, head), this.body);
    this.table.append(make("div", { className: "scroll table-scroll", tabIndex: 0 }, table));
    this.fill();
  }

  fill() {
    const { position, layer } = this.cursor ?? {};
    const wanted = {
      all: () => true,
      token: (row) => row.position === position,
      layer: (row) => row.block === layer,
    }[this.scope.value];
    const lines = this.rows.filter(wanted).map((row) =>
      make("tr", {}, ...this.columns.map((name, index) =>
        index ? make("td", {}, shown(row[name])) : make("th", { scope: "row" }, shown(row[name])))));
    this.body.replaceChildren(...lines);
  }
}

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function shown(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number" || Number.isInteger(value)) return String(value);
  return Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5 ? String(Number(value.toPrecision(digits))) : value.toExponential(digits - 2);
}

/** Comma-separated values; text that a spreadsheet would take for a formula gets an apostrophe in front. */
function csv(columns, rows) {
  const field = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value !== "string") return String(value);
    const inert = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return `"${inert.replaceAll('"', '""')}"`;
  };
  return [columns, ...rows.map((row) => columns.map((name) => row[name]))].map((line) => line.map(field).join(",")).join("\r\n");
}

function download(name, blob) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
