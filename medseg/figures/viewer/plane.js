// Draw one plane. Volumes are bytes with x fastest. Pixels are written and never read, because browsers disturb reading.
"use strict";
medseg.plane = (function () {
  const REFERENCE = [86, 180, 233], PREDICTION = [230, 159, 0], MISSED = [58, 160, 221], SPURIOUS = [213, 94, 0], WHITE = [255, 255, 255];
  const TALLEST = 520, TALLEST_ALONE = 720;

  const isMirrored = (panel, state) => state.mirrored && panel.letters[0] === "R";
  function letters(panel, state) {
    const [left, right, top, bottom] = panel.letters;
    return isMirrored(panel, state) ? [right, left, top, bottom] : [left, right, top, bottom];
  }

  // True where positions across and down the screen are shown in decreasing order.
  const flips = (panel, state) => [panel.flip_across !== isMirrored(panel, state), panel.flip_down];

  // The plane as rows from top to bottom, in the order of the screen.
  function cut(volume, panel, { view, state }) {
    const strides = [1, view.dims[0], view.dims[0] * view.dims[1]];
    const columns = view.dims[panel.across], rows = view.dims[panel.down], [flipAcross, flipDown] = flips(panel, state);
    const out = new Uint8Array(columns * rows), base = state.position[panel.axis] * strides[panel.axis];
    for (let row = 0; row < rows; row++) {
      const line = base + (flipDown ? rows - 1 - row : row) * strides[panel.down];
      for (let column = 0; column < columns; column++) {
        out[row * columns + column] = volume[line + (flipAcross ? columns - 1 - column : column) * strides[panel.across]];
      }
    }
    return out;
  }

  // Start of the crosshair: the slices with most wrong voxels, else with most labelled voxels.
  function start({ view, reference, prediction }) {
    const [nx, ny, nz] = view.dims;
    for (const others of reference ? [prediction, null] : [null]) {
      const sums = [new Uint32Array(nx), new Uint32Array(ny), new Uint32Array(nz)], labels = reference || prediction;
      let any = false;
      for (let z = 0, i = 0; z < nz; z++) for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++, i++) {
        if (labels[i] === (others ? others[i] : 0)) continue;
        sums[0][x]++; sums[1][y]++; sums[2][z]++; any = true;
      }
      if (any) return sums.map((sum) => sum.indexOf(sum.reduce((a, b) => Math.max(a, b))));
    }
    return view.dims.map((n) => n >> 1);
  }

  // Byte → class; 0 is not shown. If one structure is chosen, it is class 1.
  function classes({ view, state }) {
    const table = new Uint8Array(256);
    if (state.structure >= 0) for (const byte of view.structures[state.structure]) table[byte] = 1;
    else for (const bytes of view.structures) for (const byte of bytes) table[byte] = byte;
    return table;
  }

  function shades({ grey, state }) {
    const table = new Uint8ClampedArray(256);
    if (grey) grey.values.forEach((value, i) => { table[i] = 255 * (value - state.level + state.width / 2) / state.width; });
    return table;
  }

  const rgb = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));

  // CSS pixels a millimetre: one for all planes, so that what is larger looks larger.
  function scaleOf({ view }, box) {
    const most = Math.min(view.panels.length === 1 ? TALLEST_ALONE : TALLEST, window.innerHeight * 0.7);
    const mm = (axis) => view.dims[axis] * view.spacing[axis];
    return Math.min(...view.panels.map((panel) => Math.min(box / mm(panel.across), most / mm(panel.down))));
  }

  function size(panel, { view }, scale) {
    return [panel.across, panel.down].map((axis) => Math.max(Math.round(view.dims[axis] * view.spacing[axis] * scale), 1));
  }

  function draw(canvas, panel, scene, scale) {
    const { view, state } = scene, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [cssWidth, cssHeight] = size(panel, scene, scale);
    const W = Math.round(cssWidth * ratio), H = Math.round(cssHeight * ratio);
    if (canvas.width !== W || canvas.height !== H) { canvas.width = W; canvas.height = H; }
    canvas.style.width = `${cssWidth}px`; canvas.style.height = `${cssHeight}px`;
    const columns = view.dims[panel.across], rows = view.dims[panel.down];
    const table = classes(scene), shade = shades(scene), compared = scene.reference !== null;
    const prediction = cut(scene.prediction, panel, scene), reference = compared ? cut(scene.reference, panel, scene) : prediction;
    const image = scene.image ? cut(scene.image, panel, scene).map((byte) => shade[byte]) : null;
    const picture = new ImageData(W, H), pixels = picture.data;
    const ux = Int32Array.from({ length: W }, (_, x) => Math.floor((x + 0.5) * columns / W));
    const vy = Int32Array.from({ length: H }, (_, y) => Math.floor((y + 0.5) * rows / H));
    const line = Math.max(1, Math.round(1.6 * ratio)), dash = Math.round(5 * ratio), hatch = Math.round(6 * ratio);
    const flipped = flips(panel, state);
    const at = [panel.across, panel.down].map((axis, i) => (flipped[i] ? view.dims[axis] - 1 - state.position[axis] : state.position[axis]));
    const crossX = Math.floor((at[0] + 0.5) * W / columns), crossY = Math.floor((at[1] + 0.5) * H / rows);
    const own = reference.map((byte) => table[byte]), other = prediction.map((byte) => table[byte]);
    const fills = view.colors.map(rgb), fillAlpha = compared ? 0.4 : 0.3;

    // A pixel belongs to an outline if a pixel one line width away has another class.
    function isEdge(labels, label, x, y) {
      if (x < line || y < line || x >= W - line || y >= H - line) return true;
      const row = vy[y] * columns, column = ux[x];
      return labels[row + ux[x - line]] !== label || labels[row + ux[x + line]] !== label
        || labels[vy[y - line] * columns + column] !== label || labels[vy[y + line] * columns + column] !== label;
    }
    function blend(o, color, alpha) {
      for (let k = 0; k < 3; k++) pixels[o + k] += (color[k] - pixels[o + k]) * alpha;
    }

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
        if (state.fill && p) blend(o, fills[prediction[i] - 1], fillAlpha);
        if (compared && state.errors && r !== p) {
          if (p) blend(o, SPURIOUS, 0.6);
          if (r && (x + y) % hatch < hatch / 3) blend(o, MISSED, 1);
        }
        if (state.cross && (x === crossX || y === crossY)) blend(o, WHITE, 0.3);
        if (compared && state.reference && r && isEdge(own, r, x, y)) blend(o, REFERENCE, 1);
        if (state.prediction && p && (!compared || (x + y) % (2 * dash) < dash) && isEdge(other, p, x, y)) {
          blend(o, compared ? PREDICTION : fills[prediction[i] - 1], 1);
        }
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  // Return the position at a point of the canvas, given as fractions of its width and height.
  function positionAt(panel, { view, state }, fractions) {
    const position = [...state.position], flipped = flips(panel, state);
    [panel.across, panel.down].forEach((axis, i) => {
      const n = view.dims[axis], index = Math.min(Math.max(Math.floor(fractions[i] * n), 0), n - 1);
      position[axis] = flipped[i] ? n - 1 - index : index;
    });
    return position;
  }

  return { draw, letters, positionAt, scaleOf, start };
})();
