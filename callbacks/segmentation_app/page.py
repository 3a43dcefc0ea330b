"""The page itself: fields, buttons, what they call, and the server."""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from callbacks.label_maps import OPACITY
from callbacks.segmentation_app.segment import Classes, MaskSource, Segmentation, Segmenter, find_regions, segment
from callbacks.segmentation_app.views import VIEWS, View, area_table, download_link, drawn, legend_of
from lightning_modules.corrclip.prompts import read_lines

if TYPE_CHECKING:
    from gradio import Blocks

KEPT = 16  # lists of classes whose texts stay encoded
HOUR = 3600  # seconds that pictures and results of a visitor are kept
FONTS = ["system-ui", "sans-serif"]  # the browser's own: nothing is fetched from elsewhere
CSS = """
.found table {border-collapse: collapse; width: 100%}
.found :is(table, tr, th, td) {border: none !important}
.found :is(th, td) {text-align: right; padding: .3em .6em; white-space: nowrap;
  box-shadow: 0 1px var(--border-color-primary)}
.found :is(th, td):first-child {text-align: left; white-space: normal; overflow-wrap: anywhere}
.found td i {display: inline-block; width: 1em; height: 1em; margin-right: .6em; vertical-align: -.12em;
  border: 1px solid var(--border-color-primary)}
.found tbody {font-variant-numeric: tabular-nums}
.found p {margin: .6em 0}
.found .file {display: inline-block; margin-top: .6em; padding: .5em 1em; border-radius: var(--button-large-radius);
  background: var(--button-secondary-background-fill); color: var(--button-secondary-text-color); text-decoration: none}
.scale {display: flex; gap: .8em; align-items: center; font-variant-numeric: tabular-nums}
.scale i {flex: 1; max-width: 24em; height: 1em}
.hint {opacity: .7; padding: 3em 1em; text-align: center;
  border: 1px dashed var(--border-color-primary); border-radius: var(--block-radius)}
.mistake {padding: .7em 1em; border-left: 4px solid #d7301f; background: #fdebe8; color: #222222}
"""
INTRODUCTION = "# Segment a picture by words\nDrop a picture, type what to look for, press **Segment**."
HINT = '<div class="hint">The segmented picture will be here.</div>'
TYPED = "One a line, or with commas between; other names of a class after a semicolon"
EXAMPLE = "cat; kitten\ngrass\nsky"


class Session:
    """A model, its classes and its masks as the page uses them.

    Args:
        model: It has ``segmenter``, see ``segment.Segmenter``, and ``prompt``, from class lines to ``segment.Classes``.
        source: What splits a picture into regions; None = nothing does.
        lines: Classes that stand in the field at first; one that stays as it is keeps its commas.
    """

    def __init__(self, model: Any, source: MaskSource | None, lines: Sequence[str] = ()) -> None:
        self.segmenter: Segmenter = model.segmenter
        self.source, self.lines = source, lines
        self._prompt = lru_cache(KEPT)(lambda lines: model.prompt(list(lines)))

    def prompt(self, lines: Sequence[str]) -> Classes:
        """The classes of some lines; the texts of the last lists are not encoded again."""
        classes: Classes = self._prompt(tuple(lines))
        return classes

    def answer(self, picture: str | None, typed: str) -> tuple[Segmentation | None, str]:
        """What is found, or None and one sentence on what went wrong."""
        try:
            return segment(self.segmenter, self.prompt, self.source, picture, typed, self.lines), ""
        except (ValueError, OSError, ImportError) as error:  # with the cure in it
            return None, str(error)
        except Exception as error:
            logging.getLogger(__name__).exception("The page could not segment a picture.")
            first = (str(error).splitlines() or [""])[0]
            return None, f"The picture was not segmented ({type(error).__name__}: {first}). The terminal shows where."


def page(session: Session) -> Blocks:
    """The page; ``launch`` of the result serves it.

    Args:
        session: What segments.

    Raises:
        ImportError: Gradio is not installed.
    """
    gr = gradio()

    def run(picture: str | None, typed: str, view: View, opacity: float) -> Iterator[dict[Any, Any]]:
        yield {message: complaint("")}  # of the last try
        found, mistake = session.answer(picture, typed)
        changes = {
            state: found,
            message: complaint(mistake),
            hint: gr.HTML(visible=found is None),
            results: gr.Column(visible=found is not None),
        }
        if found is None:
            yield changes
            return
        largest = int(np.bincount(found.labels.ravel()).argmax())
        choices = [(name, number) for number, name in enumerate(found.names)]
        changes[chosen] = gr.Dropdown(choices=choices, value=largest, visible=view == "Heatmap")
        changes[areas] = area_table(found) + download_link(found)
        yield changes | shown(found, view, largest, opacity)

    def redraw(found: Segmentation | None, view: View, number: int, opacity: float) -> dict[Any, Any]:
        if found is None:
            return {message: complaint("The result is not kept any longer. Press Segment again.")}
        return {chosen: gr.Dropdown(visible=view == "Heatmap"), **shown(found, view, number, opacity)}

    def shown(found: Segmentation, view: View, number: int, opacity: float) -> dict[Any, Any]:
        words = legend_of(found, view, number)
        return {output: drawn(found, view, number, opacity), legend: gr.HTML(words, visible=bool(words))}

    def complaint(mistake: str) -> Any:
        return gr.HTML(f'<div class="mistake" role="alert">{html.escape(mistake)}</div>', visible=bool(mistake))

    with gr.Blocks(title="CLIP segmentation", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as blocks:
        state = gr.State(time_to_live=HOUR)
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(label="Picture", sources=["upload", "clipboard"], height=300)
                # the file as it is: Gradio would decode it, and show "Error" where it cannot
                picture.preprocess = lambda payload: None if payload is None else payload.path
                typed = gr.Textbox(
                    "\n".join(session.lines), label="Classes", info=TYPED, lines=5, max_lines=8, placeholder=EXAMPLE
                )
                button = gr.Button("Segment", variant="primary")
                message = gr.HTML(visible=False)
            with gr.Column(scale=3, min_width=300):
                hint = gr.HTML(HINT)
                with gr.Column(visible=False) as results:
                    view = gr.Radio(VIEWS, value=VIEWS[0], label="Show")
                    chosen = gr.Dropdown(label="Heatmap of", visible=False)
                    output = gr.Image(
                        elem_id="result",
                        label="Result",
                        format="png",
                        interactive=False,
                        buttons=["download", "fullscreen"],
                    )
                    legend = gr.HTML(visible=False, elem_classes="found")
                    opacity = gr.Slider(0, 1, value=OPACITY, step=0.05, label="Opacity of the colours")
                    areas = gr.HTML(elem_classes="found")
        everything = [state, message, hint, results, chosen, areas, output, legend]
        button.click(run, [picture, typed, view, opacity], everything, show_progress_on=[hint, output])
        for change in (view.input, chosen.input, opacity.release):
            change(redraw, [state, view, chosen, opacity], [message, chosen, output, legend], show_progress="hidden")
    return blocks


def gradio() -> Any:
    """The library, kept from reporting that it is used.

    Raises:
        ImportError: It is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as library
    except ImportError as error:
        raise ImportError("The page needs Gradio, which is not here. Run: pip install 'clip-suite[app]'") from error
    return library


def launch(blocks: Blocks, port: int, share: bool = False) -> str:
    """Serve a page and return at once.

    Args:
        blocks: The page.
        port: On this machine; other machines do not reach it.
        share: Also through a public address of Gradio's makers, for a week at most.

    Returns:
        The address.

    Raises:
        OSError: The port is taken.
    """
    gr = gradio()
    options: dict[str, Any] = {"css": CSS, "theme": gr.themes.Default(font=FONTS, font_mono=["monospace"])}
    options |= {"footer_links": [], "run_history": False, "ssr_mode": False, "quiet": True}
    try:
        _, local, public = blocks.launch(server_port=port, share=share, prevent_thread_lock=True, **options)
    except (OSError, OverflowError) as error:
        raise OSError(f"Port {port} cannot be used, or another program has it. Choose one with --port.") from error
    return public or local


def first_lines(model: Any, datamodule: Any) -> list[str]:
    """The classes that stand in the field at first.

    Args:
        model: Its hyperparameter ``class_lines`` counts where there is one: a list, or a file with one class a line.
        datamodule: Else its ``class_lines``; none of a data set that is not here.

    Raises:
        FileNotFoundError: There is no such file.
    """
    given = model.hparams.get("class_lines")
    if given is not None:
        return read_lines(given) if isinstance(given, str) else list(given)
    try:
        return list(getattr(datamodule, "class_lines", []))
    except OSError:
        return []


def serve(model: Any, datamodule: Any, device: torch.device, port: int = 7860, share: bool = False) -> None:
    """Load a model and serve its page until it is interrupted; see :func:`first_lines` for what stands in its field.

    Args:
        model: After ``configure_model`` it has what ``Session`` needs; ``place`` brings its networks to a device.
        datamodule: Its ``masks`` splits pictures; None = nothing does.
        device: Where the model computes.
        port: See :func:`launch`.
        share: See :func:`launch`.

    Raises:
        FileNotFoundError: The model's file of class lines does not exist.
        ValueError: The model does not segment by words, or the mask source serves known files only.
    """
    gradio()
    if not hasattr(model, "prompt"):
        raise ValueError(f"{type(model).__name__} does not segment by words. Use a configuration of configs/corrclip.")
    lines = first_lines(model, datamodule)
    model.configure_model()
    model.place(device)
    source = getattr(datamodule, "masks", None)
    find_regions(source, torch.full((3, 64, 64), 128, dtype=torch.uint8))  # weights that are missing are missed now
    blocks = page(Session(model, source, lines))
    print(f"The page is at {launch(blocks, port, share)} (Ctrl-C ends it).")
    blocks.block_thread()
