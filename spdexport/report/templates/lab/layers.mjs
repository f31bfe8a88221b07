// The layers, each with its components as buttons: how important and how active each is, and whether it is on.

import { button, draw, element, group, labelled, short, shown } from "./elements.mjs";

// Of an output (1, *locations, C): for each component the greatest size of any location, and the mean of sizes.
function summary(output, components) {
  const peak = new Float64Array(components), mean = new Float64Array(components);
  const locations = output.data.length / components;
  for (let i = 0; i < output.data.length; i += 1) {
    const size = Math.abs(output.data[i]), component = i % components;
    if (size > peak[component] || Number.isNaN(size)) peak[component] = size;
    mean[component] += size / locations;
  }
  return { peak, mean, locations };
}

export class Layer {
  constructor(layer, index, changed) {
    Object.assign(this, { layer, index, changed });
    this.count = element("span", { class: "count" });
    this.cells = Array.from({ length: layer.components }, (_, component) => this.#cell(component));
    this.cells[0].tabIndex = 0;
    this.grid = element("div", { class: "cells", role: "group", "aria-label": `components of ${layer.name}`, onkeydown: (event) => this.#move(event) },
      ...this.cells);
    this.detail = element("div", { class: "detail soft" });
    this.gate = this.#gate();
    this.delta = this.#switch("weight delta", layer.delta, (state, on) => { state.delta[index] = on; });
    this.original = this.#switch("original layer", layer.routing, (state, on) => { state.original[index] = on; });
    this.heading = element("h3", { class: "name" }, shown(layer.name));
    this.section = element("article", { class: "layer", "aria-label": layer.name },
      element("header", {}, this.heading, this.count),
      element("div", { class: "controls" }, ...this.#buttons(), ...[this.gate?.label, this.delta?.label, this.original?.label].filter(Boolean)),
      this.grid, this.detail);
    this.section.dataset.layer = layer.name;
  }

  #cell(component) {
    const cell = element("button", { type: "button", class: "cell", "aria-pressed": "true", tabindex: -1, disabled: !this.layer.mask },
      ...this.#towers(), element("span", { class: "index" }, component));
    cell.dataset.component = component;
    cell.addEventListener("click", () => this.changed((state) => {
      const off = state.off[this.index];
      if (!off.delete(component)) off.add(component);
    }));
    cell.addEventListener("focus", () => this.#stop(cell));
    for (const event of ["focus", "pointerenter"]) cell.addEventListener(event, () => this.#show(component));
    return cell;
  }

  #towers() {
    const kinds = ["importance", "activation"].filter((kind) => this.layer[kind]);
    return kinds.length ? [element("span", { class: "tower" }, ...kinds.map((kind) => element("span", { class: `mark-${kind}` })))] : [];
  }

  // One stop of the tab key for each layer; the arrows go from component to component, over rows too.
  #move(event) {
    const seen = this.cells.filter((cell) => !cell.hidden), at = seen.indexOf(document.activeElement);
    if (at < 0) return;
    const row = seen.filter((cell) => cell.offsetTop === seen[0].offsetTop).length;
    const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: row, ArrowUp: -row, Home: -at, End: seen.length - 1 - at };
    const next = seen[at + steps[event.key]];
    if (!(event.key in steps)) return;
    event.preventDefault();
    if (next) this.#stop(next).focus();
  }

  #stop(cell) {
    for (const one of this.cells) one.tabIndex = one === cell ? 0 : -1;
    return cell;
  }

  #buttons() {
    if (!this.layer.mask) return [];
    const all = Array.from({ length: this.layer.components }, (_, component) => component);
    const set = (off) => () => this.changed((state) => { state.off[this.index] = new Set(off); });
    return [button("all on", set([])), button("all off", set(all)),
      button("others", () => this.changed((state) => {
        state.off[this.index] = new Set(all.filter((component) => !state.off[this.index].has(component)));
      }), { title: "switch off what is on, and on what is off" })];
  }

  #gate() {
    if (!this.layer.threshold) return null;
    const choose = element("select", { "aria-label": `gate of ${this.layer.name}` },
      ...[["soft", "importances as masks"], ["hard", "1 above"], ["off", "no gate"]].map(([value, text]) => element("option", { value }, text)));
    const number = element("input", { type: "number", step: "0.05", "aria-label": `threshold of ${this.layer.name}` });
    number.value = this.layer.threshold.value ?? 0.1;
    const set = () => this.changed((state) => { state.gates[this.index] = gateOf(choose.value, number); });
    choose.addEventListener("change", set);
    number.addEventListener("change", set);
    return { choose, number, label: group(labelled("gate", choose), number) };
  }

  #switch(text, present, act) {
    if (!present) return null;
    const input = element("input", { type: "checkbox" });
    input.addEventListener("change", () => this.changed((state) => act(state, input.checked)));
    return { input, label: labelled("", input, text) };
  }

  // The components whose importance exceeds a number somewhere; null where the file tells no importances.
  important(above) {
    if (!this.importance || !this.layer.mask) return null;
    return this.cells.map((_, component) => component).filter((component) => this.importance.peak[component] > above);
  }

  render(state, result, reference) {
    const { layer, index } = this, off = state.off[index], gate = state.gates[index];
    this.results = { now: result.outputs, dense: reference.outputs };
    const found = (name) => (name ? summary(result.outputs.get(name), layer.components) : null);
    this.importance = found(layer.importance);
    this.activation = found(layer.activation);
    const parts = [this.importance, this.activation].filter(Boolean);
    const tops = parts.map((part) => (part === this.importance ? Math.max(1, ...part.peak) : Math.max(...part.peak) || 1));
    let open = 0;
    this.cells.forEach((cell, component) => {
      const on = !off.has(component);
      const closed = layer.threshold && gate !== -Infinity && this.importance && !(this.importance.peak[component] > (gate ?? 0));
      open += on && !closed;
      cell.setAttribute("aria-pressed", on);
      cell.classList.toggle("closed", Boolean(closed));
      cell.setAttribute("aria-label", this.#told(component, closed));
      cell.querySelectorAll(".tower span").forEach((tower, i) => { tower.style.height = `${(100 * parts[i].peak[component]) / tops[i]}%`; });
    });
    this.count.textContent = `${layer.components - off.size} of ${layer.components} on`
      + (layer.threshold && gate !== -Infinity ? `, ${open} through the gate` : "");
    if (this.gate) {
      this.gate.choose.value = gate === null ? "soft" : gate === -Infinity ? "off" : "hard";
      this.gate.number.disabled = this.gate.choose.value !== "hard";
      if (Number.isFinite(gate) && gate !== null) this.gate.number.value = gate;
    }
    if (this.delta) this.delta.input.checked = state.delta[index];
    if (this.original) this.original.input.checked = state.original[index];
    // Before anybody points at one, the most active of the most important ones.
    if (parts.length) {
      const weight = (component) => parts.reduce((product, part) => product * part.mean[component], 1);
      this.pointed ??= this.cells.map((_, component) => component).reduce((top, one) => (weight(one) > weight(top) ? one : top), 0);
      this.#show(this.pointed);
    }
  }

  #told(component, closed) {
    const says = [`component ${component}`];
    if (this.importance) says.push(`importance ${short(this.importance.peak[component])}`);
    if (this.activation) says.push(`activation ${short(this.activation.peak[component])}`);
    return says.join(", ") + (closed ? ", closed by the gate" : "");
  }

  // Which components are seen; returns how many.
  filter(matches, state) {
    let seen = 0;
    this.cells.forEach((cell, component) => {
      cell.hidden = !matches(`${this.layer.name}:${component}`, !state.off[this.index].has(component));
      seen += !cell.hidden;
    });
    this.section.hidden = !seen;
    if (seen && !this.cells.some((cell) => cell.tabIndex === 0 && !cell.hidden)) this.#stop(this.cells.find((cell) => !cell.hidden));
    return seen;
  }

  #show(component) {
    this.pointed = component;
    if (!this.results || !(this.importance || this.activation)) return;
    const parts = [element("p", { class: "name" }, `${shown(this.layer.name)}:${component}`)];
    for (const [kind, name, found] of [["importance", this.layer.importance, this.importance], ["activation", this.layer.activation, this.activation]]) {
      if (!name) continue;
      const mean = found.locations > 1 ? `, mean ${short(found.mean[component])}` : "";
      const dense = summary(this.results.dense.get(name), this.layer.components).peak[component];
      const beside = kind === "activation" && short(dense) !== short(found.peak[component]) ? ` (all on: ${short(dense)})` : "";
      const text = `${kind} ${short(found.peak[component])}${found.locations > 1 ? " at most" : ""}${mean}${beside}`;
      const map = this.#map(kind, this.results.now.get(name), component);
      parts.push(map ? element("figure", {}, map.canvas, element("figcaption", {}, text, element("br"), map.scale)) : element("p", {}, text));
    }
    this.detail.replaceChildren(...parts);
  }

  // Where in the picture a component is important or active: of importances from 0 to 1, of activations of any sign.
  #map(kind, { data, shape }, component) {
    if (shape.length !== 4) return null;
    const [, height, width, channels] = shape;
    const at = (row, column) => data[(row * width + column) * channels + component];
    let low = 0, high = kind === "importance" ? 1 : 0;
    for (let row = 0; row < height; row += 1) {
      for (let column = 0; column < width; column += 1) {
        low = Math.min(low, at(row, column));
        high = Math.max(high, at(row, column));
      }
    }
    const canvas = element("canvas", { role: "img", "aria-label": `${kind} at each location` });
    draw(canvas, { width, height, channels: 1, low, high }, (_, row, column) => at(row, column));
    return { canvas, scale: `black ${short(low)}, white ${short(high)}` };
  }
}

// The value of a gate as a state has it.
export function gateOf(choice, number) {
  if (choice === "soft") return null;
  if (choice === "off") return -Infinity;
  return Number.isFinite(number.valueAsNumber) ? number.valueAsNumber : 0;
}
