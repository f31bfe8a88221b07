// The samples to choose from, as radio buttons, drawn where they are pictures.

import { draw, element } from "./elements.mjs";

// Draw a sample, or return null where none is a picture.
export function picture(lab, engine, sample) {
  if (!lab.picture) return null;
  const { layout, channels, height, width } = lab.picture;
  const input = lab.inputs.find((one) => one.name === lab.picture.input);
  const { data } = engine.stored(input, sample);
  const place = {
    chw: (c, row, column) => (c * height + row) * width + column,
    hwc: (c, row, column) => (row * width + column) * channels + c,
    hw: (c, row, column) => row * width + column,
  }[layout];
  const canvas = element("canvas", { role: "img", "aria-label": `sample ${sample}` });
  return draw(canvas, lab.picture, (...where) => data[place(...where)]);
}

export const className = (lab, index) => lab.classes?.[index] ?? String(index);

export class Samples {
  constructor(lab, engine, place, choose) {
    this.choices = Array.from({ length: lab.samples.number }, (_, index) => {
      const input = element("input", { type: "radio", name: "sample", value: index, onchange: () => choose(index) });
      const label = lab.samples.labels?.[index];
      const told = label === undefined ? `${index}` : `${index}: ${className(lab, label)}`;
      const drawn = picture(lab, engine, index);
      place.append(element("label", { class: "sample" }, input, ...(drawn ? [drawn] : []), element("span", {}, told)));
      return input;
    });
  }

  render(state) {
    const chosen = this.choices[state.sample];
    if (chosen.checked) return;
    chosen.checked = true;
    chosen.parentElement.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}
