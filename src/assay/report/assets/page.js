"use strict";

const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** One result on the page: its passage, its figures and the cursor they share. */
class Section {
  constructor(element, content, index) {
    Object.assign(this, { element, index, tokens: content.tokens });
    this.cursor = new Cursor(content.tokens.length, content.blocks);
    this.buttons = [...element.querySelectorAll(".token")];
    this.panel = element.querySelector(".readout");
    this.figures = content.figures.map((figure, number) => {
      const drawn = new Figure(element.querySelector(`[data-figure="${number}"]`), figure, content.tables, this.cursor);
      drawn.title = drawn.element.querySelector("h3").textContent;
      return drawn;
    });
    this.cursor.addEventListener("move", ({ detail }) => this.moved(detail.by));
    this.listen();
  }

  get linked() {
    return this.figures.filter((figure) => figure.content.linked);
  }

  listen() {
    for (const button of this.buttons) {
      const place = () => ({ position: Number(button.dataset.position), layer: this.cursor.layer });
      button.addEventListener("mouseenter", () => this.cursor.hover(place()));
      button.addEventListener("click", () => this.cursor.set(place(), { pinned: true }));
    }
    this.element.querySelector(".strip")?.addEventListener("keydown", (event) => this.press(event, false));
    for (const figure of this.linked) {
      figure.scroller.addEventListener("keydown", (event) => this.press(event, figure.right));
    }
  }

  /** Arrow keys go the way they look: along tokens or along layers, as the figure lies. */
  press(event, right) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in KEYS) {
      const [across, down] = KEYS[event.key];
      this.cursor.step(...(right ? [down, across] : [across, down]));
    } else if (event.key === "Enter") this.cursor.pin();
    else if (event.key === "Escape") this.cursor.clear();
    else return;
    event.preventDefault();
  }

  moved(by) {
    this.by = by;
    this.due ??= requestAnimationFrame(() => {
      this.due = null;
      this.show();
    });
  }

  show() {
    const { position, layer, pinned } = this.cursor;
    for (const figure of this.linked) figure.mark();
    this.buttons.forEach((button, index) => {
      button.classList.toggle("marked", index === position);
      button.setAttribute("aria-pressed", String(index === position && pinned));
      button.tabIndex = index === (position ?? 0) ? 0 : -1;
    });
    if (this.buttons.includes(document.activeElement)) this.buttons[position]?.focus({ preventScroll: true });
    this.describe();
    if (this.by === "keys" || pinned) {
      this.element.querySelector("[data-spoken]").textContent = spoken(this);
      this.keep();
    }
  }

  describe() {
    const { position, layer, pinned } = this.cursor;
    if (this.cursor.empty) {
      this.panel.replaceChildren(make("p", { className: "faint" }, "Nothing marked: hover a cell or a token."));
      return;
    }
    const token = position === null ? "every token" : this.tokens[position];
    const heading = make("h3", {}, make("bdi", {}, token));
    const where = [position === null ? "" : `token ${position}`, layerName(layer), pinned ? "pinned" : ""];
    this.panel.replaceChildren(
      heading,
      make("p", { className: "faint" }, where.filter(Boolean).join(" · ")),
      ...(position === null || layer === null ? [] : this.linked.map((figure) => readout(figure, figure.title))),
    );
  }

  keep() {
    const { position, layer } = this.cursor;
    address.write({ section: this.index, position, layer, right: page.right });
  }
}

const page = {
  right: false,

  start() {
    this.sections = report.sections.map(
      (content, index) => new Section(document.querySelector(`[data-section="${index}"]`), content, index),
    );
    for (const button of document.querySelectorAll("[data-orientation]")) {
      button.addEventListener("click", () => this.turn(button.dataset.orientation === "1", true));
    }
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.addEventListener("click", () => this.light(button.dataset.themeChoice));
    }
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    addEventListener("hashchange", () => this.follow());
    this.right = address.read().right;
    this.follow();
    this.turn(this.right, false);
  },

  /** Show what the address says. */
  follow() {
    const { section, position, layer, right } = address.read();
    if (right !== this.right && location.hash.includes("layers=")) this.turn(right, false);
    const place = { position, layer };
    if (position !== null || layer !== null) this.sections[section]?.cursor.set(place, { pinned: true, by: "link" });
  },

  turn(right, keep) {
    this.right = right;
    document.documentElement.classList.toggle("layers-right", right);
    for (const button of document.querySelectorAll("[data-orientation]")) {
      button.setAttribute("aria-pressed", String((button.dataset.orientation === "1") === right));
    }
    for (const figure of this.figures) figure.right = right;
    if (keep) this.sections[address.read().section]?.keep();
    return this.draw();
  },

  light(choice) {
    document.documentElement.dataset.theme = choice;
    for (const button of document.querySelectorAll("[data-theme-choice]")) {
      button.setAttribute("aria-pressed", String(button.dataset.themeChoice === choice));
    }
    return this.draw();
  },

  get figures() {
    return this.sections.flatMap((section) => section.figures);
  },

  /** Draw every figure anew, after a drawing under way has ended. */
  draw() {
    document.documentElement.dataset.drawn = "no";
    this.drawing = (this.drawing ?? Promise.resolve()).then(async () => {
      for (const figure of this.figures) await figure.embed();
      document.documentElement.dataset.drawn = "yes";
    });
    return this.drawing;
  },
};

page.start();
