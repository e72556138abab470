"""What each warning of an evaluation means for a reader who does not know the field, and what to do
about it."""

from taet.evaluation.flags import MASKING

TOO_HIGH = (
    "The robust accuracy is probably too high: the attacks may have failed. Do not rely on it; run "
    "taet check --deep on the model, and attack it with autoattack"
)
SHARED_IMAGES = (
    "The test is not fair: the model may have seen some of the test images. Test it on images that "
    "it was not trained on"
)
FEW_IMAGES = (
    "There are few test images, so the numbers are rough. Compare models only by the intervals, or "
    "test with more images"
)
UNUSUAL = (
    "The attack is not the usual one for this model. Compare its number only with numbers that "
    "were measured in the same way"
)
LESS_TESTED = (
    "This evaluation tested less than a full one and may miss a weakness. Add autoattack before "
    "the number is used"
)
LOST = (
    "During training the model lost its robustness. Take an earlier epoch, or train with a "
    "stronger attack"
)
MEANINGS = {
    "pgd-too-short": "The attack is too short to show how robust the model is. Give it more steps",
    "unbounded-attack-not-converged": (
        "The attack did not reach its end, so its number says nothing about robustness. Give it "
        "more steps, or read the attacks with a radius"
    ),
    "autoattack-variant": UNUSUAL,
    "gradient-path-differs": (
        "The model that was attacked is not quite the one that answers. Make it compute the same "
        "in training and in use, and evaluate again"
    ),
    "at-chance": (
        "The model hardly recognises the images even without an attack, so there is no robustness "
        "to measure. Train it longer or on more images first"
    ),
    "class-without-test-images": (
        "Nothing is known about some classes, because they have no test images. Add test images of "
        "them"
    ),
    "few-images-per-class": FEW_IMAGES,
    "small-test-set": FEW_IMAGES,
    "selected-on-test-set": (
        "The numbers are too high, because the test images chose the model. Choose it on a "
        "validation split, and evaluate again"
    ),
    "test-images-in-training": SHARED_IMAGES,
    "extra-not-compared": SHARED_IMAGES,
    "quick-misled": TOO_HIGH,
    "quick-is-a-bound": LESS_TESTED,
    "not-probed": LESS_TESTED,
    "probe-small": LESS_TESTED,
    "dummy-classes": TOO_HIGH,
    "eot-beats-one-draw": TOO_HIGH,
    "catastrophic-overfitting": LOST,
    "robustness-lost": LOST,
}


def meaning(flag: str) -> str:
    """Return what a warning means and what to do, as a sentence without its full stop; "" for one
    that is not known."""
    return TOO_HIGH if flag in MASKING else MEANINGS.get(flag, "")
