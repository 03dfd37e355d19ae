// Contact sheet and table of the cases, with one search, one order, and pages of 50.
"use strict";
medseg.cases = (function () {
  const PAGE = 50;
  const { element } = medseg;
  let data, root, found = null, page = 0, asTable = false, sortBy = "worst", descending = false, label = -1;
  const thumbnails = new Map();

  // Thumbnails lie in blocks of 50 cases, worst first; a block is parsed when one of its cases is shown.
  function thumbnail(i) {
    const block = Math.floor(i / PAGE);
    if (!thumbnails.has(block)) {
      const node = document.getElementById(`thumbnails-${block}`);
      thumbnails.set(block, node ? JSON.parse(node.textContent) : []);
    }
    return thumbnails.get(block)[i % PAGE];
  }

  function value(i, name) {
    if (name === "worst") return i;
    if (name in data.cases[i] && !(name === "dice" && label >= 0)) return data.cases[i][name];
    const of = data.values[name][i].map((v) => (v === null ? NaN : v)), used = label >= 0 ? [of[label]] : of.filter((v) => !Number.isNaN(v));
    const mean = used.reduce((sum, v) => sum + v, 0) / used.length;
    return Number.isNaN(mean) ? null : mean;
  }

  function ordered() {
    const list = data.cases.map((_, i) => i).filter((i) => found === null || found.has(i));
    const keys = new Map(list.map((i) => [i, value(i, sortBy)]));
    const compare = (a, b) => {
      const [x, y] = [keys.get(a), keys.get(b)];
      if (x === null || y === null) return (x === null) - (y === null) || a - b; // undefined values stay at the end
      const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
      return (descending ? -order : order) || a - b;
    };
    return list.sort(compare);
  }

  function numbersOf(one) {
    const parts = [one.dice === null ? "all absent" : `Dice ${medseg.number(one.dice)}`];
    if (one.missed) parts.push(`${one.missed} missed`);
    if (one.spurious) parts.push(`${one.spurious} spurious`);
    return parts.join(", ");
  }

  function card(i) {
    const one = data.cases[i], png = thumbnail(i);
    const picture = png ? element("img", { src: `data:image/png;base64,${png}`, alt: `${one.name}: ${numbersOf(one)}; outlines of reference and prediction` }) : element("span", {}, data.thumbnail_note);
    const words = element("span", { class: "words" }, element("b", {}, one.name), element("small", {}, one.dice === null ? "all absent" : `Dice ${medseg.number(one.dice)}`));
    if (one.missed || one.spurious) words.append(element("small", { class: "bad" }, [one.missed && `${one.missed} missed`, one.spurious && `${one.spurious} spurious`].filter(Boolean).join(", ")));
    if (one.view !== null && data.views.length < data.cases.length) words.append(element("small", {}, "opens in the viewer"));
    return element("li", {}, element("button", { type: "button", "data-case": i, onclick: () => medseg.open(i) }, element("span", { class: "picture" }, picture), words));
  }

  function table(list) {
    const columns = [["name", "case"], ...(data.has_patients ? [["patient", "patient"]] : []), ["dice", label >= 0 ? "Dice" : "mean Dice"], ["missed", "missed"], ["spurious", "spurious"],
      ...data.metrics.filter(({ name }) => name !== "dice").map(({ name, title, unit }) => [name, unit ? `${title} (${unit})` : title])];
    const head = element("tr", {}, ...columns.map(([name, title]) => {
      const active = sortBy === name;
      return element("th", { scope: "col", "aria-sort": active ? (descending ? "descending" : "ascending") : "none" },
        element("button", { type: "button", "data-sort": name, onclick: () => { descending = active ? !descending : false; sortBy = name; page = 0; draw(); root.place.querySelector(`[data-sort="${name}"]`).focus(); } }, title));
    }));
    const body = list.map((i) => element("tr", {}, ...columns.map(([name], k) => {
      const v = value(i, name), metric = data.metrics.find((m) => m.name === name);
      if (k === 0) return element("th", { scope: "row" }, element("a", { href: `#case-${i}`, "data-case": i }, data.cases[i].name));
      const text = name === "patient" ? v : name === "missed" || name === "spurious" ? String(v) : medseg.number(v, metric ? metric.unit : "").replace(/ .*/, "");
      return element("td", { class: name === "patient" ? "text" : null }, (name === "missed" || name === "spurious") && v ? element("span", { class: "bad" }, text) : text);
    })));
    return medseg.table("cases-table", label >= 0 ? `Values of ${data.labels[label]}` : "Means over the structures that count in each case", head, body);
  }

  function draw() {
    const list = ordered(), last = Math.max(Math.ceil(list.length / PAGE) - 1, 0);
    page = Math.min(page, last);
    const shown = list.slice(page * PAGE, (page + 1) * PAGE);
    root.place.replaceChildren(asTable ? table(shown) : element("ul", { class: "sheet" }, ...shown.map(card)));
    root.count.textContent = list.length ? `${page * PAGE + 1}–${page * PAGE + shown.length} of ${list.length} cases` : "no case matches the search";
    root.before.disabled = page === 0; root.after.disabled = page === last;
    root.sort.value = `${sortBy}${descending ? " down" : ""}`;
    if (root.sort.selectedIndex < 0) root.sort.value = "own";
  }

  // Every word must occur in the case's name or patient, or be "missed" or "spurious".
  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length === 0 ? null : new Set(data.cases.flatMap((one, i) => {
      const flags = `${one.missed ? " missed" : ""}${one.spurious ? " spurious" : ""}`;
      return words.every((word) => `${one.name} ${one.patient}${flags}`.toLowerCase().includes(word)) ? [i] : [];
    }));
    page = 0;
    draw();
    document.getElementById("found").textContent = found === null ? "" : `${found.size} of ${data.cases.length} cases found`;
    medseg.distributions.highlight(found);
  }

  function build(into, given) {
    data = given;
    const turn = (step) => () => { page += step; draw(); into.scrollIntoView({ block: "start" }); };
    const sorts = [["worst", "worst first"], ["dice down", "best Dice first"], ["name", "name"], ["missed down", "most missed"], ["spurious down", "most spurious"], ["own", "by column"]];
    root = {
      place: element("div", { id: "sheet" }), count: element("span", { "aria-live": "polite", id: "count" }),
      before: element("button", { type: "button", onclick: turn(-1), "aria-label": "Previous page" }, "‹"), after: element("button", { type: "button", onclick: turn(1), "aria-label": "Next page" }, "›"),
      sort: element("select", { id: "sort", onchange: (event) => { const [name, down] = event.target.value.split(" "); if (name !== "own") { sortBy = name; descending = down === "down"; page = 0; draw(); } } }, ...sorts.map(([name, text]) => element("option", { value: name }, text))),
    };
    const labels = element("select", { id: "label", onchange: (event) => { label = Number(event.target.value); draw(); } }, element("option", { value: -1 }, "all"), ...data.labels.map((text, i) => element("option", { value: i }, text)));
    const labelChoice = element("label", { hidden: true }, "values of", labels);
    const view = (table) => element("button", { type: "button", "aria-pressed": String(table === asTable), "data-view": table ? "table" : "pictures", onclick: () => { asTable = table; labelChoice.hidden = !table; views.forEach((button, k) => button.setAttribute("aria-pressed", String((k === 1) === table))); draw(); } }, table ? "table" : "pictures");
    const views = [view(false), view(true)];
    into.append(element("div", { class: "bar" }, ...views, element("label", {}, "order", root.sort), labelChoice, element("span", { class: "pager" }, root.before, root.count, root.after)), root.place);
    draw();
  }

  return { build, search, found: () => found };
})();
medseg.found = () => medseg.cases.found();
