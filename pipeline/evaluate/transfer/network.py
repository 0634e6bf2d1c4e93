"""The network that is tuned: the whole pretraining head replaced by one zero D x K layer, at any resolution."""

from __future__ import annotations

from pydantic import ValidationError
from torch import nn

from pipeline.base.errors import InputError
from pipeline.base.store import Store
from pipeline.evaluate.networks import PixelNetwork, compute_device, load_network
from pipeline.evaluate.subject import Subject, at_size


def at_tuning_size(subject: Subject, image_size: int) -> Subject:
    """*subject* at the *image_size* of the settings; raw pixels stay as they are: more would be but larger ones."""
    return subject if subject.is_pixels else at_size(subject, image_size)


def network_to_tune(workspace: Store, subject: Subject, num_classes: int) -> nn.Module:
    """The subject's network for the size of its transform (ViT section 3.2), with a zero head, where it computes."""
    network = load_network(workspace, subject)
    size = subject.evaluation_transform.size
    if isinstance(network, PixelNetwork):
        return PixelNetwork(num_classes, size).to(compute_device())
    if network.config.image_size != size:
        try:
            network = network.at_resolution(size)
        except ValidationError:
            patch = network.config.patch_size
            raise InputError(f"image_size {size} is no multiple of the network's patches of {patch} pixels") from None
    head = nn.Linear(network.config.width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    network.pre_logits = None
    network.head = head
    return network.to(compute_device())
