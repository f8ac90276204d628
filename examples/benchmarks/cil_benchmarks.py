"""The benchmarks of `cil.py`: which images, in how many tasks, with which backbone, and what peers train with."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Args:
        title (`str`): What it is, in a few words.
        folder (`str`, *optional*): Folder of `train.parquet` and `test.parquet`; scikit-learn's digits if missing.
        num_tasks (`int`): Tasks of as many classes each, or domains.
        image_size (`int`): Side in pixels that images are resized to.
        vit (`dict`, *optional*): Fields of `ViTConfig` for a backbone from scratch; pretrained, `--backbone`, without.
        budget (`str`): Bytes of memory, unless the command line says otherwise.
        joint_epochs (`float`): Epochs of joint training.
        recipe (`dict`): Fields of `Recipe`, for all peers and for joint training.
        looks (`tuple`): Keys of `LOOKS` in `cil_data.py`: tasks are domains, the same classes with another look each,
            among which the images are divided. Empty where tasks bring classes.
        train_images (`tuple[int, ...]`): Most training images of the classes, in turn, unless the command line says
            otherwise; all if empty.
        test_images (`int`, *optional*): Most test images of a class; all if missing.
    """

    title: str
    folder: str | None
    num_tasks: int
    image_size: int
    vit: dict | None
    budget: str
    joint_epochs: float
    recipe: dict
    looks: tuple = ()
    train_images: tuple[int, ...] = ()
    test_images: int | None = None


VIT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.05}
SMALL_VIT = {**VIT, "hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 4}
SCRATCH = {
    "learning_rate": 1e-3,
    "backbone_learning_rate": 1e-3,
    "weight_decay": 0.05,
    "label_smoothing": 0.0,
    "batch_size": 32,
    "random_features": 5000,
}

CIFAR = Benchmark(
    title="CIFAR-10, ViT from scratch",
    folder="cifar10",
    num_tasks=5,
    image_size=32,
    vit={**SMALL_VIT, "patch_size": 8},
    budget="614400",  # 20 raw images of each class
    joint_epochs=20,
    recipe={**SCRATCH, "augmentation": "crop-flip", "webp_quality": 20},
)

FASHION = Benchmark(
    title="Fashion-MNIST, ViT from scratch",
    folder="fashion_mnist",
    num_tasks=5,
    image_size=28,
    vit={**SMALL_VIT, "patch_size": 7},
    budget="400KB",  # about 50 raw images of each class
    joint_epochs=10,
    recipe={**SCRATCH, "augmentation": "crop-flip", "webp_quality": 10},
)

CALTECH = Benchmark(
    title="Caltech-101 at 128 px, pretrained ViT-tiny",
    folder="caltech101",
    num_tasks=10,
    image_size=128,
    vit=None,
    budget="2MB",
    joint_epochs=5,
    recipe={
        "learning_rate": 2e-3,
        "backbone_learning_rate": 1e-4,
        "weight_decay": 0.01,
        "label_smoothing": 0.1,
        "batch_size": 32,
        "augmentation": "crop-flip",
        "random_features": 5000,
        "webp_quality": 1,
    },
)

FAR = replace(  # from what the backbone has seen
    CALTECH,
    title="CIFAR-10 at 64 px, pretrained ViT-tiny",
    folder="cifar10",
    num_tasks=5,
    image_size=64,
    budget="400KB",  # 33 raw images
    joint_epochs=15,
    train_images=(200,),
    test_images=200,
)

BENCHMARKS = {
    "P": CALTECH,
    "PC": FAR,
    "PF": replace(
        FAR,
        title="Fashion-MNIST at 64 px, pretrained ViT-tiny",
        folder="fashion_mnist",
        recipe={**FAR.recipe, "webp_quality": 5},
    ),
    "PO": replace(
        FAR,
        title="Omniglot, 242 characters at 64 px, pretrained ViT-tiny",
        folder="omniglot",
        num_tasks=10,
        budget="800KB",  # 65 raw images
        recipe={**FAR.recipe, "augmentation": "crop", "webp_quality": 10},
        train_images=(),
        test_images=None,
    ),
    "PD": replace(
        FAR,
        title="CIFAR-10 at 64 px in four looks, pretrained ViT-tiny",
        num_tasks=4,
        looks=("plain", "grey", "inverted", "turned"),
    ),
    "PU": replace(
        CALTECH,
        title="Caltech-101 at 128 px, unbalanced, pretrained ViT-tiny",
        budget="800KB",  # 16 raw images
        train_images=(30, 10, 5, 2),
    ),
    "S": CIFAR,
    "S4": replace(CIFAR, title="CIFAR-10, ViT of patch 4 from scratch", vit={**SMALL_VIT, "patch_size": 4}),
    "T": Benchmark(
        title="Tiny-ImageNet, 200 classes at 64 px, ViT from scratch",
        folder="tiny_imagenet",
        num_tasks=10,
        image_size=64,
        vit={**SMALL_VIT, "patch_size": 8},
        budget="6MB",  # about 2.5 raw images of each class
        joint_epochs=24.3,
        recipe={**SCRATCH, "augmentation": "crop-flip", "batch_size": 128, "webp_quality": 1},
    ),
    "F1": Benchmark(
        title="Omniglot, 242 characters at 32 px, ViT from scratch",
        folder="omniglot",
        num_tasks=10,
        image_size=32,
        vit={**SMALL_VIT, "patch_size": 8},
        budget="800KB",  # about 3 raw images of each class
        joint_epochs=60,
        recipe={**SCRATCH, "augmentation": "crop", "webp_quality": 10},
    ),
    "F2": FASHION,
    "R": replace(
        FASHION,
        title="Fashion-MNIST, turned by 0, 90, 180 and 270 degrees, ViT from scratch",
        num_tasks=4,
        looks=(0, 90, 180, 270),
    ),
    "D": Benchmark(
        title="scikit-learn's digits, ViT from scratch, a test of the harness",
        folder=None,
        num_tasks=5,
        image_size=8,
        vit={
            **VIT,
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 2,
        },
        budget="100KB",
        joint_epochs=20,
        recipe={
            **SCRATCH,
            "learning_rate": 2e-3,
            "backbone_learning_rate": 2e-3,
            "augmentation": "none",
            "random_features": 1000,
            "webp_quality": 50,
        },
    ),
}
