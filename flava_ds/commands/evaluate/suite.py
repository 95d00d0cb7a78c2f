"""`evaluate --suite`: every task of a kind whose data is there, and a page of the paper's tables."""

from __future__ import annotations

import argparse

from flava_ds.commands.evaluate.common import model_facts, of_step, open_asked, teller, workplace
from flava_ds.errors import UserError
from flava_ds.plain_text import without_secrets


def run_suite(options: argparse.Namespace) -> int:
    """Runs a suite, and prints its table and where its files are. Ranks that a launcher started share the
    work; the first one prints and writes.

    Raises: UserError.
    """
    from flava_ds.evaluation import suite
    from flava_ds.evaluation.feature_cache import FeatureCache
    from flava_ds.evaluation.shares import launched
    from flava_ds.report.suite_page import not_run, tables_as_markdown, write_pages

    if options.split is not None:
        raise UserError("--split is for --task; a suite reports on each data set's test split")
    if not options.data.is_dir():
        raise UserError(f"--data {options.data}: no such folder; --list says what it holds")
    tasks = suite.with_splits(suite.members(options.suite), options.splits)
    with launched() as (share, device):
        tell = teller(share)
        if usual := suite.split_otherwise(tasks, options.splits):
            tell(f"not split as {options.splits}, but as usual: {', '.join(usual)}")
        opened = share.together(lambda: open_asked(options, device))
        parts = [options.suite, options.splits, options.limit and f"limit_{options.limit}"]
        out = options.out or of_step(opened, "suites", "_".join(filter(None, parts)))
        where = without_secrets(str(options.model))
        if out is None:
            raise UserError(f"{where}: is no run's folder, so a suite needs --out DIR for what it writes")
        facts = {
            **{"model": opened.described.name, "path": where, **model_facts(opened)},
            **{"data": str(options.data), "limit": options.limit, "splits": options.splits},
        }
        cache = FeatureCache(options.features or out / "features", opened.weights, tell)
        running = suite.Suite(options.suite, tasks, options.data, out, options.limit, facts, tell, share)
        place = workplace(options, opened, tell, out / "fine_tuning")
        report = running.run(lambda: opened.frozen(cache, share).at(place))
        if not any("scores" in result for result in report["tasks"].values()):
            raise UserError(
                f"{options.data}: no data of suite {options.suite} could be used; {out / suite.FILE} says "
                "why, and --list what is expected"
            )
        tell(f"\n{tables_as_markdown(report)}")
        tell(f"{len(not_run(report))} tasks were not run; the page says why for each")
        pages = share.from_main(lambda: write_pages(report, out))
        if share.is_main:
            print(*(out / suite.FILE, *pages), sep="\n")
    return 0
