// Let the reader choose light or dark colours instead of the system's.
"use strict";
(function () {
  const themes = ["", "light", "dark"];
  document.getElementById("theme").addEventListener("click", (event) => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "") + 1) % 3];
    if (next) document.documentElement.dataset.theme = next; else delete document.documentElement.dataset.theme;
    event.currentTarget.textContent = `◐ ${next || "auto"}`;
    event.currentTarget.setAttribute("aria-label", `Colours: ${next || "as the system"}`);
  });
})();
