// Words, columns and details of an evaluation: Dice, and structures that are missed or spurious.
"use strict";
medseg.kind = function (data) {
  const { element } = medseg;

  const numbers = (one) => (one.dice === null ? "all absent" : `Dice ${medseg.number(one.dice)}`);
  const flags = (one) => [one.missed && `${one.missed} missed`, one.spurious && `${one.spurious} spurious`].filter(Boolean).join(", ");

  // The value by which a column sorts; a metric without a chosen structure is the mean over those that count.
  function value(i, name, label) {
    if (name in data.cases[i] && !(name === "dice" && label >= 0)) return data.cases[i][name];
    const of = data.values[name][i].map((v) => (v === null ? NaN : v)), used = label >= 0 ? [of[label]] : of.filter((v) => !Number.isNaN(v));
    const mean = used.reduce((sum, v) => sum + v, 0) / used.length;
    return Number.isNaN(mean) ? null : mean;
  }

  const columns = (label) => [["name", "case"], ...(data.has_patients ? [["patient", "patient"]] : []), ["dice", label >= 0 ? "Dice" : "mean Dice"], ["missed", "missed"], ["spurious", "spurious"],
    ...data.metrics.filter(({ name }) => name !== "dice").map(({ name, title, unit }) => [name, unit ? `${title} (${unit})` : title])];

  function cell(i, name, label) {
    const v = value(i, name, label), metric = data.metrics.find((m) => m.name === name), isCount = name === "missed" || name === "spurious";
    if (name === "patient") return element("td", { class: "text" }, v);
    const text = isCount ? String(v) : medseg.number(v, metric ? metric.unit : "").replace(/ .*/, "");
    return element("td", {}, isCount && v ? element("span", { class: "bad" }, text) : text);
  }

  function details(i) {
    const shown = data.metrics.filter(({ better }) => better !== "neither");
    const head = ["structure", "outcome", ...shown.map(({ title, unit }) => (unit ? `${title} (${unit})` : title))];
    const rows = data.labels.map((label, k) => element("tr", {}, element("th", { scope: "row" }, label),
      element("td", { class: "text" }, ["detected", "absent"].includes(data.outcomes[i][k]) ? data.outcomes[i][k] : element("span", { class: "bad" }, data.outcomes[i][k])),
      ...shown.map(({ name, unit }) => element("td", {}, medseg.number(data.values[name][i][k], unit).replace(/ .*/, "")))));
    return medseg.table("details", `Metrics of ${data.cases[i].name}`, element("tr", {}, ...head.map((text, k) => element("th", { scope: "col", class: k < 2 ? "text" : null }, text))), rows);
  }

  // Groups of cases above the viewer: a title, and for each button its case, text and number.
  function choices() {
    const dice = (i) => medseg.number(data.cases[i].dice);
    const percentiles = Object.entries(data.percentiles).map(([percent, i]) => [i, `${percent} %: ${data.cases[i].name}`, dice(i)]);
    return [["worst", data.worst.map((i) => [i, data.cases[i].name, dice(i)])], ...(data.cases.length > 1 ? [["percentiles of Dice", percentiles]] : [])];
  }

  return {
    numbers, flags, value, columns, cell, details, choices,
    ringed: ["missed", "spurious", "disjoint"], center: "mean", interval: "",
    outlines: "outlines of reference and prediction", order: "lowest Dice first",
    words: (one) => `${one.patient}${one.missed ? " missed" : ""}${one.spurious ? " spurious" : ""}`,
    about: (label) => (label >= 0 ? `Values of ${data.labels[label]}` : "Means over the structures that count in each case"),
    sorts: [["worst", "worst first"], ["dice down", "best Dice first"], ["name", "name"], ["missed down", "most missed"], ["spurious down", "most spurious"], ["own", "by column"]],
    hasLabelChoice: true,
  };
};
