// What the other scripts share: elements, numbers as the page writes them, embedded data, tables that sort.
"use strict";
const report = (() => {
  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children); // text stays text, whatever a name holds
    return node;
  };

  // Three meaningful digits: 0.812, 0.0034, 141, and a dash for nothing.
  const figure = (value) => {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    if (size > 0 && size < 1e-4) return value.toExponential(1);
    if (size > 0 && size < 1e-3) return value.toPrecision(2);
    if (size > 0 && size < 0.1) return value.toFixed(4);
    if (size < 10) return value.toFixed(3);
    const digits = size < 1000 ? 1 : 0;
    return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  };

  const read = (id) => {
    const element = document.getElementById(id);
    return element && JSON.parse(element.textContent);
  };

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell.hasAttribute("data-v")) return cell.textContent.trim();
    const text = cell.getAttribute("data-v");
    return text === "" ? null : Number(text);
  };

  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const number = !head.classList.contains("text") && column > 0;
      const first = number && !head.querySelector('[aria-label^="lower"]') ? "descending" : "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column), row]);
      rows.sort(([a], [b]) => {
        if (a === null || b === null) return (a === null) - (b === null); // missing values stay last
        return sign * (typeof a === "number" && typeof b === "number" ? a - b
          : String(a).localeCompare(String(b), undefined, { numeric: true }));
      });
      table.tBodies[0].append(...rows.map(([, row]) => row));
    }));
  };

  // columns: {label, text (not a number)}; a cell is a string, a node, or {text, sort, small}. The first names the row.
  const table = (caption, columns, rows) => {
    const head = make("tr", {}, ...columns.map((column) => make("th", { scope: "col", ...(column.text && { class: "text" }) },
      make("button", { type: "button", ...(column.tip && { title: column.tip }) }, column.label))));
    const body = make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, place) => {
      const plain = typeof cell === "string" || cell instanceof Node;
      const attributes = place === 0 ? { scope: "row" } : columns[place].text ? { class: "text" } : {};
      if (!plain) attributes["data-v"] = cell.sort === null || cell.sort === undefined ? "" : cell.sort;
      return make(place === 0 ? "th" : "td", attributes, plain ? cell : cell.text);
    }))));
    const whole = make("table", {}, make("caption", {}, make("span", {}, caption)), make("thead", {}, head), body);
    sortable(whole);
    return make("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": caption }, whole);
  };

  return { make, figure, read, sortable, table };
})();
