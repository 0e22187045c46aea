"""The built-in head network as a feature network of metrics: `--features builtin`. Runs anywhere without a download."""

from metrics.features import FeatureNetwork, register_features
from torch_utils.misc import weights_digest
from metrics.headnet.network import INPUT_SIZE, head_network


@register_features('builtin')
def builtin_features(device):
    """The FeatureNetwork 'builtin' on `device`: pooled channels of the head network, and its identity embedding as what
    perceptual distances are measured in."""
    network = head_network(device)

    def scaled(images):
        return images / 127.5 - 1

    return FeatureNetwork('builtin', weights_digest(network), INPUT_SIZE, lambda images: network.features(scaled(images)))
