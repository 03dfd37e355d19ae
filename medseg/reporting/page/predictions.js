// Words, columns and details of predictions without references: volumes, and why a result may be wrong.
"use strict";
medseg.kind = function (data) {
  const { element } = medseg, { size } = data;
  const RANK = { suspicious: 0, failed: 1, done: 2 };
  const isUsual = (outcome) => data.usual.includes(outcome);
  const plain = (v) => medseg.number(v, size.unit).replace(/ .*/, "");

  const numbers = (one) => one.numbers;
  const flags = (one) => (one.status === "done" ? "" : one.status);

  function value(i, name) {
    if (name === "name") return data.cases[i].name;
    if (name === "status") return RANK[data.cases[i].status];
    return data.values.size[i][Number(name.slice(1))];
  }

  const columns = () => [["name", "case"], ["status", "status"], ...data.labels.map((label, k) => [`v${k}`, `${label} (${size.unit})`])];

  function cell(i, name) {
    const one = data.cases[i];
    if (name === "status") return element("td", {}, one.status === "done" ? "done" : element("span", { class: "bad" }, one.status));
    const k = Number(name.slice(1)), text = plain(data.values.size[i][k]);
    return element("td", {}, isUsual(data.outcomes[i][k]) ? text : element("span", { class: "bad", title: data.outcomes[i][k] }, text));
  }

  function details(i) {
    const one = data.cases[i], place = element("div", { class: "details" });
    if (one.reasons.length) {
      place.append(element("div", { class: "notice", role: "note" }, element("p", {}, element("b", {}, one.status === "failed" ? "Failed" : "Suspicious")), element("ul", {}, ...one.reasons.map((reason) => element("li", {}, reason)))));
    }
    if (one.status !== "failed") {
      const head = ["structure", `${size.title} (${size.unit})`, ...data.columns.map(({ title }) => title), ...(data.has_training ? ["in training"] : []), "remark"];
      const rows = data.labels.map((label, k) => {
        const known = data.training[label], outcome = data.outcomes[i][k];
        return element("tr", {}, element("th", { scope: "row" }, label), element("td", {}, plain(data.values.size[i][k])),
          ...data.columns.map(({ values }) => element("td", {}, values[i][k] || "–")),
          ...(data.has_training ? [element("td", {}, known ? `${plain(known[0])} to ${plain(known[1])}` : "–")] : []),
          element("td", { class: "text" }, isUsual(outcome) ? outcome : element("span", { class: "bad" }, outcome)));
      });
      place.append(medseg.table("details", `Structures of ${one.name}`, element("tr", {}, ...head.map((text, k) => element("th", { scope: "col", class: k === 0 || k === head.length - 1 ? "text" : null }, text))), rows));
    }
    place.append(element("dl", { class: "facts" }, ...one.facts.flatMap(([name, text]) => [element("dt", {}, name), element("dd", {}, text)])));
    return place;
  }

  // Groups of cases above the viewer: a title, and for each button its case, text and number.
  function choices() {
    const groups = [["suspicious", "suspicious"], ["failed", "failed"], ["done", data.done_title]];
    return groups.map(([status, title]) => [title, data.cases.flatMap((one, i) => (one.status === status && one.view !== null ? [[i, one.name, ""]] : []))]).filter(([, list]) => list.length);
  }

  return {
    numbers, flags, value, columns, cell, details, choices,
    ringed: data.ringed, center: "median", interval: data.has_training ? "training " : "",
    outlines: "outlines of the structures", order: "in the order of their values",
    words: (one) => `${one.status} ${one.reasons.length ? "flagged" : ""}`,
    about: () => `${size.title} of every structure in ${size.unit}; orange is unusual`,
    sorts: [["worst", "suspicious first"], ["name", "name"], ["own", "by column"]],
    hasLabelChoice: false,
  };
};
