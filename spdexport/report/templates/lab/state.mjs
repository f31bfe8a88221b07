// What the user has chosen, and its form in a link: everything that differs from the file as it is.

// Runs of numbers, "0-4,7", and back; null where the text is something else.
export function ranges(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b), parts = [];
  for (let i = 0; i < sorted.length; ) {
    let end = i;
    while (sorted[end + 1] === sorted[end] + 1) end += 1;
    parts.push(end > i ? `${sorted[i]}-${sorted[end]}` : `${sorted[i]}`);
    i = end + 1;
  }
  return parts.join(",");
}

export function unranged(text, count) {
  const found = new Set();
  for (const part of text.split(",")) {
    const match = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(part);
    if (!match) return null;
    const first = Number(match[1]), last = Number(match[2] ?? match[1]);
    if (last < first || last >= count) return null;
    for (let index = first; index <= last; index += 1) found.add(index);
  }
  return found;
}

const threshold = (text) => {
  if (text === "soft") return null;
  if (text === "off") return -Infinity;
  const number = Number(text);
  return text.trim() !== "" && Number.isFinite(number) ? number : undefined;
};

export class State {
  constructor(lab) {
    this.lab = lab;
    this.reset();
    this.sample = 0;
    this.output = 0;
    this.position = 0;
    this.softmax = false;
  }

  // The file as it is: nothing off, and thresholds as it has them. A gate is null for the importances themselves.
  reset() {
    this.off = this.lab.layers.map(() => new Set());
    this.gates = this.lab.layers.map((layer) => layer.threshold?.value ?? null);
    this.delta = this.lab.layers.map(() => true);
    this.original = this.lab.layers.map(() => false);
  }

  toHash() {
    const link = new URLSearchParams();
    if (this.sample) link.set("sample", this.sample);
    if (this.output) link.set("output", this.output);
    if (this.position) link.set("position", this.position);
    if (this.softmax) link.set("softmax", "1");
    this.lab.layers.forEach((layer, i) => {
      if (this.off[i].size) link.set(`off.${layer.name}`, ranges(this.off[i]));
      if (layer.threshold && !Object.is(this.gates[i], layer.threshold.value)) {
        link.set(`gate.${layer.name}`, this.gates[i] === null ? "soft" : this.gates[i] === -Infinity ? "off" : this.gates[i]);
      }
      if (!this.delta[i]) link.set(`delta.${layer.name}`, "off");
      if (this.original[i]) link.set(`original.${layer.name}`, "on");
    });
    return link.toString();
  }

  // Take what a link says, and return what of it cannot be: a link may be of another lab.
  fromHash(text) {
    this.reset();
    this.sample = this.output = this.position = 0;
    this.softmax = false;
    const wrong = [];
    for (const [key, value] of new URLSearchParams(text)) {
      if (!this.#take(key, value)) wrong.push(`${key}=${value}`);
    }
    return wrong;
  }

  #take(key, value) {
    const [what, ...rest] = key.split(".");
    const i = this.lab.layers.findIndex((layer) => layer.name === rest.join("."));
    const layer = this.lab.layers[i];
    const number = /^\d{1,9}$/.test(value) ? Number(value) : NaN;
    switch (key) {
      case "sample": if (!(number < this.lab.samples.number)) return false; this.sample = number; return true;
      case "output": if (!(number < this.lab.outputs.length)) return false; this.output = number; return true;
      case "position": if (Number.isNaN(number)) return false; this.position = number; return true;
      case "softmax": this.softmax = value === "1"; return true;
    }
    if (!layer) return false;
    switch (what) {
      case "off": {
        const found = layer.mask ? unranged(value, layer.components) : null;
        if (found) this.off[i] = found;
        return found !== null;
      }
      case "gate": {
        const found = threshold(value);
        if (!layer.threshold || found === undefined) return false;
        this.gates[i] = found;
        return true;
      }
      case "delta": if (!layer.delta || value !== "off") return false; this.delta[i] = false; return true;
      case "original": if (!layer.routing || value !== "on") return false; this.original[i] = true; return true;
    }
    return false;
  }

  // The masks as `spdexport convert --masks` reads them: a list of 0 and 1 for each layer.
  masks() {
    const layers = this.lab.layers.map((layer, i) => [layer, this.off[i]]).filter(([layer]) => layer.mask);
    const text = layers.map(([layer, off]) => {
      const values = Array.from({ length: layer.components }, (_, index) => (off.has(index) ? 0 : 1));
      return `${JSON.stringify(layer.name)}: [${values.join(", ")}]`;
    });
    return `{\n${text.join(",\n")}\n}\n`;
  }
}
