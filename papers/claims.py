"""What the two papers claim, as data: a paraphrase, its place, its test, and what our runs show."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from rules import (
    All,
    Collapses,
    Differences,
    Line,
    MoreSeparable,
    OrdersReversed,
    PredictedShares,
    SameOrder,
    Test,
    Untested,
    WithinPoints,
    row,
)

AA = "autoattack"
taet = partial(row, "taet", "taet")
harl = partial(row, "taet", "harl")
at_bsl = partial(row, "taet", "at-bsl")
T = partial(row, "taet")
"""A run of TAET's paper, of any method."""
R = partial(row, "reat")
"""A run of REAT's paper."""
LAST_FIVE = (6, 10)
"""The classes of TAET's table 2: the five with the fewest training images."""
BODY_IN_TEXT, BODY_IN_CODE = (4, 6), (4, 7)
"""REAT's body classes of ten, by rank."""


@dataclass(frozen=True)
class Related:
    """Committed cards with other settings, compared in the same way; they decide nothing."""

    folder: str
    first: str
    second: str


@dataclass(frozen=True)
class Claim:
    """A statement of a paper."""

    paper: str
    says: str
    """No stronger than the paper puts it."""
    where: str
    test: Test
    seen: str
    """What our runs show, in a sentence; its numbers are those of the evidence."""
    beside: tuple[Test, ...] = ()
    """What else is measured on the same runs."""
    related: tuple[Related, ...] = ()


NO_RUNS = "No such runs yet."
MINI = "On ResNet-8 with a fifth of the images"
CPU = "On ResNet-8 with all images"

CLAIMS: Mapping[str, Claim] = {
    "C1": Claim(
        "TAET",
        "TAET has 5.31 points more balanced accuracy than AT-BSL under AutoAttack",
        "section 6.2, table 1",
        Differences(((taet(), at_bsl()),), {AA: 5.31}),
        f"{CPU} TAET is 5.9 points below AT-BSL (three seeds). On ResNet-18 AutoAttack has not "
        "been run on AT-BSL; under CW-100 TAET is 1.5 points above it (one seed, not significant).",
        beside=(Differences(((taet(), at_bsl()),), {"cw-linf-100": 0}),),
        related=(Related("digits-lt-methods", "taet", "at-bsl"),),
    ),
    "C2": Claim(
        "TAET",
        "TAET has 1.93 points more clean balanced accuracy than AT-BSL",
        "table 1",
        Differences(((taet(), at_bsl()),), {"clean": 1.93}),
        f"One ResNet-18 each: −0.7 points, not significant. {CPU}: −8.3 points (three seeds).",
        related=(
            Related("cifar10-lt-precision", "taet-bf16", "at-bsl-bf16"),
            Related("ham10000", "taet", "at-bsl"),
        ),
    ),
    "C3": Claim(
        "TAET",
        "Under AutoAttack the eleven methods have the printed order",
        "table 1",
        SameOrder("taet/table1", AA),
        f"{MINI} the rank correlation with the table is −0.10; most methods have one seed.",
    ),
    "C4": Claim(
        "TAET",
        "MART is the second best under AutoAttack, and TRADES the worst",
        "table 1",
        Differences(
            (
                (taet(), T("mart")),
                (T("mart"), at_bsl()),
                (T("mart"), T("robal")),
                (T("mart"), T("at")),
                (T("mart"), T("adt")),
                (T("mart"), T("reat")),
                (T("mart"), T("las-at")),
                (T("mart"), T("he")),
                (T("mart"), T("gairat")),
                (at_bsl(), T("trades")),
                (T("robal"), T("trades")),
                (T("at"), T("trades")),
                (T("mart"), T("trades")),
                (T("adt"), T("trades")),
                (T("reat"), T("trades")),
                (T("las-at"), T("trades")),
                (T("he"), T("trades")),
                (T("gairat"), T("trades")),
                (taet(), T("trades")),
            ),
            {AA: 0},
        ),
        f"{MINI} MART is significantly above TAET and GAIRAT only, and no method is significantly "
        "below TRADES.",
        related=(
            Related("cifar10-lt-methods", "mart", "at-bsl"),
            Related("cifar10-lt-methods", "at", "trades"),
        ),
    ),
    "C5": Claim(
        "TAET",
        "REAT is below AT and AT-BSL under AutoAttack (REAT's own paper has it above AT-BSL)",
        "table 1",
        Differences(((T("at"), T("reat")), (at_bsl(), T("reat"))), {AA: 0}),
        f"{MINI} the three do not differ significantly.",
        related=(
            Related("cifar10-lt-methods", "at-bsl", "reat"),
            Related("digits-lt-methods", "at-bsl", "reat"),
        ),
    ),
    "C6": Claim(
        "TAET",
        "TAET is better than AT-BSL on the last five classes under PGD-20",
        "table 2",
        Differences(((taet(), at_bsl()),), {"pgd-20": 0}, ranks=LAST_FIVE),
        "One ResNet-18 each: +9.0 points, and +5.6 under CW-100, which breaks more images than "
        f"PGD-20. {CPU} it is below AT-BSL (three seeds).",
        beside=(Differences(((taet(), at_bsl()),), {"cw-linf-100": 0}, ranks=LAST_FIVE),),
    ),
    "C7": Claim(
        "TAET",
        "The clean stage adds 7.19 points of clean balanced accuracy and 1.04 under AutoAttack",
        "section 6.3",
        Differences(((taet(), harl()),), {"clean": 7.19, AA: 1.04}),
        f"{CPU} and one seed of HARL (TAET without its clean stage) no gain is seen: −0.5 clean, "
        "−0.9 under AutoAttack. In a short training of eight epochs the clean stage adds 11.0 "
        "points on clean images (one seed).",
        beside=(
            Differences(
                (
                    (taet(alpha=0, beta=0, gamma=0), T("at")),
                    (taet(alpha=0, beta=0, gamma=0, outer="balanced-softmax"), at_bsl()),
                ),
                {"clean": 0, AA: 0},
            ),
        ),
        related=(Related("cifar10-lt-methods", "taet", "harl"),),
    ),
    "C8": Claim(
        "TAET",
        "Of the splits shown, 40 clean epochs of 100 are the best",
        "figure 7",
        Differences(
            (
                (taet(), harl()),
                (taet(), taet(clean_share=0.2)),
                (taet(), taet(clean_share=0.6)),
                (taet(), taet(clean_share=0.8)),
            ),
            {AA: 0},
        ),
        f"Of the four comparisons only that with no clean epochs was run. {CPU} and one seed of "
        "HARL, 40 clean epochs are 0.9 points below none, which is not significant.",
    ),
    "C9": Claim(
        "TAET",
        "HEL makes weak classes more robust than balanced softmax does",
        "section 3.2",
        Differences(((harl(), at_bsl()),), {AA: 0}, ranks=LAST_FIVE),
        f"{CPU} and one seed of HARL, HARL is 8.5 points below AT-BSL on the last five classes.",
        related=(Related("cifar10-lt-methods", "harl", "at-bsl"),),
    ),
    "C10": Claim(
        "TAET",
        "The three terms of HEL together are better than each alone",
        "section 6.4, figure 6",
        Differences(
            (
                (taet(), taet(beta=0, gamma=0)),
                (taet(), taet(alpha=0, gamma=0)),
                (taet(), taet(alpha=0, beta=0)),
            ),
            {"pgd-20": 0},
        ),
        f"{MINI} all three are far above HDL and RCEL alone, and not significantly different from "
        "BCL alone.",
    ),
    "C11": Claim(
        "TAET",
        "With weights of 0.05 or 0.1 on the terms of HEL, PGD-20 stays within 4 points",
        "table 4",
        WithinPoints(
            (
                (taet(), taet(alpha=0.1, beta=0.1, gamma=0.05)),
                (taet(), taet(alpha=0.05, beta=0.1, gamma=0.1)),
                (taet(), taet(alpha=0.05, beta=0.1, gamma=0.05)),
                (taet(), taet(alpha=0.1, beta=0.05, gamma=0.1)),
                (taet(), taet(alpha=0.1, beta=0.05, gamma=0.05)),
                (taet(), taet(alpha=0.05, beta=0.05, gamma=0.1)),
                (taet(), taet(alpha=0.05, beta=0.05, gamma=0.05)),
            ),
            {"pgd-20": 4},
        ),
        f"{MINI} no setting differs from the main one by more than 2.7 points.",
    ),
    "C12": Claim(
        "TAET",
        "Ten steps of the training attack are 11.4 points better under AutoAttack than five",
        "table 9",
        Differences(((taet(), taet(steps=5)),), {AA: 11.4}),
        f"{MINI} they differ by +0.6 points, which is not significant.",
    ),
    "C13": Claim(
        "TAET",
        "Clean accuracy stays within 6 points from 5 to 40 steps of the training attack",
        "appendix B.4, table 9",
        WithinPoints(
            (
                (taet(), taet(steps=5)),
                (taet(), taet(steps=20)),
                (taet(), taet(steps=30)),
                (taet(), taet(steps=40)),
                (taet(steps=5), taet(steps=20)),
                (taet(steps=5), taet(steps=30)),
                (taet(steps=5), taet(steps=40)),
            ),
            {"clean": 6},
        ),
        f"{MINI} five steps have 8.7 points more clean accuracy than ten; 10 to 40 do not differ "
        "significantly.",
    ),
    "C14": Claim(
        "TAET",
        "Training steps of 3/255 are 6.57 points better under AutoAttack than steps of 1/255",
        "table 10",
        Differences(((taet(step_size="3/255"), taet(step_size="1/255")),), {AA: 6.57}),
        f"{MINI} they differ by +0.5 points, which is not significant.",
    ),
    "C15": Claim(
        "TAET",
        "AT-BSL overfits: its robustness peaks near epoch 25 of 100 and declines",
        "section 3.2, figure 2",
        Untested(
            "One ResNet-18 at published counts was measured after four epochs, by PGD-10 on 1,000 "
            "test images.",
            (
                Line("at-bsl, pgd-10, after 25 epochs", "38.1 %"),
                Line("at-bsl, pgd-10, after 50 epochs", "43.3 %"),
                Line("at-bsl, pgd-10, after 75 epochs", "40.9 %"),
                Line("at-bsl, pgd-10, after 100 epochs", "42.1 %"),
            ),
            "gpu",
        ),
        "One ResNet-18 was measured after 25, 50, 75 and 100 epochs. It is highest after 50, with "
        "43.3 % under PGD-10, and ends at 42.1 %.",
    ),
    "C16": Claim(
        "TAET",
        "TAET mitigates robust overfitting",
        "figure 8",
        Untested(
            "One ResNet-18 each at published counts, under PGD-10 in the last epoch. Training "
            "images are augmented.",
            (
                Line("at-bsl, pgd-10, training images", "76.8 %"),
                Line("at-bsl, pgd-10, test images", "42.1 %"),
                Line("taet, pgd-10, training images", "51.9 %"),
                Line("taet, pgd-10, test images", "46.2 %"),
            ),
            "gpu",
        ),
        "One ResNet-18 each supports it. AT-BSL has 76.8 % on training images and 42.1 % on test "
        "images; TAET has 51.9 % and 46.2 %.",
    ),
    "C17": Claim(
        "TAET",
        "TAET is more robust than AT-BSL at every imbalance ratio",
        "table 5",
        Differences(
            tuple((taet(ratio=ratio), at_bsl(ratio=ratio)) for ratio in (10, 20, 50, 100)),
            {AA: 0},
        ),
        "Only ratio 10 was run; see C1.",
    ),
    "C18": Claim(
        "TAET",
        "TAET has the higher plain clean accuracy on CIFAR-100-LT at imbalance ratio 10",
        "table 8",
        Differences(((taet("cifar100-lt"), at_bsl("cifar100-lt")),), {"clean": 0}),
        f"{NO_RUNS} The planned test compares balanced accuracy.",
    ),
    "C19": Claim(
        "TAET",
        "On ViT-B/16 AT-BSL stays at 10 % on ten classes, and TAET does not",
        "table 11",
        Untested(
            "With the published SGD, AT-BSL does not train a small ViT on digits, and with "
            "`--recipe vit` (AdamW) it does: clean +74.6 points (+72.0 to +77.0, one seed, "
            "results/digits-lt-vit). TAET was not run on a ViT."
        ),
        "On digits AT-BSL trains a small ViT by AdamW, and not by the published SGD; TAET was not "
        "run on a ViT.",
    ),
    "C20": Claim(
        "TAET",
        "TAET is the most robust of five methods on DermaMNIST",
        "table 3",
        Differences(
            tuple(
                (
                    taet("dermamnist", model="vit-b16"),
                    T(other, "dermamnist", model="vit-b16"),
                )
                for other in ("at-bsl", "trades", "mart", "adt")
            ),
            {AA: 0},
        ),
        NO_RUNS,
    ),
    "C21": Claim(
        "TAET",
        "A larger gamma could help the rarest classes of DermaMNIST (a suggestion)",
        "section 6.2",
        Differences(
            (
                (
                    taet("dermamnist", model="vit-b16", gamma=0.2),
                    taet("dermamnist", model="vit-b16"),
                ),
            ),
            {"pgd-20": 0},
            ranks=(5, 7),
        ),
        NO_RUNS,
    ),
    "C22": Claim(
        "TAET",
        "The two stages save 39.2 % of the training time (appendix C), nearly halving it (B.1)",
        "appendices B.1 and C",
        Untested(
            "On a CPU the two stages take 0.64 and 0.68 of the time of one "
            "(results/cost-model.json and results/cost.json), which saves 36 and 32 %."
        ),
        "On a CPU we measure 36 and 32 %, which is close to it but a third and not nearly half. "
        "The printed 39.2 % follow from equation 13, which has an error (result 3).",
    ),
    "C23": Claim(
        "TAET",
        "The clean stage needs 1,629 MB less than the adversarial one, at batch size 128",
        "appendix D",
        Untested(
            "Clean and adversarial steps differ by 0.4 MB on a CPU with ResNet-8 at batch size 32 "
            "(results/cost.json). On a GPU they were not compared."
        ),
        "Memory was not compared on a GPU.",
    ),
    "C26": Claim(
        "TAET",
        "Plain accuracy orders the methods in another way than balanced accuracy",
        "section 5, table 6",
        OrdersReversed("taet/table1", ("clean", AA)),
        f"{MINI} 7 of 55 pairs of methods change their order on clean images, and 0 of 55 under "
        "AutoAttack.",
    ),
    "R1": Claim(
        "REAT",
        "With a loss for long tails, RBL balances the adversarial examples: about five times as "
        "many are predicted as tail classes, those of tail classes move more between epochs, and "
        "robustness changes",
        "section 4.1, figure 3, table 2",
        Untested(
            "Under sign steps with batch normalisation in eval mode, as the public code attacks, "
            "RBL changes no example (result 1)."
        ),
        f"{MINI} 0 % of AT's training examples are predicted as tail classes, 29 % of AT-BSL's and "
        "27 % of REAT's (three seeds). So the combination has the effect; balanced softmax has it "
        "alone, and under sign steps RBL cannot add to it (result 1).",
        beside=(PredictedShares((R("at"), R("at-bsl"), R("reat"), R("robal")), (7, 10)),),
    ),
    "R4": Claim(
        "REAT",
        "Predictions of adversarial examples are stable between successive epochs (an assumption "
        "that the paper makes for simplicity)",
        "section 4.1",
        Untested(
            "The committed runs record every fifth epoch. Between these, the shares of the "
            "predicted classes move by a total variation of 10 to 14 % (AT-BSL and REAT, three "
            "seeds each on ResNet-8)."
        ),
        "Our runs record every fifth epoch only, which does not test successive ones.",
    ),
    "R5": Claim(
        "REAT",
        "REAT has 0.93 points more than AT-BSL under AutoAttack at imbalance ratio 50",
        "tables 1 to 3 and 8",
        Differences(((R("reat"), R("at-bsl")),), {AA: 0.93}),
        f"{MINI} it has 0.3 points more, which is not significant (three seeds).",
        related=(
            Related("cifar10-lt-methods", "reat", "at-bsl"),
            Related("digits-lt-methods", "reat", "at-bsl"),
        ),
    ),
    "R6": Claim(
        "REAT",
        "TAIL enlarges the feature space of tail classes",
        "section 4.2",
        Untested("No feature space was measured. Result 4 compares the code with equation 3."),
        "No feature space was measured; the public code's term differs from equation 3 (result 4).",
    ),
    "R8": Claim(
        "REAT",
        "Balanced softmax is about 3 points or more (AutoAttack) and 12 points or more (clean) "
        "above focal loss, class-balanced loss and LDAM",
        "table 1",
        Differences(
            tuple(
                (R("at-bsl"), R("at", outer=loss)) for loss in ("focal", "class-balanced", "ldam")
            ),
            {AA: 3, "clean": 12},
        ),
        f"{MINI} it is far above focal loss and LDAM on clean images, and above none of the three "
        "under AutoAttack.",
    ),
    "R9": Claim(
        "REAT",
        "REAT improves on AT with each of the four losses",
        "table 1",
        Differences(
            (
                *(
                    (R("reat", outer=loss), R("at", outer=loss))
                    for loss in ("focal", "class-balanced", "ldam")
                ),
                (R("reat"), R("at-bsl")),
            ),
            {AA: 0},
        ),
        f"{MINI} no difference is significant.",
    ),
    "R10": Claim(
        "REAT",
        "PGD-AT is better than TRADES and MART under AutoAttack",
        "table 7",
        Differences(((R("at"), R("trades")), (R("at"), R("mart"))), {AA: 0}),
        f"{MINI} AT is 1.7 points above TRADES and does not differ from MART.",
        related=tuple(
            Related(folder, "at", other)
            for folder in ("cifar10-lt-methods", "digits-lt-methods")
            for other in ("trades", "mart")
        ),
    ),
    "R11": Claim(
        "REAT",
        "TRADES, MART and AWP do not converge with balanced softmax",
        "section 5, appendix D",
        Collapses(
            (
                R("trades", outer="balanced-softmax"),
                R("mart", outer="balanced-softmax"),
                R("at-bsl", awp=0.01),
            )
        ),
        f"{MINI} TRADES collapses as the paper says (10.7 % on clean images); MART and AT-BSL with "
        "AWP train.",
    ),
    "R12": Claim(
        "REAT",
        "An attack on scaled logits takes 4.92 points from RoBal's robustness",
        "table 3",
        Differences(
            ((R("robal"), R("robal")),),
            {"pgd-20": 4.92},
            attacks=("adaptive-pgd-20:factor=0.1", "pgd-20"),
        ),
        f"{MINI} the cosines attacked as they are leave 7.1 points more than the cosines times 10.",
    ),
    "R13": Claim(
        "REAT",
        "RoBal neglects the body classes",
        "section 5.2, figure 5",
        All(
            tuple(
                Differences(((R("reat"), R("robal")),), {AA: 0}, ranks=ranks, family=2)
                for ranks in (BODY_IN_TEXT, BODY_IN_CODE)
            )
        ),
        f"{MINI} REAT is 9.3 points above RoBal on the body of the paper's text (ranks 4 to 6), "
        "and not significantly on that of its code (4 to 7). As in figure 5, fewer of RoBal's "
        "training examples are predicted as body classes than of REAT's (10 against 23 %).",
        beside=(PredictedShares((R("reat"), R("robal")), BODY_IN_TEXT),),
        related=(
            Related("cifar10-lt-methods", "reat", "robal"),
            Related("digits-lt-methods", "reat", "robal"),
        ),
    ),
    "R14": Claim(
        "REAT",
        "AT on as many images without imbalance has 6.6 points more than AT-BSL under AutoAttack, "
        "so imbalance costs more than lack of data",
        "table 8",
        Differences(((R("at", "cifar10-balanced-small"), R("at-bsl")),), {AA: 6.6}),
        f"{MINI} it has 5.8 points more. That imbalance costs more than lack of data needs a run "
        "on all images too, and was not tested.",
    ),
    "R15": Claim(
        "REAT",
        "The gap between balanced and long-tailed training images is smaller on CIFAR-100",
        "table 9",
        Untested("Missing: the gaps of tables 8 and 9 at one scale."),
        NO_RUNS,
    ),
    "R16": Claim(
        "REAT",
        "On CIFAR-10-LT an epoch of REAT takes 5 to 8 seconds more than the 42 to 46 of AT",
        "table 14",
        Untested(
            "An epoch of REAT takes 0.95 to 1.02 of one of AT with our code on a CPU "
            "(results/cost-model.json, results/cost.json). The public code, whose TAIL loops over "
            "images, was not measured on a V100."
        ),
        "With our code on a CPU both take the same time; the public code was not timed.",
    ),
    "R17": Claim(
        "REAT",
        "It is easier to raise clean accuracy than robustness",
        "section 5.2",
        Differences(((R("at-bsl"), R("at")),), {"clean": 0}, minus_attack=AA),
        f"{MINI} AT-BSL's gain over AT is 13.4 points larger on clean images than under AutoAttack "
        "(three seeds).",
        related=(
            Related("cifar10-lt-ir10", "at-bsl", "at"),
            Related("cifar10-lt-methods", "at-bsl", "at"),
        ),
    ),
    "R19": Claim(
        "REAT",
        "Features are more separable with REAT (smoothed in the paper, not smoothed here)",
        "figure 10",
        MoreSeparable(R("reat"), R("at-bsl")),
        f"{MINI} and two seeds these runs cannot tell: the interval of the clean features "
        "reaches 40 points to both sides.",
    ),
    "R20": Claim(
        "REAT",
        "REAT is above AT-BSL under L2 attacks, too, at imbalance ratio 50",
        "table 12",
        Differences(((R("reat"), R("at-bsl")),), {"pgd-l2-20": 0}),
        f"{MINI} they do not differ significantly (two seeds).",
    ),
}
"""By name. C24, C25, R2, R3, R7 and R18 of earlier versions are notes, merged or results."""
