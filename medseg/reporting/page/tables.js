// Format tables and numbers.
"use strict";
// Return a table in a box that scrolls, with a line above it that says what it shows.
medseg.table = function (id, about, head, body) {
  const { element } = medseg;
  return element("div", {}, element("p", { class: "about", id: `${id}-about` }, about),
    element("div", { class: "wide", tabindex: 0, role: "region", "aria-labelledby": `${id}-about` },
      element("table", { id, "aria-labelledby": `${id}-about` }, element("thead", {}, head), element("tbody", {}, ...body))));
};

medseg.number = function (value, unit = "") {
  if (value === null || value === undefined) return "–";
  const digits = unit === "" ? 3 : Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  return value.toFixed(digits).replace("-", "−") + (unit ? ` ${unit}` : "");
};
