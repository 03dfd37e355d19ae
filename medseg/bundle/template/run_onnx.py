#!/usr/bin/env python3
"""Segment NIfTI scans with an ONNX file that `medseg bundle export` wrote. Needs numpy and onnxruntime alone.

    python run_onnx.py network.json scan.nii.gz segmentation.nii.gz
    python run_onnx.py network.json t1.nii.gz,t2.nii.gz segmentation.nii.gz      # one file per channel

network.json describes every step; network.onnx lies beside it. The labels are those of `medseg predict`. Research use
only. Not a medical device; not for diagnosis or treatment.
"""

import gzip
import json
import math
import struct
import sys
from itertools import product
from pathlib import Path

import numpy as np

TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


# Images


def read_nifti(path):
    """Return the voxels (i, j, k), the affine (voxel index to mm, RAS+) and the header of a NIfTI-1 file."""
    content = Path(path).read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    order = "<" if struct.unpack("<i", content[:4])[0] == 348 else ">"
    if struct.unpack(order + "i", content[:4])[0] != 348:
        raise SystemExit(f"{path}: not a NIfTI-1 file; convert it to .nii.gz")

    def field(kind, offset, count=1):
        values = struct.unpack_from(f"{order}{count}{kind}", content, offset)
        return values if count > 1 else values[0]

    dim, pixdim = field("h", 40, 8), field("f", 76, 8)
    shape = [max(size, 1) for size in dim[1 : 1 + max(dim[0], 3)]]
    if any(size != 1 for size in shape[3:]) or field("h", 70) not in TYPES:
        raise SystemExit(f"{path}: must hold one real number per voxel of a volume; give one file per channel")
    dtype = np.dtype(order + TYPES[field("h", 70)])
    start, count = int(field("f", 108)), math.prod(shape[:3])
    voxels = np.frombuffer(content, dtype, count, start).reshape(shape[:3], order="F")
    slope, intercept = field("f", 112), field("f", 116)
    if slope not in (0.0, 1.0) or (slope == 1.0 and intercept != 0.0):
        voxels = voxels * float(slope) + float(intercept)
    affine = np.eye(4)
    if field("h", 254) > 0:  # sform
        affine[:3] = np.array(field("f", 280, 12)).reshape(3, 4)
    elif field("h", 252) > 0:  # qform
        b, c, d = (float(value) for value in field("f", 256, 3))
        a = math.sqrt(max(0.0, 1.0 - b * b - c * c - d * d))
        rotation = np.array([
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ])  # fmt: skip
        handed = -1.0 if pixdim[0] < 0 else 1.0
        affine[:3, :3] = rotation * (pixdim[1], pixdim[2], pixdim[3] * handed)
        affine[:3, 3] = field("f", 268, 3)
    else:  # nibabel's convention for files without a position
        affine[:3, :3] = np.diag([-pixdim[1], pixdim[2], pixdim[3]])
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape[:3]) - 1) / 2)
    return voxels, affine, (order, content[:348], dim[0])


def write_nifti(path, labels, header):
    """Write labels with the geometry of the scan's header."""
    order, head, _ = header
    code, dtype = (2, "u1") if labels.max(initial=0) < 256 else (4, "i2")
    head = bytearray(head)
    struct.pack_into(order + "2h", head, 70, code, np.dtype(dtype).itemsize * 8)
    struct.pack_into(order + "3f", head, 108, 352.0, 1.0, 0.0)
    struct.pack_into(order + "2f", head, 124, 0.0, 0.0)  # display range
    head[344:348] = b"n+1\0"
    content = bytes(head) + bytes(4) + labels.astype(np.dtype(order + dtype)).tobytes(order="F")
    Path(path).write_bytes(gzip.compress(content) if str(path).endswith(".gz") else content)


def orientation(affine):
    """Return for each axis of the array the patient axis it runs along (0 R, 1 A, 2 S) and its sign."""
    columns = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    axes, signs = [-1, -1, -1], [1, 1, 1]
    for flat in np.argsort(-np.abs(columns), axis=None, kind="stable"):
        patient, axis = divmod(int(flat), 3)
        if axes[axis] < 0 and patient not in axes:
            axes[axis], signs[axis] = patient, int(np.sign(columns[patient, axis]))
    return axes, signs


# Intensities


def normalize(channel, entry, mask=None):
    """Normalise one float32 channel by a scheme of the plan."""
    scheme = entry["scheme"]
    if scheme == "none":
        return channel
    if scheme == "ct":
        return (np.clip(channel, entry["lower"], entry["upper"]) - np.float32(entry["mean"])) / np.float32(entry["std"])
    if scheme == "sequence":
        for step in entry["steps"]:
            channel = normalize(channel, step, mask)
        return channel
    low, high = float(channel.min()), float(channel.max())
    if scheme == "z_score":
        if entry.get("outside") == "unchanged":
            result = normalize(channel, {**entry, "outside": "normalized"}, mask)
            return np.where(channel != 0, result, np.float32(0))
        if entry.get("mean") is not None:
            return (channel - np.float32(entry["mean"])) / np.float32(entry["std"])
        which = entry.get("foreground", "all")
        considered = channel[mask] if which == "mask" else channel[channel != 0] if which == "nonzero" else channel
        if considered.size == 0 or considered.min() == considered.max():
            return channel - (considered.max() if considered.size else np.float32(0))
        mean, std = considered.mean(dtype=np.float64), considered.std(dtype=np.float64)
        result = (channel - np.float32(mean)) / np.float32(std)
        return np.where(mask, result, np.float32(0)) if which == "mask" else result
    first, last = entry.get("out_min", 0.0), entry.get("out_max", 1.0)
    if scheme == "window":
        lower, upper = entry["lower"], entry["upper"]
    elif scheme == "percentile":
        considered = channel[channel != 0] if entry.get("foreground") == "nonzero" else channel
        lower, upper = np.percentile(considered, [entry.get("lower", 0.5), entry.get("upper", 99.5)])
        if lower == upper:
            lower, upper = low, high
    else:
        raise SystemExit(f"normalisation {scheme!r} is not known to this runner")
    if lower == upper:
        return np.full_like(channel, first)
    scale = (upper - lower) / (last - first)
    clipped = np.clip(channel, lower, upper) if entry.get("clip", True) else channel
    return (clipped - np.float32(lower - first * scale)) / np.float32(scale)


def fill_holes(mask):
    """Fill the holes of a mask: what the border's background does not reach."""
    reached = np.pad(np.zeros(mask.shape, bool), 1, constant_values=True)
    free = np.pad(~mask, 1, constant_values=True)
    while True:
        before = int(reached.sum())
        for axis in range(mask.ndim):
            line = np.moveaxis(reached, axis, 0)
            allowed = np.moveaxis(free, axis, 0)
            for step in (range(1, len(line)), range(len(line) - 2, -1, -1)):
                shift = -1 if step.start == 1 else 1
                for n in step:
                    line[n] |= line[n + shift] & allowed[n]
        if int(reached.sum()) == before:
            return ~reached[tuple(slice(1, -1) for _ in mask.shape)]


# Interpolation along one axis, as a matrix (new, old)


def linear_matrix(positions, size):
    """Interpolate linearly at positions, which are clamped to the axis."""
    positions = np.clip(positions, 0, size - 1)
    low = np.minimum(np.floor(positions).astype(int), max(size - 2, 0))
    matrix, rows = np.zeros((len(positions), size)), np.arange(len(positions))
    np.add.at(matrix, (rows, low), 1 - (positions - low))
    np.add.at(matrix, (rows, np.minimum(low + 1, size - 1)), positions - low)
    return matrix


def nearest_matrix(positions, size):
    """Take the nearest voxel."""
    index = np.clip(np.floor(np.clip(positions, 0, size - 1) + 0.5).astype(int), 0, size - 1)
    return np.eye(size)[index]


def spline_matrix(positions, size, order):
    """Interpolate by a spline through the voxels, as scipy.ndimage does with mode="nearest"."""
    if order == 0:
        return nearest_matrix(positions, size)
    if order == 1:
        return linear_matrix(positions, size)
    pad = 12
    length = size + 2 * pad
    index = np.arange(length)
    collocation = np.zeros((length, length))
    for offset in range(-(order // 2), order // 2 + 1):
        column = np.abs(index + offset)
        column = np.where(column > length - 1, 2 * (length - 1) - column, column)
        np.add.at(collocation, (index, column), b_spline(np.array([float(offset)]), order)[0])
    coefficients = np.linalg.solve(collocation, np.eye(length))  # (coefficients, padded voxels)
    repeated = np.eye(size)[np.clip(index - pad, 0, size - 1)]
    places = np.clip(positions + pad, 0, length - 1)
    first = np.floor(places).astype(int) - order // 2 if order % 2 else np.floor(places + 0.5).astype(int) - order // 2
    basis = np.zeros((len(positions), length))
    for tap in range(order + 1):
        column = np.abs(first + tap)
        weight = b_spline(places - (first + tap), order)
        column = np.where(column > length - 1, 2 * (length - 1) - column, column)
        np.add.at(basis, (np.arange(len(positions)), column), weight)
    return basis @ coefficients @ repeated


def b_spline(x, order):
    """Evaluate the centred B-spline."""
    total = np.zeros_like(x)
    for k in range(order + 2):
        sign = (-1) ** k * math.comb(order + 1, k)
        total += sign * np.maximum(x + (order + 1) / 2 - k, 0.0) ** order
    return total / math.factorial(order)


def along(values, axis, matrix):
    """Multiply a matrix with one axis."""
    return values if matrix is None else np.moveaxis(np.tensordot(matrix, values, (1, axis)), 0, axis)


def centred(old, new):
    """Return the positions of `new` equal parts of an axis of `old` voxels."""
    return (old / new) * (np.arange(new) + 0.5) - 0.5


# From the scan to the network's input, and back


class OwnWay:
    """Orientation, spacing and intensities as medseg's own plans state them."""

    precision = np.float32

    def __init__(self, plan, affine, shape):
        self.plan, self.is_2d = plan, plan["spatial_dims"] == 2
        # A 2D network segments slices: the first axis is that across them.
        names, pairs = (plan.get("slice_axis") or "S" if self.is_2d else "") + plan["orientation"], ("LR", "PA", "IS")
        axes, signs = orientation(affine)
        wanted = [next(n for n, pair in enumerate(pairs) if letter in pair) for letter in names]
        self.order = [axes.index(patient) for patient in wanted]
        self.flips = [
            axis for axis, letter in zip(self.order, names) if signs[axis] * (1 if letter in "RAS" else -1) < 0
        ]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[self.order]
        self.shape = tuple(shape[axis] for axis in self.order)
        given = plan["spacing"] or spacing
        target = np.array([spacing[0], *given] if len(given) == 2 else given, float)
        self.model_shape = tuple(int(np.round((n - 1) * s / t + 1)) for n, s, t in zip(self.shape, spacing, target))
        self.ratio = [t / s for s, t in zip(spacing, target)]
        for axis, (n, ratio) in enumerate(zip(self.shape, self.ratio)):
            if abs(ratio - 1) * max(n - 1, 1) <= 1e-3 and self.model_shape[axis] == n:
                self.ratio[axis] = 1.0

    def prepare(self, channels):
        image = []
        for channel, entry in zip(channels, self.plan["normalization"]):
            values = np.flip(channel, self.flips).transpose(self.order)
            for axis, (n, m, ratio) in enumerate(zip(self.shape, self.model_shape, self.ratio)):
                if ratio != 1.0:
                    values = along(values.astype(np.float64), axis, linear_matrix(np.arange(m) * ratio, n))
            values = values.astype(np.float32)
            image.append(np.stack([normalize(part, entry) for part in values]) if self.is_2d
                         else normalize(values, entry))  # fmt: skip
        return np.stack(image)

    def restored(self, logits):
        restoring = self.plan.get("restoring")
        if restoring == "probabilities":
            logits = probabilities(logits, self.plan["activation"])
        for axis, (n, m, ratio) in enumerate(zip(self.shape, self.model_shape, self.ratio)):
            if ratio != 1.0:
                positions = np.arange(n) / ratio
                matrix = linear_matrix(np.rint(positions) if restoring == "labels" else positions, m).astype(np.float32)
                logits = along(logits, axis + 1, matrix)
        return logits

    def as_stored(self, labels):
        return np.flip(labels.transpose(np.argsort(self.order)), self.flips)

    def starts(self, length, tile, overlap):
        step, last = max(int(tile * (1 - overlap)), 1), length - tile
        return [*range(0, last, step), last]

    def weights(self, tile):
        if self.plan["blending"] == "constant":
            return np.ones(tile, np.float32)
        weight = np.ones(tile, np.float32)
        for axis, size in enumerate(tile):
            x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
            line = np.exp(x**2 / np.float32(-2 * (size * 0.125) ** 2))
            weight *= line.reshape([-1 if a == axis else 1 for a in range(len(tile))])
        return np.maximum(weight, max(float(weight.min()), 1e-3))


def probabilities(logits, activation):
    """Return the softmax of logits (K, …), or their sigmoid less one half, which `decide` takes like logits."""
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-logits)) - np.float32(0.5)
    powers = np.exp(logits - logits.max(0))
    return powers / powers.sum(0)


class NnunetWay:
    """The steps of nnU-Net 2: axes as stored, crop, normalise, resample, sums in half precision."""

    precision = np.float16

    def __init__(self, plan, affine, shape):
        self.plan, rules = plan, plan["resampling"]
        axes, signs = orientation(affine) if rules["axes"] == "RAS" else ([0, 1, 2], [1, 1, 1])
        self.flips = [axis for axis in range(3) if signs[axis] < 0]
        self.order = [axes.index(2 - axis) for axis in rules["transpose"]]
        self.file_shape = tuple(shape[axis] for axis in self.order)
        spacing = np.linalg.norm(affine[:3, :3], axis=0).astype(np.float32).astype(float)
        self.spacing = [float(spacing[axis]) for axis in self.order]
        target = plan["spacing"] or self.spacing
        self.target = [float(t) for t in (target if len(target) == 3 else [self.spacing[0], *target])]

    def coarse_axis(self, step, current, new):
        if step["separate_z"] is False:
            return None
        for spacing in [current] if step["separate_z"] else [current, new]:
            if step["separate_z"] or max(spacing) / min(spacing) > step["threshold"]:
                found = [axis for axis, size in enumerate(spacing) if max(spacing) / size == 1]
                return found[0] if len(found) == 1 else None
        return None

    def prepare(self, channels):
        channels = [np.flip(channel, self.flips).transpose(self.order) for channel in channels]
        mask = np.any([channel != 0 for channel in channels], axis=0)
        self.box = []
        for axis in range(3):
            found = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
            self.box.append(slice(found[0], found[-1] + 1) if len(found) else slice(0, mask.shape[axis]))
        self.box = tuple(self.box)
        entries = self.plan["normalization"]
        inside = fill_holes(mask[self.box]) if any(e.get("foreground") == "mask" for e in entries) else None
        image = [normalize(c[self.box].astype(np.float32), entry, inside) for c, entry in zip(channels, entries)]
        self.shape = image[0].shape
        self.model_shape = tuple(max(1, round(s / t * n)) for s, t, n in zip(self.spacing, self.target, self.shape))
        step = self.plan["resampling"]["image"]
        if step["method"] == "none":
            self.model_shape = self.shape
        if self.model_shape == self.shape:
            return np.stack(image)
        return np.stack([self.resampled(channel, step) for channel in image])

    def resampled(self, channel, step):
        coarse = self.coarse_axis(step, self.spacing, self.target)
        plane = [axis for axis in range(3) if axis != coarse]
        values = channel.astype(np.float64)
        low, high = values.min(tuple(plane), keepdims=True), values.max(tuple(plane), keepdims=True)
        for axis in [*plane, *([] if coarse is None else [coarse])]:
            old, new = self.shape[axis], self.model_shape[axis]
            if old != new:
                order = step["order_z"] if axis == coarse else step["order"]
                values = along(values, axis, spline_matrix(centred(old, new), old, order))
            if axis == plane[-1]:
                values = np.clip(values, low, high)
        return values.astype(np.float32)

    def restored(self, logits):
        if self.model_shape == self.shape:
            return logits.astype(np.float32)
        step = self.plan["resampling"]["logits"]
        coarse = self.coarse_axis(step, self.target, self.spacing)
        for axis in range(3):
            old, new = self.model_shape[axis], self.shape[axis]
            make = nearest_matrix if step["order_z" if axis == coarse else "order"] == 0 else linear_matrix
            if old != new:
                logits = along(logits.astype(np.float32), axis + 1, make(centred(old, new), old).astype(np.float32))
        return logits.astype(np.float16).astype(np.float32) if step["method"] == "spline" else logits

    def as_stored(self, labels):
        whole = np.zeros(self.file_shape, labels.dtype)
        whole[self.box] = labels
        return np.flip(whole.transpose(np.argsort(self.order)), self.flips)

    def starts(self, length, tile, overlap):
        if tile == 1:  # the slices of a 2D network
            return list(range(length))
        last = length - tile
        count = math.ceil(last / (tile * (1 - overlap))) + 1
        distance = last / (count - 1) if count > 1 else 0.0
        return [int(np.round(distance * number)) for number in range(count)]

    def weights(self, tile):
        if self.plan["blending"] == "constant":
            return np.ones(tile, np.float16)
        weight = np.ones(tile)
        for axis, size in enumerate(tile):
            line = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * (size / 8) ** 2))
            weight = weight * line.reshape([-1 if a == axis else 1 for a in range(len(tile))])
        half = (weight / (weight.max() / 10.0)).astype(np.float16)
        half[half == 0] = half[half != 0].min()
        return half


def predict(image, tile, way, run, overlap, members):
    """Return the logits (K, …) of an image (C, …): tiles, blended by their weights."""
    shape = image.shape[1:]
    before = [max(t - n, 0) // 2 for n, t in zip(shape, tile)]
    after = [max(t - n, 0) - b for n, t, b in zip(shape, tile, before)]
    modes = {None: "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}
    padded = np.pad(image, [(0, 0), *zip(before, after)], mode=modes[way.plan.get("padding")])
    weight, sums, total = way.weights(tile), None, np.zeros(padded.shape[1:], way.precision)
    starts = [way.starts(n, t, overlap) for n, t in zip(padded.shape[1:], tile)]
    for begin in product(*starts):
        part = tuple(slice(b, b + t) for b, t in zip(begin, tile))
        logits = run(padded[(slice(None), *part)])
        if sums is None:
            sums = np.zeros((len(logits), *padded.shape[1:]), way.precision)
        sums[(slice(None), *part)] = (sums[(slice(None), *part)] + logits * weight.astype(np.float32)).astype(
            way.precision
        )
        total[part] = (total[part] + weight).astype(way.precision)
    blended = (sums / total).astype(way.precision)
    blended = blended[(slice(None), *(slice(b, b + n) for b, n in zip(before, shape)))]
    if members > 1:
        each = np.split(blended, members)
        blended = each[0]
        for other in each[1:]:
            blended = (blended + other).astype(way.precision)
        blended = (blended / members).astype(way.precision)
    return blended


def decide(logits, plan):
    """Return the label values of logits (K, …)."""
    drawn = plan.get("regions_class_order")
    values = sorted(plan["labels"].values()) if drawn is None else [0, *drawn]
    dtype = np.uint8 if max(values) < 256 else np.int16
    if plan["activation"] == "softmax":
        return np.array(values, dtype)[logits.argmax(0)]
    labels = np.zeros(logits.shape[1:], dtype)
    for region, value in zip(logits, values[1:]):
        labels[region > 0] = value
    return labels


def segment(description, session, paths):
    """Return the labels (i, j, k) of a scan, and the header of its first file."""
    plan = description["plan"]
    found = [read_nifti(path) for path in paths]
    if len(found) != len(plan["channels"]):
        names = ", ".join(channel["name"] for channel in plan["channels"])
        raise SystemExit(f"{paths[0]}: {len(plan['channels'])} channel(s) are needed ({names}), found {len(found)}")
    channels, affine, header = [each[0] for each in found], found[0][1], found[0][2]
    for path, (voxels, _, _) in zip(paths, found):
        if voxels.shape != channels[0].shape or not np.isfinite(voxels).all():
            raise SystemExit(f"{path}: must have the shape of the first channel and finite voxels only")
    way = (NnunetWay if plan.get("resampling") else OwnWay)(plan, affine, channels[0].shape)
    is_2d, tile = plan["spatial_dims"] == 2, tuple(plan["tile"])

    def run(part):
        given = part[None, :, 0] if is_2d else part[None]
        logits = session.run(["logits"], {"image": np.ascontiguousarray(given, np.float32)})[0][0]
        return logits[:, None] if is_2d else logits

    image = way.prepare(channels)
    logits = predict(image, (1, *tile) if is_2d else tile, way, run, plan["overlap"], description["members"])
    return way.as_stored(decide(way.restored(logits), plan)), header


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    import onnxruntime

    description_file, scans, out = sys.argv[1:]
    description = json.loads(Path(description_file).read_text(encoding="utf-8"))
    network = Path(description_file).parent / description["network"]
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    labels, header = segment(description, session, scans.split(","))
    write_nifti(out, labels, header)
    names = {value: name for name, value in description["plan"]["labels"].items()}
    counts = np.bincount(labels.ravel(), minlength=max(names) + 1)
    print(f"{out}: " + ", ".join(f"{names[value]} {counts[value]} voxels" for value in sorted(names)))


if __name__ == "__main__":
    main()
