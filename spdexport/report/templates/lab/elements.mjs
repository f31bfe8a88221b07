// Making parts of the page. Whatever is shown goes in as text: names come from files that nobody vouches for.

export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const button = (text, act, properties = {}) =>
  element("button", { type: "button", class: "action", onclick: act, ...properties }, text);

// What belongs together stays on one line.
export const group = (...parts) => element("span", { class: "group" }, ...parts);

export const labelled = (text, input, after = "") => element("label", {}, text, input, after);

// Characters that turn text around or command terminals stand as what they are, as everywhere in spdexport.
const COMMANDING = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff\ufffe\uffff]/gu;
export const shown = (text) =>
  String(text).replace(COMMANDING, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);

// Three significant digits; what is not finite as its name.
export function short(number) {
  if (!Number.isFinite(number)) return String(number);
  if (number === 0) return "0";
  const size = Math.abs(number);
  return size >= 1e5 || size < 1e-3 ? number.toExponential(1) : String(Number(number.toPrecision(3)));
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  for (; count >= 1000 && unit < 3; unit += 1) count /= 1000;
  return `${Number(count.toPrecision(3))} ${units[unit]}`;
}

// Draw numbers from low to high as grey or as colours; value(channel, row, column) gives them.
export function draw(canvas, { width, height, channels, low, high }, value) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const scale = high > low ? 255 / (high - low) : 0;
  for (let row = 0; row < height; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const place = 4 * (row * width + column);
      for (let channel = 0; channel < 3; channel += 1) {
        const number = value(channels === 3 ? channel : 0, row, column);
        image.data[place + channel] = Number.isFinite(number) ? (number - low) * scale : 0;
      }
      image.data[place + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
