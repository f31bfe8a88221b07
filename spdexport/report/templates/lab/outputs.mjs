// The answer beside that of the dense model: the verdict in words, and bars of the classes.

import { button, element, labelled, short } from "./elements.mjs";
import { className, picture } from "./samples.mjs";

const SHOWN = 20;
const TIMED = 30;

const softmaxed = (values) => {
  const greatest = Math.max(...values), powers = values.map((value) => Math.exp(value - greatest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
};
const best = (values) => values.reduce((top, value, i) => (value > values[top] ? i : top), 0);
const norm = (values) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));

export class Outputs {
  constructor(lab, engine, place, changed, time) {
    Object.assign(this, { lab, engine });
    this.title = element("strong");
    this.facts = element("div");
    this.drawn = element("div", { class: "drawn" });
    this.verdict = element("div", { class: "verdict not_run", role: "status", id: "verdict" },
      element("div", { class: "shown" }, this.drawn, element("div", { class: "facts" }, element("p", {}, this.title), this.facts)));
    this.softmax = element("input", { type: "checkbox", onchange: () => changed((state) => { state.softmax = this.softmax.checked; }) });
    this.position = element("input", { type: "number", min: 0, value: 0, onchange: () => changed((state) => {
      state.position = Math.min(Math.max(Math.trunc(this.position.valueAsNumber) || 0, 0), this.positions - 1);
    }) });
    this.where = labelled("position", this.position, (this.of = element("span")));
    this.output = element("select", { onchange: () => changed((state) => { state.output = this.output.selectedIndex; }) },
      ...lab.outputs.map((name) => element("option", {}, name)));
    this.which = labelled("output", this.output);
    this.which.hidden = lab.outputs.length < 2;
    this.brief = document.getElementById("brief");
    this.timed = element("span", { id: "timed" });
    this.bars = element("div", { class: "bars", id: "bars" });
    this.told = element("p", { class: "soft" });
    place.append(
      this.verdict,
      element("div", { class: "controls" }, this.which, this.where, labelled("", this.softmax, "as softmax"),
        button(`time ${TIMED} runs`, async () => { this.timed.textContent = await time(TIMED); }), this.timed),
      element("div", { class: "keys" },
        element("span", {}, element("span", { class: "key now" }), "now"),
        element("span", {}, element("span", { class: "key was" }), lab.dense.is_dense ? "dense" : "all on")),
      this.bars, this.told,
    );
  }

  // The values of one position of an output, and those that they are shown beside.
  values(state, result, reference) {
    const name = this.lab.outputs[state.output];
    const now = result.outputs.get(name);
    const stored = this.lab.dense.outputs.find((one) => one.name === name);
    const dense = stored ? this.engine.stored(stored, state.sample) : reference.outputs.get(name);
    const last = now.shape.length > 1 ? now.shape.at(-1) : now.data.length;
    this.positions = Math.max(now.data.length / last, 1);
    state.position = Math.min(state.position, this.positions - 1);
    const part = ({ data }) => Array.from(data.slice(state.position * last, (state.position + 1) * last), Number);
    return [now, dense].map((one) => (state.softmax ? softmaxed(part(one)) : part(one)));
  }

  render(state, result, reference) {
    const [now, dense] = this.values(state, result, reference);
    this.softmax.checked = state.softmax;
    this.output.selectedIndex = state.output;
    this.where.hidden = this.positions < 2;
    this.position.value = state.position;
    this.position.max = this.positions - 1;
    this.of.textContent = `of 0 to ${this.positions - 1}`;
    this.#verdict(state, now, dense, result.milliseconds);
    this.#bars(now, dense);
  }

  #verdict(state, now, dense, milliseconds) {
    const beside = this.lab.dense.is_dense ? "dense" : "all on";
    const top = best(now), before = best(dense), names = (index) => className(this.lab, index);
    const change = norm(now.map((value, i) => value - dense[i])), whole = norm(dense);
    const drawn = picture(this.lab, this.engine, state.sample);
    this.drawn.replaceChildren(...(drawn ? [drawn] : []));
    this.drawn.hidden = !drawn;
    this.verdict.className = `verdict ${top === before ? "pass" : "fail"}`;
    this.title.textContent = top === before ? `${names(top)}, as ${beside}` : `${names(top)}; ${beside}: ${names(before)}`;
    const label = this.lab.samples.labels?.[state.sample];
    const greatest = Math.max(...now.map((value, i) => Math.abs(value - dense[i])));
    const told = `change ${short(whole ? change / whole : change)}${whole ? " of the norm" : ""}`;
    const facts = [
      ...(label === undefined ? [] : [`right: ${names(label)}`]),
      `${told}, largest ${short(greatest)}`,
      `one run ${short(milliseconds)} ms`,
    ];
    this.facts.replaceChildren(...facts.map((fact) => element("p", {}, fact)));
    this.brief.textContent = `${this.title.textContent} · ${told}`;
    this.verdict.dataset.top = top;
    this.verdict.dataset.dense = before;
  }

  #bars(now, dense) {
    const all = now.map((_, i) => i), top = best(now), before = best(dense);
    // Of many classes those that matter to either, the greatest first.
    const chosen = all.length <= SHOWN ? all
      : all.sort((a, b) => Math.max(now[b], dense[b]) - Math.max(now[a], dense[a])).slice(0, SHOWN);
    const finite = [...now, ...dense].filter(Number.isFinite);
    const low = Math.min(0, ...chosen.flatMap((i) => [now[i], dense[i]]).filter(Number.isFinite));
    const high = Math.max(0, ...chosen.flatMap((i) => [now[i], dense[i]]).filter(Number.isFinite));
    const span = high - low || 1;
    const bar = (value, kind) => {
      const made = element("span", { class: kind });
      const [from, to] = [Math.min(value, 0), Math.max(value, 0)];
      made.style.marginLeft = `${(100 * (from - low)) / span}%`;
      made.style.width = `${Number.isFinite(value) ? (100 * (to - from)) / span : 0}%`;
      return made;
    };
    this.bars.replaceChildren(...chosen.map((i) => {
      const row = element("div", { class: "bar" },
        element("span", { class: i === top ? "name top" : "name", title: i === before ? "the top class of what it is shown beside" : "" },
          className(this.lab, i) + (i === before ? " •" : "")),
        element("span", { class: "pair" }, bar(now[i], "now"), bar(dense[i], "was")),
        element("span", { class: "number" }, short(now[i])),
        element("span", { class: "difference" }, `${now[i] > dense[i] ? "+" : ""}${short(now[i] - dense[i])}`));
      Object.assign(row.dataset, { class: i, now: now[i], dense: dense[i] });
      return row;
    }));
    const left = now.length - chosen.length;
    this.told.textContent = [
      `•: the top class beside; the last column is the difference.`,
      left ? `${left} classes with less are left out.` : "",
      finite.length < 2 * now.length ? "Some values are not finite." : "",
    ].filter(Boolean).join(" ");
  }
}
