"""The fields of `config.loss`: its terms, class weights, and the teacher."""

from deeplab_jax.config import ranges
from deeplab_jax.config.field import Field, Need

#: Fields by name.
LOSS = {
    "terms": Field(
        "cross_entropy",
        "sum of terms with weights and options, such as `cross_entropy + 0.5 * dice(smooth=1)`",
    ),
    "label_smoothing": Field(
        0.0,
        "label smoothing s of softmax cross-entropies: the true class gets 1 - s + s / classes, the others s / classes",
        range=ranges.BELOW_ONE,
    ),
    "class_weights": Field(
        (),
        "one weight per class for the terms that count pixels; empty weights all classes equally",
        range=ranges.AT_LEAST_ZERO,
    ),
    "class_weight_rule": Field(
        "given",
        "how the class weights are found; training counts the labels of `data.train_split`",
        {
            "given": "they are `class_weights`",
            "inverse_frequency": "all pixels / (classes * pixels of the class)",
            "median_frequency": "median frequency / that of the class, among images that contain it",
            "effective_number": "(1 - b) / (1 - b^n) for n images that contain the class, b = 0.999, scaled to mean 1",
        },
    ),
    "auxiliary_weight": Field(
        0.4, "weight of the auxiliary head's loss", range=ranges.AT_LEAST_ZERO, need=Need("model.auxiliary_channels")
    ),
    "teacher": Field(
        None,
        "preset, folder, workdir or `hf://owner/name` of a network with the same classes to distill from",
        value_type=str,
    ),
    "teacher_weight": Field(
        0.5,
        "share of the teacher's probabilities in the target; the labels have the rest",
        range=ranges.SHARE,
        need=Need("loss.teacher"),
    ),
    "teacher_scales": Field(
        (1.0,),
        "scales at which the teacher sees each image; its probabilities are averaged",
        range=ranges.SCALE,
        need=Need("loss.teacher"),
    ),
    "teacher_flip": Field(
        False,
        "average the teacher's predictions with those for the horizontally flipped image",
        need=Need("loss.teacher"),
    ),
}
