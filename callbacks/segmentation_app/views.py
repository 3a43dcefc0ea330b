"""How the page shows what was found: pictures, legends, the table and the file of a ``Segmentation``."""

from __future__ import annotations

import base64
import html
import io
from typing import Literal

import numpy as np
from PIL import Image

from callbacks.box_pictures import COLOUR_MAP
from callbacks.label_maps import class_colours, fitted, indexed_picture, label_picture, region_colours
from callbacks.segmentation_app.segment import Segmentation
from callbacks.segmentation_writer import SMALL, area_record, percent

View = Literal["Classes", "Regions", "Heatmap"]
VIEWS: tuple[View, ...] = ("Classes", "Regions", "Heatmap")
STOPS = 9  # colours that a gradient is drawn from


def drawn(found: Segmentation, view: View, number: int, opacity: float) -> Image.Image:
    """The picture below what was found.

    Args:
        found: Of a picture.
        view: Classes, regions (striped where there is none), or the heatmap of a class.
        number: Of the class of the heatmap.
        opacity: Of the colours, 0 to 1.

    Returns:
        Longest side at least 640 pixels, so that a small picture can be looked at.
    """
    side = max(SMALL, *found.labels.shape)
    if view == "Classes":
        return label_picture(found.labels, class_colours(found.names), side, found.image, opacity)
    if view == "Regions":
        return label_picture(found.regions - 1, region_colours(found.regions.max()), side, found.image, opacity)
    height, width = found.labels.shape
    size = fitted((width, height), side)
    low, high = heat_range(found, number)
    stretched = (found.heat[number] - low) / max(high - low, 1e-12)
    smooth = np.asarray(Image.fromarray(stretched).resize(size, Image.Resampling.BILINEAR))
    below = Image.fromarray(found.image).resize(size, Image.Resampling.BICUBIC)
    return Image.blend(below, Image.fromarray(heat_colours(smooth)), opacity)


def heat_range(found: Segmentation, number: int) -> tuple[float, float]:
    """Lowest and highest similarity of a class in the picture, where its colours begin and end."""
    return float(found.heat[number].min()), float(found.heat[number].max())


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Colours (..., 3) uint8 of values from 0 to 1."""
    from matplotlib import colormaps

    colours: np.ndarray = colormaps[COLOUR_MAP](values, bytes=True)[..., :3]
    return colours


def legend_of(found: Segmentation, view: View, number: int) -> str:
    """What the colours mean, as HTML."""
    if view == "Regions":
        return f"<p>{regions_in_words(found)}</p>"
    if view == "Classes":
        return ""  # the table of areas has them
    low, high = heat_range(found, number)
    colours = ", ".join("#" + bytes(colour).hex() for colour in heat_colours(np.linspace(0, 1, STOPS)))
    return (
        f"<p>Similarity to <b>{html.escape(found.names[number])}</b>, the cosine of picture and text:</p>"
        f'<div class="scale"><span>{low:.3f}</span>'
        f'<i style="background: linear-gradient(to right, {colours})"></i><span>{high:.3f}</span></div>'
    )


def regions_in_words(found: Segmentation) -> str:
    """How many regions there are, and whose."""
    if found.source is None:
        return "No regions: the configuration has no mask source."
    count = int(found.regions.max())
    bare = float((found.regions == 0).mean())
    rest = f"; {percent(bare)} of the picture is in none" if bare else ""
    of_whom = f"{count} region{'' if count == 1 else 's'} by {html.escape(found.source)}{rest}."
    return f"{of_whom} The colours only tell neighbours apart."


def area_table(found: Segmentation) -> str:
    """The classes that occur with their colours and areas, the largest first, and what else is to know, as HTML."""
    areas = area_record("", found.labels, found.names)["areas"]
    colours = dict(zip(found.names, class_colours(found.names).tolist(), strict=True))
    rows = [
        f'<tr><td><i style="background: rgb{tuple(colours[area["class"]])}"></i>{html.escape(area["class"])}</td>'
        f"<td>{html.escape(percent(area['share']))}</td><td>{area['pixels']:,}</td></tr>"
        for area in sorted(areas, key=lambda area: -area["pixels"])
    ]
    head = "<tr><th>class</th><th>share</th><th>pixels</th></tr>"
    seen = {area["class"] for area in areas}
    notes = []
    if missing := ", ".join(name for name in found.names if name not in seen):
        notes.append(f"Not found: {html.escape(missing)}.")
    height, width = found.labels.shape
    if found.stored != (width, height):
        notes.append("The picture of {} x {} pixels was shrunk to {} x {}.".format(*found.stored, width, height))
    words = "".join(f"<p>{note}</p>" for note in notes)
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>{words}"


def download_link(found: Segmentation) -> str:
    """A link to the label map as a PNG whose pixels are the classes, with the file in it, as HTML."""
    file = io.BytesIO()
    indexed_picture(found.labels, class_colours(found.names)).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<a class="file" download="labels.png" href="data:image/png;base64,{data}">Download the label map (PNG)</a>'
