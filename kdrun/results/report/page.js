// What the page can do beside being read: sort a table by a click on a head, set any two rows side by side, with their
// reliability on the same axes.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], given = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const text = (row, k) => row.cells[k].textContent.trim();
  heads.forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "row");
    head.append(button);
    head.setAttribute("aria-sort", "none");
    const number = head.classList.contains("n"), first = head.dataset.first || "ascending";
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort"), second = first === "ascending" ? "descending" : "ascending";
      const now = was === "none" ? first : was === first ? second : "none";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", now);
      const key = row => number ? parseFloat(row.cells[k].dataset.v ?? text(row, k).replace("\u2212", "-").replace(/,/g, "")) : text(row, k);
      const last = row => row.className === "published" || (number ? isNaN(key(row)) : key(row) === "");
      const sign = now === "descending" ? -1 : 1;
      const order = (a, b) => last(a) - last(b) || (last(a) ? 0 : sign *
        (number ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true })));
      body.append(...(now === "none" ? given : [...given].sort(order)));
    });
  });
}
const pairs = document.getElementById("pairs");
if (pairs) {
  const { rows, columns, places, found } = JSON.parse(pairs.textContent);
  const choice = document.getElementById("choice"), [one, other] = choice.querySelectorAll("select");
  const body = document.querySelector("#chosen tbody");
  const beside = document.getElementById("beside"), drawn = [...document.querySelectorAll("[data-row]")];
  const picture = (row, column) => drawn.find(one => one.dataset.row === row && one.dataset.column === column);
  const signed = x => (x < 0 ? "\u2212" : "+") + Math.abs(x).toFixed(places);
  const show = () => {
    const i = one.selectedIndex, j = other.selectedIndex, sign = i < j ? 1 : -1;
    const all = found[`${Math.min(i, j)},${Math.max(i, j)}`] || [];
    [...body.rows].forEach((row, k) => {
      const [difference, low, high, p, n, how] = all[k] || [];
      const ends = sign > 0 ? [low, high] : [-high, -low];
      const told = difference === undefined ? ["", "", "", ""] : [signed(sign * difference),
        low === undefined ? "n/a" : `${signed(ends[0])} to ${signed(ends[1])}`,
        p === undefined || p === null ? "n/a" : p.toFixed(3), n === undefined ? "" : `${n} ${how}`];
      told.forEach((value, c) => { row.cells[c + 1].textContent = value; });
    });
    const pairs = columns.map(column => [picture(rows[i], column), picture(rows[j], column)]);
    beside.replaceChildren(...(i === j ? [] : pairs.filter(pair => pair[0] && pair[1]).flat().map(one => one.cloneNode(true))));
  };
  one.addEventListener("change", show);
  other.addEventListener("change", show);
  choice.hidden = false;
  show();
}
