// The page: loads what is beside it, runs the copy whenever something was changed, and shows what comes of it.

import { button, bytes, element, group, labelled, shown } from "./elements.mjs";
import { Engine, load } from "./engine.mjs";
import { Layer, gateOf } from "./layers.mjs";
import { Outputs } from "./outputs.mjs";
import { Samples } from "./samples.mjs";
import { State } from "./state.mjs";

const at = (id) => document.getElementById(id);

// Say what is going on, before all is loaded and where something fails.
function tell(kind, title, text) {
  at("status").hidden = false;
  at("status").className = `verdict ${kind}`;
  at("status").replaceChildren(element("p", {}, element("strong", {}, title)), element("p", {}, shown(text)));
}

function fail(error) {
  document.body.dataset.state = "failed";
  tell("fail", "this does not work", error?.message ?? String(error));
}

class Page {
  constructor(lab, engine) {
    Object.assign(this, { lab, engine, state: new State(lab), reference: null, running: false, again: false });
    const changed = (change) => this.change(change);
    this.samples = new Samples(lab, engine, at("samples"), (index) => this.change((state) => { state.sample = index; }));
    this.outputs = new Outputs(lab, engine, at("outputs"), changed, (runs) => this.time(runs));
    this.layers = lab.layers.map((layer, index) => new Layer(layer, index, changed));
    at("layers").append(...this.layers.map((layer) => layer.section));
    at("controls").append(...this.#controls());
    this.#foot();
    addEventListener("hashchange", () => this.#follow());
    this.#follow();
  }

  // What concerns all layers that the filter shows.
  #controls() {
    const { lab } = this;
    this.search = element("input", { type: "search", placeholder: "layer:component", oninput: () => this.#filter() });
    this.kind = element("select", { "aria-label": "which components are shown", onchange: () => this.#filter() },
      ...["all", "on", "off"].map((kind) => element("option", {}, kind)));
    this.seen = element("output", {});
    const every = (act) => this.change((state) => this.layers.forEach((layer) => {
      if (!layer.section.hidden) act(state, layer, layer.index);
    }));
    const switched = (off) => (state, layer, i) => { if (layer.layer.mask) state.off[i] = new Set(off(layer)); };
    const numbers = (layer) => layer.cells.map((_, component) => component);
    const above = element("input", { type: "number", step: "0.05", value: 0.1, "aria-label": "importance" });
    const important = () => every(switched((layer) => {
      const kept = new Set(layer.important(above.valueAsNumber || 0) ?? numbers(layer));
      return numbers(layer).filter((component) => !kept.has(component));
    }));
    const shows = lab.layers.some((layer) => layer.importance && layer.mask);
    const gated = lab.layers.some((layer) => layer.threshold);
    const threshold = element("input", { type: "number", step: "0.05", value: lab.layers.find((l) => l.threshold)?.threshold.value ?? 0.1, "aria-label": "threshold of all gates" });
    const gates = (choice) => every((state, layer, i) => { if (layer.layer.threshold) state.gates[i] = gateOf(choice, threshold); });
    this.link = element("a", { class: "action", href: "#" }, "link to this");
    this.wrong = element("p", { class: "soft", hidden: true });
    const rows = [
      [labelled("Filter", this.search), this.kind, this.seen],
      [button("all on", () => every(switched(() => []))), button("all off", () => every(switched(numbers))),
        ...(shows ? [group(button("only importance above", important), above)] : [])],
      gated && ["gates:", button("importances", () => gates("soft")), button("none", () => gates("off")), group(button("1 above", () => gates("hard")), threshold)],
      [button("as the file is", () => this.change((state) => state.reset())), button("save masks", () => this.#save(), { title: "as spdexport convert --masks reads them" }), this.link],
    ];
    const keys = [["importance", lab.layers.some((l) => l.importance)], ["activation", lab.layers.some((l) => l.activation)]]
      .filter(([, there]) => there)
      .map(([kind]) => element("span", {}, element("span", { class: `key mark-${kind}` }),
        kind === "importance" ? "importance, 0 to 1" : "activation, to the layer's greatest"));
    return [...rows.filter(Boolean).map((row) => element("div", { class: "controls" }, ...row)), this.wrong,
      element("div", { class: "keys" }, ...keys, ...(gated ? [element("em", {}, "slanted: closed by the gate")] : []))];
  }

  #foot() {
    const { lab } = this;
    const notes = [`Shown beside: ${lab.dense.told}.`, ...lab.active.map((one) => `At work in every run: ${one}.`), ...lab.notes];
    const facts = [
      ["file", lab.file.name], ["SHA-256 of the file", lab.file.sha256],
      ["what runs here", `a copy of it with masks and thresholds as inputs, ${bytes(lab.model.bytes)}`],
      ["runtime", `onnxruntime-web ${lab.runtime.version}, WebAssembly on one thread`], ["made by", lab.made_by],
    ];
    at("foot").append(
      element("h2", {}, "Notes"), element("ul", {}, ...notes.map((note) => element("li", {}, shown(note)))),
      element("h2", {}, "Provenance"), element("dl", {}, ...facts.flatMap(([what, value]) => [element("dt", {}, what), element("dd", {}, shown(value))])));
    at("foot").hidden = false;
  }

  #filter() {
    const words = this.search.value.split(/\s+/).filter(Boolean);
    const wanted = this.kind.value;
    const matches = (name, on) => words.every((word) => name.includes(word)) && (wanted === "all" || on === (wanted === "on"));
    const seen = this.layers.reduce((sum, layer) => sum + layer.filter(matches, this.state), 0);
    const all = this.layers.reduce((sum, layer) => sum + layer.layer.components, 0);
    this.seen.textContent = `${seen} of ${all}`;
  }

  #save() {
    const file = new Blob([this.state.masks()], { type: "application/json" });
    const link = element("a", { href: URL.createObjectURL(file), download: "masks.json" });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  #follow() {
    const link = location.hash.slice(1);
    if (link === this.state.toHash() && this.reference) return;
    const wrong = this.state.fromHash(link);
    this.wrong.hidden = !wrong.length;
    this.wrong.textContent = wrong.length ? `The link says what this model has not, which is left out: ${shown(wrong.slice(0, 5).join(", "))}` : "";
    this.update();
  }

  change(act) {
    act(this.state);
    this.update();
  }

  // Run and show; what is changed meanwhile is run afterwards, once.
  async update() {
    this.again = true;
    if (this.running) return;
    this.running = true;
    document.body.dataset.state = "running";
    try {
      while (this.again) {
        this.again = false;
        const { state } = this;
        if (this.reference?.sample !== state.sample) {
          this.reference = { sample: state.sample, ...(await this.engine.reference(state.sample)) };
        }
        const sample = state.sample, result = await this.engine.run(state);
        if (sample === state.sample && sample === this.reference.sample) this.#render(result);
      }
      document.body.dataset.state = "ready";
    } catch (error) {
      fail(error);
    } finally {
      this.running = false;
    }
  }

  #render(result) {
    const { state, reference } = this;
    this.samples.render(state);
    this.outputs.render(state, result, reference);
    for (const layer of this.layers) layer.render(state, result, reference);
    this.#filter();
    const link = `#${state.toHash()}`;
    this.link.setAttribute("href", link);
    if (location.hash !== link && !(link === "#" && location.hash === "")) history.replaceState(null, "", link);
  }

  // The median of some runs, in words.
  async time(runs) {
    const times = [];
    for (let run = 0; run < runs; run += 1) times.push((await this.engine.run(this.state)).milliseconds);
    times.sort((a, b) => a - b);
    return `median ${times[Math.floor(runs / 2)].toFixed(2)} ms`;
  }
}

async function start() {
  tell("not_run", "loading", "the description of the lab");
  const lab = JSON.parse(new TextDecoder().decode(await load("lab.json")));
  const engine = await Engine.open(lab, (what) => tell("not_run", "loading", what));
  tell("not_run", "loading", "the first run");
  new Page(lab, engine);
  at("lab").hidden = false;
  at("status").hidden = true;
}

start().catch(fail);
