// Contact sheet and table of the cases, with one search, one order, and pages of 50.
"use strict";
medseg.cases = (function () {
  const PAGE = 50;
  const { element } = medseg;
  let data, kind, root, found = null, page = 0, asTable = false, sortBy = "worst", descending = false, label = -1;
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

  const value = (i, name) => (name === "worst" ? i : kind.value(i, name, label));

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

  function card(i) {
    const one = data.cases[i], png = thumbnail(i), numbers = kind.numbers(one), flags = kind.flags(one);
    const said = [numbers, flags].filter(Boolean).join(", ");
    const picture = png ? element("img", { src: `data:image/png;base64,${png}`, alt: `${one.name}: ${said}; ${kind.outlines}` }) : element("span", {}, data.thumbnail_note);
    const words = element("span", { class: "words" }, element("b", {}, one.name), element("small", {}, numbers));
    if (flags) words.append(element("small", { class: "bad" }, flags));
    if (one.view !== null && data.views.length < data.cases.length) words.append(element("small", {}, "opens in the viewer"));
    return element("li", {}, element("button", { type: "button", "data-case": i, onclick: () => medseg.open(i) }, element("span", { class: "picture" }, picture), words));
  }

  function table(list) {
    const columns = kind.columns(label);
    const head = element("tr", {}, ...columns.map(([name, title, isText]) => {
      const active = sortBy === name;
      return element("th", { scope: "col", class: isText ? "text" : null, "aria-sort": active ? (descending ? "descending" : "ascending") : "none" },
        element("button", { type: "button", "data-sort": name, onclick: () => { descending = active ? !descending : false; sortBy = name; page = 0; draw(); root.place.querySelector(`[data-sort="${name}"]`).focus(); } }, title));
    }));
    const body = list.map((i) => element("tr", {}, element("th", { scope: "row" }, element("a", { href: `#case-${i}`, "data-case": i }, data.cases[i].name)),
      ...columns.slice(1).map(([name]) => kind.cell(i, name, label))));
    return medseg.table("cases-table", kind.about(label), head, body);
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

  // Every word must occur in the case's name or in the words of its kind, such as "missed".
  function search(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    found = words.length === 0 ? null : new Set(data.cases.flatMap((one, i) => (words.every((word) => `${one.name} ${kind.words(one)}`.toLowerCase().includes(word)) ? [i] : [])));
    page = 0;
    draw();
    document.getElementById("found").textContent = found === null ? "" : `${found.size} of ${data.cases.length} cases found`;
    medseg.distributions.highlight(found);
  }

  function build(into, given, ofKind) {
    data = given; kind = ofKind;
    const turn = (step) => () => { page += step; draw(); into.scrollIntoView({ block: "start" }); };
    root = {
      place: element("div", { id: "sheet" }), count: element("span", { "aria-live": "polite", id: "count" }),
      before: element("button", { type: "button", onclick: turn(-1), "aria-label": "Previous page" }, "‹"), after: element("button", { type: "button", onclick: turn(1), "aria-label": "Next page" }, "›"),
      sort: element("select", { id: "sort", onchange: (event) => { const [name, down] = event.target.value.split(" "); if (name !== "own") { sortBy = name; descending = down === "down"; page = 0; draw(); } } }, ...kind.sorts.map(([name, text]) => element("option", { value: name }, text))),
    };
    const labels = element("select", { id: "label", onchange: (event) => { label = Number(event.target.value); draw(); } }, element("option", { value: -1 }, "all"), ...data.labels.map((text, i) => element("option", { value: i }, text)));
    const labelChoice = element("label", { hidden: true }, "values of", labels);
    const view = (table) => element("button", { type: "button", "aria-pressed": String(table === asTable), "data-view": table ? "table" : "pictures", onclick: () => { asTable = table; labelChoice.hidden = !table || !kind.hasLabelChoice; views.forEach((button, k) => button.setAttribute("aria-pressed", String((k === 1) === table))); draw(); } }, table ? "table" : "pictures");
    const views = [view(false), view(true)];
    into.append(element("div", { class: "bar" }, ...views, element("label", {}, "order", root.sort), labelChoice, element("span", { class: "pager" }, root.before, root.count, root.after)), root.place);
    draw();
  }

  return { build, search, found: () => found };
})();
medseg.found = () => medseg.cases.found();
