"""README.md and docs/demo.md: what the demo reached, the time of a step, pictures."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from blocks import markdown_table, read_results
from flava_ds.demo.evaluation.summary import rows as metric_rows
from flava_ds.evaluation.table import percent

IMPLEMENTATIONS = {
    "flava_ds": "flava_ds, packed",
    "huggingface": "Hugging Face, padded to 77",
    "huggingface-keeping": "the same, keeping freed memory as we do",
    "huggingface-longest": "Hugging Face, padded to the longest",
}

WORKS = {"ten_minutes": "ten minutes", "hour": "an hour"}
"""The demos that are compared, by their works."""

IN_SHORT = (
    "zero-shot concept, flat style, top-1",
    "zero-shot concept, flat style, top-5",
    "zero-shot concept, high contrast, top-5",
    "zero-shot, concepts never seen, top-5",
    "caption to image, unseen style, R@5",
    "image to caption, unseen style, R@5",
    "masked tokens of pairs (MMM)",
    "masked patches of pairs (MMM)",
    "match or random mismatch (ITM)",
)
"""The rows of the README's table."""

LENGTHS = {"full": "all of 77 tokens", "demo": "the demo's"}


def in_short(root: Path) -> str:
    """Compares a few held-out metrics of the demos, and counts the gates that they passed."""
    summaries = {words: read_results(root, f"demo_{work}") for work, words in WORKS.items()}
    measured = [
        {label: numbers for label, *numbers in metric_rows(summary)} for summary in summaries.values()
    ]
    lines = []
    for label in IN_SHORT:
        _, chance, pixels = measured[0][label]
        lines.append(
            [label, percent(chance), percent(pixels), *(percent(found[label][0]) for found in measured)]
        )
    passed = [
        f"{sum(gate['passed'] for gate in summary['gates'])} of {len(summary['gates'])} in {words}"
        for words, summary in summaries.items()
    ]
    header = ["held-out data", "chance", "nearest neighbour on pixels", *summaries]
    return f"{markdown_table(header, lines)}\n\nQuality gates passed: {', '.join(passed)}."


def demo(root: Path, work: str) -> str:
    """Writes a demo's held-out metrics, gates, phases and machine from demo_<work>.json, which
    benchmarks/demo.py makes.
    """
    summary = read_results(root, f"demo_{work}")
    gates = [
        [gate["what"], gate["value"], gate["wanted"], "yes" if gate["passed"] else "**no**"]
        for gate in summary["gates"]
    ]
    metrics = [[label, *map(percent, numbers)] for label, *numbers in metric_rows(summary)]
    phases = ", ".join(f"{phase['name']} {phase['seconds']:.0f} s" for phase in summary["phases"])
    machine = summary["machine"]
    results = markdown_table(["held-out data", "value", "chance", "nearest neighbour on pixels"], metrics)
    return (
        f"{results}\n\n"
        f"{markdown_table(['gate', 'result', 'wanted', 'reached'], gates)}\n\n"
        f"{summary['steps']} steps of {summary['recipe']} in {summary['precision']} on {summary['ranks']} "
        f"ranks, {summary['seconds'] / 60:.1f} minutes in all ({phases}); "
        f"{machine['cores']} cores of {machine['processor']}, torch {machine['torch']}, "
        f"deepspeed {machine['deepspeed']}.\n"
    )


def drawing(root: Path) -> str:
    """Compares how often the model finds a caption again by what it drew, from drawing.json."""
    lines = []
    for run in read_results(root, "drawing"):
        numbers = [
            run["metrics"][f"drawing/{what}/image_to_text_recall_at_{k}"]
            for what in ("drawn", "codes", "picture")
            for k in (1, 5)
        ]
        chance = run["metrics"]["drawing/drawn/image_to_text_recall_at_5/chance"]
        lines.append([run["run"], *map(percent, numbers), percent(chance)])
    names = ("drawn", "codes of the true picture", "the true picture")
    columns = [f"{name}, R@{k}" for name in names for k in (1, 5)]
    return markdown_table(["run", *columns, "chance, R@5"], lines)


def writing(root: Path) -> str:
    """Compares how often the model finds a picture again by what it wrote, from drawing.json, where runs
    that were scored before there were captions have none.

    Raises: FileNotFoundError while no run has captions.
    """
    last = "writing/written/names_the_concept"
    scored = [run for run in read_results(root, "drawing") if last in run["metrics"]]
    if not scored:
        raise FileNotFoundError(2, "no captions in it", "drawing.json")
    lines = []
    for run in scored:
        numbers = [
            run["metrics"][f"writing/{what}/{number}"]
            for what in ("written", "caption")
            for number in ("text_to_image_recall_at_1", "text_to_image_recall_at_5", "names_the_concept")
        ]
        chance = run["metrics"]["writing/written/text_to_image_recall_at_5/chance"]
        lines.append([run["run"], *map(percent, numbers), percent(chance)])
    columns = [f"{name}, {what}" for name in ("written", "true") for what in ("R@1", "R@5", "names it")]
    return markdown_table(["run", *columns, "chance, R@5"], lines)


def step(root: Path) -> str:
    """Writes the time and memory of one step of each kind against Hugging Face's FLAVA, from
    step_vs_huggingface.json.
    """
    measured = [row for row in steps(root) if row["model"] == "flava"]
    found = [row for row in measured if row["machine"] == measured[0]["machine"]]
    rows = []
    for row in found:
        seconds = [f"{row['seconds'][kind]:.2f}" for kind in ("pair", "image", "text")]
        cells = [LENGTHS[row["lengths"]], IMPLEMENTATIONS[row["implementation"]]]
        rows.append([*cells, *seconds, ratio(row), f"{row['peak_mib']:.0f}"])
    header = ["captions", "implementation", "pair, s", "image, s", "text, s"]
    return (
        f"{markdown_table([*header, 'time over flava_ds', 'peak MiB'], rows)}\n\n"
        f"{how(found[0])}; `python benchmarks/step_vs_huggingface.py` repeats the measurement.\n"
        f"{elsewhere([row for row in measured if row not in found])}"
    )


def elsewhere(found: list[dict[str, Any]]) -> str:
    """Says in a sentence for each other machine how much longer Hugging Face, unmodified, took there."""
    theirs = [row for row in found if row["implementation"] == "huggingface"]
    return "".join(
        f"On {name} it takes "
        + " and ".join(
            f"{ratio(row)} times as long ({LENGTHS[row['lengths']]})"
            for row in theirs
            if row["machine"] == name
        )
        + ".\n"
        for name in dict.fromkeys(row["machine"] for row in theirs)
    )


def family_steps(root: Path) -> str:
    """Writes the time and memory of a step of the other families against their classes in transformers.

    Raises: FileNotFoundError while none is measured.
    """
    found = [row for row in steps(root) if row["model"] != "flava"]
    if not found:
        raise FileNotFoundError(2, "no other families in it", "step_vs_huggingface.json")
    found = [row for row in found if row["machine"] == found[0]["machine"]]
    rows = []
    for own in (row for row in found if row["implementation"] == "flava_ds"):
        [theirs] = [row for row in found if row["model"] == own["model"] and row is not own]
        memory = f"{own['peak_mib']:.0f}", f"{theirs['peak_mib']:.0f}"
        times = (f"{1e3 * row['total_seconds']:.0f}" for row in (own, theirs))
        rows.append([f"`{own['model']}`", *times, ratio(theirs), *memory])
    header = ["family", "flava_ds, ms", "transformers, ms", "time over flava_ds"]
    return (
        f"{markdown_table([*header, 'flava_ds, peak MiB', 'transformers, peak MiB'], rows)}\n\n"
        f"{how(found[0])}."
    )


def steps(root: Path) -> list[dict[str, Any]]:
    """Reads the measured steps."""
    return read_results(root, "step_vs_huggingface")["rows"]


def ratio(row: dict[str, Any]) -> str:
    """Formats how much longer it took than flava_ds."""
    low, high = row["time_over_flava_ds_range"]
    return f"{row['time_over_flava_ds']:.2f}" + (f" ({low:.2f} to {high:.2f})" if low != high else "")


def how(row: dict[str, Any]) -> str:
    """Says how a row was measured."""
    return (
        f"Batches of {row['batch']}, {row['threads']} threads of {row['machine']}, {row['rounds']} rounds, "
        f"torch {row['torch']}, transformers {row['transformers']}"
    )


def pictures(root: Path) -> str:
    """Shows the pictures under docs/images, each with the words of its file's name; nothing while there are
    none.
    """
    files = sorted(
        path for path in (root / "docs" / "images").glob("*") if path.suffix in (".png", ".svg", ".webp")
    )
    return "".join(f"![{path.stem.replace('_', ' ')}]({path.relative_to(root)})\n" for path in files)


BLOCKS = {
    "demo": in_short,
    **{f"demo_{work}": functools.partial(demo, work=work) for work in WORKS},
    "step": step,
    "family_steps": family_steps,
    "drawing": drawing,
    "writing": writing,
    "pictures": pictures,
}
