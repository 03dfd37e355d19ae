// Planes through one case, with the controls of what is shown.
"use strict";
medseg.viewer = (function () {
  const { element } = medseg;
  let data, options, root, planes = [], scene = null, lastAsked = 0, channelAsked = 0;
  const state = {
    position: [0, 0, 0], structure: -1, channel: 0, mirrored: false, width: 1, level: 0,
    reference: true, prediction: true, errors: false, fill: false, smooth: true, cross: true,
  };
  const TOGGLES = [
    ["reference", "r", "reference"], ["prediction", "p", "prediction"], ["errors", "e", "missed, spurious"],
    ["fill", "f", "colours"], ["cross", "c", "crosshair"], ["smooth", "s", "smooth"], ["mirrored", "o", "neurological: left on left"],
  ];
  const RULERS = [1, 2, 5, 10, 20, 50, 100], SHORTEST_RULER = 48; // mm, and pixels
  const KEYS = { mirrored: "side of the patient", errors: "errors" };

  function label(byte) {
    if (!byte) return "background";
    const names = scene.view.structures.flatMap((bytes, i) => (bytes.includes(byte) ? [data.labels[i]] : []));
    return names.join(" + ") || `value ${scene.view.values[byte - 1]}`;
  }

  function readout() {
    const { view, grey } = scene, [x, y, z] = state.position, i = x + view.dims[0] * (y + view.dims[1] * z);
    const parts = [];
    if (view.panels[0].letters[0]) {
      const mm = [0, 1, 2].map((row) => view.affine[row][0] * x + view.affine[row][1] * y + view.affine[row][2] * z + view.affine[row][3]);
      parts.push(mm.map((value, axis) => `${value >= 0 ? "RAS"[axis] : "LPI"[axis]} ${Math.abs(value).toFixed(1)}`).join("  ") + " mm");
    } else parts.push(`column ${Math.round(view.affine[0][0] * x + view.affine[0][3])}, row ${Math.round(view.affine[1][1] * y + view.affine[1][3])}`);
    if (scene.image) parts.push(`intensity about ${Number(grey.values[scene.image[i]].toPrecision(3))}${grey.modality === "CT" ? " HU" : ""}`);
    if (scene.reference) parts.push(`reference: ${label(scene.reference[i])}`, `prediction: ${label(scene.prediction[i])}`);
    else parts.push(label(scene.prediction[i]));
    root.readout.replaceChildren(...parts.map((part) => element("span", {}, part)));
  }

  function draw() {
    const scale = medseg.plane.scaleOf(scene, Math.min(...planes.map(({ box }) => box.clientWidth)));
    for (const plane of planes) drawPlane(plane, scale);
    readout();
  }

  function drawPlane(plane, scale) {
    const { panel, canvas } = plane, position = state.position[panel.axis], count = scene.view.dims[panel.axis];
    medseg.plane.draw(canvas, panel, scene, scale);
    const mm = RULERS.find((length) => length * scale >= SHORTEST_RULER) || RULERS[RULERS.length - 1];
    plane.ruler.textContent = `${mm} mm`; plane.ruler.style.width = `${(mm * scale).toFixed(1)}px`;
    medseg.plane.letters(panel, state).forEach((letter, i) => { plane.letters[i].textContent = letter; });
    plane.slider.value = position;
    plane.name.textContent = count > 1 ? `${panel.name} ${position + 1}/${count}` : panel.name;
    canvas.setAttribute("aria-valuenow", position + 1);
    canvas.setAttribute("aria-valuetext", `slice ${position + 1} of ${count}`);
  }

  let waiting = false;
  function redraw() {
    if (waiting || !scene) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }

  // Move along an axis; return false at its end.
  function move(axis, step) {
    const to = Math.min(Math.max(state.position[axis] + step, 0), scene.view.dims[axis] - 1);
    const moved = to !== state.position[axis];
    state.position[axis] = to;
    if (moved) redraw();
    return moved;
  }

  function onKey(event, panel) {
    const count = scene.view.dims[panel.axis], page = Math.max(1, Math.round(count / 10));
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: page, PageDown: -page, Home: -count, End: count };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(panel.axis, steps[event.key]);
  }

  function onPoint(event, { panel, canvas }) {
    const box = canvas.getBoundingClientRect();
    state.position = medseg.plane.positionAt(panel, scene, [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]);
    redraw();
  }

  function makePlane(panel) {
    const count = scene.view.dims[panel.axis];
    const canvas = element("canvas", { tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-label": `${panel.name} plane of ${scene.view.name}; arrow keys change the slice`, "aria-valuemin": 1, "aria-valuemax": count });
    const box = element("div", { class: "plane" }, canvas);
    const name = element("span"), ruler = element("span", { class: "ruler", hidden: !panel.letters[0] }), caption = element("figcaption", {}, name, ruler);
    const slider = element("input", { type: "range", min: 0, max: count - 1, "aria-label": `${panel.name} slice`, hidden: count === 1 });
    const plane = { panel, canvas, box, name, ruler, slider, letters: ["left", "right", "top", "bottom"].map((side) => element("span", { class: `letter ${side}` })) };
    box.append(...plane.letters);
    slider.addEventListener("input", () => { state.position[panel.axis] = Number(slider.value); redraw(); });
    canvas.addEventListener("keydown", (event) => onKey(event, panel));
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey || !event.deltaY) return;
      if (move(panel.axis, event.deltaY < 0 ? 1 : -1)) event.preventDefault(); // at the last slice the page scrolls
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { canvas.focus({ preventScroll: true }); onPoint(event, plane); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons === 1 && event.pointerType === "mouse") onPoint(event, plane); });
    return [plane, element("figure", {}, box, caption, slider)];
  }

  function badges() {
    const { view } = scene, patient = view.panels[0].letters[0] !== "", list = [];
    if (patient) list.push([`patient left is on image ${state.mirrored ? "left" : "right"} (${state.mirrored ? "neurological" : "radiological"})`, "tag"]);
    else list.push(["no patient orientation in this file", "tag"]);
    if (view.tilt) list.push([`oblique: tilted by ${view.tilt.toFixed(1)}°, letters are the nearest sides`, "alert"]);
    const shown = view.panels.length === 1 ? [view.panels[0].across, view.panels[0].down] : [0, 1, 2];
    const sizes = shown.map((axis) => view.dims[axis]).join("×"), steps = shown.map((axis) => Number(view.spacing[axis].toPrecision(3))).join("×");
    list.push([patient ? `${sizes} voxels of ${steps} mm` : `${sizes} pixels`, ""]);
    root.badges.replaceChildren(...list.map(([text, kind]) => element("li", { class: kind || null }, text)));
  }

  // Legend of the labels, if colours are shown.
  function legend() {
    const { view } = scene;
    root.legend.hidden = !view.colors.length || (view.compared && !state.fill);
    root.legend.replaceChildren(...view.colors.map((color, i) => element("li", {}, element("i", { class: "swatch", style: `background:${color}` }), label(i + 1))));
  }

  function setWindow(width, level, name) {
    state.width = Math.max(width, 1e-6); state.level = level;
    root.width.value = Number(state.width.toPrecision(4)); root.level.value = Number(level.toPrecision(4));
    root.windows.value = name || "own";
    scene.windows[state.channel] = [state.width, level, name];
    redraw();
  }

  async function setChannel(number) {
    const { view } = scene, shown = scene, asked = ++channelAsked;
    let image;
    try {
      image = await medseg.volumes.get(scene.number, `image-${number}`);
    } catch (error) {
      options.showError(`${view.channels[number].name || "The image"} of ${view.name} cannot be opened: ${error.message}.`);
      return;
    }
    if (shown !== scene || asked !== channelAsked) return; // another channel was chosen meanwhile
    useChannel(number, image);
  }

  function useChannel(number, image) {
    const grey = scene.view.channels[number], windows = Object.entries(grey.windows);
    const size = (value) => Number(value.toPrecision(4));
    Object.assign(scene, { grey, image });
    state.channel = number; root.channels.value = number;
    root.windows.replaceChildren(...windows.map(([text, [width, level]]) => element("option", { value: text }, `${text} (${size(width)}/${size(level)})`)), element("option", { value: "own" }, "custom"));
    setWindow(...(scene.windows[number] || [...windows[0][1], windows[0][0]]));
  }

  function press(name, on) {
    state[name] = on;
    root.toggles[name].setAttribute("aria-pressed", String(on));
    if (scene && name === "mirrored") badges();
    if (scene && name === "fill") legend();
    redraw();
  }

  function controls() {
    const swatches = {
      reference: element("i", { class: "key reference" }), prediction: element("i", { class: "key prediction" }),
      errors: element("span", {}, element("i", { class: "key missed" }), " ", element("i", { class: "key spurious" })),
    };
    root.toggles = Object.fromEntries(TOGGLES.map(([name, key, text]) => [name,
      element("button", { type: "button", "aria-pressed": String(state[name]), "aria-keyshortcuts": key, "data-toggle": name, onclick: () => press(name, !state[name]) }, swatches[name] || "", element("span", {}, text))]));
    root.structures = element("select", { id: "structure", onchange: (event) => { state.structure = Number(event.target.value); redraw(); } });
    root.channels = element("select", { id: "channel", "aria-keyshortcuts": "m", onchange: (event) => setChannel(Number(event.target.value)) });
    root.windows = element("select", { id: "window", onchange: (event) => { const found = scene.grey.windows[event.target.value]; if (found) setWindow(found[0], found[1], event.target.value); } });
    root.width = element("input", { type: "number", id: "width", step: "any", min: 0, onchange: () => setWindow(Number(root.width.value), state.level) });
    root.level = element("input", { type: "number", id: "level", step: "any", onchange: () => setWindow(state.width, Number(root.level.value)) });
    root.structureBar = element("label", {}, "structure", root.structures);
    root.channelBar = element("label", {}, "channel", root.channels);
    root.windowBar = element("span", { class: "bar" }, element("label", {}, "window", root.windows), element("label", {}, "width", root.width), element("label", {}, "level", root.level));
    return [
      element("div", { class: "bar", role: "group", "aria-label": "What is shown" }, ...Object.values(root.toggles)),
      element("div", { class: "bar" }, root.structureBar, root.channelBar, root.windowBar),
    ];
  }

  // Show only the controls that have an effect on this view.
  function fitControls() {
    const { view } = scene, one = (name) => root.toggles[name];
    one("reference").hidden = one("errors").hidden = !view.compared;
    one("prediction").querySelector("i").hidden = !view.compared;
    one("prediction").lastChild.textContent = view.compared ? "prediction" : "outlines";
    one("smooth").hidden = root.windowBar.hidden = !view.channels.length;
    one("mirrored").hidden = view.panels.every((panel) => panel.letters[0] !== "R");
    root.channelBar.hidden = view.channels.length < 2;
    root.structureBar.hidden = data.labels.length < 2;
    root.channels.replaceChildren(...view.channels.map((channel, i) => element("option", { value: i }, channel.name)));
    const keys = [["↑ ↓", "slice"], ...TOGGLES.filter(([name]) => !one(name).hidden).map(([name, key]) => [key, KEYS[name] || one(name).lastChild.textContent])];
    if (view.channels.length > 1) keys.push(["m", "next channel"]);
    if (options.step) keys.push(["n b", "next case, previous case"]);
    root.keys.replaceChildren(...keys.map(([key, what]) => element("li", {}, ...key.split(" ").map((part) => element("kbd", {}, part)), ` ${what}`)));
  }

  // into: an element; given: labels and views; more: showError(text), and step(by) where there are other cases.
  function build(into, given, more) {
    data = given; options = more;
    state.fill = data.views.some((view) => !view.compared);
    root = { badges: element("ul", { class: "badges", "aria-live": "polite" }), legend: element("ul", { class: "legend", "aria-label": "Colours" }), panels: element("div", { class: "panels" }), readout: element("div", { class: "readout", id: "readout" }), notes: element("ul", { class: "notes" }), title: element("h3", { id: "shown" }), keys: element("ul", { class: "keys", "aria-label": "Keys" }) };
    root.body = element("div", { class: "viewer", hidden: true, "data-ready": "no" }, root.title, root.badges, ...controls(), root.legend, root.panels, root.readout, root.notes, root.keys);
    root.body.addEventListener("keydown", (event) => {
      if (!scene || event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
      const toggle = TOGGLES.find(([name, key]) => key === event.key && !root.toggles[name].hidden), count = scene.view.channels.length;
      if (toggle) press(toggle[0], !state[toggle[0]]);
      else if (event.key === "m" && count > 1) setChannel((state.channel + 1) % count);
      else if (options.step && (event.key === "n" || event.key === "b")) options.step(event.key === "n" ? 1 : -1);
    });
    into.append(root.body);
    new ResizeObserver(redraw).observe(root.panels);
  }

  async function show(number) {
    const asked = ++lastAsked, began = performance.now(), view = data.views[number];
    root.body.dataset.ready = "no";
    // Keep the channel of the previous view if this case has it.
    const before = scene && scene.grey ? scene.view.channels[state.channel].name : "";
    const channel = Math.max(view.channels.findIndex(({ name }) => name === before), 0);
    const get = (name) => medseg.volumes.get(number, name);
    let prediction, reference, image;
    try {
      [prediction, reference, image] = await Promise.all([get("prediction"), view.compared ? get("reference") : null, view.channels.length ? get(`image-${channel}`) : null]);
    } catch (error) {
      options.showError(`The volumes of ${view.name} cannot be opened: ${error.message}. The file may be cut short, or the browser too old.`);
      return;
    }
    if (asked !== lastAsked) return; // another case was chosen meanwhile
    scene = { number, view, state, prediction, reference, image, grey: null, windows: [] };
    channelAsked++;
    state.position = view.start ? [...view.start] : medseg.plane.start(scene);
    if (state.structure >= data.labels.length) state.structure = -1;
    root.structures.replaceChildren(element("option", { value: -1 }, "all"), ...data.labels.map((text, i) => element("option", { value: i }, text)));
    root.structures.value = state.structure;
    fitControls();
    if (image) useChannel(channel, image);
    root.title.textContent = view.name;
    root.notes.replaceChildren(...view.notes.map((note) => element("li", {}, note)));
    badges(); legend();
    const made = view.panels.map(makePlane);
    planes = made.map(([plane]) => plane);
    root.panels.replaceChildren(...made.map(([, figure]) => figure));
    root.body.hidden = false;
    draw();
    root.body.dataset.ready = String(number);
    root.body.dataset.openMs = (performance.now() - began).toFixed(1);
  }

  return { build, show, hide: () => { lastAsked++; if (root) root.body.hidden = true; }, position: () => [...state.position] };
})();
