// Planes through one case on 2D canvases. Volumes are bytes with x fastest; pixels are only ever written, never read.
"use strict";
medseg.viewer = (function () {
  const DECODED_AT_ONCE = 3;
  const BLUE = [86, 180, 233], ORANGE = [230, 159, 0], MISSED = [58, 160, 221], VERMILLION = [213, 94, 0], WHITE = [255, 255, 255];
  const OKABE_ITO = [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];
  const decoded = new Map(); // view number → volumes; the least recently used leaves first
  const { element } = medseg;
  let data, root, planes = [], view = null, volumes = null, current = -1, lastAsked = 0;
  const state = {
    position: [0, 0, 0], structure: -1, mirrored: false, width: 1, level: 0,
    reference: true, prediction: true, errors: false, fill: false, smooth: true, cross: true,
  };
  const TOGGLES = [
    ["reference", "r", "reference"], ["prediction", "p", "prediction"], ["errors", "e", "errors"],
    ["fill", "f", "colours"], ["cross", "c", "crosshair"], ["smooth", "s", "smooth"],
  ];

  async function volumesOf(number) {
    if (decoded.has(number)) {
      const found = decoded.get(number);
      decoded.delete(number); decoded.set(number, found);
      return found;
    }
    const hasImage = data.views[number].grey !== null;
    const [reference, prediction, image] = await Promise.all([
      medseg.unpack(`v${number}-reference`), medseg.unpack(`v${number}-prediction`),
      hasImage ? medseg.unpack(`v${number}-image`) : null,
    ]);
    decoded.set(number, { reference, prediction, image });
    while (decoded.size > DECODED_AT_ONCE) decoded.delete(decoded.keys().next().value);
    return decoded.get(number);
  }

  // Where the crosshair starts: on the slices with the most wrong voxels, else with the most reference.
  function start(dims) {
    const [nx, ny, nz] = dims, { reference, prediction } = volumes;
    for (const others of [prediction, null]) {
      const sums = [new Uint32Array(nx), new Uint32Array(ny), new Uint32Array(nz)];
      let any = false;
      for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++) {
        if (reference[i] === (others ? others[i] : 0)) continue;
        sums[0][x]++; sums[1][y]++; sums[2][z]++; any = true;
      }
      if (any) return sums.map((sum) => sum.indexOf(sum.reduce((a, b) => Math.max(a, b))));
    }
    return dims.map((n) => n >> 1);
  }

  // Byte → class: 0 what is not looked at. With one structure chosen, 1 is that structure.
  function classes() {
    const table = new Uint8Array(256);
    if (state.structure >= 0) for (const byte of view.structures[state.structure]) table[byte] = 1;
    else for (const bytes of view.structures) for (const byte of bytes) table[byte] = byte;
    return table;
  }

  function shades() {
    const table = new Uint8ClampedArray(256);
    if (view.grey) view.grey.values.forEach((value, i) => { table[i] = 255 * (value - state.level + state.width / 2) / state.width; });
    return table;
  }

  const isMirrored = (panel) => state.mirrored && panel.letters[0] === "R";
  function letters(panel) {
    const [left, right, top, bottom] = panel.letters;
    return isMirrored(panel) ? [right, left, top, bottom] : [left, right, top, bottom];
  }

  // The plane as rows from top to bottom, in the order of the screen.
  function cut(volume, panel) {
    const strides = [1, view.dims[0], view.dims[0] * view.dims[1]];
    const columns = view.dims[panel.across], rows = view.dims[panel.down];
    const flipped = panel.flip_across !== isMirrored(panel);
    const out = new Uint8Array(columns * rows), base = state.position[panel.axis] * strides[panel.axis];
    for (let row = 0; row < rows; row++) {
      const line = base + (panel.flip_down ? rows - 1 - row : row) * strides[panel.down];
      for (let column = 0; column < columns; column++) {
        out[row * columns + column] = volume[line + (flipped ? columns - 1 - column : column) * strides[panel.across]];
      }
    }
    return out;
  }

  function colour(byte) {
    const count = view.values.length;
    if (count <= 7) return OKABE_ITO[byte - 1];
    const hue = (byte * 137.508) % 360, part = (n) => { const k = (n + hue / 30) % 12; return 255 * (0.6 - 0.4 * Math.max(-1, Math.min(k - 3, 9 - k, 1))); };
    return [part(0), part(8), part(4)];
  }

  function size(panel, box) {
    const width = view.dims[panel.across] * view.spacing[panel.across], height = view.dims[panel.down] * view.spacing[panel.down];
    const most = view.panels.length === 1 ? 720 : 520;
    const scale = Math.min(box / width, Math.min(most, window.innerHeight * 0.7) / height);
    return [Math.max(Math.round(width * scale), 1), Math.max(Math.round(height * scale), 1)];
  }

  function draw(plane) {
    const { panel, canvas } = plane, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [cssWidth, cssHeight] = size(panel, plane.box.clientWidth);
    const W = Math.round(cssWidth * ratio), H = Math.round(cssHeight * ratio);
    if (canvas.width !== W || canvas.height !== H) { canvas.width = W; canvas.height = H; }
    canvas.style.width = `${cssWidth}px`; canvas.style.height = `${cssHeight}px`;
    const columns = view.dims[panel.across], rows = view.dims[panel.down];
    const table = classes(), shade = shades();
    const reference = cut(volumes.reference, panel), prediction = cut(volumes.prediction, panel);
    const image = volumes.image ? cut(volumes.image, panel).map((byte) => shade[byte]) : null;
    const picture = new ImageData(W, H), pixels = picture.data;
    const ux = Int32Array.from({ length: W }, (_, x) => Math.floor((x + 0.5) * columns / W));
    const vy = Int32Array.from({ length: H }, (_, y) => Math.floor((y + 0.5) * rows / H));
    const line = Math.max(1, Math.round(1.6 * ratio)), dash = Math.round(5 * ratio), hatch = Math.round(6 * ratio);
    const flipped = panel.flip_across !== isMirrored(panel);
    const at = [panel.across, panel.down].map((axis, i) => {
      const p = state.position[axis], n = view.dims[axis];
      return (i === 0 ? flipped : panel.flip_down) ? n - 1 - p : p;
    });
    const crossX = Math.floor((at[0] + 0.5) * W / columns), crossY = Math.floor((at[1] + 0.5) * H / rows);

    const own = reference.map((byte) => table[byte]), other = prediction.map((byte) => table[byte]);
    // A pixel is outline where its class is not that of a pixel one line width away.
    function isEdge(labels, label, x, y) {
      if (x < line || y < line || x >= W - line || y >= H - line) return true;
      const row = vy[y] * columns, column = ux[x];
      return labels[row + ux[x - line]] !== label || labels[row + ux[x + line]] !== label
        || labels[vy[y - line] * columns + column] !== label || labels[vy[y + line] * columns + column] !== label;
    }
    function blend(o, rgb, alpha) {
      for (let k = 0; k < 3; k++) pixels[o + k] += (rgb[k] - pixels[o + k]) * alpha;
    }
    const fills = view.values.map((_, i) => colour(i + 1));

    for (let y = 0, o = 0; y < H; y++) {
      const fv = Math.min(Math.max((y + 0.5) * rows / H - 0.5, 0), rows - 1), v0 = Math.floor(fv), tv = fv - v0;
      const top = v0 * columns, bottom = Math.min(v0 + 1, rows - 1) * columns;
      for (let x = 0; x < W; x++, o += 4) {
        const i = vy[y] * columns + ux[x];
        let grey = 0;
        if (image && state.smooth) {
          const fu = Math.min(Math.max((x + 0.5) * columns / W - 0.5, 0), columns - 1), u0 = Math.floor(fu), tu = fu - u0;
          const u1 = Math.min(u0 + 1, columns - 1);
          grey = (image[top + u0] * (1 - tu) + image[top + u1] * tu) * (1 - tv) + (image[bottom + u0] * (1 - tu) + image[bottom + u1] * tu) * tv;
        } else if (image) grey = image[i];
        pixels[o] = pixels[o + 1] = pixels[o + 2] = grey; pixels[o + 3] = 255;
        const r = own[i], p = other[i];
        if (state.fill && p) blend(o, fills[prediction[i] - 1], 0.4);
        if (state.errors && r !== p) {
          if (p) blend(o, VERMILLION, 0.6);
          if (r && (x + y) % hatch < hatch / 3) blend(o, MISSED, 1);
        }
        if (state.cross && (x === crossX || y === crossY)) blend(o, WHITE, 0.3);
        if (state.reference && r && isEdge(own, r, x, y)) blend(o, BLUE, 1);
        if (state.prediction && p && (x + y) % (2 * dash) < dash && isEdge(other, p, x, y)) blend(o, ORANGE, 1);
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
    const position = state.position[panel.axis], count = view.dims[panel.axis];
    letters(panel).forEach((letter, i) => { plane.letters[i].textContent = letter; });
    plane.slider.value = position;
    plane.caption.textContent = count > 1 ? `${panel.name} ${position + 1}/${count}` : panel.name;
    canvas.setAttribute("aria-valuenow", position + 1);
    canvas.setAttribute("aria-valuetext", `slice ${position + 1} of ${count}`);
  }

  function label(byte) {
    if (!byte) return "background";
    const names = view.structures.flatMap((bytes, i) => (bytes.includes(byte) ? [data.labels[i]] : []));
    return names.join(" + ") || `value ${view.values[byte - 1]}`;
  }

  function readout() {
    const [x, y, z] = state.position, i = x + view.dims[0] * (y + view.dims[1] * z);
    const parts = [];
    if (view.panels[0].letters[0]) {
      const mm = [0, 1, 2].map((row) => view.affine[row][0] * x + view.affine[row][1] * y + view.affine[row][2] * z + view.affine[row][3]);
      parts.push(mm.map((value, axis) => `${value >= 0 ? "RAS"[axis] : "LPI"[axis]} ${Math.abs(value).toFixed(1)}`).join("  ") + " mm");
    } else parts.push(`column ${Math.round(view.affine[0][0] * x + view.affine[0][3])}, row ${Math.round(view.affine[1][1] * y + view.affine[1][3])}`);
    if (volumes.image) parts.push(`about ${Number(view.grey.values[volumes.image[i]].toPrecision(3))}${view.grey.modality === "CT" ? " HU" : ""}`);
    parts.push(`reference: ${label(volumes.reference[i])}`, `prediction: ${label(volumes.prediction[i])}`);
    root.readout.textContent = parts.join(" · ");
  }

  let waiting = false;
  function redraw() {
    if (waiting || !volumes) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; planes.forEach(draw); readout(); });
  }

  // Moves along an axis; false at its end.
  function move(axis, step) {
    const to = Math.min(Math.max(state.position[axis] + step, 0), view.dims[axis] - 1);
    const moved = to !== state.position[axis];
    state.position[axis] = to;
    if (moved) redraw();
    return moved;
  }

  function onKey(event, panel) {
    const page = Math.max(1, Math.round(view.dims[panel.axis] / 10)), count = view.dims[panel.axis];
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: page, PageDown: -page, Home: -count, End: count };
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(panel.axis, steps[event.key]);
  }

  function onPoint(event, plane) {
    const { panel, canvas } = plane, box = canvas.getBoundingClientRect();
    const place = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    [panel.across, panel.down].forEach((axis, i) => {
      const n = view.dims[axis], index = Math.min(Math.max(Math.floor(place[i] * n), 0), n - 1);
      const flipped = i === 0 ? panel.flip_across !== isMirrored(panel) : panel.flip_down;
      state.position[axis] = flipped ? n - 1 - index : index;
    });
    redraw();
  }

  function makePlane(panel, name) {
    const count = view.dims[panel.axis];
    const canvas = element("canvas", { tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-label": `${panel.name} plane of ${name}; arrow keys change the slice`, "aria-valuemin": 1, "aria-valuemax": count });
    const box = element("div", { class: "plane" }, canvas);
    const caption = element("figcaption");
    const slider = element("input", { type: "range", min: 0, max: count - 1, "aria-label": `${panel.name} slice`, hidden: count === 1 });
    const plane = { panel, canvas, box, caption, slider, letters: ["left", "right", "top", "bottom"].map((side) => element("span", { class: `letter ${side}` })) };
    box.append(...plane.letters);
    slider.addEventListener("input", () => { state.position[panel.axis] = Number(slider.value); redraw(); });
    canvas.addEventListener("keydown", (event) => onKey(event, panel));
    canvas.addEventListener("wheel", (event) => {
      if (event.ctrlKey || !event.deltaY) return;
      if (move(panel.axis, event.deltaY < 0 ? 1 : -1)) event.preventDefault(); // at the end the page scrolls on
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { canvas.focus({ preventScroll: true }); onPoint(event, plane); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons === 1 && event.pointerType === "mouse") onPoint(event, plane); });
    return [plane, element("figure", {}, box, caption, slider)];
  }

  function badges() {
    const list = [];
    if (view.panels[0].letters[0]) list.push([`patient left is on image ${state.mirrored ? "left" : "right"} (${state.mirrored ? "neurological" : "radiological"})`, "tag"]);
    else list.push(["no patient orientation in this file", "tag"]);
    if (view.tilt) list.push([`oblique: tilted by ${view.tilt.toFixed(1)}°, letters are the nearest sides`, "alert"]);
    const shown = view.panels.length === 1 ? [view.panels[0].across, view.panels[0].down] : [0, 1, 2];
    const sizes = shown.map((axis) => view.dims[axis]).join("×"), steps = shown.map((axis) => view.spacing[axis].toPrecision(3)).join("×");
    list.push([view.panels[0].letters[0] ? `${sizes} voxels of ${steps} mm` : `${sizes} pixels`, ""]);
    root.badges.replaceChildren(...list.map(([text, kind]) => element("li", { class: kind || null }, text)));
  }

  function setWindow(width, level, name) {
    state.width = Math.max(width, 1e-6); state.level = level;
    root.width.value = Number(state.width.toPrecision(4)); root.level.value = Number(level.toPrecision(4));
    root.windows.value = name || "own";
    redraw();
  }

  function press(name, on) {
    state[name] = on;
    root.toggles[name].setAttribute("aria-pressed", String(on));
    if (name === "mirrored" && view) badges();
    redraw();
  }

  function controls() {
    root.toggles = {};
    const toggle = (name, key, text, swatch) => {
      const button = element("button", { type: "button", "aria-pressed": String(state[name]), "aria-keyshortcuts": key, "data-toggle": name, onclick: () => press(name, !state[name]) }, swatch || "", swatch ? " " : "", text);
      root.toggles[name] = button;
      return button;
    };
    const swatches = {
      reference: element("i", { class: "key reference" }), prediction: element("i", { class: "key prediction" }),
      errors: element("span", {}, element("i", { class: "key missed" }), " ", element("i", { class: "key spurious" })),
    };
    const texts = { errors: "missed, spurious" };
    root.structures = element("select", { id: "structure", onchange: (event) => { state.structure = Number(event.target.value); redraw(); } });
    root.windows = element("select", { id: "window", onchange: (event) => { const found = view.grey.windows[event.target.value]; if (found) setWindow(found[0], found[1], event.target.value); } });
    root.width = element("input", { type: "number", id: "width", step: "any", min: 0, onchange: () => setWindow(Number(root.width.value), state.level) });
    root.level = element("input", { type: "number", id: "level", step: "any", onchange: () => setWindow(state.width, Number(root.level.value)) });
    root.windowBar = element("span", { class: "bar" }, element("label", {}, "window", root.windows), element("label", {}, "width", root.width), element("label", {}, "level", root.level));
    return [
      element("div", { class: "bar", role: "group", "aria-label": "What is shown" }, ...TOGGLES.map(([name, key, text]) => toggle(name, key, texts[name] || text, swatches[name])), toggle("mirrored", "o", "neurological: left on left")),
      element("div", { class: "bar" }, element("label", {}, "structure", root.structures), root.windowBar),
    ];
  }

  function build(into, given) {
    data = given;
    root = { badges: element("ul", { class: "badges", "aria-live": "polite" }), panels: element("div", { class: "panels" }), readout: element("div", { class: "readout", id: "readout" }), notes: element("ul", { class: "notes" }), title: element("h3", { id: "shown" }) };
    root.body = element("div", { class: "viewer", hidden: true, "data-ready": "no" }, root.title, root.badges, ...controls(), root.panels, root.readout, root.notes,
      element("p", { class: "soft keys" }, "Keys: ", ...[["↑ ↓", "slice"], ["r", "reference"], ["p", "prediction"], ["e", "errors"], ["f", "colours"], ["c", "crosshair"], ["s", "smooth"], ["o", "side of the patient"], ["n b", "next case, case before"]].flatMap(([key, what]) => [element("kbd", {}, key), ` ${what}  `])));
    root.body.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
      const toggle = [...TOGGLES, ["mirrored", "o"]].find(([, key]) => key === event.key);
      if (toggle) press(toggle[0], !state[toggle[0]]);
      else if (event.key === "n" || event.key === "b") medseg.step(event.key === "n" ? 1 : -1);
    });
    into.append(root.body);
    new ResizeObserver(redraw).observe(root.panels);
  }

  async function show(number) {
    const asked = ++lastAsked, began = performance.now();
    root.body.dataset.ready = "no";
    const name = data.cases[data.views[number].case].name;
    let loaded;
    try {
      loaded = await volumesOf(number);
    } catch (error) {
      medseg.complain(`The volumes of ${name} cannot be opened: ${error.message}. The file may be cut short, or the browser too old.`);
      return;
    }
    if (asked !== lastAsked) return; // another case was asked for meanwhile
    const previous = view;
    current = number; view = data.views[number]; volumes = loaded;
    state.position = start(view.dims);
    if (!previous || state.structure >= data.labels.length) state.structure = -1;
    root.structures.replaceChildren(element("option", { value: -1 }, "all"), ...data.labels.map((text, i) => element("option", { value: i }, text)));
    root.structures.value = state.structure;
    root.windowBar.hidden = !view.grey;
    root.toggles.smooth.hidden = !view.grey;
    root.toggles.mirrored.hidden = view.panels[0].letters[0] === "" || view.panels.every((panel) => panel.letters[0] !== "R");
    if (view.grey) {
      const windows = Object.entries(view.grey.windows);
      root.windows.replaceChildren(...windows.map(([text, [width, level]]) => element("option", { value: text }, `${text} (${Number(width.toPrecision(4))}/${Number(level.toPrecision(4))})`)), element("option", { value: "own" }, "own"));
      setWindow(...windows[0][1], windows[0][0]);
    }
    root.title.textContent = name;
    root.notes.replaceChildren(...view.notes.map((note) => element("li", {}, note)));
    badges();
    const made = view.panels.map((panel) => makePlane(panel, name));
    planes = made.map(([plane]) => plane);
    root.panels.replaceChildren(...made.map(([, figure]) => figure));
    root.body.hidden = false;
    planes.forEach(draw); readout();
    root.body.dataset.ready = String(number);
    root.body.dataset.openMs = (performance.now() - began).toFixed(1);
  }

  return { build, show, hide: () => { lastAsked++; root.body.hidden = true; }, decodedNow: () => [...decoded.keys()], position: () => [...state.position], volumesOf };
})();
