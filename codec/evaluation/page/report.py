"""An evaluation as a page to read and listen to: tables, plots, players with spectrograms, every file.

The page needs nothing from elsewhere and opens from disk. It is plain HTML; its script sorts and filters the table of
files, marks tables that go on beyond their edge, opens linked examples, and sees to it that one player plays at a time.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from codec.evaluation.page import plots
from codec.evaluation.page import results as shown
from codec.evaluation.results import Results, Row
from codec.files import write_text


def write_report(results: Results, rows: Sequence[Row], folder: Path) -> Path:
    """Make ``folder/index.html``, and spectrograms beside the audio of the examples in ``folder``; returns the page's path.

    ``rows`` hold what ``per_file.csv`` does, which the page links to.
    """
    import jinja2

    from codec.evaluation.page.spectrograms import draw_examples  # by torch, which takes seconds to import

    loader = jinja2.PackageLoader("codec.evaluation.page", "")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (plots.number, plots.percent, plots.plural, plots.duration, shown.interval, shown.under)
    environment.filters |= {function.__name__: function for function in filters} | {"thousands": "{:,}".format}
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    style, script = (Path(__file__).with_name(name).read_text("utf-8") for name in ("report.css", "report.js"))
    page = environment.get_template("page.html.j2").render(
        results=results,
        style=style,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        listening=draw_examples(results, rows, folder),
        systems=shown.by_bitrate(results.systems),
        sources=list(dict.fromkeys(source for system in results.systems for source in system.by_source)),
        has_intervals=any(result.low is not None for system in results.systems for result in system.results.values()),
        quality=shown.quality_metrics(results),
        plots=shown.quality_plots(results),
        spectrum_plots=shown.spectrum_plots(results),
        coverage_plot=shown.coverage_plot(results.health.stages) if results.health else None,
        failures=shown.failures(results),
        data=shown.file_data(results, rows),
        arrows=shown.ARROWS,
    )
    target = folder / "index.html"
    write_text(target, page)
    return target
