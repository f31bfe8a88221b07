"use strict";
// Sorts and filters the tables of a report. It knows nothing of what they hold, and a page without it is whole.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent.trim();
  const compare = (a, b) => {
    const x = parseFloat(a), y = parseFloat(b);
    if (a === "" || b === "") return (a === "") - (b === "");
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  heads.forEach((head, i) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.title = "sort by this column";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const empty = (row) => value(row, i) === "";
      const sorted = [...rows].sort((a, b) => {
        if (empty(a) || empty(b)) return empty(a) - empty(b);
        return (down ? -1 : 1) * compare(value(a, i), value(b, i));
      });
      body.replaceChildren(...sorted);
    });
  });
  const bar = document.createElement("p"), label = document.createElement("label"), shown = document.createElement("output");
  const text = document.createElement("input");
  bar.className = "controls";
  text.type = "search";
  text.placeholder = "name, form, status";
  label.append("Filter ", text);
  bar.append(label, shown);
  table.parentElement.before(bar);
  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of rows) {
      const told = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => told.includes(word));
      left += !row.hidden;
    }
    shown.textContent = `${left} of ${rows.length}`;
  };
  text.addEventListener("input", filter);
  filter();
}
