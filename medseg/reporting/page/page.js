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

  const kind = medseg.kind(data);
  const steps = data.views.map((view) => view.case);
  medseg.open = function (i, scroll = true) {
    open = i;
    const one = data.cases[i];
    byId("details-place").replaceChildren(kind.details(i));
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
    medseg.cases.build(byId("cases-place"), data, kind);
    medseg.distributions.build(byId("distributions-place"), data, kind);
    byId("search").addEventListener("input", (event) => medseg.cases.search(event.target.value));
    if (data.views.length) medseg.viewer.build(byId("viewer-place"), data, { showError: medseg.showError, step: medseg.step });
    else medseg.viewer.show = medseg.viewer.hide = () => {};
    const choice = ([i, text, number]) => element("button", { type: "button", "aria-pressed": "false", "data-case": i, onclick: () => medseg.open(i, false) }, text, element("small", {}, number));
    byId("choices").append(...kind.choices().map(([title, list]) => element("div", { class: "bar choices" }, element("span", { class: "soft" }, title), ...list.map(choice))));
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
