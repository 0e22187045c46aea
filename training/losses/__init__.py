"""Adversarial losses and regularisers; see only the Generator and Discriminator contracts."""
