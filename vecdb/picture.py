"""A collection in two dimensions, as PNG or as one HTML page that shows what a point is under the pointer.

The plane is that of most variance (PCA; for cosine, of the vectors' directions), or UMAP's, where umap-learn is installed. The
page holds its data and its few lines of script, and loads nothing. Called in any thread.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import orjson

from .errors import AlreadyExists, InvalidInput, StorageError, Unsupported

if TYPE_CHECKING:
    from .api import Collection, Where
    from .points import Point

# Okabe and Ito's colours, which can be told apart by all, and two more; the last is for what has none of its own.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7a5195", "#8c564b", "#9a9a9a")
_RAMP = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # from little to much
_SHOWN = 400  # characters of a point's payload


@dataclass(frozen=True)
class Plane:
    """Points in two dimensions. xy: (n, 2). explained: share of the variance that both axes have; None of UMAP."""

    xy: npt.NDArray[np.float64]
    explained: float | None


def project(vectors: npt.NDArray[Any], method: str = "pca", seed: int = 0) -> Plane:
    """(n, d) vectors -> a Plane, the same for the same input. Raises InvalidInput, Unsupported."""
    if method == "umap":
        try:
            from umap import UMAP
        except ImportError:
            raise Unsupported("UMAP needs umap-learn: pip install 'vecdb[umap]'; --method pca needs nothing") from None
        return Plane(np.asarray(UMAP(random_state=seed, n_jobs=1).fit_transform(vectors), np.float64), None)
    if method != "pca":
        raise InvalidInput(f"the method is pca or umap, not {method!r}")
    centred = np.asarray(vectors, np.float64)
    centred = centred - centred.mean(axis=0)
    values, axes = np.linalg.eigh(centred.T @ centred)
    chosen = axes[:, ::-1][:, :2]
    chosen = chosen * np.where(chosen[np.abs(chosen).argmax(axis=0), range(chosen.shape[1])] < 0, -1, 1)  # one sign, always
    xy = centred @ chosen
    if xy.shape[1] < 2:
        xy = np.column_stack([xy, np.zeros(len(xy))])
    total = float(values.clip(0).sum())
    return Plane(xy, float(values[::-1][:2].clip(0).sum() / total) if total else 1.0)


def draw(
    collection: Collection,
    out: str | os.PathLike[str],
    *,
    color: str | None = None,
    label: str | None = None,
    method: str = "pca",
    sample: int = 5000,
    where: Where = None,
    field: str | None = None,
    overwrite: bool = False,
) -> int:
    """Draws up to `sample` points that match, chosen at random, to `out`, which ends in .png or .html. Returns how many.

    color, label: payload fields (paths with dots): by which points are coloured, and which is shown for each (default: all).
    PNG needs matplotlib. Raises AlreadyExists, InvalidInput, InvalidFilter, StorageError, Unsupported.
    """
    path = os.fspath(out)
    ending = os.path.splitext(path)[1].lower()
    if ending not in (".png", ".html"):
        raise InvalidInput(f"{path}: its name is to end in .png or .html")
    if os.path.exists(path) and not overwrite:
        raise AlreadyExists(f"{path} exists; --overwrite replaces it")
    info = collection.info()
    if field is None and len(info.fields) > 1:
        raise InvalidInput(f"say which field: {', '.join(info.fields)}")
    name = field or next(iter(info.fields))
    points = [point for point in collection.sample(sample, where=where) if name in point.vectors]
    if len(points) < 3:
        raise InvalidInput(f"a picture needs three points that have field {name!r}; there are {len(points)}")
    vectors = np.stack([np.asarray(point.vectors[name], np.float32) for point in points])
    if info.fields[name].metric == "cosine":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-30)
    plane = project(vectors, method)
    colours = (
        _colours([_at(point, color) for point in points]) if color is not None else _Colours([_COLORS[0]] * len(points), [])
    )
    title = f"{info.name}: {len(points):,} of {info.rows:,} points" + (f", by {color}" if color else "")
    axes = "UMAP" if plane.explained is None else f"PCA: these two axes have {plane.explained:.0%} of the variance"
    try:
        if ending == ".png":
            _png(path, plane, colours, title, axes)
        else:
            labels = [_text(point, label) for point in points]
            with open(path, "w", encoding="utf-8") as file:
                file.write(_page(plane, colours, labels, title, axes))
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}", file=path) from error
    return len(points)


def _at(point: Point, path: str) -> Any:
    value: Any = point.payload
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _text(point: Point, label: str | None) -> str:
    said = point.payload if label is None else _at(point, label)
    text = said if isinstance(said, str) else orjson.dumps(said).decode()
    return f"{point.id}\n{text if len(text) <= _SHOWN else text[:_SHOWN] + '…'}"


@dataclass(frozen=True)
class _Colours:
    """of: each point's. legend: (colour, what it stands for)."""

    of: list[str]
    legend: list[tuple[str, str]]


def _colours(values: list[Any]) -> _Colours:
    """Numbers along a ramp, all else by the most frequent values; grey is for the others and for none."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if numbers and len(set(numbers)) > len(_COLORS) and len(numbers) == sum(value is not None for value in values):
        low, high = float(min(numbers)), float(max(numbers))
        of = [_COLORS[-1] if value is None else _on_ramp((value - low) / (high - low)) for value in values]
        marks = [low + share * (high - low) for share in (0, 0.25, 0.5, 0.75, 1)]
        legend = [(_on_ramp(share), f"{mark:,.4g}") for share, mark in zip((0, 0.25, 0.5, 0.75, 1), marks, strict=True)]
        return _Colours(of, [*legend, *([(_COLORS[-1], "none")] if len(numbers) < len(values) else [])])
    said = [None if value is None else value if isinstance(value, str) else orjson.dumps(value).decode() for value in values]
    frequent = [value for value, _ in Counter(each for each in said if each is not None).most_common(len(_COLORS) - 1)]
    known = dict(zip(frequent, _COLORS, strict=False))
    legend = [(known[value], value if len(value) < 40 else value[:40] + "…") for value in frequent]
    if any(value not in known for value in said):
        legend.append((_COLORS[-1], "others, or none"))
    return _Colours([known.get(value, _COLORS[-1]) for value in said], legend)  # type: ignore[arg-type]


def _on_ramp(share: float) -> str:
    at = min(max(share, 0.0), 1.0) * (len(_RAMP) - 1)
    low = min(int(at), len(_RAMP) - 2)
    mixed = [round(a + (b - a) * (at - low)) for a, b in zip(_RAMP[low], _RAMP[low + 1], strict=True)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _png(path: str, plane: Plane, colours: _Colours, title: str, axes: str) -> None:
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError:
        raise Unsupported('pictures need matplotlib: pip install "vecdb[plot]"; an .html page needs nothing') from None
    figure = Figure(figsize=(9, 7), layout="constrained")
    plot = figure.add_subplot(title=title.replace("$", r"\$"), xlabel=axes)
    size = max(2.0, min(24.0, 20_000 / len(plane.xy)))
    plot.scatter(plane.xy[:, 0], plane.xy[:, 1], s=size, c=colours.of, linewidths=0, alpha=0.8)
    plot.set_xticks([])
    plot.set_yticks([])
    if colours.legend:
        # matplotlib reads mathematics between dollars, and hides what begins with an underscore.
        texts = [(colour, ("\u200b" + said).replace("$", r"\$")) for colour, said in colours.legend]
        marks = [Line2D([], [], marker="o", linestyle="", color=colour, label=text) for colour, text in texts]
        plot.legend(handles=marks, loc="best", fontsize=8)
    figure.savefig(path, dpi=120)


def _page(plane: Plane, colours: _Colours, labels: list[str], title: str, axes: str) -> str:
    low, high = plane.xy.min(axis=0), plane.xy.max(axis=0)
    unit = (plane.xy - low) / np.where(high > low, high - low, 1)
    data = {
        "x": np.round(unit[:, 0], 5).tolist(), "y": np.round(unit[:, 1], 5).tolist(), "colours": colours.of, "labels": labels,
        "legend": colours.legend, "title": title, "axes": axes,
    }  # fmt: skip
    # "<" is written as an escape, so that no text of the user's can end the script.
    return _PAGE.replace("DATA", orjson.dumps(data).decode().replace("<", "\\u003c"), 1)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>vecdb map</title>
<style>
body { margin: 0; font: 14px/1.4 system-ui, sans-serif; background: #fff; color: #222 }
header, footer { padding: .6em 1em } h1 { font-size: 1.1em; margin: 0 } footer { color: #777 }
#legend span { margin-right: 1em; white-space: nowrap } #legend i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .3em }
canvas { display: block; width: 100vw; height: 75vh; cursor: crosshair }
#tip { position: fixed; display: none; max-width: 32em; padding: .4em .6em; background: #222; color: #fff; border-radius: 4px; white-space: pre-wrap; overflow-wrap: anywhere; pointer-events: none }
@media (prefers-color-scheme: dark) { body { background: #161616; color: #ddd } }
</style></head><body>
<header><h1 id="title"></h1><div id="legend"></div></header>
<canvas id="plane"></canvas><footer id="axes"></footer><div id="tip"></div>
<script>
const d = DATA;
const canvas = document.getElementById("plane"), tip = document.getElementById("tip"), pen = canvas.getContext("2d");
document.getElementById("title").textContent = d.title;
document.getElementById("axes").textContent = d.axes + ". Scroll to zoom, drag to move.";
for (const [colour, said] of d.legend) {
  const span = document.createElement("span"), dot = document.createElement("i");
  dot.style.background = colour; span.append(dot, said); document.getElementById("legend").append(span);
}
let zoom = 1, left = 0, top_ = 0, held = null;
const n = d.x.length, radius = Math.max(1.5, Math.min(5, 60 / Math.sqrt(n)));
const px = i => 12 + (d.x[i] - left) * zoom * (canvas.clientWidth - 24), py = i => 12 + (1 - d.y[i] - top_) * zoom * (canvas.clientHeight - 24);
function paint() {
  const scale = window.devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale; canvas.height = canvas.clientHeight * scale;
  pen.scale(scale, scale); pen.globalAlpha = .8;
  for (let i = 0; i < n; i++) { pen.fillStyle = d.colours[i]; pen.beginPath(); pen.arc(px(i), py(i), radius, 0, 7); pen.fill(); }
}
canvas.onmousemove = e => {
  if (held) { left -= (e.clientX - held[0]) / zoom / canvas.clientWidth; top_ -= (e.clientY - held[1]) / zoom / canvas.clientHeight; held = [e.clientX, e.clientY]; paint(); return; }
  const box = canvas.getBoundingClientRect(); let best = 100, at = -1;
  for (let i = 0; i < n; i++) { const dx = px(i) - e.clientX + box.left, dy = py(i) - e.clientY + box.top, r = dx * dx + dy * dy; if (r < best) { best = r; at = i; } }
  tip.style.display = at < 0 ? "none" : "block";
  if (at >= 0) { tip.textContent = d.labels[at]; tip.style.left = Math.min(e.clientX + 12, innerWidth - tip.offsetWidth - 8) + "px"; tip.style.top = Math.min(e.clientY + 12, innerHeight - tip.offsetHeight - 8) + "px"; }
};
canvas.onmousedown = e => { held = [e.clientX, e.clientY]; tip.style.display = "none"; };
window.onmouseup = () => held = null; canvas.onmouseleave = () => tip.style.display = "none";
canvas.onwheel = e => {
  e.preventDefault(); const box = canvas.getBoundingClientRect(), next = Math.max(1, Math.min(200, zoom * Math.exp(-e.deltaY / 400)));
  const fx = (e.clientX - box.left - 12) / (canvas.clientWidth - 24), fy = (e.clientY - box.top - 12) / (canvas.clientHeight - 24);
  left += fx / zoom - fx / next; top_ += fy / zoom - fy / next; zoom = next; if (zoom === 1) left = top_ = 0; paint();
};
window.onresize = paint; paint();
</script></body></html>
"""  # noqa: E501
