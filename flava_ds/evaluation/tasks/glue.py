"""GLUE's data sets of single sentences and pairs, fine-tuned as in the paper; SST-2 also as a frozen probe,
which is another protocol and reads lower.
"""

from flava_ds.evaluation.datasets.glue import Glue
from flava_ds.evaluation.probe import TextProbe
from flava_ds.evaluation.tuning.fine_tuning import TextFineTuning
from flava_ds.evaluation.tuning.goals import Classes, Goal, Regression
from flava_ds.evaluation.tuning.recipe import Recipe, glue


def tuned(data: Glue, goal: Goal, recipe: Recipe, also: tuple[str, ...] = ()) -> TextFineTuning:
    """Returns a data set's task, whose checkpoint is chosen on the first split."""
    return TextFineTuning(f"glue_{data.name}", data, goal, recipe, chosen_on=data.splits[:1], also=also)


SST2 = Glue(
    name="sst2",
    folder="SST-2",
    licence="that of the Stanford Sentiment Treebank, which states none; research use is customary",
    origin="by hand: SST-2.zip (7 MB) from the GLUE page, unpacked",
    texts=("sentence",),
    label="label",
    class_names=("negative", "positive"),
)
TASKS = (
    # CoLA: is a sentence acceptable English? Its published file names no columns.
    tuned(
        Glue(
            name="cola",
            folder="CoLA",
            licence="none stated: sentences quoted from linguists' publications, for research",
            origin="by hand: CoLA.zip (0.4 MB) from the GLUE page, unpacked",
            has_header=False,
            names=("source", "acceptable", "as marked by its author", "sentence"),
            texts=("sentence",),
            label="acceptable",
            class_names=("unacceptable", "acceptable"),
        ),
        Classes(("matthews",)),
        glue(samples=8551, batch_size=16, lr=1e-5, updates=5336, warmup_updates=320),
    ),
    # MNLI: does a sentence follow from another one? The mean of matched and mismatched genres.
    tuned(
        Glue(
            name="mnli",
            folder="MNLI",
            licence="the OANC's, with parts under CC BY 3.0 and CC BY-SA 3.0",
            origin="by hand: MNLI.zip (313 MB) from the GLUE page, unpacked",
            texts=("sentence1", "sentence2"),
            label="gold_label",
            labels=("contradiction", "neutral", "entailment"),
            splits=("dev_matched", "dev_mismatched", "train"),
        ),
        Classes(),
        glue(samples=392_702, batch_size=32, lr=1e-5, updates=123_873, warmup_updates=7432),
        also=("dev_matched", "dev_mismatched"),
    ),
    # MRPC: do two sentences of the news say the same?
    tuned(
        Glue(
            name="mrpc",
            folder="MRPC",
            licence="Microsoft's terms for its Research Paraphrase Corpus",
            origin="by hand: Microsoft's Research Paraphrase Corpus (1.5 MB), cut into train.tsv and dev.tsv "
            "by GLUE's download script",
            texts=("#1 String", "#2 String"),
            label="Quality",
            class_names=("different", "paraphrase"),
        ),
        Classes(("f1", "accuracy_and_f1")),
        glue(samples=3668, batch_size=16, lr=1e-5, updates=2296, warmup_updates=137),
    ),
    # QNLI: does a sentence of an encyclopaedia answer a question?
    tuned(
        Glue(
            name="qnli",
            folder="QNLI",
            licence="CC BY-SA 4.0, SQuAD's",
            origin="by hand: QNLIv2.zip (11 MB) from the GLUE page, unpacked",
            texts=("question", "sentence"),
            label="label",
            labels=("entailment", "not_entailment"),
        ),
        Classes(),
        glue(samples=104_743, batch_size=32, lr=1e-5, updates=33_112, warmup_updates=1986),
    ),
    # QQP: do two questions ask the same? Lines without six columns are left out.
    tuned(
        Glue(
            name="qqp",
            folder="QQP",
            licence="Quora's terms of service: not for commercial use",
            origin="by hand: QQP-clean.zip (42 MB) from the GLUE page, unpacked",
            texts=("question1", "question2"),
            label="is_duplicate",
            class_names=("different", "duplicate"),
            drops_short_lines=True,
        ),
        Classes(("f1", "accuracy_and_f1")),
        glue(samples=363_846, batch_size=32, lr=1e-5, updates=113_272, warmup_updates=28_318),
    ),
    # RTE: does a sentence follow from a passage? One of its 277 samples is 0.36 points.
    tuned(
        Glue(
            name="rte",
            folder="RTE",
            licence="none stated; research use is customary",
            origin="by hand: RTE.zip (0.7 MB) from the GLUE page, unpacked",
            texts=("sentence1", "sentence2"),
            label="label",
            labels=("entailment", "not_entailment"),
        ),
        Classes(),
        glue(samples=2490, batch_size=16, lr=2e-5, updates=2036, warmup_updates=122),
    ),
    # SST-2: is a sentence of a film review positive?
    tuned(SST2, Classes(), glue(samples=67_349, batch_size=32, lr=1e-5, updates=20_935, warmup_updates=1256)),
    TextProbe("sst2_probe", SST2),
    # STS-B: how alike are two sentences, from 0 to 5?
    tuned(
        Glue(
            name="stsb",
            folder="STS-B",
            licence="by source, in the folder's LICENSE.txt",
            origin="by hand: STS-B.zip (0.8 MB) from the GLUE page, unpacked",
            texts=("sentence1", "sentence2"),
            label="score",
            labels=(),
            highest=5.0,
        ),
        Regression(highest=5.0),
        glue(samples=5749, batch_size=16, lr=2e-5, updates=3598, warmup_updates=214),
    ),
)
