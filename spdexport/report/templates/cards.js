"use strict";
// Sorts and filters the cards of an atlas. It knows nothing of what they hold, and a page without it is whole.
const links = document.querySelectorAll("nav li"); // one for each section
const sections = [...document.querySelectorAll("section.layer")].map((section, i) => ({
  section, link: links[i], list: section.querySelector(".cards"), cards: [...section.querySelectorAll(".card")],
}));
const control = (name) => document.querySelector(`.controls [name=${name}]`);
const order = control("order"), text = control("filter"), alive = control("alive"), told = document.querySelector(".controls output");
const total = sections.reduce((sum, one) => sum + one.cards.length, 0);
const sort = () => {
  const key = order.value, up = key === "index" ? 1 : -1;
  const value = (card) => { const x = parseFloat(card.dataset[key]); return Number.isNaN(x) ? -Infinity : x; };
  for (const one of sections) {
    one.cards.sort((a, b) => up * (value(a) - value(b)) || a.dataset.index - b.dataset.index);
    one.list.replaceChildren(...one.cards);
  }
};
const filter = () => {
  const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const one of sections) {
    let here = 0;
    for (const card of one.cards) {
      const said = card.textContent.toLowerCase();
      card.hidden = (alive.checked && !("alive" in card.dataset)) || !words.every((word) => said.includes(word));
      here += !card.hidden;
    }
    one.section.hidden = here === 0;
    one.link.hidden = here === 0;
    shown += here;
  }
  told.textContent = `${shown} of ${total}`;
};
order.addEventListener("change", sort);
for (const one of [text, alive]) one.addEventListener("input", filter);
// What a link points to is shown, whatever was filtered away.
const reach = () => {
  const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!wanted || (!wanted.hidden && !wanted.closest("[hidden]"))) return;
  text.value = "";
  alive.checked = false;
  filter();
  wanted.scrollIntoView();
};
addEventListener("hashchange", reach);
document.querySelector(".controls").hidden = false;
sort();
filter();
reach();
