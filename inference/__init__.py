"""From a network to samples, videos and shapes."""
