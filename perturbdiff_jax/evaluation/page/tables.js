// Sorting by a column head, the search box, and folded parts opened for print. Without script the page still reads.
"use strict";
const value = (row, column) => {
  const cell = row.cells[column];
  if (!cell.hasAttribute("data-v")) return cell.textContent.trim();
  const text = cell.getAttribute("data-v");
  return text === "" ? null : Number(text);
};
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const number = !head.classList.contains("text") && column > 0;
    const first = number && !head.querySelector('[aria-label^="lower"]') ? "descending" : "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    heads.forEach((each) => each.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // missing values stay last
      return sign * (typeof a === "number" && typeof b === "number" ? a - b
        : String(a).localeCompare(String(b), undefined, { numeric: true }));
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
for (const box of document.querySelectorAll("input[data-table]")) {
  const rows = [...document.getElementById(box.dataset.table).tBodies[0].rows];
  const keys = rows.map((row) => `${row.cells[0].textContent} ${row.cells[1].textContent}`.toLowerCase());
  const said = document.getElementById(`${box.dataset.table}-found`);
  box.addEventListener("input", () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !words.every((word) => keys[place].includes(word));
      shown += !row.hidden;
    });
    said.textContent = `${shown} of ${rows.length} shown`;
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
