"""Torchvision's classification models, one or more of every kind: answered at once, and how."""

import time

import pytest
import torch
from torch import nn
from torchvision import models

from rconv import UnsupportedModelError, audit_model
from rconv.attack.attack import Attack

SECONDS = 60.0
"""Of the processor: far below what running the model once for each convolution takes. The bar of 10
seconds is measured by benchmarks/models.py; the largest of these take one to four."""

REFUSED = [
    # model, training, what the refusal names
    ("alexnet", False, r"features\.2: the positions of maxima are searched for in maps of at most"),
    ("vgg11", False, r"features\.2: the positions of maxima are searched for in maps of at most"),
    ("squeezenet1_1", False, r"features\.5: MaxPool2d"),
    ("squeezenet1_1", True, r"classifier\.0: Dropout is active, .*; call model\.eval\(\)"),
    ("resnet18", False, r"avgpool: AdaptiveAvgPool2d"),
    ("resnet18", True, r"avgpool: AdaptiveAvgPool2d"),
    ("densenet121", False, r"adaptive_avg_pool2d: AdaptiveAvgPool2d"),
    ("shufflenet_v2_x0_5", False, r"stage2\.0: InvertedResidual's view"),
    ("googlenet", False, r"inception3a\.branch4\.0: MaxPool2d"),
    ("mobilenet_v3_small", False, r"features\.1\.block\.1\.avgpool: AdaptiveAvgPool2d between"),
    ("efficientnet_b0", False, r"features\.1\.0\.block\.1\.avgpool: AdaptiveAvgPool2d between"),
    ("mnasnet0_5", False, r"mean: the attack does not know this operation"),
    ("regnet_y_400mf", False, r"trunk_output\.block1\.block1-0\.f\.se\.avgpool: AdaptiveAvgPool2d"),
    ("convnext_tiny", False, r"features\.0\.1: LayerNorm2d's permute: "),
    ("swin_t", False, r"features\.0\.1: Permute's permute: "),
    ("vit_b_32", False, r"heads\.head: its weights are all zero, .*; train it by one step"),
]


def network(name, training=False):
    """One model, its weights those of its constructor but for the slow truncated normal ones."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "trunc_normal_", lambda w, mean=0, std=1, *_, **__: w.normal_(0, std)
                      if w.is_leaf and not w.requires_grad else w.data.normal_(0, std))  # fmt: skip
        options = {"init_weights": True} if name == "googlenet" else {}
        return models.get_model(name, weights=None, **options).train(training)


@pytest.mark.parametrize(("name", "training", "message"), REFUSED)
def test_one_sentence_names_the_layer_the_reason_and_the_remedy(name, training, message):
    model, shape = network(name, training), (3, 224, 224)
    start = time.process_time()
    with pytest.raises(UnsupportedModelError, match=f"^{message}") as refusal:
        Attack(model, shape)
    assert time.process_time() - start < SECONDS
    said = str(refusal.value)
    sentence, _, rest = said.partition(". Not")
    assert rest == " supported does not mean private." and ". " not in sentence
    clauses = sentence.split("; ")
    assert len(clauses) > 1 and len(set(clauses)) == len(clauses) and len(said) < 400
    reasons = refusal.value.reasons
    assert len(set(reasons)) == len(reasons) and all(reason for _, reason in reasons)


def test_the_reasons_say_why_no_convolution_is_an_entry_point():
    """ResNet-18 on images of CIFAR-10: once 2,376 characters, one clause twenty times."""
    with pytest.raises(UnsupportedModelError) as refusal:
        audit_model(network("resnet18"), (3, 64, 64))
    assert len(str(refusal.value)) < 250
    layers = dict(refusal.value.reasons)
    assert "64 filters" in layers["conv1"] and "MaxPool2d" in layers["maxpool"]


def test_resnet18_in_training_mode_is_read_down_to_its_image():
    """Entered by the gradients of its last convolution, which lies below global pooling."""
    read = Attack(network("resnet18", training=True), (3, 64, 64)).network
    assert read.head.name == "layer4.1.conv2" and read.nodes[0].shape == (3, 64, 64)
    stem = read.stages[0]
    assert (stem.name, stem.live_norm, stem.pool is None) == ("conv1", "bn1", False)


def test_a_vision_transformer_is_answered():
    model = network("vit_b_32")
    nn.init.normal_(model.heads.head.weight, std=0.02)
    start = time.process_time()
    attack, layers = Attack(model, (3, 224, 224)), audit_model(model, (3, 224, 224))
    assert time.process_time() - start < SECONDS
    assert attack.network.head.embedding.name == "encoder.pos_embedding"
    assert [own.verdict for own in layers] == [
        "read off a position embedding", "leaks by gradient constraints"
    ]  # fmt: skip
