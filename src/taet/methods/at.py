"""Adversarial training (PGD-AT): cross-entropy on PGD examples.

min_theta E max_{||delta||_inf <= eps} CE(f(x + delta), y). Source: Madry et al., Towards Deep
Learning Models Resistant to Adversarial Attacks, ICLR 2018, arXiv:1706.06083.
"""

from taet.methods.base import Method, published


class AdversarialTraining(Method):
    """Loss: mean CE(f(x'), y), through the run's outer loss.

    The protocols attack with batch normalisation in eval mode; the original code and Rice et al.
    use train mode.

    Official: the recipe of Rice et al. (Overfitting in adversarially robust deep learning, ICML
    2020, arXiv:2002.11569): a PreActResNet-18, images padded by reflection, and a clean pass in
    train mode after each step. The original trains a wide ResNet for 80,000 steps on pixel values
    in [0, 255].
    """

    title = "AT"
    reference = "Madry et al., ICLR 2018, arXiv:1706.06083"
    official = published(
        threat={
            "eps": 8 / 255,
            "step_size": 2 / 255,
            "steps": 10,
            "start": "uniform",
            "bn_mode": "train",
        },
        training={"epochs": 200, "weight_decay": 5e-4, "milestones": (0.5, 0.75)},
        model={"normalize": "data"},
    )
