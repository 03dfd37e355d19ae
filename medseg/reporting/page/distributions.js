// One line of dots per structure; a dot is a case, and a click opens it. Positions are percentages, so that dots stay
// round at every width.
"use strict";
medseg.distributions = (function () {
  const ROWS = 12, HEIGHT = 46;
  const { element } = medseg;
  let data, kind, root, metric, first = 0, order = [];

  // Range and ticks of the axis, unless the metric states them. Fractions end at 1 and begin near the lowest case; all
  // other ranges contain 0.
  function scale() {
    if (metric.range) return { low: metric.range[0], high: metric.range[1], steps: metric.range[2] };
    const all = data.values[metric.name].flat().filter((value) => value !== null);
    const least = Math.min(...all), most = Math.max(...all);
    if (!all.length) return { low: 0, high: 1, steps: 4 };
    if (metric.unit === "" && most <= 1 && least >= 0) {
      const low = [0.9, 0.75, 0.5, 0].find((begin) => begin <= least - 0.01) || 0;
      return { low, high: 1, steps: low ? 5 : 4 };
    }
    const low = Math.min(0, least), high = Math.max(0, most);
    return { low, high: high > low ? high : low + 1, steps: 4 };
  }
  const ticks = ({ low, high, steps }) => Array.from({ length: steps + 1 }, (_, i) => low + (high - low) * i / steps);
  const place = (value, { low, high }) => `${(1 + 98 * (value - low) / (high - low)).toFixed(2)}%`;

  function row(label, number, range) {
    const x = (value) => place(value, range);
    const mean = (data.means[label] || {})[metric.name] || {};
    const values = data.values[metric.name].map((of) => of[number]);
    const ranked = values.map((value, i) => [value, i]).filter(([value]) => value !== null).sort((a, b) => a[0] - b[0]);
    const svg = element("svg", { height: HEIGHT, tabindex: 0, role: "img", class: "dots" });
    const text = ranked.length
      ? `${label}: ${metric.title} of ${ranked.length} cases from ${medseg.number(ranked[0][0], metric.unit)} to ${medseg.number(ranked[ranked.length - 1][0], metric.unit)}, ${kind.center} ${medseg.number(mean.value, metric.unit)}`
      : `${label}: no case counts`;
    svg.setAttribute("aria-label", `${text}. Arrow keys choose a case, Enter opens it.`);
    svg.append(element("line", { class: "grid-line", x1: "0", x2: "100%", y1: HEIGHT / 2, y2: HEIGHT / 2 }));
    svg.append(...ticks(range).map((value) => element("line", { class: "grid-line", x1: x(value), x2: x(value), y1: 0, y2: HEIGHT })));
    if (mean.low !== null && mean.low !== undefined) svg.append(element("line", { class: "interval", x1: x(mean.low), x2: x(mean.high), y1: HEIGHT / 2, y2: HEIGHT / 2 }));
    const dots = ranked.map(([value, i], rank) => {
      const one = data.outcomes[i][number], penalised = kind.ringed.includes(one);
      const dot = element("circle", { class: penalised ? "dot penalised" : "dot", cx: x(value), cy: (HEIGHT / 2 + ((rank * 7) % 5 - 2) * 7).toFixed(1), r: 4.5, "data-case": i },
        element("title", {}, `${data.cases[i].name}: ${medseg.number(value, metric.unit)}${penalised ? ` (${one})` : ""}`));
      dot.addEventListener("click", () => medseg.open(i));
      return dot;
    });
    svg.append(...dots);
    if (mean.value !== null && mean.value !== undefined) svg.append(element("line", { class: "mean", x1: x(mean.value), x2: x(mean.value), y1: 4, y2: HEIGHT - 4 }));
    let chosen = -1;
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && chosen >= 0) { medseg.open(ranked[chosen][1]); return; }
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step || !dots.length) return;
      event.preventDefault();
      if (chosen >= 0) dots[chosen].classList.remove("chosen");
      chosen = Math.min(Math.max(chosen + step, 0), dots.length - 1);
      dots[chosen].classList.add("chosen");
      const [value, i] = ranked[chosen];
      root.status.textContent = `${label}: ${data.cases[i].name}, ${metric.title} ${medseg.number(value, metric.unit)}, ${data.outcomes[i][number]}`;
    });
    const interval = mean.low === null || mean.low === undefined ? "" : `${kind.interval}${medseg.number(mean.low, metric.unit).replace(/ .*/, "")} to ${medseg.number(mean.high, metric.unit)}, `;
    return [element("b", {}, label), svg, element("span", {}, element("b", {}, medseg.number(mean.value, metric.unit)), element("small", {}, `${interval}n=${ranked.length}`))];
  }

  function axis(range) {
    const svg = element("svg", { class: "axis", height: 18, "aria-hidden": "true" }), all = ticks(range);
    const digits = range.steps === 5 && metric.unit === "" ? 2 : null;
    all.forEach((value, i) => svg.append(element("text", { x: place(value, range), y: 13, "text-anchor": i === 0 ? "start" : i === all.length - 1 ? "end" : "middle" },
      digits === null ? medseg.number(value, metric.unit) : value.toFixed(digits))));
    return svg;
  }

  function draw() {
    const range = scale(), shown = order.slice(first, first + ROWS);
    root.strip.replaceChildren(...shown.flatMap((number) => row(data.labels[number], number, range)), axis(range));
    root.pager.hidden = order.length <= ROWS;
    root.pageText.textContent = `structures ${first + 1}–${first + shown.length} of ${order.length}, ${kind.order}`;
    root.before.disabled = first === 0; root.after.disabled = first + ROWS >= order.length;
    highlight(medseg.found());
  }

  function highlight(found) {
    root.strip.classList.toggle("searching", found !== null);
    for (const dot of root.strip.querySelectorAll(".dot")) dot.classList.toggle("hit", found !== null && found.has(Number(dot.dataset.case)));
  }

  function build(into, given, ofKind) {
    data = given; kind = ofKind;
    metric = data.metrics[0];
    const dice = (label) => { const mean = (data.means[label] || {}).dice; return mean && mean.value !== null ? mean.value : 2; };
    order = data.labels.map((_, i) => i);
    if (order.length > ROWS) order.sort((a, b) => dice(data.labels[a]) - dice(data.labels[b]));
    const choose = element("select", { id: "metric", onchange: (event) => { metric = data.metrics[Number(event.target.value)]; draw(); } },
      ...data.metrics.map(({ title, unit }, i) => element("option", { value: i }, unit ? `${title} (${unit})` : title)));
    const turn = (step) => () => { first += step * ROWS; draw(); };
    root = { strip: element("div", { class: "strip" }), status: element("p", { class: "soft", "aria-live": "polite" }), pageText: element("span"),
      before: element("button", { type: "button", onclick: turn(-1), "aria-label": "Previous structures" }, "‹"), after: element("button", { type: "button", onclick: turn(1), "aria-label": "More structures" }, "›") };
    root.pager = element("span", { class: "pager" }, root.before, root.pageText, root.after);
    document.getElementById("metric-place").append(element("label", {}, "metric", choose));
    into.append(element("div", { class: "bar" }, root.pager), root.strip, root.status);
    draw();
  }

  return { build, highlight: (found) => root && highlight(found) };
})();
