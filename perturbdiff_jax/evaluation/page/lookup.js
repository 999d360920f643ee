// Looking up a gene or a perturbation: mean changes, real beside predicted, from the numbers inside the page.
"use strict";
(() => {
  const data = report.read("changes");
  if (!data) return;
  const scores = report.read("scores");
  const at = (id) => document.getElementById(`look-${id}`);
  const types = new Set(data.conditions.map(([, type]) => type)).size;
  const MOST_OFFERS = 8, MOST_GENES = 20;
  const level = `${Math.round(100 * data.level)} % interval`;
  const drawn = data.rows.some((row) => row.length > 3);

  // --- one change as cells of a table
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + (Math.abs(value) * data.unit).toFixed(3);
  const right = (real, predicted) => {
    if (!real || !predicted) return "none";
    return Math.sign(real) === Math.sign(predicted) ? "right" : "wrong";
  };
  const change = (value) => ({ text: signed(value), sort: value });
  const bars = (real, predicted, most) => {
    const bar = (value, kind) => {
      const size = Math.min(50, (50 * Math.abs(value)) / (most || 1));
      const inner = report.make("i", { class: kind });
      inner.style.cssText = `left:${value < 0 ? 50 - size : 50}%;width:${size}%`;
      return inner;
    };
    return report.make("span", { class: "bars", "aria-hidden": "true" }, bar(real, "real"), bar(predicted, "predicted"));
  };
  const rowOf = (row, k, most) => {
    const [, real, predicted, low, high] = row;
    const cells = [change(real[k]), change(predicted[k]), bars(real[k], predicted[k], most), right(real[k], predicted[k])];
    if (!drawn) return cells;
    const known = low && low[k] !== null && high[k] !== null;
    const holds = known && low[k] <= real[k] && real[k] <= high[k];
    if (!known) return [...cells, { text: "–" }, "–"];
    return [...cells, { text: `${signed(low[k])} to ${signed(high[k])}`, sort: high[k] - low[k] }, holds ? "yes" : "no"];
  };
  const columns = [
    { label: "Real change" },
    { label: "Predicted" },
    { label: "Real above, predicted below", text: true },
    { label: "Direction", text: true },
  ];
  if (drawn) {
    columns.push({ label: level, tip: "The mean change of as many cells as the real ones lies in it with this probability" });
    columns.push({ label: "Holds the real change", text: true });
  }
  const rightOf = (pairs) => {
    const clear = pairs.map(([real, predicted]) => right(real, predicted)).filter((word) => word !== "none");
    return `direction right in ${clear.filter((word) => word === "right").length} of ${clear.length}`;
  };

  // --- answers
  const geneAnswer = (gene) => {
    const found = [];
    data.rows.forEach((row, c) => {
      const k = row[0].indexOf(gene);
      if (k >= 0) found.push([c, row, k]);
    });
    found.sort(([, a, i], [, b, j]) => Math.abs(b[1][j]) - Math.abs(a[1][i]));
    const most = Math.max(...found.map(([, row, k]) => Math.max(Math.abs(row[1][k]), Math.abs(row[2][k]))));
    const rows = found.map(([c, row, k]) => [...data.conditions[c], ...rowOf(row, k, most)]);
    const many = found.length === 1 ? "condition" : "conditions";
    const title = `${data.genes[gene]}: ${found.length} ${many}, ${rightOf(found.map(([, row, k]) => [row[1][k], row[2][k]]))}`;
    return [title, [report.table(`Mean change of ${data.genes[gene]}, largest real change first`,
      [{ label: "Perturbation", text: true }, { label: "Cell type", text: true }, ...columns], rows)]];
  };
  const perturbationAnswer = (name) => {
    const mine = data.conditions.map((key, c) => [key, c]).filter(([key]) => key[0] === name);
    const parts = [];
    // A name such as "constructor" is nobody's but its own.
    if (Object.hasOwn(data.unseen, name)) {
      parts.push(report.make("p", { class: "hint" }, report.make("span", { class: "tag" }, "unseen"), ` ${data.unseen[name]}`));
    }
    if (scores) {
      const model = scores.models.findIndex((each) => each.name === data.model);
      const wanted = scores.perturbation.names.indexOf(name);
      const rows = [];
      scores.perturbation.codes.forEach((code, i) => {
        if (code !== wanted) return;
        const values = scores.values.map((metric) => metric[model][i]);
        const cells = values.map((value) => ({ text: report.figure(value), sort: value }));
        rows.push([scores.cell_type.names[scores.cell_type.codes[i]], ...cells]);
      });
      if (rows.length) {
        const heads = scores.metrics.map((metric) => ({ label: `${metric.label} ${metric.better > 0 ? "↑" : "↓"}` }));
        parts.push(report.table(`Scores of ${data.model} on ${name}`, [{ label: "Cell type", text: true }, ...heads], rows));
      }
    }
    mine.forEach(([key, c], place) => {
      const row = data.rows[c];
      const size = (k) => Math.max(Math.abs(row[1][k]), Math.abs(row[2][k]));
      const order = row[0].map((_, k) => k).sort((a, b) => size(b) - size(a)).slice(0, MOST_GENES);
      const title = `${key[1]}: ${order.length} genes that change most, ${rightOf(order.map((k) => [row[1][k], row[2][k]]))}`;
      const rows = order.map((k) => [data.genes[row[0][k]], ...rowOf(row, k, size(order[0]))]);
      const made = report.table(title, [{ label: "Gene", text: true }, ...columns], rows);
      const fold = report.make("details", {}, report.make("summary", {}, title), made);
      fold.open = place === 0;
      parts.push(fold);
    });
    return [`${name}: ${mine.length} ${mine.length === 1 ? "condition" : "conditions"}`, parts];
  };

  // --- the two boxes
  const ask = (id, names, first, answer) => {
    const box = at(id), said = at(`${id}-said`), offers = at(`${id}-offers`), result = at(`${id}-result`);
    const lower = names.map((name) => name.toLowerCase());
    const show = (place) => {
      const [title, parts] = answer(place);
      said.textContent = title;
      offers.replaceChildren();
      result.replaceChildren(...parts);
    };
    const offer = (places, more, lead = []) => offers.replaceChildren(
      ...lead,
      ...places.map((place) => {
        const button = report.make("button", { type: "button" }, names[place]);
        button.addEventListener("click", () => { box.value = names[place]; show(place); box.focus(); });
        return button;
      }),
      ...(more > 0 ? [`and ${more.toLocaleString("en-US")} more`] : []),
    );
    const matches = () => {
      const text = box.value.trim().toLowerCase();
      const starts = [], within = [];
      lower.forEach((name, place) => {
        const where = text ? name.indexOf(text) : -1;
        if (where === 0) starts.push(place); else if (where > 0) within.push(place);
      });
      return [...starts.sort((a, b) => lower[a].length - lower[b].length), ...within];
    };
    const search = () => {
      const text = box.value.trim();
      result.replaceChildren();
      if (!text) {
        said.textContent = "";
        return offer(first.slice(0, MOST_OFFERS), 0, ["Largest changes:"]);
      }
      const exact = names.indexOf(text) >= 0 ? names.indexOf(text) : lower.indexOf(text.toLowerCase());
      const found = matches();
      if (exact >= 0 || found.length === 1) return show(exact >= 0 ? exact : found[0]);
      const many = found.length.toLocaleString("en-US");
      said.textContent = found.length ? `${many} match` : "None of that name is held on this page";
      return offer(found.slice(0, MOST_OFFERS), found.length - MOST_OFFERS);
    };
    box.addEventListener("input", search);
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      const found = matches();
      if (found.length && !result.firstChild) { box.value = names[found[0]]; show(found[0]); }
    });
    search();
  };
  const loudest = (size) => [...size.entries()].sort(([, a], [, b]) => b - a).map(([key]) => key);
  const ofGene = new Map(), ofPerturbation = new Map();
  data.rows.forEach((row, c) => row[0].forEach((gene, k) => {
    const size = Math.abs(row[1][k]), name = data.conditions[c][0];
    ofGene.set(gene, Math.max(size, ofGene.get(gene) || 0));
    ofPerturbation.set(name, Math.max(size, ofPerturbation.get(name) || 0));
  }));
  const perturbations = [...new Set(data.conditions.map(([name]) => name))];
  ask("gene", data.genes, loudest(ofGene), geneAnswer);
  const loudPerturbations = loudest(ofPerturbation).map((name) => perturbations.indexOf(name));
  ask("perturbation", perturbations, loudPerturbations, (place) => perturbationAnswer(perturbations[place]));
  document.getElementById("asking").hidden = false;
  document.getElementById("asking-off").hidden = true;
})();
