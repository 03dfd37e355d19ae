// Build the page from its parts once its data is unpacked.
"use strict";
(async function () {
  const { element } = medseg, byId = (id) => document.getElementById(id);
  let data, open = -1;

  medseg.showError = (text) => { byId("broken").textContent = text; byId("broken").hidden = false; };

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const area = byId(button.dataset.copy);
      area.select();
      let copied = false;
      try { await navigator.clipboard.writeText(area.value); copied = true; } catch { copied = document.execCommand("copy"); }
      button.textContent = copied ? "copied" : "selected: press Ctrl+C";
    });
  }

  if (!byId("data")) return;
  if (!("DecompressionStream" in window)) {
    medseg.showError("This browser is too old for the pictures and the viewer (it lacks DecompressionStream); the tables are complete.");
    return;
  }
  try {
    data = await medseg.unpackJson("data");
  } catch (error) {
    medseg.showError(`The page's data cannot be read (${error.message}): the file may be cut short. Write or copy it again.`);
    return;
  }

  function details(i) {
    const columns = data.metrics.filter(({ better }) => better !== "neither");
    const head = ["structure", "outcome", ...columns.map(({ title, unit }) => (unit ? `${title} (${unit})` : title))];
    const rows = data.labels.map((label, k) => element("tr", {}, element("th", { scope: "row" }, label),
      element("td", { class: "text" }, ["detected", "absent"].includes(data.outcomes[i][k]) ? data.outcomes[i][k] : element("span", { class: "bad" }, data.outcomes[i][k])),
      ...columns.map(({ name, unit }) => element("td", {}, medseg.number(data.values[name][i][k], unit).replace(/ .*/, "")))));
    return medseg.table("details", `Metrics of ${data.cases[i].name}`, element("tr", {}, ...head.map((text, k) => element("th", { scope: "col", class: k < 2 ? "text" : null }, text))), rows);
  }

  const steps = data.views.map((view) => view.case);
  medseg.open = function (i, scroll = true) {
    open = i;
    const one = data.cases[i];
    byId("details-place").replaceChildren(details(i));
    byId("no-volume").hidden = one.view !== null;
    byId("no-volume").textContent = one.view === null ? `${one.name} has no volume on this page: ${data.view_note}` : "";
    for (const button of byId("choices").querySelectorAll("button[data-case]")) button.setAttribute("aria-pressed", String(Number(button.dataset.case) === i));
    if (one.view !== null) medseg.viewer.show(one.view); else medseg.viewer.hide();
    history.replaceState(null, "", `#case-${i}`);
    if (scroll) byId("viewer").scrollIntoView({ block: "start" });
  };
  medseg.step = (by) => {
    if (!steps.length) return;
    const at = steps.indexOf(open);
    medseg.open(steps[(at < 0 ? 0 : at + by + steps.length) % steps.length], false);
  };

  if (data.cases.length) {
    medseg.cases.build(byId("cases-place"), data);
    medseg.distributions.build(byId("distributions-place"), data);
    byId("search").addEventListener("input", (event) => medseg.cases.search(event.target.value));
    if (data.views.length) medseg.viewer.build(byId("viewer-place"), data, { showError: medseg.showError, step: medseg.step });
    else medseg.viewer.show = medseg.viewer.hide = () => {};
    const choice = (i, text) => element("button", { type: "button", "aria-pressed": "false", "data-case": i, onclick: () => medseg.open(i, false) }, text, element("small", {}, medseg.number(data.cases[i].dice)));
    const worst = data.worst.map((i) => choice(i, data.cases[i].name));
    const percentiles = Object.entries(data.percentiles).map(([percent, i]) => choice(i, `${percent} %: ${data.cases[i].name}`));
    byId("choices").append(element("div", { class: "bar choices" }, element("span", { class: "soft" }, "worst"), ...worst), data.cases.length > 1 ? element("div", { class: "bar choices" }, element("span", { class: "soft" }, "percentiles of Dice"), ...percentiles) : "");
    document.addEventListener("click", (event) => {
      const link = event.target.closest("a[data-case]");
      if (link) { event.preventDefault(); medseg.open(Number(link.dataset.case)); }
    });
    const asked = /^#case-(\d+)$/.exec(location.hash);
    if (asked && Number(asked[1]) < data.cases.length) medseg.open(Number(asked[1]));
  }

  const files = byId("files");
  if (files) files.addEventListener("toggle", () => {
    if (!files.open || files.querySelector("table")) return;
    const head = ["case", ...data.input_columns];
    files.append(medseg.table("files-table", "SHA-256 of every file that was compared",
      element("tr", {}, ...head.map((text) => element("th", { scope: "col", class: "text" }, text))),
      data.inputs.map((cells) => element("tr", {}, ...cells.map((text, k) => element(k ? "td" : "th", { class: "text mono", scope: k ? null : "row" }, text))))));
  });
  document.documentElement.dataset.readyMs = performance.now().toFixed(0);
  document.documentElement.dataset.ready = "yes";
})();
