"use strict";

/** The mark of one section: a token, a layer, or both; it follows the pointer until it is pinned. */
class Cursor extends EventTarget {
  constructor(positions, blocks) {
    super();
    this.positions = positions;
    this.blocks = blocks;
    this.clear();
  }

  /** Mark a place; what is not part of the passage is left out. */
  set({ position = null, layer = null }, { pinned = this.pinned, by = "pointer" } = {}) {
    this.position = position >= 0 && position < this.positions ? position : null;
    this.layer = this.blocks.includes(layer) ? layer : null;
    this.pinned = pinned && !this.empty;
    this.dispatchEvent(new CustomEvent("move", { detail: { by } }));
  }

  /** Follow the pointer, unless a place is pinned. */
  hover(place) {
    const moved = place.position !== this.position || place.layer !== this.layer;
    if (!this.pinned && moved) this.set(place);
  }

  /** Step over tokens and layers, starting at the first; stops at the edges. */
  step(tokens, layers) {
    const last = this.blocks.length - 1;
    const row = this.layer === null ? 0 : this.blocks.indexOf(this.layer) + layers;
    const position = this.position === null ? 0 : this.position + tokens;
    this.set(
      {
        position: Math.min(Math.max(position, 0), this.positions - 1),
        layer: this.blocks[Math.min(Math.max(row, 0), last)],
      },
      { by: "keys" },
    );
  }

  pin() {
    this.set(this, { pinned: true, by: "keys" });
  }

  clear() {
    this.set({}, { pinned: false, by: "keys" });
  }

  get empty() {
    return this.position === null && this.layer === null;
  }
}

/** The state of the page in its address, so that a copied address shows the same again; works without a server. */
const address = {
  read() {
    const fields = new URLSearchParams(location.hash.slice(1));
    const number = (name) => (/^-?\d+$/.test(fields.get(name) ?? "") ? Number(fields.get(name)) : null);
    return {
      section: number("result") ?? 0,
      position: number("token"),
      layer: number("layer"),
      right: fields.get("layers") === "right",
    };
  },

  write({ section, position, layer, right }) {
    const fields = new URLSearchParams();
    if (section) fields.set("result", section);
    if (position !== null) fields.set("token", position);
    if (layer !== null) fields.set("layer", layer);
    if (right) fields.set("layers", "right");
    history.replaceState(null, "", `#${fields}`);
  },
};
