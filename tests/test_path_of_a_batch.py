"""A reader follows one batch downwards: from the command to device code in ten hops, each to the file that
the README names.
"""

import os
import re
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST_HOPS = 10
BEFORE_THE_RANK = ["flava_ds/cli.py", "flava_ds/ranks/launch.py"]
"""What runs in the user's process; tests/ranks/test_launch.py and test_cli.py have its commands."""


def files_to_the_kernel(folder: Path) -> list[str]:
    """Trains one step with our kernels and returns the project's files on the stack of the first attention
    launch.
    """
    from flava_kernels.triton_ops import attention

    from flava_ds import train
    from flava_ds.demo.dataset import unpack
    from flava_ds.recipes.demo import DATA

    unpack(DATA)
    found: list[list[str]] = []
    launch = attention.forward

    def noting(*arguments, **named):
        if not found:
            # a decorator is no hop: a reader sees it where the function is defined, and goes on there
            stack = [frame for frame in traceback.extract_stack()[:-1] if frame.name != "wrapper"]
            found.append([frame.filename for frame in stack])
        return launch(*arguments, **named)

    attention.forward = noting
    words = ["--name", "path", "--logging.run-directory", str(folder), "--logging.no-tensorboard"]
    words += ["--training.total-steps", "1", "--schedule.warmup-steps", "1", "--data.num-workers", "0"]
    for source in ("pair", "image", "text"):
        words += [f"--data.sources.{source}.global-batch-size", "4"]
    try:
        assert train.run(["flava_debug", *words]) == 0
    finally:
        attention.forward = launch
    files = [Path(name) for name in found[0]] + [Path(attention.__file__)]
    inside = [path.relative_to(ROOT) for path in files if path.is_relative_to(ROOT)]
    ours = [path.as_posix() for path in inside if path.parts[0] in ("flava_ds", "kernels")]
    return list(dict.fromkeys(ours))


@pytest.mark.triton
@pytest.mark.slow
def test_ten_hops_from_the_command_to_device_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLAVA_KERNELS", "triton")
    assert os.environ.get("TRITON_INTERPRET") == "1"
    path = [*BEFORE_THE_RANK, *files_to_the_kernel(tmp_path)]
    assert path[-1] == "kernels/flava_kernels/triton_ops/attention.py"
    assert len(path) - 1 <= MOST_HOPS, path
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## The path of one batch") :]
    told = re.findall(r"(?<![\w/])((?:flava_ds|kernels)/[\w/]+\.py)", section[: section.index("\n## ")])
    assert [name for name in told if name in path] == path, "the README's files, in order"
