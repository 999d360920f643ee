// The chart of two models: one point per condition, the win rate in words, the points as a table.
"use strict";
(() => {
  const data = report.read("scores");
  if (!data) return;
  const at = (id) => document.getElementById(`duel-${id}`);
  const [metricBox, oursBox, rivalBox] = ["metric", "ours", "rival"].map(at);
  const chart = at("chart"), svg = chart.querySelector("svg"), tip = chart.querySelector(".tip");
  const [left, top, width, height] = [64, 12, 404, 372]; // of the frame inside the viewBox
  const perturbations = data.perturbation, types = data.cell_type;
  const nameOf = (i) => {
    const name = perturbations.names[perturbations.codes[i]];
    return types.names.length > 1 ? `${name}, ${types.names[types.codes[i]]}` : name;
  };

  // --- choosing
  const fill = (box, items) => {
    for (const [kind, label] of [["", ""], ["prediction", "Predictions"], ["baseline", "Baselines"], ["ceiling", "Ceiling"]]) {
      const mine = items.filter((item) => (item.kind || "") === kind);
      if (!mine.length) continue;
      const options = mine.map((item) => report.make("option", { value: item.place }, item.label || item.name));
      box.append(...(label ? [report.make("optgroup", { label }, ...options)] : options));
    }
  };
  const arrow = (metric) => (metric.better > 0 ? "↑" : "↓");
  fill(metricBox, data.metrics.map((metric, place) => ({ place, label: `${metric.label} ${arrow(metric)}` })));
  const models = data.models.map((model, place) => ({ ...model, place }));
  fill(oursBox, models);
  fill(rivalBox, models);
  oursBox.value = models.find((model) => model.name === data.ours).place;
  rivalBox.value = models.find((model) => model.name === metricBox.closest(".choose").dataset.rival).place;

  metricBox.value = data.metrics.findIndex((metric) => metric.name === metricBox.closest(".choose").dataset.metric);

  // --- counting
  const chosen = () => {
    const metric = data.metrics[metricBox.value];
    const [ours, rival] = [oursBox.value, rivalBox.value].map((place) => data.values[metricBox.value][place]);
    const points = [];
    ours.forEach((y, i) => {
      if (y === null || rival[i] === null) return;
      points.push({ x: rival[i], y, gain: metric.better * (y - rival[i]), name: nameOf(i), i });
    });
    points.sort((a, b) => b.gain - a.gain);
    return { metric, points, ours: models[oursBox.value].name, rival: models[rivalBox.value].name, all: ours.length };
  };
  const words = ({ metric, points, ours, rival, all }) => {
    if (ours === rival) return "Choose two different models.";
    if (!points.length) return `${metric.label}: there is no condition where both ${ours} and ${rival} have a value.`;
    const wins = points.filter((point) => point.gain > 0).length, ties = points.filter((point) => point.gain === 0).length;
    const many = points.length === 1 ? "condition" : "conditions";
    const rate = Math.round((100 * wins) / points.length);
    let text = `${metric.label}: ${ours} is better than ${rival} in ${wins.toLocaleString("en-US")} of `
      + `${points.length.toLocaleString("en-US")} ${many}, ${rate} %`;
    text += ties ? `; ${ties.toLocaleString("en-US")} tie${ties === 1 ? "" : "s"}.` : ".";
    const without = all - points.length;
    return without ? `${text} ${without.toLocaleString("en-US")} without a value of both are left out.` : text;
  };

  // --- drawing
  const shape = (tag, attributes, text) => {
    const node = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const ticks = (low, high) => {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const found = [];
    for (let k = Math.ceil(low / step); k * step <= high; k += 1) found.push([k * step, (k * step).toFixed(digits)]);
    return found;
  };
  let now, place, selected;
  const draw = () => {
    now = chosen();
    at("said").textContent = words(now);
    svg.replaceChildren();
    select(-1);
    const { points, metric } = now;
    chart.hidden = !points.length || now.ours === now.rival;
    if (chart.hidden) return;
    const all = points.flatMap((point) => [point.x, point.y]);
    let low = all.reduce((a, b) => Math.min(a, b)), high = all.reduce((a, b) => Math.max(a, b));
    const margin = 0.06 * (high - low) || 0.05 * (Math.abs(high) || 1);
    [low, high] = [low - margin, high + margin];
    const x = (value) => left + (width * (value - low)) / (high - low);
    const y = (value) => top + height - (height * (value - low)) / (high - low);
    place = (point) => [x(point.x), y(point.y)];
    const corner = metric.better > 0 ? `${left},${top}` : `${left + width},${top + height}`;
    svg.append(shape("polygon", { class: "half", points: `${left},${top + height} ${left + width},${top} ${corner}` }));
    for (const [value, text] of ticks(low, high)) {
      svg.append(
        shape("path", { class: "grid", d: `M${x(value)} ${top}v${height}M${left} ${y(value)}h${width}` }),
        shape("text", { x: x(value), y: top + height + 16, "text-anchor": "middle" }, text),
        shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, text),
      );
    }
    svg.append(shape("path", { class: "same", d: `M${left} ${top + height}L${left + width} ${top}` }));
    const middle = top + height / 2;
    svg.append(
      shape("text", { class: "axis", x: left + width / 2, y: top + height + 38, "text-anchor": "middle" }, short(now.rival)),
      shape("text", {
        class: "axis", x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})`,
      }, short(now.ours)),
    );
    for (const point of points) {
      const [cx, cy] = place(point);
      const kind = point.gain > 0 ? "win" : point.gain < 0 ? "loss" : "tie";
      svg.append(shape("circle", { class: kind, cx, cy, r: points.length > 300 ? 3 : 4.5 }));
    }
    list();
  };
  const short = (name) => (name.length > 48 ? `${name.slice(0, 47)}…` : name);

  // --- one condition
  const select = (number) => {
    selected = number;
    svg.querySelector(".ring")?.remove();
    tip.hidden = number < 0;
    at("point").textContent = "";
    if (number < 0) return;
    const point = now.points[number];
    const [cx, cy] = place(point);
    svg.append(shape("circle", { class: "ring", cx, cy, r: 8 }));
    const how = point.gain > 0 ? "better" : point.gain < 0 ? "worse" : "the same";
    const text = `${point.name}: ${now.ours} ${report.figure(point.y)}, ${now.rival} ${report.figure(point.x)}, ${how}`;
    tip.textContent = text;
    at("point").textContent = text;
    const right = cx > 240;
    const beside = right ? `right:${100 - (100 * (cx - 12)) / 480}%` : `left:${(100 * (cx + 12)) / 480}%`;
    tip.style.cssText = `top:${(100 * cy) / 440}%;${beside}`;
  };
  const nearest = (event) => {
    if (chart.hidden) return;
    const box = svg.getBoundingClientRect(), scale = 480 / box.width;
    const [mx, my] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = -1, least = 18 * scale; // pixels
    now.points.forEach((point, number) => {
      const [cx, cy] = place(point), away = Math.hypot(cx - mx, cy - my);
      if (away < least) [best, least] = [number, away];
    });
    if (best !== selected) select(best);
  };
  chart.addEventListener("pointermove", nearest);
  chart.addEventListener("pointerdown", nearest);
  chart.addEventListener("pointerleave", () => { if (document.activeElement !== chart) select(-1); });
  chart.addEventListener("focus", () => { if (selected < 0 && chart.matches(":focus-visible")) select(0); });
  chart.addEventListener("blur", () => select(-1));
  chart.addEventListener("keydown", (event) => {
    const last = now.points.length - 1;
    const [after, before] = [Math.min(last, selected + 1), Math.max(0, selected - 1)];
    const next = {
      ArrowRight: after, ArrowDown: after, ArrowLeft: before, ArrowUp: before, Home: 0, End: last, Escape: -1,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select(next);
  });

  // --- the same as a table, made when it is opened
  const fold = at("list");
  const list = () => {
    fold.querySelector(".scroll")?.remove();
    if (!fold.open) return;
    const names = [{ label: "Perturbation", text: true }, { label: "Cell type", text: true }];
    const columns = [...names, { label: now.ours }, { label: now.rival }, { label: "Better by" }];
    const number = (value) => ({ text: report.figure(value), sort: value });
    fold.append(report.table(at("said").textContent, columns, now.points.map((point) => [
      perturbations.names[perturbations.codes[point.i]], types.names[types.codes[point.i]],
      number(point.y), number(point.x), number(point.gain),
    ])));
  };
  fold.addEventListener("toggle", list);
  for (const box of [metricBox, oursBox, rivalBox]) box.addEventListener("change", draw);
  document.getElementById("duel").hidden = false;
  draw();
})();
